"""A workflow's history, in pages and live. Both are sent in pieces, so that a long one never fills the memory."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from litestar import get
from litestar.params import QueryParameter
from litestar.types import Receive, Scope, Send
from msgspec import UNSET, Meta, UnsetType

from temporal_api import errors
from temporal_api.auth import APIRequest
from temporal_api.controllers.workflows.addressing import ADMIN, READ, PathWorkflow
from temporal_api.errors import Problem, invalid
from temporal_api.memory import PIECE_BYTES
from temporal_api.problems import responses
from temporal_api.record import record_of
from temporal_api.requests import JSONResponse
from temporal_api.sealing import NextPageToken, page_size, page_token
from temporal_api.services import CurrentServices
from temporal_api.temporal import endings, feeds
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.events import (
    Attributes,
    Event,
    EventId,
    EventName,
    EventTime,
    Tell,
    event_json,
    in_parts,
    temporal_json,
)
from temporal_api.temporal.history import Listing, list_events
from temporal_api.temporal.run import Status
from temporal_api.temporal.workflow import Workflow
from temporal_api.waiting import EventStream, LastEventId, cancel, disconnect, end_id, resume, sse


class HistoryResponse(msgspec.Struct):
    """A page of events."""

    items: Annotated[list[Event], Meta(description="The events of this page.")]
    next_page_token: NextPageToken


class WorkflowEvent(msgspec.Struct, omit_defaults=True):
    """The data of an event: an `Event` in a `history` event, `run_id` and `status` in a `done` event."""

    event_id: EventId | UnsetType = UNSET
    event_type: EventName | UnsetType = UNSET
    event_time: EventTime | UnsetType = UNSET
    attributes: Attributes | UnsetType = UNSET
    run_id: Annotated[str | UnsetType, Meta(description="The last run.")] = UNSET
    status: Annotated[Status | UnsetType, Meta(description="How it ended, as Temporal names it.")] = UNSET


class TemporalHistory(msgspec.Struct):
    """The whole history in Temporal's own JSON, as the SDKs' replayers read it."""

    events: Annotated[list[dict[str, Any]], Meta(description="Every event, unchanged.")]


@get(
    "/history",
    scope=READ,
    response_description="A page of events, or with `format=temporal` the whole history.",
    summary="A workflow's history, in pages",
    responses=responses(errors.WorkflowNotFound, errors.InvalidPageToken, errors.UriTooLong),
)
async def get_workflow_history(
    request: APIRequest,
    workflow: PathWorkflow,
    services: CurrentServices,
    order: Annotated[
        Literal["forward", "reverse"], QueryParameter(description="`forward`: oldest first. `reverse`: newest first.")
    ] = "forward",
    page_size: Annotated[int, page_size("events")] = 100,
    page_token: Annotated[str, page_token()] = "",
    form: Annotated[
        Literal["json", "temporal"],
        QueryParameter(name="format", description=f"`temporal`: the whole `TemporalHistory`. Needs {ADMIN}."),
    ] = "json",
) -> JSONResponse[HistoryResponse | TemporalHistory]:
    """Payloads are decoded. A page token is valid only for the same workflow, run and order.

    With `format=temporal`, the answer is the whole history in Temporal's own JSON, not decrypted, for replay tests.
    """
    temporal, bound = services.temporal, ("history", workflow.id, workflow.run_id, order)
    if form == "temporal":
        if ADMIN not in request.user.scopes:
            raise errors.InsufficientScope(f"format=temporal needs the scope {ADMIN}.", ADMIN)
        # Some generated clients send the defaults too.
        for name, is_set in (
            ("order", order != "forward"),
            ("page_size", page_size != 100),
            ("page_token", page_token),
        ):
            if is_set:
                raise invalid(name, "Expected none with format=temporal, which gives the whole history")
        events = list_events(workflow, cursor=b"", size=sys.maxsize, reverse=False)
        pieces = _pieces(temporal, events, temporal_json, b'{"events":[', lambda cursor: b"]}")
    else:
        cursor = services.page_tokens.unseal(page_token, *bound)
        events = list_events(workflow, cursor=cursor, size=page_size, reverse=order == "reverse")

        def end(cursor: bytes) -> bytes:
            return b'],"next_page_token":%b}' % msgspec.json.encode(services.page_tokens.seal(cursor, *bound))

        pieces = _pieces(temporal, events, event_json, b'{"items":[', end)
    first, second = await anext(pieces), await anext(pieces, None)  # a failure so far is still answered as a Problem
    if second is None:
        whole: Any = msgspec.Raw(first)
        return JSONResponse(whole)
    return _LongPage(first, second, pieces)


@get(
    "/events",
    scope=READ,
    summary="A workflow's history, live",
    media_type="text/event-stream",
    responses=responses(errors.WorkflowNotFound, errors.TooManyWaits, errors.ShuttingDown),
)
async def stream_workflow_events(
    request: APIRequest, workflow: PathWorkflow, services: CurrentServices, last_event_id: LastEventId = None
) -> EventStream[WorkflowEvent]:
    """Server-sent events: a `history` event for each `Event`, then `done` with `run_id` and `status`.

    The stream follows continue-as-new, unless `run_id` pins a run.
    """
    run_id, seen = resume(last_event_id)
    if run_id and workflow.run_id not in ("", run_id):
        raise invalid("Last-Event-ID", "Expected an event of the run that run_id pins")
    run = await workflow.run(run_id or workflow.run_id).describe()
    if seen > run.history_length + (not run.is_open):  # `done` has the number after the last event's
        raise invalid("Last-Event-ID", f"Expected an event of this run, which has {run.history_length}")
    watched, follow = workflow.run(run.run_id), not workflow.run_id
    if seen > run.history_length and not (follow and (await endings.read(watched)).new_run_id):
        return EventStream(services.waits, None)
    events = _stream(watched, seen, run.history_length, run.history_bytes, follow=follow)
    return EventStream(services.waits, events)


async def _pieces(
    temporal: Temporal, listing: Listing, tell: Tell, begin: bytes, end: Callable[[bytes], bytes]
) -> AsyncGenerator[bytes, None]:
    """The answer's JSON in pieces: `begin`, the events, and `end(cursor)` with the cursor of the next page."""
    piece, comma, cursor = bytearray(begin), b"", b""
    async with aclosing(listing):
        async for events, cursor in listing:  # noqa: B007 - the last cursor is needed
            for some in in_parts(events):
                for event in some:
                    piece += comma + msgspec.json.encode(await tell(temporal, event))
                    comma = b","
                    if len(piece) >= PIECE_BYTES:
                        yield bytes(piece)
                        piece.clear()
                        await asyncio.sleep(0)  # one large event may fill a piece
                await asyncio.sleep(0)  # let other requests run
    yield bytes(piece) + end(cursor)


