"""A workflow's current state, and its result."""

from typing import Annotated, Any, Self

import msgspec
from litestar import get
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Meta, Raw

from temporal_api.auth import APIRequest
from temporal_api.controllers.workflows.addressing import (
    ASK_AGAIN,
    READ,
    PathWorkflow,
    Result,
    RunId,
    StatusName,
    Time,
    WorkflowId,
    ask_again,
)
from temporal_api.errors import ShuttingDown, WorkflowNotFound
from temporal_api.preconditions import NOT_MODIFIED, STATUS_HEADERS, IfNoneMatch, answer_status
from temporal_api.problems import responses
from temporal_api.requests import JSONResponse
from temporal_api.services import CurrentServices
from temporal_api.temporal import endings
from temporal_api.temporal.endings import Ending
from temporal_api.temporal.failures import FailureInfo
from temporal_api.temporal.run import PendingActivity, PendingChild, PendingWorkflowTask, Run
from temporal_api.waiting import Prefer, preference_applied, preferred_wait


class RunFields(msgspec.Struct, kw_only=True):
    """The fields of a run that a list and a single workflow's status share."""

    workflow_id: WorkflowId
    run_id: RunId
    workflow_type: Annotated[str, Meta(description="The workflow type.", examples=["send_invoice"])]
    task_queue: Annotated[str, Meta(description="The task queue that its worker polls.", examples=["invoices"])]
    status: StatusName
    parent_workflow_id: Annotated[str | None, Meta(description="The parent workflow's id.", examples=[None])]
    start_time: Annotated[Time, Meta(description="When it was started.", examples=["2026-01-31T12:00:00.123456Z"])]
    close_time: Annotated[Time | None, Meta(description="When it closed. Null while it runs.", examples=[None])]
    execution_time_seconds: Annotated[
        float | None, Meta(description="How long it took. Null while it runs.", examples=[None])
    ]

    @classmethod
    def of(cls, run: Run, **more: Any) -> Self:
        """Make the answer: these fields, from the run's attributes of the same names, and `more`."""
        return cls(**{name: getattr(run, name) for name in RunFields.__struct_fields__}, **more)


class WorkflowStatusResponse(RunFields, kw_only=True):
    """A run's current state."""

    result: Result
    failure: Annotated[FailureInfo | None, Meta(description="Why it failed.", examples=[None])]
    history_length: Annotated[int, Meta(description="The number of events in its history.", examples=[5])]
    memo: Annotated[dict[str, Raw], Meta(description="Its memo: names and any JSON.", examples=[{"note": "by hand"}])]
    search_attributes: Annotated[
        dict[str, Raw], Meta(description="Its search attributes.", examples=[{"CustomerId": "cust_123"}])
    ]
    pending_activities: Annotated[list[PendingActivity], Meta(description="The activities that it waits for.")]
    pending_children: Annotated[list[PendingChild], Meta(description="Its child workflows that are open.")]
    pending_workflow_task: Annotated[
        PendingWorkflowTask | None, Meta(description="Null unless its code fails again and again.", examples=[None])
    ]


@get(
    scope=READ,
    summary="A workflow as it is now",
    headers=STATUS_HEADERS,
    responses={**NOT_MODIFIED, **responses(WorkflowNotFound)},
)
async def get_workflow(
    request: APIRequest,
    workflow: PathWorkflow,
    services: CurrentServices,
    if_none_match: IfNoneMatch = None,
    prefer: Prefer = None,
) -> JSONResponse[WorkflowStatusResponse]:
    """The workflow's status, and once it is closed its result or failure. A failed workflow is a 200 too.

    With `If-None-Match`, the answer is 304 while nothing has changed. With `Prefer: wait` too, it comes as soon as
    something changes.
    """
    temporal = services.temporal

    async def read() -> tuple[None, Run]:
        return None, await workflow.describe()

    async def body(_: None, run: Run, ending: Ending | None) -> WorkflowStatusResponse:
        return WorkflowStatusResponse.of(
            run,
            result=ending.result if ending else Raw(b"null"),
            failure=ending.failure if ending else None,
            history_length=run.history_length,
            memo=await temporal.values(run.memo.fields),
            search_attributes=await temporal.values(run.search_attributes),
            pending_activities=await run.pending_activities(temporal),
            pending_children=run.pending_children(),
            pending_workflow_task=await workflow.pending_workflow_task(run),
        )

    return await answer_status(services, request, if_none_match, read, body)


class WorkflowResultResponse(Ending):
    """How a run ended. A failed run is a 200 too: `status` says so."""


class WorkflowPendingResponse(msgspec.Struct):
    """The workflow has not ended yet. Ask again after `Retry-After` seconds."""

    workflow_id: WorkflowId
    run_id: RunId
    status: StatusName


@get(
    "/result",
    scope=READ,
    summary="A workflow's result",
    headers=ASK_AGAIN,
    responses={
        202: ResponseSpec(
            WorkflowPendingResponse, description="The workflow has not ended yet.", generate_examples=False
        ),
        **responses(WorkflowNotFound, ShuttingDown),
    },
)
async def get_workflow_result(
    request: APIRequest, workflow: PathWorkflow, services: CurrentServices, prefer: Prefer = None
) -> JSONResponse[WorkflowResultResponse]:
    """The result of the last run: it follows continue-as-new, retries and cron.

    With `run_id`, the result of that run; `new_run_id` names the run that followed it.
    """
    seconds = preferred_wait(request, services.settings.max_wait_seconds)
    run = await workflow.describe()
    pinned, follow = workflow.run(run.run_id), not workflow.run_id
    if run.is_open:
        ending = await services.waits.within(request, seconds, lambda: endings.wait(pinned, follow=follow))
    else:
        ending = await endings.read(pinned)
    headers = preference_applied(request, seconds)
    if ending is None:
        pending = WorkflowPendingResponse(workflow.id, run.run_id, run.status)
        return ask_again(pending, headers, workflow.run_id, workflow.id, "result")
    return JSONResponse(WorkflowResultResponse(**msgspec.structs.asdict(ending)), headers=headers)
