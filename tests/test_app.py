"""What developers rely on: no route lets a caller see what is not theirs, and any ASGI server can run the app."""

import asyncio
import json
import signal
import socket
import uuid
from pkgutil import iter_modules
from typing import Any

import httpx
import pytest
from temporalio.client import Client

import temporal_api
from api import SECRET, assert_problem, bearer, eventually, order
from commands import command
from temporal_api.dev.server import DevServer, free_port

FACTORY = "temporal_api.app:create_app"
SERVERS = [("uvicorn", "--factory", FACTORY, "--no-access-log"), ("litestar", "--app", FACTORY, "run")]


def test_the_map_names_every_module() -> None:
    """The package's docstring tells of each module in it."""
    names = {module.name for module in iter_modules(temporal_api.__path__)} - {"__main__"}

    assert [] == [name for name in sorted(names) if name not in str(temporal_api.__doc__)]


@pytest.mark.anyio
async def test_no_call_reaches_an_order_of_another(
    alice: httpx.AsyncClient, client: Client, contract: dict[str, Any]
) -> None:
    """Whatever the operation: with every other scope, Bob gets the 404 of an order that never was, and does nothing."""
    placed = (await alice.post("/api/v1/orders", json=order())).json()
    scopes = {way["bearer"][0] for operation in every(contract) for way in operation["security"]}
    bob = bearer("bob", " ".join(scopes - {"orders:admin"}))
    seen = 0
    for path, item in contract["paths"].items():
        for method, operation in item.items():
            if "{" not in path:
                continue
            content = operation.get("requestBody", {}).get("content", {})
            body = content["application/json"]["example"] if content else None
            told = []
            for order_id in (placed["id"], str(uuid.uuid4())):
                ids = {"order_id": order_id, "workflow_id": f"order-{order_id}", "update_id": "x"}
                answer = await alice.request(method, path.format_map(ids), json=body, headers=bob)
                code = "order_not_found" if "order_id" in path else "workflow_not_found"
                problem = assert_problem(answer, 404, code)
                told.append(str([problem["message"], problem["details"]]).replace(order_id, "ID"))
            assert told[0] == told[1]
            seen += 1
    history = await client.get_workflow_handle(placed["workflow_id"]).fetch_history()

    assert seen >= 15
    assert [1, 5] == [event.event_type for event in history.events]  # started, and a task for a worker


def every(contract: dict[str, Any]) -> list[dict[str, Any]]:
    """The operations that need a token."""
    return [each for item in contract["paths"].values() for each in item.values() if each.get("security")]


@pytest.mark.anyio
@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server[0])
async def test_any_server_that_takes_a_factory_runs_it(server: tuple[str, ...], dev_server: DevServer) -> None:
    """`create_app` reads the environment by itself; told to end, the server is not held up by waits and streams."""
    port = str(free_port())
    environ = {"JWT_SECRET": SECRET, "TEMPORAL_ADDRESS": dev_server.address}
    async with (
        command(*server, "--port", port, **environ) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, headers=bearer()) as alice,
    ):
        await process.until("Uvicorn running")
        assert 200 == (await alice.get("/health/ready")).status_code
        body = {"workflow_type": "nobody_runs_this", "task_queue": str(uuid.uuid4())}
        path = (await alice.post("/api/v1/workflows", json=body)).headers["location"]
        wait = asyncio.create_task(alice.get(f"{path}/result", headers={"Prefer": "wait=30"}))
        async with alice.stream("GET", f"{path}/events") as stream:
            text = stream.aiter_text()
            first = await anext(text)

            async def both_under_way() -> bool:
                return "http_requests_in_progress 3.0" in (await alice.get("/metrics")).text

            await eventually(both_under_way)
            process.process.send_signal(signal.SIGTERM)

            async with asyncio.timeout(20):
                assert (first + "".join([more async for more in text])).endswith("retry: 1000\n")
        assert 202 == (await wait).status_code
        await process.end(seconds=20)
    logged = [json.loads(line).get("path") for line in process.output.splitlines() if line.startswith("{")]
    assert {"/api/v1/workflows", f"{path}/result", f"{path}/events"} <= set(logged)
    assert "Traceback" not in process.output


@pytest.mark.anyio
@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server[0])
async def test_a_wrong_setting_stops_any_server_in_one_clear_line(server: tuple[str, ...]) -> None:
    """It names the variable and what is wrong with it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = f"METRICS_PORT: cannot listen on 127.0.0.1 port {port}: Address already in use"
        short = "temporal_api.settings.SettingsError: JWT_SECRET: too short, expected 32 random bytes or more"
        for secret, problem in (("short", short), (SECRET, f"RuntimeError: {busy}")):
            async with command(*server, JWT_SECRET=secret, METRICS_PORT=str(port)) as process:
                assert 0 != await process.end()
            assert problem == process.output.strip().splitlines()[-1]
