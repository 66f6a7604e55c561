"""The trace of a request: the caller's W3C headers, and whether spans are sent."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from temporal_api.settings import Settings, SettingsError

if TYPE_CHECKING:
    from temporal_api.spans import Spans

HEADERS = frozenset({b"traceparent", b"tracestate", b"baggage"})
NO_TRACE: Mapping[str, str] = {}

log = logging.getLogger(__name__)

MAX_BYTES = 8192
"""Of each header: what W3C has every party carry of baggage."""
MAX_STATES, MAX_BAGGAGE = 32, 180

# The version is not ff, the trace and the parent are not all zeros. A later version may add fields.
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
        keys = {state.partition(b"=")[0] for state in states}
        if 0 < len(states) == len(keys) <= MAX_STATES and all(map(_STATE.fullmatch, states)):
            found["tracestate"] = b",".join(states)
    if baggage := list(filter(_BAGGAGE.fullmatch, _members(values.get(b"baggage", b""))))[:MAX_BAGGAGE]:
        found["baggage"] = b",".join(baggage)
    return {name: value.decode() for name, value in found.items()}


def _members(value: bytes) -> list[bytes]:
    """The members of a list; none of one that is too long."""
    members = (member.strip(b" \t") for member in value.split(b",")) if len(value) <= MAX_BYTES else ()
    return [member for member in members if member]


def spans_of(settings: Settings) -> "Spans | None":
    """The maker of spans, if the settings name a collector. Only then is OpenTelemetry imported."""
    if not settings.otel_exporter_otlp_endpoint:
        return None
    try:
        from temporal_api.spans import Spans

        return Spans(settings.otel_exporter_otlp_endpoint, str(settings.temporal["target_host"]), settings.root_path)
    except ImportError:
        log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but no spans are sent: pip install 'temporal-api[otel]'")
        return None
    except ValueError as error:  # a variable that OpenTelemetry reads itself, such as OTEL_BSP_MAX_QUEUE_SIZE
        raise SettingsError(f"OTEL_*: {error}") from None
