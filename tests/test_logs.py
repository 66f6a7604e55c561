"""The process's log, as whoever runs the service reads it."""

import asyncio
import json
import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from api import SECRET, assert_problem, bearer, eventually, order, own_server, samples, service
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
PROBES = ("/health", "/health/ready", "/health/live", "/metrics", "/temporal/health/live", "/temporal/metrics")


@dataclass
class Talk:
    """What was asked of a process at its most talkative, and all that it printed."""

    workflow_id: str
    order_id: str
    answered: list[httpx.Response]
    process: Process


async def talk(address: str, log_format: str) -> Talk:
    """A few requests whose bodies nobody may find in a log, and whose id would be a line of it; then the probes."""
    secret = order(
        customer_id="cust_of_alice",
        payment_details={"card_token": "tok_secret_card"},
        shipping_address={"street": "Elm Street"},
    )
    workflow_id = f"a/b c-{uuid.uuid4()}\n12:00:00 error forged"
    start = {"workflow_type": "t", "task_queue": "nobody", "workflow_id": workflow_id, "input_data": "argument_secret"}
    path = f"/api/v1/workflows/{quote(workflow_id, safe='')}"
    trace = {"traceparent": f"00-{TRACE}-{'a' * 16}-01"}
    async with serve(address, LOG_FORMAT=log_format, LOG_LEVEL="debug", ROOT_PATH="/temporal") as (process, client):
        answered = [
            await client.post("/api/v1/orders", json=secret, headers=trace),
            await client.post("/api/v1/workflows", json=start),
            await client.post(f"{path}/signal", json={"signal_name": "s", "signal_input": "signal_secret"}),
            await client.get(f"{path}?run_id=query_secret"),
            await client.get(path, headers={"Authorization": "Bearer token_secret"}),
            await client.post("/api/v1/orders", content=b'{"customer_id": "cust_of_alice"'),
        ]
        assert {200} == {(await client.get(path)).status_code for path in PROBES}
        assert 0 == await process.end(signal.SIGTERM)
    return Talk(workflow_id, answered[0].json()["id"], answered, process)


@pytest.fixture(scope="module")
async def as_json(dev_server: DevServer) -> Talk:
    """That, in the default format."""
    return await talk(dev_server.address, "json")


@pytest.fixture(scope="module")
async def as_console(dev_server: DevServer) -> Talk:
    """That, with LOG_FORMAT=console."""
    return await talk(dev_server.address, "console")


def lines_of(process: Process) -> list[dict[str, Any]]:
    """Each line of the process, all of which are JSON in ASCII."""
    assert process.output.isascii()
    return [json.loads(line) for line in process.output.splitlines()]


def accesses(process: Process) -> list[dict[str, Any]]:
    """The lines that tell requests."""
    return [line for line in lines_of(process) if line["logger"] == "temporal_api.access"]


async def test_the_log_has_one_json_line_for_each_request(as_json: Talk) -> None:
    """The line says who asked for what, how it ended and how long it took; every line of the process is JSON."""
    requests = accesses(as_json.process)[: -len(PROBES)]

    assert [r.headers["x-request-id"] for r in as_json.answered] == [line["request_id"] for line in requests]
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
        "workflow_id": f"order-{as_json.order_id}",
    } == told
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(placed["time"]) < timedelta(minutes=10)
    assert 0 < placed["duration_ms"] < 30_000
    assert [as_json.workflow_id] * 2 == [started["workflow_id"], signalled["workflow_id"]]
    assert quote(as_json.workflow_id, safe="") in signalled["path"]
    assert "/api/v1/workflows/{workflow_id}/signal" == signalled["route"]
    assert (None, None) == (refused["user"], refused["trace_id"])


async def test_probes_are_told_at_debug(as_json: Talk) -> None:
    """LOG_LEVEL=debug has a line for each probe and scrape. For nobody else: see test_no_line_is_lost."""
    told = [(line["level"], line["path"]) for line in accesses(as_json.process)]

    assert [("debug", path) for path in PROBES] == told[-len(PROBES) :]


async def test_the_log_holds_no_token_and_no_body(as_json: Talk, as_console: Talk) -> None:
    """At the most talkative level too, nothing that a caller sent in a body, a query or a header is in it."""
    for told in (as_json, as_console):
        token = told.answered[0].request.headers["authorization"].removeprefix("Bearer ")
        output = told.process.output
        assert 6 + len(PROBES) == output.count("status=" if told is as_console else '"status":')
        assert [] == [secret for secret in (*SECRETS, token, "token_secret", SECRET) if secret in output]


