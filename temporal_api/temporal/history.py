"""A run's history, read page by page.

Callers never get Temporal's own page tokens: a token of one workflow opens the history of another.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, ParamSpec, TypeVar

import msgspec
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from temporal_api.errors import TEMPORAL_AWAY
from temporal_api.memory import WAIT_SECONDS, Share
from temporal_api.temporal.workflow import PAGE_BATCHES, Page, Workflow

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")

RETRY_SECONDS = 1.0
PAUSED_SECONDS = 5.0
"""The shortest interval between looks at a paused run."""
PAGE_EVENTS = 200
PAGE_BYTES = 512 * 1024
"""The size that a page should have. Temporal counts batches instead: events that it recorded together."""
BATCH_BYTES = 2 * 1024 * 1024
"""What one batch may have, nearly always: Temporal takes payloads of 2 MB, in requests of 4 MB."""
FIRST_BATCHES = 2
"""The first page's, of a history that may be large: an event may have 2 MB."""
FIRST_BYTES = FIRST_BATCHES * BATCH_BYTES
HELD = 6
"""How many times its own size a page takes while it is read and sent: 3 with large payloads, 12 with tiny ones."""
READING = 0.5
"""A page that may be large waits while more than this part of the memory is held: other requests can always go on."""
ROOM_SECONDS = 15.0
"""How long the next page of an answer waits for memory. A stream waits as long as it takes."""


async def read_pages(
    run: Workflow,
    *,
    token: bytes = b"",
    reverse: bool = False,
    while_away: bool = False,
    live: bool = False,
    history_bytes: int = 0,
) -> AsyncGenerator[Page, None]:
    """Read page after page to the end. With `while_away`, wait while Temporal is away; with `live`, for new events.

    Before a page that may be large, wait for memory: for the first by `history_bytes`, for others by the last one's
    size. Raises Overloaded, but not with `while_away`.
    """
    batches = PAGE_BATCHES if 0 < history_bytes <= PAGE_BYTES else FIRST_BATCHES
    unread, size = history_bytes, min(history_bytes, FIRST_BYTES)
    seconds = None if while_away else WAIT_SECONDS
    with Share(run.temporal.memory) as share:
        while True:
            if size > PAGE_BYTES:
                await share.grow(HELD * size, READING, seconds)
            which: dict[str, Any] = {"token": token, "batches": batches, "reverse": reverse, "wait": live}
            found = await (retry_while_away(run.read_page, **which) if while_away else run.read_page(**which))
            share.size = HELD * found.size
            yield found
            if not (token := found.token):
                return
            batches, size, seconds = fitting(batches, found), found.size, seconds and ROOM_SECONDS
            if live:  # after the known events, the next page may come in hours
                unread -= size
                size, share.size = min(size, unread), 0
            del found


def fitting(batches: int, last: Page) -> int:
    """How many batches the next page should have."""
    fit = batches * min(PAGE_EVENTS / max(1, len(last.events)), PAGE_BYTES / max(1, last.size))
    return max(1, min(int(fit), 8 * batches, PAGE_BATCHES))


Listing = AsyncGenerator[tuple[list[HistoryEvent], bytes], None]
"""Batches of events, each with the cursor of the next events (empty at the end)."""


class _Cursor(msgspec.Struct, array_like=True):
    """A position in a listing: a number of events after the start of a Temporal page."""

    run_id: str
    token: bytes
    skip: int
    history_bytes: int = 0


async def list_events(workflow: Workflow, *, cursor: bytes, size: int, reverse: bool) -> Listing:
    """At most `size` events from the cursor on, in batches. The next page reads the last batch again."""
    if cursor:
        at = msgspec.msgpack.decode(cursor, type=_Cursor)
    else:  # all pages are of one run, even if another run begins meanwhile
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
            # The page that was read before may have been longer than this one: pages are of batches, as many as fit.
            at.token, at.skip = found.token, max(0, at.skip - len(found.events))
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


async def until_unpaused(run: Workflow, length: int | None = None) -> None:
    """Wait while the run is paused (Temporal 1.31 then ends long polls at once) and not longer than `length`."""
    pause = RETRY_SECONDS
    while True:
        await asyncio.sleep(pause)
        state = await retry_while_away(run.describe)
        if state.status != "PAUSED" or (length is not None and state.history_length > length):
            return
        pause = min(1.5 * pause, PAUSED_SECONDS)


async def retry_while_away(ask: Callable[Asked, Awaitable[Answer]], *args: Asked.args, **more: Asked.kwargs) -> Answer:
    """Repeat the call until Temporal answers: a caller who waits does not see that Temporal was away."""
    while True:
        try:
            return await ask(*args, **more)
        except TEMPORAL_AWAY:
            await asyncio.sleep(RETRY_SECONDS)
