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
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from litestar import Litestar
from litestar.datastructures import State

from temporal_api.clients import Clients
from temporal_api.controllers.health import live
from temporal_api.cors import Cors
from temporal_api.memory import Memory, turn_off_caches
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
RECEIVE_BYTES = 64 * 1024
"""What the system buffers of a connection. A caller 100 ms away can send 640 kB in a second."""

_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def serve(app: Litestar) -> None:
    """Serve the app until SIGINT or SIGTERM. Raises what `listen` raises."""
    settings: Settings = app.state.settings
    sockets = listen(settings.host, settings.port)
    check_metrics_port(settings)
    # The modules and the app stay until the end. Searching them for garbage took 80 ms, in which no request was served.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # the rest is small: the default would search it too often
    # After a graceful stop uvicorn raises the signal again; the handler of `__main__` makes that exit code 0.
    _DrainingServer(app).run(sockets)


def check_metrics_port(settings: Settings) -> None:
    """Raise what `listen` raises. Later, when the app starts, the error would be a traceback and not one line."""
    if settings.metrics_port:
        for each in listen(settings.host, settings.metrics_port, "METRICS_PORT"):
            each.close()


def listen(host: str, port: int, setting: str = "PORT") -> list[socket.socket]:
    """Listen on every address of the host; `::` is IPv6 and IPv4. Port 0 is a free one. `setting` names the port.

    Raises SettingsError if the host has no address, RuntimeError if the port cannot be had.
    """
    # Two sockets: one for both would show IPv4 addresses as IPv6, which FORWARDED_ALLOW_IPS does not match.
    hosts = ("::", "0.0.0.0") if host == "::" else (host,)  # noqa: S104
    try:
        found = [info for each in hosts for info in socket.getaddrinfo(each, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise SettingsError(f"HOST: {host!r} is no address; expected one such as 127.0.0.1, 0.0.0.0 or ::") from None
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, address in dict.fromkeys((each[0], str(each[4][0])) for each in found):
        try:
            taken = sockets[0].getsockname()[1] if sockets else port
            sockets.append(socket.create_server((address, taken), family=family, backlog=2048))
            # Else the body waits 40 ms until the client has acknowledged the head. asyncio does this only for sockets
            # that name their protocol.
            sockets[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            # Else each read takes up to 256 kB, and while a hundred callers send, health waits for all of theirs.
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        except OSError as error:
            # A name such as localhost may have an address that this machine lacks: one that works is enough.
            if failed is None or error.errno not in _NO_SUCH_ADDRESS:
                failed = error
    if failed and not (sockets and failed.errno in _NO_SUCH_ADDRESS):
        for each in sockets:
            each.close()
        name = setting if failed.errno in (errno.EADDRINUSE, errno.EACCES) else "HOST"
        raise RuntimeError(f"{name}: cannot listen on {host} port {port}: {os.strerror(failed.errno or 0)}")
    return sockets


class _Server(uvicorn.Server):
    """A uvicorn with bounded connections, which drains before it stops."""

    def __init__(self, app: Litestar) -> None:
        settings: Settings = app.state.settings
        config = uvicorn.Config(
            app,
            host=settings.host,  # only for the log, like the port
            port=settings.port,
            lifespan="on",
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            reset_contextvars=True,  # or a request may begin in the context of the one before it
            server_header=False,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            # Longer than proxies and clients keep theirs (60 s, 5 s): a server that closes first may lose a request.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=GRACE_SECONDS + 1,
        )
        super().__init__(config)
        self.server_state: Clients = Clients(settings)
        self._state = app.state
        if (metrics := app.state.get("metrics")) is not None:
            name, opened = "temporal_api_open_connections", self.server_state.connections
            metrics.watch(name, "Open client connections.", lambda: len(opened), self.server_state.limit)


class _DrainingServer(_Server):
    """On a signal, readiness fails, waits and streams end, the listener closes, and requests under way finish."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and log it: uvicorn logs only sockets that it has opened itself."""
        await super().startup(sockets)
        if self.started:
            self._services: Services = self._state.services
            self._sockets = sockets or []
            self._last: list[asyncio.Future[Any]] = []
            self._log_started_message(self._sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal stops at once."""
        if self.should_exit or not self.started or self._services.waits.draining.is_set():
            super().handle_exit(sig, frame)
            return
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._services.waits.draining.set)  # wakes the loop too
        loop.call_soon_threadsafe(self.server_state.drain)
        loop.call_later(self._services.settings.shutdown_delay_seconds, self._close, sig, frame)

    def _close(self, sig: int, frame: FrameType | None) -> None:
        loop = asyncio.get_running_loop()
        self._services.temporal.shorten_deadlines(GRACE_SECONDS)
        spares = [each.dup() for each in self._sockets]
        for listener in self.servers:
            listener.close()
        # Accept connections that the kernel has already made: closing the listener would reset them.
        protocol = partial(Connection, self.config, self.server_state, self.lifespan.state)
        for spare in spares:
            spare.setblocking(False)
            with spare, suppress(BlockingIOError):
                while True:
                    connection, _ = spare.accept()
                    self._last.append(asyncio.ensure_future(loop.connect_accepted_socket(protocol, connection)))
        # First read requests that have arrived on open connections: uvicorn would close those as idle.
        loop.call_later(READ_SECONDS, super().handle_exit, sig, frame)


@asynccontextmanager
async def drain_on_signal(app: Litestar) -> AsyncIterator[None]:
    """End waits and streams on SIGINT and SIGTERM: part of the app's lifespan under other servers than `serve`.

    Such a server shuts the app down only when no request is left: an open stream would keep it waiting.
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
            log_handler.flush()  # such a server may end by the signal itself, and lose queued log lines


@asynccontextmanager
async def serving(app: Litestar, host: str, port: int, setting: str = "PORT") -> AsyncIterator[None]:
    """Serve the app while the block runs, and leave signals alone. Raises what `listen` raises."""
    sockets = listen(host, port, setting)
    server = _Server(app)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
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
    draining, port = asyncio.create_task(metrics.drain_forever()), settings.metrics_port
    try:
        app = _metrics_app(settings, metrics)
        async with serving(app, settings.host, port, "METRICS_PORT") if port else nullcontext():
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
    turn_off_caches(app)
    memory = Memory(settings.max_memory_bytes // 8)
    app.asgi_handler = Observe(app.asgi_handler, metrics, lambda _: memory, Cors(()), Prefix("", ()))
    return app
