"""The HTTP side of things that take time: `Prefer: wait`, how many may wait, and server-sent events.

Whatever waits here ends by itself when its caller goes away, when its time is over, or when the service is told to end.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request, Response
from litestar.params import HeaderParameter
from litestar.types import Receive, Scope, Send

from temporal_api.auth import APIRequest, User
from temporal_api.errors import Problem, ShuttingDown, TooManyWaits, invalid
from temporal_api.problems import body
from temporal_api.record import record_of
from temporal_api.temporal.feeds import Feeds
from temporal_api.temporal.run import Run
from temporal_api.temporal.workflow import Workflow

T = TypeVar("T")

RETRY_AFTER_SECONDS = "2"
"""When to ask again for what has not ended yet."""
KEEP_ALIVE_SECONDS = 15.0
LAST_SEND_SECONDS = 1.0
_A_DAY = 86_400.0
_RETRY = b"retry: 1000\n\n"
_COMMENT = b": \n\n"
_TAG = re.compile(r'"[^"]*"')
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d+)\"?\s*(?=$|[,;])", re.IGNORECASE)


Prefer = Annotated[str | None, HeaderParameter(name="Prefer", description="`wait=SECONDS` waits that long (RFC 7240).")]
IfNoneMatch = Annotated[
    str | None, HeaderParameter(name="If-None-Match", description="The `ETag` of the answer that you have.")
]
LastEventId = Annotated[
    str | None, HeaderParameter(name="Last-Event-ID", description="Goes on after that `id` (WHATWG HTML 9.2).")
]


def preferred_wait(request: APIRequest, most: float) -> float | None:
    """Seconds that the caller prefers to wait (RFC 7240), `most` at most; None without a preference, or a place."""
    found = _WAIT.search(",".join(request.headers.getall("prefer", [])))
    if found is None:
        return None
    waits: Waits = request.app.state.services.waits
    if waits.full_for(request.user):
        return None
    record_of(request.scope).waited = True
    return min(float(found[1]), most)


def preference_applied(seconds: float | None) -> dict[str, str]:
    """The header that says which wait was honoured."""
    return {"Preference-Applied": f"wait={seconds:g}"} if seconds else {}


class Waits:
    """The open waits and streams of this process: so many, and so many of one caller.

    All of them end when `draining` is set.
    """

    def __init__(self, limit: int, limit_per_user: int) -> None:
        self.draining = asyncio.Event()
        self.open = 0
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._open_of: dict[str, int] = {}

    def full_for(self, user: User) -> bool:
        """This caller may not wait now."""
        return self.open >= self._limit or self._open_of.get(user.sub, 0) >= self._limit_per_user

    @contextmanager
    def slot(self, user: User) -> Iterator[None]:
        """One place among the open waits. Raises TooManyWaits or ShuttingDown."""
        if self.draining.is_set():
            raise ShuttingDown
        if self.full_for(user):
            raise TooManyWaits
        self.open += 1
        self._open_of[user.sub] = self._open_of.get(user.sub, 0) + 1
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
        """What the work gives; None (and it is cancelled) when the time is over, the service ends or the caller goes.

        None at once where no place is left: the wait was only preferred (RFC 7240 4.3).
        """
        if not seconds or self.draining.is_set() or self.full_for(request.user):
            return None
        with self.slot(request.user):
            task = asyncio.ensure_future(work())
            ending = asyncio.ensure_future(self.draining.wait())
            gone = asyncio.ensure_future(departure(request.receive))
            try:
                await asyncio.wait({task, ending, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    record_of(request.scope).client_gone = True
                return task.result() if task.done() else None
            finally:
                await cancel(task, ending, gone)


def etag(run: Run) -> str:
    """Weak: two answers with the same one mean the same, which is all that a conditional read asks (RFC 9110 8.8.1)."""
    return f'W/"{run.version}"'


def is_known(request: APIRequest, run: Run) -> bool:
    """Whether `If-None-Match` names the run as it is: in a list, as `*`, by weak comparison (RFC 9110 13.1.2)."""
    known = ",".join(request.headers.getall("if-none-match", []))
    return known.strip() == "*" or f'"{run.version}"' in _TAG.findall(known)


async def wait_for_change(
    request: APIRequest, waits: Waits, feeds: Feeds, workflow: Workflow, run: Run, seconds: float | None
) -> bool:
    """Wait until a run that the caller knows as it is changes, or the time is over; False when there is no wait.

    Afterwards read it again either way: an activity's next attempt changes the run, but is no event to be woken by.
    """
    if not seconds or not run.is_open or not is_known(request, run):
        return False
    pinned, length = workflow.run(run.run_id), run.history_length
    await waits.within(request, seconds, lambda: feeds.wait_for_change(pinned, length))
    return True


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel, and see them end."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task


def sse(data: object, *, event: str, event_id: str | None = None) -> bytes:
    """One server-sent event (WHATWG HTML 9.2), its data on one line."""
    head = b"" if event_id is None else f"id: {event_id}\n".encode()
    # A caller's JSON has the line breaks it was sent with: never inside a string, so a space says the same.
    line = msgspec.json.encode(data).replace(b"\n", b" ").replace(b"\r", b" ")
    return head + f"event: {event}\ndata: ".encode() + line + b"\n\n"


def resume(last_event_id: str | None) -> tuple[str, int]:
    """The run and the event after which a stream goes on. Raises Problem."""
    if not last_event_id:
        return "", 0
    run_id, colon, number = last_event_id.rpartition(":")
    if not colon or not (number.isascii() and number.isdigit()) or len(number) > 9 or len(run_id) != 36:
        raise invalid("Last-Event-ID", "Expected the id of an event of this stream, RUN_ID:EVENT_ID")
    return run_id, int(number)


class EventStream(Response[bytes]):
    """Server-sent events, until they end, the token ends, the service ends or the client goes: then all is freed."""

    def __init__(self, waits: Waits, events: AsyncGenerator[bytes, None], user: User) -> None:
        self._waits = waits
        self._events = events
        self._user = user
        self._expires_at = user.expires_at

    def to_asgi_response(self, app: object, request: Request[Any, Any, Any], **_: Any) -> Any:
        """The stream as an ASGI application."""
        record = record_of(request.scope)
        record.waited = True
        self._request_id, self._headers_only = record.request_id, record.is_head
        return self._stream

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._waits.slot(self._user):  # before the headers: who gets no place gets a plain 503
            await self._send_events(receive, send)

    async def _send_events(self, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self._headers_only:
            await self._events.aclose()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        gone = asyncio.ensure_future(departure(receive))
        ending = asyncio.ensure_future(self._waits.draining.wait())
        following = asyncio.ensure_future(anext(self._events, None))
        chunk: bytes | None = _RETRY
        try:
            while chunk is not None:
                if not await self._sent(send, chunk, ending):
                    return
                left = self._expires_at - time.time()
                await asyncio.wait(
                    {gone, ending, following},
                    timeout=max(0, min(KEEP_ALIVE_SECONDS, left)),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if gone.done():
                    return
                if ending.done() or time.time() >= self._expires_at:
                    break
                if following.done():
                    chunk = self._result(following)
                    following = asyncio.ensure_future(anext(self._events, None))
                else:
                    chunk = _COMMENT
            # The client comes back by itself: to another replica, or with a new token.
            await self._sent(send, _RETRY, ending, more=False)
        finally:
            await cancel(gone, ending, following)
            await self._events.aclose()

    async def _sent(self, send: Send, content: bytes, ending: asyncio.Future[Any], *, more: bool = True) -> bool:
        """Whether it went out: who does not read keeps no place beyond the token's end and the service's."""
        sending = asyncio.ensure_future(send({"type": "http.response.body", "body": content, "more_body": more}))
        try:
            left = max(0, min(_A_DAY, self._expires_at - time.time()))
            await asyncio.wait({sending, ending}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({sending}, timeout=LAST_SEND_SECONDS)
            return sending.done() and sending.result() is None
        finally:
            await cancel(sending)

    def _result(self, following: asyncio.Future[bytes | None]) -> bytes | None:
        try:
            return following.result()
        except Problem as problem:
            return sse(msgspec.Raw(body(problem, self._request_id)), event="error")


async def departure(receive: Receive) -> None:
    """Come back when the caller has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
