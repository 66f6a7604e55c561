"""What every test shares: one Temporal dev server, one listening service, names that never collide."""

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from temporalio.client import Client

from api import SECRET, bearer, run_dev_server
from commands import Process, temporal_api
from temporal_api.app import create_app
from temporal_api.dev.build import find_temporal
from temporal_api.dev.server import DevServer, free_port
from temporal_api.serving import serving
from temporal_api.settings import Settings, from_env
from temporal_api.temporal.payloads import DATA_CONVERTER
from tokens import KEYS, Clock, Issuer, jwk


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have Temporal before the first test, and say so: a build takes minutes, which no test may."""
    # Begun in the background by a shell, this process ignores Ctrl-C, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not session.config.option.collectonly:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")

        def say(line: str) -> None:
            reporter.write_line(line)
            reporter.flush()

        asyncio.run(find_temporal(say))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Every async test and fixture shares one asyncio loop: a Temporal client is bound to its loop."""
    return "asyncio"


@pytest.fixture(scope="session")
async def dev_server(anyio_backend: str) -> AsyncIterator[DevServer]:
    """The Temporal dev server that all tests share; a test that harms its server starts its own."""
    async with run_dev_server() as server:
        yield server


@pytest.fixture(scope="session")
async def client(dev_server: DevServer) -> Client:
    """A client of the shared server with the service's own converter."""
    return await Client.connect(dev_server.address, data_converter=DATA_CONVERTER)


@pytest.fixture
def task_queue() -> str:
    """A task queue that no other test uses."""
    return f"queue-{uuid.uuid4()}"


@pytest.fixture(scope="session")
def settings(dev_server: DevServer) -> Settings:
    """The shared service's settings. Nobody polls its orders queue unless a test starts a worker there."""
    return from_env(
        {
            "JWT_SECRET": SECRET,
            "TEMPORAL_ADDRESS": dev_server.address,
            "ORDERS_TASK_QUEUE": f"orders-{uuid.uuid4()}",
            "ALLOWED_ORIGINS": "https://shop.example",
        }
    )


@pytest.fixture(scope="session")
async def base_url(settings: Settings) -> AsyncIterator[str]:
    """The shared service, really listening."""
    port = free_port()
    async with serving(create_app(settings), settings.host, port):
        yield f"http://{settings.host}:{port}"


@pytest.fixture(scope="session")
async def http(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the shared service, without a token."""
    async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
async def contract(http: httpx.AsyncClient) -> dict[str, Any]:
    """The OpenAPI document as it is served; a test that changes it copies it first."""
    document: dict[str, Any] = (await http.get("/openapi.json")).json()
    return document


@pytest.fixture(scope="session")
async def alice(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client with Alice's token: she reads and writes orders and workflows."""
    async with httpx.AsyncClient(base_url=base_url, timeout=30, headers=bearer()) as client:
        yield client


@pytest.fixture(scope="session")
async def dev(anyio_backend: str) -> AsyncIterator[Process]:
    """`temporal-api dev` as a user runs it, with a Temporal server of its own."""
    async with temporal_api("dev", PORT=str(free_port())) as process:
        yield process


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time as tokens and their keys see it, in the test's hands."""
    return Clock(monkeypatch)


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    """An issuer with one key of each kind."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    issuer = Issuer()
    issuer.keys = [jwk(kind) for kind in KEYS]
    yield issuer
    issuer.open.set()
    issuer.drip = b""
    issuer.stop()
