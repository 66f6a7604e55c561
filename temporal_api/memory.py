"""How much may be under way at once: requests (MAX_REQUESTS), and the memory that they take (MAX_MEMORY_BYTES)."""

import asyncio
import ctypes
import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, Self

from litestar import Litestar
from litestar.datastructures import URL
from litestar.types import ASGIApp, HTTPResponseBodyEvent, Receive, ReceiveMessage, Scope, Send

from temporal_api.errors import Overloaded

WAIT_SECONDS = 2.0
"""How long a newcomer waits for others to give theirs back."""
PIECE_BYTES = 64 * 1024
"""What is smaller is not counted. What is larger goes out in pieces of this size, each when the one before is read."""
DECODED = 8
"""A body's bytes come to so many times their number while they are decoded and handed on to Temporal."""
RECEIVING = 0.5
"""The part of the memory that unfinished bodies may take: what is whole can always go on."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BYTES = 128 * 1024
_CACHE = type(functools.lru_cache(bool))


class Memory:
    """Bytes of bodies being received, of histories being told and of answers not yet read, of the whole process."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._freed = asyncio.Event()
        self._turns = asyncio.Lock()

    def share(self) -> "Share":
        """What one request holds; use it as a context manager."""
        return Share(self)

    @property
    def is_full(self) -> bool:
        """Newcomers have to wait."""
        return self.held >= self.limit

    async def room(self, size: int, limit: float, seconds: float = WAIT_SECONDS) -> None:
        """Wait until so many bytes more are within that limit. Raises Overloaded."""
        try:
            async with asyncio.timeout(seconds):
                while self.held and self.held + size > limit:
                    await self._freed.wait()
        except TimeoutError:
            raise Overloaded from None

    async def turn(self) -> None:
        """Wait for one's turn to work on something large: one at a time, and others are served in between."""
        async with self._turns:
            await asyncio.sleep(0)

    def change(self, by: int) -> None:
        """Count so many more bytes, or fewer."""
        self.held += by
        if by < 0:
            self._freed.set()
            self._freed.clear()

    async def send(self, send: Send, message: HTTPResponseBodyEvent) -> None:
        """Send a large part of an answer as it is read, so that the server never holds more than a piece of it."""
        content, more = memoryview(message["body"]), message.get("more_body", False)
        with self.share() as share:
            share.size = len(content)
            for start in range(0, len(content), PIECE_BYTES):
                end = start + PIECE_BYTES
                more_body = more or end < len(content)
                await send({**message, "body": bytes(content[start:end]), "more_body": more_body})


class Share:
    """What one request holds of the memory."""

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
        """Bytes that are held; set it to what was taken without asking."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._memory.change(size - self._size)
        self._size = size

    async def grow(self, size: int, part: float = 1.0, seconds: float = WAIT_SECONDS) -> None:
        """Hold so many bytes once there is room within that part of the limit. Raises Overloaded."""
        limit = int(self._memory.limit * part)
        size = max(self._size, min(size, limit))  # who needs more than there is waits until it is alone
        await self._memory.room(size - self._size, limit, seconds)
        self.size = size


def limits(most: int, memory: Memory) -> Callable[[ASGIApp], ASGIApp]:
    """Litestar's middleware for what may be refused. It raises Overloaded before a handler runs."""
    under_way = 0

    def middleware(app: ASGIApp) -> ASGIApp:
        async def limited(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal under_way
            # Those that only wait have a limit of their own.
            if under_way >= most and under_way - Litestar.from_scope(scope).state.services.waits.open >= most:
                raise Overloaded
            if memory.is_full:
                await memory.room(1, memory.limit)
            under_way += 1
            try:
                if scope["method"] == "GET":  # type: ignore[typeddict-item] # every route is HTTP
                    await app(scope, receive, send)
                else:
                    with memory.share() as share:
                        await app(scope, _counting(receive, memory, share), send)
            finally:
                under_way -= 1

        return limited

    return middleware


def _counting(receive: Receive, memory: Memory, share: Share) -> Receive:
    """Count a body as it comes. Without room for more of it the caller is not read from, and soon refused."""
    received = 0

    async def counting() -> ReceiveMessage:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message["body"])
            if received > PIECE_BYTES:
                if message["more_body"]:
                    await share.grow(received, RECEIVING)
                else:
                    await share.grow(DECODED * received)
                    await memory.turn()
        return message

    return counting


def give_back_at_once() -> None:
    """Let large memory that is free again go back to the system.

    These are glibc's defaults; but unless they are set, it raises them to the largest piece that was ever freed, and
    keeps what is smaller.
    """
    with suppress(AttributeError, OSError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


def turn_off_caches(app: Litestar) -> None:
    """Let Litestar remember nothing of a request: its caches' keys are paths and queries, so callers would fill them.

    Nearly each request names another id, so this is quicker, too.
    """
    router = app.asgi_router
    router.handle_routing = _uncached(router.handle_routing)
    # Each module that imports a function has a name of its own for it.
    places: list[ModuleType | type] = [module for name, module in sys.modules.items() if name.startswith("litestar.")]
    for place in (*places, URL):
        for name, value in list(vars(place).items()):
            if isinstance(value, _CACHE):
                setattr(place, name, _uncached(value))
            elif isinstance(value, classmethod) and isinstance(value.__func__, _CACHE):
                setattr(place, name, classmethod(_uncached(value.__func__)))


def _uncached(function: Any) -> Any:
    return function.__wrapped__
