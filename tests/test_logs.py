"""The process's log, as whoever runs the service reads it."""

import json
import re
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import httpx
import pytest

from api import SECRET, assert_problem, bearer, eventually, order
from commands import Process, temporal_api
from temporal_api.dev.server import DevServer, free_port
from temporal_api.dev.server import dev_server as run_dev_server

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"


@asynccontextmanager
async def serve(address: str, **environ: str) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """`temporal-api serve`, listening, and a client with Alice's token."""
    port = free_port()
    async with temporal_api("serve", PORT=str(port), JWT_SECRET=SECRET, TEMPORAL_ADDRESS=address, **environ) as process:
        await process.until("Uvicorn running")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, headers=bearer()) as client:
            yield process, client


SECRETS = ("tok_secret_card", "Elm Street", "cust_of_alice", "argument_secret", "signal_secret", "query_secret")


async def use(client: httpx.AsyncClient, workflow_id: str) -> tuple[str, list[httpx.Response]]:
    """A few requests whose bodies nobody may find in a log; gives the order's id."""
    secret = order(
        customer_id="cust_of_alice",
        payment_details={"card_token": "tok_secret_card"},
        shipping_address={"street": "Elm Street"},
    )
    answered = [await client.post("/api/v1/orders", json=secret, headers={"traceparent": f"00-{TRACE}-{'a' * 16}-01"})]
    start = {"workflow_type": "t", "task_queue": "nobody", "workflow_id": workflow_id, "input_data": "argument_secret"}
    answered.append(await client.post("/api/v1/workflows", json=start))
    path = f"/api/v1/workflows/{quote(workflow_id, safe='')}"
    answered.append(await client.post(f"{path}/signal", json={"signal_name": "s", "signal_input": "signal_secret"}))
    answered.append(await client.get(f"{path}?run_id=query_secret"))
    answered.append(await client.get(path, headers={"Authorization": "Bearer token_secret"}))
    answered.append(await client.post("/api/v1/orders", content=b'{"customer_id": "cust_of_alice"'))
    return str(answered[0].json()["id"]), answered


async def test_the_log_has_one_json_line_for_each_request(dev_server: DevServer) -> None:
    """The line says who asked for what, how it ended and how long it took; every line of the process is JSON."""
    workflow_id = f"a/b c-{uuid.uuid4()}"
    async with serve(dev_server.address) as (process, client):
        order_id, answered = await use(client, workflow_id)
        assert 0 == await process.end(signal.SIGTERM)

    lines = [json.loads(line) for line in process.output.splitlines()]
    requests = [line for line in lines if line["logger"] == "temporal_api.access"]
    assert [r.headers["x-request-id"] for r in answered] == [line["request_id"] for line in requests]
    assert [201, 201, 202, 400, 401, 415] == [line["status"] for line in requests]
    placed, started, signalled, _, refused, _ = requests
    told = {key: value for key, value in placed.items() if key not in ("time", "duration_ms", "request_id")}
    assert {
        "level": "info",
        "logger": "temporal_api.access",
        "message": "request",
        "trace_id": TRACE,
        "method": "POST",
        "route": "/api/v1/orders",
        "path": "/api/v1/orders",
        "status": 201,
        "user": "alice",
        "workflow_id": f"order-{order_id}",
    } == told
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(placed["time"]) < timedelta(minutes=1)
    assert 0 < placed["duration_ms"] < 30_000
    assert [workflow_id, workflow_id] == [started["workflow_id"], signalled["workflow_id"]]
    assert quote(workflow_id, safe="") in signalled["path"]
    assert "/api/v1/workflows/{workflow_id}/signal" == signalled["route"]
    assert (None, None) == (refused["user"], refused["trace_id"])


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_the_log_holds_no_token_and_no_body(dev_server: DevServer, log_format: str) -> None:
    """At the most talkative level too, nothing that a caller sent in a body, a query or a header is in it."""
    async with serve(dev_server.address, LOG_FORMAT=log_format, LOG_LEVEL="debug") as (process, client):
        _, answered = await use(client, str(uuid.uuid4()))
        assert 0 == await process.end(signal.SIGTERM)

    token = answered[0].request.headers["authorization"].removeprefix("Bearer ")
    assert 6 == process.output.count("status=" if log_format == "console" else '"status":')
    assert [] == [secret for secret in (*SECRETS, token, "token_secret", SECRET) if secret in process.output]


async def test_the_console_format_is_one_readable_line(dev_server: DevServer) -> None:
    """LOG_FORMAT=console: the clock, the level, what was asked; no caller can write a line of it."""
    workflow_id = f"{uuid.uuid4()}\n12:00:00 error forged"
    async with serve(dev_server.address, LOG_FORMAT="console") as (process, client):
        start = {"workflow_type": "t", "task_queue": "nobody", "workflow_id": workflow_id}
        assert 201 == (await client.post("/api/v1/workflows", json=start)).status_code
        assert 0 == await process.end(signal.SIGTERM)

    (line,) = [line for line in process.output.splitlines() if "status=201" in line]
    assert re.match(r"\d\d:\d\d:\d\d info +request .*method=POST route=/api/v1/workflows ", line)
    assert "user=alice" in line
    assert "\\n12:00:00 error forged" in line
    assert [] == [line for line in process.output.splitlines() if line.startswith("12:00:00 error forged")]


async def answers(client: httpx.AsyncClient) -> bool:
    """Whether it listens by now."""
    try:
        return (await client.get("/")).status_code == 200
    except httpx.ConnectError:
        return False


async def test_a_higher_level_keeps_requests_out(dev_server: DevServer) -> None:
    """LOG_LEVEL=error: a request that went well is not worth a line."""
    port = free_port()
    async with (
        temporal_api(
            "serve", PORT=str(port), JWT_SECRET=SECRET, TEMPORAL_ADDRESS=dev_server.address, LOG_LEVEL="error"
        ) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        await eventually(lambda: answers(client))
        assert 0 == await process.end(signal.SIGTERM)

    assert "" == process.output


async def test_the_sdks_own_log_is_in_ours(anyio_backend: str) -> None:
    """What the Temporal SDK has to say, here of a server that went away, is JSON lines of the same form."""
    async with AsyncExitStack() as away:
        server = await away.enter_async_context(run_dev_server())
        async with serve(server.address, RPC_TIMEOUT_SECONDS="5") as (process, client):
            assert 200 == (await client.get("/health/ready")).status_code
            await away.aclose()
            assert_problem(await client.get("/api/v1/orders/x"), 503, "temporal_connection_error")
            found = await process.until('.*"logger":"temporalio".*')
            assert 0 == await process.end(signal.SIGTERM)

    line = json.loads(found[0])
    assert "warning" == line["level"]
    assert "describe_workflow_execution" in line["message"]
    assert {"time", "level", "logger", "message"} <= line.keys()
    assert all(json.loads(line) for line in process.output.splitlines())
