"""Serves the app with uvicorn, and stops without losing a request."""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from litestar import Litestar
from litestar.datastructures import State

from temporal_api import caches
from temporal_api.connections import Connections
from temporal_api.controllers.health import live
from temporal_api.cors import Cors
from temporal_api.memory import Memory
from temporal_api.metrics import Metrics, metrics_route
from temporal_api.observe import Observe
from temporal_api.prefix import Prefix
from temporal_api.problems import EXCEPTION_HANDLERS
from temporal_api.protocol import Connection
from temporal_api.requests import JSONRequest
from temporal_api.services import Services
from temporal_api.settings import Settings, SettingsError
from temporal_api.waiting import Waits

READ_SECONDS = 0.3
"""While stopping, the time to read requests that have arrived."""
GRACE_SECONDS = 8
"""While stopping, the time for Temporal to answer the requests under way; then they get 503."""

_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def serve(app: Litestar, host: str, port: int, shutdown_delay_seconds: float) -> None:
    """Serve the app until SIGINT or SIGTERM. Raises SettingsError or RuntimeError if it cannot listen there."""
    sockets = listen(host, port)
    if metrics_port := app.state.settings.metrics_port:  # told now: what fails when the app starts is not one line
        for each in listen(host, metrics_port, "METRICS_PORT"):
            each.close()
    config = _config(app, host, port)
    gc.collect()
    gc.freeze()  # what is there now stays: now and then, looking through all of it held up every request for 80 ms
    gc.set_threshold(10_000)  # by default, and with little left to look through, it would look too often
    # After a graceful stop uvicorn raises the signal again; the handler of `__main__` makes that exit code 0.
    _DrainingServer(app, config, shutdown_delay_seconds).run(sockets)


