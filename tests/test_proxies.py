"""Behind proxies and in browsers: below a path, through a real nginx, and for what keeps or resumes answers."""

import asyncio
import json
import re
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from api import assert_problem, bearer, eventually, order, service, token
from commands import Process, running_program
from temporal_api.dev.server import DevServer, free_port
from temporal_api.prefix import Prefix
from temporal_api.settings import Settings
from temporal_api.worker import create_worker
from test_readme import only_block

pytestmark = pytest.mark.anyio

ORDERS, WORKFLOWS = "/api/v1/orders", "/api/v1/workflows"
STRIPPED = "location /temporal/ { proxy_pass http://127.0.0.1:8000/; }"
LOCATIONS = {"the path taken off": STRIPPED, "as in the README": only_block("nginx")}
SETTINGS = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
    access_log off; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path other; uwsgi_temp_path other; scgi_temp_path other;
    gzip on; gzip_min_length 1; gzip_proxied any; gzip_types application/json text/event-stream;
    server { listen 127.0.0.1:PORT; LOCATION }
}
"""


@asynccontextmanager
async def program(*words: str, cwd: Path) -> AsyncIterator[Process]:
    """A program of the machine; skips the test where it is not installed."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    async with running_program(*words, cwd=cwd) as process:
        yield process


async def npm(folder: Path, *packages: str) -> None:
    """Install the packages there; skip the test where that is not possible."""
    words = ("npm", "install", "--no-audit", "--no-fund", "--prefer-offline", "--prefix", str(folder), *packages)
    async with program(*words, cwd=folder) as process:
        try:
            code = await process.end(seconds=120)
        except TimeoutError:
            code = 1
        if code:
            pytest.skip(f"npm cannot install {', '.join(packages)}: {process.output[-500:]}")


async def listens(url: str) -> None:
    """Wait until somebody answers there."""
    async with httpx.AsyncClient() as client:

        async def answers() -> bool:
            try:
                return (await client.get(url)).status_code > 0
            except httpx.TransportError:
                return False

        await eventually(answers)


