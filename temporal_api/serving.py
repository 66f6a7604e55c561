"""Serves the app with uvicorn, and stops without losing a request."""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from litestar import Litestar
from litestar.datastructures import State

from temporal_api import caches
from temporal_api.connections import Connections
from temporal_api.controllers.health import live
from temporal_api.memory import Memory
from temporal_api.metrics import Metrics, metrics_route
from temporal_api.observe import Observe
from temporal_api.problems import EXCEPTION_HANDLERS
from temporal_api.protocol import Connection
from temporal_api.requests import JSONRequest
from temporal_api.services import Services
from temporal_api.settings import Settings
from temporal_api.waiting import Waits

READ_SECONDS = 0.3
"""While stopping, the time to read requests that have arrived."""
GRACE_SECONDS = 8
"""While stopping, the time for Temporal to answer the requests under way; then they get 503."""


def serve(app: Litestar, host: str, port: int, shutdown_delay_seconds: float) -> None:
    """Serve the app until SIGINT or SIGTERM."""
    # After a graceful stop uvicorn raises the signal again; the handler of `__main__` makes that exit code 0.
    _DrainingServer(app, _config(app, host, port), shutdown_delay_seconds).run()


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
        # Take no new connections, but read what has arrived on open ones first: they look idle, and would be closed.
        for listener in self.servers:
            listener.close()
        asyncio.get_running_loop().call_later(READ_SECONDS, super().handle_exit, sig, frame)


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
async def serving(app: Litestar, host: str, port: int) -> AsyncIterator[None]:
    """Serve the app while the block runs, and leave signals alone. Raises RuntimeError if it cannot listen there."""
    config = _config(app, host, port)
    config.load()
    server = uvicorn.Server(config)
    server.server_state = _connections(app)
    server.lifespan = config.lifespan_class(config)
    try:
        await server.startup()
    except SystemExit:
        raise RuntimeError(f"cannot listen on {host}:{port}") from None
    running = asyncio.create_task(server.main_loop())
    try:
        yield
    finally:
        server.should_exit = True
        await running
        await server.shutdown()


@asynccontextmanager
async def measuring(settings: Settings, metrics: Metrics) -> AsyncIterator[None]:
    """Collect the SDK's metrics while the block runs, and serve all on METRICS_PORT if it is set."""
    draining = asyncio.create_task(metrics.drain_forever())
    try:
        if settings.metrics_port is None:
            yield
        else:
            async with serving(_metrics_app(settings, metrics), settings.host, settings.metrics_port):
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
    app.asgi_handler = Observe(app.asgi_handler, metrics, lambda _: memory)
    return app
