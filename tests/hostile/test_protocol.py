"""What a caller can do with a connection, byte by byte, against a service that really listens. No Temporal needed."""

import asyncio
import json
import re
import resource
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import httpx
import pytest
import uvloop
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from api import SECRET, assert_problem, bearer, eventually, order, service
from commands import temporal_api
from proxy import listening
from temporal_api.dev.server import free_port
from temporal_api.protocol import Connection

pytestmark = pytest.mark.anyio

NOWHERE = "127.0.0.1:1"
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n"
TOKEN = f"Authorization: {bearer()['Authorization']}\r\n".encode()
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n"
ORDER = b"POST /api/v1/orders HTTP/1.1\r\n" + HOST + JSON
HALF = ORDER + TOKEN + b"Content-Length: 100\r\n\r\n{"


class Wire:
    """One connection of a caller who writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Write; each piece in a packet of its own."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0.02)

    def write(self, data: bytes) -> None:
        """Write, and go on at once."""
        self._writer.write(data)

    async def answer(self, seconds: float = 10) -> httpx.Response:
        """The next answer, whole."""
        async with asyncio.timeout(seconds):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.strip().split("\r\n")
            headers = httpx.Headers(dict(line.split(": ", 1) for line in lines))
            content = await self._reader.readexactly(int(headers["content-length"]))
        return httpx.Response(int(status.split()[1]), headers=headers, content=content)

    async def rest(self, seconds: float = 10) -> bytes:
        """What else comes before the service closes the connection."""
        async with asyncio.timeout(seconds):
            return await self._reader.read()

    def close(self) -> None:
        """Go away."""
        self._writer.close()


@asynccontextmanager
async def wire(service: httpx.AsyncClient) -> AsyncIterator[Wire]:
    """A new connection to the service."""
    caller = Wire(*await asyncio.open_connection("127.0.0.1", service.base_url.port))
    try:
        yield caller
    finally:
        caller.close()


@asynccontextmanager
async def served(**environ: str) -> AsyncIterator[httpx.AsyncClient]:
    """A process with the event loop of production, which reads connections in its own way; it must end well."""
    port = free_port()
    # At `warning`: its output is not read, and a full pipe would stop it.
    environ = {"TEMPORAL_ADDRESS": NOWHERE, "PORT": str(port), "LOG_LEVEL": "warning", **environ}
    async with (
        temporal_api("serve", JWT_SECRET=SECRET, **environ) as serve,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        await _listens(port)
        yield client
        assert 0 == await serve.end(signal.SIGTERM), serve.output
        assert "Traceback" not in serve.output, serve.output


async def _listens(port: int) -> None:
    async def connected() -> bool:
        try:
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
        except OSError:
            return False
        return True

    await eventually(connected, seconds=60)


@pytest.fixture(scope="module")
async def front(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """A service that nobody else talks to, with its usual bounds."""
    async with served() as client:
        yield client


@pytest.fixture(scope="module")
async def hasty(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """One that waits a second for a request."""
    async with served(REQUEST_TIMEOUT_SECONDS="1") as client:
        yield client


class Refused(NamedTuple):
    """Bytes that are no request here, and why."""

    sent: bytes
    status: int
    code: str


REFUSED = {
    "a long target": Refused(b"GET /" + b"a" * 9000, 414, "uri_too_long"),
    "a long query": Refused(b"GET /?" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "uri_too_long"),
    "an endless header": Refused(LIVE[:-2] + b"A: " + b"a" * 40_000, 431, "header_fields_too_large"),
    "a header's endless name": Refused(LIVE[:-2] + b"a" * 1_000_000, 431, "header_fields_too_large"),
    "endless line breaks": Refused(b"\r\n" * 30_000, 431, "header_fields_too_large"),
    "101 fields": Refused(LIVE[:-2] + b"A: b\r\n" * 100 + b"\r\n", 431, "header_fields_too_large"),
    "endless fields": Refused(LIVE[:-2] + b"A: b\r\n" * 100_000, 431, "header_fields_too_large"),
    "a large head": Refused(LIVE[:-2] + (b"A: " + b"b" * 999 + b"\r\n") * 40 + b"\r\n", 431, "header_fields_too_large"),
    "no Host": Refused(LIVE.replace(HOST, b""), 400, "validation_error"),
    "two Hosts": Refused(LIVE.replace(HOST, HOST + HOST), 400, "validation_error"),
    "an empty Host": Refused(LIVE.replace(HOST, b"Host:\r\n"), 400, "validation_error"),
    "a Host that is none": Refused(LIVE.replace(HOST, b"Host: a b\r\n"), 400, "validation_error"),
    "HTTP/0.9": Refused(b"GET /health/live\r\n\r\n", 400, "validation_error"),
    "HTTP/2.0": Refused(LIVE.replace(b"1.1", b"2.0"), 400, "validation_error"),
    "HTTP/2's preface": Refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "validation_error"),
    "bare line feeds": Refused(LIVE.replace(b"\r", b""), 400, "validation_error"),
    "a target that is no path": Refused(LIVE.replace(b"/health", b"/\xff"), 400, "validation_error"),
    "TLS": Refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 501, "not_supported"),
    "an unknown method": Refused(LIVE.replace(b"GET", b"FOO"), 501, "not_supported"),
    "CONNECT": Refused(b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n", 501, "not_supported"),
    "gzip": Refused(ORDER + b"Transfer-Encoding: gzip\r\n\r\n", 501, "not_supported"),
    "gzip, chunked": Refused(ORDER + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "not_supported"),
    "gzip, then chunked": Refused(ORDER + b"Transfer-Encoding: gzip\r\n" + CHUNKED + b"\r\n", 501, "not_supported"),
    "chunked in HTTP/1.0": Refused(ORDER.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n", 400, "validation_error"),
    "chunked and a length": Refused(ORDER + CHUNKED + b"Content-Length: 5\r\n\r\n", 400, "validation_error"),
    "two lengths": Refused(ORDER + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n", 400, "validation_error"),
    "a chunk that is none": Refused(ORDER + TOKEN + CHUNKED + b"\r\nzz\r\n", 400, "validation_error"),
    "an Upgrade and no Host": Refused(LIVE.replace(HOST, UPGRADE), 400, "validation_error"),
    "an Upgrade and gzip": Refused(ORDER + UPGRADE + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "not_supported"),
    "an Upgrade and no chunk": Refused(ORDER + TOKEN + UPGRADE + CHUNKED + b"\r\nzz\r\n", 400, "validation_error"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
async def test_what_is_no_request_is_refused(front: httpx.AsyncClient, case: Refused) -> None:
    """Request line 8 KiB, head 32 KiB and 100 fields, one Host, HTTP/1.0 and 1.1: else one problem, and the end."""
    async with wire(front) as caller:
        await caller.send(case.sent)
        answer = await caller.answer()

        assert_problem(answer, case.status, case.code)
        assert ("close", "no-store") == (answer.headers["connection"], answer.headers["cache-control"])
        assert b"" == await caller.rest()


@pytest.mark.parametrize("name", ["two Hosts", "gzip", "TLS", "two lengths", "an Upgrade and no Host"])
async def test_a_refusal_is_not_about_the_request_before(front: httpx.AsyncClient, name: str) -> None:
    """What is no request is told so, also right behind requests that failed in their own way."""
    refused = REFUSED[name]
    async with wire(front) as caller:
        await caller.send(LIVE.replace(b"live", b"none") * 3 + ORDER + b"Content-Length: 2\r\n\r\n{}" + refused.sent)
        before = [(await caller.answer()).status_code for _ in range(4)]

        assert [404, 404, 404, 401] == before
        assert_problem(await caller.answer(), refused.status, refused.code)


async def test_a_head_that_ends_with_the_next_is_answered() -> None:
    """Wherever a packet ends: behind a request under way, each of two has its own answer, in their order."""
    unknown = LIVE.replace(b"live", b"none")
    placed = json.dumps(order()).encode()
    length = b"Content-Length: %d\r\n\r\n" % len(placed)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(silent) as address, served(TEMPORAL_ADDRESS=address, RPC_TIMEOUT_SECONDS="1") as client:
        for cut in (1, 3):
            async with wire(client) as caller:
                await caller.send(LIVE)
                assert 200 == (await caller.answer()).status_code
                await caller.send(ORDER + TOKEN + length + placed, unknown[:-cut], unknown[-cut:] + LIVE)

                assert [504, 404, 200] == [(await caller.answer()).status_code for _ in range(3)]


async def test_refusals_are_counted(front: httpx.AsyncClient) -> None:
    """The metrics tell of requests that were never whole."""
    async with wire(front) as caller:
        await caller.send(REFUSED["an endless header"].sent)
        await caller.answer()

    assert re.search(
        r'http_requests_total\{method="GET",route="unmatched",status="431"\} [1-9]', (await front.get("/metrics")).text
    )


@pytest.mark.parametrize(
    "request_bytes",
    [
        LIVE.replace(b"live", b"live?" + b"a" * 8000),
        LIVE[:-2] + b"A: b\r\n" * 99 + b"\r\n",
        LIVE[:-2] + (b"A: " + b"b" * 999 + b"\r\n") * 31 + b"\r\n",
        LIVE.replace(b"/health", b"http://localhost/health"),
        b"\r\n" + LIVE,
        LIVE.replace(HOST, b"Host: [::1]:8000\r\n"),
        LIVE.replace(b"1.1", b"1.0").replace(HOST, b""),
        LIVE.replace(HOST, b"Host:\t localhost \t\r\n"),
    ],
)
async def test_what_is_within_the_bounds_is_served(front: httpx.AsyncClient, request_bytes: bytes) -> None:
    """No bound is lower than it says, in one packet or in many."""
    for pieces in ([request_bytes], [request_bytes[at : at + 3000] for at in range(0, len(request_bytes), 3000)]):
        async with wire(front) as caller:
            await caller.send(*pieces)

            assert 200 == (await caller.answer()).status_code


BODY = b'{"hidden": "GET /metrics HTTP/1.1\\r\\n"}\r\n\r\n'
CHUNKS = b"5\r\n" + BODY[:5] + b"\r\n%x\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n0\r\n\r\n"
WITH_LENGTH = ORDER + TOKEN + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(BODY)


@pytest.mark.parametrize(
    "pieces",
    [
        [WITH_LENGTH + BODY + LIVE],
        [WITH_LENGTH, BODY, LIVE],
        [WITH_LENGTH, BODY[:9], BODY[9:] + LIVE],
        [WITH_LENGTH[:300], WITH_LENGTH[300:] + BODY + LIVE],
        [WITH_LENGTH.replace(b"h2c", b"websocket") + BODY, LIVE],
        [ORDER + TOKEN + UPGRADE + CHUNKED + b"\r\n" + CHUNKS + LIVE],
        [ORDER + TOKEN + UPGRADE + CHUNKED + b"\r\n", CHUNKS + LIVE],
        [LIVE + WITH_LENGTH + BODY + LIVE],
    ],
)
async def test_an_upgrade_is_ignored(front: httpx.AsyncClient, pieces: list[bytes]) -> None:
    """The request goes on as HTTP/1.1 with its body, which is nobody's next request (RFC 9110 7.8)."""
    async with wire(front) as caller:
        await caller.send(*pieces)
        if pieces[0].startswith(b"GET"):
            assert 200 == (await caller.answer()).status_code
        told = assert_problem(await caller.answer(), 400, "validation_error")
        assert "hidden" in {mistake["key"] for mistake in told["details"]["errors"]}
        assert b'{"status":"alive"}' == (await caller.answer()).content
        await caller.send(LIVE.replace(HOST, HOST + b"Connection: close\r\n"))
        assert b'{"status":"alive"}' == (await caller.answer()).content
        assert b"" == await caller.rest()


