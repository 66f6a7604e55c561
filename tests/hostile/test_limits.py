"""What all callers together may take: memory, requests under way, waits. A real process, real sockets."""

import asyncio
import json
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from api import (
    SECRET,
    WORKFLOWS,
    assert_problem,
    bearer,
    eventually,
    freeze,
    order,
    own_server,
    samples,
    service,
    token,
)
from commands import temporal_api
from temporal_api.dev.server import DevServer, free_port
from temporal_api.errors import Overloaded
from temporal_api.memory import Memory, Share
from temporal_api.temporal.events import event_json, temporal_json

pytestmark = pytest.mark.anyio

ADMIN = "workflows:admin"
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
        """Bytes that the process holds now; VmHWM: at most, ever."""
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

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
    connections = httpx.Limits(max_connections=500)
    async with (
        temporal_api("serve", JWT_SECRET=SECRET, **environ) as process,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=bearer(), timeout=120, limits=connections
        ) as alice,
    ):

        async def listens() -> bool:
            with suppress(httpx.ConnectError):
                return (await alice.get("/health/ready")).is_success
            return False

        await eventually(listens)
        assert 201 == (await alice.post("/api/v1/orders", json=order())).status_code  # what is made once is made
        yield Served(process.process.pid, port, alice)


@pytest.fixture
async def harmed() -> AsyncIterator[DevServer]:
    """A server of the test's own: a dev server may hang when calls with megabytes of answer are broken off."""
    async with own_server() as server:
        yield server


async def large_history(server: DevServer) -> str:
    """The path of a history of 34 MB: nobody works on it, so each signal of 1.9 MB stays an event of its own."""
    client = await Client.connect(server.address)
    handle = await client.start_workflow("nobody", id=f"large-{uuid.uuid4()}", task_queue=f"nobody-{uuid.uuid4()}")
    for _ in range(18):
        await handle.signal("more", "x" * 1_900_000)
    return f"/api/v1/workflows/{handle.id}"


async def held_again(api: Served, most: int, seconds: float = 60) -> None:
    """Wait until the process holds no more than that: it gives back what callers took that have gone."""

    async def given_back() -> bool:
        assert 200 == (await api.alice.get("/health/live")).status_code
        return api.memory() <= most

    await eventually(given_back, seconds)


@pytest.mark.parametrize("number", [40, pytest.param(100, marks=pytest.mark.full)])
async def test_many_large_orders_at_once(harmed: DevServer, number: int) -> None:
    """2 MB each: every one is taken or told to come back, in less than 400 MiB, which are given back."""
    body = json.dumps(order(payment_details={"note": "x" * 2_000_000})).encode()
    async with served(harmed) as api:
        before = api.memory()
        answers = await asyncio.gather(
            *(
                api.alice.post("/api/v1/orders", content=body, headers={"Content-Type": "application/json"})
                for _ in range(number)
            )
        )
        assert api.memory("VmHWM") < MOST
        await held_again(api, before + 120 * MIB)

    taken = [answer for answer in answers if answer.status_code == 201]
    assert len(taken) >= 10
    for answer in answers:
        if answer.status_code != 201:
            assert_problem(answer, 503, "overloaded")


@pytest.mark.parametrize("number", [5, pytest.param(10, marks=pytest.mark.full)])
async def test_readers_of_a_large_history(harmed: DevServer, number: int) -> None:
    """Each gets the whole page of 34 MB or is told to come back; the process never holds all of them."""
    history = f"{await large_history(harmed)}/history"
    async with served(harmed) as api:
        before = api.memory()
        answers = await asyncio.gather(*(api.alice.get(history) for _ in range(number)))
        assert api.memory("VmHWM") < MOST
        await held_again(api, before + 80 * MIB)

    told = [answer for answer in answers if answer.status_code == 200]
    assert told
    for answer in answers:
        if answer.status_code == 200:
            page = answer.json()
            assert list(range(1, 21)) == [event["event_id"] for event in page["items"]]
            assert page["next_page_token"] is None
        else:
            assert_problem(answer, 503, "overloaded")