class _LongPage(JSONResponse[HistoryResponse | TemporalHistory]):
    """A page of more than two pieces. A failure after the first two breaks the answer off."""

    def __init__(self, first: bytes, second: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self._begin = first + second
        self._rest = rest

    def to_asgi_response(self, app: object, request: object, *, status_code: int | None = None, **_: Any) -> Any:
        """The page as an ASGI application."""
        return self._send_all

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        begin, self._begin = self._begin, b""
        gone = asyncio.ensure_future(disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": begin, "more_body": True})
            if not (record := record_of(scope)).is_head:
                with record.waiting():  # the caller may take their time; each call has its own
                    async for piece in self._rest:
                        if gone.done():
                            return
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await cancel(gone)
            await self._rest.aclose()


async def _stream(
    run: Workflow, seen: int, length: int, history_bytes: int, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    while True:
        async for events in feeds.events(run, seen, length, history_bytes):
            seen, told = events[-1].event_id, bytearray()
            try:
                for event in events:
                    event_id = f"{run.run_id}:{event.event_id}"
                    told += sse(await event_json(run.temporal, event), event="history", event_id=event_id)
                    if len(told) >= PIECE_BYTES:
                        yield bytes(told)
                        told.clear()
            except Problem:  # send the events before the one that failed
                yield bytes(told)
                raise
            yield bytes(told)
            del events, event, told  # the next may come in hours
        ending = await endings.wait(run, follow=False)
        if not (follow and ending.new_run_id):
            break
        run, seen, length, history_bytes = run.run(ending.new_run_id), 0, 0, 0
    yield sse({"run_id": run.run_id, "status": ending.status}, event="done", event_id=end_id(run.run_id, seen))
