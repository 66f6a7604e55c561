"""A workflow's history: in pages, and live."""

from collections.abc import AsyncGenerator
from typing import Annotated, Literal

import msgspec
from litestar import get
from litestar.params import QueryParameter

from temporal_api.auth import APIRequest
from temporal_api.controllers.workflows.addressing import ONE, READ, PathWorkflow
from temporal_api.errors import InvalidPageToken, Problem, ShuttingDown, TooManyWaits, WorkflowNotFound, invalid
from temporal_api.problems import responses
from temporal_api.sealing import LONGEST_TOKEN
from temporal_api.services import CurrentServices, Services
from temporal_api.temporal.events import Event, event_json, events_json
from temporal_api.temporal.history import list_events
from temporal_api.temporal.workflow import Workflow
from temporal_api.waiting import EventStream, LastEventId, resume, sse


class HistoryResponse(msgspec.Struct):
    """A page of events; `next_page_token` is null on the last one."""

    items: list[Event]
    next_page_token: str | None


@get(
    f"{ONE}/history",
    scope=READ,
    operation_id="getWorkflowHistory",
    summary="A workflow's history, in pages",
    responses=responses(WorkflowNotFound, InvalidPageToken),
)
async def get_history(
    workflow: PathWorkflow,
    services: CurrentServices,
    order: Annotated[Literal["forward", "reverse"], QueryParameter(description="From which end.")] = "forward",
    page_size: Annotated[int, QueryParameter(ge=1, le=1000, description="Events a page, at most.")] = 100,
    page_token: Annotated[
        str, QueryParameter(max_length=LONGEST_TOKEN, description="`next_page_token` of the page before.")
    ] = "",
) -> HistoryResponse:
    """Payloads are decoded. A page token is good for this workflow, run and order only."""
    bound = ("history", workflow.id, workflow.run_id, order)
    cursor = services.page_tokens.unseal(page_token, *bound)
    events, cursor = await list_events(workflow, cursor=cursor, size=page_size, reverse=order == "reverse")
    items = await events_json(services.temporal, events)
    return HistoryResponse(items, services.page_tokens.seal(cursor, *bound))


@get(
    f"{ONE}/events",
    scope=READ,
    operation_id="streamWorkflowEvents",
    summary="A workflow's history, live",
    media_type="text/event-stream",
    responses=responses(WorkflowNotFound, TooManyWaits, ShuttingDown),
)
async def stream_events(
    request: APIRequest,
    workflow: PathWorkflow,
    services: CurrentServices,
    last_event_id: LastEventId = None,
) -> EventStream:
    """Server-sent events: `history`, each an `Event` as in the history, then `done` with `run_id` and `status`.

    Continue-as-new is followed, unless `run_id` pins a run.
    """
    run_id, seen = resume(last_event_id)
    if run_id and workflow.run_id not in ("", run_id):
        raise invalid("Last-Event-ID", "Expected an event of the run that run_id pins")
    run = await workflow.run(run_id or workflow.run_id).describe()
    if seen > run.history_length:
        raise invalid("Last-Event-ID", f"Expected an event of this run, which has {run.history_length}")
    watched, follow = workflow.run(run.run_id), not workflow.run_id
    events = _stream(services, watched, seen, run.history_length, follow=follow)
    return EventStream(services.waits, events, request.user.expires_at)


async def _stream(
    services: Services, run: Workflow, seen: int, length: int, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    while True:
        async for events in services.feeds.events(run, seen, length):
            told: list[bytes] = []
            try:
                for event in events:
                    data = await event_json(services.temporal, event)
                    told.append(sse(data, event="history", event_id=f"{run.run_id}:{event.event_id}"))
            except Problem:  # of one event; those before it are not lost with it
                yield b"".join(told)
                raise
            yield b"".join(told)
        ending = await services.endings.wait(run, follow=False)
        if not (follow and ending.new_run_id):
            break
        run, seen, length = run.run(ending.new_run_id), 0, 0
    yield sse({"run_id": run.run_id, "status": ending.status}, event="done")
