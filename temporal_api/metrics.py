"""The metrics of one process, and `GET /metrics`."""

import asyncio
from collections.abc import Callable
from typing import Any

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    exposition,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from temporalio.runtime import (
    BUFFERED_METRIC_KIND_COUNTER,
    BUFFERED_METRIC_KIND_GAUGE,
    BufferedMetric,
    MetricBuffer,
    MetricBufferDurationFormat,
    Runtime,
    TelemetryConfig,
)

from temporal_api.logs import DROPPED, SDK_LOGGING

disable_created_metrics()  # type: ignore[no-untyped-call] # nobody reads the second series of each counter


class Metrics:
    """The metrics of HTTP, of the process and of the Temporal SDK."""

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(DROPPED)
        labels = ("method", "route")
        self._requests = Counter("http_requests", "HTTP requests answered.", (*labels, "status"), registry=registry)
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Seconds from a request's first byte to its answer's last, without waits and streams.",
            labels,
            registry=registry,
        )
        self.in_progress = Gauge("http_requests_in_progress", "HTTP requests under way.", registry=registry)
        Gauge("temporal_api_info", "The running version.", ("version",), registry=registry).labels(version).set(1)
        self._http_series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._sdk = _SDKMetrics(registry)
        self._runtime: Runtime | None = None

    def runtime(self) -> Runtime:
        """Make the SDK's runtime, whose metrics come here."""
        if self._runtime is None:
            self._runtime = Runtime(telemetry=TelemetryConfig(metrics=self._sdk.buffer, logging=SDK_LOGGING))
        return self._runtime

    def count(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count one answered request. `seconds` is None for a wait or a stream: its caller chose how long it lasts."""
        key = (method, route, status)
        series = self._http_series.get(key)
        if series is None:  # looking up labels costs more than the rest of this method
            series = self._http_series[key] = (
                self._requests.labels(method, route, status),
                self._seconds.labels(method, route),
            )
        series[0].inc()
        if seconds is not None:
            series[1].observe(seconds)

    def drain(self) -> None:
        """Move what the SDK has measured into the registry."""
        if self._runtime is not None:  # the buffer cannot be read before a runtime writes to it
            self._sdk.drain()

    async def drain_forever(self) -> None:
        """Drain every second: the SDK's buffer is bounded."""
        while True:
            await asyncio.sleep(1)
            self.drain()


class _SDKMetrics:
    """The Temporal SDK's own metrics. Each is added to the registry when the SDK first measures it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.buffer = MetricBuffer(16_384, duration_format=MetricBufferDurationFormat.SECONDS)
        self._registry = registry
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}
        self._record: dict[tuple[str, str, str], Callable[[float], None]] = {}

    def drain(self) -> None:
        """Read the buffer, which empties it."""
        for update in self.buffer.retrieve_updates():
            metric, attributes = update.metric, update.attributes
            # Only these two of the SDK's labels are bounded.
            key = (metric.name, str(attributes.get("operation", "")), str(attributes.get("status_code", "")))
            if key not in self._record:
                self._record[key] = self._recorder(metric, *key[1:])
            self._record[key](update.value)

    def _recorder(self, metric: BufferedMetric, operation: str, status_code: str) -> Callable[[float], None]:
        """Give the function that records a value of this metric under these labels."""
        if metric.name not in self._metrics:
            self._metrics[metric.name] = self._make(metric)
        series = self._metrics[metric.name].labels(operation, status_code)
        if isinstance(series, Counter):
            return series.inc
        return series.set if isinstance(series, Gauge) else series.observe

    def _make(self, metric: BufferedMetric) -> Counter | Gauge | Histogram:
        name, labels = metric.name, ("operation", "status_code")
        description = f"The Temporal SDK's {name.replace('_', ' ')}."
        if metric.kind == BUFFERED_METRIC_KIND_COUNTER:
            return Counter(name, description, labels, registry=self._registry)
        if metric.kind == BUFFERED_METRIC_KIND_GAUGE:
            return Gauge(name, description, labels, registry=self._registry)
        lacks_unit = metric.unit in ("s", "seconds", "duration") and not name.endswith("_seconds")
        return Histogram(f"{name}_seconds" if lacks_unit else name, description, labels, registry=self._registry)


def metrics_route(metrics: Metrics) -> HTTPRouteHandler:
    """Make the route that Prometheus scrapes."""

    @get("/metrics", include_in_schema=False, sync_to_thread=False)
    def get_metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Every metric as Prometheus text, or as OpenMetrics for a client that accepts it."""
        metrics.drain()
        # The library's `choose_encoder` fails on a version that is no number, and claims any version that is asked for.
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            content = openmetrics.generate_latest(metrics.registry)  # type: ignore[no-untyped-call]
            return Response(content, media_type=openmetrics.CONTENT_TYPE_LATEST)
        media_type = exposition.CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8")  # Litestar adds it to text
        return Response(exposition.generate_latest(metrics.registry), media_type=media_type)

    return get_metrics
