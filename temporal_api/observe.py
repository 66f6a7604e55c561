"""The outermost ASGI wrapper: request id, access log, HTTP metrics, headers of every answer, gzip and HEAD.

It wraps the whole application (`app.asgi_handler = Observe(app.asgi_handler, ...)`), so it counts and logs every answer
as the caller got it: 401, 404, 405, 413 and 500 too.
"""

import logging
import re
import time
import zlib
from collections.abc import Callable
from typing import Any

from litestar.enums import ScopeType
from litestar.types import (
    ASGIApp,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    HTTPScope,
    Message,
    Receive,
    Scope,
    Send,
)

from temporal_api import tracing
from temporal_api.cors import Cors
from temporal_api.errors import InternalServerError, OriginNotAllowed, Problem
from temporal_api.memory import PIECE_BYTES, Memory
from temporal_api.metrics import Metrics
from temporal_api.prefix import Prefix
from temporal_api.problems import PROBLEM_JSON, encode_problem
from temporal_api.record import REFUSAL, Record, begin, new_request_id
from temporal_api.requests import accepted, settle_slashes

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
GZIP_MIN_BYTES = 1000
NO_STORE, NO_CACHE = (b"cache-control", b"no-store"), (b"cache-control", b"no-cache")
NOSNIFF = (b"x-content-type-options", b"nosniff")

log = logging.getLogger(__name__)
access_log = logging.getLogger("temporal_api.access")


