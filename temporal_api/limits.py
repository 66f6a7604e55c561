"""How much may be under way at once: requests (MAX_REQUESTS), and what they hold (MAX_MEMORY_BYTES)."""

import time
from collections.abc import Callable

from litestar import Litestar
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from temporal_api.errors import Overloaded
from temporal_api.memory import PIECE_BYTES, Memory, Share
from temporal_api.record import record_of

DECODED = 8
"""A body's bytes come to so many times their number while they are decoded and handed on to Temporal."""
RECEIVING = 0.5
"""The part of the memory that unfinished bodies may take: what is whole can always go on."""
SLOW_SECONDS = 2.0
"""A request that takes longer costs later ones `COST` places, and each that is quicker gives one back."""
COST = 4
FEWEST = 50
"""Places that there always are, if MAX_REQUESTS is not less."""


def limits(most: int, memory: Memory) -> Callable[[ASGIApp], ASGIApp]:
    """Litestar's middleware for what may be refused. It raises Overloaded before a handler runs."""
    under_way, allowed = 0, most

    def middleware(app: ASGIApp) -> ASGIApp:
        async def limited(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal under_way, allowed
            if under_way >= allowed and under_way - _waits(scope) >= allowed:
                raise Overloaded
            if memory.is_full:
                await memory.room(1, memory.limit)
            under_way += 1
            began = time.monotonic()
            try:
                if scope["method"] == "GET":  # type: ignore[typeddict-item] # every route is HTTP
                    await app(scope, receive, send)
                else:
                    with memory.share() as share:
                        await app(scope, _counting(receive, memory, share), send)
            finally:
                under_way -= 1
                if time.monotonic() - began < SLOW_SECONDS:
                    allowed = min(most, allowed + 1)
                elif not record_of(scope).waited:  # so the queue before a slow Temporal is short, and few wait long
                    allowed = max(min(most, FEWEST), allowed - COST)

        return limited

    return middleware


def _waits(scope: Scope) -> int:
    """How many requests only wait: they have a limit of their own."""
    count: int = Litestar.from_scope(scope).state.services.waits.open
    return count


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
