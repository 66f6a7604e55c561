"""A workflow, or one run of it: everything that can be asked of it or done to it."""

import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from google.protobuf.message import Message
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, ResetReapplyType
from temporalio.api.errordetails.v1 import QueryFailedFailure
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    QueryWorkflowRequest,
    RequestCancelWorkflowExecutionRequest,
    ResetWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)
from temporalio.service import RPCError

from temporal_api.errors import Problem
from temporal_api.temporal.client import Response, Temporal, is_open
from temporal_api.temporal.failures import completed_problem, detail_of
from temporal_api.temporal.history import pages


class Workflow:
    """A workflow by its id; with `run_id`, that run of it only. Its methods raise Problem: `workflow_not_found`, ..."""

    def __init__(self, temporal: Temporal, workflow_id: str, run_id: str = "") -> None:
        self.temporal = temporal
        self.id = workflow_id
        self.run_id = run_id
        self._execution = WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
        self._whose: dict[str, Any] = {"namespace": temporal.namespace, "workflow_execution": self._execution}

    async def _call(self, rpc: Callable[..., Awaitable[Response]], request: Message) -> Response:
        return await self.temporal.call(rpc, request, self.id, self.run_id)

    async def _call_open(self, rpc: Callable[..., Awaitable[Response]], request: Message) -> Response:
        """Temporal refuses a closed workflow in the words of an unknown one: one describe tells them apart."""
        try:
            return await self._call(rpc, request)
        except Problem as problem:
            raise await self.temporal.told_apart(problem, self.id, self.run_id) from problem.__cause__

    async def describe(self) -> DescribeWorkflowExecutionResponse:
        """Its state as Temporal has it now."""
        return await self.temporal.describe(self.id, self.run_id)

    async def pinned(self) -> "Workflow":
        """The run that it is now, whatever may follow it."""
        return Workflow(self.temporal, self.id, (await self.describe()).workflow_execution_info.execution.run_id)

    async def signal(self, name: str, args: Iterable[object], request_id: str | None = None) -> None:
        """Send a signal; of those with one request id, Temporal gives a run the first."""
        request = SignalWorkflowExecutionRequest(
            **self._whose,
            signal_name=name,
            input=await self.temporal.payloads(args),
            identity=self.temporal.identity,
            request_id=request_id or str(uuid.uuid4()),
        )
        await self._call_open(self.temporal.service.signal_workflow_execution, request)

    async def query(self, name: str, args: Iterable[object]) -> msgspec.Raw:
        """Ask a worker. Raises Problem: `query_failed`, `no_worker`, `workflow_task_failing`, ..."""
        temporal = self.temporal
        request = QueryWorkflowRequest(
            namespace=temporal.namespace,
            execution=self._execution,
            query=WorkflowQuery(query_type=name, query_args=await temporal.payloads(args)),
        )
        rpc = temporal.workers.attended(temporal.service.query_workflow, self.id, self.run_id)
        try:
            response = await self._call(rpc, request)
        except Problem as problem:
            cause = problem.__cause__
            if not isinstance(cause, RPCError) or detail_of(cause, QueryFailedFailure) is None:
                raise
            message = cause.message
            if message == "Encoded failure":  # Temporal (1.29) passes on no more than that
                message = "The workflow refused the query; its reason is encrypted, and only its worker's log tells it."
            raise Problem("query_failed", message, source="workflow", workflow_id=self.id) from None
        return await temporal.result(response.query_result.payloads)

    async def cancel(self, reason: str) -> None:
        """Ask its code to end. Raises Problem: `workflow_completed`, ..."""
        # Temporal says yes to a closed one too.
        if not is_open((await self.describe()).workflow_execution_info):
            raise completed_problem(self.id, self.run_id)
        # Not the run that was described: when that one has gone on as another, the other is meant.
        request = RequestCancelWorkflowExecutionRequest(
            **self._whose, identity=self.temporal.identity, request_id=str(uuid.uuid4()), reason=reason
        )
        await self._call(self.temporal.service.request_cancel_workflow_execution, request)

    async def terminate(self, reason: str) -> None:
        """End it at once. Raises Problem: `workflow_completed`, ..."""
        request = TerminateWorkflowExecutionRequest(**self._whose, identity=self.temporal.identity, reason=reason)
        await self._call_open(self.temporal.service.terminate_workflow_execution, request)

    async def delete(self) -> None:
        """Delete it with its history."""
        request = DeleteWorkflowExecutionRequest(**self._whose)
        await self._call(self.temporal.service.delete_workflow_execution, request)

    async def reset(self, event_id: int, reason: str) -> str:
        """Begin a new run that goes on from that event; its id. Raises Problem: `validation_error`, ..."""
        request = ResetWorkflowExecutionRequest(
            **self._whose,
            reason=reason,
            workflow_task_finish_event_id=event_id,
            request_id=str(uuid.uuid4()),
            reset_reapply_type=ResetReapplyType.RESET_REAPPLY_TYPE_ALL_ELIGIBLE,
            identity=self.temporal.identity,
        )
        return (await self._call(self.temporal.service.reset_workflow_execution, request)).run_id

    async def task_end(self, *, backward: bool) -> int | None:
        """The event that ends its first workflow task, or its last; None when there is none."""
        async for found in pages(self.temporal, self.id, self.run_id, reverse=backward):
            for event in found.events:
                if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                    return event.event_id
        return None
