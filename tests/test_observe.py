"""What the outermost wrapper does for every answer: request id, counts, access log, gzip, HEAD, CORS."""

import asyncio
import gzip
import json
import logging
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import MediaType, Response, asgi, get
from litestar.params import FromPath
from litestar.response import Stream
from litestar.routes import HTTPRoute
from litestar.types import Receive, Scope, Send

from api import SECRET, TLS, assert_problem, bearer, eventually, order, samples, service
from temporal_api.app import SCOPES, create_app
from temporal_api.dev.server import DevServer, free_port
from temporal_api.logs import JSONFormatter
from temporal_api.serving import serving
from temporal_api.settings import Settings, from_env

pytestmark = pytest.mark.anyio

SHOP = "https://shop.example"
TRACE = "0af7651916cd43dd8448eb211c80319c"
MAX_BODY = 65_536


@get("/boom")
async def boom() -> None:
    """A defect."""
    raise RuntimeError("a defect in a handler")


@asgi("/silent", is_mount=False, copy_scope=False)
async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """A defect after the start of the answer was given, and before anything was sent."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("a defect before the body")


@get("/half")
async def half() -> Stream:
    """A defect in the middle of an answer."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 2000
        raise RuntimeError("a defect in the middle")

    return Stream(chunks())


@get("/sized/{size:int}", media_type=MediaType.TEXT)
async def sized(size: FromPath[int]) -> Response[str]:
    """As many bytes as asked for."""
    return Response("a" * size, headers={"ETag": '"strong"'})


@get("/chunks")
async def chunks() -> Stream:
    """A body whose size is not known at its start."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"c" * 2000

    return Stream(parts())


@get("/encoded", media_type=MediaType.TEXT)
async def encoded() -> Response[str]:
    """A body that is encoded already."""
    return Response("b" * 2000, headers={"Content-Encoding": "br", "Vary": "Accept-Encoding"})


class Waiting:
    """A handler that answers when told to."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.released = asyncio.Event()


@pytest.fixture(scope="module")
async def waiting(anyio_backend: str) -> Waiting:
    """The state of the handler below."""
    return Waiting()


@pytest.fixture(scope="module")
async def app_url(dev_server: DevServer, waiting: Waiting) -> AsyncIterator[str]:
    """The service, really listening, with a few handlers that misbehave."""

    @get("/wait")
    async def wait() -> None:
        waiting.entered.set()
        await waiting.released.wait()

    app = create_app(
        from_env(
            {
                "JWT_SECRET": SECRET,
                "TEMPORAL_ADDRESS": dev_server.address,
                "ORDERS_TASK_QUEUE": f"orders-{uuid.uuid4()}",
                "ALLOWED_ORIGINS": SHOP,
                "MAX_BODY_BYTES": str(MAX_BODY),
            }
        )
    )
    for handler in (boom, silent, half, sized, chunks, encoded, wait):
        app.register(handler)
    port = free_port()
    async with serving(app, "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def web(app_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it, without a token."""
    async with httpx.AsyncClient(base_url=app_url, timeout=30, verify=TLS) as client:
        yield client


@pytest.fixture
async def order_id(web: httpx.AsyncClient) -> str:
    """An order of Alice's that no worker takes up."""
    return str((await web.post("/api/v1/orders", json=order(), headers=bearer())).json()["id"])


ANSWERS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    # name: status, method, path, and what is sent
    "200": (200, "GET", "/health/live", {}),
    "200 slash": (200, "GET", "/health/live/", {}),
    "200 HEAD": (200, "HEAD", "/health/live", {}),
    "201": (201, "POST", "/api/v1/orders", {"json": order(), "headers": bearer()}),
    "204": (204, "POST", "/api/v1/orders/{order_id}/cancel", {"headers": bearer()}),
    "204 OPTIONS": (204, "OPTIONS", "/health/live", {}),
    "400": (400, "POST", "/api/v1/orders", {"json": order(items=[]), "headers": bearer()}),
    "401": (401, "GET", "/api/v1/orders/{order_id}", {}),
    "403": (403, "GET", "/api/v1/orders/{order_id}", {"headers": bearer(scope="none")}),
    "404 order": (404, "GET", "/api/v1/orders/none", {"headers": bearer()}),
    "404": (404, "GET", "/no/such/path", {}),
    "405": (405, "DELETE", "/health/live", {}),
    "405 PROPFIND": (405, "PROPFIND", "/health/live", {}),
    "413": (413, "POST", "/api/v1/orders", {"content": b" " * (MAX_BODY + 1), "headers": bearer()}),
    "415": (415, "POST", "/api/v1/orders", {"content": b"<order/>", "headers": bearer()}),
    "500": (500, "GET", "/boom", {}),
    "500 silent": (500, "GET", "/silent", {}),
}
ROUTES = {
    "200": "/health/live",
    "200 slash": "/health/live",
    "200 HEAD": "/health/live",
    "201": "/api/v1/orders",
    "204": "/api/v1/orders/{order_id}/cancel",
    "204 OPTIONS": "/health/live",
    "400": "/api/v1/orders",
    "401": "/api/v1/orders/{order_id}",
    "403": "/api/v1/orders/{order_id}",
    "404 order": "/api/v1/orders/{order_id}",
    "413": "/api/v1/orders",
    "415": "/api/v1/orders",
    "500": "/boom",
    "500 silent": "/silent",
}


