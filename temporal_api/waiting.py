"""What takes time, over HTTP: `Prefer: wait` and server-sent events.

Every wait and stream ends when the caller leaves, its time is over or the service shuts down.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Response
from litestar.params import HeaderParameter
from litestar.types import Receive, Scope, Send

from temporal_api.auth import APIRequest, User
from temporal_api.errors import Problem, ShuttingDown, TooManyWaits, invalid
from temporal_api.mistakes import EVENT_ID
from temporal_api.problems import encode_problem
from temporal_api.record import Record, record_of
from temporal_api.requests import JSONResponse

T = TypeVar("T")

LONGEST_HEADER = 4_000
RETRY_AFTER_SECONDS = "2"
"""How soon to ask again for a result that is not there yet."""
KEEP_ALIVE_SECONDS = 15.0
LAST_SEND_SECONDS = 1.0
# Without an empty line: after one, some clients see an event without data, which is no JSON.
_RETRY = b"retry: 1000\n"
_COMMENT = b": \n"
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),  # a proxy that compressed it would hold events back
    (b"x-accel-buffering", b"no"),
]
# Or another preference's quoted string, in which no preference begins.
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d+)"?\s*(?=$|[,;])|"(?:[^"\\]|\\.)*"?', re.IGNORECASE)


def long_header(name: str, description: str, pattern: str) -> HeaderParameter:
    """Declare a header that may be sent in several lines. What does not match the pattern is no mistake."""
    told = {"maxLength": LONGEST_HEADER, "pattern": pattern}
    return HeaderParameter(name=name, description=description, schema_extra=told)


Prefer = Annotated[
    str | None,
    long_header(
        "Prefer",
        "`wait=SECONDS`: wait at most that long for the answer (RFC 7240).",
        r'(^|[,;])\s*[Ww][Aa][Ii][Tt]\s*=\s*"?\d+"?\s*($|[,;])',
    ),
]
LastEventId = Annotated[
    str | None,
    # The 204 is not declared as a response: generated clients would type each event as optional.
    HeaderParameter(
        name="Last-Event-ID",
        description="Continue after the event with this `id`. After `done`, the answer is 204: there are no more.",
        pattern=EVENT_ID,
    ),
]


def preferred_wait(request: APIRequest, most: float) -> float | None:
    """Read how many seconds the caller prefers to wait, at most `most` (RFC 7240); None without a preference."""
    found = next(filter(None, _WAIT.findall(joined(request, "Prefer"))), None)
    return min(float(found), most) if found else None


def preference_applied(request: APIRequest, seconds: float | None) -> dict[str, str]:
    """Make the header that confirms the wait. Without a wait, or with no place left for one, there is none."""
    applied = seconds and record_of(request.scope).waited
    return {"Preference-Applied": f"wait={seconds:g}"} if applied else {}


class Waits:
    """The open waits and streams of this process, of all users and of each. Setting `draining` ends them all."""

    def __init__(self, limit: int, limit_per_user: int) -> None:
        self.draining = asyncio.Event()
        self.open = 0
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._open_of: Counter[str] = Counter()

    def _is_full(self, user: User) -> bool:
        return self.open >= self._limit or self._open_of[user.sub] >= self._limit_per_user

    @contextmanager
    def slot(self, user: User) -> Iterator[None]:
        """Take one of the places. Raises TooManyWaits or ShuttingDown."""
        if self.draining.is_set():
            raise ShuttingDown
        if self._is_full(user):
            raise TooManyWaits
        self.open += 1
        self._open_of[user.sub] += 1
        try:
            yield
        finally:
            self.open -= 1
            self._open_of[user.sub] -= 1
            if not self._open_of[user.sub]:
                del self._open_of[user.sub]

    async def within(
        self, request: APIRequest, seconds: float | None, work: Callable[[], Coroutine[Any, Any, T]]
    ) -> T | None:
        """Run the work for at most `seconds`; return its result, or None when the time is over.

        Without a free place it returns None at once: a wait is only a preference (RFC 7240 4.3).
        """
        record = record_of(request.scope)
        record.waited = bool(seconds) and not (self.draining.is_set() or self._is_full(request.user))
        if not (seconds and record.waited):
            return None
        with self.slot(request.user), record.waiting():
            working = asyncio.ensure_future(work())
            over = asyncio.ensure_future(self.over(request.receive, seconds))
            try:
                await asyncio.wait({working, over}, return_when=asyncio.FIRST_COMPLETED)
                record.client_gone = over.done() and over.result()
                return working.result() if working.done() else None
            finally:
                await cancel(working, over)

    async def over(self, receive: Receive, seconds: float) -> bool:
        """Wait until the caller leaves, the time is over or the service shuts down. Return whether the caller left."""
        gone = asyncio.ensure_future(disconnect(receive))
        draining = asyncio.ensure_future(self.draining.wait())
        try:
            timeout = max(0, min(31_536_000, seconds))  # a year: event loops take no timer without end
            await asyncio.wait({gone, draining}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            return gone.done()
        finally:
            await cancel(gone, draining)


async def disconnect(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task


def joined(request: APIRequest, header: str) -> str:
    """Read a header that may be sent in several lines. Raises ValidationError."""
    value = ",".join(request.headers.getall(header, []))
    if len(value) > LONGEST_HEADER:
        raise invalid(header, f"Expected at most {LONGEST_HEADER} characters")
    return value


def sse(data: object, *, event: str, event_id: str | None = None) -> bytes:
    """Encode a server-sent event (WHATWG HTML 9.2) with its data on one line."""
    head = b"" if event_id is None else f"id: {event_id}\n".encode()
    # JSON that a caller sent has the caller's line breaks. They never stand inside a string: spaces mean the same.
    line = msgspec.json.encode(data).replace(b"\n", b" ").replace(b"\r", b" ")
    return head + f"event: {event}\ndata: ".encode() + line + b"\n\n"


def resume(last_event_id: str | None) -> tuple[str, int]:
    """Read the run and the number of the event after which a stream continues."""
    run_id, _, number = (last_event_id or ":0").rpartition(":")
    return run_id, int(number)


def end_id(run_id: str, last: int) -> str:
    """The id of `done`: the number after the run's last event."""
    return f"{run_id}:{last + 1}"


