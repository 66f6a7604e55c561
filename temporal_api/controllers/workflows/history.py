"""A workflow's history: in pages, and live. Both go out as they are read, in pieces, each when the last one is read."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from litestar import get
from litestar.params import QueryParameter
from litestar.types import Receive, Scope, Send
from msgspec import UNSET, Meta, UnsetType

from temporal_api import deadline
from temporal_api.auth import APIRequest
from temporal_api.controllers.workflows.addressing import ONE, READ, PathWorkflow
from temporal_api.errors import InvalidPageToken, Problem, ShuttingDown, TooManyWaits, WorkflowNotFound, invalid
from temporal_api.memory import PIECE_BYTES
from temporal_api.problems import responses
from temporal_api.record import record_of
from temporal_api.requests import JSONResponse
from temporal_api.sealing import LONGEST_TOKEN, NextPageToken
from temporal_api.services import CurrentServices, Services
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.events import Attributes, Event, EventId, EventName, EventTime, event_json, in_parts
from temporal_api.temporal.history import Listing, list_events
from temporal_api.temporal.run import Status
from temporal_api.temporal.workflow import Workflow
from temporal_api.waiting import EventStream, LastEventId, cancel, disconnect, resume, sse


class HistoryResponse(msgspec.Struct):
    """A page of events."""

    items: Annotated[list[Event], Meta(description="The events of this page.")]
    next_page_token: NextPageToken


class WorkflowEvent(msgspec.Struct, omit_defaults=True):
    """What an event of the stream has as its data: `history` has what an `Event` has, `done` tells the end."""

    event_id: EventId | UnsetType = UNSET
    event_type: EventName | UnsetType = UNSET
    event_time: EventTime | UnsetType = UNSET
    attributes: Attributes | UnsetType = UNSET
    run_id: Annotated[str | UnsetType, Meta(description="The last run.")] = UNSET
    status: Annotated[Status | UnsetType, Meta(description="How it ended, in Temporal's words.")] = UNSET


@get(
    f"{ONE}/history",
    scope=READ,
    operation_id="getWorkflowHistory",
    summary="A workflow's history, in pages",
    responses=responses(WorkflowNotFound, InvalidPageToken),
)
async def get_history(
    workflow: PathWorkflow,
    services: CurrentServices,
    order: Annotated[Literal["forward", "reverse"], QueryParameter(description="From which end.")] = "forward",
    page_size: Annotated[int, QueryParameter(ge=1, le=1000, description="Events a page, at most.")] = 100,
    page_token: Annotated[
        str, QueryParameter(max_length=LONGEST_TOKEN, description="`next_page_token` of the page before.")
    ] = "",
) -> JSONResponse[HistoryResponse]:
    """Payloads are decoded. A page token is good for this workflow, run and order only."""
    bound = ("history", workflow.id, workflow.run_id, order)
    cursor = services.page_tokens.unseal(page_token, *bound)
    events = list_events(workflow, cursor=cursor, size=page_size, reverse=order == "reverse")
    pieces = _page(services.temporal, events, lambda cursor: services.page_tokens.seal(cursor, *bound))
    first, second = await anext(pieces), await anext(pieces, None)  # a failure so far is an answer of its own
    if second is None:
        whole: Any = msgspec.Raw(first)
        return JSONResponse(whole)
    return _LongPage(first, second, pieces)


@get(
    f"{ONE}/events",
    scope=READ,
    operation_id="streamWorkflowEvents",
    summary="A workflow's history, live",
    media_type="text/event-stream",
    responses=responses(WorkflowNotFound, TooManyWaits, ShuttingDown),
)
async def stream_events(
    request: APIRequest,
    workflow: PathWorkflow,
    services: CurrentServices,
    last_event_id: LastEventId = None,
) -> EventStream[WorkflowEvent]:
    """Server-sent events: `history`, each an `Event` as in the history, then `done` with `run_id` and `status`.

    Continue-as-new is followed, unless `run_id` pins a run.
    """
    run_id, seen = resume(last_event_id)
    if run_id and workflow.run_id not in ("", run_id):
        raise invalid("Last-Event-ID", "Expected an event of the run that run_id pins")
    run = await workflow.run(run_id or workflow.run_id).describe()
    if seen > run.history_length:
        raise invalid("Last-Event-ID", f"Expected an event of this run, which has {run.history_length}")
    watched, follow = workflow.run(run.run_id), not workflow.run_id
    events = _stream(services, watched, seen, run.history_length, follow=follow)
    return EventStream(services.waits, events, request.user)


async def _page(
    temporal: Temporal, listing: Listing, seal: Callable[[bytes], str | None]
) -> AsyncGenerator[bytes, None]:
    """A HistoryResponse as JSON, in pieces."""
    piece, comma, cursor = bytearray(b'{"items":['), b"", b""
    async with aclosing(listing):
        async for events, cursor in listing:  # noqa: B007 - the last one is needed
            for some in in_parts(events):
                for event in some:
                    piece += comma + msgspec.json.encode(await event_json(temporal, event))
                    comma = b","
                    if len(piece) >= PIECE_BYTES:
                        yield bytes(piece)
                        piece.clear()
                        await asyncio.sleep(0)  # a piece may be of one large event
                await asyncio.sleep(0)  # others are served in between
    yield bytes(piece) + b'],"next_page_token":' + msgspec.json.encode(seal(cursor)) + b"}"


class _LongPage(JSONResponse[HistoryResponse]):
    """A page of which more than the first pieces is still to be read. What fails now breaks the answer off."""

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
            if not record_of(scope).is_head:
                with deadline.paused():  # the caller may take their time; each call has its own
                    async for piece in self._rest:
                        if gone.done():
                            return
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await cancel(gone)
            await self._rest.aclose()


async def _stream(
    services: Services, run: Workflow, seen: int, length: int, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    while True:
        async for events in services.feeds.events(run, seen, length):
            told = bytearray()
            try:
                for event in events:
                    data = await event_json(services.temporal, event)
                    told += sse(data, event="history", event_id=f"{run.run_id}:{event.event_id}")
                    if len(told) >= PIECE_BYTES:
                        yield bytes(told)
                        told.clear()
            except Problem:  # of one event; those before it are not lost with it
                yield bytes(told)
                raise
            yield bytes(told)
        ending = await services.endings.wait(run, follow=False)
        if not (follow and ending.new_run_id):
            break
        run, seen, length = run.run(ending.new_run_id), 0, 0
    yield sse({"run_id": run.run_id, "status": ending.status}, event="done")
