"""What a workflow did and gave back: its result, its history in pages, and its history live."""

import functools
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from msgspec import Raw
from temporalio.api.history.v1 import HistoryEvent

from temporal_api.auth import CurrentUser, User
from temporal_api.controllers.addressing import PathId, RunId, check_reserved
from temporal_api.errors import Problem, invalid, responses
from temporal_api.requests import JSONResponse
from temporal_api.temporal import STATUS, FailureInfo, Temporal, TemporalClient, is_open
from temporal_api.temporal.history import (
    CLOSING,
    Event,
    Feeds,
    close_event,
    closing_event,
    event_json,
    events_json,
    listed,
    next_run,
)
from temporal_api.waiting import EventStream, LastEventId, Prefer, Waits, applied, preferred_wait, resume, sse

RETRY_AFTER_SECONDS = "2"


class WorkflowResultResponse(msgspec.Struct):
    """How a run ended. A run that failed is a 200 that says so. `new_run_id`: the run that a pinned one went on as."""

    workflow_id: str
    run_id: str
    status: str
    result: Raw
    failure: FailureInfo | None
    new_run_id: str | None


class WorkflowPendingResponse(msgspec.Struct):
    """It has not ended yet: ask again after `Retry-After` seconds."""

    workflow_id: str
    run_id: str
    status: str


class HistoryResponse(msgspec.Struct):
    """A page of events; `next_page_token` is null on the last one."""

    items: list[Event]
    next_page_token: str | None


class WorkflowHistoryController(Controller):
    """Results and histories."""

    path = "/workflows"
    tags = ["workflows"]  # noqa: RUF012 - Litestar's way

    @get(
        "/{workflow_id:str}/result",
        scope=("workflows:read", "workflows:admin"),
        operation_id="getWorkflowResult",
        summary="A workflow's result, when it has one",
        responses={
            202: ResponseSpec(WorkflowPendingResponse, description="Not yet.", generate_examples=False),
            **responses("workflow_not_found", "too_many_waits", "shutting_down"),
        },
    )
    async def get_result(
        self,
        request: Request[User, Any, Any],
        workflow_id: PathId,
        state: State,
        user: CurrentUser,
        temporal: TemporalClient,
        run_id: RunId = "",
        prefer: Prefer = None,
    ) -> JSONResponse[WorkflowResultResponse]:
        """Continue-as-new, retries and cron are followed; a pinned run is not, but names its `new_run_id`."""
        check_reserved(user, workflow_id)
        seconds = preferred_wait(request, state.settings.max_wait_seconds)
        run = (await temporal.describe(workflow_id, run_id)).workflow_execution_info

        if is_open(run):
            end = await state.waits.within(
                request,
                seconds,
                lambda: ended(temporal, state.waits, workflow_id, run.execution.run_id, follow=not run_id),
            )
        else:
            end = await end_of(temporal, workflow_id, run.execution.run_id)
        if end is None:
            pending: Any = WorkflowPendingResponse(workflow_id, run.execution.run_id, STATUS[run.status])
            return JSONResponse(
                pending, status_code=202, headers={"Retry-After": RETRY_AFTER_SECONDS, **applied(seconds)}
            )
        return JSONResponse(end, headers=applied(seconds))

    @get(
        "/{workflow_id:str}/history",
        scope=("workflows:read", "workflows:admin"),
        operation_id="getWorkflowHistory",
        summary="A workflow's history, in pages",
        responses=responses("workflow_not_found", "invalid_page_token"),
    )
    async def get_history(
        self,
        workflow_id: PathId,
        state: State,
        user: CurrentUser,
        temporal: TemporalClient,
        run_id: RunId = "",
        order: Annotated[Literal["forward", "reverse"], QueryParameter(description="From which end.")] = "forward",
        page_size: Annotated[int, QueryParameter(ge=1, le=1000, description="Events a page, at most.")] = 100,
        page_token: Annotated[str, QueryParameter(description="`next_page_token` of the page before.")] = "",
    ) -> HistoryResponse:
        """Payloads are decoded. A page token is good for this workflow, run and order only."""
        check_reserved(user, workflow_id)
        bound = ("history", workflow_id, run_id, order)
        cursor = state.page_tokens.unseal(page_token, *bound)
        events, cursor = await listed(
            temporal, workflow_id, run_id, cursor=cursor, size=page_size, reverse=order == "reverse"
        )
        return HistoryResponse(await events_json(temporal, events), state.page_tokens.seal(cursor, *bound))

    @get(
        "/{workflow_id:str}/events",
        scope=("workflows:read", "workflows:admin"),
        operation_id="streamWorkflowEvents",
        summary="A workflow's history, live",
        media_type="text/event-stream",
        responses=responses("workflow_not_found", "too_many_waits", "shutting_down"),
    )
    async def stream_events(
        self,
        workflow_id: PathId,
        state: State,
        user: CurrentUser,
        temporal: TemporalClient,
        run_id: RunId = "",
        last_event_id: LastEventId = None,
    ) -> EventStream:
        """Server-sent events: `history`, each an `Event` as in the history, then `done` with `run_id` and `status`.

        Continue-as-new is followed, unless pinned.
        """
        check_reserved(user, workflow_id)
        run, seen = resume(last_event_id)
        if run and run_id not in ("", run):
            raise invalid("Last-Event-ID", "Expected an event of the run that run_id pins")
        described = (await temporal.describe(workflow_id, run or run_id)).workflow_execution_info
        length = described.history_length
        if seen > length:
            raise invalid("Last-Event-ID", f"Expected an event of this run, which has {length}")
        events = _stream(
            temporal, state.feeds, workflow_id, described.execution.run_id, seen, length, follow=not run_id
        )
        return EventStream(state.waits, events, user.expires_at)