async def ask(web: httpx.AsyncClient, name: str, order_id: str, **headers: str) -> httpx.Response:
    """Cause that answer."""
    status, method, path, given = ANSWERS[name]
    kind = {"Content-Type": "text/xml" if status == 415 else "application/json"}
    sent = {**given, "headers": {**(kind if "content" in given else {}), **given.get("headers", {}), **headers}}
    response = await web.request(method, path.format(order_id=order_id), **sent)
    assert status == response.status_code, response.text
    return response


@pytest.mark.parametrize("name", ANSWERS)
async def test_every_answer_is_counted_as_what_it_was(web: httpx.AsyncClient, name: str, order_id: str) -> None:
    """One more request of that method, route and status, and no other; one more observed duration."""
    before = await samples(web)
    await ask(web, name, order_id)
    after = await samples(web)

    status, method, _, _ = ANSWERS[name]
    method = "OTHER" if method == "PROPFIND" else method
    key = ("method", method, "route", ROUTES.get(name, "unmatched"))
    counted = {k for k in after if k[0] == "http_requests_total" and after[k] != before.get(k, 0)}
    scraped = ("http_requests_total", "method", "GET", "route", "/metrics", "status", "200")
    assert {("http_requests_total", *key, "status", str(status)), scraped} == counted
    assert all(1 == after[k] - before.get(k, 0) for k in counted)
    duration = ("http_request_duration_seconds_count", *key)
    assert 1 == after[duration] - before.get(duration, 0)


@pytest.mark.parametrize("name", ANSWERS)
async def test_every_answer_carries_the_callers_request_id(web: httpx.AsyncClient, name: str, order_id: str) -> None:
    """Whatever the answer is, it carries the id that came, once; an error tells it too."""
    given = f"{name.replace(' ', '-')}._A"
    response = await ask(web, name, order_id, **{"X-Request-ID": given})

    assert [given] == response.headers.get_list("x-request-id")
    if response.status_code >= 400:
        assert_problem(response, response.status_code, response.json()["error"])


@pytest.mark.parametrize("given", ["a", "A-Z_0.9", "x" * 128])
async def test_a_request_id_is_the_callers_own(web: httpx.AsyncClient, given: str) -> None:
    """1 to 128 of A-Za-z0-9._- comes back as it was."""
    assert given == (await web.get("/", headers={"X-Request-ID": given})).headers["x-request-id"]


@pytest.mark.parametrize("given", [None, "", "x" * 129, "with space", "semi;colon", "ümlaut", "tab\tbed", "a,b"])
async def test_an_unfit_request_id_is_replaced(web: httpx.AsyncClient, given: str | None) -> None:
    """Anything else is replaced by a new one, each time another."""
    headers = {} if given is None else {"X-Request-ID": given.encode()}
    first, second = [(await web.get("/", headers=headers)).headers["x-request-id"] for _ in range(2)]

    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


async def in_progress(web: httpx.AsyncClient) -> float:
    """Requests under way; the scrape itself is one."""
    return (await samples(web))[("http_requests_in_progress",)]


async def test_requests_under_way_are_counted(web: httpx.AsyncClient, waiting: Waiting) -> None:
    """One more while a request waits, and as many as before once it was answered."""
    assert 1 == await in_progress(web)
    request = asyncio.create_task(web.get("/wait"))
    await waiting.entered.wait()
    assert 2 == await in_progress(web)
    waiting.released.set()
    assert 200 == (await request).status_code
    assert 1 == await in_progress(web)


