"""The command line, run as a user runs it."""

import asyncio
import base64
import fcntl
import math
import os
import re
import shutil
import signal
import socket
import struct
import sys
import termios
import uuid
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client

from api import SECRET, assert_problem, eventually, order
from commands import Process, command, curl, inherited, temporal_api, until_ready
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

    assert [(200, order_id)] == [(answer.status_code, answer.json()["order"]["id"]) for answer in answers]
    assert 3 == len(urls)
    async with httpx.AsyncClient(follow_redirects=True) as client:
        assert [200, 200, 200] == [(await client.get(url)).status_code for url in urls]


async def told_by_the_ui(browser: httpx.AsyncClient, url: str, name: str) -> Any:
    """What Temporal's UI tells under that name; it may have called its server too soon, and then tries again."""

    async def told() -> Any:
        return (await browser.get(url)).json().get(name)

    return await eventually(told)


async def test_the_token_of_dev_sees_all_that_dev_made(dev: Process) -> None:
    """The order's workflow too, whose run is linked in Temporal's UI."""
    token = (await dev.until(r"export TOKEN=(\S+)"))[1]
    await dev.until(r"Order \S+: pending")
    api = re.search(r"^API +(\S+)$", dev.output, re.MULTILINE)[1]
    link = re.search(r"^Order's run +(\S+)/namespaces/default/workflows/(\S+)/(\S+)/history$", dev.output, re.MULTILINE)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(headers=headers) as client:
        run = (await client.get(f"{api}/api/v1/workflows/{link[2]}")).json()
        path = f"api/v1/namespaces/default/workflows/{link[2]}"
        in_the_ui = await told_by_the_ui(client, f"{link[1]}/{path}", "workflowExecutionInfo")

    assert (link[2], link[3]) == (run["workflow_id"], run["run_id"])
    assert {"workflowId": link[2], "runId": link[3]} == in_the_ui["execution"]


