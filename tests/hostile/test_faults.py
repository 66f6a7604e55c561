"""Temporal away, frozen, killed and back; the service told to stop. Every server here is the test's own."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.client import Client, WorkflowExecution

from api import SECRET, assert_problem, bearer, eventually, freeze, order, own_server, service
from commands import temporal_api
from temporal_api.dev.server import DevServer, free_port
from temporal_api.temporal.payloads import DATA_CONVERTER
from temporal_api.worker import StandIns, create_worker
from temporal_api.worker.order_processing import Order

pytestmark = pytest.mark.anyio

IN_TIME = timedelta(seconds=8)
"""RPC_TIMEOUT_SECONDS of these tests' services, which is 2, and what a busy machine may add; the default is 10."""


@asynccontextmanager
async def impatient(port: int, task_queue: str = "nobody-polls-this") -> AsyncIterator[httpx.AsyncClient]:
    """A service that gives Temporal, to be found at that port, two seconds for a call."""
    async with service(
        TEMPORAL_ADDRESS=f"127.0.0.1:{port}", RPC_TIMEOUT_SECONDS="2", ORDERS_TASK_QUEUE=task_queue
    ) as http:
        yield http


async def every_call(http: httpx.AsyncClient, order_id: str, workflow_id: str) -> dict[str, httpx.Response]:
    """Each kind of call at once: two that start something, two on an order, three on a workflow."""
    at_order, at_workflow = f"/api/v1/orders/{order_id}", f"/api/v1/workflows/{workflow_id}"
    calls = {
        "place": http.post("/api/v1/orders", json=order()),
        "start": http.post("/api/v1/workflows", json={"workflow_type": "any", "workflow_id": workflow_id}),
        "read": http.get(at_order),
        "cancel": http.post(at_order + "/cancel"),
        "get": http.get(at_workflow),
        "signal": http.post(at_workflow + "/signal", json={"signal_name": "any"}),
        "query": http.post(at_workflow + "/query", json={"query_name": "any"}),
    }
    return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))


def assert_temporal_is_away(answers: dict[str, httpx.Response], *errors: str) -> None:
    """Every call ended in time with one of these errors, which names whom it is about."""
    for name, response in answers.items():
        error = response.json()["error"]
        assert error in errors, f"{name}: {response.text}"
        problem = assert_problem(response, 503 if error == "temporal_connection_error" else 504, error)
        assert problem["details"]["workflow_id"], name
        assert response.elapsed < IN_TIME, name


async def state(http: httpx.AsyncClient) -> list[int]:
    """What the probes say: live, ready, health."""
    answers = await asyncio.gather(*(http.get(f"/health{path}") for path in ("/live", "/ready", "")))
    assert max(answer.elapsed for answer in answers) < IN_TIME
    return [answer.status_code for answer in answers]


async def recovered(http: httpx.AsyncClient) -> None:
    """Wait until the service is ready, and Temporal for workflows too: a part of it that comes somewhat later."""

    async def ready() -> bool:
        return (await http.get("/health/ready")).is_success

    async def looks_up_workflows() -> bool:
        return (await http.get("/api/v1/workflows/nobody")).status_code == 404

    await eventually(ready)
    await eventually(looks_up_workflows)


async def place(http: httpx.AsyncClient) -> dict[str, Any]:
    """Place an order."""
    response = await http.post("/api/v1/orders", json=order())
    assert 201 == response.status_code, response.text
    body: dict[str, Any] = response.json()
    return body


async def runs(server: DevServer) -> dict[str, list[str]]:
    """Every run of the server by workflow id, as of now."""
    client = await Client.connect(server.address)
    marker = await client.start_workflow("marker", id=f"marker-{uuid.uuid4()}", task_queue="nobody-polls-this")

    async def listed() -> list[WorkflowExecution]:
        found = [run async for run in client.list_workflows()]
        return found if marker.id in [run.id for run in found] else []

    by_id: dict[str, list[str]] = {}
    for run in await eventually(listed):
        if not run.id.startswith("marker-"):
            by_id.setdefault(run.id, []).append(run.run_id)
    return by_id


async def test_the_service_starts_before_temporal() -> None:
    """Alive and not ready while Temporal is not there; once it comes, the same service works, with no restart."""
    port = free_port()
    async with impatient(port) as http:
        before = await state(http)
        away = await every_call(http, "none", "none")
        async with own_server(port=port):
            await recovered(http)
            placed = await place(http)
            found = await http.get(f"/api/v1/orders/{placed['id']}")
            after = await state(http)

    assert [200, 503, 503] == before
    assert_temporal_is_away(away, "temporal_connection_error", "temporal_timeout")
    assert placed == found.json()["order"]
    assert [200, 200, 200] == after


