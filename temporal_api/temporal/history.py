"""A run's history: events as JSON with their payloads decoded, page by page, and live.

Temporal's own page tokens stay inside: one of a workflow opens another's history.
"""

import asyncio
import base64
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import EventType, HistoryEventFilterType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryReverseRequest,
)

from temporal_api.errors import Problem
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.payloads import raw_json

Answer = TypeVar("Answer")

LONG_POLL_SECONDS = 30.0
"""More than the 20 s after which Temporal answers an empty page."""
RETRY_SECONDS = 1.0
PAGE_EVENTS = 200
"""About as many as a page holds that is read here: Temporal counts batches, of the events that it recorded at once."""
PAGE_BATCHES = 25
"""A page's most: some ordinary batches. How long the next ones are, nobody knows."""
EVENTS_AT_ONCE = 100
"""What a watcher is given at a time: some milliseconds of work, so that no other request waits for it."""
PAGES_HELD = 32
"""A watcher that is further behind reads the history again instead."""

_ENDS = ("COMPLETED", "FAILED", "TIMED_OUT", "CANCELED", "TERMINATED", "CONTINUED_AS_NEW")
CLOSING = {EventType.Value(f"EVENT_TYPE_WORKFLOW_EXECUTION_{end}"): end for end in _ENDS}
"""The events that close a run, and the status it has then."""


class Event(msgspec.Struct):
    """One event of a history; `attributes` are those of its type, with Temporal's names."""

    event_id: int
    event_type: str
    event_time: str
    attributes: dict[str, Any]


async def event_json(temporal: Temporal, event: HistoryEvent) -> Event:
    """The event as callers see it."""
    attributes = event.WhichOneof("attributes")
    return Event(
        event.event_id,
        EventType.Name(event.event_type).removeprefix("EVENT_TYPE_"),
        event.event_time.ToJsonString(),
        await _fields(temporal, getattr(event, attributes)) if attributes else {},
    )


async def events_json(temporal: Temporal, events: list[HistoryEvent]) -> list[Event]:
    """Many of them, with room for other requests in between."""
    told = []
    for some in _parts(events):
        told += [await event_json(temporal, event) for event in some]
        await asyncio.sleep(0)
    return told


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
        return {key: await _one(temporal, of, value[key]) for key in value}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Message):
        return [await _one(temporal, field, item) for item in value]
    return await _one(temporal, field, value)


async def _one(temporal: Temporal, field: FieldDescriptor, value: Any) -> Any:
    match value:
        case Payload():
            (decoded,) = await temporal.decoded([value])
            return raw_json(decoded)
        case Payloads():
            return [raw_json(payload) for payload in await temporal.decoded(value.payloads)]
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
            kind = field.enum_type.values_by_number.get(value)
            return kind.name if kind else value
    return value


class Page(msgspec.Struct):
    """Events as Temporal gave them, and its token for what follows; empty at the end."""

    events: list[HistoryEvent]
    token: bytes


async def page(
    temporal: Temporal,
    workflow_id: str,
    run_id: str,
    *,
    token: bytes = b"",
    batches: int = PAGE_BATCHES,
    reverse: bool = False,
    wait: bool = False,
    closing_only: bool = False,
) -> Page:
    """One page of a run's history. With `wait`, the last page comes when something happens (Temporal's long poll)."""
    execution = WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
    if reverse:
        backward = await temporal.call(
            temporal.service.get_workflow_execution_history_reverse,
            GetWorkflowExecutionHistoryReverseRequest(
                namespace=temporal.namespace, execution=execution, maximum_page_size=batches, next_page_token=token
            ),
            workflow_id,
            run_id,
        )
        return Page(list(backward.history.events), backward.next_page_token)
    kind = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT
    if closing_only:
        kind = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT
    forward = await temporal.call(
        temporal.service.get_workflow_execution_history,
        GetWorkflowExecutionHistoryRequest(
            namespace=temporal.namespace,
            execution=execution,
            maximum_page_size=batches,
            next_page_token=token,
            wait_new_event=wait,
            history_event_filter_type=kind,
        ),
        workflow_id,
        run_id,
        seconds=LONG_POLL_SECONDS if wait else None,
    )
    return Page(list(forward.history.events), forward.next_page_token)


async def pages(
    temporal: Temporal,
    workflow_id: str,
    run_id: str,
    *,
    token: bytes = b"",
    reverse: bool = False,
    patiently: bool = False,
) -> AsyncGenerator[Page, None]:
    """Page after page to the end, each of a length that can be held; `patiently`: through Temporal's absences."""
    batches = PAGE_BATCHES
    while True:
        read = functools.partial(page, temporal, workflow_id, run_id, token=token, batches=batches, reverse=reverse)
        found = await (patient(read) if patiently else read())
        yield found
        if not (token := found.token):
            return
        fitting = batches * PAGE_EVENTS // max(1, len(found.events))
        batches = max(1, min(fitting, 2 * batches, PAGE_BATCHES))


class _Cursor(msgspec.Struct, array_like=True):
    """Where a listing goes on: so many events into the page of Temporal's token."""

    run_id: str
    token: bytes
    skip: int


