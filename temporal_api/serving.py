"""Serves the app with uvicorn, and ends without losing a request that is under way."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from socket import socket
from types import FrameType

import uvicorn
from litestar import Litestar

READ_SECONDS = 0.3
"""At the end, how long requests that are on their way have to be read."""
GRACE_SECONDS = 8
"""At the end, how long Temporal has to answer requests that are under way; then they get 503."""


def serve(app: Litestar, host: str, port: int, shutdown_delay_seconds: float) -> None:
    """Serve the app until the process is told to end."""
    # uvicorn raises the signal again after its graceful end: what `__main__` does on it makes that exit code 0.
    _DrainingServer(app, _config(app, host, port), shutdown_delay_seconds).run()


def _config(app: Litestar, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Longer than proxies and clients keep theirs (60 s, 5 s): who closes first must not be the one that is sent to.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS + 1,
    )


class _DrainingServer(uvicorn.Server):
    """On a signal: not ready at once, waits and streams end, then the listener closes and requests under way finish."""

    def __init__(self, app: Litestar, config: uvicorn.Config, delay_seconds: float) -> None:
        super().__init__(config)
        self._delay = delay_seconds
        self._state = app.state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal ends at once."""
        if self.should_exit or not self.started or self._state.services.waits.draining.is_set():
            super().handle_exit(sig, frame)
            return
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._state.services.waits.draining.set)  # wakes the loop too
        loop.call_later(self._delay, self._close, sig, frame)

    def _close(self, sig: int, frame: FrameType | None) -> None:
        self._state.services.temporal.shorten_deadlines(GRACE_SECONDS)
        # No new connections; those that have just sent a request, not read yet, look idle and would be closed with it.
        for listener in self.servers:
            listener.close()
        asyncio.get_running_loop().call_later(READ_SECONDS, super().handle_exit, sig, frame)


@asynccontextmanager
async def drain_on_signal(app: Litestar) -> AsyncIterator[None]:
    """End waits and streams when the process is told to end: the app's lifespan under a server that is not ours.

    Such a server tells the app of the end only when no request is left, and an open stream would keep it waiting.
    """
    loop = asyncio.get_running_loop()
    servers_own = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread() and callable(handler := signal.getsignal(number))
    }

    def drain(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(app.state.services.waits.draining.set)
        servers_own[signal.Signals(number)](number, frame)

    for number in servers_own:
        signal.signal(number, drain)
    try:
        yield
    finally:
        for number, handler in servers_own.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """A server inside somebody else's event loop: signals are theirs, and it says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def serving(app: Litestar, host: str, port: int) -> AsyncIterator[None]:
    """Serve the app while the block runs. Raises RuntimeError when it cannot listen there."""
    server = _Server(_config(app, host, port))
    task = asyncio.create_task(server.serve())
    listening = asyncio.create_task(server.listening.wait())
    try:
        await asyncio.wait((task, listening), return_when=asyncio.FIRST_COMPLETED)
        if not server.started:
            raise RuntimeError(f"the API cannot listen on {host}:{port}")
        yield
    finally:
        listening.cancel()
        server.should_exit = True
        with contextlib.suppress(SystemExit):
            await task
