"""The trace that a request is part of, and its baggage: what callers send of them, if it is valid (W3C)."""

import re
from collections.abc import Iterable, Mapping

HEADERS = frozenset({b"traceparent", b"tracestate", b"baggage"})
NO_TRACE: Mapping[str, str] = {}

MAX_BYTES = 8192
"""Of each header: what W3C has every party carry of baggage."""
MAX_STATES, MAX_BAGGAGE = 32, 180

# A version that is not ff, a trace and a parent that are not all zeros; a later version may say more behind them.
_PARENT = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})(?P<ids>-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})"
    rb"(?P<more>-[ -~]*)?"
)
_STATE = re.compile(rb"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_TOKEN, _VALUE = rb"[\w!#$%&'*+.^`|~-]++[ \t]*+", rb"=[ \t]*+[!#-+\--:<-\[\]-~]*+[ \t]*+"
_BAGGAGE = re.compile(rb"%s%s(?:;[ \t]*+%s(?:%s)?)*+" % (_TOKEN, _VALUE, _TOKEN, _VALUE))


def trace_context(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """The valid ones of these headers, as OpenTelemetry's propagators read them. A state needs a parent."""
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        values[name] = values[name] + b"," + value if name in values else value
    found: dict[str, bytes] = {}
    if (parent := _PARENT.fullmatch(values.get(b"traceparent", b""))) and (
        parent["version"] != b"00" or not parent["more"]
    ):
        found["traceparent"] = b"00" + parent["ids"]
        states = _members(values.get(b"tracestate", b""))
        if 0 < len(states) <= MAX_STATES and all(map(_STATE.fullmatch, states)):
            found["tracestate"] = b",".join(states)
    if baggage := list(filter(_BAGGAGE.fullmatch, _members(values.get(b"baggage", b""))))[:MAX_BAGGAGE]:
        found["baggage"] = b",".join(baggage)
    return {name: value.decode() for name, value in found.items()}


def _members(value: bytes) -> list[bytes]:
    """The members of a list; none of one that is too long."""
    members = (member.strip(b" \t") for member in value.split(b",")) if len(value) <= MAX_BYTES else ()
    return [member for member in members if member]
