"""Outermost: request id, access log, HTTP metrics, gzip, HEAD; and what `GET /metrics` shows.

It wraps the whole application (`app.asgi_handler = Observe(app.asgi_handler, ...)`), so that 401, 404, 405, 413 and
500 are counted and logged as what the caller really got.
"""

import asyncio
import functools
import logging
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from temporalio.runtime import (
    BUFFERED_METRIC_KIND_COUNTER,
    BUFFERED_METRIC_KIND_GAUGE,
    BufferedMetric,
    LogForwardingConfig,
    LoggingConfig,
    MetricBuffer,
    MetricBufferDurationFormat,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)

from temporal_api import errors
from temporal_api.requests import decoded, keep_encoded_slashes

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# W3C Trace Context: a version that is not ff, a trace and a parent that are not all zeros.
TRACE_ID = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
GZIP_MIN_BYTES = 1000
_REFUSED = re.compile(rb"q=0(\.0*)?")

disable_created_metrics()  # type: ignore[no-untyped-call] # one more series beside each counter, which nobody reads

log = logging.getLogger(__name__)
access_log = logging.getLogger("temporal_api.access")


class JSONFormatter(logging.Formatter):
    """One JSON object a line; what a caller of the logger gave as `extra={"fields": ...}` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode one record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return msgspec.json.encode(line, enc_hook=str).decode()


class ConsoleFormatter(logging.Formatter):
    """For people: the same, in one readable line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        fields = " ".join(f"{k}={_line(v)}" for k, v in getattr(record, "fields", {}).items() if v is not None)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        if record.exc_info and record.exc_info[1]:
            line += "\n" + "".join(traceback.format_exception(record.exc_info[1]))
        return line


def _line(value: object) -> str:
    """A value in one line, whatever a caller put into it."""
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def configure_logging(level: str, log_format: str) -> None:
    """Send every logger of the process to standard output, in one format."""
    # What no format shows is not looked up (the logging HOWTO's "Optimization"): half the cost of a line.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined] # new in Python 3.12
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JSONFormatter() if log_format == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel("WARNING")


