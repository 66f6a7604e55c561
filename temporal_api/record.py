"""`Record`: the facts about one request that `observe` logs and counts, and that are sent to Temporal.

Each module writes the facts that it learns.
"""

import random
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import msgspec

from temporal_api.errors import Problem
from temporal_api.tracing import NO_TRACE

_KEY = "temporal_api.record"
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


def record_of(scope: Any) -> Record:
    """The request's record. Every request has one, because `observe` is outermost."""
    record: Record = scope[_KEY]
    return record


_REFUSAL = "temporal_api.refusal"


def refuse(scope: Any, problem: Problem) -> None:
    """Mark a request to be answered with this problem instead of being routed."""
    scope[_REFUSAL] = problem


def refusal_of(scope: Any) -> Problem | None:
    """The problem of a request marked by `refuse`."""
    refusal: Problem | None = scope.get(_REFUSAL)
    return refusal
