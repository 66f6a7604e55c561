"""A history's events as JSON, with their payloads decoded; without this service's own memo."""

import base64
import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import Meta
from temporalio.api.common.v1 import Memo, Payload, Payloads
from temporalio.api.enums.v1 import EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent

from temporal_api.memory import PIECE_BYTES
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.payloads import OWN_MEMO, raw_json
from temporal_api.temporal.run import Status, enum_name

EVENTS_AT_ONCE = 100
"""Some milliseconds of work."""
VALUES_AT_ONCE = 1000

_ENDS: tuple[Status, ...] = ("COMPLETED", "FAILED", "TIMED_OUT", "CANCELED", "TERMINATED", "CONTINUED_AS_NEW")
CLOSING = {EventType.Value(f"EVENT_TYPE_WORKFLOW_EXECUTION_{end}"): end for end in _ENDS}
"""The events that close a run, and the status it has then."""


EventId = Annotated[int, Meta(description="Its number in the history, from 1 on.", examples=[1])]
EventName = Annotated[
    str, Meta(description="The event's type, as Temporal names it.", examples=["WORKFLOW_EXECUTION_STARTED"])
]
EventTime = Annotated[
    str,
    Meta(
        description="When it happened.",
        examples=["2026-01-31T12:00:00.123456Z"],
        extra_json_schema={"format": "date-time"},
    ),
]
Attributes = Annotated[
    dict[str, Any], Meta(description="The event's attributes, as Temporal names them.", examples=[{"attempt": 1}])
]


class Event(msgspec.Struct):
    """One event of a history."""

    event_id: EventId
    event_type: EventName
    event_time: EventTime
    attributes: Attributes


Tell = Callable[[Temporal, HistoryEvent], Awaitable[Event | msgspec.Raw]]


async def event_json(temporal: Temporal, event: HistoryEvent) -> Event:
    """The event as callers see it."""
    if event.ByteSize() > PIECE_BYTES:
        await temporal.memory.turn()
    attributes = event.WhichOneof("attributes")
    return Event(
        event.event_id,
        enum_name(EventType.DESCRIPTOR, event.event_type, "EVENT_TYPE_"),
        event.event_time.ToJsonString(),
        await _fields(temporal, getattr(event, attributes)) if attributes else {},
    )


async def temporal_json(temporal: Temporal, event: HistoryEvent) -> msgspec.Raw:
    """The event in Temporal's own JSON, unchanged."""
    make = functools.partial(json_format.MessageToDict, event)
    # Half a second for 55,000 payloads.
    made = await temporal.memory.in_turn(make) if event.ByteSize() > PIECE_BYTES else make()
    return msgspec.Raw(msgspec.json.encode(made))


def written_memo(event: HistoryEvent) -> Memo:
    """The memo that the workflow was started with, or has written, in this event; else an empty one."""
    changed = event.workflow_properties_modified_event_attributes
    started = event.workflow_execution_started_event_attributes
    return changed.upserted_memo if changed.HasField("upserted_memo") else started.memo


def in_parts(events: list[HistoryEvent]) -> Iterator[list[HistoryEvent]]:
    """Split events into parts, so that other requests can run in between."""
    return (events[start : start + EVENTS_AT_ONCE] for start in range(0, len(events), EVENTS_AT_ONCE))


async def _payloads(temporal: Temporal, payloads: Sequence[Payload]) -> list[msgspec.Raw]:
    """Decode the payloads. An event may have very many, so other requests run in between."""
    values: list[msgspec.Raw] = []
    for start in range(0, len(payloads), VALUES_AT_ONCE):
        if start:
            await temporal.memory.turn()
        values += map(raw_json, await temporal.decode(payloads[start : start + VALUES_AT_ONCE]))
    return values


async def _fields(temporal: Temporal, message: Message) -> dict[str, Any]:
    return {
        field.name: await _value(temporal, field, value)
        for field, value in message.ListFields()
        if field.name != "stack_trace"
    }


async def _value(temporal: Temporal, field: FieldDescriptor, value: Any) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        of = kind.fields_by_name["value"]
        return {key: await _one(temporal, of, value[key]) for key in value if not key.startswith(OWN_MEMO)}
    if field.is_repeated:
        return [await _one(temporal, field, item) for item in value]
    return await _one(temporal, field, value)


async def _one(temporal: Temporal, field: FieldDescriptor, value: Any) -> Any:
    match value:
        case Payload():
            return raw_json(*await temporal.decode([value]))
        case Payloads():
            return await _payloads(temporal, value.payloads)
        case Failure():
            return await temporal.failure(value)
        case Timestamp():
            return value.ToJsonString()
        case Duration():
            return value.ToTimedelta().total_seconds()
        case Message():
            return await _fields(temporal, value)
        case bytes():
            return base64.b64encode(value).decode()
        case int() if field.enum_type is not None:
            return enum_name(field.enum_type, value)
    return value