@asynccontextmanager
async def nginx(dev_server: DevServer, folder: Path, location: str, **environ: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an nginx that serves the API below /temporal, and compresses whatever it can."""
    port = free_port()
    async with service(TEMPORAL_ADDRESS=dev_server.address, ROOT_PATH="/temporal/", **environ) as api:
        location = location.replace("8000", str(api.base_url.port))
        (folder / "nginx.conf").write_text(SETTINGS.replace("PORT", str(port)).replace("LOCATION", location))
        url = f"http://127.0.0.1:{port}"
        async with (
            program("nginx", "-p", str(folder), "-c", "nginx.conf", cwd=folder),
            httpx.AsyncClient(base_url=url, timeout=30, headers=bearer()) as client,
        ):
            await listens(url)
            yield client


@pytest.fixture(scope="module", params=LOCATIONS)
async def behind(
    request: pytest.FixtureRequest, dev_server: DevServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an nginx, configured in each of these ways."""
    async with nginx(dev_server, tmp_path_factory.mktemp("nginx"), LOCATIONS[request.param]) as client:
        yield client


async def started(api: httpx.AsyncClient, prefix: str = "/temporal", **body: object) -> str:
    """Where a new workflow is that nobody runs."""
    start = {"workflow_type": "nobody_runs_this", "task_queue": str(uuid.uuid4()), **body}
    answer = await api.post(f"{prefix}{WORKFLOWS}", json=start)
    assert 201 == answer.status_code, answer.text
    return answer.headers["location"]


async def test_every_address_leads_somewhere(behind: httpx.AsyncClient) -> None:
    """Pages, their scripts, the contract's server, and Location: all of them through the proxy."""
    for page, least in (("/temporal/docs", 3), ("/temporal/redoc/", 1)):
        answer = await behind.get(page)
        addresses = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        addresses = [address for address in addresses if not address.startswith("data:")]
        assert (200, True) == (answer.status_code, len(addresses) >= least)
        for address in addresses:
            assert 200 == (await behind.get(address)).status_code, address
    logo = re.search(
        r'"([^"]*/assets/redoc/[^"]+\.svg)"', (await behind.get("/temporal/docs/assets/redoc/redoc.standalone.js")).text
    )
    assert logo
    assert 200 == (await behind.get(logo[1])).status_code
    contract = (await behind.get("/temporal/openapi.json")).json()
    assert [{"url": "/temporal"}] == contract["servers"]
    placed = await behind.post(f"{contract['servers'][0]['url']}{ORDERS}", json=order())
    assert placed.json()["id"] == (await behind.get(placed.headers["location"])).json()["order"]["id"]
    pending = await behind.get(f"{await started(behind)}/result", headers={"Prefer": "wait=1"})
    assert (202, "wait=1") == (pending.status_code, pending.headers["preference-applied"])
    assert 202 == (await behind.get(pending.headers["location"])).status_code


async def test_a_stream_comes_through_as_it_happens(behind: httpx.AsyncClient) -> None:
    """Neither buffering nor compression holds an event back; once the end was seen, a reconnect is 204."""
    path = await started(behind)
    async with asyncio.timeout(60), behind.stream("GET", f"{path}/events") as stream:
        lines = stream.aiter_lines()
        assert "event: history" == await anext(line async for line in lines if line.startswith("event: "))
        await behind.post(f"{path}/terminate", json={"reason": "x"}, headers=bearer(scope="workflows:admin"))
        last = [line async for line in lines if line.startswith("id: ")][-1].removeprefix("id: ")

    assert 204 == (await behind.get(f"{path}/events", headers={"Last-Event-ID": last})).status_code


async def test_a_conditional_read_survives_compression(behind: httpx.AsyncClient) -> None:
    """The ETag of an answer that nginx has compressed is known: 304, after the wait, and If-Match lets a change by."""
    path = await started(behind)
    read = await behind.get(path)
    known = await behind.get(path, headers={"If-None-Match": read.headers["etag"], "Prefer": "wait=1"})
    changed = await behind.post(f"{path}/signal", json={"signal_name": "x"}, headers={"If-Match": read.headers["etag"]})

    assert "gzip" == read.headers["content-encoding"]
    assert (304, "wait=1") == (known.status_code, known.headers["preference-applied"])
    assert 202 == changed.status_code


async def test_a_wait_ends_before_the_proxy_gives_up(dev_server: DevServer, tmp_path: Path) -> None:
    """Of twenty that prefer to wait for longer than nginx does, none gets its 504, and a start tells its id.

    nginx's own 60 s are more than the default of MAX_WAIT_SECONDS.
    """
    assert 50 == Settings().max_wait_seconds
    start, wait = {"workflow_type": "nobody_runs_this", "task_queue": str(uuid.uuid4())}, {"Prefer": "wait=60"}
    location = STRIPPED.replace("; }", "; proxy_read_timeout 20s; }")
    async with nginx(dev_server, tmp_path, location, MAX_WAIT_SECONDS="2") as client:
        path = await started(client)
        answers = await asyncio.gather(
            client.post(f"/temporal{WORKFLOWS}", json=start, headers=wait),
            *(client.get(f"{path}/result", headers=wait) for _ in range(20)),
        )

    assert [201, *[202] * 20] == [answer.status_code for answer in answers]
    assert answers[0].json()["workflow_id"]
    assert {"wait=2"} == {answer.headers["preference-applied"] for answer in answers}


async def test_an_id_with_a_slash_comes_through(behind: httpx.AsyncClient, request: pytest.FixtureRequest) -> None:
    """As the README has it; a proxy that rewrites the path decodes it, which is why the README has it so."""
    path = await started(behind, workflow_id=f"a/b%2F{uuid.uuid4()}")
    found = await behind.get(path)

    assert (200 if "README" in request.node.name else 404) == found.status_code


@pytest.mark.parametrize("prefix", ["/temporal/v1", "/api", "/docs"])
async def test_requests_may_carry_the_prefix(dev_server: DevServer, prefix: str) -> None:
    """With it and without it a request is the same, also when the prefix looks like a path of the service."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, ROOT_PATH=prefix) as api:
        location = await started(api, prefix, workflow_id=f"a/b {prefix} {uuid.uuid4()}")
        assert location.startswith(f"{prefix}{WORKFLOWS}/a%2Fb%20")
        for path in (location, location.removeprefix(prefix)):
            assert 200 == (await api.get(path)).status_code
            assert "no-cache" == (await api.head(path)).headers["cache-control"]
        for path in ("/health/live", "/docs", "/"):
            assert 200 == (await api.get(path)).status_code
            assert 200 == (await api.get(f"{prefix}{path}")).status_code
        doubled = {"target": f"/{prefix}/health/live".encode()}
        assert 200 == (await api.get("/", extensions=doubled)).status_code
        for path in (f"{prefix}x/docs", f"{prefix}/nowhere", f"{prefix}{prefix}{prefix}/docs"):
            problem = assert_problem(await api.get(path), 404, "not_found", prefix)
            assert f" {prefix}/openapi.json" in problem["message"]
        contract = (await api.get("/openapi.json")).json()
    shown = re.findall(r'"(/[a-z/0-9]*problems/\w+)"', json.dumps(contract["components"]["responses"]))
    assert shown
    assert all(each.startswith(f"{prefix}/problems/") for each in shown)
    assert f"({prefix}/problems)" in contract["info"]["description"]
    assert f" HOST{prefix}/api/v1/" in contract["paths"][f"{ORDERS}/{{order_id}}/events"]["get"]["description"]


@pytest.mark.parametrize("servers_own", ["", "/temporal", "/other"])
@pytest.mark.parametrize("path", ["/api/v1/orders", "/", "/temporal/docs", "/temporal", "/temporal/"])
async def test_another_server_may_have_a_root_path_of_its_own(servers_own: str, path: str) -> None:
    """`uvicorn --root-path` puts it before every path, as ASGI has it; what the caller asked for is routed."""
    scope = {"path": servers_own + path, "root_path": servers_own}
    Prefix("/temporal", ["/", "/docs", "/api/v1/orders"]).remove(scope)

    assert {"path": path.removeprefix("/temporal") or "/", "root_path": ""} == scope


async def test_what_may_be_kept(dev_server: DevServer) -> None:
    """Nothing under /api/v1, errors neither; a state only to be asked for again; a stream never changed on its way."""
    async with service(TEMPORAL_ADDRESS=dev_server.address) as api:
        path = await started(api, "")
        answers = {
            path: "no-cache",
            f"{path}/result": "no-store",
            WORKFLOWS: "no-store",
            f"{ORDERS}/nope": "no-store",
            f"{WORKFLOWS}/{'x' * 9000}": "no-store",
        }
        for url, expected in answers.items():
            answer = await api.get(url)
            assert expected == answer.headers["cache-control"], (url, answer.status_code)
        unchanged = await api.get(path, headers={"If-None-Match": (await api.get(path)).headers["etag"]})
        refused = await api.get(path, headers={"Authorization": "Bearer x"})
        stream = await api.head(f"{path}/events")

    assert (304, "no-cache") == (unchanged.status_code, unchanged.headers["cache-control"])
    assert (401, "no-store") == (refused.status_code, refused.headers["cache-control"])
    assert "no-cache, no-transform" == stream.headers["cache-control"]


async def test_an_etag_that_a_proxy_has_changed_is_known(alice: httpx.AsyncClient) -> None:
    """Such as Apache's `-gzip`: in If-None-Match a 304, in If-Match no 412; that of another state is none."""
    proxies = ['W/"{}-gzip"', '"{}-gzip"', '"{}--gzip"', 'W/"{};br"', '"{}:zstd"', 'W/"{}-br-gzip"', '"x", W/"{};gzip"']
    path = await started(alice, "")
    change = {"method": "POST", "url": f"{path}/signal", "json": {"signal_name": "x"}}
    for changed in proxies:
        version = (await alice.get(path)).headers["etag"].removeprefix("W/").strip('"')
        known, older = changed.format(version), changed.format(f"{version}0")
        stale = await alice.get(path, headers={"If-None-Match": older, "Prefer": "wait=20"})

        assert 304 == (await alice.get(path, headers={"If-None-Match": known})).status_code, changed
        assert (200, None) == (stale.status_code, stale.headers.get("preference-applied")), changed
        assert_problem(await alice.request(**change, headers={"If-Match": older}), 412, "precondition_failed")
        assert 202 == (await alice.request(**change, headers={"If-Match": known})).status_code, changed
    assert 304 == (await alice.get(path, headers={"If-None-Match": "*"})).status_code
    assert 202 == (await alice.request(**change, headers={"If-Match": "*"})).status_code


async def test_only_a_wait_is_told_as_one(alice: httpx.AsyncClient) -> None:
    """What has ended already, and what is new to the caller, is answered without a wait: nothing claims one."""
    path = await started(alice, "")
    await alice.post(f"{path}/terminate", json={"reason": "x"}, headers=bearer(scope="workflows:admin"))
    wait = {"Prefer": "wait=20"}
    answers = [
        await alice.get(f"{path}/result", headers=wait),
        await alice.get(path, headers={**wait, "If-None-Match": '"another"'}),
        await alice.get(path, headers={**wait, "If-None-Match": (await alice.get(path)).headers["etag"]}),
    ]

    assert [200, 200, 304] == [answer.status_code for answer in answers]
    assert [] == [answer for answer in answers if "preference-applied" in answer.headers]


EVENT_SOURCE = """
import { EventSource } from "eventsource";
const [url, token] = JSON.parse(process.argv[2]);
const source = new EventSource(url, {
  fetch: async (input, init) => {
    const answer = await fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } });
    console.log("answer", answer.status);
    return answer;
  },
});
source.addEventListener("status", (event) => console.log("status", JSON.parse(event.data).status));
source.addEventListener("done", () => console.log("done"));
source.onerror = () => source.readyState === source.CLOSED && console.log("closed");
"""


async def test_an_event_source_comes_to_an_end(
    dev_server: DevServer, client: Client, task_queue: str, tmp_path: Path
) -> None:
    """npm's `eventsource` sees a delivered order to its end, reconnects once, hears that this was all, and stops."""
    await npm(tmp_path, "eventsource")
    (tmp_path / "main.mjs").write_text(EVENT_SOURCE)
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as api,
        create_worker(client, task_queue),
    ):
        path = (await api.post(ORDERS, json=order())).headers["location"]
        arguments = json.dumps([f"{api.base_url}{path}/events", token()])
        async with program("node", "main.mjs", arguments, cwd=tmp_path) as reader:
            assert 0 == await reader.end(seconds=120), reader.output

    statuses = [f"status {name}" for name in ("pending", "confirmed", "processing", "shipped", "delivered")]
    assert ["answer 200", *statuses, "done", "answer 204", "closed"] == reader.output.splitlines()


