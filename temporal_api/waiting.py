"""The HTTP side of things that take time: `Prefer: wait`, how many may wait, and server-sent events.

Whatever waits here ends by itself when its caller goes away, when its time is over, or when the service is told to end.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from litestar import Request

from temporal_api.errors import Problem

T = TypeVar("T")

KEEP_ALIVE_SECONDS = 15.0
RETRY_MILLISECONDS = 1000
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)


def preferred_wait(request: Request[Any, Any, Any], most: float) -> float:
    """Seconds the caller would wait (RFC 7240), `most` at most; 0 without a preference. A strange one is ignored."""
    for value in request.headers.getall("prefer", []):
        if found := _WAIT.search(value):
            return min(float(found[1]), most)
    return 0.0


def applied(seconds: float) -> dict[str, str]:
    """The header that says which wait was honoured."""
    return {"Preference-Applied": f"wait={seconds:g}"} if seconds else {}


class Waits:
    """The open waits and streams of this process: at most `limit`, and all of them end when `draining` is set."""

    def __init__(self, limit: int) -> None:
        self.draining = asyncio.Event()
        self._limit = limit
        self._open = 0
        self._shared: dict[Hashable, tuple[asyncio.Task[Any], int]] = {}

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One place among the open waits. Raises Problem: `too_many_waits`, `shutting_down`."""
        if self.draining.is_set():
            raise Problem("shutting_down", "This replica is ending; ask again, another one will answer.")
        if self._open >= self._limit:
            raise Problem("too_many_waits", "Too many callers wait here; try again, or ask without waiting.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def within(self, seconds: float, work: Coroutine[Any, Any, T]) -> T | None:
        """What the work gives, or None (and the work is cancelled) when the time is over or the service ends."""
        async with self.slot():
            task = asyncio.ensure_future(work)
            ending = asyncio.ensure_future(self.draining.wait())
            try:
                await asyncio.wait({task, ending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                return task.result() if task.done() else None
            finally:
                await cancel(task, ending)

    async def shared(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the work of that key gives; callers at the same time share one, which ends with the last of them."""
        task, users = self._shared.get(key) or (asyncio.ensure_future(make()), 0)
        self._shared[key] = (task, users + 1)
        try:
            return await asyncio.shield(task)
        finally:
            task, users = self._shared[key]
            if users > 1:
                self._shared[key] = (task, users - 1)
            else:
                del self._shared[key]
                await cancel(task)


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel and see them end."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task
