"""Runs a Temporal dev server for `temporal-api dev` and the tests.

The server of the SDK's `WorkflowEnvironment.start_local` keeps running when its owner is killed, gets the terminal's
Ctrl-C before the worker has ended, and does not say why it could not start.
"""

import asyncio
import os
import socket
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from temporalio.client import Client
from temporalio.service import RPCError

from temporal_api.dev.build import Say, find_temporal, say_to_stderr
from temporal_api.dev.processes import last_lines, process
from temporal_api.temporal.access import add_search_attributes

_READY_SECONDS = 60
_RELEASE_SECONDS = 10
STOP_SECONDS = 8


class DevServerError(RuntimeError):
    """The dev server did not start. The message says why."""


class DevServer(NamedTuple):
    """A running dev server: its gRPC address and its process."""

    address: str
    pid: int


def free_port(preferred: int = 0) -> int:
    """Find a port to listen on: `preferred`, or the next one that is free; 0 finds any."""
    for port in range(preferred, 65536):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)) as listener:
            return int(listener.getsockname()[1])
    raise DevServerError(f"no free port from {preferred} up")


@asynccontextmanager
async def dev_server(
    *,
    search_attributes: Sequence[str] = (),
    namespace: str = "default",
    port: int | None = None,
    ui_port: int | None = None,
    ui_codec: str = "",
    db_filename: str | None = None,
    say: Say = say_to_stderr,
) -> AsyncIterator[DevServer]:
    """Run a dev server while the block runs; its namespace has these keyword search attributes.

    Without `port` it takes any free one, without `ui_port` it has no UI, without `db_filename` it keeps nothing.
    `ui_codec` is the address at which the UI decrypts payloads.
    """
    command: list[str | Path] = [await find_temporal(say), "server", "start-dev", "--ip", "127.0.0.1"]
    command += ["--namespace", namespace, "--log-level", "error"]
    command += ["--ui-port", str(ui_port), "--ui-codec-endpoint", ui_codec] if ui_port else ["--headless"]
    # Temporal 1.31 can pause workflows only with this setting. Older servers ignore it.
    command += ["--dynamic-config-value", "frontend.WorkflowPauseEnabled=true"]
    async with AsyncExitStack() as stack:
        folder = ""
        if not db_filename:
            # In memory, the server loses its state when a connection breaks in the middle of a transaction. A file that
            # need not survive a crash of the machine is as fast.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="temporal-"))
            command += ["--sqlite-pragma", "synchronous=0", "--sqlite-pragma", "journal_mode=memory"]
        command += ["--db-filename", db_filename or f"{folder}/temporal.db"]
        deadline = time.monotonic() + _RELEASE_SECONDS
        while True:
            try:
                address = f"127.0.0.1:{port or free_port()}"
                pid = await stack.enter_async_context(_started(command, address, search_attributes, folder))
                break
            except DevServerError as error:
                # Another process took the port that we chose, or a killed one has not released ours yet.
                if "address already in use" not in str(error) or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
        yield DevServer(address, pid)


@asynccontextmanager
async def _started(
    command: Sequence[str | Path], address: str, search_attributes: Sequence[str], folder: str
) -> AsyncIterator[int]:
    """Start a server; give its process id once it is ready."""
    # These are the connection settings of the service, not of the server.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
    with tempfile.TemporaryFile() as log:
        words = [*command, "--port", address.rpartition(":")[2]]
        async with process(words, log, env, folder=folder, stop_seconds=STOP_SECONDS) as server:
            await _ready(address, search_attributes, server, log)
            yield server.pid


async def _ready(address: str, search_attributes: Sequence[str], server: Process, log: BinaryIO) -> None:
    # Watch our process too: it ends if another process has the port, which might accept connections and never answer.
    asking, ending = asyncio.create_task(_answers(address, search_attributes)), asyncio.create_task(server.wait())
    try:
        await asyncio.wait((asking, ending), timeout=_READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if asking.done() and server.returncode is None:
            return asking.result()
    finally:
        asking.cancel()
        ending.cancel()
    code = server.returncode
    why = f"did not get ready within {_READY_SECONDS} s" if code is None else f"ended with code {code}"
    raise DevServerError(f"Temporal's dev server {why}: {last_lines(log) or 'it said nothing'}")


async def _answers(address: str, search_attributes: Sequence[str]) -> None:
    """Wait until the server answers and knows the search attributes."""
    while True:
        with suppress(RuntimeError, RPCError):
            client = await Client.connect(address)
            # The server's own flag does not add them to the namespace of an older database.
            await add_search_attributes(client, search_attributes)
            await client.count_workflows(" AND ".join(f"{name} = ''" for name in search_attributes))
            return
        await asyncio.sleep(0.05)
