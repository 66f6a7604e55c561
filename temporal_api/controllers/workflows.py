"""Workflows: any workflow of the namespace over HTTP, for operators.

JSON passes through untouched: what the caller sent as an argument is, byte for byte, the payload's data, and a
result's bytes are the answer's.
"""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import UNSET, Meta, Raw, UnsetType

from temporal_api.auth import CurrentUser, User
from temporal_api.controllers import orders
from temporal_api.errors import Problem, invalid, responses
from temporal_api.temporal import RUNNING, STATUS, FailureInfo, TemporalClient, seconds_between

NonEmpty = Annotated[str, Meta(min_length=1, max_length=1000)]
RunId = Annotated[str, QueryParameter(name="run_id", description="Pins one run; without it, the latest.")]
Argument = Raw | UnsetType
Arguments = list[Raw] | UnsetType


class WorkflowExecutionRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A start. `input_data` is one argument; `args` is the argument list; neither: no argument."""

    workflow_type: NonEmpty
    task_queue: NonEmpty = "temporal-product-queue"
    input_data: Argument = UNSET
    args: Arguments = UNSET
    workflow_id: NonEmpty | None = None
    execution_timeout_seconds: Annotated[float, Meta(gt=0, le=315_360_000)] | None = 3600


class WorkflowExecutionResponse(msgspec.Struct):
    """The run that was started."""

    workflow_id: str
    run_id: str
    status: str
    result: Raw


class WorkflowStatusResponse(msgspec.Struct):
    """A run as Temporal has it now. `status` in Temporal's words; `execution_time_seconds` is null while it runs."""

    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    status: str
    result: Raw
    failure: FailureInfo | None
    history_length: int
    start_time: datetime
    close_time: datetime | None
    execution_time_seconds: float | None


class SignalRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A signal. `signal_input` is one argument; `signal_args` is the argument list; neither: no argument."""

    signal_name: NonEmpty
    signal_input: Argument = UNSET
    signal_args: Arguments = UNSET


class SignalResponse(msgspec.Struct):
    """The signal that was accepted."""

    workflow_id: str
    signal_name: str


class QueryRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A query. An array in `query_args` is the argument list; anything else is one argument."""

    query_name: NonEmpty
    query_args: Argument = UNSET


class QueryResponse(msgspec.Struct):
    """What the workflow answered."""

    result: Raw


def _arguments(names: tuple[str, str], one: Argument, many: Arguments) -> list[Raw]:
    if not isinstance(one, UnsetType) and not isinstance(many, UnsetType):
        raise invalid(names[1], f"Send {names[0]} or {names[1]}, not both")
    if not isinstance(many, UnsetType):
        return many
    return [] if isinstance(one, UnsetType) else [one]


def _query_arguments(args: Argument) -> list[Raw]:
    if isinstance(args, UnsetType):
        return []
    return msgspec.json.decode(args, type=list[Raw]) if bytes(args).startswith(b"[") else [args]


def _check_reserved(user: User, workflow_id: str) -> None:
    """Ids of orders are not for everyone who may read workflows: to others they do not exist."""
    if workflow_id.startswith(orders.ID_PREFIX) and orders.ADMIN not in user.scopes:
        raise Problem("workflow_not_found", f"There is no workflow {workflow_id!r}.", workflow_id=workflow_id)


