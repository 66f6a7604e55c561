"""Workers: whether one polls a task queue."""

import time

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

from temporal_api.temporal.client import Temporal

ASK_EVERY_SECONDS = 1.0
POLLED_WITHIN_SECONDS = 75.0
"""A worker's poll lasts a minute, and Temporal knows when it began; a dead worker stays listed for five."""


class Workers:
    """Knows which task queues have workers. Asks Temporal about each at most once a second."""

    def __init__(self, temporal: Temporal) -> None:
        self._temporal = temporal
        self._known: dict[str, tuple[float, bool]] = {}

    async def poll(self, task_queue: str) -> bool:
        """Whether a worker has recently polled this queue for workflow tasks."""
        now = time.monotonic()
        self._known = {name: known for name, known in self._known.items() if now - known[0] < ASK_EVERY_SECONDS}
        if task_queue in self._known:
            return self._known[task_queue][1]
        kind = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
        request = DescribeTaskQueueRequest(
            namespace=self._temporal.namespace, task_queue=TaskQueue(name=task_queue), task_queue_type=kind
        )
        response = await self._temporal.call(self._temporal.service.describe_task_queue, request)
        since = time.time() - POLLED_WITHIN_SECONDS
        polled = any(poller.last_access_time.ToMicroseconds() / 1e6 > since for poller in response.pollers)
        self._known[task_queue] = (now, polled)
        return polled
