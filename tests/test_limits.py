"""What all callers together may take: memory, requests under way, waits. A real process, real sockets."""

import asyncio
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from api import SECRET, WORKFLOWS, assert_problem, bearer, eventually, order, service, token
from commands import temporal_api
from temporal_api.dev.server import DevServer, free_port

pytestmark = pytest.mark.anyio

MIB = 2**20
MOST = 400 * MIB
"""Of a container that has 512 MiB."""


class Served:
    """A service in a process of its own, and what it holds."""

    def __init__(self, pid: int, port: int, alice: httpx.AsyncClient) -> None:
        self.port = port
        self.alice = alice
        self._proc = Path(f"/proc/{pid}")

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes that the process holds now; VmHWM: at most since `forget`."""
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def forget(self) -> None:
        """Begin a new peak."""
        (self._proc / "clear_refs").write_text("5")

    async def slowest_probe(self, until: asyncio.Future[object]) -> float:
        """The longest that `/health/live` takes until then."""
        longest = 0.0
        while not until.done():
            began = time.perf_counter()
            assert 200 == (await self.alice.get("/health/live")).status_code
            longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(0.05)
        return longest

    async def deaf(self, stack: AsyncExitStack, request: bytes) -> socket.socket:
        """A connection that sends this and reads nothing."""
        deaf = socket.socket()
        stack.callback(deaf.close)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, ("127.0.0.1", self.port))
        with suppress(TimeoutError):  # the service takes no more of it
            async with asyncio.timeout(2):
                await loop.sock_sendall(deaf, request)
        return deaf


@asynccontextmanager
async def served(server: DevServer, **environ: str) -> AsyncIterator[Served]:
    """A process of its own, for its memory to be its own."""
    port = free_port()
    environ |= {"TEMPORAL_ADDRESS": server.address, "PORT": str(port), "LOG_LEVEL": "warning"}
    limits = httpx.Limits(max_connections=500)
    async with (
        temporal_api("serve", JWT_SECRET=SECRET, **environ) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=bearer(), timeout=120, limits=limits) as alice,
    ):

        async def listens() -> bool:
            with suppress(httpx.ConnectError):
                return (await alice.get("/health/ready")).is_success
            return False

        await eventually(listens)
        assert 201 == (await alice.post("/api/v1/orders", json=order())).status_code  # what is made once is made
        yield Served(process.process.pid, port, alice)


@pytest.fixture(scope="module")
async def large_history(client: Client) -> str:
    """The path of a history of 34 MB: nobody works on it, so each signal of 1.9 MB stays an event of its own."""
    handle = await client.start_workflow("nobody", id=f"large-{uuid.uuid4()}", task_queue=f"nobody-{uuid.uuid4()}")
    for _ in range(18):
        await handle.signal("more", "x" * 1_900_000)
    return f"/api/v1/workflows/{handle.id}"


async def test_a_hundred_large_orders_at_once(dev_server: DevServer) -> None:
    """2 MB each: every one is taken or told to come back, the process stays small and gives back what it took."""
    body = json.dumps(order(payment_details={"note": "x" * 2_000_000})).encode()
    async with served(dev_server) as api:
        before = api.memory()
        api.forget()
        headers = {"Content-Type": "application/json"}
        posts = asyncio.gather(*(api.alice.post("/api/v1/orders", content=body, headers=headers) for _ in range(100)))
        probed = await api.slowest_probe(posts)
        answers = await posts
        print("PEAK", before // MIB, api.memory("VmHWM") // MIB, api.memory() // MIB, probed)
        print([a.status_code for a in answers].count(201))

        assert api.memory("VmHWM") < MOST

        async def given_back() -> bool:
            await api.alice.get("/health/live")
            return api.memory() < before + 100 * MIB

        await eventually(given_back)
    for answer in answers:
        if answer.status_code != 201:
            assert_problem(answer, 503, "overloaded")


async def test_ten_readers_of_a_large_history(dev_server: DevServer, large_history: str) -> None:
    """Each gets the whole page, or is told to come back; the process never holds it ten times."""
    async with served(dev_server) as api:
        api.forget()
        before = api.memory()
        reads = asyncio.gather(*(api.alice.get(f"{large_history}/history") for _ in range(10)))
        probed = await api.slowest_probe(reads)
        answers = await reads
        print("PEAK", before // MIB, api.memory("VmHWM") // MIB, api.memory() // MIB, probed)
        assert api.memory("VmHWM") < MOST
        print([a.status_code for a in answers])


@pytest.mark.parametrize("path", ["history", "events"])
async def test_readers_that_do_not_read(dev_server: DevServer, large_history: str, path: str) -> None:
    """Twenty that ask for a large history and take nothing of it hold little, and hold nobody up."""
    authorization = f"Bearer {token(scope=WORKFLOWS)}"
    request = f"GET {large_history}/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"
    async with served(dev_server) as api, AsyncExitStack() as stack:
        api.forget()
        before = api.memory()
        for _ in range(20):
            await api.deaf(stack, request.encode())
        probed = await api.slowest_probe(asyncio.ensure_future(asyncio.sleep(4)))
        print("PEAK", before // MIB, api.memory("VmHWM") // MIB, api.memory() // MIB, probed)
        assert api.memory("VmHWM") < MOST
        answer = await api.alice.post("/api/v1/orders", json=order())
        print(answer.status_code)


async def test_scripts_that_nobody_reads(dev_server: DevServer) -> None:
    """Twenty that ask three thousand times for a large script and read nothing of it."""
    async with served(dev_server) as api, AsyncExitStack() as stack:
        api.forget()
        before = api.memory()
        for _ in range(20):
            await api.deaf(stack, b"GET /docs/redoc.js HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
        print("PEAK", before // MIB, api.memory("VmHWM") // MIB, api.memory() // MIB)
        assert 0
