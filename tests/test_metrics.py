"""`GET /metrics`, as Prometheus reads it."""

import re
import uuid
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from api import eventually, order, samples
from temporal_api import __version__

pytestmark = pytest.mark.anyio

OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0"
PROMETHEUS_ACCEPTS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"


def lint(families: Any) -> dict[str, Any]:
    """The families by name, after the checks that Prometheus's own linter makes."""
    by_name = {}
    for family in families:
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
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
    assert {"temporal_request_latency_seconds", "process_resident_memory_bytes"} <= families.keys()
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

    started = ("operation", "StartWorkflowExecution", "status_code", "")
    missed = ("operation", "DescribeWorkflowExecution", "status_code", "NOT_FOUND")
    expected = {
        ("temporal_request_total", *started),
        ("temporal_request_latency_seconds_count", *started),
        ("temporal_request_failure_total", *missed),
    }

    async def measured() -> set[tuple[str, ...]]:
        found = {key for key in await samples(alice) if key[0].startswith("temporal_") and "version" not in key}
        return found if expected <= found else set()

    labels = {label for key in await eventually(measured) for label in key[1::2]}
    assert {"operation", "status_code", "le"} == labels
