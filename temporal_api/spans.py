"""Spans: one for each request and one for each call to Temporal, sent to an OpenTelemetry collector by OTLP over HTTP.

Imported only if `OTEL_EXPORTER_OTLP_ENDPOINT` says where to; needs the extra `otel`. OpenTelemetry's SDK reads the rest
from the environment: `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, ...
"""

import asyncio
import functools
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import Message
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from temporalio.contrib.opentelemetry import TracingInterceptor
from temporalio.service import RPCError

from temporal_api import __version__
from temporal_api.errors import Problem
from temporal_api.observe import METHODS
from temporal_api.record import current_record, record_of
from temporal_api.temporal.caller import sign
from temporal_api.temporal.client import Response, Temporal
from temporal_api.temporal.failures import NOTHING, Subject
from temporal_api.tracing import HEADERS, trace_context

CLOSE_SECONDS = 1
"""How long the process, when it ends, waits for a collector that does not answer."""

_PROPAGATOR = TraceContextTextMapPropagator()
# In the names of parameters whose values no tracing backend should keep.
_SECRET = re.compile(r"(?i)token|secret|password|key|auth|sig|jwt")
_HOST = re.compile(r"(\[[^\]]+\]|[^:]+)(?::([0-9]{1,5}))?")


class Spans:
    """Makes spans and sends them."""

    def __init__(self, endpoint: str, temporal_address: str, root_path: str) -> None:
        resource = Resource.create({"service.name": "temporal-api", "service.version": __version__})
        resource = resource.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("temporal_api", __version__)
        # They would be most of what a tracing backend keeps.
        self._probes = re.compile(rf"({re.escape(root_path)})?/(health|metrics)(/|$)")
        self.temporal = functools.partial(_TracedTemporal, self._tracer, _address(temporal_address))
        """The class of a Temporal client whose calls have spans."""
        self.of_worker = TracingInterceptor(self._tracer)
        """The SDK's interceptor, which gives workflows and activities spans."""

    def of_requests(self, app: ASGIApp) -> ASGIApp:
        """Give each request a span, and put its trace into the request's headers for the app."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            told = trace_context(header for header in scope.get("headers", ()) if header[0] in HEADERS)
            if scope["type"] != ScopeType.HTTP or ("traceparent" not in told and self._probes.match(scope["path"])):
                await app(scope, receive, send)
                return
            with self._tracer.start_as_current_span(
                _method(scope) or "HTTP",
                context=_PROPAGATOR.extract(told, Context()),
                kind=SpanKind.SERVER,
                attributes=_of_request(scope),
            ) as span:
                own = [(name.encode(), value.encode()) for name, value in _carrier().items()]
                others = [header for header in scope["headers"] if header[0] not in (b"traceparent", b"tracestate")]
                routed: Any = {**scope, "headers": [*others, *own]}
                try:
                    await app(routed, receive, send)
                finally:
                    _tell(span, routed)

        return traced

    async def close(self) -> None:
        """Send the remaining spans, within a second."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_SECONDS)


class _TracedTemporal(Temporal):
    """A Temporal client whose calls have spans, which become the parents of the workers' spans."""

    def __init__(self, tracer: Tracer, address: Mapping[str, str | int], *parts: Any) -> None:
        super().__init__(*parts)
        self._tracer = tracer
        self._address = address

    async def call(
        self,
        rpc: Callable[..., Awaitable[Response]],
        request: Message,
        subject: Subject = NOTHING,
        seconds: float | None = None,
    ) -> Response:
        """Make one call, in a span of its own."""
        if not get_current_span().get_span_context().is_valid:  # a call of a probe, or outside a request
            return await super().call(rpc, request, subject, seconds)
        package, _, name = request.DESCRIPTOR.full_name.rpartition(".")
        method = f"{package}.WorkflowService/{name.removesuffix('Request')}"
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, **self._address}
        with self._tracer.start_as_current_span(
            method, kind=SpanKind.CLIENT, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            record = current_record()
            baggage = {"baggage": record.trace["baggage"]} if record and "baggage" in record.trace else {}
            sign(request, self.process_identity, {**_carrier(), **baggage})
            try:
                response = await super().call(rpc, request, subject, seconds)
            except Problem as problem:
                kind = problem.code
                if isinstance(problem.__cause__, RPCError):
                    kind = problem.__cause__.status.name
                    span.set_attribute("rpc.response.status_code", kind)
                span.set_attribute("error.type", kind)
                span.set_status(StatusCode.ERROR, problem.message)
                raise
            span.set_attribute("rpc.response.status_code", "OK")
            return response


def _carrier() -> dict[str, str]:
    """The current span as W3C headers."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier


def _address(host: str) -> dict[str, str | int]:
    found = _HOST.fullmatch(host)
    if found is None:
        return {}
    name = {"server.address": found[1].strip("[]")}
    return {**name, "server.port": int(found[2])} if found[2] else {**name}


def _method(scope: HTTPScope) -> str:
    """The request's method, if it is a known one."""
    return scope["method"] if scope["method"] in METHODS else ""


def _of_request(scope: HTTPScope) -> dict[str, str | int]:
    """The attributes of a request before it is served, by the semantic conventions."""
    headers = dict(scope["headers"])
    query = (part.partition("=") for part in scope["query_string"].decode("latin-1").split("&"))
    attributes = {
        "http.request.method": _method(scope) or "_OTHER",
        "http.request.method_original": "" if _method(scope) else scope["method"],
        "url.scheme": scope["scheme"],
        "url.path": scope["raw_path"].decode("latin-1"),
        "url.query": "&".join(
            name + "=REDACTED" if equals and _SECRET.search(name) else name + equals + value
            for name, equals, value in query
        ),
        "network.protocol.version": scope["http_version"],
        "client.address": (scope.get("client") or ("",))[0],
        "user_agent.original": headers.get(b"user-agent", b"").decode("latin-1"),
        **_address(headers.get(b"host", b"").decode("latin-1")),
    }
    return {name: value for name, value in attributes.items() if value}


def _tell(span: Span, scope: HTTPScope) -> None:
    """Add the attributes that are known after the request was served."""
    record = record_of(scope)
    span.set_attribute("http.response.status_code", record.status)
    if record.route != "unmatched":
        span.set_attribute("http.route", record.route)
        span.update_name(f"{_method(scope) or 'HTTP'} {record.route}")
    if record.workflow_id:
        span.set_attribute("temporalWorkflowID", record.workflow_id)
    if record.status >= 500:
        span.set_attribute("error.type", str(record.status))
        span.set_status(StatusCode.ERROR)