@pytest.mark.parametrize(("number", "path"), [(20, "history"), (20, "history?format=temporal"), (50, "events")])
async def test_readers_that_do_not_read(harmed: DevServer, number: int, path: str) -> None:
    """Many that ask for a large history and take nothing of it: others are served, and all is given back after."""
    authorization = f"Bearer {token(scope=f'{WORKFLOWS} workflows:admin')}"
    history = await large_history(harmed)
    request = f"GET {history}/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"
    async with served(harmed) as api:
        before = api.memory()
        async with AsyncExitStack() as stack:
            for _ in range(number):
                await api.deaf(stack, request.encode())
            for _ in range(10):
                assert 201 == (await api.alice.post("/api/v1/orders", json=order())).status_code
            assert api.memory("VmHWM") < MOST
        await held_again(api, before + 80 * MIB)


@pytest.mark.parametrize(
    ("number", "values"), [(14, ["x" * 1_900_000]), pytest.param(8, [1] * 40_000, marks=pytest.mark.full)]
)
async def test_streams_at_rest_hold_nothing(harmed: DevServer, number: int, values: list[object]) -> None:
    """A run's last event is large: it is sent, and not kept until the next one comes; nor after the stream's end."""
    client, last = await Client.connect(harmed.address), len(json.dumps(values).replace(" ", ""))
    runs = []
    for _ in range(number):
        run = await client.start_workflow("nobody", id=f"rest-{uuid.uuid4()}", task_queue=f"nobody-{uuid.uuid4()}")
        await run.signal("more", args=values)
        runs.append(run.id)
    told: dict[str, int] = dict.fromkeys(runs, 0)
    async with served(harmed) as api:
        before = api.memory()

        async def watch(run: str) -> None:
            async with api.alice.stream("GET", f"/api/v1/workflows/{run}/events") as stream:
                async for piece in stream.aiter_bytes():
                    told[run] += len(piece)

        async def all_are_told() -> bool:
            return min(told.values()) > last

        watching = [asyncio.create_task(watch(run)) for run in runs]
        await eventually(all_are_told, 120)
        await held_again(api, before + 30 * MIB)
        for each in watching:
            each.cancel()
        await asyncio.wait(watching)
        await held_again(api, before + 30 * MIB)
        assert api.memory("VmHWM") < MOST


@pytest.mark.full
@pytest.mark.parametrize("waits", [False, True])
async def test_who_watches_a_large_order_holds_nothing(harmed: DevServer, waits: bool) -> None:
    """Streams of orders of 1.9 MB, and reads that wait for a change: neither keeps the order while nothing happens."""
    large = order(payment_details={"note": "x" * 1_900_000})
    async with served(harmed) as api:
        before = api.memory()
        placed = [await api.alice.post("/api/v1/orders", json=large) for _ in range(24)]
        paths = [f"/api/v1/orders/{each.json()['id']}" for each in placed]

        async def watch(path: str) -> None:
            if waits:
                tag = (await api.alice.get(path)).headers["etag"]
                await api.alice.get(path, headers={"If-None-Match": tag, "Prefer": "wait=50"})
            else:
                async with api.alice.stream("GET", f"{path}/events") as stream:
                    await stream.aread()

        async def all_rest() -> bool:
            """Each has a long poll that has told of the events so far, and one that waits for more."""
            polls = [n for name, n in (await samples(api.alice)).items() if name[0] == "temporal_long_request"]
            return sum(polls) >= 48

        watching = [asyncio.create_task(watch(path)) for path in paths]
        await eventually(all_rest)
        await held_again(api, before + 30 * MIB, 12)  # Temporal ends a long poll after 20 s
        assert not [each for each in watching if each.done()]
        for each in watching:
            each.cancel()
        await asyncio.wait(watching)


