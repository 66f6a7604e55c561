"""Temporal: the one place that knows gRPC. Connection, JSON payloads, deadlines, and what its failures mean in HTTP."""

import asyncio
import base64
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
import temporalio.converter
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation
from temporalio.api.common.v1 import Memo, Payload, Payloads, WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import (
    HistoryEventFilterType,
    TaskQueueType,
    WorkflowExecutionStatus,
    WorkflowIdReusePolicy,
)
from temporalio.api.errordetails.v1 import (
    NamespaceNotFoundFailure,
    QueryFailedFailure,
    WorkflowExecutionAlreadyStartedFailure,
)
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeTaskQueueRequest,
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryRequest,
    QueryWorkflowRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import GrpcCompression, RetryConfig, RPCError, RPCStatusCode

from temporal_api.auth import CurrentUser
from temporal_api.errors import Problem
from temporal_api.settings import Settings

log = logging.getLogger(__name__)

Response = TypeVar("Response", bound=Message)

# Prices stay JSON numbers with all their digits, in Temporal as in HTTP.
_ENCODER = msgspec.json.Encoder(decimal_format="number")
_JSON = {"encoding": b"json/plain"}

UNINDEXED_SECONDS = 300
"""How long a start is tried without search attributes that the namespace was found not to have."""


class JSONPayloadConverter(temporalio.converter.EncodingPayloadConverter):
    """JSON by msgspec: structs and Decimals as they are, `msgspec.Raw` byte for byte in both directions."""

    @property
    def encoding(self) -> str:
        """Temporal's name of plain JSON."""
        return "json/plain"

    def to_payload(self, value: object) -> Payload | None:
        """Encode any value that msgspec can."""
        return Payload(metadata=_JSON, data=bytes(value) if isinstance(value, msgspec.Raw) else _ENCODER.encode(value))

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> object:
        """Decode into the type that is asked for."""
        if type_hint is msgspec.Raw:
            return msgspec.Raw(payload.data)
        return msgspec.json.decode(payload.data, type=type_hint or object)


class PayloadConverter(temporalio.converter.CompositePayloadConverter):
    """Temporal's default converters with their JSON one replaced."""

    def __init__(self) -> None:
        super().__init__(
            *(
                JSONPayloadConverter() if isinstance(c, temporalio.converter.JSONPlainPayloadConverter) else c
                for c in temporalio.converter.DefaultPayloadConverter.default_encoding_payload_converters
            )
        )


DATA_CONVERTER = temporalio.converter.DataConverter(payload_converter_class=PayloadConverter)


def raw_json(payload: Payload) -> msgspec.Raw:
    """A payload as JSON, byte for byte; one that JSON cannot carry as `{"metadata": ..., "data": base64}`."""
    encoding = payload.metadata.get("encoding")
    if encoding == b"binary/null":
        return msgspec.Raw(b"null")
    if encoding == b"json/plain":
        try:  # a Python worker may have written NaN, or bytes that are not UTF-8
            payload.data.decode()
            msgspec.json.decode(payload.data)
        except (ValueError, RecursionError):
            pass
        else:
            return msgspec.Raw(payload.data)
    metadata = {k: v.decode("utf-8", "replace") for k, v in payload.metadata.items()}
    return msgspec.Raw(msgspec.json.encode({"metadata": metadata, "data": base64.b64encode(payload.data).decode()}))


class Started(msgspec.Struct, frozen=True):
    """A run: `new` is false when the request was answered with one that ran already."""

    run_id: str
    new: bool


class FailureInfo(msgspec.Struct, omit_defaults=True):
    """Why a run failed: Temporal's failure without its stack trace."""

    type: str
    message: str
    details: list[msgspec.Raw] = []
    cause: "FailureInfo | None" = None


STATUS = {value: name.removeprefix("WORKFLOW_EXECUTION_STATUS_") for name, value in WorkflowExecutionStatus.items()}
RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
COMPLETED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED

# What Temporal's failures mean to an HTTP caller; a status that is not here is Temporal's own defect.
_CODES = {
    RPCStatusCode.CANCELLED: "temporal_timeout",  # how the SDK reports some deadlines
    RPCStatusCode.DEADLINE_EXCEEDED: "temporal_timeout",
    RPCStatusCode.NOT_FOUND: "workflow_not_found",
    RPCStatusCode.ALREADY_EXISTS: "workflow_already_exists",
    RPCStatusCode.RESOURCE_EXHAUSTED: "temporal_overloaded",
    RPCStatusCode.UNAVAILABLE: "temporal_connection_error",
    RPCStatusCode.INVALID_ARGUMENT: "validation_error",
}
_MESSAGES = {
    "temporal_timeout": "Temporal did not answer in time. What was asked may still happen: look before asking again.",
    "temporal_overloaded": "Temporal is at its limit; try again later.",
    "temporal_connection_error": "Temporal cannot be reached now; try again.",
    "temporal_error": "Temporal refused or failed the request; the operators of this service can tell why.",
    "payload_too_large": "The data is larger than Temporal takes.",
}
_TOO_LARGE = ("exceeds size limit", "exceeds limit", "larger than max", "too large")


def _problem(error: RPCError, workflow_id: str | None, run_id: str | None) -> Problem:
    code = _CODES.get(error.status, "temporal_error")
    text = error.message.lower()
    if code in ("validation_error", "temporal_overloaded") and any(t in text for t in _TOO_LARGE):
        # A too large message is also reported as RESOURCE_EXHAUSTED.
        code = "payload_too_large" if "size" in text or "message" in text else code
    elif code == "workflow_not_found" and (_detail(error, NamespaceNotFoundFailure) or workflow_id is None):
        code = "temporal_error"
    elif error.status is RPCStatusCode.FAILED_PRECONDITION and "poller" in text:
        code = "no_worker"
    message = _MESSAGES.get(code, error.message)
    if code == "workflow_not_found":
        message = f"There is no workflow {workflow_id!r}" + (f" with the run {run_id!r}." if run_id else ".")
    elif code == "no_worker":
        message = "No worker is there to answer; start one, or try again."
    if code == "temporal_error":
        log.error("Temporal failed: %s %s", error.status.name, error.message)
    return Problem(code, message, source="temporal", workflow_id=workflow_id, run_id=run_id)


Detail = TypeVar("Detail", bound=Message)


def _detail(error: RPCError, kind: type[Detail]) -> Detail | None:
    for packed in error.grpc_status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None


def connect(settings: Settings, runtime: Runtime) -> Awaitable[Client]:
    """A client that connects when first used: the service starts, and recovers, whether Temporal is there or not."""
    return Client.connect(
        **settings.temporal,
        data_converter=DATA_CONVERTER,
        runtime=runtime,
        lazy=True,
        # Orders are smaller than what gzip saves, and each call would pay for it.
        grpc_compression=GrpcCompression.NONE,
        # Give up retrying before the deadline, so that "cannot be reached" is not reported as "did not answer".
        retry_config=RetryConfig(max_elapsed_time_millis=int(settings.rpc_timeout_seconds * 500)),
    )