async def test_trailer_fields_are_dropped(front: httpx.AsyncClient) -> None:
    """A trailer has passed no proxy's rules for headers: it authenticates nobody (RFC 9110 6.5.1)."""
    async with wire(front) as caller:
        await caller.send(ORDER + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" + TOKEN + b"X-Request-ID: mine\r\n\r\n" + LIVE)
        refused = await caller.answer()

        assert_problem(refused, 401, "missing_token")
        assert "mine" != refused.headers["x-request-id"]
        assert 200 == (await caller.answer()).status_code


async def test_a_trailer_may_end_the_connection(front: httpx.AsyncClient) -> None:
    """The parser reads nothing after a trailer's `Connection: close`, so the caller is told that it ends."""
    async with wire(front) as caller:
        await caller.send(ORDER + TOKEN + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nConnection: close\r\n\r\n" + LIVE)

        assert "close" == (await caller.answer()).headers["connection"]
        assert b"" == await caller.rest()


async def test_only_http_1_1_is_told_to_go_on(front: httpx.AsyncClient) -> None:
    """`Expect` in HTTP/1.0 is ignored, as RFC 9110 10.1.1 says: such a client takes 100 for the answer."""
    expects = ORDER + TOKEN + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    for version, begin in ((b"1.1", b"HTTP/1.1 100"), (b"1.0", b"HTTP/1.1 400")):
        async with wire(front) as caller:
            await caller.send(expects.replace(b"1.1", version), b"{}", LIVE.replace(b"GET", b"FOO"))

            assert (await caller.rest()).startswith(begin)


@pytest.mark.parametrize("endless", [b"A: b\r\n" * 20_000, b"A: " + b"a" * 100_000])
async def test_a_trailer_is_bounded_as_a_head_is(front: httpx.AsyncClient, endless: bytes) -> None:
    """32 KiB and 100 fields."""
    async with wire(front) as caller:
        await caller.send(ORDER + TOKEN + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" + endless)

        assert_problem(await caller.answer(), 431, "header_fields_too_large")
        assert b"" == await caller.rest()


async def test_a_request_has_its_time(hasty: httpx.AsyncClient) -> None:
    """REQUEST_TIMEOUT_SECONDS for the head, and for the body; the bytes that drip in do not prolong it."""

    async def dripped(begin: bytes, rest: bytes) -> httpx.Response:
        async with wire(hasty) as caller:
            await caller.send(begin)
            dripping = asyncio.create_task(caller.send(*(rest[at : at + 1] for at in range(len(rest)))))
            try:
                return await caller.answer()
            finally:
                dripping.cancel()

    async def silent() -> bytes:
        async with wire(hasty) as caller:
            return await caller.rest()

    async def answered_early() -> bytes:
        async with wire(hasty) as caller:
            await caller.send(HALF.replace(TOKEN, b""))
            assert 401 == (await caller.answer()).status_code
            return await caller.rest()

    began = time.monotonic()
    head, body, unread, nothing = await asyncio.gather(
        dripped(LIVE[:-2] + b"A: ", b"a" * 1000),
        dripped(HALF, b" " * 1000),
        answered_early(),
        silent(),
    )

    assert_problem(head, 408, "request_timeout")
    assert_problem(body, 408, "request_timeout")
    assert "close" == head.headers["connection"] == body.headers["connection"]
    assert b"" == unread == nothing
    assert time.monotonic() - began < 10


async def test_a_large_body_has_more_time(hasty: httpx.AsyncClient) -> None:
    """A second more for each 64 KiB of it."""
    async with wire(hasty) as caller:
        await caller.send(ORDER + TOKEN + b"Content-Length: 300000\r\n\r\n" + b" " * 299_999)
        await asyncio.sleep(2.5)
        await caller.send(b"{")

        assert_problem(await caller.answer(), 400, "malformed_json")


async def test_few_requests_are_read_ahead(hasty: httpx.AsyncClient) -> None:
    """Who sends 3,000 requests and reads no answer gets a few of them made, and is closed."""
    script = re.search(r'src="(/[^"]+\.js)"', (await hasty.get("/docs")).text)
    assert script is not None
    request = b"GET %b HTTP/1.1\r\n" % script[1].encode() + HOST + b"\r\n"

    async def made() -> int:
        counted = re.findall(r"http_requests_total\{.*\} (\d+)", (await hasty.get("/metrics")).text)
        return sum(map(int, counted))

    before = await made()
    async with wire(hasty) as caller:
        sending = asyncio.create_task(caller.send(request * 3000, *[request] * 3000))
        await asyncio.wait({sending}, timeout=20)

        assert isinstance(sending.exception(), ConnectionError)
        assert await made() - before < 100


async def test_a_body_that_nobody_reads_has_an_end(front: httpx.AsyncClient) -> None:
    """Of what is answered already a few MB are read, not the 256 MB that are announced."""
    async with wire(front) as caller:
        with pytest.raises(ConnectionError):
            await caller.send(LIVE[:-2] + CHUNKED + b"\r\nfffffff\r\n", *[b"a" * 2**20] * 250)


async def test_requests_sent_ahead_are_answered_in_order(front: httpx.AsyncClient) -> None:
    """All of them, with bodies and without."""
    order = ORDER + b"Content-Length: 2\r\n\r\n{}"
    async with wire(front) as caller:
        sending = asyncio.create_task(caller.send((LIVE + order) * 500))
        for _ in range(500):
            assert 200 == (await caller.answer()).status_code
            assert 401 == (await caller.answer()).status_code
        await sending


@pytest.mark.parametrize("endless", [LIVE[:-2] + b"A: ", LIVE[:-2] + CHUNKED + b"\r\nfffffff\r\n"])
def test_nobody_is_read_from_for_long(monkeypatch: pytest.MonkeyPatch, endless: bytes) -> None:
    """In a turn of the event loop one piece is read of each caller, however fast they send."""
    turns: list[int] = []  # what was read in each
    received = Connection.data_received

    def data_received(connection: Connection, data: bytes) -> None:
        if not turns[-1]:
            connection.loop.call_soon(turns.append, 0)
        turns[-1] += len(data)
        received(connection, data)

    async def flood() -> None:
        async with service(TEMPORAL_ADDRESS=NOWHERE) as http:
            turns.append(0)
            monkeypatch.setattr(Connection, "data_received", data_received)
            async with wire(http) as caller:
                with suppress(ConnectionError):
                    await caller.send(endless, *[b"a" * 2**22] * 10)

    uvloop.run(flood())  # asyncio's own loop reads so anyway
    assert 0 < max(turns) < 2**19


async def test_health_waits_for_few_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 requests that come at once, those for health are among the first to begin; the others wait their turn."""
    begun: list[str] = []
    run = RequestResponseCycle.run_asgi

    async def run_asgi(cycle: RequestResponseCycle, app: Any) -> None:
        begun.append(cycle.scope["path"])
        await run(cycle, app)

    async with service(TEMPORAL_ADDRESS=NOWHERE) as http, AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(wire(http)) for _ in range(300)]
        monkeypatch.setattr(RequestResponseCycle, "run_asgi", run_asgi)
        for caller in callers[:-1]:
            caller.write(LIVE.replace(b"/health/live", b"/problems"))
        callers[-1].write(LIVE)
        for caller in callers:
            assert 200 == (await caller.answer()).status_code

    assert 300 == len(begun)
    assert begun.index("/health/live") < 100


class Recorder:
    """A connection's transport that notes what is written to it."""

    def __init__(self, transport: asyncio.Transport, written: list[bytes]) -> None:
        self._transport = transport
        self._written = written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Note the data, and write it."""
        self._written.append(data)
        self._transport.write(data)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_an_answer_is_one_write(monkeypatch: pytest.MonkeyPatch, method: bytes) -> None:
    """The head goes out together with the body, or alone if there is none: a write is a system call."""
    written: list[bytes] = []
    made = Connection.connection_made

    def connection_made(connection: Connection, transport: asyncio.Transport) -> None:
        made(connection, Recorder(transport, written))  # type: ignore[arg-type]

    async with service(TEMPORAL_ADDRESS=NOWHERE) as http:
        monkeypatch.setattr(Connection, "connection_made", connection_made)
        async with wire(http) as caller:
            await caller.send(method + LIVE[3:-2] + b"Connection: close\r\n\r\n")
            answer = await caller.rest()

    assert [answer] == [data for data in written if data]
    assert answer.endswith(b'{"status":"alive"}' if method == b"GET" else b"\r\n\r\n")


async def test_each_request_has_a_context_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one request sets, such as the current span, the next one on the connection does not find."""
    found: list[int] = []
    number = ContextVar("number", default=0)
    run = RequestResponseCycle.run_asgi

    async def run_asgi(cycle: RequestResponseCycle, app: Any) -> None:
        found.append(number.get())
        number.set(1)
        await run(cycle, app)

    async with service(TEMPORAL_ADDRESS=NOWHERE) as http:
        monkeypatch.setattr(RequestResponseCycle, "run_asgi", run_asgi)
        async with wire(http) as caller:
            await caller.send(LIVE * 3)  # pipelined: each begins where the one before it ends
            for _ in range(3):
                assert 200 == (await caller.answer()).status_code

    assert [0, 0, 0] == found


async def test_the_longest_silent_connection_makes_room() -> None:
    """Over MAX_CONNECTIONS the oldest that has sent no whole head is closed, and the new one is served."""
    async with (
        served(MAX_CONNECTIONS="4") as client,
        wire(client) as oldest,
        wire(client) as second,
        wire(client) as third,
        wire(client) as fourth,
    ):
        await oldest.send(b"GET /")
        await third.send(LIVE)
        assert 200 == (await third.answer()).status_code
        async with wire(client) as fifth:
            await fifth.send(LIVE)
            assert 200 == (await fifth.answer()).status_code
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await oldest.answer()
        for caller in (second, fourth):
            await caller.send(LIVE)
            assert 200 == (await caller.answer()).status_code


async def test_a_connection_too_many_is_told_so() -> None:
    """Where all MAX_CONNECTIONS have a request under way, a new one gets 503, but health and metrics answer."""
    async with (
        served(MAX_CONNECTIONS="2") as client,
        wire(client) as one,
        wire(client) as two,
    ):
        await one.send(HALF)
        await two.send(HALF)
        for path, status in ((b"/docs", 503), (b"/health/live", 200), (b"/metrics", 200), (b"/docs", 503)):
            async with wire(client) as late:
                await late.send(LIVE.replace(b"/health/live", path))
                answer = await late.answer()
                assert status == answer.status_code
                assert "close" == answer.headers["connection"]
                if status == 503:
                    assert_problem(answer, 503, "overloaded")


async def test_silent_connections_do_not_hold_up_health() -> None:
    """With 128 descriptors, 300 connections that send nothing, and more than there is room for: live answers."""
    port = free_port()
    silent: list[asyncio.StreamWriter] = []
    starting = temporal_api("serve", JWT_SECRET=SECRET, TEMPORAL_ADDRESS=NOWHERE, PORT=str(port))
    serve = await starting.__aenter__()
    try:
        resource.prlimit(serve.process.pid, resource.RLIMIT_NOFILE, (128, 128))  # long before it has read the limit
        await serve.until("Uvicorn running")
        for _ in range(300):
            silent.append((await asyncio.open_connection("127.0.0.1", port))[1])
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert 200 == (await client.get("/health/live")).status_code
            assert 200 == (await client.get("/metrics")).status_code
    finally:
        for writer in silent:
            writer.close()
        await starting.__aexit__(None, None, None)


async def _come_all_the_time(port: int, pause: float, counts: dict[str, int]) -> None:
    """Live and a create that is refused, in turns, on a kept-alive connection, until nobody listens."""
    order = ORDER + b"Content-Length: 100\r\n\r\n" + b" " * 100
    while True:
        try:
            caller = Wire(*await asyncio.open_connection("127.0.0.1", port))
        except OSError:
            return
        closes = False
        while not closes:
            for request, status in ((LIVE, 200), (order, 401)):
                try:
                    await asyncio.sleep(pause)
                    caller.write(request)
                    answer = await caller.answer()
                except (ConnectionError, asyncio.IncompleteReadError):
                    counts["lost"] += 1
                    return
                assert status == answer.status_code
                counts["answered"] += 1
                closes = answer.headers.get("connection") == "close"
                if closes:
                    counts["closed"] += 1
                    break
        caller.close()


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.full)])
async def test_the_end_loses_no_request(times: int) -> None:
    """SIGTERM while requests come on kept-alive connections: each is answered, the last one with Connection: close."""
    for _ in range(times // 2):
        await asyncio.gather(_end_while_requests_come(), _end_while_requests_come())


async def _end_while_requests_come() -> None:
    port = free_port()
    counts = {"answered": 0, "closed": 0, "lost": 0}
    pauses = [0, 0, 0, 0, 0.001, 0.003, 0.01, 0.05, 0.2, 0.4]
    # At `warning`, or the output would have to be read for the service to go on.
    environ = {"TEMPORAL_ADDRESS": NOWHERE, "PORT": str(port), "LOG_LEVEL": "warning"}
    async with temporal_api("serve", JWT_SECRET=SECRET, **environ) as serve:
        await _listens(port)
        callers = [asyncio.create_task(_come_all_the_time(port, pause, counts)) for pause in pauses]

        async def all_came() -> bool:
            return counts["answered"] > 200

        await eventually(all_came)
        serve.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*callers)

        assert 0 == await serve.end(), serve.output
    assert 0 == counts["lost"]
    assert len(pauses) <= counts["closed"]


async def test_half_sent_bodies_end_with_an_answer() -> None:
    """At the end, who has not sent the whole of a request is told so; no traceback, and the exit code is 0."""
    port = free_port()
    async with temporal_api("serve", JWT_SECRET=SECRET, TEMPORAL_ADDRESS=NOWHERE, PORT=str(port)) as serve:
        await serve.until("Uvicorn running")
        callers = [Wire(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(20)]
        for caller in callers:
            await caller.send(HALF)
        began = time.monotonic()
        serve.process.send_signal(signal.SIGTERM)
        for caller in callers:
            assert_problem(await caller.answer(), 503, "shutting_down")
            caller.close()

        assert 0 == await serve.end(), serve.output
        assert "Traceback" not in serve.output
        assert time.monotonic() - began < 10
