"""The calls on Temporal: their connections, their one deadline, their number, and what it means when they break."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceResponse
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from api import assert_problem, bearer, eventually, order, own_server, samples, service
from proxy import Link, Proxy, proxied
from scripted import Scripted
from temporal_api.dev.build import find_temporal
from temporal_api.dev.server import DevServer, free_port
from temporal_api.errors import TemporalConnectionError, TemporalError, TemporalTimeout
from temporal_api.memory import Memory
from temporal_api.record import Record, begin
from temporal_api.temporal.client import Temporal

pytestmark = pytest.mark.anyio

OPERATOR = bearer("ops", "orders:read orders:admin workflows:read workflows:write workflows:admin")
NOBODY = {"workflow_type": "nobody_runs_this", "task_queue": "nobody-polls-this"}
RECOVERY_SECONDS = 10.0


async def placed(http: httpx.AsyncClient, **headers: str) -> dict[str, Any]:
    """A new order."""
    response = await http.post("/api/v1/orders", json=order(), headers=headers)
    assert 201 == response.status_code, response.text
    body: dict[str, Any] = response.json()
    return body


async def is_ready(http: httpx.AsyncClient) -> bool:
    """Whether it can work."""
    return (await http.get("/health/ready")).is_success


async def started(http: httpx.AsyncClient) -> str:
    """The path of a workflow that nobody works at."""
    return (await http.post("/api/v1/workflows", json=NOBODY)).headers["location"]


async def waits_carried(proxy: Proxy, calling: Sequence[Link], wanted: int) -> list[int]:
    """How many calls each connection but the `calling` ones carries, once so many are under way."""

    async def carried() -> list[int]:
        each = [len(link.calls) for link in proxy.links if link not in calling]
        return each if sum(each) >= wanted else []

    return await eventually(carried)


# --- the deadline ---


async def test_no_time_left(client: Client) -> None:
    """A call that begins after the request's deadline is a timeout, and no defect."""
    temporal = Temporal(client, client.workflow_service, client.workflow_service, 5, Memory(2**28))

    async def late() -> None:
        begin({}, Record("x", deadline=asyncio.get_running_loop().time() - 1))
        await temporal.check()

    with pytest.raises(TemporalTimeout):
        await asyncio.create_task(late())  # in a context of its own, as a request has


# --- connections ---


@pytest.mark.parametrize("seconds", [5, pytest.param(1, marks=pytest.mark.full)])
async def test_a_network_that_fell_silent(dev_server: DevServer, seconds: float) -> None:
    """Within ten seconds of its return calls succeed again and waits are answered, though no connection was reset."""
    answered: list[float] = []

    async def read(http: httpx.AsyncClient, path: str) -> None:
        if (await http.get(path)).is_success:
            answered.append(time.monotonic())

    async with (
        proxied(dev_server.address) as proxy,
        service(TEMPORAL_ADDRESS=proxy.address, RPC_TIMEOUT_SECONDS="5") as http,
    ):
        path = await started(http)
        calling = list(proxy.links)
        waiting = asyncio.create_task(http.get(f"{path}/result", headers={"Prefer": "wait=50"}))
        await waits_carried(proxy, calling, 1)
        proxy.fall_silent()
        fell_silent, reads = time.monotonic(), []
        while time.monotonic() < fell_silent + seconds:
            reads.append(asyncio.create_task(read(http, path)))
            await asyncio.sleep(0.5)
        proxy.speak()
        back = time.monotonic()
        while not answered:
            assert time.monotonic() < back + RECOVERY_SECONDS
            reads.append(asyncio.create_task(read(http, path)))
            await asyncio.sleep(0.5)
        ended = await http.post(f"{path}/terminate", json={"reason": "it is over"}, headers=OPERATOR)
        result = await waiting
        waited_until = time.monotonic()
        await asyncio.gather(*reads)

    assert 204 == ended.status_code
    assert (200, "TERMINATED") == (result.status_code, result.json()["status"])
    assert waited_until < back + RECOVERY_SECONDS


async def test_waits_take_no_room_from_calls(dev_server: DevServer) -> None:
    """Waits have connections of their own, each with fewer than the 128 streams that proxies allow."""
    async with (
        proxied(dev_server.address) as proxy,
        service(TEMPORAL_ADDRESS=proxy.address, MAX_OPEN_WAITS_PER_USER="200") as http,
    ):
        paths = [path for _ in range(10) for path in await asyncio.gather(*(started(http) for _ in range(13)))]
        calling = list(proxy.links)
        wait = {"Prefer": "wait=50"}
        async with httpx.AsyncClient(base_url=http.base_url, headers=http.headers, limits=httpx.Limits()) as many:
            waiting = [asyncio.create_task(many.get(f"{path}/result", headers=wait, timeout=90)) for path in paths]
            carried = await waits_carried(proxy, calling, 130)
            await asyncio.gather(*(placed(http) for _ in range(20)))
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    assert 130 == sum(carried)
    assert max(carried) <= 100


