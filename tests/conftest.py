"""What every test shares: one Temporal dev server, one client, names that never collide."""

import uuid
from collections.abc import AsyncIterator

import pytest
from temporalio.client import Client

from temporal_api.devserver import DevServer, dev_server as run_dev_server
from temporal_api.temporal import DATA_CONVERTER


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
