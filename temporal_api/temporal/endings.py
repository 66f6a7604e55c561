"""How a run ended, or will: its last event, its result or failure, and the run that goes on after it."""

import asyncio
import functools

import msgspec
from msgspec import Raw
from temporalio.api.history.v1 import HistoryEvent

from temporal_api.temporal.client import Temporal
from temporal_api.temporal.failures import FailureInfo
from temporal_api.temporal.history import CLOSING, page, patient


class End(msgspec.Struct):
    """How a run ended. A run that failed is a 200 that says so. `new_run_id`: the run that a pinned one went on as."""

    workflow_id: str
    run_id: str
    status: str
    result: Raw
    failure: FailureInfo | None
    new_run_id: str | None


class Endings:
    """Ends of runs; all who wait for one run share one long poll, which ends with the last of them."""

    def __init__(self, temporal: Temporal) -> None:
        self._temporal = temporal
        self._polls: dict[tuple[str, str], tuple[asyncio.Task[HistoryEvent], int]] = {}

    async def end(self, workflow_id: str, run_id: str) -> End:
        """How a closed run ended."""
        event = (await page(self._temporal, workflow_id, run_id, closing_only=True)).events[-1]
        return await self._told(workflow_id, run_id, event)

    async def wait(self, workflow_id: str, run_id: str, *, follow: bool) -> End:
        """How the run ends, however long that takes; with `follow`, the last of its chain."""
        while True:
            end = await self._told(workflow_id, run_id, await self._shared(workflow_id, run_id))
            if not (follow and end.new_run_id):
                return end
            run_id = end.new_run_id

    async def _told(self, workflow_id: str, run_id: str, event: HistoryEvent) -> End:
        failed = event.workflow_execution_failed_event_attributes
        attributes = getattr(event, event.WhichOneof("attributes") or "", None)
        return End(
            workflow_id,
            run_id,
            CLOSING[event.event_type],
            await self._temporal.result(event.workflow_execution_completed_event_attributes.result.payloads),
            await self._temporal.failure(failed.failure) if failed.HasField("failure") else None,
            str(getattr(attributes, "new_execution_run_id", "")) or None,
        )

    async def _shared(self, workflow_id: str, run_id: str) -> HistoryEvent:
        key = (workflow_id, run_id)
        task, users = self._polls.get(key) or (asyncio.ensure_future(self._poll(workflow_id, run_id)), 0)
        self._polls[key] = (task, users + 1)
        try:
            return await asyncio.shield(task)
        finally:
            task, users = self._polls[key]
            if users > 1:
                self._polls[key] = (task, users - 1)
            else:
                del self._polls[key]
                task.cancel()

    async def _poll(self, workflow_id: str, run_id: str) -> HistoryEvent:
        token = b""
        while True:
            read = functools.partial(
                page, self._temporal, workflow_id, run_id, token=token, wait=True, closing_only=True
            )
            found = await patient(read)
            if found.events:
                return found.events[-1]
            token = found.token
