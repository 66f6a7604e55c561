"""The process's log, as whoever runs the service reads it."""

import asyncio
import json
import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from api import SECRET, assert_problem, bearer, eventually, order, own_server, samples
from commands import Process, temporal_api
from temporal_api.dev.server import DevServer, free_port
from temporal_api.logs import ConsoleFormatter, JSONFormatter

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
        "client": "127.0.0.1",
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


def lines_of(process: Process) -> list[dict[str, Any]]:
    """Each line of the process, all of which are JSON in ASCII."""
    assert process.output.isascii()
    return [json.loads(line) for line in process.output.splitlines()]


async def test_an_outage_is_told_in_few_words(anyio_backend: str) -> None:
    """Temporal gone: one short warning a request, the cause once a second, the readiness once."""
    async with own_server() as server, serve(server.address, RPC_TIMEOUT_SECONDS="3") as (process, client):
        assert 200 == (await client.get("/health/ready")).status_code
        os.kill(server.pid, signal.SIGKILL)

        async def not_ready() -> bool:
            return (await client.get("/health/ready")).status_code == 503

        await eventually(not_ready)
        refused = await asyncio.gather(*(client.get(f"/api/v1/orders/{number}") for number in range(20)))
        assert await not_ready()
        assert 0 == await process.end(signal.SIGTERM)

    for answer in refused:
        assert_problem(answer, 503, "temporal_connection_error")
    lines = lines_of(process)
    requests = [line for line in lines if line["logger"] == "temporal_api.access"]
    assert {answer.headers["x-request-id"] for answer in refused} == {line["request_id"] for line in requests}
    assert [("warning", 503)] * 20 == [(line["level"], line["status"]) for line in requests]
    (ready,) = [line for line in lines if line["logger"] == "temporal_api.checks"]
    assert ("warning", True) == (ready["level"], ready["message"].startswith("not ready: "))
    causes = [line for line in lines if line["logger"] == "temporal_api.temporal.failures"]
    assert {"warning"} == {line["level"] for line in causes}
    assert all(line["message"].startswith("Temporal cannot be reached: ") for line in causes)
    took = datetime.fromisoformat(lines[-1]["time"]) - datetime.fromisoformat(lines[0]["time"])
    assert len(causes) <= took.total_seconds() + 1
    assert max(len(line) for line in process.output.splitlines()) < 1024


async def test_probes_are_told_at_debug_only(dev_server: DevServer) -> None:
    """LOG_LEVEL=debug has a line for each probe and scrape; nobody else is bothered with them."""
    probes = ["/health", "/health/ready", "/health/live", "/metrics", "/temporal/health/live", "/temporal/metrics"]
    levels = {}
    for level in ("debug", "info"):
        async with serve(dev_server.address, LOG_LEVEL=level, ROOT_PATH="/temporal") as (process, client):
            assert [200] * 6 == [(await client.get(path)).status_code for path in probes]
            assert 0 == await process.end(signal.SIGTERM)
        levels[level] = [(x["level"], x["path"]) for x in lines_of(process) if x["logger"] == "temporal_api.access"]

    assert {"debug": [("debug", path) for path in probes], "info": []} == levels


async def test_a_503_is_told_at_warning() -> None:
    """LOG_LEVEL=warning leaves out what went well, and nothing of what callers could not have."""
    port = free_port()
    environ = {"PORT": str(port), "JWT_SECRET": SECRET, "TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}"}
    async with (
        temporal_api("serve", LOG_LEVEL="warning", **environ) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, headers=bearer()) as client,
    ):
        await eventually(lambda: answers(client))
        assert_problem(await client.get("/api/v1/orders/x"), 503, "temporal_connection_error")
        assert_problem(await client.get("/nothing"), 404, "not_found")
        assert 0 == await process.end(signal.SIGTERM)

    told = [line for line in lines_of(process) if line["logger"] == "temporal_api.access"]
    assert [("warning", "/api/v1/orders/x", 503)] == [(line["level"], line["path"], line["status"]) for line in told]


