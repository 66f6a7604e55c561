"""The command line, run as a user runs it."""

import asyncio
import re
import signal
import socket
import uuid

import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client

from api import SECRET, assert_problem, eventually, order
from commands import Process, command, curl, temporal_api
from temporal_api.dev.server import DevServer, free_port

pytestmark = pytest.mark.anyio


async def test_dev_prints_what_works_when_pasted(dev: Process) -> None:
    """The URLs answer, and the curl lines do what they say with the variables that are set above them."""
    token = (await dev.until(r"export TOKEN=(\S+)"))[1]
    order_id = (await dev.until(r"export ORDER_ID=(\S+)"))[1]
    await dev.until(r"Order \S+: pending")
    lines = re.findall(r"^curl .*$", dev.output, re.MULTILINE)
    urls = re.findall(r"^(?:API|Docs|Temporal UI) +(http\S+)$", dev.output, re.MULTILINE)

    answers = [await curl(line, TOKEN=token, ORDER_ID=order_id) for line in lines]

    assert [201, 200] == [answer.status_code for answer in answers]
    assert 3 == len(urls)
    async with httpx.AsyncClient(follow_redirects=True) as client:
        assert [200, 200, 200] == [(await client.get(url)).status_code for url in urls]


async def test_dev_shows_its_order_until_it_is_delivered(dev: Process) -> None:
    """Every status of the order is told, in order, the last one `delivered`."""
    await dev.until("Running until Ctrl-C")

    assert ["pending", "confirmed", "processing", "shipped", "delivered"] == re.findall(
        r"^Order \S+: (\w+)$", dev.output, re.MULTILINE
    )


async def test_dev_takes_the_next_free_port_and_stops_all_it_started(dev_server: DevServer) -> None:
    """A busy port is said, Ctrl-C is a clean end, and nothing listens afterwards."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        queue = str(uuid.uuid4())
        environ = {"PORT": str(taken), "TEMPORAL_ADDRESS": dev_server.address, "ORDERS_TASK_QUEUE": queue}
        async with temporal_api("dev", **environ) as process:
            port = int((await process.until(rf"Port {taken} is busy: the API takes (\d+)\."))[1])
            await process.until("Running until Ctrl-C")

            assert 0 == await process.end(signal.SIGINT), process.output
    assert process.output.endswith("Stopped.\n")
    assert "Traceback" not in process.output
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_dev_once_ends_0_when_the_order_is_delivered(dev_server: DevServer) -> None:
    """`dev --once` is a check that a script can use."""
    environ = {"PORT": str(free_port()), "TEMPORAL_ADDRESS": dev_server.address}
    async with temporal_api("dev", "--once", ORDERS_TASK_QUEUE=str(uuid.uuid4()), **environ) as process:
        assert 0 == await process.end(), process.output
    assert ": delivered\n" in process.output


async def test_dev_once_ends_1_when_it_is_not(dev_server: DevServer) -> None:
    """An order that times out before it is delivered fails the check."""
    environ = {"PORT": str(free_port()), "TEMPORAL_ADDRESS": dev_server.address}
    environ["ORDERS_EXECUTION_TIMEOUT_SECONDS"] = "1"
    async with temporal_api("dev", "--once", ORDERS_TASK_QUEUE=str(uuid.uuid4()), **environ) as process:
        assert 1 == await process.end(), process.output
    assert ": cancelled\n" in process.output


async def test_serve_and_worker_process_an_order(dev_server: DevServer) -> None:
    """The two parts for production, each a process of its own, deliver an order; both end 0 on SIGTERM."""
    port = free_port()
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "ORDERS_TASK_QUEUE": str(uuid.uuid4())}
    async with (
        temporal_api("serve", JWT_SECRET=SECRET, PORT=str(port), **environ) as serve,
        temporal_api("worker", **environ) as worker,
        temporal_api("token", "--sub", "carol", "--scope", "orders:read orders:write", JWT_SECRET=SECRET) as token,
    ):
        assert 0 == await token.end(), token.output
        await worker.until("worker polls")
        await serve.until("Uvicorn running")
        headers = {"Authorization": f"Bearer {token.output.strip()}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as carol:
            location = (await carol.post("/api/v1/orders", json=order())).headers["location"]

            async def delivered() -> bool:
                return bool((await carol.get(location)).json()["order"]["status"] == "delivered")

            await eventually(delivered)
            assert_problem(await carol.get("/api/v1/workflows/any"), 403, "insufficient_scope")

        assert (0, 0) == (await serve.end(signal.SIGTERM), await worker.end(signal.SIGTERM))


@pytest.mark.parametrize(("part", "begun"), [("serve", "Uvicorn running"), ("worker", "worker polls")])
async def test_ctrl_c_is_a_clean_end(dev_server: DevServer, part: str, begun: str) -> None:
    """Exit code 0, and nothing but lines of the log."""
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "ORDERS_TASK_QUEUE": str(uuid.uuid4()), "JWT_SECRET": SECRET}
    async with temporal_api(part, PORT=str(free_port()), **environ) as process:
        await process.until(begun)
        assert 0 == await process.end(signal.SIGINT), process.output
    assert [] == [line for line in process.output.splitlines() if not line.startswith('{"time":')]


NEEDED = """
import sys
from unittest.mock import patch
from temporal_api.cli import main
with patch("temporal_api.serving.serve"), patch.object(sys, "argv", ["temporal-api", "serve"]):
    try:
        main()
    finally:
        print(*(name for name in sys.modules if name.startswith("temporal_api.")))
"""


async def test_serve_needs_neither_the_worker_nor_what_builds_temporal() -> None:
    """The API starts, and may be deployed, without them."""
    async with command("python", "-c", NEEDED, JWT_SECRET=SECRET) as process:
        assert 0 == await process.end(), process.output
    needed = set(process.output.split())
    assert {"temporal_api.app", "temporal_api.serving"} <= needed
    assert set() == {name for name in needed if name.startswith(("temporal_api.dev", "temporal_api.worker"))}


async def test_setup_adds_the_search_attributes_once(client: Client, dev_server: DevServer) -> None:
    """`setup` makes a fresh namespace ready for orders, and may be repeated."""
    namespace = f"fresh-{uuid.uuid4()}"
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=namespace, workflow_execution_retention_period=Duration(seconds=86_400))
    )
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "TEMPORAL_NAMESPACE": namespace}

    async def first_run() -> bool:  # a namespace is there some time after it was made
        async with temporal_api("setup", **environ) as process:
            return await process.end() == 0

    await eventually(first_run, seconds=60)
    async with temporal_api("setup", **environ) as again:
        assert 0 == await again.end()
    assert "added nothing: all are there\n" == again.output
    attributes = await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=namespace))
    assert {"OrderOwner", "OrderStatus"} <= attributes.custom_attributes.keys()


async def test_token_needs_the_secret() -> None:
    """With a JWKS the issuer signs, not this command: exit code 2 and one line."""
    environ = {"JWT_JWKS_URL": "http://127.0.0.1/jwks", "JWT_ISSUER": "i", "JWT_AUDIENCE": "a"}
    async with temporal_api("token", **environ) as process:
        assert 2 == await process.end()
    assert process.output.startswith("temporal-api: JWT_SECRET: ")
    assert 1 == process.output.count("\n")
