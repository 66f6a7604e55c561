"""`GET /metrics`, as Prometheus reads it."""

import asyncio
import re
import signal
import uuid
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.service import RPCError

from api import assert_problem, eventually, order, samples, service
from commands import temporal_api
from temporal_api import __version__
from temporal_api.dev.server import DevServer, free_port
from temporal_api.metrics import MOST_SERIES, Metrics
from temporal_api.temporal.payloads import DATA_CONVERTER
from temporal_api.worker import create_worker

pytestmark = pytest.mark.anyio

OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0"
PROMETHEUS_ACCEPTS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"

SHOWN = {
    "temporal_request",
    "temporal_request_failure",
    "temporal_request_latency_bucket",
    "temporal_long_request",
    "temporal_long_request_latency_bucket",
    "temporal_workflow_completed",
    "temporal_workflow_endtoend_latency_bucket",
    "temporal_workflow_task_queue_poll_succeed",
    "temporal_workflow_task_schedule_to_start_latency_bucket",
    "temporal_workflow_task_execution_latency_bucket",
    "temporal_workflow_task_replay_latency_bucket",
    "temporal_activity_execution_latency_bucket",
    "temporal_activity_schedule_to_start_latency_count",
    "temporal_worker_task_slots_available",
    "temporal_worker_task_slots_used",
    "temporal_sticky_cache_size",
    "temporal_sticky_cache_hit",
}
"""What Temporal's published dashboard asks for and one order leaves behind."""


def lint(families: Any) -> dict[str, Any]:
    """The families by name, after the checks that Prometheus's own linter makes."""
    by_name = {}
    for family in families:
        assert family.documentation, family.name
        sdk = family.name.startswith("temporal_") and not family.name.startswith("temporal_api_")
        # The SDK's counters lack the `_total` without which OpenMetrics knows no counter.
        assert family.type in ("counter", "gauge", "histogram") or (sdk and family.type == "unknown"), family.name
        assert re.fullmatch("[a-z][a-z0-9_]*", family.name)
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert family.name not in by_name
        series = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        assert len(set(series)) == len(series)
        if family.type == "counter":
            assert all(sample.name == f"{family.name}_total" for sample in family.samples)
        by_name[family.name] = family
    return by_name


@pytest.mark.parametrize(
    ("accept", "media_type", "parse", "openmetrics"),
    [
        ("*/*", "text/plain; version=1.0.0; charset=utf-8", parse_text, False),
        ("text/plain;version=0.0.4", "text/plain; version=1.0.0; charset=utf-8", parse_text, False),
        (PROMETHEUS_ACCEPTS, f"{OPENMETRICS_TYPE}; charset=utf-8", parse_openmetrics, True),
        ("application/openmetrics-text;version=new", f"{OPENMETRICS_TYPE}; charset=utf-8", parse_openmetrics, True),
        (
            "a/b;q=1e999, Application/OpenMetrics-Text;q=0.0",
            "text/plain; version=1.0.0; charset=utf-8",
            parse_text,
            False,
        ),
        (
            "a/b;q=0, Application/OpenMetrics-Text ; Q=0.01",
            f"{OPENMETRICS_TYPE}; charset=utf-8",
            parse_openmetrics,
            True,
        ),
    ],
)
async def test_metrics_are_what_prometheus_asked_for(
    alice: httpx.AsyncClient, accept: str, media_type: str, parse: Any, openmetrics: bool
) -> None:
    """Well-formed in either format: HTTP, process, and the Temporal SDK's own metrics in one scrape."""
    await alice.get("/api/v1/orders/none")

    async def scrape() -> dict[str, Any] | None:
        response = await alice.get("/metrics", headers={"Accept": accept})
        assert media_type == response.headers["content-type"]
        assert openmetrics == response.text.endswith("# EOF\n")
        families = lint(parse(response.text))
        return families if "temporal_request" in families else None

    families = await eventually(scrape)
    expected = {"http_requests", "http_request_duration_seconds", "http_requests_in_progress", "temporal_api_info"}
    assert expected <= families.keys()
    assert {"temporal_request_latency", "process_resident_memory_bytes"} <= families.keys()
    assert {"version": __version__} == families["temporal_api_info"].samples[0].labels


