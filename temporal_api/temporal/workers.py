"""Whether anybody is there to answer: what a query or an update that gets no answer is told, within two seconds.

Temporal itself lets both wait for a worker until their deadline, and does not say why nobody came.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, TaskQueueType, WorkflowTaskFailedCause
from temporalio.api.errordetails.v1 import WorkflowNotReadyFailure
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, GetWorkflowExecutionHistoryReverseRequest
from temporalio.service import RPCError

from temporal_api.errors import Problem
from temporal_api.temporal.failures import detail_of, gateway_problem

if TYPE_CHECKING:  # the client asks here
    from temporal_api.temporal.client import Temporal

Response = TypeVar("Response", bound=Message)

PATIENCE_SECONDS = 0.5
LOOK_EVERY_SECONDS = 1.0
POLLED_WITHIN_SECONDS = 75.0
"""A worker's poll lasts a minute, and Temporal knows when it began; a dead worker stays listed for five."""
RECENT_EVENTS = 100


class Workers:
    """Who is there to answer; Temporal is asked about a task queue at most about once a second."""

    def __init__(self, temporal: "Temporal") -> None:
        self._temporal = temporal
        self._looks: dict[str, tuple[float, bool]] = {}

    def attended(
        self, rpc: Callable[..., Awaitable[Response]], workflow_id: str, run_id: str
    ) -> Callable[..., Awaitable[Response]]:
        """The same call, for `Temporal.call`, but given up as soon as it is known that nobody will answer.

        Raises Problem: `no_worker`, `workflow_task_failing`, `workflow_completed` (before it could be asked).
        """

        async def answer(request: Message, **options: Any) -> Response:
            asking = asyncio.ensure_future(rpc(request, **options))
            try:
                await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
                while not asking.done():
                    problem = await self._why_silent(workflow_id, run_id)
                    if problem is not None and not asking.done():
                        raise problem
                    await asyncio.wait({asking}, timeout=LOOK_EVERY_SECONDS)
                return asking.result()
            except RPCError as error:
                if detail_of(error, WorkflowNotReadyFailure) is None:
                    raise
                raise await self._why_not_ready(workflow_id, run_id) from error
            finally:
                asking.cancel()

        return answer

    async def _why_silent(self, workflow_id: str, run_id: str) -> Problem | None:
        """Why there is no answer yet; None when one may still come."""
        try:
            described = await self._temporal.describe(workflow_id, run_id)
            run = described.workflow_execution_info
            if not await self.polled(run.task_queue):
                return Problem(
                    "no_worker",
                    f"No worker polls the task queue {run.task_queue!r}; start one, or try again.",
                    source="gateway",
                    workflow_id=workflow_id,
                    run_id=run_id,
                    task_queue=run.task_queue,
                )
            if described.pending_workflow_task.attempt > 1:
                return await self._failing(workflow_id, run.execution.run_id)
        except Problem:  # what is wrong with Temporal, the call itself will tell
            return None
        return None

    async def _why_not_ready(self, workflow_id: str, run_id: str) -> Problem:
        """Why Temporal refuses to ask the workflow at all."""
        run = (await self._temporal.describe(workflow_id, run_id)).workflow_execution_info
        if run.HasField("close_time"):
            return Problem(
                "workflow_completed",
                f"The workflow {workflow_id!r} was closed before a worker could answer for it.",
                workflow_id=workflow_id,
                run_id=run_id,
            )
        failing = await self._failing(workflow_id, run.execution.run_id)
        return failing or gateway_problem("workflow_task_failing", workflow_id)

    async def _failing(self, workflow_id: str, run_id: str) -> Problem | None:
        """The failure of the workflow's last task; None when that was not its code's (a worker went away)."""
        response = await self._temporal.call(
            self._temporal.service.get_workflow_execution_history_reverse,
            GetWorkflowExecutionHistoryReverseRequest(
                namespace=self._temporal.namespace,
                execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
                maximum_page_size=RECENT_EVENTS,
            ),
            workflow_id,
            run_id,
        )
        for event in response.history.events:
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT:
                return None
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                failed = event.workflow_task_failed_event_attributes
                info = await self._temporal.failure(failed.failure)
                cause = WorkflowTaskFailedCause.Name(failed.cause).removeprefix("WORKFLOW_TASK_FAILED_CAUSE_")
                return Problem(
                    "workflow_task_failing",
                    f"The workflow cannot answer: its code fails, again and again: {info.message or cause}",
                    source="workflow",
                    workflow_id=workflow_id,
                    run_id=run_id,
                    failure=info,
                )
        return gateway_problem("workflow_task_failing", workflow_id)

    async def polled(self, task_queue: str) -> bool:
        """Whether a worker has lately asked this queue for workflow tasks."""
        now = time.monotonic()
        self._looks = {name: look for name, look in self._looks.items() if now - look[0] < LOOK_EVERY_SECONDS}
        if task_queue in self._looks:
            return self._looks[task_queue][1]
        response = await self._temporal.call(
            self._temporal.service.describe_task_queue,
            DescribeTaskQueueRequest(
                namespace=self._temporal.namespace,
                task_queue=TaskQueue(name=task_queue),
                task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
            ),
        )
        since = time.time() - POLLED_WITHIN_SECONDS
        seen = any(poller.last_access_time.ToMicroseconds() / 1e6 > since for poller in response.pollers)
        self._looks[task_queue] = (now, seen)
        return seen