@pytest.mark.full
async def test_the_docs_open_authorised_in_dev_only(dev: Process, base_url: str, tmp_path: Path) -> None:
    """In a real browser: the link of `dev` does, and leaves no token in the address; elsewhere a fragment does not."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    link = (await dev.until(r"Docs +(http\S+/docs)(#token=\S+)"))[0].split()[1]
    fragment = link.partition("#")[2]

    async def locks(url: str) -> set[str]:
        """How the locks of the operations look on the page."""
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--virtual-time-budget=20000"]
        options += [f"--user-data-dir={tmp_path / uuid.uuid4().hex}", "--dump-dom"]
        process = await asyncio.create_subprocess_exec(
            browser,
            *options,
            url,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(120):
            page = (await process.communicate())[0].decode()
        assert fragment not in page
        return set(re.findall(r'"authorization button (\w+)"', page))

    assert {"locked"} == await locks(link)
    assert {"unlocked"} == await locks(f"{base_url}/docs#{fragment}")


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


ROWS = 24 - 4
"""Of a terminal's 24: the command and `Order's run` with its two rows, which are not here, and the cursor's."""


async def in_a_terminal(*arguments: str, **environ: str) -> tuple[int, list[str]]:
    """Run `temporal-api` in a terminal of 80 columns; give its exit code and the lines that stay on the screen."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    try:
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).with_name("temporal-api"), *arguments),
            stdin=its,
            stdout=its,
            stderr=its,
            env={**inherited(), "TERM": "xterm-256color", **environ},
        )
    finally:
        os.close(its)
    output = b""

    def read() -> None:
        nonlocal output
        with suppress(OSError):  # the terminal's other end is closed
            while part := os.read(ours, 65536):
                output += part

    reading = asyncio.create_task(asyncio.to_thread(read))
    try:
        async with asyncio.timeout(120):
            code = await process.wait()
            await reading
    finally:
        if process.returncode is None:
            process.kill()
        os.close(ours)
    text = output.decode().replace("\r\n", "\n")
    text = re.sub(r".*\n(?:\x1b\[\?25h)?\r?\x1b\[1A\x1b\[2K", "", text)  # up, and erase that line
    text = re.sub(r"\x1b\]8;.*?\x1b\\|\x1b\[[?0-9;]*[A-Za-z]", "", text)  # links and styles
    return code, [line.rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")]


def rows(lines: list[str]) -> int:
    """How many rows of a terminal the lines take."""
    return sum(max(1, math.ceil(len(line) / 80)) for line in lines)


async def test_dev_once_fits_one_screen_and_ends_0(dev_server: DevServer) -> None:
    """A terminal has 24 rows, one for the command; the order's way is one line. A script can use the code.

    A shell that is set up for a company's proxy, and for its service, does no harm.
    """
    environ = {"PORT": str(free_port()), "TEMPORAL_ADDRESS": dev_server.address}
    environ |= {"http_proxy": f"http://127.0.0.1:{free_port()}", "no_proxy": "", "JWT_ALGORITHMS": "RS256"}
    code, lines = await in_a_terminal("dev", "--once", ORDERS_TASK_QUEUE=str(uuid.uuid4()), **environ)

    assert 0 == code, lines
    assert rows(lines) <= ROWS
    (way,) = (line for line in lines if line.startswith("pending"))
    steps = ["pending", "confirmed", "processing", "shipped", "delivered"]
    assert re.fullmatch(" → ".join(rf"{step} \d+\.\d" for step in steps) + " s", way)


@pytest.mark.full
async def test_dev_crash_delivers_the_order_and_charges_it_once(client: Client, dev_server: DevServer) -> None:
    """The worker that charged is killed, and another delivers, as the history tells; all of it fits one screen."""
    environ = {"PORT": str(free_port()), "TEMPORAL_ADDRESS": dev_server.address}
    code, lines = await in_a_terminal("dev", "--crash", "--once", ORDERS_TASK_QUEUE=str(uuid.uuid4()), **environ)
    text = "\n".join(lines)

    assert 0 == code, text
    assert rows(lines) <= ROWS
    assert "charge_payment ran once and ship twice" in text
    killed, other = re.search(
        r"^SIGKILL for worker (\d+), after the payment. Worker (\d+) goes on", text, re.M
    ).groups()
    order_id = re.search(r"^export ORDER_ID=(\S+)", text, re.M)[1]
    names, done = {}, {}
    async for event in client.get_workflow_handle(f"order-{order_id}").fetch_history_events():
        if event.HasField("activity_task_scheduled_event_attributes"):
            names[event.event_id] = event.activity_task_scheduled_event_attributes.activity_type.name
        if event.HasField("activity_task_completed_event_attributes"):
            completed = event.activity_task_completed_event_attributes
            assert done.setdefault(names[completed.scheduled_event_id], completed.identity) == completed.identity
    assert 4 == len(names)
    assert done["charge_payment"].startswith(f"{killed}@")
    assert done["deliver"].startswith(f"{other}@")
    with pytest.raises(ProcessLookupError):
        os.kill(int(other), 0)


async def test_dev_shows_encrypted_payloads_in_temporal_s_ui_and_cli() -> None:
    """The UI asks the address that its settings name, without a token, and nobody else may; the CLI's line works.

    So it is on another address, in another namespace, and in a shell that is set up for a Temporal with TLS.
    """
    environ = {"PORT": str(free_port()), "PAYLOAD_ENCRYPTION_KEYS": f"id:{'A' * 43}="}
    environ |= {"HOST": "::1", "TEMPORAL_NAMESPACE": "shop", "TEMPORAL_API_KEY": "of-another-temporal"}
    async with temporal_api("dev", **environ) as process, httpx.AsyncClient() as browser:
        ui = (await process.until(r"Temporal UI +(\S+)"))[1]
        await process.until(r"Order \S+: pending")
        token, order_id = (re.search(rf"{name}=(\S+)", process.output)[1] for name in ("TOKEN", "ORDER_ID"))
        line = re.search(r"^.* workflow show .*$", process.output, re.MULTILINE)[0]
        codec = (await browser.get(f"{ui}/api/v1/settings")).json()["Codec"]["Endpoint"]
        run = f"{ui}/api/v1/namespaces/shop/workflows/order-{order_id}"
        history = await told_by_the_ui(browser, f"{run}/history", "history")
        (sealed,) = history["events"][0]["workflowExecutionStartedEventAttributes"]["input"]["payloads"]

        async def decode(origin: str, host: str = httpx.URL(codec).netloc.decode()) -> httpx.Response:
            headers = {"Origin": origin, "Host": host, "X-Namespace": "shop"}
            return await browser.post(f"{codec}/decode", json={"payloads": [sealed]}, headers=headers)

        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-namespace"}
        preflight = await browser.options(f"{codec}/decode", headers={"Origin": ui, **asks})
        answer = await decode(ui)
        refused = [await decode("http://evil.example"), await decode("null"), await decode(ui, "evil.example")]
        no_origin = await browser.post(f"{codec}/decode", json={"payloads": [sealed]})
        shell = await asyncio.create_subprocess_shell(
            f"{line} --output json", env={**inherited(), "TOKEN": token, "ORDER_ID": order_id}, stdout=PIPE
        )
        shown = (await shell.communicate())[0]

    assert b"tok_visa" not in base64.b64decode(sealed["data"])
    assert (204, ui) == (preflight.status_code, preflight.headers["access-control-allow-origin"])
    assert {"content-type", "x-namespace"} <= set(preflight.headers["access-control-allow-headers"].split(", "))
    assert (200, ui) == (answer.status_code, answer.headers["access-control-allow-origin"])
    assert b"tok_visa" in base64.b64decode(answer.json()["payloads"][0]["data"])
    for response in (*refused, no_origin):
        assert_problem(response, 403, "not_allowed")
    assert b"tok_visa" in b"".join(base64.b64decode(data) for data in re.findall(rb'"data": "(.*?)"', shown))


async def test_dev_once_ends_1_when_it_is_not(dev_server: DevServer) -> None:
    """An order that times out before it is delivered fails the check. A terminal of ASCII shows plain lines."""
    environ = {"PORT": str(free_port()), "TEMPORAL_ADDRESS": dev_server.address, "PYTHONIOENCODING": "ascii"}
    environ["ORDERS_EXECUTION_TIMEOUT_SECONDS"] = "1"
    code, lines = await in_a_terminal("dev", "--once", ORDERS_TASK_QUEUE=str(uuid.uuid4()), **environ)

    assert 1 == code, lines
    assert any(line.endswith(": cancelled") for line in lines), lines


async def test_serve_and_worker_process_an_order(dev_server: DevServer) -> None:
    """The two parts for production, each a process of its own, deliver an order; both end 0 on Ctrl-C.

    That is a clean end: nothing is printed but lines of the log. SIGTERM: see test_logs.py and test_metrics.py.
    """
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

        assert (0, 0) == (await serve.end(signal.SIGINT), await worker.end(signal.SIGINT))
    lines = (serve.output + worker.output).splitlines()
    assert [] == [line for line in lines if not line.startswith('{"time":')]


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


async def test_a_second_ctrl_c_ends_at_once() -> None:
    """The rest of the drain is given up, which is no failure: nothing of it is told."""
    environ = {"JWT_SECRET": SECRET, "SHUTDOWN_DELAY_SECONDS": "600", "TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}"}
    port = free_port()
    async with temporal_api("serve", PORT=str(port), **environ) as serve, httpx.AsyncClient() as http:
        await serve.until("Uvicorn running")
        serve.process.send_signal(signal.SIGINT)

        async def draining() -> bool:
            return "shutting down" in (await http.get(f"http://127.0.0.1:{port}/health/ready")).text

        await eventually(draining)
        serve.process.send_signal(signal.SIGINT)
        await serve.until("Shutting down")
        assert 0 == await serve.end(signal.SIGINT), serve.output
    assert "Traceback" not in serve.output


async def test_closed_output_is_no_connection(dev_server: DevServer) -> None:
    """Without standard output, no connection gets its number, and so no caller gets the log's lines."""
    port = free_port()
    environ = {**inherited(), "JWT_SECRET": SECRET, "PORT": str(port), "TEMPORAL_ADDRESS": dev_server.address}
    program = Path(sys.executable).with_name("temporal-api")
    serve = await asyncio.create_subprocess_shell(f"exec '{program}' serve <&- >&-", env=environ)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            await until_ready(str(http.base_url))
            assert 401 == (await http.get("/api/v1/orders")).status_code
    finally:
        serve.terminate()
    assert 0 == await serve.wait()
    token = await asyncio.create_subprocess_shell(f"exec '{program}' token >&-", env=environ, stderr=PIPE)
    assert (b"", 0) == ((await token.communicate())[1], token.returncode)


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
