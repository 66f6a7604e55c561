"""A workflow's state now, and its result once it has one."""

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
from temporal_api.problems import responses
from temporal_api.requests import JSONResponse
from temporal_api.services import NOT_MODIFIED, STATUS_HEADERS, CurrentServices
from temporal_api.temporal.endings import Ending
from temporal_api.temporal.failures import FailureInfo
from temporal_api.temporal.run import PendingActivity, PendingChild, PendingWorkflowTask, Run
from temporal_api.waiting import IfNoneMatch, Prefer, preference_applied, preferred_wait


class RunFields(msgspec.Struct, kw_only=True):
    """What a list and a single workflow's status both tell of a run."""

    workflow_id: WorkflowId
    run_id: RunId
    workflow_type: Annotated[str, Meta(description="Its name in its worker.", examples=["send_invoice"])]
    task_queue: Annotated[str, Meta(description="The queue that its worker polls.", examples=["invoices"])]
    status: StatusName
    parent_workflow_id: Annotated[str | None, Meta(description="The workflow whose child it is.", examples=[None])]
    start_time: Annotated[Time, Meta(description="When it was started.", examples=["2026-01-31T12:00:00.123456Z"])]
    close_time: Annotated[Time | None, Meta(description="When it closed; null while it runs.", examples=[None])]
    execution_time_seconds: Annotated[
        float | None, Meta(description="How long it took; null while it runs.", examples=[None])
    ]

    @classmethod
    def of(cls, run: Run, **more: Any) -> Self:
        """The answer about a run: these fields, which it has under the same names, and `more`."""
        return cls(**{name: getattr(run, name) for name in RunFields.__struct_fields__}, **more)


class WorkflowStatusResponse(RunFields, kw_only=True):
    """A run as Temporal has it now."""

    result: Result
    failure: Annotated[FailureInfo | None, Meta(description="Why it failed.", examples=[None])]
    history_length: Annotated[int, Meta(description="Events in its history.", examples=[5])]
    memo: Annotated[dict[str, Raw], Meta(description="Its notes: any JSON.", examples=[{"note": "by hand"}])]
    search_attributes: Annotated[
        dict[str, Raw], Meta(description="What lists can find it by.", examples=[{"CustomerId": "cust_123"}])
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
    """The workflow's status; once it is closed, its result or failure too. A failed workflow is a 200 that says so.

    With `If-None-Match` the answer is 304 while nothing has changed. With `Prefer: wait` too, it comes as soon as
    something changes.
    """
    temporal = services.temporal

    async def read() -> tuple[None, Run]:
        return None, await workflow.describe()

    async def tell(_: None, run: Run, ending: Ending | None) -> WorkflowStatusResponse:
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

    return await services.answer_status(request, if_none_match, read, tell)


class WorkflowResultResponse(Ending):
    """How a run ended. A run that failed is a 200 that says so."""


class WorkflowPendingResponse(msgspec.Struct):
    """The workflow has not ended yet: ask again after `Retry-After` seconds."""

    workflow_id: WorkflowId
    run_id: RunId
    status: StatusName


@get(
    "/result",
    scope=READ,
    summary="A workflow's result, when it has one",
    headers=ASK_AGAIN,
    responses={
        202: ResponseSpec(WorkflowPendingResponse, description="Not yet.", generate_examples=False),
        **responses(WorkflowNotFound, ShuttingDown),
    },
)
async def get_workflow_result(
    request: APIRequest, workflow: PathWorkflow, services: CurrentServices, prefer: Prefer = None
) -> JSONResponse[WorkflowResultResponse]:
    """The result of the last run: continue-as-new, retries and cron are followed.

    With `run_id` it is the result of that run, and `new_run_id` names the run that goes on after it.
    """
    seconds = preferred_wait(request, services.settings.max_wait_seconds)
    run = await workflow.describe()
    pinned, follow = workflow.run(run.run_id), not workflow.run_id
    if run.is_open:
        ending = await services.waits.within(request, seconds, lambda: services.endings.wait(pinned, follow=follow))
    else:
        ending = await services.endings.read(pinned)
    headers = preference_applied(request, seconds)
    if ending is None:
        pending = WorkflowPendingResponse(workflow.id, run.run_id, run.status)
        return ask_again(pending, headers, workflow.run_id, workflow.id, "result")
    return JSONResponse(WorkflowResultResponse(**msgspec.structs.asdict(ending)), headers=headers)