async def test_labels_do_not_grow_with_what_callers_send(alice: httpx.AsyncClient) -> None:
    """Ids, unknown paths and odd methods add no series."""

    async def send(number: int) -> set[tuple[str, ...]]:
        for path in (f"/api/v1/orders/{number}", f"/{number}/{uuid.uuid4()}", f"/docs/assets/redoc/{number}.js"):
            await alice.get(path)
        await alice.get(f"/api/v1/workflows/{uuid.uuid4()}%2F{number}")
        await alice.request(["PROPFIND", "PURGE", "LOCK", "SEARCH"][number % 4], "/")
        return {key for key in await samples(alice) if key[0].startswith("http_")}

    first = await send(0)
    assert first == [await send(number) for number in range(1, 9)][-1]
    methods = {key[key.index("method") + 1] for key in first if "method" in key}
    assert methods <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "OTHER"}


async def test_what_the_sdk_measures_is_there(alice: httpx.AsyncClient) -> None:
    """Temporal's calls, their latency and their failures by operation, with no label that grows."""
    await alice.post("/api/v1/orders", json=order())
    await alice.get("/api/v1/orders/none")

    own = ("namespace", "default", "operation")
    service = ("service_name", "temporal-core-sdk")
    expected = {
        ("temporal_request", *own, "StartWorkflowExecution", *service),
        ("temporal_request_latency_count", *own, "StartWorkflowExecution", *service),
        ("temporal_request_latency_bucket", "le", "50.0", *own, "StartWorkflowExecution", *service),
        ("temporal_request_failure", *own, "DescribeWorkflowExecution", *service, "status_code", "NOT_FOUND"),
    }

    async def measured() -> set[tuple[str, ...]]:
        found = {key for key in await samples(alice) if re.match("temporal_(?!api_)", key[0])}
        return found if expected <= found else set()

    labels = {label for key in await eventually(measured) for label in key[1::2]}
    assert {"namespace", "operation", "service_name", "status_code", "le"} == labels


async def test_they_are_those_of_the_sdks_own_exporter(dev_server: DevServer, task_queue: str) -> None:
    """Names, labels, units and buckets: an order leaves behind the same as with the exporter that the SDK has."""
    port = free_port()
    exporter = PrometheusConfig(bind_address=f"127.0.0.1:{port}")
    metrics = Metrics()
    runtimes = [Runtime(telemetry=TelemetryConfig(metrics=exporter)), metrics.runtime()]
    for number, runtime in enumerate(runtimes):
        queue = f"{task_queue}-{number}"
        client = await Client.connect(dev_server.address, data_converter=DATA_CONVERTER, runtime=runtime)
        async with create_worker(client, queue):
            handle = client.get_workflow_handle(queue)
            await client.start_workflow("order_processing", {"id": queue, **order()}, id=queue, task_queue=queue)
            await handle.result()
            with pytest.raises(RPCError):
                await client.get_workflow_handle("none").describe()
    async with httpx.AsyncClient() as http:
        theirs = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    await metrics.measure()
    ours = generate_latest(metrics.registry).decode()

    def shapes(text: str) -> dict[str, set[Any]]:
        """The names of labels of each series, and the buckets; the exporter types its counters as such."""
        found: dict[str, set[Any]] = {}
        for family in parse_text(text):
            for sample in family.samples:
                if sample.name.startswith("temporal_") and not sample.name.startswith("temporal_api_"):
                    bucket = float(sample.labels.pop("le", 0))
                    found.setdefault(sample.name, set()).add((*sorted(sample.labels), bucket))
        return found

    expected, found = shapes(re.sub("^# TYPE (.*) counter$", r"# TYPE \1 untyped", theirs, flags=re.M)), shapes(ours)
    same = expected.keys() & found.keys()
    assert SHOWN <= same
    assert {name: expected[name] for name in same} == {name: found[name] for name in same}
    assert re.search(r'temporal_activity_task_received{.*eager="false"', ours)


