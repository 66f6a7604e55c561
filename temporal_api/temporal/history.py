"""A run's history, read page by page.

Callers never get Temporal's own page tokens: one workflow's token opens the history of another.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import msgspec
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from temporal_api.errors import TEMPORAL_AWAY
from temporal_api.temporal.workflow import PAGE_BATCHES, Page, Workflow

Answer = TypeVar("Answer")

RETRY_SECONDS = 1.0
PAGE_EVENTS = 200
"""What a page should hold. Temporal counts batches instead: the events that it recorded at once."""


async def read_pages(
    run: Workflow, *, token: bytes = b"", reverse: bool = False, while_away: bool = False
) -> AsyncGenerator[Page, None]:
    """Every page to the end, each small enough to hold. With `while_away`, wait while Temporal cannot be reached."""
    batches = PAGE_BATCHES
    while True:
        read = functools.partial(run.read_page, token=token, batches=batches, reverse=reverse)
        found = await (retry_while_away(read) if while_away else read())
        yield found
        if not (token := found.token):
            return
        fitting = batches * PAGE_EVENTS // max(1, len(found.events))
        batches = max(1, min(fitting, 2 * batches, PAGE_BATCHES))


class _Cursor(msgspec.Struct, array_like=True):
    """Where the next page begins: `skip` events into the page of Temporal's token."""

    run_id: str
    token: bytes
    skip: int


async def list_events(
    workflow: Workflow, *, cursor: bytes, size: int, reverse: bool
) -> tuple[list[HistoryEvent], bytes]:
    """At most `size` events from the cursor on, and the cursor of what follows; empty at the end.

    What Temporal gives beyond `size` is left to the next page, which reads it again.
    """
    if cursor:
        at = msgspec.msgpack.decode(cursor, type=_Cursor)
    else:  # all pages are of one run, also when another one begins meanwhile
        at = _Cursor((await workflow.current_run()).run_id, b"", 0)
    events: list[HistoryEvent] = []
    async for found in read_pages(workflow.run(at.run_id), token=at.token, reverse=reverse):
        fresh, room = found.events[at.skip :], size - len(events)
        events += fresh[:room]
        if len(fresh) > room:
            at.skip += room
            return events, msgspec.msgpack.encode(at)
        at = _Cursor(at.run_id, found.token, 0)
        if len(events) == size:
            break
    return events, msgspec.msgpack.encode(at) if at.token else b""


async def workflow_task_end(run: Workflow, *, last: bool) -> int | None:
    """The event that ends the run's first workflow task, or its last; None when there is none."""
    async for found in read_pages(run, reverse=last):
        for event in found.events:
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                return event.event_id
    return None


async def retry_while_away(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask again until Temporal answers: a caller who waits is not told that it was away."""
    while True:
        try:
            return await ask()
        except TEMPORAL_AWAY:
            await asyncio.sleep(RETRY_SECONDS)