async def test_a_caller_that_leaves_is_no_longer_under_way(
    web: httpx.AsyncClient, app_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that closes in the middle of its body frees what it held, and is nobody's defect."""
    host, port = app_url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v1/orders HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 100"
    writer.write(f"{head}\r\nAuthorization: {bearer()['Authorization']}\r\n\r\n{{".encode())

    async def under_way(number: int) -> bool:
        return number == await in_progress(web)

    await eventually(lambda: under_way(2))
    before = await samples(web)
    writer.close()
    await eventually(lambda: under_way(1))

    after = await samples(web)
    failed = [key for key in after if key[-2:] == ("status", "500") and after[key] != before.get(key, 0)]
    assert [] == failed
    assert [] == [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_defect_before_anything_was_sent_is_a_500(
    web: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A start that was given and not yet sent is taken back."""
    response = await web.get("/silent", headers={"X-Request-ID": "silent-1"})

    assert_problem(response, 500, "internal_server_error")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    line = json.loads(JSONFormatter().format(record))
    assert "silent-1" == line["request_id"]
    assert "RuntimeError: a defect before the body" in line["traceback"]


async def test_a_defect_in_the_middle_of_an_answer_breaks_it_off(
    web: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller sees that the answer is not whole, the log says why, and nothing stays under way."""
    with pytest.raises(httpx.RemoteProtocolError):
        await web.get("/half", headers={"X-Request-ID": "half-1"})

    record = next(r for r in caplog.records if r.exc_info and r.name.startswith("temporal_api"))
    line = json.loads(JSONFormatter().format(record))
    assert "half-1" == line["request_id"]
    assert "a defect in the middle" in line["traceback"]
    assert 1 == await in_progress(web)


async def get_raw(web: httpx.AsyncClient, path: str, accept: str | None) -> tuple[httpx.Response, bytes]:
    """The answer and its body's bytes as they were sent."""
    request = web.build_request("GET", path, headers={"Accept-Encoding": accept or ""})
    if accept is None:
        del request.headers["accept-encoding"]
    response = await web.send(request, stream=True)
    return response, b"".join([chunk async for chunk in response.aiter_raw()])


@pytest.mark.parametrize(
    "accept", ["gzip", "*", "GZIP", "deflate, gzip;q=0.5, br", "gzip;q=1.0", "gzip ; q=0.001", "br;q=0,gzip", "*;q=0.1"]
)
async def test_a_body_of_1000_bytes_is_compressed(web: httpx.AsyncClient, accept: str) -> None:
    """For who accepts it: the length is that of what was sent, caches are told, and the validator is weak."""
    response, body = await get_raw(web, "/sized/1000", accept)

    assert b"a" * 1000 == gzip.decompress(body)
    assert "gzip" == response.headers["content-encoding"]
    assert [str(len(body))] == response.headers.get_list("content-length")
    assert ["Origin", "Accept-Encoding"] == response.headers.get_list("vary")
    assert 'W/"strong"' == response.headers["etag"]


@pytest.mark.parametrize(
    "accept",
    [None, "", "identity", "br", "gzip;q=0", "gzip; q=0.0", "gzip;q=0.000", "*;q=0", "*, gzip;q=0", "gzip;q=0, *"],
)
async def test_who_does_not_accept_gzip_gets_none(web: httpx.AsyncClient, accept: str | None) -> None:
    """`q=0` refuses, and what is said of gzip counts more than what is said of `*`; caches are told here too."""
    response, body = await get_raw(web, "/sized/1000", accept)

    assert b"a" * 1000 == body
    assert "content-encoding" not in response.headers
    assert ["1000"] == response.headers.get_list("content-length")
    assert ["Origin", "Accept-Encoding"] == response.headers.get_list("vary")
    assert '"strong"' == response.headers["etag"]


async def test_several_headers_are_one_list(web: httpx.AsyncClient) -> None:
    """Accept-Encoding in two lines is the same as in one (RFC 9110 5.3)."""
    for values in (["gzip", "br"], ["br", "gzip"]):
        response = await web.get("/sized/1000", headers=[("Accept-Encoding", value) for value in values])
        assert "gzip" == response.headers["content-encoding"]


async def test_a_smaller_body_is_sent_as_it_is(web: httpx.AsyncClient) -> None:
    """999 bytes are not worth it, whoever asks."""
    response, body = await get_raw(web, "/sized/999", "gzip")

    assert 999 == len(body)
    assert "content-encoding" not in response.headers
    assert "Origin" == response.headers["vary"]


async def test_a_body_in_chunks_is_sent_as_it_comes(web: httpx.AsyncClient) -> None:
    """A stream is never held back to be compressed."""
    response, body = await get_raw(web, "/chunks", "gzip")

    assert b"c" * 6000 == body
    assert "content-encoding" not in response.headers


async def test_an_encoded_body_is_not_encoded_again(web: httpx.AsyncClient) -> None:
    """What a handler encoded itself is sent as it made it."""
    response, body = await get_raw(web, "/encoded", "gzip, br")

    assert b"b" * 2000 == body
    assert "br" == response.headers["content-encoding"]
    assert ["Accept-Encoding", "Origin"] == response.headers.get_list("vary")


@pytest.mark.parametrize("accept", ["identity", "gzip"])
@pytest.mark.parametrize(
    ("path", "status"),
    [("/health/live", 200), ("/openapi.json", 200), ("/no/such/path", 404), ("/api/v1/orders/x", 401)],
)
async def test_head_is_get_without_the_content(app_url: str, path: str, status: int, accept: str) -> None:
    """The same status and headers, nothing after them: the next answer on the connection is where it should be."""
    host, port = app_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def ask(method: str) -> tuple[str, dict[str, str]]:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accept}\r\n\r\n".encode())
        status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        return status_line, dict(line.split(": ", 1) for line in lines)

    head, got = await ask("HEAD"), await ask("GET")
    body = await reader.readexactly(int(got[1]["content-length"]))
    writer.close()

    assert head[0].startswith(f"HTTP/1.1 {status} ")
    assert got[0] == head[0]
    assert {k: v for k, v in got[1].items() if k not in ("date", "x-request-id")} == {
        k: v for k, v in head[1].items() if k not in ("date", "x-request-id")
    }
    assert len(body) > 0


async def test_head_where_there_is_no_get_is_a_405(web: httpx.AsyncClient) -> None:
    """HEAD is possible exactly where GET is."""
    response = await web.head("/api/v1/orders/x/cancel")

    assert 405 == response.status_code
    assert {"POST", "OPTIONS"} == set(response.headers["allow"].split(", "))


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


async def test_a_browser_of_an_allowed_origin_may_ask(web: httpx.AsyncClient) -> None:
    """The preflight needs no token, allows credentials, the method and the headers."""
    response = await web.options("/api/v1/orders", headers={"Origin": SHOP, **PREFLIGHT})

    assert 204 == response.status_code
    assert SHOP == response.headers["access-control-allow-origin"]
    assert "true" == response.headers["access-control-allow-credentials"]
    assert "POST" in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"].lower()
    assert {"authorization", "content-type"} <= {name.strip() for name in allowed.split(",")}


async def test_a_browser_may_read_what_it_needs(
    http: httpx.AsyncClient, web: httpx.AsyncClient, order_id: str, contract: dict[str, Any]
) -> None:
    """Every answer to an allowed origin says so, whoever refuses, and exposes each header that the contract names."""
    for name in ANSWERS:
        response = await ask(web, name, order_id, Origin=SHOP)
        assert SHOP == response.headers["access-control-allow-origin"], name
        assert "true" == response.headers["access-control-allow-credentials"]
        exposed = {header.strip().lower() for header in response.headers["access-control-expose-headers"].split(",")}
        assert exposed >= {
            "allow",
            *(header.partition(".")[0].lower() for header in contract["components"]["headers"]),
        }
        assert "Origin" in response.headers.get_list("vary", split_commas=True)
    refused = await http.get("/", headers={"Origin": SHOP, "X-A": "x" * 40_000})
    assert (431, SHOP) == (refused.status_code, refused.headers["access-control-allow-origin"])


async def test_a_browser_of_another_origin_is_told_nothing(web: httpx.AsyncClient, order_id: str) -> None:
    """Neither its preflight nor its request is allowed, however alike the origin looks; caches keep them apart."""
    for origin in ("https://evil.example", "http://shop.example", f"{SHOP}.evil.example", "null"):
        preflight = await web.options("/api/v1/orders", headers={"Origin": origin, **PREFLIGHT})
        actual = await ask(web, "200", order_id, Origin=origin)
        assert_problem(preflight, 403, "origin_not_allowed")
        for response in (preflight, actual, await ask(web, "200", order_id)):
            assert [] == [name for name in response.headers if name.startswith("access-control")]
            assert "Origin" in response.headers.get_list("vary", split_commas=True)


async def test_an_app_s_origin_is_one_too(dev_server: DevServer) -> None:
    """What runs in a native shell or an extension sends an origin of its own scheme."""
    app = "capacitor://localhost"
    async with service(TEMPORAL_ADDRESS=dev_server.address, ALLOWED_ORIGINS=f"{SHOP},{app}") as client:
        preflight = await client.options("/api/v1/orders", headers={"Origin": app, **PREFLIGHT})
        nothing = await client.get("/nothing", headers={"Origin": app})

    assert (204, app) == (preflight.status_code, preflight.headers["access-control-allow-origin"])
    assert (404, app) == (nothing.status_code, nothing.headers["access-control-allow-origin"])


async def test_headers_of_every_answer(http: httpx.AsyncClient, settings: Settings, web: httpx.AsyncClient) -> None:
    """Each route, and what is refused before: of the type that it says, and apart for each origin; kept by nobody."""
    headers = bearer(scope=" ".join(SCOPES))
    answers = [
        await http.request(method, re.sub(r"\{[^}]*\}", "x", route.path), headers=headers)
        for route in create_app(settings).routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
    ]
    below = [each for each in answers if each.url.path.startswith("/api/v1")]
    below += [await http.put("/api/v1/orders"), await http.request("PROPFIND", "/api/v1/orders", headers=headers)]
    below += [await http.get(f"/{'x' * 9000}"), await http.get("/api//v1/orders", headers=headers)]
    below += [await http.get("/", headers=refused) for refused in ({"Host": ""}, {"X-A": "x" * 40_000})]
    other = [await web.get(path) for path in ("/boom", "/silent", "/docs/redoc.js", "/nothing")]

    assert {200, 204, 400, 404, 405, 414, 431} <= {each.status_code for each in answers + below}
    for each in (*answers, *below, *other):
        assert "nosniff" == each.headers["x-content-type-options"], each
        assert "Origin" in each.headers.get_list("vary", split_commas=True), each
        assert each.headers["x-request-id"], each
    assert {"no-store"} == {each.headers.get("cache-control") for each in below}


async def test_without_origins_there_is_no_cors(dev_server: DevServer) -> None:
    """Not configured: no header of it, and no preflight."""
    async with service(TEMPORAL_ADDRESS=dev_server.address) as client:
        actual = await client.get("/", headers={"Origin": SHOP})
        del client.headers["authorization"]
        preflight = await client.options("/api/v1/orders", headers={"Origin": SHOP, **PREFLIGHT})

    assert_problem(preflight, 401, "missing_token")
    for response in (actual, preflight):
        assert [] == [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{'0' * 32}-{'a' * 16}-01",
        f"ff-{TRACE}-{'a' * 16}-01",
        f"00-{TRACE.upper()}-{'a' * 16}-01",
        f"00-{TRACE}-{'a' * 16}",
        "nonsense",
    ],
)
async def test_an_invalid_traceparent_is_ignored(
    web: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, traceparent: str
) -> None:
    """W3C Trace Context: what does not parse, and a trace of zeros, is as if it had not come."""
    with caplog.at_level("INFO", logger="temporal_api.access"):
        await web.get("/", headers={"traceparent": traceparent})
        await web.get("/", headers={"traceparent": f"00-{TRACE}-{'a' * 16}-00"})

    traces = [record.fields["trace_id"] for record in caplog.records if record.name == "temporal_api.access"]
    assert [None, TRACE] == traces


async def test_an_orders_lines_name_its_workflow(
    web: httpx.AsyncClient, order_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request for an order is found in the log by the workflow that it is about."""
    with caplog.at_level("INFO", logger="temporal_api.access"):
        await web.get(f"/api/v1/orders/{order_id}", headers=bearer())
        await web.post(f"/api/v1/orders/{order_id}/cancel", headers=bearer())

    named = [record.fields["workflow_id"] for record in caplog.records if record.name == "temporal_api.access"]
    assert [f"order-{order_id}"] * 2 == named