async def listed(
    temporal: Temporal, workflow_id: str, run_id: str, *, cursor: bytes, size: int, reverse: bool
) -> tuple[list[HistoryEvent], bytes]:
    """At most `size` events from the cursor on, and the cursor of what follows; empty at the end.

    What Temporal gives beyond `size` is left to the next page, which reads it again.
    """
    if cursor:
        at = msgspec.msgpack.decode(cursor, type=_Cursor)
    else:  # all pages are of one run, also when another one begins meanwhile
        run = (await temporal.describe(workflow_id, run_id)).workflow_execution_info.execution
        at = _Cursor(run.run_id, b"", 0)
    events: list[HistoryEvent] = []
    async for found in pages(temporal, workflow_id, at.run_id, token=at.token, reverse=reverse):
        fresh, room = found.events[at.skip :], size - len(events)
        events += fresh[:room]
        if len(fresh) > room:
            at.skip += room
            return events, msgspec.msgpack.encode(at)
        at = _Cursor(at.run_id, found.token, 0)
        if len(events) == size:
            break
    return events, msgspec.msgpack.encode(at) if at.token else b""


async def patient(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer, asked for again during Temporal's absences: who waits is not told of them."""
    while True:
        try:
            return await ask()
        except Problem as problem:
            if problem.code not in ("temporal_timeout", "temporal_connection_error", "temporal_overloaded"):
                raise
            await asyncio.sleep(RETRY_SECONDS)


class _Watcher:
    """What one subscriber has yet to read; a Problem is the end of the feed."""

    def __init__(self) -> None:
        self.pages: asyncio.Queue[list[HistoryEvent] | Problem] = asyncio.Queue()
        self.behind = False

    def put(self, news: list[HistoryEvent] | Problem) -> None:
        if isinstance(news, Problem) or self.pages.qsize() < PAGES_HELD:
            self.pages.put_nowait(news)
        else:
            self.behind = True


class Feeds:
    """One long poll a run, shared by all who watch that run in this process."""

    def __init__(self, temporal: Temporal) -> None:
        self._temporal = temporal
        self._feeds: dict[tuple[str, str], tuple[asyncio.Task[None], set[_Watcher]]] = {}

    def __len__(self) -> int:
        """The long polls that are open now."""
        return len(self._feeds)

    @contextmanager
    def _watch(self, workflow_id: str, run_id: str, after: int) -> Iterator[_Watcher]:
        key = (workflow_id, run_id)
        task, watchers = self._feeds.get(key, (None, set()))
        if task is None or task.done():  # done: it failed, and those who watched were told
            task = asyncio.create_task(self._poll(workflow_id, run_id, after, watchers))
            self._feeds[key] = (task, watchers)
        watcher = _Watcher()
        watchers.add(watcher)
        try:
            yield watcher
        finally:
            watchers.remove(watcher)
            if not watchers:
                self._feeds.pop(key)[0].cancel()

    async def _poll(self, workflow_id: str, run_id: str, after: int, watchers: set[_Watcher]) -> None:
        # There is no way to begin a long poll at an event: read from the start, and tell only what is new.
        token = b""
        try:
            while True:
                poll = functools.partial(page, self._temporal, workflow_id, run_id, token=token, wait=True)
                found = await patient(poll)
                fresh = [event for event in found.events if event.event_id > after]
                if fresh:
                    after = fresh[-1].event_id
                    for watcher in watchers:
                        watcher.put(fresh)
                token = found.token
                if not token:
                    return
        except Problem as problem:
            for watcher in watchers:
                watcher.put(problem)

    async def events(
        self, workflow_id: str, run_id: str, seen: int, length: int
    ) -> AsyncGenerator[list[HistoryEvent], None]:
        """The run's events after `seen`, some at a time, up to the one that closes it.

        `length` is that of its history now.
        """
        with self._watch(workflow_id, run_id, length) as watcher:
            while True:
                # What was there before the feed told us of news: read it ourselves.
                watcher.behind = False
                async for found in pages(self._temporal, workflow_id, run_id, patiently=True):
                    fresh = [event for event in found.events if event.event_id > seen]
                    for some in _parts(fresh):
                        seen = some[-1].event_id
                        yield some
                    if found.events and found.events[-1].event_type in CLOSING:
                        return
                while not (watcher.behind and watcher.pages.empty()):
                    news = await watcher.pages.get()
                    if isinstance(news, Problem):
                        raise news
                    fresh = [event for event in news if event.event_id > seen]
                    if fresh and fresh[0].event_id == seen + 1:
                        for some in _parts(fresh):
                            seen = some[-1].event_id
                            yield some
                        if fresh[-1].event_type in CLOSING:
                            return

    async def changed(self, workflow_id: str, run_id: str, length: int) -> bool:
        """Come back when the history is longer than `length`."""
        async with aclosing(self.events(workflow_id, run_id, length, length)) as events:
            await anext(events, None)
        return True


def _parts(events: list[HistoryEvent]) -> Iterator[list[HistoryEvent]]:
    return (events[start : start + EVENTS_AT_ONCE] for start in range(0, len(events), EVENTS_AT_ONCE))
