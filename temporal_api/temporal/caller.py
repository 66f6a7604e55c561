"""The caller's identity and trace, set in every request to Temporal that has fields for them."""

from collections.abc import Mapping
from typing import Literal

import msgspec
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from temporalio.api.common.v1 import Header, Payload
from temporalio.api.failure.v1 import Failure

from temporal_api.record import current_record
from temporal_api.temporal.payloads import JSON_METADATA
from temporal_api.tracing import NO_TRACE

TRACE_HEADER = "_tracer-data"
"""Where the SDKs' OpenTelemetry interceptors look for a trace. They read headers unencrypted."""
MAX_IDENTITY_BYTES = 1000
"""What Temporal takes of other names."""

_Place = Literal["identity", "header", "message", "messages"]
_known: dict[Descriptor, dict[str, _Place]] = {}


def caller() -> str:
    """The caller of the current request; empty outside a request, or if it needs no token."""
    record = current_record()
    name = (record.user if record else None) or ""
    return name if name.isascii() else name.encode()[:MAX_IDENTITY_BYTES].decode(errors="ignore")


def sign(request: Message, process: str, trace: Mapping[str, str] = NO_TRACE) -> None:
    """Set the identity (the caller, or this process) and the trace, unless they are set."""
    if _places(request):
        record = current_record()
        _fill(request, caller() or process, trace or (record.trace if record else NO_TRACE))


def _fill(message: Message, identity: str, trace: Mapping[str, str]) -> None:
    for name, place in _places(message).items():
        match place:
            case "identity":
                if not getattr(message, name):
                    setattr(message, name, identity)
            case "header":
                if trace and TRACE_HEADER not in (fields := getattr(message, name).fields):
                    payload = Payload(metadata=JSON_METADATA, data=msgspec.json.encode(trace))
                    fields[TRACE_HEADER].CopyFrom(payload)
            case "message":
                if message.HasField(name):
                    _fill(getattr(message, name), identity, trace)
            case "messages":
                for each in getattr(message, name):
                    _fill(each, identity, trace)


def _places(message: Message) -> dict[str, _Place]:
    """The fields of this kind of message to set, and the fields with messages that have such fields."""
    kind: Descriptor = message.DESCRIPTOR  # type: ignore[assignment] # of the same kind, in C
    return _find(kind)


def _find(kind: Descriptor) -> dict[str, _Place]:
    if kind in _known:
        return _known[kind]
    found: dict[str, _Place] = {}
    _known[kind] = found  # before the recursion: some messages contain messages of their own kind
    for field in kind.fields:
        inner = field.message_type
        if inner is None:
            if field.name == "identity":
                found[field.name] = "identity"
        elif inner is Header.DESCRIPTOR:
            found[field.name] = "header"
        # A failure's identity is not the caller's.
        elif inner is not Failure.DESCRIPTOR and not inner.GetOptions().map_entry and _find(inner):
            found[field.name] = "messages" if field.is_repeated else "message"
    return found
