"""HTTP/1.1 on one connection: how much a caller may send, and how long that may take, before there is a request.

These bounds also hold for callers without a token, before a request costs anything; `clients` bounds the number of
connections. httptools parses requests, uvicorn writes answers.
"""

import asyncio
import enum
import logging
import re
from collections import deque
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from temporal_api import errors
from temporal_api.clients import SWEEP_SECONDS, Clients
from temporal_api.record import REFUSAL

MAX_TARGET_BYTES = 8 * 1024 - len("GET  HTTP/1.1")
"""What a request line of 8 KiB leaves for the target."""
MAX_HEAD_BYTES = 32 * 1024
MAX_FIELDS = 100
PIECE_BYTES = 16 * 1024
"""The parser gets this many bytes at once. Bounds are checked after each piece."""
FLOOD_BYTES = 128 * 1024
"""After so many bytes at once from one connection, read from all others first."""
MAX_HELD_BYTES = 16 * 1024 * 1024
"""The most bytes of pipelined requests that wait for their turn, of all connections together."""
BODY_BYTES_PER_SECOND = 64 * 1024
DROPPED_BYTES = 4 * 1024 * 1024
"""Of a body whose request is answered already, read at most this much, then close the connection."""
LINGER_SECONDS = 2.0
"""How long a caller who is still sending has to read the last answer before the connection closes."""
LAST_REQUEST_SECONDS = 1.0
"""While stopping, how long an idle connection stays open for a request that is on its way."""

_HEAD_END = b"\r\n\r\n"
# RFC 3986 3.2.2, with a port. RFC 9112 3.2 allows nothing else in Host.
_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-fv:.]+\])(?::\d*)?")

log = logging.getLogger(__name__)


class _Reads(enum.Enum):
    """What the caller sends next on a connection."""

    NEXT = enum.auto()  # a new request, or nothing
    HEAD = enum.auto()  # the rest of a head
    BODY = enum.auto()  # the rest of a body
    NOTHING = enum.auto()  # anything is ignored: the connection is being closed


NEXT, HEAD, BODY, NOTHING = _Reads


class _Cycle(RequestResponseCycle):
    """One request and its answer. Reading a body that cannot be completed raises its Problem."""

    fault: errors.Problem | None = None
    head: bytes | None = None
    """The answer's head until it is written, then empty."""

    async def receive(self) -> Any:
        """The next piece of the body. Raises Problem."""
        message = await super().receive()
        if self.fault is not None and not self.disconnected:
            raise self.fault
        return message


