"""The metrics of one process, and `GET /metrics`."""

import asyncio
from collections import defaultdict
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
from temporalio import runtime as sdk
from temporalio.runtime import BufferedMetric, Runtime, TelemetryConfig

from temporal_api import __version__
from temporal_api.logs import DROPPED, SDK_LOGGING
from temporal_api.requests import accepted

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

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
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
        Gauge("temporal_api_info", "The running version.", ("version",), registry=registry).labels(__version__).set(1)
        described = "What /health tells of a service. 1: it is there; 0: it is not; NaN: unknown."
        self._health = Gauge("temporal_api_health", described, ("service",), registry=registry)
        self._http_series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._sdk = _SDKMetrics(without)
        registry.register(self._sdk)
        self.check_health: Callable[[float], Awaitable[Mapping[str, str]]] | None = None
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
        """Bring the registry up to date."""
        self.drain()
        if self.check_health is not None:
            for service, state in (await self.check_health(CHECK_EVERY_SECONDS)).items():
                self._health.labels(service).set(_HEALTH.get(state, 0.0))

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
        self._metrics: dict[str, BufferedMetric] = {}
        self._series: defaultdict[str, dict[tuple[tuple[str, object], ...], Gauge | Histogram]] = defaultdict(dict)

    def drain(self) -> None:
        """Read and empty the buffer. Beyond the most series, new labels share one."""
        for update in self.buffer.retrieve_updates():
            metric = self._metrics.setdefault(update.metric.name, update.metric)
            series = self._series[metric.name]
            labels = tuple(label for label in update.attributes.items() if label[0] not in self._without)
            if labels not in series:
                if len(series) >= MOST_SERIES:
                    labels = tuple((name, OTHER) for name, _ in labels)
                series.setdefault(labels, _values(metric))
            match series[labels]:
                case Histogram() as histogram:
                    histogram.observe(update.value)
                case gauge if metric.kind == sdk.BUFFERED_METRIC_KIND_GAUGE:
                    gauge.set(update.value)
                case counter:
                    counter.inc(update.value)

    def collect(self) -> Iterator[Metric]:
        """Yield each metric that the SDK has measured so far."""
        for metric in self._metrics.values():
            told = Metric(metric.name, metric.description or metric.name, _KINDS.get(metric.kind, "histogram"))
            for labels, values in self._series[metric.name].items():
                named = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in labels}
                (family,) = values.collect()
                told.samples += [sample._replace(labels={**named, **sample.labels}) for sample in family.samples]
            yield told


def _values(metric: BufferedMetric) -> Gauge | Histogram:
    if metric.kind in _KINDS:
        return Gauge(metric.name, metric.name, registry=None)
    return Histogram(metric.name, metric.name, buckets=_BUCKETS.get(metric.name, _REQUEST_BUCKETS), registry=None)


def metrics_route(metrics: Metrics) -> HTTPRouteHandler:
    """Make the route that Prometheus scrapes."""

    @get("/metrics", include_in_schema=False)
    async def get_metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Every metric as Prometheus text, or as OpenMetrics for a client that accepts it."""
        await metrics.measure()
        # The library's `choose_encoder` fails on a version that is not a number, and knows no weights.
        if accepted(request.headers.get("accept", "").encode()).get(b"application/openmetrics-text"):
            content = openmetrics.generate_latest(metrics.registry)  # type: ignore[no-untyped-call]
            return Response(content, media_type=openmetrics.CONTENT_TYPE_LATEST)
        media_type = exposition.CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8")  # Litestar adds it to text
        return Response(exposition.generate_latest(metrics.registry), media_type=media_type)

    return get_metrics
