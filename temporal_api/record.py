"""What `observe` logs and counts of one request. Whoever learns a part of it writes it down here."""

from typing import Any

import msgspec

from temporal_api.errors import Problem

_KEY = "temporal_api.record"


class Record(msgspec.Struct):
    """One request."""

    request_id: str
    root_path: str = ""
    """What the addresses in the answer begin with (ROOT_PATH)."""
    is_head: bool = False
    trace_id: str | None = None
    user: str | None = None
    workflow_id: str | None = None
    waited: bool = False
    """The answer waited for what happens, or is a stream. Its duration says nothing about the service's speed."""
    client_gone: bool = False
    """The caller left before there was an answer."""


def begin(scope: Any, record: Record) -> None:
    """Attach the record to the request."""
    scope[_KEY] = record


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
