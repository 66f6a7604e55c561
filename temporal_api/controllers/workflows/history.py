"""What a workflow did and gave back: its result, its history in pages, and its history live."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from temporal_api.auth import CurrentUser, User
from temporal_api.controllers.workflows.addressing import WORKFLOW, NamedWorkflow
from temporal_api.errors import Problem, invalid, responses
from temporal_api.requests import JSONResponse
from temporal_api.temporal import STATUS, Temporal, is_open
from temporal_api.temporal.endings import End
from temporal_api.temporal.history import (
    Event,
    event_json,
    events_json,
    listed,
)
from temporal_api.temporal.workflow import Workflow
from temporal_api.waiting import EventStream, LastEventId, Prefer, applied, preferred_wait, resume, sse

RETRY_AFTER_SECONDS = "2"


class WorkflowResultResponse(End):
    """How a run ended. A run that failed is a 200 that says so. `new_run_id`: the run that a pinned one went on as."""


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
    dependencies = {"workflow": WORKFLOW}  # noqa: RUF012 - likewise

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
        workflow: NamedWorkflow,
        state: State,
        prefer: Prefer = None,
    ) -> JSONResponse[WorkflowResultResponse]:
        """Continue-as-new, retries and cron are followed; a pinned run is not, but names its `new_run_id`."""
        seconds = preferred_wait(request, state.settings.max_wait_seconds)
        run = (await workflow.describe()).workflow_execution_info

        if is_open(run):
            end = await state.waits.within(
                request,
                seconds,
                lambda: state.endings.wait(workflow.id, run.execution.run_id, follow=not workflow.run_id),
            )
        else:
            end = await state.endings.end(workflow.id, run.execution.run_id)
        if end is None:
            pending: Any = WorkflowPendingResponse(workflow.id, run.execution.run_id, STATUS[run.status])
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
        workflow: NamedWorkflow,
        state: State,
        order: Annotated[Literal["forward", "reverse"], QueryParameter(description="From which end.")] = "forward",
        page_size: Annotated[int, QueryParameter(ge=1, le=1000, description="Events a page, at most.")] = 100,
        page_token: Annotated[str, QueryParameter(description="`next_page_token` of the page before.")] = "",
    ) -> HistoryResponse:
        """Payloads are decoded. A page token is good for this workflow, run and order only."""
        temporal, bound = workflow.temporal, ("history", workflow.id, workflow.run_id, order)
        cursor = state.page_tokens.unseal(page_token, *bound)
        events, cursor = await listed(
            temporal, workflow.id, workflow.run_id, cursor=cursor, size=page_size, reverse=order == "reverse"
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
        workflow: NamedWorkflow,
        state: State,
        user: CurrentUser,
        last_event_id: LastEventId = None,
    ) -> EventStream:
        """Server-sent events: `history`, each an `Event` as in the history, then `done` with `run_id` and `status`.

        Continue-as-new is followed, unless pinned.
        """
        run, seen = resume(last_event_id)
        follow = not workflow.run_id
        if run and workflow.run_id not in ("", run):
            raise invalid("Last-Event-ID", "Expected an event of the run that run_id pins")
        workflow = Workflow(workflow.temporal, workflow.id, run) if run else workflow
        described = (await workflow.describe()).workflow_execution_info
        length = described.history_length
        if seen > length:
            raise invalid("Last-Event-ID", f"Expected an event of this run, which has {length}")
        events = _stream(workflow.temporal, state, workflow.id, described.execution.run_id, seen, length, follow=follow)
        return EventStream(state.waits, events, user.expires_at)


async def _stream(
    temporal: Temporal, state: State, workflow_id: str, run_id: str, seen: int, length: int, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    while True:
        async for events in state.feeds.events(workflow_id, run_id, seen, length):
            told: list[bytes] = []
            try:
                for event in events:
                    data = await event_json(temporal, event)
                    told.append(sse(data, event="history", event_id=f"{run_id}:{event.event_id}"))
            except Problem:  # of one event; those before it are not lost with it
                yield b"".join(told)
                raise
            yield b"".join(told)
        end = await state.endings.end(workflow_id, run_id)
        if not (follow and end.new_run_id):
            break
        run_id, seen, length = end.new_run_id, 0, 0
    yield sse({"run_id": run_id, "status": end.status}, event="done")
