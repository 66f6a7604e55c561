"""One deadline for everything that a request asks of Temporal: RPC_TIMEOUT_SECONDS from its first call on."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class _Deadline:
    at: float | None = None
    """In the event loop's time; None before the first call."""


_current: ContextVar[_Deadline | None] = ContextVar("deadline", default=None)


def begin() -> None:
    """Begin a new request, with a deadline of its own."""
    _current.set(_Deadline())


def of_call(now: float, seconds: float) -> float:
    """When a call that begins now must end: at the request's deadline, or outside a request in `seconds`."""
    deadline = _current.get()
    if deadline is None:
        return now + seconds
    if deadline.at is None:
        deadline.at = now + seconds
    return deadline.at


@contextmanager
def paused() -> Iterator[None]:
    """Stop the deadline while the block waits. It bounds no call in the block."""
    deadline, began = _current.get(), asyncio.get_running_loop().time()
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)
        if deadline is not None and deadline.at is not None:
            deadline.at += asyncio.get_running_loop().time() - began
