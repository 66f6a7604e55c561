"""Workflows: any workflow of the namespace over HTTP, for operators.

JSON passes through untouched: what the caller sent as an argument is, byte for byte, the payload's data, and a
result's bytes are the answer's.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, get, post
from litestar.datastructures import State
from litestar.params import HeaderParameter, JSONBody
from msgspec import UNSET, Meta, Raw, UnsetType
from temporalio.api.enums.v1 import PendingActivityState

from temporal_api.auth import CurrentUser, User
from temporal_api.controllers.workflows.addressing import (
    WORKFLOW,
    Argument,
    Arguments,
    NamedWorkflow,
    NonEmpty,
    arguments,
)
from temporal_api.errors import Problem, responses
from temporal_api.idempotency import check_key, derived_id
from temporal_api.requests import NOT_MODIFIED, JSONResponse, unchanged
from temporal_api.temporal import STATUS, FailureInfo, is_open, seconds_between
from temporal_api.waiting import IfNoneMatch, Prefer, applied, awaited, etag, is_known, preferred_wait

# Fields of answers, with the examples that the documentation shows.
_Id = Annotated[str, Meta(examples=["invoice-2041"])]
_Run = Annotated[str, Meta(examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
_Status = Annotated[str, Meta(description="Temporal's name of it, such as RUNNING or COMPLETED.", examples=["RUNNING"])]
_Result = Annotated[Raw, Meta(description="What it gave back: any JSON; null while it runs.", examples=[None])]
_Time = Annotated[datetime, Meta(tz=True)]


SignalKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="A run gets the signals with one key of one caller once, whatever else they say, also when they "
        "are sent again; a run that comes from a reset may get one more. 1 to 255 visible ASCII characters.",
    ),
]


class PendingActivity(msgspec.Struct):
    """An activity that is scheduled, running or waiting to be tried again. `state` in Temporal's words."""

    activity_id: Annotated[str, Meta(examples=["1"])]
    activity_type: Annotated[str, Meta(examples=["render_pdf"])]
    state: Annotated[str, Meta(examples=["STARTED"])]
    attempt: Annotated[int, Meta(examples=[1])]
    last_failure: Annotated[FailureInfo | None, Meta(examples=[None])]


class WorkflowStatusResponse(msgspec.Struct):
    """A run as Temporal has it now. `status` in Temporal's words; `execution_time_seconds` is null while it runs."""

    workflow_id: _Id
    run_id: _Run
    workflow_type: Annotated[str, Meta(examples=["send_invoice"])]
    task_queue: Annotated[str, Meta(examples=["invoices"])]
    status: _Status
    result: _Result
    failure: Annotated[FailureInfo | None, Meta(examples=[None])]
    history_length: Annotated[int, Meta(examples=[5])]
    start_time: Annotated[_Time, Meta(examples=["2026-01-31T12:00:00.123456Z"])]
    close_time: Annotated[_Time | None, Meta(examples=[None])]
    execution_time_seconds: Annotated[float | None, Meta(examples=[None])]
    parent_workflow_id: Annotated[str | None, Meta(description="Whose child it is.", examples=[None])]
    memo: Annotated[dict[str, Raw], Meta(examples=[{"note": "by hand"}])]
    search_attributes: Annotated[dict[str, Raw], Meta(examples=[{"CustomerId": "cust_123"}])]
    pending_activities: list[PendingActivity]


class SignalRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A signal. `signal_input` is one argument; `signal_args` is the argument list; neither: no argument."""

    signal_name: Annotated[NonEmpty, Meta(examples=["approve"])]
    signal_input: Annotated[Argument, Meta(description="Any JSON.", examples=[{"by": "alice"}])] = UNSET
    signal_args: Arguments = UNSET


class SignalResponse(msgspec.Struct):
    """The signal that was accepted."""

    workflow_id: _Id
    signal_name: Annotated[str, Meta(examples=["approve"])]


class QueryRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A query. An array in `query_args` is the argument list; anything else is one argument."""

    query_name: Annotated[NonEmpty, Meta(examples=["progress"])]
    query_args: Annotated[Argument, Meta(description="Any JSON.", examples=[["in percent"]])] = UNSET


class QueryResponse(msgspec.Struct):
    """What the workflow answered."""

    result: Annotated[Raw, Meta(description="Any JSON.", examples=[{"percent": 40}])]


def _query_arguments(args: Argument) -> list[Raw]:
    if isinstance(args, UnsetType):
        return []
    return msgspec.json.decode(args, type=list[Raw]) if bytes(args).startswith(b"[") else [args]