class Observe:
    """The outermost ASGI wrapper."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, memory_of: Callable[[str], Memory], cors: Cors, prefix: Prefix
    ) -> None:
        """`memory_of` says which memory holds the answer to a path."""
        self._app = app
        self._metrics = metrics
        self.memory_of = memory_of
        self.cors = cors
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, then count and log it."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        settle_slashes(scope)
        self.prefix.remove(scope)
        answer = _Answer(scope, send, self)
        begin(scope, answer.record)
        # HEAD is GET without the body (RFC 9110 9.3.2). The server leaves the body out by its own scope: hence a copy.
        routed: Any = {**scope, "method": "GET"} if answer.record.is_head else scope
        self._metrics.in_progress += 1
        try:
            await self._serve(routed, receive, answer)
        finally:
            self._metrics.in_progress -= 1
            self._tell(routed, str(scope["method"]), answer, time.perf_counter() - began)

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        """Let the application answer; if it fails before anything was sent, answer 500."""
        try:
            if isinstance(refusal := scope.get(REFUSAL), Problem):  # `protocol` has no request that could be routed
                await answer.send_problem(refusal)
            elif (preflight := self.cors.preflight(scope)) is not None:
                await answer.send({"type": "http.response.start", "status": 204, "headers": preflight})
                await answer.send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await self._app(scope, receive, answer.send)
            if not answer.is_sent and not answer.record.client_gone:
                raise RuntimeError("the application gave no answer")
        except OriginNotAllowed as problem:
            await answer.send_problem(problem)
        except Exception as error:
            fields = {"request_id": answer.record.request_id}
            log.error("unhandled exception", exc_info=error, extra={"fields": fields})
            if not answer.is_sent:
                await answer.send_problem(InternalServerError())

    def _tell(self, scope: Any, method: str, answer: "_Answer", seconds: float) -> None:
        """Count and log the request."""
        record = answer.record
        record.route = route = scope.get("path_template") or record.route
        # nginx's number for a caller that left before there was an answer
        record.status = status = 499 if record.client_gone or not answer.status else answer.status
        counted = None if record.waited else seconds
        self._metrics.count(method if method in METHODS else "OTHER", route, status, counted)
        level = _level(route, status)
        if access_log.isEnabledFor(level):
            client = scope.get("client")
            fields = {
                "request_id": record.request_id,
                "trace_id": record.trace_id,
                "client": client[0] if client else None,
                "method": method,
                "route": route,
                "path": (scope.get("raw_path") or b"").decode("latin-1"),
                "status": status,
                "duration_ms": round(seconds * 1e3, 3),
                "user": record.user,
                "workflow_id": record.workflow_id,
            }
            access_log.log(level, "request", extra={"fields": fields})


def _level(route: str, status: int) -> int:
    """A probe is of interest to nobody who does not look for it, even if it is told that the service is not ready."""
    if route.startswith(("/health", "/metrics")) and status in (200, 503):
        return logging.DEBUG
    return logging.WARNING if status >= 500 else logging.INFO


class _Answer:
    """The answer to one request: it carries the request's id, and its body is compressed if the client accepts that."""

    def __init__(self, scope: HTTPScope, send: Send, service: Observe) -> None:
        self.status = 0
        self._path = scope["path"]
        self._send = send
        self._service = service
        self._start: HTTPResponseStartEvent | None = None
        self._request_id = self._accept_encoding = b""
        self._cors = service.cors.default
        trace = []
        for name, value in scope["headers"]:
            if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                self._request_id = value
            elif name == b"accept-encoding":
                self._accept_encoding += b"," + value
            elif name == b"origin":
                self._cors = service.cors.headers.get(value, self._cors)
            elif name in tracing.HEADERS:
                trace.append((name, value))
        self._request_id = self._request_id or new_request_id().encode()
        self.record = Record(self._request_id.decode(), service.prefix.root_path, is_head=scope["method"] == "HEAD")
        if trace:
            self.record.trace = tracing.trace_context(trace)

    @property
    def is_sent(self) -> bool:
        """Whether a part of the answer was sent."""
        return self.status != 0 and self._start is None

    async def send(self, message: Message) -> None:
        """Send a part of the answer. Its start is held until the next part, as gzip changes the headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self._request_id), NOSNIFF, *self._cors]
            if self._path.startswith("/api/v1") or not self._path:  # none: refused before it had one
                kept = NO_STORE
                for name, _ in message["headers"]:
                    if name == b"etag":
                        kept = NO_CACHE
                    elif name == b"cache-control":
                        break
                else:
                    headers.append(kept)
            if self._service.prefix.root_path:
                headers = list(self._service.prefix.add(headers))
            self._start = {**message, "headers": headers}
            return
        if self._start is not None:
            start, self._start = self._start, None
            if message["type"] == "http.response.body":
                start, message = self._encode(start, message)
            await self._send(start)
        if message["type"] == "http.response.body" and len(message["body"]) > PIECE_BYTES:
            await self._service.memory_of(self._path).send(self._send, message)
        else:
            await self._send(message)

    async def send_problem(self, problem: Problem) -> None:
        """Answer a failure that the application did not answer."""
        content = encode_problem(problem, self.record)
        headers = [(b"content-type", PROBLEM_JSON.encode()), (b"content-length", str(len(content)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content, "more_body": False})

    def _encode(
        self, start: HTTPResponseStartEvent, part: HTTPResponseBodyEvent
    ) -> tuple[HTTPResponseStartEvent, HTTPResponseBodyEvent]:
        """Gzip a complete body if the client accepts it, and tell caches that the answer depends on Accept-Encoding."""
        if part.get("more_body", False) or len(part["body"]) < GZIP_MIN_BYTES:
            return start, part
        if any(name.lower() == b"content-encoding" for name, _ in start["headers"]):
            return start, part
        start["headers"] = [*start["headers"], (b"vary", b"Accept-Encoding")]
        if not accepts_gzip(self._accept_encoding):
            return start, part
        compressor = zlib.compressobj(5, zlib.DEFLATED, 31)
        content = compressor.compress(part["body"]) + compressor.flush()
        headers = [(b"content-length", str(len(content)).encode()), (b"content-encoding", b"gzip")]
        for name, value in start["headers"]:
            if name.lower() == b"etag":  # the bytes differ, so it is weak (RFC 9110 8.8.3)
                headers.append((name, b"W/" + value.removeprefix(b"W/")))
            elif name.lower() != b"content-length":
                headers.append((name, value))
        return {**start, "headers": headers}, {**part, "body": content}


def accepts_gzip(accept_encoding: bytes) -> bool:
    """Whether gzip is acceptable (RFC 9110 12.5.3): `gzip` outranks `*`."""
    told = accepted(accept_encoding)
    return told.get(b"gzip", told.get(b"*", False))
