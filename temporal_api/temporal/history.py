"""A run's history, read page by page.

Temporal's own page tokens stay inside: one of a workflow opens another's history.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import msgspec
from temporalio.api.enums.v1 import EventType, HistoryEventFilterType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryReverseRequest,
)

from temporal_api.errors import TEMPORAL_AWAY
from temporal_api.temporal.workflow import Workflow

Answer = TypeVar("Answer")

LONG_POLL_SECONDS = 30.0
"""More than the 20 s after which Temporal answers an empty page."""
RETRY_SECONDS = 1.0
PAGE_EVENTS = 200
"""About as many as a page holds that is read here: Temporal counts batches, of the events that it recorded at once."""
PAGE_BATCHES = 25
"""A page's most: some ordinary batches. How long the next ones are, nobody knows."""


class Page(msgspec.Struct):
    """Events as Temporal gave them, and its token for what follows; empty at the end."""

    events: list[HistoryEvent]
    token: bytes


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
        return Page(list(backward.history.events), backward.next_page_token)
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
    return Page(list(forward.history.events), forward.next_page_token)


async def read_pages(
    run: Workflow, *, token: bytes = b"", reverse: bool = False, while_away: bool = False
) -> AsyncGenerator[Page, None]:
    """Page after page to the end, each small enough to be held; `while_away`: Temporal's absences are waited out."""
    batches = PAGE_BATCHES
    while True:
        read = functools.partial(read_page, run, token=token, batches=batches, reverse=reverse)
        found = await (retry_while_away(read) if while_away else read())
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
    """Ask again until Temporal answers: whoever waits is not told of its absences."""
    while True:
        try:
            return await ask()
        except TEMPORAL_AWAY:
            await asyncio.sleep(RETRY_SECONDS)