@pytest.mark.full
async def test_large_starts_that_wait_leave_room_for_others(dev_server: DevServer) -> None:
    """One caller waits for thirty starts of 1.9 MB: another one starts a large workflow too."""

    def start(size: int) -> dict[str, object]:
        return {"workflow_type": "nobody", "task_queue": f"nobody-{uuid.uuid4()}", "args": ["x" * size]}

    async with served(dev_server) as api:

        async def waiting(number: int) -> bool:
            return (await samples(api.alice))[("http_requests_in_progress",)] == number + 1

        waits = []
        for number in range(30):
            request = api.alice.post("/api/v1/workflows", json=start(1_900_000), headers={"Prefer": "wait=50"})
            waits.append(asyncio.create_task(request))
            await eventually(lambda number=number: waiting(number + 1))
        others = await api.alice.post("/api/v1/workflows", json=start(400_000), headers=bearer("bob"))
        assert not [wait for wait in waits if wait.done()]
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)

    assert 201 == others.status_code


@pytest.mark.parametrize("path", ["history", "events"])
async def test_who_does_not_read_is_closed(harmed: DevServer, path: str) -> None:
    """After REQUEST_TIMEOUT_SECONDS in which nothing was taken the request is over, and its connection gone."""
    history = await large_history(harmed)
    authorization = f"Bearer {token(scope=WORKFLOWS)}"
    request = f"GET {history}/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"
    async with served(harmed, REQUEST_TIMEOUT_SECONDS="2") as api, AsyncExitStack() as stack:

        async def under_way() -> int:
            return int((await samples(api.alice))[("http_requests_in_progress",)]) - 1

        async def begun() -> bool:
            return await under_way() == 3

        async def over() -> bool:
            return await under_way() == 0

        for _ in range(3):
            await api.deaf(stack, request.encode())
        await eventually(begun)
        await eventually(over)


async def test_scripts_that_nobody_reads(dev_server: DevServer) -> None:
    """Twenty that ask three thousand times for a large script and read nothing of it."""
    request = b"GET /docs/redoc.js HTTP/1.1\r\nHost: x\r\n\r\n"
    async with served(dev_server) as api:
        before = api.memory()
        async with AsyncExitStack() as stack:
            for _ in range(20):
                await api.deaf(stack, request * 3000)
            assert 201 == (await api.alice.post("/api/v1/orders", json=order())).status_code
        assert api.memory("VmHWM") < before + 40 * MIB


async def test_a_large_page_is_the_same_json(alice: httpx.AsyncClient, dev_server: DevServer) -> None:
    """In one piece or in many, read forward page by page or backward as a whole: the same events."""
    forward, cursor, history = [], "", f"{await large_history(dev_server)}/history"
    while cursor is not None:
        params: dict[str, str | int] = {"page_size": 7, "page_token": cursor}
        page = (await alice.get(history, params=params)).json()
        forward += page["items"]
        cursor = page["next_page_token"]
    backward = (await alice.get(history, params={"order": "reverse"})).json()
    head = await alice.head(history)

    assert forward == backward["items"][::-1]
    assert [{"name": "more", "size": 1_900_000}] * 18 == [
        {"name": event["attributes"]["signal_name"], "size": len(event["attributes"]["input"][0])}
        for event in forward[2:]
    ]
    assert (200, b"") == (head.status_code, head.content)


async def test_who_takes_their_time_gets_everything(dev_server: DevServer) -> None:
    """The deadline bounds Temporal's calls, not the time in which a caller reads a large page."""
    history, pieces = f"{await large_history(dev_server)}/history", []
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, RPC_TIMEOUT_SECONDS="3") as api,
        api.stream("GET", history) as answer,
    ):
        async for piece in answer.aiter_bytes():
            if not pieces:
                await asyncio.sleep(4)
            pieces.append(piece)

    assert 20 == len(json.loads(b"".join(pieces))["items"])