def listen(host: str, port: int, setting: str = "PORT") -> list[socket.socket]:
    """Listen on every address of the host; `::` is IPv6 and IPv4. Port 0 is a free one. `setting` names the port.

    Raises SettingsError if the host has no address, RuntimeError if the port cannot be had.
    """
    # Two sockets: by one that is for both, IPv4's addresses come as IPv6's, which FORWARDED_ALLOW_IPS does not mean.
    hosts = ("::", "0.0.0.0") if host == "::" else (host,)  # noqa: S104
    try:
        found = [
            info
            for each in hosts
            for info in socket.getaddrinfo(each, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ]
    except (OSError, UnicodeError):
        raise SettingsError(f"HOST: {host!r} is no address; expected one such as 127.0.0.1, 0.0.0.0 or ::") from None
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, address in dict.fromkeys((each[0], str(each[4][0])) for each in found):
        try:
            taken = sockets[0].getsockname()[1] if sockets else port
            sockets.append(socket.create_server((address, taken), family=family, backlog=2048))
        except OSError as error:
            # Of a name such as localhost, an address may not be there: one is enough.
            if failed is None or error.errno not in _NO_SUCH_ADDRESS:
                failed = error
    if failed and not (sockets and failed.errno in _NO_SUCH_ADDRESS):
        for each in sockets:
            each.close()
        name = setting if failed.errno in (errno.EADDRINUSE, errno.EACCES) else "HOST"
        raise RuntimeError(f"{name}: cannot listen on {host} port {port}: {os.strerror(failed.errno or 0)}")
    return sockets


def _config(app: Litestar, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="on",
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        reset_contextvars=True,  # or a request may begin in the context of the one before it
        server_header=False,
        forwarded_allow_ips=app.state.settings.forwarded_allow_ips,
        # Longer than proxies and clients keep theirs (60 s, 5 s): a server that closes first may lose a request.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS + 1,
    )


def _connections(app: Litestar) -> Connections:
    connections = Connections(app.state.settings)
    if (metrics := app.state.get("metrics")) is not None:
        metrics.watch(
            "temporal_api_open_connections",
            "Open client connections.",
            lambda: len(connections.connections),
            connections.limit,
        )
    return connections


class _DrainingServer(uvicorn.Server):
    """On a signal it is not ready, waits and streams end, then the listener closes and requests under way finish."""

    def __init__(self, app: Litestar, config: uvicorn.Config, delay_seconds: float) -> None:
        super().__init__(config)
        self._delay = delay_seconds
        self._state = app.state
        self.server_state: Connections = _connections(app)
        self._sockets: list[socket.socket] = []
        self._last: list[asyncio.Future[Any]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say so: uvicorn says it only of sockets that it has opened itself."""
        await super().startup(sockets)
        self._sockets = sockets or []
        self._log_started_message(self._sockets)

    @property
    def _services(self) -> Services:
        services: Services = self._state.services
        return services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal stops at once."""
        if self.should_exit or not self.started or self._services.waits.draining.is_set():
            super().handle_exit(sig, frame)
            return
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._services.waits.draining.set)  # wakes the loop too
        loop.call_soon_threadsafe(self.server_state.drain)
        loop.call_later(self._delay, self._close, sig, frame)

    def _close(self, sig: int, frame: FrameType | None) -> None:
        self._services.temporal.shorten_deadlines(GRACE_SECONDS)
        spares = [each.dup() for each in self._sockets]
        for listener in self.servers:
            listener.close()
        for spare in spares:
            self._take_last_connections(spare)
        # Read what has arrived on open connections first: they look idle, and would be closed.
        asyncio.get_running_loop().call_later(READ_SECONDS, super().handle_exit, sig, frame)

    def _take_last_connections(self, listener: socket.socket) -> None:
        """Take the connections that the kernel has made already: closing the listener resets them."""

        def protocol() -> Connection:
            return Connection(self.config, self.server_state, self.lifespan.state)

        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        with listener, suppress(BlockingIOError):
            while True:
                connection, _ = listener.accept()
                self._last.append(asyncio.ensure_future(loop.connect_accepted_socket(protocol, connection)))


@asynccontextmanager
async def drain_on_signal(app: Litestar) -> AsyncIterator[None]:
    """End waits and streams on SIGINT and SIGTERM: a part of the app's lifespan under another server than ours.

    Such a server shuts the app down only when no request is left, and an open stream would keep it waiting.
    """
    loop = asyncio.get_running_loop()
    waits: Waits = app.state.services.waits
    servers_own = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread() and callable(handler := signal.getsignal(number))
    }

    def drain(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(waits.draining.set)
        servers_own[signal.Signals(number)](number, frame)

    for number in servers_own:
        signal.signal(number, drain)
    try:
        yield
    finally:
        for number, handler in servers_own.items():
            signal.signal(number, handler)
        for log_handler in logging.getLogger().handlers:
            log_handler.close()  # such a server ends by the signal itself, which would lose what is queued


@asynccontextmanager
async def serving(app: Litestar, host: str, port: int, setting: str = "PORT") -> AsyncIterator[None]:
    """Serve the app while the block runs, and leave signals alone. Raises what `listen` raises."""
    sockets = listen(host, port, setting)
    config = _config(app, host, port)
    config.load()
    server = uvicorn.Server(config)
    server.server_state = _connections(app)
    server.lifespan = config.lifespan_class(config)
    try:
        await server.startup(sockets)
    except SystemExit:
        raise RuntimeError("the API could not start; the log says why") from None
    running = asyncio.create_task(server.main_loop())
    try:
        yield
    finally:
        server.should_exit = True
        await running
        await server.shutdown(sockets)


@asynccontextmanager
async def measuring(settings: Settings, metrics: Metrics) -> AsyncIterator[None]:
    """Collect the SDK's metrics while the block runs, and serve all on METRICS_PORT if it is set."""
    draining = asyncio.create_task(metrics.drain_forever())
    try:
        if settings.metrics_port is None:
            yield
        else:
            async with serving(_metrics_app(settings, metrics), settings.host, settings.metrics_port, "METRICS_PORT"):
                yield
    finally:
        draining.cancel()


def _metrics_app(settings: Settings, metrics: Metrics) -> Litestar:
    app = Litestar(
        [metrics_route(metrics), live],
        request_class=JSONRequest,
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=None,
        state=State({"settings": settings}),
        logging_config=None,
    )
    caches.turn_off(app)
    memory = Memory(settings.max_memory_bytes // 8)
    app.asgi_handler = Observe(app.asgi_handler, metrics, lambda _: memory, Cors(()), Prefix("", ()))
    return app