class Connection(HttpToolsProtocol):
    """One connection: it reads requests one after the other, each within its bounds."""

    server_state: Clients
    cycle: _Cycle | None  # type: ignore[assignment]
    pipeline: deque[tuple[_Cycle, Any]]  # type: ignore[assignment]
    _answered: _Cycle | None = None
    number = 0
    since = 0.0
    over_limit = False
    _nothing: ClassVar[Any] = {}
    _reads = NEXT
    _bytes = 0  # of this head, or since the last byte of this body
    _body_bytes = 0
    _held = b""
    _unread = 0
    _unread_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self.headers = []
        # Cycles write to this. It closes only after the caller could read the answer (RFC 9112 9.6).
        self._answers: Any = SimpleNamespace(
            write=self._write, is_closing=transport.is_closing, close=self._close_in_stages
        )
        self.server_state.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End. Uvicorn informs the request that was read last; also inform the one that is being answered."""
        self._hold(b"")
        super().connection_lost(exc)
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _write(self, data: bytes) -> None:
        """Write the head of an answer together with the first part of its body: each write is a costly system call."""
        cycle = self._answered
        if cycle is None or not cycle.response_started or cycle.head == b"":
            self.transport.write(data)
        elif cycle.head is None:
            cycle.head = data
        else:
            self.transport.write(cycle.head + data)
            cycle.head = b""

    def _write_head(self) -> None:
        """Write a head that no body has followed, such as that of an answer to HEAD."""
        if self._answered is not None and self._answered.head:
            self._write(b"")

    @property
    def waits(self) -> bool:
        """Whether no request is under way: the caller may send the next."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Take bytes from the caller."""
        if len(data) >= FLOOD_BYTES:  # else uvloop reads on from this one, 8 MB in a row, while others wait
            self.transport.pause_reading()
            self.loop.call_soon(self._read_on)
        if self._reads is NOTHING or self.transport.is_closing():
            return
        if self._held or self.pipeline or len(data) > PIECE_BYTES or data.count(_HEAD_END) > 1:
            self._feed_in_turn(self._held + data)
        elif data:
            self._feed(data)

    def _read_on(self) -> None:
        if not (self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _feed_in_turn(self, data: bytes) -> None:
        """Feed the parser one head at a time. Hold the bytes of later requests unparsed until their turn."""
        begin = 0
        while begin < len(data) and self._reads is not NOTHING and not self.pipeline:
            found = data.find(_HEAD_END, begin, begin + PIECE_BYTES)
            end = found + len(_HEAD_END) if found >= 0 else begin + PIECE_BYTES
            self._feed(data[begin:end])
            begin = end
        if self._reads is not NOTHING:
            self._hold(data[begin:])

    def _hold(self, data: bytes) -> None:
        state = self.server_state
        state.held_bytes += len(data) - len(self._held)
        self._held = data
        if data:
            self.flow.pause_reading()
            if state.held_bytes > MAX_HELD_BYTES:
                self.transport.abort()

    def _feed(self, data: bytes) -> None:
        """Feed the parser. Never call this while an exception is handled: it would replace the parser's own cause."""
        self._bytes += len(data)
        rest = None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if self._reads is not NOTHING:
                self._refuse(_problem(error))
        if rest is not None:
            self._ignore_upgrade(rest)
        elif (self._bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_FIELDS) and self._reads is not NOTHING:
            self._refuse(_too_large())

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the same request again without `Upgrade` (RFC 9110 7.8): the parser would drop its body."""
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self._bytes = 0
        self._feed(b"".join((line, *fields, b"\r\n")))
        if rest and self._reads is not NOTHING:
            self._feed(rest)

    def on_message_begin(self) -> None:
        """A head begins. Raises EOFError if the connection is being closed."""
        if self._reads is NOTHING:
            raise EOFError
        self._reads = HEAD
        self.since = self.server_state.clock
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target. Raises Problem."""
        self.url += url
        if len(self.url) > MAX_TARGET_BYTES:
            raise errors.UriTooLong(f"The path and query are longer than {MAX_TARGET_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or of the trailer."""
        self.headers.append((name.lower(), value.rstrip(b" \t")))  # white space around it is no part of it

    def on_headers_complete(self) -> None:
        """Start the request. Raises Problem."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise errors.NotSupported("CONNECT is for proxies. This service is not a proxy.")
            return  # `_ignore_upgrade` reads it again
        if self._bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_FIELDS:
            raise _too_large()
        self._check_head()
        try:
            target = httptools.parse_url(self.url)
            raw_path = target.path or b"/"
            path = raw_path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise errors.ValidationError(
                "The request target is not a path. Percent-encode characters that are not ASCII."
            ) from None
        if self.over_limit and not path.startswith(self.server_state.spared):
            if len(self.connections) > self.server_state.limit:
                raise errors.Overloaded("Too many connections are open here. Try again.")
            self.over_limit = False
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["path"] = self.root_path + (unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = target.query or b""
        self._reads = BODY
        self._bytes = self._body_bytes = 0
        self.headers = []  # for the trailer, which is ignored: no proxy has checked it (RFC 9110 6.5.1)
        may_stay = scope["http_version"] == "1.1" and not self.server_state.draining and not self.over_limit
        self._begin(keep_alive=may_stay and self.parser.should_keep_alive())

    def _check_head(self) -> None:
        """Raises Problem."""
        version = self.scope["http_version"] = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise errors.ValidationError(f"HTTP/{version} is not supported. Use HTTP/1.1.")
        hosts = 0
        codings = b""
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
                if not _HOST.fullmatch(value):
                    raise errors.ValidationError("Host: expected the name of this service, and a port if any.")
            elif name == b"transfer-encoding":
                codings += b"," + value.lower()
            elif name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = version == "1.1"
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise errors.ValidationError(f"Host: expected exactly one such header, found {hosts}.")
        if codings and version == "1.0":
            raise errors.ValidationError("Transfer-Encoding: HTTP/1.0 has no such header.")
        if codings and codings.strip(b", \t") != b"chunked":
            raise errors.NotSupported("Transfer-Encoding: expected chunked, the only one supported.")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._bytes = 0
        self._body_bytes += len(body)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()
        elif self._body_bytes > DROPPED_BYTES:
            self._close_in_stages()

    def on_message_complete(self) -> None:
        """The request has arrived completely."""
        cycle = self.cycle
        if self._reads is BODY and cycle is not None:  # neither refused nor to be read again
            cycle.keep_alive &= self.parser.should_keep_alive()  # a trailer may say that it is the last
            self._reads = NEXT if cycle.keep_alive else NOTHING
            self._bytes = 0
            self.since = self.server_state.clock
            cycle.more_body = False
            cycle.message_event.set()

    def _begin(self, *, keep_alive: bool) -> None:
        in_turn = self.waits
        self.cycle = _Cycle(
            scope=self.scope,
            transport=self._answers,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        if in_turn:
            self._answer_next(self.cycle)
        else:
            self.pipeline.appendleft((self.cycle, self.app))

    def _answer_next(self, cycle: _Cycle) -> None:
        self._answered = cycle
        self.server_state.begin(self, cycle.scope["path"])

    def answer(self) -> None:
        """Give the request that is next to the app. `Clients.begin` calls this in the turn that has room for it."""
        if self._answered is not None:
            self._start_asgi_task(self._answered, self.app)

    def on_response_complete(self) -> None:
        """The answer is written. Go on to the next request."""
        self.server_state.total_requests += 1
        self._write_head()
        if self._answered is not None:  # an idle connection must not keep the last request in memory
            self._answered.scope = self._nothing
            self._answered = None
        if self._reads is not HEAD:  # else it is already the next request's
            self.scope = self._nothing
        if self.transport.is_closing():
            return
        if self.pipeline:  # two, if the end of a head came with the next
            self._answer_next(self.pipeline.pop()[0])
        if self._reads is NEXT:
            self.since = self.server_state.clock
        self.flow.resume_reading()
        if self._held:
            self.loop.call_soon(self.data_received, b"")  # not now: the app may be handling an exception

    def _refuse(self, problem: errors.Problem) -> None:
        """Answer with this Problem after the requests before it, and read no more from this caller."""
        reads, self._reads = self._reads, NOTHING
        cycle = self.cycle
        if reads is BODY and cycle is not None:
            if cycle.response_complete:
                self._close_in_stages()
            elif cycle.response_started:
                self.transport.abort()
            else:
                cycle.keep_alive = False
                cycle.fault = problem
                cycle.message_event.set()
            return
        if reads is NEXT:  # the caller has not sent a byte of a request
            super().on_message_begin()
        self.scope["method"] = self.parser.get_method().decode() if self.url else "-"
        self.scope["path"] = ""
        self.scope["raw_path"] = self.url.partition(b"?")[0][:200]
        self.scope["query_string"] = b""
        self.scope[REFUSAL] = problem  # type: ignore[literal-required] # `observe` answers, counts and logs it
        self._begin(keep_alive=False)

    def _close_in_stages(self) -> None:
        """Close for writing, and later wholly: a caller who is still sending could lose the answer (RFC 9112 9.6)."""
        self._reads = NOTHING
        self._write_head()
        self._hold(b"")
        self.pipeline.clear()
        self.cycle = None  # done, or broken off
        self.since = self.server_state.clock
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self.transport.write_eof()

    def shutdown(self) -> None:
        """Uvicorn calls this to end the connection."""
        self.server_state.end()

    def check(self) -> None:
        """Act if the caller has taken too long."""
        state = self.server_state
        if self._is_unread():
            self.transport.abort()
            return
        if self.flow.read_paused:
            self.since += SWEEP_SECONDS  # we have stopped reading, so the caller is not late
            return
        waited = state.clock - self.since
        if self._reads is NEXT and self.waits:
            allowed = state.request_timeout if self.cycle is None else self.timeout_keep_alive
            if waited >= (allowed if state.ends_at is None else LAST_REQUEST_SECONDS):
                self.transport.close()
        elif self._reads is NOTHING and self.waits and waited >= LINGER_SECONDS:
            self.transport.abort()
        elif self._reads in (HEAD, BODY):
            allowed = state.request_timeout + self._body_bytes / BODY_BYTES_PER_SECOND
            if waited >= allowed:
                self._refuse(errors.RequestTimeout(f"The request did not arrive within {round(allowed)} seconds."))
            elif state.ends_at is not None and state.clock >= state.ends_at:
                self._refuse(
                    errors.ShuttingDown(
                        "This replica is shutting down. Send the request again, and another one will answer."
                    )
                )

    def _is_unread(self) -> bool:
        """Whether the caller has read nothing for too long."""
        unread, before = self.transport.get_write_buffer_size(), self._unread
        self._unread = unread
        if not unread or unread < before or not before:
            self._unread_since = self.server_state.clock
        return self.server_state.clock - self._unread_since >= self.server_state.request_timeout


def _problem(error: httptools.HttpParserError) -> errors.Problem:
    """The Problem to answer with: our own refusal, or the parser's error."""
    cause = error.__context__
    if isinstance(cause, errors.Problem):
        return cause
    if cause is not None:
        log.error("unhandled exception", exc_info=cause)
        return errors.InternalServerError()
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return errors.NotSupported("The request begins with a method that is not supported.")
    return errors.ValidationError(f"This is no HTTP/1.1 request: {error}.")


def _too_large() -> errors.Problem:
    return errors.HeaderFieldsTooLarge(f"The headers are larger than {MAX_HEAD_BYTES} bytes or more than {MAX_FIELDS}.")
