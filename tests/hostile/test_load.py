"""What many watchers and long histories cost: a real process, by its own metrics and its callers' clocks."""

import asyncio
import json
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial

import httpx
import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import SECRET, bearer, eventually, order
from commands import temporal_api
from temporal_api.dev.server import DevServer, free_port

pytestmark = pytest.mark.anyio

MIB = 2**20


@workflow.defn(name="long_story")
class LongStory:
    """Makes so many events: chapters of timers that are started together, and cancelled together."""

    @workflow.run
    async def run(self, chapters: int) -> int:
        """Write them all."""
        timers: list[asyncio.Task[None]] = []
        for _ in range(chapters):
            for timer in timers:
                timer.cancel()
            timers = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(200)]
            await workflow.execute_activity(turn_the_page, start_to_close_timeout=timedelta(seconds=10))
        return chapters


@activity.defn
async def turn_the_page() -> None:
    """Let a workflow task end."""


@workflow.defn(name="brief")
class Brief:
    """Ends at once."""

    @workflow.run
    async def run(self) -> str:
        """Say so."""
        return "done"


@asynccontextmanager
async def served(server: DevServer, **environ: str) -> AsyncIterator[httpx.AsyncClient]:
    """A process of its own, for its memory to be its own; gives a client with room for many connections."""
    port = free_port()
    environ |= {"TEMPORAL_ADDRESS": server.address, "PORT": str(port)}
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=20)
    async with (
        # A line for each request, which nobody reads here, would fill the pipe and hold the process up.
        temporal_api("serve", JWT_SECRET=SECRET, LOG_LEVEL="warning", **environ),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=bearer(), timeout=60, limits=limits) as alice,
    ):

        async def listens() -> bool:
            with suppress(httpx.ConnectError):
                return (await alice.get("/health/live")).is_success
            return False

        await eventually(listens)
        yield alice


async def metric(alice: httpx.AsyncClient, name: str) -> float:
    """A metric without labels, as it is now."""
    lines = (await alice.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def memory(alice: httpx.AsyncClient) -> float:
    """MiB that the process holds."""
    return await metric(alice, "process_resident_memory_bytes") / MIB


async def usual(times: int, *calls: Callable[[], Awaitable[httpx.Response]]) -> list[float]:
    """Seconds that each of these calls takes, as a rule: the median of so many, one after the other in turn."""
    took: list[list[float]] = [[] for _ in calls]
    for _ in range(times):
        for call, times_of_call in zip(calls, took, strict=True):
            began = time.perf_counter()
            response = await call()
            times_of_call.append(time.perf_counter() - began)
            assert 201 == response.status_code, response.text
    return [statistics.median(times_of_call) for times_of_call in took]


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.full)])
async def test_streams_burden_nobody(dev_server: DevServer, client: Client, task_queue: str, count: int) -> None:
    """With 200 open streams: below 200 MiB, and as quick as a process that has none; closed, all is given back."""
    start = {"workflow_type": "brief", "task_queue": task_queue}
    async with (
        served(dev_server, MAX_OPEN_WAITS=str(count + 1), MAX_OPEN_WAITS_PER_USER=str(count + 1)) as alice,
        served(dev_server) as idle,
        Worker(client, task_queue=task_queue, workflows=[Brief], workflow_runner=UnsandboxedWorkflowRunner()),
    ):

        def create(process: httpx.AsyncClient) -> Awaitable[httpx.Response]:
            return process.post("/api/v1/orders", json=order())

        async def run(process: httpx.AsyncClient) -> httpx.Response:
            response = await process.post("/api/v1/workflows", json=start, headers={"Prefer": "wait=20"})
            assert "COMPLETED" == response.json()["status"]
            return response

        async def open_stream(stack: AsyncExitStack) -> tuple[str, AsyncIterator[str]]:
            placed = (await create(alice)).json()
            path = f"/api/v1/orders/{placed['id']}"
            response = await stack.enter_async_context(alice.stream("GET", f"{path}/events"))
            assert 200 == response.status_code
            lines = response.aiter_lines()
            await told(lines, "pending")
            return path, lines

        await usual(20, partial(create, alice), partial(create, idle))  # what is made once is made
        before, peaks = await memory(alice), []
        for _ in range(2):
            async with AsyncExitStack() as stack:
                streams = await asyncio.gather(*(open_stream(stack) for _ in range(count)))
                peaks.append(await memory(alice))
                # In turn: what else the machine does meanwhile slows both down.
                creates = await usual(20 + count // 2, partial(create, alice), partial(create, idle))
                runs = await usual(10 + count // 10, partial(run, alice), partial(run, idle))
                assert count + 1 == await metric(alice, "http_requests_in_progress")
                for path, _ in streams:  # each is alive
                    workflow_id = f"order-{path.rpartition('/')[2]}"
                    await client.get_workflow_handle(workflow_id).terminate()
                await asyncio.gather(*(told(lines, "cancelled") for _, lines in streams))

            async def closed() -> bool:
                return await metric(alice, "http_requests_in_progress") == 1

            await eventually(closed)
        after = await memory(alice)

    assert max(peaks) < 200
    assert creates[0] < 3 * creates[1]
    assert runs[0] < 2 * runs[1]
    assert after < before + 40


async def told(lines: AsyncIterator[str], status: str) -> None:
    """Read on until the stream tells that status."""
    async for line in lines:
        if line.startswith("data: ") and json.loads(line[6:]).get("status") == status:
            return
    raise AssertionError(f"the stream ended without {status}")


@pytest.mark.parametrize("count", [5_000, pytest.param(50_000, marks=pytest.mark.full)])
async def test_a_long_history(dev_server: DevServer, client: Client, task_queue: str, count: int) -> None:
    """Read in pages and streamed, each event once and in order; the process's memory does not grow with it."""
    workflow_id = f"long-{uuid.uuid4()}"
    async with Worker(
        client,
        task_queue=task_queue,
        workflows=[LongStory],
        activities=[turn_the_page],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        handle = await client.start_workflow("long_story", 1 + count // 405, id=workflow_id, task_queue=task_queue)
        await handle.result()
    length = (await handle.describe()).history_length
    path = f"/api/v1/workflows/{workflow_id}"
    async with served(dev_server) as alice:
        before = await memory(alice)

        async def in_pages(direction: str) -> list[int]:
            found, token = [], ""
            while True:
                params = {"order": direction, "page_size": 1000, "page_token": token}
                page = (await alice.get(f"{path}/history", params=params)).json()
                found += [event["event_id"] for event in page["items"]]
                token = page["next_page_token"]
                if not token:
                    return found
                assert 1000 == len(page["items"])

        async def streamed() -> list[int]:
            async with alice.stream("GET", f"{path}/events") as response:
                ids = [int(line.rpartition(":")[2]) async for line in response.aiter_lines() if line[:3] == "id:"]
                return ids[:-1]  # the last one is that of `done`

        async with AsyncExitStack() as stack:
            for _ in range(20):  # which nobody reads
                await stack.enter_async_context(alice.stream("GET", f"{path}/events"))
            everything = await asyncio.gather(in_pages("forward"), in_pages("reverse"), streamed(), streamed())
            grown = await memory(alice) - before

    assert length > count
    whole = list(range(1, length + 1))
    assert [whole, whole[::-1], whole, whole] == everything
    assert grown < 64