class EventStream(Response[T]):
    """Server-sent events of `T`, until they end, the token expires, the service stops or the client leaves."""

    def __init__(self, waits: Waits, events: AsyncGenerator[bytes, None] | None) -> None:
        """`events` is None when the caller has seen them all: the answer is 204 (WHATWG HTML 9.2.1)."""
        self._waits = waits
        self._events = events

    def to_asgi_response(self, app: object, request: APIRequest, **_: Any) -> Any:
        """Make the ASGI application that sends the stream."""
        events = self._events
        if events is None:
            return JSONResponse(None, status_code=204).to_asgi_response(app, request)
        record = record_of(request.scope)
        record.waited = True

        async def stream(scope: Scope, receive: Receive, send: Send) -> None:
            with self._waits.slot(request.user), record.waiting():  # before the headers: without a place it is a 503
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                if record.is_head:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                else:
                    async with aclosing(events):
                        await self._send_events(events, receive, send, record, request.user)

        return stream

    async def _send_events(
        self, events: AsyncGenerator[bytes, None], receive: Receive, send: Send, record: Record, user: User
    ) -> None:
        over = asyncio.ensure_future(self._waits.over(receive, user.expires_at - time.time()))
        upcoming = asyncio.ensure_future(_next(events, record))
        chunk: bytes | None = _RETRY
        try:
            while chunk is not None and not over.done():
                if not await _sent(send, chunk, over):
                    return
                chunk = _COMMENT  # hold nothing large while waiting
                await asyncio.wait({upcoming, over}, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if upcoming.done():
                    chunk = upcoming.result()
                    upcoming = asyncio.ensure_future(_next(events, record))
            # The client reconnects by itself: to another replica, or with a new token.
            await _sent(send, _RETRY, over, more=False)
        finally:
            await cancel(over, upcoming)


async def _next(events: AsyncGenerator[bytes, None], record: Record) -> bytes | None:
    """The next event. A failure becomes the last event, `error`."""
    try:
        return await anext(events, None)
    except Problem as problem:
        return sse(msgspec.Raw(encode_problem(problem, record)), event="error")


async def _sent(send: Send, content: bytes, over: asyncio.Future[Any], *, more: bool = True) -> bool:
    """Send a part. Give up if the client has not read it when the stream is over."""
    sending = asyncio.ensure_future(send({"type": "http.response.body", "body": content, "more_body": more}))
    try:
        await asyncio.wait({sending, over}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({sending}, timeout=LAST_SEND_SECONDS)
        return sending.done() and sending.result() is None
    finally:
        await cancel(sending)