async def test_the_console_format_is_one_readable_line(as_console: Talk) -> None:
    """LOG_FORMAT=console: the clock, the level, what was asked; no caller can write a line of it."""
    lines = as_console.process.output.splitlines()

    (line,) = [line for line in lines if "route=/api/v1/workflows " in line]
    assert re.match(r"\d\d:\d\d:\d\d info +request .*method=POST route=/api/v1/workflows ", line)
    assert "status=201" in line
    assert "user=alice" in line
    assert "\\n12:00:00 error forged" in line
    assert [] == [line for line in lines if line.startswith("12:00:00 error forged")]


async def answers(client: httpx.AsyncClient) -> bool:
    """Whether it listens by now."""
    try:
        return (await client.get("/")).status_code == 200
    except httpx.ConnectError:
        return False


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
    requests = accesses(process)
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

    told = [(line["level"], line["path"], line["status"]) for line in accesses(process)]
    assert [("warning", "/api/v1/orders/x", 503)] == told


@pytest.mark.parametrize("trusted", ["127.0.0.1, 10.0.0.0/8", "10.0.0.0/8"])
async def test_the_clients_address_is_told(caplog: pytest.LogCaptureFixture, trusted: str) -> None:
    """X-Forwarded-For counts when it comes from one of FORWARDED_ALLOW_IPS, back to the first that is none of them."""
    told = {
        "203.0.113.7": "203.0.113.7",
        "198.51.100.1, 203.0.113.7, 10.1.2.3": "203.0.113.7",
        "203.0.113.7:4711": "203.0.113.7",
        "[2001:db8::1]:4711": "2001:db8::1",
        "": "127.0.0.1",
    }
    caplog.set_level(logging.INFO, "temporal_api.access")
    async with service(TEMPORAL_ADDRESS="127.0.0.1:1", FORWARDED_ALLOW_IPS=trusted) as client:
        for sent in told:
            headers = {"X-Forwarded-For": sent, "X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "evil.example"}
            assert 200 == (await client.get("/", headers=headers)).status_code

    clients = [record.fields["client"] for record in caplog.records if record.name == "temporal_api.access"]
    assert (list(told.values()) if "127.0.0.1" in trusted else ["127.0.0.1"] * len(told)) == clients


async def ask(client: httpx.AsyncClient, path: str, numbers: Iterable[int]) -> list[str]:
    """The statuses of requests that come one straight after the other; their ids are these numbers."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    for number in numbers:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-ID: {number}\r\n\r\n".encode())
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answered = await reader.read()
    writer.close()
    return re.findall(r"HTTP/1.1 (\d+)", answered.decode())


async def test_no_line_is_lost_and_none_overtakes(dev_server: DevServer) -> None:
    """A reader that comes late, when the process was told to end, gets each line, in order; and none of a probe."""
    async with serve(dev_server.address, ROOT_PATH="/temporal") as (process, client):
        assert {200} == {(await client.get(path)).status_code for path in PROBES}
        assert ["200"] * 1001 == await ask(client, "/", range(1000))
        assert 0 == await process.end(signal.SIGTERM)

    assert list(map(str, range(1000))) == [line["request_id"] for line in accesses(process)]


async def test_a_reader_that_stalls_holds_nobody_up(dev_server: DevServer) -> None:
    """4,500 requests while nobody reads the log: all are answered, lines are counted as dropped, SIGTERM ends it."""
    async with serve(dev_server.address) as (process, client):
        path = "/" + "a" * 900
        answered = await asyncio.gather(*(ask(client, path, range(300)) for _ in range(15)))
        assert [["404"] * 300 + ["200"]] * 15 == answered
        dropped = (await samples(client))[("temporal_api_log_lines_dropped_total",)]
        assert 0 < dropped < 4500
        process.process.send_signal(signal.SIGTERM)

        async def ended() -> bool:
            return process.process.returncode is not None

        await eventually(ended, seconds=20)
        assert 0 == await process.end()  # and nothing of the pipe stays open


async def test_the_workers_log_has_one_format(anyio_backend: str) -> None:
    """What the worker and the core of its SDK say of a server that went away has the form of all other lines."""
    async with own_server() as server:
        environ = {"TEMPORAL_ADDRESS": server.address}
        async with (
            temporal_api("worker", LOG_FORMAT="json", **environ) as as_json,
            temporal_api("worker", LOG_FORMAT="console", **environ) as as_console,
        ):

            async def told(worker: Process) -> int:
                await worker.until("gRPC call .* retried")
                # At once: the longer Temporal is away, the longer the SDK takes to end.
                return await worker.end(signal.SIGINT, seconds=120)

            for worker in (as_json, as_console):
                await worker.until("worker polls")
            os.kill(server.pid, signal.SIGKILL)
            assert [0, 0] == await asyncio.gather(told(as_json), told(as_console))

    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines_of(as_json))
    lines = as_console.output.splitlines()
    assert [] == [line for line in lines if not re.match(r"\d\d:\d\d:\d\d (info|warning|error) +\w", line)]
    assert "\x1b" not in as_json.output + as_console.output


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