class Metrics:
    """The HTTP metrics, the process's, and the Temporal SDK's own, in one registry."""

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        labels = ("method", "route")
        self._requests = Counter("http_requests", "HTTP requests answered.", (*labels, "status"), registry=registry)
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Seconds from a request's first byte to its answer's last; waits and streams stay out of it.",
            labels,
            registry=registry,
        )
        self.in_progress = Gauge("http_requests_in_progress", "HTTP requests under way.", registry=registry)
        Gauge("temporal_api_info", "The running version.", ("version",), registry=registry).labels(version).set(1)
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._sdk_metrics: dict[str, Counter | Gauge | Histogram] = {}
        self._sdk: dict[tuple[str, Any, Any], Callable[[float], None]] = {}
        self._buffer = MetricBuffer(16_384, duration_format=MetricBufferDurationFormat.SECONDS)
        self._runtime: Runtime | None = None

    def runtime(self) -> Runtime:
        """The SDK's runtime, which writes its metrics here and its log to ours."""
        if self._runtime is None:
            forwarding = LogForwardingConfig(
                logging.getLogger("temporalio"), append_target_to_name=False, prepend_target_on_message=False
            )
            self._runtime = Runtime(
                telemetry=TelemetryConfig(
                    metrics=self._buffer,
                    logging=LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding),
                )
            )
        return self._runtime

    def count(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """One answered request; no seconds for one that waited because it was asked to."""
        key = (method, route, status)
        children = self._children.get(key)
        if children is None:  # looking up labels costs more than the rest of this method
            children = self._children[key] = (
                self._requests.labels(method, route, status),
                self._seconds.labels(method, route),
            )
        children[0].inc()
        if seconds is not None:
            children[1].observe(seconds)

    def drain(self) -> None:
        """Move what the SDK measured since the last time into the registry."""
        if self._runtime is None:
            return
        for update in self._buffer.retrieve_updates():
            metric, attributes = update.metric, update.attributes
            key = (metric.name, attributes.get("operation", ""), attributes.get("status_code", ""))
            record = self._sdk.get(key)
            if record is None:  # only these two labels: they are bounded
                record = self._sdk[key] = self._sdk_child(metric, key[1], key[2])
            record(update.value)

    def _sdk_child(self, metric: BufferedMetric, operation: Any, status_code: Any) -> Callable[[float], None]:
        name = metric.name
        parent = self._sdk_metrics.get(name)
        if parent is None:
            parent = self._sdk_metrics[name] = self._sdk_metric(name, metric.unit, metric.kind)
        child: Any = parent.labels(operation, status_code)
        if isinstance(parent, Counter):
            return child.inc  # type: ignore[no-any-return]
        return child.set if isinstance(parent, Gauge) else child.observe  # type: ignore[no-any-return]

    def _sdk_metric(self, name: str, unit: str | None, kind: int) -> Counter | Gauge | Histogram:
        labels = ("operation", "status_code")
        help_text = f"The Temporal SDK's {name.replace('_', ' ')}."
        if kind == BUFFERED_METRIC_KIND_COUNTER:
            return Counter(name, help_text, labels, registry=self.registry)
        if kind == BUFFERED_METRIC_KIND_GAUGE:
            return Gauge(name, help_text, labels, registry=self.registry)
        suffix = "_seconds" if unit in ("s", "seconds", "duration") and not name.endswith("_seconds") else ""
        return Histogram(name + suffix, help_text, labels, registry=self.registry)

    async def drain_forever(self) -> None:
        """Drain every second: the SDK's buffer is bounded."""
        while True:
            await asyncio.sleep(1)
            self.drain()


class Observe:
    """The outermost ASGI wrapper."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and say so."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = trace_id = None
        accepted = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                request_id = value
            elif name == b"accept-encoding":
                accepted += b"," + value
            elif name == b"traceparent" and (found := TRACE_ID.fullmatch(value)):
                trace_id = found[1].decode()
        if request_id is None:
            request_id = os.urandom(16).hex().encode()
        method = scope["method"]
        if method == "HEAD":
            # RFC 9110 9.3.2: as GET without the content, which the server leaves out by its own scope: hence a copy.
            scope = {**scope, "method": "GET"}
        context: Any = scope
        context["head"] = method == "HEAD"
        context["request_id"] = request_id.decode()
        keep_encoded_slashes(scope)

        status = 0
        start: Any = None

        async def observed_send(message: Message) -> None:
            nonlocal status, start
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                headers.append((b"x-request-id", request_id))
                start = {**message, "headers": headers}  # held until it is known whether the body is complete
                return
            if start is not None:
                held, start = start, None
                if (
                    message["type"] == "http.response.body"
                    and not message.get("more_body", False)
                    and len(message["body"]) >= GZIP_MIN_BYTES
                ):
                    message = _encoded(held, message, _accepts_gzip(accepted))
                await send(held)
            await send(message)

        self._metrics.in_progress.inc()
        try:
            try:
                if (refused := context.get("refused")) is None:
                    await self._app(scope, receive, observed_send)
                else:  # by `protocol`: there is no request to route
                    await _send_problem(observed_send, refused, context["request_id"])
                if (status == 0 or start is not None) and "gone" not in context:
                    raise RuntimeError("the application gave no answer")
            except Exception as error:
                fields = {"request_id": context["request_id"]}
                log.error("unhandled exception", exc_info=error, extra={"fields": fields})
                if status == 0 or start is not None:  # nothing of it was sent
                    await _send_problem(observed_send, errors.internal(), context["request_id"])
        finally:
            self._metrics.in_progress.dec()
            seconds = time.perf_counter() - began
            route = context.get("path_template") or "unmatched"
            if "gone" in context or status == 0:
                status = 499  # the caller left before there was an answer
            measured = None if "waits" in context else seconds
            self._metrics.count(method if method in METHODS else "OTHER", route, status, measured)
            if access_log.isEnabledFor(logging.INFO):
                user = context.get("user")
                fields = {
                    "request_id": context["request_id"],
                    "trace_id": trace_id,
                    "method": method,
                    "route": route,
                    "path": (scope.get("raw_path") or b"").decode("latin-1"),
                    "status": status,
                    "duration_ms": round(seconds * 1e3, 3),
                    "user": user.sub if user else None,
                    "workflow_id": context.get("workflow_id") or _workflow_id(context),
                }
                access_log.info("request", extra={"fields": fields})


def _workflow_id(context: Any) -> str | None:
    """The workflow that the path means; a controller whose ids are not the workflow's says what stands before them."""
    params = context.get("path_params")
    if not params or "route_handler" not in context:
        return None
    prefix = context["route_handler"].opt.get("workflow_id_prefix")
    named: str | None = prefix + next(iter(params.values())) if prefix else params.get("workflow_id")
    return str(decoded(named)) if named else None


async def _send_problem(send: Send, problem: errors.Problem, request_id: str) -> None:
    content = errors.body(problem, request_id)
    headers = [
        (b"content-type", errors.PROBLEM_JSON.encode()),
        (b"content-length", str(len(content)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


@functools.lru_cache(256)
def _accepts_gzip(accepted: bytes) -> bool:
    """RFC 9110 12.5.3: `q=0` refuses, and what is said of gzip counts more than what is said of `*`."""
    said = {}
    for item in accepted.lower().replace(b" ", b"").split(b","):
        coding, _, weight = item.partition(b";")
        said[coding] = not _REFUSED.fullmatch(weight)
    return said.get(b"gzip", said.get(b"*", False))


def _encoded(start: Any, message: Any, gzip: bool) -> Any:
    """The complete body, compressed for who accepts it; the headers in `start` tell caches that it depends on that."""
    names = {name.lower() for name, _ in start["headers"]}
    if b"content-encoding" in names:
        return message
    start["headers"].append((b"vary", b"Accept-Encoding"))
    if not gzip:
        return message
    compressor = zlib.compressobj(5, zlib.DEFLATED, 31)
    content = compressor.compress(message["body"]) + compressor.flush()
    kept = [(name, value) for name, value in start["headers"] if name.lower() not in (b"content-length", b"etag")]
    # Other bytes, so no longer the same by a strong validator (RFC 9110 8.8.3).
    tags = [(name, b"W/" + value.removeprefix(b"W/")) for name, value in start["headers"] if name.lower() == b"etag"]
    length = (b"content-length", str(len(content)).encode())
    start["headers"] = [*kept, *tags, length, (b"content-encoding", b"gzip")]
    return {**message, "body": content}
