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
    """Give the request that begins here a deadline of its own."""
    _current.set(_Deadline())


def of_call(now: float, seconds: float) -> float:
    """When a call that begins now must have ended: at the request's deadline; outside a request, in `seconds`."""
    deadline = _current.get()
    if deadline is None:
        return now + seconds
    if deadline.at is None:
        deadline.at = now + seconds
    return deadline.at


@contextmanager
def paused() -> Iterator[None]:
    """Wait for what takes its time: the deadline stands still meanwhile, and bounds none of the calls in here."""
    deadline, began = _current.get(), asyncio.get_running_loop().time()
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)
        if deadline is not None and deadline.at is not None:
            deadline.at += asyncio.get_running_loop().time() - began