async def test_connections_reset_in_mid_call() -> None:
    """Reads go on over another one; while every connection breaks, they are 503 and may be tried again."""
    async with (
        own_server() as server,
        proxied(server.address) as proxy,
        service(TEMPORAL_ADDRESS=proxy.address, RPC_TIMEOUT_SECONDS="2") as http,
    ):
        await eventually(lambda: is_ready(http))
        path = f"/api/v1/orders/{(await placed(http))['id']}"
        mended = []
        for number in range(20):
            proxy.resets = 1 + number % 2
            mended.append(await http.get(path))
        proxy.resets = 1_000_000
        broken = [await http.get(path) for _ in range(5)]

    assert {200} == {answer.status_code for answer in mended}
    for answer in broken:
        if not answer.is_success:  # it is small, and may have come whole
            assert assert_problem(answer, 503, "temporal_connection_error")["details"]["retryable"]
    assert not all(answer.is_success for answer in broken)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (RPCStatusCode.UNKNOWN, "transport error"),
        (RPCStatusCode.UNKNOWN, "h2 protocol error: error reading a body from connection"),
        (RPCStatusCode.CANCELLED, "operation was canceled"),
        (RPCStatusCode.INTERNAL, "h2 protocol error: http2 error"),
        (RPCStatusCode.INTERNAL, "protocol error: while receiving response with status: 502 Bad Gateway"),
        (RPCStatusCode.UNKNOWN, "Connection reset by peer (os error 104)"),
        (RPCStatusCode.UNKNOWN, "connection error: broken pipe"),
        (RPCStatusCode.INTERNAL, "error reading a body from connection"),
        (RPCStatusCode.INTERNAL, "Unexpected EOF decoding stream."),
        (RPCStatusCode.UNKNOWN, "connection closed before message completed"),
    ],
)
async def test_a_call_that_its_connection_broke(status: RPCStatusCode, text: str) -> None:
    """Whatever the SDK says of it, it is the connection; tried again it may succeed, and else the caller may try."""
    broken, answer = RPCError(text, status, b""), DescribeNamespaceResponse()
    once, always = (Scripted(describe_namespace=script) for script in ([broken, answer], [broken]))

    await once.temporal(60).check()
    with pytest.raises(TemporalConnectionError):
        await always.temporal(0.5).check()


async def test_other_failures_of_temporal_are_no_broken_connection() -> None:
    """One that Temporal itself reports is not blamed on the network."""
    with pytest.raises(TemporalError):
        await Scripted(describe_namespace=[RPCError("a defect", RPCStatusCode.UNKNOWN, b"")]).temporal(0.5).check()


# --- the deadline ---


async def stream_begun(http: httpx.AsyncClient, path: str) -> httpx.Response:
    """The head of a stream."""
    async with http.stream("GET", path) as response:
        pass
    return response


async def test_one_deadline_for_all_calls_of_a_request(dev_server: DevServer) -> None:
    """Each answer of Temporal 1.6 s late, and RPC_TIMEOUT_SECONDS=2: no request takes 3 s, whatever it asks."""
    async with (
        proxied(dev_server.address) as proxy,
        service(TEMPORAL_ADDRESS=proxy.address, RPC_TIMEOUT_SECONDS="2") as http,
    ):
        path, closed = await started(http), await placed(http)
        await http.post(f"/api/v1/workflows/{closed['workflow_id']}/terminate", json={"reason": "x"}, headers=OPERATOR)
        proxy.delay = 1.6
        calls = {
            "history": http.get(f"{path}/history"),
            "reset": http.post(f"{path}/reset", json={"to": "first_workflow_task", "reason": "x"}, headers=OPERATOR),
            "stream": stream_begun(http, f"{path}/events"),
            "order stream": stream_begun(http, f"/api/v1/orders/{closed['id']}/events"),
            "closed": http.get(f"/api/v1/orders/{closed['id']}"),
            "cancel": http.post(f"{path}/cancel", json={"reason": "x"}),
            "list": http.get("/api/v1/orders?status=cancelled&page_size=1"),
        }
        answers = dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))

    late = {name: answer.elapsed for name, answer in answers.items() if answer.elapsed > timedelta(seconds=3)}
    assert {} == late
    assert {504} >= {answers[name].status_code for name in ("history", "reset", "closed", "cancel")}