async def test_an_address_that_accepts_and_says_nothing() -> None:
    """Connecting is part of the deadline; a connection that was given up on does not stand in the way of the next."""
    connections: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", free_port())
    port = silent.sockets[0].getsockname()[1]
    async with impatient(port) as http:
        hung, away = await asyncio.gather(state(http), every_call(http, "none", "none"))
        assert connections
        silent.close()
        for connection in connections:
            connection.transport.abort()
        async with own_server(port=port):
            await recovered(http)
            await place(http)

    assert [200, 503, 503] == hung
    assert_temporal_is_away(away, "temporal_connection_error", "temporal_timeout")


async def test_temporal_is_killed_and_comes_back(tmp_path: Path, task_queue: str) -> None:
    """Calls under way and after it end in 503 or 504 in time; back again, all is as it was and nothing ran twice."""
    port, db = free_port(), str(tmp_path / "temporal.db")
    ids = [f"crossing-{n}" for n in range(20)]
    async with impatient(port, task_queue) as http:
        async with own_server(port=port, db_filename=db) as server:
            await recovered(http)
            placed = await place(http)
            crossing = [http.post("/api/v1/workflows", json={"workflow_type": "any", "workflow_id": i}) for i in ids]
            under_way = [asyncio.ensure_future(call) for call in crossing]
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            os.kill(server.pid, signal.SIGKILL)
            crossed = dict(zip(ids, await asyncio.gather(*under_way), strict=True))
        away = await every_call(http, placed["id"], "away")
        state_away = await state(http)
        async with own_server(port=port, db_filename=db) as server:
            await recovered(http)
            again = {
                i: await http.post("/api/v1/workflows", json={"workflow_type": "any", "workflow_id": i}) for i in ids
            }
            found = await http.get(f"/api/v1/orders/{placed['id']}")
            there = await runs(server)
            client = await Client.connect(server.address, data_converter=DATA_CONVERTER)

            async def delivered() -> bool:
                answer = (await http.get(f"/api/v1/orders/{placed['id']}")).json()
                return bool(answer["order"]["status"] == "delivered")

            async with create_worker(client, task_queue):
                await eventually(delivered)

    assert_temporal_is_away(away, "temporal_connection_error", "temporal_timeout")
    assert [200, 503, 503] == state_away
    assert placed == found.json()["order"]
    assert {placed["workflow_id"], *ids} == there.keys()
    assert {1} == {len(of_id) for of_id in there.values()}
    for workflow_id, first in crossed.items():
        assert first.elapsed < IN_TIME
        if first.status_code == 201:  # what was promised was kept
            assert there[workflow_id] == [first.json()["run_id"]]
            assert_problem(again[workflow_id], 409, "workflow_already_exists")
        else:
            assert_temporal_is_away({workflow_id: first}, "temporal_connection_error", "temporal_timeout")
            assert again[workflow_id].status_code in (201, 409)


async def test_a_key_outlives_the_process_that_it_was_sent_to(task_queue: str) -> None:
    """Fifty at once with one key, half at a process that is killed, and sent again: one run, one charge, one answer."""
    body, key, charged = order(), {"Idempotency-Key": str(uuid.uuid4())}, []

    class Provider(StandIns):
        async def pretend(self, step: str, order: Order) -> None:
            charged.extend([order.id] * (step == "charge_payment"))

    async with own_server() as server:
        shop = {"JWT_SECRET": SECRET, "TEMPORAL_ADDRESS": server.address, "ORDERS_TASK_QUEUE": task_queue}
        ports = [free_port(), free_port()]
        async with (
            temporal_api("serve", PORT=str(ports[0]), **shop) as doomed,
            temporal_api("serve", PORT=str(ports[1]), **shop) as other,
            httpx.AsyncClient(headers=bearer(), timeout=30, limits=httpx.Limits(max_connections=100)) as http,
        ):
            for process in (doomed, other):
                await process.until("Uvicorn running")
            urls = [f"http://127.0.0.1:{port}" for port in ports]

            async def place_at(url: str) -> httpx.Response:
                return await http.post(f"{url}/api/v1/orders", json=body, headers=key)

            async def all_under_way() -> bool:
                return all(["http_requests_in_progress 26.0" in (await http.get(f"{u}/metrics")).text for u in urls])

            await freeze(server.pid)  # so that none is answered before all have been sent
            calls = [asyncio.create_task(place_at(url)) for url in urls for _ in range(25)]
            await eventually(all_under_way)
            doomed.process.kill()
            lost = await asyncio.gather(*calls[:25], return_exceptions=True)
            os.kill(server.pid, signal.SIGCONT)
            answers = await asyncio.gather(*calls[25:], *(place_at(urls[1]) for _ in lost))
            client = await Client.connect(server.address, data_converter=DATA_CONVERTER)
            async with create_worker(client, task_queue, Provider()):
                await client.get_workflow_handle(answers[0].json()["workflow_id"]).result()
            there = await runs(server)

    assert [True] * 25 == [isinstance(answer, httpx.TransportError) for answer in lost]
    assert {201} == {answer.status_code for answer in answers}
    (placed,) = {(answer.json()["id"], answer.json()["total_amount"]) for answer in answers}
    assert [placed[0]] == charged
    assert {f"order-{placed[0]}": 1} == {workflow_id: len(ids) for workflow_id, ids in there.items()}