@pytest.mark.parametrize("trusted", ["127.0.0.1, 10.0.0.0/8", "10.0.0.0/8"])
async def test_the_clients_address_is_told(dev_server: DevServer, trusted: str) -> None:
    """X-Forwarded-For counts when it comes from one of FORWARDED_ALLOW_IPS, back to the first that is none of them."""
    told = {
        "203.0.113.7": "203.0.113.7",
        "198.51.100.1, 203.0.113.7, 10.1.2.3": "203.0.113.7",
        "203.0.113.7:4711": "203.0.113.7",
        "[2001:db8::1]:4711": "2001:db8::1",
        "": "127.0.0.1",
    }
    async with serve(dev_server.address, FORWARDED_ALLOW_IPS=trusted) as (process, client):
        for sent in told:
            headers = {"X-Forwarded-For": sent, "X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "evil.example"}
            assert 200 == (await client.get("/", headers=headers)).status_code
        assert 0 == await process.end(signal.SIGTERM)

    lines = [line["client"] for line in lines_of(process) if line["logger"] == "temporal_api.access"]
    assert (list(told.values()) if "127.0.0.1" in trusted else ["127.0.0.1"] * len(told)) == lines


async def test_no_line_is_lost_and_none_overtakes(dev_server: DevServer) -> None:
    """A reader that comes late, when the process was told to end, gets each line, in order."""
    async with serve(dev_server.address) as (process, client):
        for number in range(1000):
            await client.get("/", headers={"X-Request-ID": str(number)})
        assert 0 == await process.end(signal.SIGTERM)

    assert list(map(str, range(1000))) == [line["request_id"] for line in lines_of(process) if "request_id" in line]


async def test_a_reader_that_stalls_holds_nobody_up(dev_server: DevServer) -> None:
    """2,000 requests while nobody reads the log: all are answered, lines are counted as dropped, SIGTERM ends it."""
    async with serve(dev_server.address) as (process, client):
        path = "/" + "a" * 900

        async def ask(times: int) -> list[int]:
            return [(await client.get(path)).status_code for _ in range(times)]

        statuses = await asyncio.gather(*(ask(100) for _ in range(20)))
        assert [[404] * 100] * 20 == statuses
        assert 200 == (await client.get("/health/live")).status_code
        dropped = (await samples(client))[("temporal_api_log_lines_dropped_total",)]
        assert 0 < dropped < 2000
        process.process.send_signal(signal.SIGTERM)

        async def ended() -> bool:
            return process.process.returncode is not None

        await eventually(ended, seconds=20)
        assert 0 == await process.end()  # and nothing of the pipe stays open


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_the_workers_log_has_one_format(anyio_backend: str, log_format: str) -> None:
    """What the worker and the core of its SDK say of a server that went away has the form of all other lines."""
    async with own_server() as server:
        environ = {"TEMPORAL_ADDRESS": server.address, "LOG_FORMAT": log_format}
        async with temporal_api("worker", **environ) as process:
            await process.until("worker polls")
            os.kill(server.pid, signal.SIGKILL)
            await process.until("gRPC call .* retried")
            assert 0 == await process.end(signal.SIGINT)

    lines = process.output.splitlines()
    if log_format == "json":
        assert {"time", "level", "logger", "message"} <= set.intersection(*(set(json.loads(line)) for line in lines))
    else:
        assert [] == [line for line in lines if not re.match(r"\d\d:\d\d:\d\d (info|warning|error) +\w", line)]
    assert "\x1b" not in process.output


FORGED = "a\n12:00:00 error forged\r\u2028\x1b[2J\x9b\u202e\ud800 é"


def record(message: str, **fields: object) -> logging.LogRecord:
    """A record with an exception; all that a caller can influence says the same."""
    try:
        raise ValueError(message)
    except ValueError:
        record = logging.LogRecord(message, logging.ERROR, "", 0, "%s", (message,), sys.exc_info())
    record.fields = fields
    return record


def test_json_lines_are_ascii() -> None:
    """Every reader of lines splits them where they end, and the text is what it was."""
    line = JSONFormatter().format(record(FORGED, user=FORGED, path="é"))

    assert (1, True) == (len(line.splitlines()), line.isascii())
    told = json.loads(line)
    assert "é" == told["path"]
    assert FORGED.replace("\ud800", "\\ud800") == told["user"] == told["message"]
    assert "ValueError: a\\n12:00:00 error forged" in told["traceback"]


def test_the_console_prints_no_control_character_of_a_caller() -> None:
    """In a message, a field or a traceback: no line can be forged, no terminal be steered."""
    first, *below = ConsoleFormatter().format(record(FORGED, user=FORGED)).split("\n")

    assert 2 == first.count("a\\n12:00:00 error forged\\r\\u2028\\x1b[2J\\x9b\\u202e\\ud800 é")
    assert below[-1].startswith("  ValueError: a\\n12:00:00 error forged")
    assert all(line.startswith("  ") and line.isprintable() for line in below)


@pytest.mark.parametrize("character", ["a", "é", "\n"])
def test_a_field_is_cut_at_a_kilobyte(character: str) -> None:
    """However much a caller sends, in whatever part of a line: of a field, a message, an exception."""
    much = record(character * 100_000, path=character * 100_000)
    told = json.loads(JSONFormatter().format(much))

    assert [character * 500] * 2 == [told["path"][:500], told["message"][:500]]
    assert 1024 + len("…".encode()) >= max(len(told[name].encode()) for name in ("path", "message"))
    assert 3 * 1024 > len(told["traceback"])
    assert 8 * 1024 > len(ConsoleFormatter().format(much))
