"""`Record`: what is known of one request: what `observe` logs and counts, what Temporal is told, and the deadline.

Each module writes the facts that it learns.
"""

import asyncio
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

import msgspec

from temporal_api.tracing import NO_TRACE

_KEY = "temporal_api.record"
REFUSAL = "temporal_api.refusal"
"""Where a request's scope has the Problem that `observe` answers instead of routing it."""
_RANDOM = random.Random()  # noqa: S311 - the system's generator would take a tenth of the time of a read


def new_request_id() -> str:
    """A unique id for a request to this service or to Temporal. It is not secret."""
    return f"{_RANDOM.getrandbits(128):032x}"


class Record(msgspec.Struct):
    """One request."""

    request_id: str
    root_path: str = ""
    """The prefix of addresses in the answer (ROOT_PATH)."""
    is_head: bool = False
    trace: Mapping[str, str] = NO_TRACE
    """The W3C headers of its trace."""
    route: str = "unmatched"
    status: int = 0
    user: str | None = None
    workflow_id: str | None = None
    waited: bool = False
    """The answer waited for an event, or is a stream: its duration does not show the service's speed."""
    client_gone: bool = False
    """The caller left before there was an answer."""
    deadline: float | None = None
    """When its calls to Temporal must have ended, in the event loop's time. None before the first call."""
    is_waiting: bool = False

    def end_of_call(self, now: float, seconds: float) -> float:
        """When a call that begins now must end: `seconds` after the request's first one."""
        if self.is_waiting:
            return now + seconds
        if self.deadline is None:
            self.deadline = now + seconds
        return self.deadline

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Stop the deadline while the block waits. Each call in the block has its own."""
        began, self.is_waiting = asyncio.get_running_loop().time(), True
        try:
            yield
        finally:
            self.is_waiting = False
            if self.deadline is not None:
                self.deadline += asyncio.get_running_loop().time() - began

    @property
    def trace_id(self) -> str | None:
        """The id of that trace."""
        return self.trace["traceparent"].split("-")[1] if "traceparent" in self.trace else None


_current: ContextVar[Record | None] = ContextVar("record", default=None)


def begin(scope: Any, record: Record) -> None:
    """Attach the record to the request and to the current context."""
    scope[_KEY] = record
    _current.set(record)


def current_record() -> Record | None:
    """The record of the current request; None outside a request."""
    return _current.get()


def outside_request() -> Context:
    """The current context without the request: for what may outlive it."""
    context = copy_context()
    context.run(_current.set, None)
    return context


def record_of(scope: Any) -> Record:
    """The request's record. Every request has one, because `observe` is outermost."""
    record: Record = scope[_KEY]
    return record