COMPRESSING = """
import { request } from "node:http";
import compression from "compression";
import express from "express";
const [upstream, port] = JSON.parse(process.argv[2]);
const pass = (req, res) =>
  req.pipe(request(upstream + req.url, { method: req.method, headers: req.headers }, (answer) => {
    res.writeHead(answer.statusCode, answer.headers);
    answer.pipe(res);
  }));
express().use(compression({ threshold: 0, filter: () => true })).use(pass).listen(port, "127.0.0.1");
"""


@pytest.mark.full
async def test_a_compressing_proxy_holds_nothing_back(dev_server: DevServer, tmp_path: Path) -> None:
    """Express's `compression` leaves a stream alone, and sends each event at once."""
    await npm(tmp_path, "express", "compression")
    (tmp_path / "main.mjs").write_text(COMPRESSING)
    port = free_port()
    async with service(TEMPORAL_ADDRESS=dev_server.address) as api:
        path, url = await started(api, ""), f"http://127.0.0.1:{port}"
        words = ("node", "main.mjs", json.dumps([str(api.base_url).rstrip("/"), port]))
        async with (
            program(*words, cwd=tmp_path),
            httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as behind,
        ):
            await listens(url)
            assert "gzip" == (await behind.get(path)).headers["content-encoding"]
            async with asyncio.timeout(30), behind.stream("GET", f"{path}/events") as stream:
                assert "event: history" in [line async for line in _until(stream, "event: history")]


async def _until(stream: httpx.Response, last: str) -> AsyncIterator[str]:
    async for line in stream.aiter_lines():
        yield line
        if line == last:
            return