class WorkflowController(Controller):
    """Watch workflows and send them messages."""

    path = "/workflows"
    tags = ["workflows"]  # noqa: RUF012 - Litestar's way
    dependencies = {"workflow": WORKFLOW}  # noqa: RUF012 - likewise

    @get(
        "/{workflow_id:str}",
        scope=("workflows:read", "workflows:admin"),
        operation_id="getWorkflow",
        summary="A workflow as it is now",
        responses={304: NOT_MODIFIED, **responses("workflow_not_found", "too_many_waits")},
    )
    async def get_workflow(
        self,
        request: Request[User, Any, Any],
        workflow: NamedWorkflow,
        state: State,
        if_none_match: IfNoneMatch = None,
        prefer: Prefer = None,
    ) -> JSONResponse[WorkflowStatusResponse]:
        """Status, and the result or the failure once it is closed. A run that failed is a 200 that says so.

        With `If-None-Match` it is a 304 while nothing changed; with `Prefer: wait` too, it answers when something does.
        """
        seconds = preferred_wait(request, state.settings.max_wait_seconds) if if_none_match else 0
        found = await workflow.describe()
        if await awaited(request, found.workflow_execution_info, seconds):
            found = await workflow.describe()
        run = found.workflow_execution_info
        headers = {"ETag": etag(run), **applied(seconds)}
        if if_none_match and is_known(request, run):
            return unchanged(headers)
        temporal, closed = workflow.temporal, not is_open(run)
        end = await state.endings.end(workflow.id, run.execution.run_id) if closed else None
        status = WorkflowStatusResponse(
            workflow_id=workflow.id,
            run_id=run.execution.run_id,
            workflow_type=run.type.name,
            task_queue=run.task_queue,
            status=STATUS[run.status],
            result=end.result if end else Raw(b"null"),
            failure=end.failure if end else None,
            history_length=run.history_length,
            start_time=run.start_time.ToDatetime(tzinfo=UTC),
            close_time=run.close_time.ToDatetime(tzinfo=UTC) if closed else None,
            execution_time_seconds=seconds_between(run.start_time, run.close_time) if closed else None,
            parent_workflow_id=run.parent_execution.workflow_id or None,
            memo=await temporal.values(run.memo.fields),
            search_attributes=await temporal.values(run.search_attributes.indexed_fields),
            pending_activities=[
                PendingActivity(
                    activity.activity_id,
                    activity.activity_type.name,
                    PendingActivityState.Name(activity.state).removeprefix("PENDING_ACTIVITY_STATE_"),
                    activity.attempt,
                    await temporal.failure(activity.last_failure) if activity.HasField("last_failure") else None,
                )
                for activity in found.pending_activities
            ],
        )
        return JSONResponse(status, headers=headers)

    @post(
        "/{workflow_id:str}/signal",
        scope=("workflows:write", "workflows:admin"),
        status_code=202,
        operation_id="signalWorkflow",
        summary="Send a signal",
        responses=responses("workflow_not_found", "workflow_completed", body=True),
    )
    async def signal_workflow(
        self,
        workflow: NamedWorkflow,
        data: JSONBody[SignalRequest],
        user: CurrentUser,
        idempotency_key: SignalKey = None,
    ) -> SignalResponse:
        """Accepted (202): Temporal keeps it until a worker handles it."""
        args = arguments(("signal_input", "signal_args"), data.signal_input, data.signal_args)
        key = check_key(idempotency_key)
        await workflow.signal(data.signal_name, args, derived_id("signals", user, key) if key else None)
        return SignalResponse(workflow.id, data.signal_name)

    @post(
        "/{workflow_id:str}/query",
        scope=("workflows:read", "workflows:admin"),
        status_code=200,
        operation_id="queryWorkflow",
        summary="Ask a workflow",
        responses=responses(
            "workflow_not_found", "workflow_completed", "query_failed", "no_worker", "workflow_task_failing", body=True
        ),
    )
    async def query_workflow(
        self, workflow: NamedWorkflow, data: JSONBody[QueryRequest], user: CurrentUser
    ) -> QueryResponse:
        """Its worker answers; names that begin with `__` need the scope `workflows:admin`."""
        if data.query_name.startswith("__") and "workflows:admin" not in user.scopes:
            needed = "workflows:admin"
            challenge = f'Bearer realm="temporal_api", error="insufficient_scope", scope="{needed}"'
            message = f"Queries that begin with __ need the scope {needed}."
            raise Problem("insufficient_scope", message, {"WWW-Authenticate": challenge})
        return QueryResponse(await workflow.query(data.query_name, _query_arguments(data.query_args)))