async def test_the_sdks_series_are_bounded(dev_server: DevServer, client: Client, task_queue: str) -> None:
    """Whoever starts many types of workflows on the worker's queue adds no more than so many series of each metric."""
    metrics = Metrics()
    meter = metrics.runtime().metric_meter
    counter = meter.create_counter("odd", "Odd ones.")
    for number in range(MOST_SERIES + 50):
        counter.add(1, {"workflow_type": f"odd-{number}"})
    await metrics.measure()
    (family,) = (each for each in metrics.registry.collect() if each.name.endswith("odd"))

    assert MOST_SERIES + 1 == len(family.samples)
    assert [50.0] == [each.value for each in family.samples if each.labels["workflow_type"] == "other"]


async def test_the_limits_are_beside_what_they_limit(dev_server: DevServer, client: Client, task_queue: str) -> None:
    """Open waits and connections with their limits, the limit of requests, and what health tells."""
    limits = {"MAX_OPEN_WAITS": "7", "MAX_CONNECTIONS": "77", "MAX_REQUESTS": "17"}
    async with service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue, **limits) as alice:
        body = {"workflow_type": "none", "task_queue": task_queue}
        path = (await alice.post("/api/v1/workflows", json=body)).headers["location"]
        waiting = asyncio.create_task(alice.get(f"{path}/result", headers={"Prefer": "wait=60"}))

        async def is_open() -> dict[tuple[str, ...], float]:
            found = await samples(alice)
            return found if found["temporal_api_open_waits",] == 1 else {}

        found = await eventually(is_open)
        waiting.cancel()

        async def has_ended() -> bool:
            return (await samples(alice))["temporal_api_open_waits",] == 0

        await eventually(has_ended)
    names = ("temporal_api_open_waits_limit", "temporal_api_open_connections_limit", "temporal_api_requests_limit")
    assert [7, 77, 17] == [found[name,] for name in names]
    assert found["temporal_api_open_connections",] >= 1
    health = {key[2]: value for key, value in found.items() if key[0] == "temporal_api_health"}
    assert {"temporal": 1, "auth": 1, "orders_workers": 0} == health


async def test_metrics_port(dev_server: DevServer) -> None:
    """With METRICS_PORT the metrics are there and no longer on PORT; both tell that the process lives."""
    port = free_port()
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, METRICS_PORT=str(port)) as alice,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as scraper,
    ):
        assert_problem(await alice.get("/metrics"), 404, "not_found")
        assert_problem(await scraper.get("/api/v1/orders", headers=alice.headers), 404, "not_found")
        assert [200, 200] == [(await each.get("/health/live")).status_code for each in (alice, scraper)]
        assert ("temporal_api_open_waits",) in await samples(scraper)


async def test_the_worker_has_metrics_too(dev_server: DevServer, client: Client, task_queue: str) -> None:
    """On METRICS_PORT: its liveness before it has reached Temporal, then what it does for which workflows."""
    port = free_port()
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "ORDERS_TASK_QUEUE": task_queue, "METRICS_PORT": str(port)}
    async with (
        temporal_api("worker", **environ) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as scraper,
    ):
        await process.until("worker polls")
        assert {"status": "alive"} == (await scraper.get("/health/live")).json()
        arguments = {"id": task_queue, **order()}
        await client.execute_workflow("order_processing", arguments, id=task_queue, task_queue=task_queue)

        async def completed() -> bool:
            wanted = ("namespace", "default", "service_name", "temporal-core-sdk", "task_queue", task_queue)
            key = ("temporal_workflow_completed", *wanted, "workflow_type", "order_processing")
            return (await samples(scraper)).get(key) == 1

        await eventually(completed)
        assert 0 == await process.end(signal.SIGTERM), process.output
