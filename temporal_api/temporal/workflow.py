"""A handle of a workflow, or of one run: describe, signal, query, cancel, terminate, reset, ..."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec
from google.protobuf.message import Message
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import (
    EventType,
    HistoryEventFilterType,
    ResetReapplyType,
    ResourceExhaustedCause,
    WorkflowTaskFailedCause,
)
from temporalio.api.errordetails.v1 import ResourceExhaustedFailure, WorkflowNotReadyFailure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice import v1 as api
from temporalio.service import RPCError

from temporal_api import errors
from temporal_api.errors import Problem, WorkflowCompleted, WorkflowNotFound, shown
from temporal_api.record import new_request_id
from temporal_api.temporal.caller import caller
from temporal_api.temporal.client import RPC, Response, Temporal
from temporal_api.temporal.failures import detail_of, workflow_subject
from temporal_api.temporal.run import TEMPORALS_OWN, PendingWorkflowTask, Run, enum_name

# How long to wait for an answer to a query or an update before looking for the reason, and how often to look.
PATIENCE_SECONDS = 0.5
LOOK_EVERY_SECONDS = 1.0
RECENT_BATCHES = 100
_LIMITS_OF_A_WORKFLOW = (
    ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_BUSY_WORKFLOW,
    ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_CONCURRENT_LIMIT,
)

LONG_POLL_SECONDS = 30.0
"""More than the 20 s after which Temporal answers an empty page."""
MAX_ID_BYTES = 1000
"""The longest id or name that Temporal takes, in UTF-8."""
PAGE_BATCHES = 25
"""The most batches of a page: their size is not known before."""


class Page(msgspec.Struct):
    """A page of events, Temporal's token of the next page (empty at the end), and the events' size in bytes."""

    events: list[HistoryEvent]
    token: bytes
    size: int


def is_too_long(name: str) -> bool:
    """Whether Temporal does not take an id or name of that length."""
    return len(name.encode()) > MAX_ID_BYTES


class Workflow:
    """A workflow by its id; with `run_id`, that run of it only. Every method raises WorkflowNotFound."""

    def __init__(self, temporal: Temporal, workflow_id: str, run_id: str = "") -> None:
        """Raises WorkflowNotFound for an id that no workflow has, and for those of Temporal's own workflows."""
        if is_too_long(workflow_id) or workflow_id.startswith(TEMPORALS_OWN):
            raise WorkflowNotFound(f"There is no workflow {shown(workflow_id)!r}.", workflow_id=shown(workflow_id))
        self.temporal = temporal
        self.id = workflow_id
        self.run_id = run_id
        self.subject = workflow_subject(workflow_id, run_id)
        self.execution = WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
        self._source: dict[str, Any] = {"namespace": temporal.namespace, "execution": self.execution}
        self._target: dict[str, Any] = {"namespace": temporal.namespace, "workflow_execution": self.execution}

    def run(self, run_id: str) -> "Workflow":
        """One run of this workflow."""
        return Workflow(self.temporal, self.id, run_id)

    async def call(self, rpc: RPC[Response], request: Message, seconds: float | None = None) -> Response:
        """Make a call about this workflow."""
        return await self.temporal.call(rpc, request, self.subject, seconds)

    async def call_open(self, rpc: RPC[Response], request: Message) -> Response:
        """Make a call that only an open workflow takes. Raises WorkflowCompleted."""
        try:
            return await self.call(rpc, request)
        except WorkflowNotFound:
            # Temporal answers alike for a closed and an unknown workflow: describing it tells them apart.
            await self.describe()
            raise self._completed() from None

    async def describe(self) -> Run:
        """Ask for its state now."""
        request = api.DescribeWorkflowExecutionRequest(**self._source)
        described = await self.call(self.temporal.service.describe_workflow_execution, request)
        run = Run(described.workflow_execution_info, described)
        if run.workflow_type.startswith(TEMPORALS_OWN) or run.task_queue.startswith(TEMPORALS_OWN):
            raise WorkflowNotFound(f"There is no {self.subject.name}.", **self.subject.details)
        return run

    async def signal(self, name: str, args: Iterable[object], request_id: str | None = None) -> None:
        """Send a signal. A run gets only one with the same request id. Raises WorkflowCompleted."""
        which = {**self._target, "request_id": request_id or new_request_id()}
        request = api.SignalWorkflowExecutionRequest(**which, signal_name=name, input=await self.temporal.encode(args))
        await self.call_open(self.temporal.service.signal_workflow_execution, request)

    async def query(self, name: str, args: Iterable[object]) -> msgspec.Raw:
        """Ask a worker. Raises QueryFailed, NoWorker, WorkflowTaskFailing, WorkflowPaused, ..."""
        query = WorkflowQuery(query_type=name, query_args=await self.temporal.encode(args))
        request = api.QueryWorkflowRequest(**self._source, query=query)
        response = await self.call(self.fail_without_worker(self.temporal.waits.query_workflow), request)
        if response.HasField("query_rejected"):  # the only reason, as we set no condition
            raise errors.WorkflowPaused(source="temporal", **self.subject.details)
        return await self.temporal.result(response.query_result.payloads)

    async def cancel(self, reason: str) -> None:
        """Ask its code to end. Raises WorkflowCompleted."""
        # Temporal accepts this for a closed workflow too.
        if not (await self.describe()).is_open:
            raise self._completed()
        # Name the workflow, not the described run: it may have continued as new meanwhile.
        request = api.RequestCancelWorkflowExecutionRequest(**self._target, request_id=new_request_id(), reason=reason)
        await self.call(self.temporal.service.request_cancel_workflow_execution, request)

    async def terminate(self, reason: str) -> None:
        """End it at once. Raises WorkflowCompleted."""
        await self.describe()  # one of Temporal's own is not there
        request = api.TerminateWorkflowExecutionRequest(**self._target, reason=reason)
        await self.call_open(self.temporal.service.terminate_workflow_execution, request)

    async def pause(self, reason: str) -> None:
        """Pause it. Raises WorkflowCompleted, NotSupported."""
        await self._pause(self.temporal.service.pause_workflow_execution, api.PauseWorkflowExecutionRequest, reason)

    async def unpause(self, reason: str) -> None:
        """Unpause it. Raises WorkflowCompleted, NotSupported."""
        await self._pause(self.temporal.service.unpause_workflow_execution, api.UnpauseWorkflowExecutionRequest, reason)

    async def _pause(self, rpc: RPC[Message], kind: type[Message], reason: str) -> None:
        await self.describe()  # one of Temporal's own is not there
        target = {"namespace": self.temporal.namespace, "workflow_id": self.id, "run_id": self.run_id}
        request = kind(**target, reason=reason, request_id=new_request_id())
        with suppress(errors.WorkflowPaused):  # it is paused already
            await self.call_open(rpc, request)

    async def delete(self) -> None:
        """Delete it with its history."""
        await self.describe()  # one of Temporal's own is not there
        request = api.DeleteWorkflowExecutionRequest(**self._target)
        await self.call(self.temporal.service.delete_workflow_execution, request)

    async def reset(self, event_id: int, reason: str) -> str:
        """Begin a new run from that event; return its id. Raises ValidationError if that is not possible."""
        # Histories name the caller of every other change, but not of a reset.
        request = api.ResetWorkflowExecutionRequest(
            **self._target,
            reason=f"{reason} (by {caller()})",
            workflow_task_finish_event_id=event_id,
            request_id=new_request_id(),
            reset_reapply_type=ResetReapplyType.RESET_REAPPLY_TYPE_ALL_ELIGIBLE,
        )
        return (await self.call(self.temporal.service.reset_workflow_execution, request)).run_id

    async def read_page(
        self,
        *,
        token: bytes = b"",
        batches: int = PAGE_BATCHES,
        reverse: bool = False,
        wait: bool = False,
        closing_only: bool = False,
    ) -> Page:
        """One page of its history. With `wait`, wait for new events (Temporal's long poll)."""
        which = {**self._source, "maximum_page_size": batches, "next_page_token": token}
        answer: api.GetWorkflowExecutionHistoryResponse | api.GetWorkflowExecutionHistoryReverseResponse
        if reverse:
            backward = api.GetWorkflowExecutionHistoryReverseRequest(**which)
            answer = await self.call(self.temporal.service.get_workflow_execution_history_reverse, backward)
        else:
            kind = "HISTORY_EVENT_FILTER_TYPE_" + ("CLOSE_EVENT" if closing_only else "ALL_EVENT")
            forward = api.GetWorkflowExecutionHistoryRequest(
                **which, wait_new_event=wait, history_event_filter_type=HistoryEventFilterType.Value(kind)
            )
            service, seconds = (self.temporal.waits, LONG_POLL_SECONDS) if wait else (self.temporal.service, None)
            answer = await self.call(service.get_workflow_execution_history, forward, seconds)
        return Page(list(answer.history.events), answer.next_page_token, answer.history.ByteSize())

    def _completed(self, message: str | None = None) -> WorkflowCompleted:
        return WorkflowCompleted(message or f"The workflow {self.id!r} is closed.", **self.subject.details)

    # --- no worker answers ---

    def fail_without_worker(self, rpc: RPC[Response]) -> RPC[Response]:
        """Wrap a call: raise NoWorker, WorkflowTaskFailing or WorkflowCompleted where Temporal would wait in vain."""

        async def answer(request: Message, **options: Any) -> Response:
            asking = asyncio.ensure_future(rpc(request, **options))
            try:
                await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
                while not asking.done():
                    problem = await self._why_silent()
                    if problem is not None and not asking.done():
                        raise problem
                    await asyncio.wait({asking}, timeout=LOOK_EVERY_SECONDS)
                return asking.result()
            except RPCError as error:
                if detail_of(error, WorkflowNotReadyFailure) is not None:
                    raise await self._why_not_ready() from error
                # Temporal holds back one query and ten updates of a workflow, and refuses more.
                limit = detail_of(error, ResourceExhaustedFailure)
                if limit and limit.cause in _LIMITS_OF_A_WORKFLOW and (problem := await self._why_silent()):
                    raise problem from error
                raise
            finally:
                asking.cancel()

        return answer

    async def _why_silent(self) -> Problem | None:
        """Why there is no answer yet; None when one may still come."""
        try:
            run = await self.describe()
            if not await self.temporal.has_worker(run.task_queue):
                told = f"No worker polls the task queue {run.task_queue!r}; start one, or try again."
                details = {**self.subject.details, "task_queue": run.task_queue}
                return errors.NoWorker(told, source="gateway", **details)
            return await self._task_failing(run)
        except Problem:  # the call itself will report Temporal's failure
            return None

    async def _why_not_ready(self) -> Problem:
        """Why Temporal refused the query or update at once."""
        run = await self.describe()
        if not run.is_open:
            return self._completed(f"The workflow {self.id!r} was closed before a worker could answer for it.")
        if not run.task_attempt:  # a start delay, a retry or a cron schedule
            told = "The workflow has not begun yet, so no worker answers for it. Try again when it has."
            return errors.NoWorker(told, source="gateway", **self.subject.details)
        return await self._task_failing(run) or errors.WorkflowTaskFailing(source="gateway", **self.subject.details)

    async def _task_failing(self, run: Run) -> Problem | None:
        task = await self.pending_workflow_task(run)
        if task is None:
            return None
        details = {**self.subject.details, "run_id": run.run_id}
        if task.failure is None:
            return errors.WorkflowTaskFailing(source="gateway", **details)
        told = f"The workflow cannot answer: its code fails again and again: {task.failure.message}"
        return errors.WorkflowTaskFailing(told, source="workflow", failure=task.failure, **details)

    async def pending_workflow_task(self, run: Run) -> PendingWorkflowTask | None:
        """The workflow task that fails again and again, if any. `failure` is None unless it is recent."""
        if run.task_attempt <= 1:
            return None
        for event in (await self.run(run.run_id).read_page(batches=RECENT_BATCHES, reverse=True)).events:
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT:
                return None  # a worker went away
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                failed = event.workflow_task_failed_event_attributes
                failure = await self.temporal.failure(failed.failure)
                cause = enum_name(WorkflowTaskFailedCause.DESCRIPTOR, failed.cause, "WORKFLOW_TASK_FAILED_CAUSE_")
                failure.message = failure.message or cause
                return PendingWorkflowTask(run.task_attempt, failure)
        return PendingWorkflowTask(run.task_attempt, None)