async def end_of(temporal: Temporal, workflow_id: str, run_id: str) -> WorkflowResultResponse:
    """How a run that is closed has ended."""
    return await _ended_with(temporal, workflow_id, run_id, await close_event(temporal, workflow_id, run_id))


async def _ended_with(temporal: Temporal, workflow_id: str, run_id: str, event: HistoryEvent) -> WorkflowResultResponse:
    result, failure = await temporal.outcome(event)
    following = next_run(event) or None
    return WorkflowResultResponse(workflow_id, run_id, CLOSING[event.event_type], result, failure, following)


async def ended(
    temporal: Temporal, waits: Waits, workflow_id: str, run_id: str, *, follow: bool
) -> WorkflowResultResponse:
    """How the run ends, or with `follow` the last of its chain; callers at the same time share the long poll."""
    while True:
        event = await waits.shared(
            ("end", workflow_id, run_id), functools.partial(closing_event, temporal, workflow_id, run_id)
        )
        following = next_run(event)
        if not (follow and following):
            return await _ended_with(temporal, workflow_id, run_id, event)
        run_id = following


async def _stream(
    temporal: Temporal, feeds: Feeds, workflow_id: str, run_id: str, seen: int, length: int, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    while True:
        last: HistoryEvent | None = None
        async for events in feeds.events(workflow_id, run_id, seen, length):
            last = events[-1]
            told: list[bytes] = []
            try:
                for event in events:
                    data = await event_json(temporal, event)
                    told.append(sse(data, event="history", event_id=f"{run_id}:{event.event_id}"))
            except Problem:  # of one event; those before it are not lost with it
                yield b"".join(told)
                raise
            yield b"".join(told)
        if last is None:  # it was closed, and all of it seen
            last = await closing_event(temporal, workflow_id, run_id)
        following = next_run(last) if follow else ""
        if not following:
            break
        run_id, seen, length = following, 0, 0
    yield sse({"run_id": run_id, "status": CLOSING[last.event_type]}, event="done")
