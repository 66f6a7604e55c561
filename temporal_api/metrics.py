"""The metrics of one process, and `GET /metrics`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, disable_created_metrics, exposition
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from temporalio import runtime as sdk
from temporalio.runtime import BufferedMetric, Runtime, TelemetryConfig

from temporal_api.logs import DROPPED, SDK_LOGGING

CHECK_EVERY_SECONDS = 10.0
"""How old the health in a scrape may be. Mostly a probe has just asked for it."""
MOST_SERIES = 200
"""The most series of one SDK metric: a worker's metrics have workflow types as labels, which callers choose."""
OTHER = "other"
"""The value of each label in the series that counts the rest."""

# A counter's name would have to end with `_total`.
_KINDS = {sdk.BUFFERED_METRIC_KIND_COUNTER: "unknown", sdk.BUFFERED_METRIC_KIND_GAUGE: "gauge"}
# The exporter's buckets, in milliseconds.
_REQUEST_BUCKETS = (50, 100, 500, 1000, 2500, 10_000)
_SCHEDULE_BUCKETS = (100, 500, 1000, 5000, 10_000, 100_000, 1_000_000)
_TASK_BUCKETS = (1, 10, 20, 50, 100, 200, 500, 1000)
_BUCKETS = {  # by default those of requests
    "temporal_activity_execution_latency": (50, 100, 500, 1000, 5000, 10_000, 60_000),
    "temporal_activity_schedule_to_start_latency": _SCHEDULE_BUCKETS,
    "temporal_workflow_task_schedule_to_start_latency": _SCHEDULE_BUCKETS,
    "temporal_workflow_task_execution_latency": _TASK_BUCKETS,
    "temporal_workflow_task_replay_latency": _TASK_BUCKETS,
    "temporal_workflow_endtoend_latency": (
        *(100, 500, 1000, 1500, 2000, 5000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000),
        *(1_800_000, 3_600_000, 30_600_000, 86_400_000),
    ),
}
_HEALTH = {"healthy": 1.0, "polling": 1.0, "unknown": float("nan")}

disable_created_metrics()  # type: ignore[no-untyped-call] # no one needs a `_created` series for each counter


class Metrics:
    """The metrics of HTTP, of the process and of the Temporal SDK."""

    def __init__(self, version: str, without: frozenset[str] = frozenset()) -> None:
        """`without`: the SDK's labels that are left out."""
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
        self.in_progress = 0
        in_progress = Gauge("http_requests_in_progress", "HTTP requests under way.", registry=registry)
        in_progress.set_function(lambda: self.in_progress)
        Gauge("temporal_api_info", "The running version.", ("version",), registry=registry).labels(version).set(1)
        described = "What /health tells of a service. 1: it is there; 0: it is not; NaN: unknown."
        self._health = Gauge("temporal_api_health", described, ("service",), registry=registry)
        self._http_series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._sdk = _SDKMetrics(without)
        registry.register(self._sdk)
        self.check_health: Callable[[float], Awaitable[Mapping[str, str]]] | None = None
        self._seen = False
        self._runtime: Runtime | None = None

    def runtime(self) -> Runtime:
        """Make the SDK's runtime, with its metrics collected here."""
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

    def watch(self, name: str, description: str, value: Callable[[], float], limit: float) -> None:
        """Show a number, read at each scrape, and its limit."""
        Gauge(name, description, registry=self.registry).set_function(value)
        self.limit(name, f"The most that {name} may be.", limit)

    def limit(self, name: str, description: str, limit: float) -> None:
        """Show the limit of a number."""
        Gauge(f"{name}_limit", description, registry=self.registry).set(limit)

    async def measure(self) -> None:
        """Bring the registry up to date. Only repeated scrapes ask Temporal for the health."""
        self.drain()
        if self.check_health is not None and self._seen:
            for service, state in (await self.check_health(CHECK_EVERY_SECONDS)).items():
                self._health.labels(service).set(_HEALTH.get(state, 0.0))
        self._seen = True

    def drain(self) -> None:
        """Move what the SDK has measured into the registry."""
        if self._runtime is not None:  # the buffer cannot be read before a runtime uses it
            self._sdk.drain()

    async def drain_forever(self) -> None:
        """Drain every second: the SDK's buffer is bounded."""
        while True:
            await asyncio.sleep(1)
            self.drain()


class _SDKMetrics(Collector):
    """The Temporal SDK's own metrics, with the names, units and labels that its Prometheus exporter has by default.

    The exporter itself needs a port of its own, and shows the task queue, which callers choose.
    """

    def __init__(self, without: frozenset[str]) -> None:
        self.buffer = sdk.MetricBuffer(16_384, duration_format=sdk.MetricBufferDurationFormat.MILLISECONDS)
        self._without = without
        self._families: dict[str, tuple[BufferedMetric, dict[tuple[object, ...], _Series]]] = {}

    def drain(self) -> None:
        """Read and empty the buffer. Beyond the most series, new labels share one."""
        for update in self.buffer.retrieve_updates():
            metric, labels = update.metric, update.attributes
            if not self._without.isdisjoint(labels):
                labels = {name: value for name, value in labels.items() if name not in self._without}
            _, family = self._families.get(metric.name) or self._families.setdefault(metric.name, (metric, {}))
            series = family.get(tuple(labels.items()))
            if series is None:
                if len(family) >= MOST_SERIES:
                    labels = dict.fromkeys(labels, OTHER)
                key = tuple(labels.items())
                series = family[key] = family.get(key) or _Series(metric, labels)
            series.record(update.value)

    def collect(self) -> Iterator[Metric]:
        """Yield each metric that the SDK has measured so far."""
        for metric, family in self._families.values():
            told = Metric(metric.name, metric.description or metric.name, _KINDS.get(metric.kind, "histogram"))
            for series in family.values():
                told.samples += series.samples()
            yield told


class _Series:
    """One metric of the SDK under one set of labels."""

    def __init__(self, metric: BufferedMetric, labels: Mapping[str, object]) -> None:
        self._labels = {n: str(value).lower() if isinstance(value, bool) else str(value) for n, value in labels.items()}
        self._values: Gauge | Histogram
        self.record: Callable[[float], None]
        if metric.kind in _KINDS:
            self._values = gauge = Gauge(metric.name, metric.name, registry=None)
            self.record = gauge.set if _KINDS[metric.kind] == "gauge" else gauge.inc
        else:
            buckets = _BUCKETS.get(metric.name, _REQUEST_BUCKETS)
            self._values = histogram = Histogram(metric.name, metric.name, buckets=buckets, registry=None)
            self.record = histogram.observe

    def samples(self) -> Iterator[Sample]:
        (family,) = self._values.collect()
        for sample in family.samples:
            yield sample._replace(labels={**self._labels, **sample.labels})


def metrics_route(metrics: Metrics) -> HTTPRouteHandler:
    """Make the route that Prometheus scrapes."""

    @get("/metrics", include_in_schema=False)
    async def get_metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Every metric as Prometheus text, or as OpenMetrics for a client that accepts it."""
        await metrics.measure()
        # The library's `choose_encoder` fails on a version that is not a number, and claims to send any version.
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            content = openmetrics.generate_latest(metrics.registry)  # type: ignore[no-untyped-call]
            return Response(content, media_type=openmetrics.CONTENT_TYPE_LATEST)
        media_type = exposition.CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8")  # Litestar adds it to text
        return Response(exposition.generate_latest(metrics.registry), media_type=media_type)

    return get_metrics