async def test_a_failure_before_the_first_byte_is_an_answer(alice: httpx.AsyncClient) -> None:
    """A history that is not there is a 404, not a page that breaks off."""
    assert_problem(await alice.get(f"/api/v1/workflows/{uuid.uuid4()}/history"), 404, "workflow_not_found")


# --- requests under way ---


@asynccontextmanager
async def unfinished(api: httpx.AsyncClient, times: int) -> AsyncIterator[None]:
    """So many orders whose bodies do not end before the block does."""
    end = asyncio.Event()
    begun = []

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        begun.append(1)
        await end.wait()
        yield b"}"

    async def post() -> int:
        headers = {"Content-Type": "application/json"}
        return (await api.post("/api/v1/orders", content=body(), headers=headers)).status_code

    posts = [asyncio.create_task(post()) for _ in range(times)]

    async def all_begun() -> bool:
        under_way = await samples(api)
        return len(begun) == times and under_way[("http_requests_in_progress",)] == times + 1

    await eventually(all_begun)
    try:
        yield
    finally:
        end.set()
        assert [400] * times == await asyncio.gather(*posts)


async def test_a_request_too_many_is_refused_at_once(dev_server: DevServer) -> None:
    """Over MAX_REQUESTS: 503 for anything but health, metrics and the pages; once one has ended, the next is served."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_REQUESTS="3") as api:
        async with unfinished(api, 3):
            refused = [await api.get("/api/v1/orders"), await api.post("/api/v1/orders", json=order())]
            served_all_the_same = [
                (await api.get(path)).status_code
                for path in ("/health", "/health/ready", "/health/live", "/metrics", "/openapi.json")
            ]
        after = await api.post("/api/v1/orders", json=order())

    for answer in refused:
        problem = assert_problem(answer, 503, "overloaded")
        assert problem["details"]["retryable"]
    assert [200] * 5 == served_all_the_same
    assert 201 == after.status_code


async def test_who_waits_is_not_under_way(dev_server: DevServer) -> None:
    """A wait takes a place among the waits and none among the requests."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_REQUESTS="2") as api:
        start = {"workflow_type": "nobody", "task_queue": f"nobody-{uuid.uuid4()}"}
        path = (await api.post("/api/v1/workflows", json=start)).headers["location"]
        waits: list[asyncio.Task[httpx.Response]] = []

        async def under_way() -> bool:
            return (await samples(api))[("http_requests_in_progress",)] == len(waits) + 1

        async def served() -> bool:  # once both wait
            return (await api.get(path)).status_code == 200

        for _ in range(2):
            waits.append(asyncio.create_task(api.get(f"{path}/result", headers={"Prefer": "wait=50"})))
            await eventually(under_way)
        await eventually(served)
        assert not [wait for wait in waits if wait.done()]
        assert (
            204
            == (await api.post(f"{path}/terminate", json={"reason": "done"}, headers=bearer(scope=ADMIN))).status_code
        )
        assert [200, 200] == [(await wait).status_code for wait in waits]


async def test_more_creates_than_can_be_served(harmed: DevServer) -> None:
    """Of three hundred at once those that MAX_REQUESTS lets in are placed; the others are told at once to come back."""
    content, headers = json.dumps(order()), {"Content-Type": "application/json"}
    async with served(harmed, RPC_TIMEOUT_SECONDS="60", MAX_REQUESTS="40") as api:
        await freeze(harmed.pid)  # so that none is placed before all have come
        creates = [
            asyncio.create_task(api.alice.post("/api/v1/orders", content=content, headers=headers)) for _ in range(300)
        ]

        async def others_were_told() -> bool:
            return 260 == sum(create.done() for create in creates)

        await eventually(others_were_told)
        os.kill(harmed.pid, signal.SIGCONT)
        answers = await asyncio.gather(*creates)

    refused = [answer for answer in answers if answer.status_code != 201]
    assert 260 == len(refused)
    for answer in refused:
        assert_problem(answer, 503, "overloaded")


# --- waits ---