class Temporal:
    """Temporal's workflow service as the handlers use it: every call has a deadline, every failure is a Problem."""

    def __init__(self, client: Client, rpc_timeout_seconds: float) -> None:
        self._service = client.workflow_service
        self._namespace = client.namespace
        self._identity = client.identity
        self._to_payload = client.data_converter.payload_converter.to_payload
        self._codec = client.data_converter.payload_codec
        self._unindexed_until = float("-inf")
        self._seconds = rpc_timeout_seconds
        self._timeout = timedelta(seconds=rpc_timeout_seconds)

    async def _call(
        self,
        rpc: Callable[..., Awaitable[Response]],
        request: Message,
        workflow_id: str | None = None,
        run_id: str | None = None,
    ) -> Response:
        """One call, retries included, within the deadline. Raises Problem, and RPCError never."""
        try:
            # The SDK's own timeout is for one attempt; connecting has none.
            async with asyncio.timeout(self._seconds):
                return await rpc(request, retry=True, timeout=self._timeout)
        except RPCError as error:
            raise _problem(error, workflow_id, run_id) from error
        except TimeoutError as error:
            raise _gateway_problem("temporal_timeout", workflow_id) from error
        except RuntimeError as error:  # a lazy connect that failed
            raise _gateway_problem("temporal_connection_error", workflow_id) from error

    async def _payloads(self, values: Iterable[object]) -> Payloads:
        payloads = [self._to_payload(value) for value in values]
        return Payloads(payloads=await self._codec.encode(payloads) if self._codec else payloads)

    async def _memo(self, fields: Mapping[str, object]) -> Memo:
        payloads = await self._payloads(fields.values())
        return Memo(fields=dict(zip(fields, payloads.payloads, strict=True)))

    async def _decoded(self, payloads: Iterable[Payload]) -> Iterable[Payload]:
        return await self._codec.decode(list(payloads)) if self._codec else payloads

    async def start(
        self,
        workflow_type: str,
        *,
        workflow_id: str,
        task_queue: str,
        args: Iterable[object] = (),
        execution_timeout: timedelta | None = None,
        memo: Mapping[str, object] | None = None,
        search_attributes: Mapping[str, str] | None = None,
    ) -> Started:
        """Start a workflow whose id was never used. Raises Problem: `workflow_already_exists`, ...

        `search_attributes` are keywords, and left out while the namespace does not have them.
        """
        request = StartWorkflowExecutionRequest(
            namespace=self._namespace,
            workflow_id=workflow_id,
            workflow_type=WorkflowType(name=workflow_type),
            task_queue=TaskQueue(name=task_queue),
            input=await self._payloads(args),
            workflow_execution_timeout=_duration(execution_timeout),
            identity=self._identity,
            # Temporal answers the SDK's retry of this request with the run that the first try started.
            request_id=str(uuid.uuid4()),
            workflow_id_reuse_policy=WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
            memo=await self._memo(memo) if memo else None,
        )
        if search_attributes and time.monotonic() >= self._unindexed_until:
            for name, value in search_attributes.items():
                request.search_attributes.indexed_fields[name].CopyFrom(_keyword(value))
        try:
            try:
                response = await self._call(self._service.start_workflow_execution, request, workflow_id)
            except Problem as problem:
                if not request.HasField("search_attributes") or "search attribute" not in problem.message:
                    raise
                # `temporal-api setup` was not run here: the workflow matters more than finding it in a list.
                log.warning("The namespace lacks the search attributes of orders: run temporal-api setup.")
                self._unindexed_until = time.monotonic() + UNINDEXED_SECONDS
                request.ClearField("search_attributes")
                response = await self._call(self._service.start_workflow_execution, request, workflow_id)
        except Problem as problem:
            raise _start_problem(problem) from problem.__cause__
        return Started(response.run_id, response.started)

    async def describe(self, workflow_id: str, run_id: str = "") -> DescribeWorkflowExecutionResponse:
        """The run's state as Temporal has it now. Raises Problem: `workflow_not_found`, ..."""
        return await self._call(
            self._service.describe_workflow_execution,
            DescribeWorkflowExecutionRequest(
                namespace=self._namespace, execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
            ),
            workflow_id,
            run_id,
        )

    async def close_event(self, workflow_id: str, run_id: str) -> HistoryEvent | None:
        """The last event of a closed run; None while it runs."""
        response = await self._call(
            self._service.get_workflow_execution_history,
            GetWorkflowExecutionHistoryRequest(
                namespace=self._namespace,
                execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
                history_event_filter_type=HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT,
            ),
            workflow_id,
            run_id,
        )
        events = response.history.events
        return events[-1] if events else None

    async def signal(self, workflow_id: str, run_id: str, name: str, args: Iterable[object]) -> None:
        """Send a signal. Raises Problem: `workflow_not_found`, `workflow_completed`, ..."""
        request = SignalWorkflowExecutionRequest(
            namespace=self._namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
            signal_name=name,
            input=await self._payloads(args),
            identity=self._identity,
            request_id=str(uuid.uuid4()),
        )
        try:
            await self._call(self._service.signal_workflow_execution, request, workflow_id, run_id)
        except Problem as problem:
            if problem.code != "workflow_not_found":
                raise
            # "Already completed" has the same status as "does not exist": one describe tells them apart.
            await self.describe(workflow_id, run_id)
            raise Problem(
                "workflow_completed", f"The workflow {workflow_id!r} is closed.", workflow_id=workflow_id, run_id=run_id
            ) from None

    async def query(self, workflow_id: str, run_id: str, name: str, args: Iterable[object]) -> msgspec.Raw:
        """Ask a worker. Raises Problem: `workflow_not_found`, `query_failed`, `no_worker`, `temporal_timeout`, ..."""
        request = QueryWorkflowRequest(
            namespace=self._namespace,
            execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
            query=WorkflowQuery(query_type=name, query_args=await self._payloads(args)),
        )
        try:
            response = await self._call(self._service.query_workflow, request, workflow_id, run_id)
        except Problem as problem:
            cause = problem.__cause__
            if not isinstance(cause, RPCError) or _detail(cause, QueryFailedFailure) is None:
                raise
            raise Problem("query_failed", cause.message, source="workflow", workflow_id=workflow_id) from None
        return await self.result(response.query_result.payloads)

    async def result(self, payloads: Iterable[Payload]) -> msgspec.Raw:
        """What a workflow gave back: none is null, one is itself, more are a list."""
        values = [raw_json(payload) for payload in await self._decoded(payloads)]
        if len(values) == 1:
            return values[0]
        return msgspec.Raw(msgspec.json.encode(values) if values else b"null")

    async def failure(self, failure: Failure) -> FailureInfo:
        """A failure as the caller may see it: never a stack trace."""
        info, details = _failure_kind(failure)
        decoded = await self._decoded(details)
        return FailureInfo(
            type=info,
            message=failure.message,
            details=[raw_json(payload) for payload in decoded],
            cause=await self.failure(failure.cause) if failure.HasField("cause") else None,
        )

    async def memo(self, memo: Memo, key: str, kind: type[msgspec.Struct]) -> Any:
        """One memo field as a struct; None when it is not there or is something else."""
        if key not in memo.fields:
            return None
        try:
            (payload,) = await self._decoded([memo.fields[key]])
            return msgspec.json.decode(payload.data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    async def check(self) -> None:
        """Temporal answers and the namespace exists, or Problem."""
        await self._call(self._service.describe_namespace, DescribeNamespaceRequest(namespace=self._namespace))

    async def has_pollers(self, task_queue: str) -> bool:
        """Whether a worker has asked this queue for workflow tasks in the last minutes."""
        response = await self._call(
            self._service.describe_task_queue,
            DescribeTaskQueueRequest(
                namespace=self._namespace,
                task_queue=TaskQueue(name=task_queue),
                task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
            ),
        )
        return bool(response.pollers)


def _gateway_problem(code: str, workflow_id: str | None) -> Problem:
    return Problem(code, _MESSAGES[code], source="gateway", workflow_id=workflow_id)


def _start_problem(problem: Problem) -> Problem:
    cause = problem.__cause__
    if problem.code == "workflow_already_exists" and isinstance(cause, RPCError):
        existing = _detail(cause, WorkflowExecutionAlreadyStartedFailure)
        problem.message = f"The workflow {problem.details['workflow_id']!r} exists already; take another id."
        problem.details["run_id"] = existing.run_id if existing else None
    elif problem.code == "validation_error":
        return Problem("workflow_start_error", f"Temporal refuses this start: {problem.message}", **problem.details)
    return problem


def _duration(value: timedelta | None) -> Duration | None:
    if value is None:
        return None
    duration = Duration()
    duration.FromTimedelta(value)
    return duration


def _keyword(value: str) -> Payload:
    return Payload(metadata={**_JSON, "type": b"Keyword"}, data=msgspec.json.encode(value))


def _failure_kind(failure: Failure) -> tuple[str, Iterable[Payload]]:
    """The failure's type in words, and its details."""
    match failure.WhichOneof("failure_info"):
        case "application_failure_info":
            info = failure.application_failure_info
            return info.type or "ApplicationError", info.details.payloads
        case "timeout_failure_info":
            return "Timeout", failure.timeout_failure_info.last_heartbeat_details.payloads
        case "canceled_failure_info":
            return "Canceled", failure.canceled_failure_info.details.payloads
        case None:
            return "Failure", ()
        case kind:
            return kind.removesuffix("_failure_info").title().replace("_", ""), ()


def seconds_between(start: Timestamp, end: Timestamp) -> float:
    """Seconds from one timestamp to another, to the microsecond."""
    return (end.ToMicroseconds() - start.ToMicroseconds()) / 1e6


def provide_temporal(state: State, user: CurrentUser) -> Temporal:
    """Depends on the user: no handler reaches Temporal anonymously (and a chain of two is cheaper than two apart)."""
    return state.temporal  # type: ignore[no-any-return]


TemporalClient = NamedDependency[SkipValidation[Temporal]]
TEMPORAL = Provide(provide_temporal, sync_to_thread=False)
