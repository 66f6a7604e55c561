"""Places to wait: taken at once, given back at once, and never held longer than is right."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextvars import copy_context
from itertools import pairwise
from typing import Any

import pytest
from litestar import Request

from api import eventually, service
from temporal_api import waiting
from temporal_api.auth import User
from temporal_api.dev.server import DevServer
from temporal_api.errors import Problem
from temporal_api.record import Record, begin
from temporal_api.waiting import EventStream, Waits

pytestmark = pytest.mark.anyio

ALICE = User("alice", frozenset(), 0)


async def test_who_goes_away_waits_no_longer(dev_server: DevServer) -> None:
    """A caller who leaves in the middle of a wait gives the place back at once, not when the time is over."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_OPEN_WAITS="1") as alice:
        body = {"workflow_type": "nobody_runs_this", "task_queue": str(uuid.uuid4())}
        started = await alice.post("/api/v1/workflows", json=body)
        path, etag = started.headers["location"], (await alice.get(started.headers["location"])).headers["etag"]
        for wait in (
            {"url": f"{path}/result", "headers": {"Prefer": "wait=50"}},
            {"url": path, "headers": {"Prefer": "wait=50", "If-None-Match": etag}},
        ):

            async def under_way() -> bool:
                return "http_requests_in_progress 2.0" in (await alice.get("/metrics")).text

            async def answered() -> bool:
                answer = await alice.get(f"{path}/result", headers={"Prefer": "wait=1"})
                return "preference-applied" in answer.headers

            patient = asyncio.create_task(alice.get(**wait))
            await eventually(under_way)

            async def waits() -> bool:
                return not await answered()

            await eventually(waits)
            assert not patient.done()
            patient.cancel()
            await eventually(answered, seconds=30)


async def test_a_quiet_stream_is_kept_alive(dev_server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment every 15 s, so that nobody on the way takes it for dead; no client sees an event without data."""
    assert 15 == waiting.KEEP_ALIVE_SECONDS
    monkeypatch.setattr(waiting, "KEEP_ALIVE_SECONDS", 0.1)
    lines: list[str] = []
    async with service(TEMPORAL_ADDRESS=dev_server.address) as alice:
        body = {"workflow_type": "nobody_runs_this", "task_queue": str(uuid.uuid4())}
        path = (await alice.post("/api/v1/workflows", json=body)).headers["location"]
        async with asyncio.timeout(60), alice.stream("GET", f"{path}/events") as response:
            async for line in response.aiter_lines():
                lines.append(line)
                if lines.count(": ") == 3:
                    break

    assert 3 == lines.count(": ")
    assert ["data: "] * lines.count("") == [before[:6] for before, line in pairwise(lines) if not line]


class Caller:
    """Reads a stream as quickly as it comes, and does something after the first events."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.received: list[dict[str, Any]] = []
        self._then = then

    async def send(self, message: Any) -> None:
        """Take it."""
        self.received.append(message)
        if len(self.received) == 5:
            self._then()
        await asyncio.sleep(0)

    async def receive(self) -> Any:
        """Stay."""
        await asyncio.Event().wait()


async def endless() -> AsyncGenerator[bytes, None]:
    """A workflow that never comes to rest."""
    while True:
        yield b"event: history\n\n"


async def stream(waits: Waits, caller: Caller, expires_at: float) -> None:
    """Serve an endless stream to the caller."""
    scope: Any = {"type": "http", "user": User("alice", frozenset(), expires_at)}
    copy_context().run(begin, scope, Record("x"))  # no other test is to be in this request
    answer = EventStream(waits, endless()).to_asgi_response(None, Request(scope))
    async with asyncio.timeout(30):
        await answer(scope, caller.receive, caller.send)


@pytest.mark.parametrize("end", ["the token", "the service"])
async def test_a_stream_that_never_rests_ends_too(end: str) -> None:
    """With its token, and with the service: at once, however much there would be to say, and asking to come back."""
    waits = Waits(1, 1)
    caller = Caller(waits.draining.set if end == "the service" else lambda: None)

    await stream(waits, caller, time.time() + (0.2 if end == "the token" else 3600))

    assert b"retry: 1000\n" == caller.received[-1]["body"]
    assert not caller.received[-1]["more_body"]
    assert len(caller.received) > 5
    assert not waits.open


@pytest.mark.parametrize("end", ["the token", "the service"])
async def test_who_does_not_read_keeps_no_place(end: str) -> None:
    """A client that takes nothing more of its stream loses its place when its token or the service ends."""

    class Deaf(Caller):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if len(self.received) > 5:
                await asyncio.Event().wait()

    waits = Waits(1, 1)
    caller = Deaf(waits.draining.set if end == "the service" else lambda: None)

    await stream(waits, caller, time.time() + (0.2 if end == "the token" else 3600))

    assert not waits.open


async def test_a_place_is_taken_before_the_headers() -> None:
    """Streams that begin together cannot take more places than there are; who gets none hears it as a plain answer."""
    waits, caller = Waits(1, 1), Caller()

    with waits.slot(ALICE), pytest.raises(Problem, match="Too many callers wait here"):
        await stream(waits, caller, time.time() + 3600)

    assert [] == caller.received
