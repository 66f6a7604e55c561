"""How a process ends: a real `temporal-api serve`, told by SIGTERM with callers of every kind under way."""

import asyncio
import os
import signal
import socket
import time
import uuid

import httpx
import pytest

from api import SECRET, assert_problem, bearer, eventually, freeze, order, own_server
from commands import temporal_api
from temporal_api import serving
from temporal_api.app import create_app
from temporal_api.dev.server import DevServer, free_port
from temporal_api.settings import from_env

pytestmark = pytest.mark.anyio


STREAMS, WAITS, CREATES = 100, 50, 50


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.full)])
async def test_sigterm_loses_nobody(times: int) -> None:
    """Streams end with `retry:`, waits with a 202, creates under way with their order; nobody new gets in; exit 0."""
    async with own_server() as temporal:
        for _ in range(times):
            await end_with_callers_of_every_kind(temporal)


async def end_with_callers_of_every_kind(temporal: DevServer) -> None:
    """One process from its start to its end."""
    port = free_port()
    environ = {"TEMPORAL_ADDRESS": temporal.address, "PORT": str(port), "MAX_OPEN_WAITS_PER_USER": "200"}
    async with (
        temporal_api("serve", JWT_SECRET=SECRET, **environ) as serve,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers=bearer(),
            timeout=30,
            limits=httpx.Limits(max_connections=300),
        ) as alice,
    ):
        await serve.until("Uvicorn running")
        body = {"workflow_type": "nobody_runs_this", "task_queue": str(uuid.uuid4())}
        path = (await alice.post("/api/v1/workflows", json=body)).headers["location"]
        streaming = [0]

        async def stream() -> str:
            async with alice.stream("GET", f"{path}/events") as response:
                streaming[0] += 1
                return "".join([text async for text in response.aiter_text()])

        streams = [asyncio.create_task(stream()) for _ in range(STREAMS)]
        waits = [asyncio.create_task(alice.get(f"{path}/result", headers={"Prefer": "wait=30"})) for _ in range(WAITS)]

        async def under_way(number: int) -> bool:
            return f"http_requests_in_progress {number}.0" in (await alice.get("/metrics")).text

        async def all_begun() -> bool:
            return await under_way(STREAMS + WAITS + 1) and streaming[0] == STREAMS

        await eventually(all_begun)
        await freeze(temporal.pid)  # so that they are still under way when the end comes
        creates = [asyncio.create_task(alice.post("/api/v1/orders", json=order())) for _ in range(CREATES)]
        await eventually(lambda: under_way(STREAMS + WAITS + CREATES + 1))
        serve.process.send_signal(signal.SIGTERM)
        await serve.until("Shutting down")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        os.kill(temporal.pid, signal.SIGCONT)
        texts = await asyncio.gather(*streams)
        waited = await asyncio.gather(*waits)
        created = await asyncio.gather(*creates)

        assert 0 == await serve.end(), serve.output
        assert [True] * STREAMS == [text.endswith("retry: 1000\n") for text in texts]
        assert [202] * WAITS == [response.status_code for response in waited]
        assert [201] * CREATES == [response.status_code for response in created]
        assert "Traceback" not in serve.output


async def test_the_last_connections_are_served(dev_server: DevServer) -> None:
    """A connection that the kernel has made, and nobody has taken yet when the listener closes, gets its answer."""
    port = free_port()
    app = create_app(from_env({"JWT_SECRET": SECRET, "TEMPORAL_ADDRESS": dev_server.address}))
    server = serving._DrainingServer(app)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(serving.listen("127.0.0.1", port))
    callers: list[socket.socket] = []

    def connect() -> None:
        for _ in range(5):
            caller = socket.create_connection(("127.0.0.1", port))
            caller.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            caller.setblocking(False)
            callers.append(caller)

    loop = asyncio.get_running_loop()
    running = asyncio.create_task(server.main_loop())
    loop.call_later(0, connect)  # in the same turn of the loop as the end, before it
    server.handle_exit(signal.SIGTERM, None)
    await eventually(lambda: len(callers) == 5)
    answers = [await asyncio.wait_for(loop.sock_recv(caller, 1000), 30) for caller in callers]
    await running
    await server.shutdown()
    for caller in callers:
        caller.close()

    assert [True] * 5 == [answer.startswith(b"HTTP/1.1 200") for answer in answers]


async def test_readiness_goes_first(dev_server: DevServer) -> None:
    """For SHUTDOWN_DELAY_SECONDS the listener still answers, but says that it is not ready; a second signal ends it."""
    port = free_port()
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "PORT": str(port), "SHUTDOWN_DELAY_SECONDS": "300"}
    async with (
        temporal_api("serve", JWT_SECRET=SECRET, **environ) as serve,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=bearer(), timeout=30) as alice,
    ):
        await serve.until("Uvicorn running")
        assert 200 == (await alice.get("/health/ready")).status_code
        serve.process.send_signal(signal.SIGTERM)

        async def not_ready() -> bool:
            return (await alice.get("/health/ready")).status_code == 503

        await eventually(not_ready)
        created = await alice.post("/api/v1/orders", json=order())
        live = await alice.get("/health/live")

        assert [201, 200] == [created.status_code, live.status_code]
        assert 0 == await serve.end(signal.SIGTERM), serve.output


async def test_what_temporal_does_not_answer_is_told_before_the_end() -> None:
    """A call that hangs in Temporal gets 503 `shutting_down` after 8 s, and then the process still ends with 0."""
    port = free_port()
    async with own_server() as temporal:
        environ = {"TEMPORAL_ADDRESS": temporal.address, "PORT": str(port), "RPC_TIMEOUT_SECONDS": "60"}
        async with (
            temporal_api("serve", JWT_SECRET=SECRET, **environ) as serve,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=bearer(), timeout=30) as alice,
        ):
            await serve.until("Uvicorn running")
            assert 201 == (await alice.post("/api/v1/orders", json=order())).status_code
            await freeze(temporal.pid)
            hanging = asyncio.create_task(alice.post("/api/v1/orders", json=order()))

            async def under_way() -> bool:
                return "http_requests_in_progress 2.0" in (await alice.get("/metrics")).text

            await eventually(under_way)
            began = time.monotonic()
            serve.process.send_signal(signal.SIGTERM)

            assert_problem(await hanging, 503, "shutting_down")
            assert 7 < time.monotonic() - began < 30  # 8 s where nothing else runs
            assert 0 == await serve.end(seconds=10), serve.output