async def test_a_worker_that_dies_after_the_charge(
    dev_server: DevServer, client: Client, task_queue: str, tmp_path: Path
) -> None:
    """Killed between the charge and its record, an order is charged again by its id, so once, and is delivered."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as alice:
        placed = await place(alice)

    async def work() -> asyncio.subprocess.Process:
        worker = (str(Path(__file__).with_name("crashing_worker.py")), dev_server.address, task_queue)
        return await asyncio.create_subprocess_exec(sys.executable, *worker, str(tmp_path))

    assert -signal.SIGKILL == await (await work()).wait()
    second = await work()
    result = await client.get_workflow_handle(placed["workflow_id"]).result()
    second.terminate()
    await second.wait()

    assert "delivered" == result["status"]
    assert [placed["id"]] * 2 == (tmp_path / "attempts").read_text().split()
    assert [placed["id"]] == os.listdir(tmp_path / "charges")


async def test_who_waits_is_not_told_of_temporals_absence(tmp_path: Path) -> None:
    """A stream and a wait for a result outlive Temporal's end, and tell what happens after it has come back."""
    port, db = free_port(), str(tmp_path / "temporal.db")
    told: list[str] = []
    async with impatient(port) as http:

        async def watch(path: str) -> None:
            async with http.stream("GET", f"{path}/events") as response:
                async for line in response.aiter_lines():
                    told.append(line)

        async def waits() -> bool:
            return "\ntemporal_long_request{" in (await http.get("/metrics")).text

        async def streams() -> bool:
            return bool(told)

        async def noticed() -> bool:
            return (await http.get("/health/ready")).status_code == 503

        async with own_server(port=port, db_filename=db) as server:
            await recovered(http)
            start = {"workflow_type": "nobody_runs_this", "task_queue": "nobody-polls-this"}
            path = (await http.post("/api/v1/workflows", json=start)).headers["location"]
            waiting = asyncio.create_task(http.get(f"{path}/result", headers={"Prefer": "wait=60"}))
            await eventually(waits)
            watching = asyncio.create_task(watch(path))
            await eventually(streams)
            os.kill(server.pid, signal.SIGKILL)
        await eventually(noticed)
        async with own_server(port=port, db_filename=db):
            await recovered(http)
            reason, admin = {"reason": "it is over"}, bearer(scope="workflows:admin")
            ended = await http.post(f"{path}/terminate", json=reason, headers=admin)
            assert ended.is_success, ended.text
            result, _ = await asyncio.gather(waiting, watching)

    assert (200, "TERMINATED") == (result.status_code, result.json()["status"])
    assert 1 == "".join(told).count("it is over")
    assert 1 == told.count("event: done")


async def test_temporal_freezes_and_thaws() -> None:
    """A Temporal that hangs is a 504 in time, and not ready; afterwards all goes on, and a start ran at most once."""
    async with own_server() as server, impatient(int(server.address.rpartition(":")[2])) as http:
        await recovered(http)
        placed = await place(http)
        await freeze(server.pid)
        try:
            frozen = await every_call(http, placed["id"], "frozen")
            state_frozen = await state(http)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await recovered(http)
        again = await http.post("/api/v1/workflows", json={"workflow_type": "any", "workflow_id": "frozen"})
        after = await every_call(http, placed["id"], "frozen")
        there = await runs(server)

    assert_temporal_is_away(frozen, "temporal_timeout")
    assert [200, 503, 503] == state_frozen
    assert again.status_code in (201, 409)
    statuses = {name: response.status_code for name, response in after.items() if name != "query"}
    assert {"place": 201, "start": 409, "read": 200, "get": 200, "signal": 202, "cancel": 204} == statuses
    assert {1} == {len(of_id) for of_id in there.values()}
    assert "frozen" in there


async def test_worker_waits_for_temporal(task_queue: str) -> None:
    """`temporal-api worker` may be started before Temporal: it tries again, works once it can, and stops when told."""
    port = free_port()
    environ = {"TEMPORAL_ADDRESS": f"127.0.0.1:{port}", "ORDERS_TASK_QUEUE": task_queue}
    async with temporal_api("worker", **environ) as first, temporal_api("worker", **environ) as second:
        await first.until("waiting for it")
        await second.until("waiting for it")
        code = await first.end(signal.SIGTERM)
        async with own_server(port=port):
            await second.until(f"worker polls {task_queue}")
            codes = code, await second.end(signal.SIGTERM)

    assert (0, 0) == codes, first.output + second.output
    assert "Traceback" not in first.output + second.output
