"""A run's history, read page by page.

Temporal's own page tokens stay inside: one of a workflow opens another's history.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import msgspec
from temporalio.api.enums.v1 import EventType, HistoryEventFilterType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryReverseRequest,
)

from temporal_api.errors import TEMPORAL_AWAY
from temporal_api.memory import WAIT_SECONDS
from temporal_api.temporal.workflow import Workflow

Answer = TypeVar("Answer")

LONG_POLL_SECONDS = 30.0
"""More than the 20 s after which Temporal answers an empty page."""
RETRY_SECONDS = 1.0
PAGE_EVENTS = 200
"""About as many as a page holds that is read here: Temporal counts batches, of the events that it recorded at once."""
PAGE_BATCHES = 25
"""A page's most: some ordinary batches. How long the next ones are, nobody knows."""
FIRST_BATCHES = 2
"""The first page's, of a history whose size is not known."""
PAGE_BYTES = 512 * 1024
"""Likewise: events may be as large as 2 MB."""
HELD = 3
"""A page's bytes come to so many times their number while it is read and told."""
ROOM_SECONDS = 15.0
"""How long a history that is being told waits for room for its next page."""


class Page(msgspec.Struct):
    """Events as Temporal gave them, its token for what follows (empty at the end), and how many bytes they are."""

    events: list[HistoryEvent]
    token: bytes
    size: int


async def read_page(
    run: Workflow,
    *,
    token: bytes = b"",
    batches: int = PAGE_BATCHES,
    reverse: bool = False,
    wait: bool = False,
    closing_only: bool = False,
) -> Page:
    """One page of a run's history. With `wait`, the last page comes when something happens (Temporal's long poll)."""
    temporal = run.temporal
    if reverse:
        backward = await temporal.call(
            temporal.service.get_workflow_execution_history_reverse,
            GetWorkflowExecutionHistoryReverseRequest(
                namespace=temporal.namespace, execution=run.execution, maximum_page_size=batches, next_page_token=token
            ),
            run.subject,
        )
        return Page(list(backward.history.events), backward.next_page_token, backward.history.ByteSize())
    kind = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT
    if closing_only:
        kind = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT
    forward = await temporal.call(
        temporal.service.get_workflow_execution_history,
        GetWorkflowExecutionHistoryRequest(
            namespace=temporal.namespace,
            execution=run.execution,
            maximum_page_size=batches,
            next_page_token=token,
            wait_new_event=wait,
            history_event_filter_type=kind,
        ),
        run.subject,
        seconds=LONG_POLL_SECONDS if wait else None,
    )
    return Page(list(forward.history.events), forward.next_page_token, forward.history.ByteSize())


async def read_pages(
    run: Workflow, *, token: bytes = b"", reverse: bool = False, while_away: bool = False, history_bytes: int = 0
) -> AsyncGenerator[Page, None]:
    """Page after page to the end, each small enough to be held; `while_away`: Temporal's absences are waited out.

    A page is read when there is room for one as large as the last, or for all of `history_bytes`. Raises Overloaded.
    """
    batches = PAGE_BATCHES if 0 < history_bytes <= PAGE_BYTES else FIRST_BATCHES
    size, seconds = history_bytes, ROOM_SECONDS if while_away else WAIT_SECONDS
    with run.temporal.memory.share() as share:
        while True:
            if size > PAGE_BYTES:
                await share.grow(HELD * size, seconds=seconds)
            read = functools.partial(read_page, run, token=token, batches=batches, reverse=reverse)
            found = await (retry_while_away(read) if while_away else read())
            share.size = HELD * found.size
            yield found
            if not (token := found.token):
                return
            batches, size, seconds = fitting(batches, found), found.size, ROOM_SECONDS


def fitting(batches: int, last: Page) -> int:
    """How many batches to ask for after a page of so many."""
    fit = batches * min(PAGE_EVENTS / max(1, len(last.events)), PAGE_BYTES / max(1, last.size))
    return max(1, min(int(fit), 8 * batches, PAGE_BATCHES))


Listing = AsyncGenerator[tuple[list[HistoryEvent], bytes], None]
"""Events, each time with the cursor of what follows them; empty at the end."""


class _Cursor(msgspec.Struct, array_like=True):
    """Where a listing goes on: so many events into the page of Temporal's token."""

    run_id: str
    token: bytes
    skip: int
    history_bytes: int = 0


async def list_events(workflow: Workflow, *, cursor: bytes, size: int, reverse: bool) -> Listing:
    """At most `size` events from the cursor on, as they are read.

    What Temporal gives beyond `size` is left to the next page, which reads it again.
    """
    if cursor:
        at = msgspec.msgpack.decode(cursor, type=_Cursor)
    else:  # all pages are of one run, also when another one begins meanwhile
        run = await workflow.describe()
        at = _Cursor(run.run_id, b"", 0, run.history_bytes)
    pages = read_pages(workflow.run(at.run_id), token=at.token, reverse=reverse, history_bytes=at.history_bytes)
    async with aclosing(pages):
        async for found in pages:
            events = found.events[at.skip : at.skip + size]
            size -= len(events)
            if at.skip + len(events) < len(found.events):
                at.skip += len(events)
                yield events, msgspec.msgpack.encode(at)
                return
            at.token, at.skip = found.token, 0
            yield events, msgspec.msgpack.encode(at) if at.token else b""
            if not size:
                return


async def workflow_task_end(run: Workflow, *, last: bool) -> int | None:
    """The event that ends the run's first workflow task, or its last; None when there is none."""
    async with aclosing(read_pages(run, reverse=last)) as pages:
        async for found in pages:
            for event in found.events:
                if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                    return event.event_id
    return None


async def retry_while_away(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask again until Temporal answers: whoever waits is not told of its absences."""
    while True:
        try:
            return await ask()
        except TEMPORAL_AWAY:
            await asyncio.sleep(RETRY_SECONDS)