def _check_allowed(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if allowed and value not in allowed:
        raise Problem("not_allowed", f"This service may not start the {what} {value!r}.")


class WorkflowController(Controller):
    """Start, watch and steer workflows."""

    path = "/workflows"
    tags = ["workflows"]  # noqa: RUF012 - Litestar's way

    @post(
        scope=("workflows:write", "workflows:admin"),
        operation_id="startWorkflow",
        summary="Start a workflow",
        responses=responses("workflow_start_error", "not_allowed", "workflow_already_exists", "reserved_id", body=True),
    )
    async def start_workflow(
        self,
        request: Request[User, Any, Any],
        data: JSONBody[WorkflowExecutionRequest],
        state: State,
        user: CurrentUser,
        temporal: TemporalClient,
    ) -> Response[WorkflowExecutionResponse]:
        """Start it and return at once; `Location` is where to look."""
        args = _arguments(("input_data", "args"), data.input_data, data.args)
        _check_allowed("workflow type", data.workflow_type, state.settings.allowed_workflow_types)
        _check_allowed("task queue", data.task_queue, state.settings.allowed_task_queues)
        workflow_id = data.workflow_id or str(uuid.uuid4())
        if workflow_id.startswith(orders.ID_PREFIX) and orders.ADMIN not in user.scopes:
            raise Problem("reserved_id", f"Ids that start with {orders.ID_PREFIX} are for orders; take another.")
        if workflow_id in (".", ".."):
            raise invalid("workflow_id", "Expected an id that a URL can carry: not . or ..")
        request.scope["workflow_id"] = workflow_id  # type: ignore[typeddict-unknown-key] # for the access log
        seconds = data.execution_timeout_seconds
        started = await temporal.start(
            data.workflow_type,
            workflow_id=workflow_id,
            task_queue=data.task_queue,
            args=args,
            execution_timeout=timedelta(seconds=seconds) if seconds else None,
        )
        return Response(
            WorkflowExecutionResponse(workflow_id, started.run_id, "RUNNING", Raw(b"null")),
            headers={"Location": f"/api/v1/workflows/{quote(workflow_id, safe='')}"},
        )

    @get(
        "/{workflow_id:str}",
        scope=("workflows:read", "workflows:admin"),
        operation_id="getWorkflow",
        summary="A workflow as it is now",
        responses=responses("workflow_not_found"),
    )
    async def get_workflow(
        self, workflow_id: FromPath[str], user: CurrentUser, temporal: TemporalClient, run_id: RunId = ""
    ) -> WorkflowStatusResponse:
        """Status, and the result or the failure once it is closed. A run that failed is a 200 that says so."""
        _check_reserved(user, workflow_id)
        run = (await temporal.describe(workflow_id, run_id)).workflow_execution_info
        result, failure = Raw(b"null"), None
        if closed := run.status != RUNNING:
            event = await temporal.close_event(workflow_id, run.execution.run_id)
            if event is not None:
                result = await temporal.result(event.workflow_execution_completed_event_attributes.result.payloads)
                attributes = event.workflow_execution_failed_event_attributes
                if attributes.HasField("failure"):
                    failure = await temporal.failure(attributes.failure)
        return WorkflowStatusResponse(
            workflow_id=workflow_id,
            run_id=run.execution.run_id,
            workflow_type=run.type.name,
            task_queue=run.task_queue,
            status=STATUS[run.status],
            result=result,
            failure=failure,
            history_length=run.history_length,
            start_time=run.start_time.ToDatetime(tzinfo=UTC),
            close_time=run.close_time.ToDatetime(tzinfo=UTC) if closed else None,
            execution_time_seconds=seconds_between(run.start_time, run.close_time) if closed else None,
        )

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
        workflow_id: FromPath[str],
        data: JSONBody[SignalRequest],
        user: CurrentUser,
        temporal: TemporalClient,
        run_id: RunId = "",
    ) -> SignalResponse:
        """Accepted (202): Temporal keeps it until a worker handles it."""
        _check_reserved(user, workflow_id)
        args = _arguments(("signal_input", "signal_args"), data.signal_input, data.signal_args)
        await temporal.signal(workflow_id, run_id, data.signal_name, args)
        return SignalResponse(workflow_id, data.signal_name)

    @post(
        "/{workflow_id:str}/query",
        scope=("workflows:read", "workflows:admin"),
        status_code=200,
        operation_id="queryWorkflow",
        summary="Ask a workflow",
        responses=responses("workflow_not_found", "query_failed", "no_worker", body=True),
    )
    async def query_workflow(
        self,
        workflow_id: FromPath[str],
        data: JSONBody[QueryRequest],
        user: CurrentUser,
        temporal: TemporalClient,
        run_id: RunId = "",
    ) -> QueryResponse:
        """Its worker answers; names that begin with `__` need the scope `workflows:admin`."""
        _check_reserved(user, workflow_id)
        if data.query_name.startswith("__") and "workflows:admin" not in user.scopes:
            raise Problem("insufficient_scope", "Queries that begin with __ need the scope workflows:admin.")
        return QueryResponse(
            await temporal.query(workflow_id, run_id, data.query_name, _query_arguments(data.query_args))
        )