async def test_one_caller_cannot_take_all_places(dev_server: DevServer) -> None:
    """Over MAX_OPEN_WAITS_PER_USER a stream is 503 and a preferred wait no wait; another caller has their own."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_OPEN_WAITS_PER_USER="2") as api:
        start = {"workflow_type": "nobody", "task_queue": f"nobody-{uuid.uuid4()}"}
        path = (await api.post("/api/v1/workflows", json=start)).headers["location"]
        preferred = {"Prefer": "wait=30"}
        async with (
            api.stream("GET", f"{path}/events") as first,
            api.stream("GET", f"{path}/events") as second,
        ):
            stream = await api.get(f"{path}/events")
            began = time.monotonic()
            result = await api.get(f"{path}/result", headers=preferred)
            as_it_is = await api.get(path, headers=preferred | {"If-None-Match": "*"})
            took = time.monotonic() - began
            started = await api.post("/api/v1/workflows", json=start, headers=preferred)
            async with api.stream("GET", f"{path}/events", headers=bearer("bob")) as of_bob:
                assert [200] * 3 == [opened.status_code for opened in (first, second, of_bob)]

        async def a_place_again() -> bool:
            async with api.stream("GET", f"{path}/events") as again:
                return again.status_code == 200

        await eventually(a_place_again)

    assert_problem(stream, 503, "too_many_waits")
    assert [202, 304, 201] == [answer.status_code for answer in (result, as_it_is, started)]
    assert not [answer for answer in (result, as_it_is, started) if "preference-applied" in answer.headers]
    assert took < 20


# --- the budget itself ---


async def test_a_newcomer_waits_for_room() -> None:
    """It gets what others give back in time, and is refused when nobody does."""
    memory = Memory(100)
    with Share(memory) as first, Share(memory) as second:
        await first.grow(80)
        waiting = asyncio.create_task(second.grow(50))
        await asyncio.sleep(0)
        assert not waiting.done()
        first.size = 0
        await waiting
        with Share(memory) as third, pytest.raises(Overloaded):
            await third.grow(60, seconds=0.01)
    assert 0 == memory.held


async def test_more_than_there_is_goes_alone() -> None:
    """What can never fit is not refused for ever: it is served when nothing else is held."""
    memory = Memory(100)
    with Share(memory) as huge:
        await huge.grow(1000)
        assert memory.held >= memory.limit
    assert 0 == memory.held


async def test_a_large_event_in_temporal_s_json_holds_nobody_up() -> None:
    """Of 55,000 payloads it takes half a second to write: a thread does it, and the event loop goes on."""
    event = HistoryEvent(event_id=7)
    event.workflow_execution_signaled_event_attributes.input.payloads.extend([Payload(data=b"1")] * 55_000)
    writing = asyncio.ensure_future(temporal_json(SimpleNamespace(memory=Memory(100 * MIB)), event))
    turns = 0
    while not writing.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns > 50
    assert 55_000 == len(
        json.loads(bytes(await writing))["workflowExecutionSignaledEventAttributes"]["input"]["payloads"]
    )


async def test_many_large_events_take_turns() -> None:
    """Ten of 20,000 payloads are decoded at once: between two turns of the event loop, only one of them goes on."""
    decoded, most = 0, 0

    async def decode(payloads: list[Payload]) -> list[Payload]:
        nonlocal decoded
        decoded += len(payloads)
        return payloads

    event = HistoryEvent(event_id=7)
    event.workflow_execution_signaled_event_attributes.input.payloads.extend([Payload(data=b"1")] * 20_000)
    temporal: Any = SimpleNamespace(memory=Memory(100 * MIB), decode=decode)
    telling = asyncio.gather(*(event_json(temporal, event) for _ in range(10)))
    while not telling.done():
        decoded = 0
        await asyncio.sleep(0)
        most = max(most, decoded)

    assert most <= 2000
    assert [20_000] * 10 == [len(each.attributes["input"]) for each in await telling]
