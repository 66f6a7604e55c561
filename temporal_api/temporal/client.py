"""The connection, and the calls that handlers make: each with a deadline, each failing only with a Problem."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation
from temporalio.api.common.v1 import Memo, Payload, Payloads, WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.failure.v1 import Failure
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    SignalWithStartWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import GrpcCompression, RetryConfig, RPCError

from temporal_api.auth import CurrentUser
from temporal_api.encryption import ENCODING as ENCRYPTED
from temporal_api.errors import Problem
from temporal_api.settings import Settings
from temporal_api.temporal.failures import (
    FailureInfo,
    completed_problem,
    failure_kind,
    gateway_problem,
    problem_of,
    start_problem,
)
from temporal_api.temporal.payloads import data_converter, raw_json, typed_payload
from temporal_api.temporal.workers import Workers

log = logging.getLogger(__name__)

Response = TypeVar("Response", bound=Message)

NOTHING: Mapping[str, str] = {}
UNINDEXED_SECONDS = 300
"""How long a start is tried without search attributes that the namespace was found not to have."""


class Started(msgspec.Struct, frozen=True):
    """A run: `new` is false when the request was answered with one that ran already."""

    run_id: str
    new: bool


STATUS = {value: name.removeprefix("WORKFLOW_EXECUTION_STATUS_") for name, value in WorkflowExecutionStatus.items()}
_OPEN = (
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING,
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED,
)
COMPLETED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED


def connect(settings: Settings, runtime: Runtime) -> Awaitable[Client]:
    """A client that connects when first used: the service starts, and recovers, whether Temporal is there or not."""
    return Client.connect(
        **settings.temporal,
        data_converter=data_converter(settings),
        runtime=runtime,
        lazy=True,
        # Orders are smaller than what gzip saves, and each call would pay for it.
        grpc_compression=GrpcCompression.NONE,
        # Give up retrying before the deadline, so that "cannot be reached" is not reported as "did not answer".
        retry_config=RetryConfig(max_elapsed_time_millis=int(settings.rpc_timeout_seconds * 500)),
    )


class _FailureAttributes(msgspec.Struct):
    message: str = ""


class Temporal:
    """Temporal's workflow service as the handlers use it: every call has a deadline, every failure is a Problem."""

    def __init__(self, client: Client, rpc_timeout_seconds: float) -> None:
        self.service = client.workflow_service
        self.namespace = client.namespace
        self.identity = client.identity
        self._to_payload = client.data_converter.payload_converter.to_payload
        self.codec = client.data_converter.payload_codec
        self._unindexed_until: dict[tuple[str, ...], float] = {}
        self._open: set[asyncio.Timeout] = set()
        self._ending_at = float("inf")
        self._timeout = timedelta(seconds=rpc_timeout_seconds)
        self.workers = Workers(self)

    async def call(
        self,
        rpc: Callable[..., Awaitable[Response]],
        request: Message,
        workflow_id: str | None = None,
        run_id: str | None = None,
        seconds: float | None = None,
    ) -> Response:
        """One call, retries included, within the deadline (`seconds`, else RPC_TIMEOUT_SECONDS).

        Raises Problem, and RPCError never.
        """
        limit = self._timeout if seconds is None else timedelta(seconds=seconds)
        deadline = min(asyncio.get_running_loop().time() + limit.total_seconds(), self._ending_at)
        try:
            # The SDK's own timeout is for one attempt; connecting has none.
            async with asyncio.timeout_at(deadline) as timeout:
                self._open.add(timeout)
                try:
                    return await rpc(request, retry=True, timeout=limit)
                finally:
                    self._open.remove(timeout)
        except RPCError as error:
            raise problem_of(error, workflow_id, run_id) from error
        except TimeoutError as error:
            ending = asyncio.get_running_loop().time() >= self._ending_at
            raise gateway_problem("shutting_down" if ending else "temporal_timeout", workflow_id) from error
        except RuntimeError as error:  # a lazy connect that failed
            raise gateway_problem("temporal_connection_error", workflow_id) from error

    def hurry(self, seconds: float) -> None:
        """The process is ending: every call, under way or to come, is given up in so many seconds."""
        self._ending_at = asyncio.get_running_loop().time() + seconds
        for timeout in self._open:
            timeout.reschedule(min(timeout.when() or self._ending_at, self._ending_at))

    async def payloads(self, values: Iterable[object]) -> Payloads:
        """Arguments as Temporal keeps them."""
        payloads = [self._to_payload(value) for value in values]
        return Payloads(payloads=await self.codec.encode(payloads) if self.codec else payloads)

    async def _memo(self, fields: Mapping[str, object]) -> Memo:
        payloads = await self.payloads(fields.values())
        return Memo(fields=dict(zip(fields, payloads.payloads, strict=True)))

    async def decoded(self, payloads: Iterable[Payload]) -> Iterable[Payload]:
        """Payloads as their senders meant them."""
        return await self.codec.decode(list(payloads)) if self.codec else payloads

    async def start_request(
        self,
        workflow_type: str,
        *,
        workflow_id: str,
        task_queue: str,
        args: Iterable[object],
        memo: Mapping[str, object],
        execution_timeout_seconds: float | None,
    ) -> StartWorkflowExecutionRequest:
        """A start as Temporal is asked for it, for the caller to add to."""
        request = StartWorkflowExecutionRequest(
            namespace=self.namespace,
            workflow_id=workflow_id,
            workflow_type=WorkflowType(name=workflow_type),
            task_queue=TaskQueue(name=task_queue),
            input=await self.payloads(args),
            identity=self.identity,
            # Temporal answers the SDK's retry of this request with the run that the first try started.
            request_id=str(uuid.uuid4()),
            memo=await self._memo(memo) if memo else None,
        )
        if execution_timeout_seconds is not None:
            request.workflow_execution_timeout.FromTimedelta(timedelta(seconds=execution_timeout_seconds))
        return request

    async def start(
        self, request: StartWorkflowExecutionRequest, search_attributes: Mapping[str, str] = NOTHING
    ) -> Started:
        """Start a workflow. Raises Problem: `workflow_already_exists`, `workflow_start_error`, ...

        `search_attributes` are keywords, and left out while the namespace does not have them.
        """
        names = tuple(search_attributes)
        if names and time.monotonic() >= self._unindexed_until.get(names, 0):
            for name, value in search_attributes.items():
                request.search_attributes.indexed_fields[name].CopyFrom(
                    typed_payload("Keyword", msgspec.Raw(msgspec.json.encode(value)))
                )
        try:
            try:
                response = await self.call(self.service.start_workflow_execution, request, request.workflow_id)
            except Problem as problem:
                if not (search_attributes and request.HasField("search_attributes")) or (
                    "search attribute" not in problem.message
                ):
                    raise
                # `temporal-api setup` was not run here: the workflow matters more than finding it in a list.
                log.warning("The namespace lacks a search attribute of %s: run temporal-api setup.", ", ".join(names))
                self._unindexed_until[names] = time.monotonic() + UNINDEXED_SECONDS
                request.ClearField("search_attributes")
                response = await self.call(self.service.start_workflow_execution, request, request.workflow_id)
        except Problem as problem:
            raise start_problem(problem) from problem.__cause__
        return Started(response.run_id, response.started)

    async def signal_with_start(
        self, request: StartWorkflowExecutionRequest, signal_name: str, args: Iterable[object]
    ) -> Started:
        """Send a signal to the workflow of that id, starting it first unless it runs. Raises Problem."""
        both = SignalWithStartWorkflowExecutionRequest(signal_name=signal_name, signal_input=await self.payloads(args))
        for field, value in request.ListFields():
            if field.message_type is None:
                setattr(both, field.name, value)
            else:
                getattr(both, field.name).CopyFrom(value)
        try:
            response = await self.call(self.service.signal_with_start_workflow_execution, both, request.workflow_id)
        except Problem as problem:
            raise start_problem(problem) from problem.__cause__
        return Started(response.run_id, response.started)

    async def describe(self, workflow_id: str, run_id: str = "") -> DescribeWorkflowExecutionResponse:
        """The run's state as Temporal has it now. Raises Problem: `workflow_not_found`, ..."""
        return await self.call(
            self.service.describe_workflow_execution,
            DescribeWorkflowExecutionRequest(
                namespace=self.namespace, execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
            ),
            workflow_id,
            run_id,
        )

    async def values(self, fields: Mapping[str, Payload]) -> dict[str, msgspec.Raw]:
        """Named payloads, a memo's or search attributes, as JSON in the order of their names."""
        decoded = await self.decoded(fields[name] for name in sorted(fields))
        return {name: raw_json(payload) for name, payload in zip(sorted(fields), decoded, strict=True)}

    async def told_apart(self, problem: Problem, workflow_id: str, run_id: str) -> Problem:
        """Temporal refuses a closed workflow in the words of an unknown one: one describe tells them apart."""
        if problem.code != "workflow_not_found":
            return problem
        await self.describe(workflow_id, run_id)
        return completed_problem(workflow_id, run_id)

    async def result(self, payloads: Iterable[Payload]) -> msgspec.Raw:
        """What a workflow gave back: none is null, one is itself, more are a list."""
        values = [raw_json(payload) for payload in await self.decoded(payloads)]
        if len(values) == 1:
            return values[0]
        return msgspec.Raw(msgspec.json.encode(values) if values else b"null")

    async def failure(self, failure: Failure) -> FailureInfo:
        """A failure as the caller may see it: never a stack trace."""
        info, details = failure_kind(failure)
        decoded = await self.decoded(details)
        message = failure.message
        if failure.HasField("encoded_attributes"):  # sealed, with the stack trace
            (attributes,) = await self.decoded([failure.encoded_attributes])
            # Sealed in a way that this service has no key for: Temporal's own word for it stays ("Encoded failure").
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                message = msgspec.json.decode(attributes.data, type=_FailureAttributes).message
        return FailureInfo(
            type=info,
            message=message,
            details=[raw_json(payload) for payload in decoded],
            cause=await self.failure(failure.cause) if failure.HasField("cause") else None,
        )

    async def memo(self, memo: Memo, key: str, kind: type[Any]) -> Any:
        """One memo field as that type; None when it is not there or is something else.

        Raises Problem: `payload_undecodable`.
        """
        if key not in memo.fields:
            return None
        (payload,) = await self.decoded([memo.fields[key]])
        if payload.metadata.get("encoding") == ENCRYPTED:
            raise Problem("payload_undecodable", "What Temporal keeps here is encrypted, and this service has no key.")
        try:
            return msgspec.json.decode(payload.data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    async def check(self) -> None:
        """Temporal answers and the namespace exists, or Problem."""
        await self.call(self.service.describe_namespace, DescribeNamespaceRequest(namespace=self.namespace))


def is_open(run: WorkflowExecutionInfo) -> bool:
    """It goes on, or will: one that is paused (by newer servers) is not closed either."""
    return run.status in _OPEN


def seconds_between(start: Timestamp, end: Timestamp) -> float:
    """Seconds from one timestamp to another, to the microsecond."""
    return (end.ToMicroseconds() - start.ToMicroseconds()) / 1e6


def provide_temporal(state: State, user: CurrentUser) -> Temporal:
    """Depends on the user: no handler reaches Temporal anonymously (and a chain of two is cheaper than two apart)."""
    return state.temporal  # type: ignore[no-any-return]


TemporalClient = NamedDependency[SkipValidation[Temporal]]
TEMPORAL = Provide(provide_temporal, sync_to_thread=False)
