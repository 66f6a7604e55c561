"""Health: what probes and people are told, and how often Temporal is asked for it."""

import asyncio
import time
import uuid
from datetime import UTC, datetime

import httpx
import pytest
from temporalio.client import Client

from api import SOON, eventually, service
from temporal_api import __version__
from temporal_api.dev.server import DevServer, free_port
from temporal_api.worker import create_worker

pytestmark = pytest.mark.anyio


async def asked(http: httpx.AsyncClient) -> float:
    """How often Temporal was asked for the namespace, which only health does, by the service's own metrics."""
    lines = (await http.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith("temporal_request{") and '"DescribeNamespace"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in found)


async def test_health_in_detail(http: httpx.AsyncClient) -> None:
    """With Temporal there: 200, each service's state, the version, and the time as it is now."""
    before = datetime.now(UTC)
    response = await http.get("/health")
    body = response.json()
    timestamp = datetime.fromisoformat(body.pop("timestamp"))
    workers = body["services"].pop("orders_workers")

    assert 200 == response.status_code
    services = {"temporal": "healthy", "auth": "healthy"}
    assert {"status": "healthy", "services": services, "version": __version__} == body
    assert workers in ("none", "polling")  # another test may have had one there
    assert before <= timestamp <= datetime.now(UTC)


async def test_probes(http: httpx.AsyncClient) -> None:
    """Ready and live say so and no more, without a token; a trailing slash makes no difference."""
    for path, state in (("/health/ready", "ready"), ("/health/live", "alive")):
        for slash in ("", "/"):
            response = await http.get(path + slash)
            assert (200, {"status": state}) == (response.status_code, response.json())
    assert 200 == (await http.get("/health/")).status_code


async def test_health_tells_whether_a_worker_polls(dev_server: DevServer, client: Client, task_queue: str) -> None:
    """No worker on the orders queue is told and fails nothing; one that comes is seen."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as http:

        async def workers() -> str:
            response = await http.get("/health")
            assert 200 == response.status_code
            state: str = response.json()["services"]["orders_workers"]
            return state

        async def seen() -> bool:
            return await workers() == "polling"

        assert "none" == await workers()
        async with create_worker(client, task_queue):
            assert await eventually(seen)


async def test_fifty_probes_ask_once(dev_server: DevServer) -> None:
    """However many health requests come at once, of whatever kind, Temporal is asked once a second."""
    async with service(TEMPORAL_ADDRESS=dev_server.address) as http:
        paths = ["/health", "/health/ready", "/health/live", "/health/ready", "/health/"] * 10
        began = time.monotonic()
        first = await asyncio.gather(*(http.get(path) for path in paths))
        again = await asyncio.gather(*(http.get(path) for path in paths))
        took = time.monotonic() - began

        assert {200} == {response.status_code for response in first + again}
        assert 1 <= await asked(http) <= 1 + took

        async def asked_again() -> bool:
            await http.get("/health/ready")
            return await asked(http) >= 2

        await eventually(asked_again)
        assert time.monotonic() - began >= 1


async def test_live_asks_nobody(dev_server: DevServer) -> None:
    """The liveness probe leaves Temporal alone."""
    async with service(TEMPORAL_ADDRESS=dev_server.address) as http:
        for _ in range(3):
            assert 200 == (await http.get("/health/live")).status_code
        assert 0 == await asked(http)


async def test_a_namespace_that_does_not_exist(dev_server: DevServer) -> None:
    """A service that was pointed to the wrong namespace is alive and not ready, and says what is wrong."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, TEMPORAL_NAMESPACE=f"no-{uuid.uuid4()}") as http:
        health, ready, live = [await http.get(f"/health{path}") for path in ("", "/ready", "/live")]

    assert (503, "unhealthy") == (health.status_code, health.json()["status"])
    assert health.json()["services"]["temporal"].startswith("unhealthy: ")
    assert (503, "not_ready") == (ready.status_code, ready.json()["status"])
    assert "temporal" in ready.json()["reason"]
    assert 200 == live.status_code


async def test_temporal_away() -> None:
    """Without Temporal: alive, not ready, and the answer comes at once."""
    async with service(TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}") as http:
        health, ready, live = [await http.get(f"/health{path}") for path in ("", "/ready", "/live")]

    assert [503, 503, 200] == [response.status_code for response in (health, ready, live)]
    assert max(response.elapsed for response in (health, ready, live)) < SOON


async def test_workers_are_told_and_never_fail_health(dev_server: DevServer) -> None:
    """When only the question for workers fails, the service is healthy and ready: it does without workers."""
    queue = "ü" * 1000  # longer than Temporal takes, which counts bytes
    async with service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=queue) as http:
        health, ready = await http.get("/health"), await http.get("/health/ready")

    assert {"temporal": "healthy", "orders_workers": "unknown", "auth": "healthy"} == health.json()["services"]
    assert [200, 200] == [health.status_code, ready.status_code]
