"""What is known of one request: logged and counted by `observe`, and told to Temporal.

Whoever learns a part of it writes it down here.
"""

import random
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import msgspec

from temporal_api.errors import Problem
from temporal_api.tracing import NO_TRACE

_KEY = "temporal_api.record"
_RANDOM = random.Random()  # noqa: S311 - to ask the system for each id takes a tenth of the time of a read


def new_request_id() -> str:
    """An id for a request, to this service or to Temporal: unique, and no secret."""
    return f"{_RANDOM.getrandbits(128):032x}"


class Record(msgspec.Struct):
    """One request."""

    request_id: str
    root_path: str = ""
    """What the addresses in the answer begin with (ROOT_PATH)."""
    is_head: bool = False
    trace: Mapping[str, str] = NO_TRACE
    """W3C's headers of the trace that it is part of."""
    route: str = "unmatched"
    status: int = 0
    user: str | None = None
    workflow_id: str | None = None
    waited: bool = False
    """The answer waited for what happens, or is a stream. Its duration says nothing about the service's speed."""
    client_gone: bool = False
    """The caller left before there was an answer."""

    @property
    def trace_id(self) -> str | None:
        """The id of that trace."""
        return self.trace["traceparent"].split("-")[1] if "traceparent" in self.trace else None


_current: ContextVar[Record | None] = ContextVar("record", default=None)


def begin(scope: Any, record: Record) -> None:
    """Attach the record to the request, and to what is done for it."""
    scope[_KEY] = record
    _current.set(record)


def current_record() -> Record | None:
    """The record of the request that this is done for; None for what no request asked for."""
    return _current.get()


def record_of(scope: Any) -> Record:
    """The request's record. Every request has one, because `observe` is outermost."""
    record: Record = scope[_KEY]
    return record


_REFUSAL = "temporal_api.refusal"


def refuse(scope: Any, problem: Problem) -> None:
    """Mark a request that is to be answered with this problem, and not to be routed."""
    scope[_REFUSAL] = problem


def refusal_of(scope: Any) -> Problem | None:
    """Why the request is not to be routed, if so."""
    refusal: Problem | None = scope.get(_REFUSAL)
    return refusal
