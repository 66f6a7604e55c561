"""The health of Temporal and of the workers, for the health endpoints."""

import asyncio
import logging
import time
from collections.abc import Mapping

from temporal_api.auth import Verifier
from temporal_api.errors import Problem
from temporal_api.temporal.client import Temporal

CHECK_TIMEOUT_SECONDS = 2.0
CHECK_EVERY_SECONDS = 1.0

log = logging.getLogger(__name__)


class HealthCheck:
    """Asks Temporal at most once a second, however many probes come at once."""

    def __init__(self, temporal: Temporal, queues: Mapping[str, str], verifier: Verifier) -> None:
        """`queues`: the task queues to check for workers, by their names in the answer."""
        self._temporal = temporal
        self._queues = queues
        self._verifier = verifier
        self._found: dict[str, str] = {}
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def check(self, every: float = CHECK_EVERY_SECONDS) -> dict[str, str]:
        """The state of each part, at most `every` seconds old. `temporal` and `auth` are "healthy" or the error."""
        async with self._asking:
            if time.monotonic() - self._asked_at >= every:
                await self._ask()
                self._asked_at = time.monotonic()
        return {**self._found, "auth": "healthy" if self._verifier.keys.known else "unhealthy: no keys yet"}

    async def _ask(self) -> None:
        temporal, workers = "unhealthy: no answer in time", dict.fromkeys(self._queues, "unknown")
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await self._temporal.check()
                temporal = "healthy"
                for name, queue in self._queues.items():
                    workers[name] = "polling" if await self._temporal.has_worker(queue) else "none"
        except (TimeoutError, Problem) as error:  # if only the question about workers fails, Temporal is healthy
            if temporal != "healthy" and isinstance(error, Problem):
                temporal = f"unhealthy: {error.code}"
        if (temporal == "healthy") != (self._found.get("temporal", "healthy") == "healthy"):
            log.warning("%s: temporal is %s", "ready" if temporal == "healthy" else "not ready", temporal)
        self._found = {"temporal": temporal, **workers}
