"""What one request's log line and metrics are made of, written by whoever learns it."""

from typing import Any

import msgspec

_KEY = "temporal_api.record"


class Record(msgspec.Struct):
    """One request as `observe` tells of it."""

    request_id: str
    is_head: bool = False
    user: str | None = None
    workflow_id: str | None = None
    waited: bool = False
    """The caller asked to wait, or streams: the time it took says nothing about the service."""
    client_gone: bool = False
    """The caller left before there was an answer."""


def begin(scope: Any, record: Record) -> None:
    """Attach the record to the request."""
    scope[_KEY] = record


def record_of(scope: Any) -> Record:
    """The request's record; every request has one, as `observe` is outermost."""
    record: Record = scope[_KEY]
    return record
