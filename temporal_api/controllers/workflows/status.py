"""A workflow's state now, and its result once it has one."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Controller, get
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Meta, Raw

from temporal_api.auth import APIRequest
from temporal_api.controllers.workflows.addressing import WORKFLOW, PathWorkflow
from temporal_api.errors import ShuttingDown, WorkflowNotFound
from temporal_api.problems import responses
from temporal_api.requests import NOT_MODIFIED, JSONResponse, unchanged
from temporal_api.services import CurrentServices
from temporal_api.temporal.failures import FailureInfo
from temporal_api.temporal.run import PendingActivity
from temporal_api.waiting import (
    RETRY_AFTER_SECONDS,
    IfNoneMatch,
    Prefer,
    etag,
    is_known,
    preference_applied,
    preferred_wait,
    wait_for_change,
)

_Time = Annotated[datetime, Meta(tz=True)]


class WorkflowStatusResponse(msgspec.Struct):
    """A run as Temporal has it now. `status` in Temporal's words; `execution_time_seconds` is null while it runs."""

    workflow_id: Annotated[str, Meta(examples=["invoice-2041"])]
    run_id: Annotated[str, Meta(examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
    workflow_type: Annotated[str, Meta(examples=["send_invoice"])]
    task_queue: Annotated[str, Meta(examples=["invoices"])]
    status: Annotated[str, Meta(description="Temporal's name of it, such as RUNNING.", examples=["RUNNING"])]
    result: Annotated[Raw, Meta(description="What it returned: any JSON; null while it runs.", examples=[None])]
    failure: Annotated[FailureInfo | None, Meta(examples=[None])]
    history_length: Annotated[int, Meta(examples=[5])]
    start_time: Annotated[_Time, Meta(examples=["2026-01-31T12:00:00.123456Z"])]
    close_time: Annotated[_Time | None, Meta(examples=[None])]
    execution_time_seconds: Annotated[float | None, Meta(examples=[None])]
    parent_workflow_id: Annotated[str | None, Meta(description="The workflow whose child it is.", examples=[None])]
    memo: Annotated[dict[str, Raw], Meta(examples=[{"note": "by hand"}])]
    search_attributes: Annotated[dict[str, Raw], Meta(examples=[{"CustomerId": "cust_123"}])]
    pending_activities: list[PendingActivity]


class WorkflowResultResponse(msgspec.Struct):
    """How a run ended. A run that failed is a 200 that says so. `new_run_id`: the run that a pinned one went on as."""

    workflow_id: str
    run_id: str
    status: str
    result: Raw
    failure: FailureInfo | None
    new_run_id: str | None


class WorkflowPendingResponse(msgspec.Struct):
    """The workflow has not ended yet: ask again after `Retry-After` seconds."""

    workflow_id: str
    run_id: str
    status: str


class WorkflowStatusController(Controller):
    """Watch a workflow."""

    path = "/workflows"
    tags = ["workflows"]  # noqa: RUF012 - Litestar's way
    dependencies = {"workflow": WORKFLOW}  # noqa: RUF012 - likewise

    @get(
        "/{workflow_id:str}",
        scope=("workflows:read", "workflows:admin"),
        operation_id="getWorkflow",
        summary="A workflow as it is now",
        responses={304: NOT_MODIFIED, **responses(WorkflowNotFound)},
    )
    async def get_workflow(
        self,
        request: APIRequest,
        workflow: PathWorkflow,
        services: CurrentServices,
        if_none_match: IfNoneMatch = None,
        prefer: Prefer = None,
    ) -> JSONResponse[WorkflowStatusResponse]:
        """The status; once the workflow is closed, its result or failure too. A run that failed is a 200 that says so.

        With `If-None-Match` the answer is 304 while nothing has changed. With `Prefer: wait` too, it comes as soon as
        something changes.
        """
        seconds = preferred_wait(request, services.settings.max_wait_seconds) if if_none_match else None
        run = await workflow.describe()
        if await wait_for_change(request, services.waits, services.feeds, workflow, run, seconds):
            run = await workflow.describe()
        headers = {"ETag": etag(run), **preference_applied(seconds)}
        if if_none_match and is_known(request, run):
            return unchanged(headers)
        temporal = services.temporal
        ending = None if run.is_open else await services.endings.read(workflow.run(run.run_id))
        status = WorkflowStatusResponse(
            workflow_id=workflow.id,
            run_id=run.run_id,
            workflow_type=run.workflow_type,
            task_queue=run.task_queue,
            status=run.status,
            result=ending.result if ending else Raw(b"null"),
            failure=ending.failure if ending else None,
            history_length=run.history_length,
            start_time=run.start_time,
            close_time=run.close_time,
            execution_time_seconds=run.execution_time_seconds,
            parent_workflow_id=run.parent_workflow_id,
            memo=await temporal.values(run.memo.fields),
            search_attributes=await temporal.values(run.search_attributes),
            pending_activities=await run.pending_activities(temporal),
        )
        return JSONResponse(status, headers=headers)

    @get(
        "/{workflow_id:str}/result",
        scope=("workflows:read", "workflows:admin"),
        operation_id="getWorkflowResult",
        summary="A workflow's result, when it has one",
        responses={
            202: ResponseSpec(WorkflowPendingResponse, description="Not yet.", generate_examples=False),
            **responses(WorkflowNotFound, ShuttingDown),
        },
    )
    async def get_result(
        self, request: APIRequest, workflow: PathWorkflow, services: CurrentServices, prefer: Prefer = None
    ) -> JSONResponse[WorkflowResultResponse]:
        """Continue-as-new, retries and cron are followed. A pinned run is not; it names its `new_run_id`."""
        seconds = preferred_wait(request, services.settings.max_wait_seconds)
        run = await workflow.describe()
        pinned = workflow.run(run.run_id)
        if run.is_open:
            ending = await services.waits.within(
                request, seconds, lambda: services.endings.wait(pinned, follow=not workflow.run_id)
            )
        else:
            ending = await services.endings.read(pinned)
        headers = preference_applied(seconds)
        if ending is None:
            pending: Any = WorkflowPendingResponse(workflow.id, run.run_id, run.status)
            return JSONResponse(pending, status_code=202, headers={"Retry-After": RETRY_AFTER_SECONDS, **headers})
        return JSONResponse(WorkflowResultResponse(**msgspec.structs.asdict(ending)), headers=headers)
