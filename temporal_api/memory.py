"""Limits of what may be under way at once: requests (MAX_REQUESTS) and their memory (MAX_MEMORY_BYTES).

Memory that a request has used is given back: no cache keeps what callers send.
"""

import asyncio
import ctypes
import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, Self, TypeVar

from litestar import Litestar
from litestar.datastructures import URL
from litestar.types import ASGIApp, HTTPResponseBodyEvent, Receive, ReceiveMessage, Scope, Send

from temporal_api.errors import Overloaded

T = TypeVar("T")

WAIT_SECONDS = 2.0
"""How long a new request waits for memory that others free."""
PIECE_BYTES = 64 * 1024
"""Smaller bodies and answers are not counted. A larger answer is sent in pieces of this size, as the client reads."""
DECODED = 8
"""How many times its own size a body takes while it is decoded and sent to Temporal."""
WAITED = 2
"""The same, while its request waits for something to happen."""
RECEIVING = 0.5
"""The part of the memory that incomplete bodies may take, so that complete ones can always go on."""
TRIMMED_BYTES = 1024 * 1024
"""After more than this was held, freed small blocks are returned to the system."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BYTES = 128 * 1024
_CACHE = type(functools.lru_cache(bool))


class Memory:
    """Counts the bytes of bodies being received, events to be sent and answers not yet read, in this process."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.most = 0
        """The most that was held since freed blocks were last returned."""
        self.trimming = False
        self.freed = asyncio.Event()
        self._turns = asyncio.Lock()

    async def room(self, size: int, limit: float, seconds: float | None = WAIT_SECONDS) -> None:
        """Wait until `size` more bytes are within `limit`; without `seconds`, however long. Raises Overloaded."""
        try:
            async with asyncio.timeout(seconds):
                while self.held and self.held + size > limit:
                    await self.freed.wait()
        except TimeoutError:
            raise Overloaded from None

    async def turn(self) -> None:
        """Wait for a turn to work on a large body: one at a time, with other requests in between."""
        async with self._turns:
            await asyncio.sleep(0)

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Do work that takes long in a thread, one at a time: other requests run beside it."""
        async with self._turns:
            return await asyncio.to_thread(work)

    def trim(self) -> None:
        """Return freed small blocks to the system. glibc keeps them otherwise."""
        self.most, self.trimming = self.held, False
        _call_glibc("malloc_trim", 0)

    async def send(self, send: Send, message: HTTPResponseBodyEvent) -> None:
        """Send a large part of an answer in pieces as the client reads it: the server buffers only one piece."""
        content, more = memoryview(message["body"]), message.get("more_body", False)
        with Share(self) as share:
            share.size = len(content)
            for start in range(0, len(content), PIECE_BYTES):
                end = start + PIECE_BYTES
                more_body = more or end < len(content)
                await send({**message, "body": bytes(content[start:end]), "more_body": more_body})


class Share:
    """What one request holds of the memory, while the block runs."""

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._size:
            self.size = 0

    @property
    def size(self) -> int:
        """The bytes held. Setting it does not wait for room."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        memory = self._memory
        memory.held += size - self._size
        memory.most = max(memory.most, memory.held)
        if size < self._size:
            memory.freed.set()
            memory.freed.clear()
            if not memory.held and memory.most > TRIMMED_BYTES and not memory.trimming:
                memory.trimming = True
                asyncio.get_running_loop().call_later(1, memory.trim)  # when the last request has ended too
        self._size = size

    async def grow(self, size: int, part: float = 1.0, seconds: float | None = WAIT_SECONDS) -> None:
        """Hold `size` bytes once there is room within `part` of the limit. Raises Overloaded."""
        limit = int(self._memory.limit * part)
        size = min(size, limit)  # a request that needs more than the limit waits until it is alone
        if size > self._size:
            await self._memory.room(size - self._size, limit, seconds)
            self.size = size


def limits(most: int, memory: Memory) -> Callable[[ASGIApp], ASGIApp]:
    """Litestar middleware for the routes that have these limits. It raises Overloaded before a handler runs."""
    under_way = 0

    def middleware(app: ASGIApp) -> ASGIApp:
        async def limited(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal under_way
            # Waits and streams have a limit of their own.
            if under_way >= most and under_way - Litestar.from_scope(scope).state.services.waits.open >= most:
                raise Overloaded
            if memory.held >= memory.limit:
                await memory.room(1, memory.limit)
            under_way += 1
            try:
                if scope["method"] == "GET":  # type: ignore[typeddict-item] # every route is HTTP
                    await app(scope, receive, send)
                else:
                    with Share(memory) as share:
                        await app(scope, _counting(receive, memory, share), send)
            finally:
                under_way -= 1

        return limited

    return middleware


def _counting(receive: Receive, memory: Memory, share: Share) -> Receive:
    """Count a body as it arrives. Without room for more, stop reading, and soon refuse the request."""
    received, more = 0, True

    async def counting() -> ReceiveMessage:
        nonlocal received, more
        if not more:  # a request that waits listens for the caller to leave
            share.size = min(share.size, WAITED * received)
        message = await receive()
        if message["type"] == "http.request":
            received, more = received + len(message["body"]), message.get("more_body", False)
            if received > PIECE_BYTES:
                if more:
                    await share.grow(received, RECEIVING)
                else:
                    await share.grow(DECODED * received)
                    await memory.turn()
        return message

    return counting


def _call_glibc(function: str, *args: int) -> None:
    with suppress(AttributeError, OSError):  # another libc
        getattr(ctypes.CDLL(None), function)(*args)


def return_memory_at_once() -> None:
    """Make glibc return large freed blocks to the system at once.

    The values are glibc's defaults. Unless they are set, glibc raises them to the largest block ever freed, and keeps
    smaller ones.
    """
    for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        _call_glibc("mallopt", parameter, _LARGE_BYTES)


def turn_off_caches(app: Litestar) -> None:
    """Turn off Litestar's caches: their keys are paths and queries, so callers could fill them.

    As nearly every request names another id, this is also faster.
    """
    router = app.asgi_router
    router.handle_routing = _uncached(router.handle_routing)
    # Each module that imports a cached function has its own reference to it.
    places: list[ModuleType | type] = [module for name, module in sys.modules.items() if name.startswith("litestar.")]
    for place in (*places, URL):
        for name, value in list(vars(place).items()):
            if isinstance(value, _CACHE):
                setattr(place, name, _uncached(value))
            elif isinstance(value, classmethod) and isinstance(value.__func__, _CACHE):
                setattr(place, name, classmethod(_uncached(value.__func__)))


def _uncached(function: Any) -> Any:
    return function.__wrapped__