async def test_a_preferred_wait_comes_on_top(dev_server: DevServer) -> None:
    """It outlasts RPC_TIMEOUT_SECONDS, and so does a stream; the calls that follow have the time that was left."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, RPC_TIMEOUT_SECONDS="1") as http:
        path = f"/api/v1/orders/{(await placed(http))['id']}"
        workflow = await started(http)
        tag = (await http.get(path)).headers["etag"]

        async def streamed() -> str:
            async with http.stream("GET", f"{workflow}/events") as response:
                return "".join([text async for text in response.aiter_text()])

        streaming = asyncio.create_task(streamed())
        waited = await http.get(path, headers={"If-None-Match": tag, "Prefer": "wait=2"})
        ended = await http.post(f"{workflow}/terminate", json={"reason": "it is over"}, headers=OPERATOR)

        assert (304, 204) == (waited.status_code, ended.status_code)
        assert waited.elapsed > timedelta(seconds=1.9)
        assert "it is over" in await streaming


# --- the limits of Temporal ---


@asynccontextmanager
async def limited_server(rps: int) -> AsyncIterator[str]:
    """The address of a Temporal that takes so many calls a second."""
    address = f"127.0.0.1:{free_port()}"
    command = [await find_temporal(lambda _: None), "server", "start-dev", "--headless", "--log-level", "error"]
    command += ["--port", address.partition(":")[2], "--dynamic-config-value", f"frontend.namespaceRPS={rps}"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        yield address
    finally:
        process.kill()
        await process.wait()


async def test_temporal_at_its_limit_is_told_at_once() -> None:
    """429 within a second, or what a busy machine makes of it: the SDK alone would try again for five."""
    async with limited_server(15) as address, service(TEMPORAL_ADDRESS=address) as http:
        await eventually(lambda: is_ready(http))
        answers = await asyncio.gather(*(http.get("/api/v1/orders/none") for _ in range(100)))

    refused = [answer for answer in answers if answer.status_code == 429]
    assert {404, 429} == {answer.status_code for answer in answers}
    assert refused
    for answer in refused:
        assert_problem(answer, 429, "temporal_overloaded")
        assert answer.elapsed < timedelta(seconds=4)


# --- lists ---


async def calls_made(http: httpx.AsyncClient) -> float:
    """How often the service has called Temporal, but for its health, which a scrape asks."""
    health = {"DescribeNamespace", "DescribeTaskQueue"}
    found = (await samples(http)).items()
    return sum(value for (name, *labels), value in found if name == "temporal_request" and not health & {*labels})


async def test_a_list_costs_a_bounded_number_of_calls(dev_server: DevServer, client: Client) -> None:
    """Two hundred terminated orders cost no more calls than two, on the first page and on the others."""
    owner = bearer(f"owner-{uuid.uuid4()}", "orders:read orders:write")
    async with service(TEMPORAL_ADDRESS=dev_server.address) as http:
        for _ in range(10):
            some = await asyncio.gather(*(placed(http, **owner) for _ in range(20)))
            await asyncio.gather(*(client.get_workflow_handle(each["workflow_id"]).terminate() for each in some))

        async def page(size: int, token: str = "", **params: str) -> tuple[list[str], str]:
            params |= {"page_size": str(size), "page_token": token}
            body = (await http.get("/api/v1/orders", params=params, headers=owner)).json()
            return [item["status"] for item in body["items"]], body["next_page_token"]

        async def indexed() -> bool:
            return ["cancelled"] * 200 == (await page(1000, status="cancelled"))[0]

        await eventually(indexed)
        before = await calls_made(http)
        first, token = await page(120)
        second, _ = await page(120, token)
        by_status, _ = await page(1000, status="cancelled")
        made = await calls_made(http) - before

    assert (120, 80, 200) == (len(first), len(second), len(by_status))
    assert made <= 6


async def test_an_operator_s_fakes_hide_nothing(dev_server: DevServer, client: Client) -> None:
    """Workflows with somebody's `OrderOwner` that are no orders make no page of that caller's empty."""
    name = f"owner-{uuid.uuid4()}"
    owner = bearer(name, "orders:read orders:write")
    attributes = TypedSearchAttributes([SearchAttributePair(SearchAttributeKey.for_keyword("OrderOwner"), name)])
    async with service(TEMPORAL_ADDRESS=dev_server.address) as http:
        mine = await placed(http, **owner)
        for number, prefix in enumerate(["fake"] * 15 + ["order"] * 5):
            await client.start_workflow(
                "order_processing",
                id=f"{prefix}-{number}-{name}",
                task_queue="nobody-polls-this",
                search_attributes=attributes,
            )

        async def indexed() -> bool:
            return len([run async for run in client.list_workflows(f"OrderOwner = '{name}'")]) == 21

        await eventually(indexed)
        page = (await http.get("/api/v1/orders", params={"page_size": 1}, headers=owner)).json()

    assert [mine["id"]] == [item["id"] for item in page["items"]]
