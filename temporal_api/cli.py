"""`temporal-api serve | worker | dev | setup | token`."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from types import FrameType
from typing import Any, cast

import click
import jwt
import uvicorn
from litestar import Litestar
from temporalio.client import Client

from temporal_api.app import create_app
from temporal_api.connections import Connections
from temporal_api.devserver import TemporalNotFound, add_search_attributes, dev_server, find_temporal, free_port
from temporal_api.observe import configure_logging
from temporal_api.protocol import Connection
from temporal_api.settings import Settings, SettingsError, from_env
from temporal_api.temporal import data_converter
from temporal_api.worker import StandIns, create_worker

DEV_SCOPES = "orders:read orders:write workflows:read workflows:write workflows:admin"
DEV_ORDER = {
    "customer_id": "cust_123",
    "items": [{"id": "item_1", "name": "Mug", "sku": "MUG-1", "quantity": 2, "unit_price": 19.99}],
    "shipping_address": {"street": "1 Main Street", "city": "Springfield"},
    "payment_method": "card",
    "payment_details": {"card_token": "tok_visa"},
}
READ_SECONDS = 0.3
"""At the end, how long requests that are on their way have to be read."""
GRACE_SECONDS = 8
"""How long Temporal has to answer requests that are under way at the end; then they get 503."""

log = logging.getLogger(__name__)


def main() -> None:
    """Run the command line; a wrong setting is one line and exit code 2."""
    try:
        cli()
    except SettingsError as error:
        click.echo(f"temporal-api: {error}", err=True)
        sys.exit(2)
    except (TemporalNotFound, RuntimeError) as error:
        click.echo(f"temporal-api: {str(error).splitlines()[0]}", err=True)
        sys.exit(1)


@click.group()
@click.version_option(package_name="temporal-api", prog_name="temporal-api")
def cli() -> None:
    """The HTTP front door of Temporal. Settings come from the environment; README.md lists them."""


@cli.command()
def serve() -> None:
    """Serve the API."""
    settings = from_env(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    app = create_app(settings)
    # uvicorn raises the signal again after its graceful end: what `__main__` does on it makes that exit code 0.
    _DrainingServer(_config(app, settings.host, settings.port), settings.shutdown_delay_seconds).run()


class _DrainingServer(uvicorn.Server):
    """On a signal: not ready at once, waits and streams end, then the listener closes and requests under way finish."""

    def __init__(self, config: uvicorn.Config, delay_seconds: float) -> None:
        super().__init__(config)
        self._delay = delay_seconds
        self._state = cast(Litestar, config.app).state
        self.server_state: Connections = Connections(self._state.settings)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal ends at once."""
        if self.should_exit or not self.started or self._state.waits.draining.is_set():
            super().handle_exit(sig, frame)
            return
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._state.waits.draining.set)  # wakes the loop too
        loop.call_soon_threadsafe(self.server_state.drain)
        loop.call_later(self._delay, self._close, sig, frame)

    def _close(self, sig: int, frame: FrameType | None) -> None:
        self._state.temporal.hurry(GRACE_SECONDS)
        # No new connections; those that have just sent a request, not read yet, look idle and would be closed with it.
        for listener in self.servers:
            listener.close()
        asyncio.get_running_loop().call_later(READ_SECONDS, super().handle_exit, sig, frame)


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
        # Longer than proxies and clients keep theirs (60 s, 5 s): who closes first must not be the one that is sent to.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS + 1,
    )


@cli.command()
def worker() -> None:
    """Run the sample worker: `order_processing` and its activities."""
    settings = from_env(os.environ, keys_needed=False)
    configure_logging(settings.log_level, settings.log_format)
    _run(_work(settings))


async def _work(settings: Settings) -> None:
    while True:
        try:
            client = await Client.connect(**settings.temporal, data_converter=data_converter(settings))
            break
        except RuntimeError as error:  # Temporal may come up after its workers
            log.warning("Temporal cannot be reached, trying again: %s", str(error).splitlines()[0])
            await asyncio.sleep(2)
    log.info("worker polls %s", settings.orders_task_queue)
    await create_worker(client, settings.orders_task_queue).run()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run until it is done, SIGINT or SIGTERM; then exit 0."""

    async def until_signalled() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        finally:
            # The SDK's runtime aborts the process when it is torn down right after a call.
            await asyncio.sleep(0.1)

    asyncio.run(until_signalled())


@cli.command()
def setup() -> None:
    """Add the search attributes that orders use to the namespace; safe to repeat."""
    settings = from_env(os.environ, keys_needed=False)

    async def add() -> None:
        client = await Client.connect(**settings.temporal)
        for name in await add_search_attributes(client) or ("nothing: all are there",):
            click.echo(f"added {name}")

    _run(add())


@cli.command()
@click.option("--sub", default="dev", show_default=True, help="Who the token is for.")
@click.option("--scope", default=DEV_SCOPES, show_default=True, help="Its scopes, separated by spaces.")
@click.option("--expires", default=86_400, show_default=True, type=click.IntRange(1), help="Seconds it is valid for.")
def token(sub: str, scope: str, expires: int) -> None:
    """Sign a token with JWT_SECRET, for trying things out."""
    click.echo(sign(from_env(os.environ), sub, scope, expires))


def sign(settings: Settings, sub: str, scope: str, expires: int) -> str:
    """A token that this service accepts. Raises SettingsError without a JWT_SECRET."""
    if settings.jwt_secret is None:
        raise SettingsError("JWT_SECRET: tokens are signed with it; the issuer of the configured key signs its own")
    claims: dict[str, Any] = {"sub": sub, "iat": int(time.time()), "exp": int(time.time()) + expires}
    nested = claims
    *path, last = settings.jwt_scopes_claim.split(".")
    for name in path:
        nested = nested.setdefault(name, {})
    nested[last] = scope
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    return jwt.encode(claims, settings.jwt_secret, algorithm=(settings.jwt_algorithms or ("HS256",))[0])


@cli.command()
@click.option("--once", is_flag=True, help="Stop after the order; exit 0 when it was delivered, 1 otherwise.")
def dev(once: bool) -> None:
    """Everything on this machine: Temporal with its UI, the sample worker, the API, and one order placed through it."""
    delivered: list[bool] = []
    _run(_dev(once, delivered))
    click.echo("Stopped.")
    if once and not any(delivered):
        sys.exit(1)


async def _dev(once: bool, delivered: list[bool]) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ("JWT_JWKS_URL", "JWT_PUBLIC_KEY")}
    if not environ.get("JWT_SECRET"):
        environ["JWT_SECRET"] = secrets.token_urlsafe(32)
    environ.setdefault("LOG_LEVEL", "warning")
    environ.setdefault("LOG_FORMAT", "console")
    settings = from_env(environ)
    configure_logging(settings.log_level, settings.log_format)
    async with AsyncExitStack() as stack:
        ui_url = None
        if not environ.get("TEMPORAL_ADDRESS"):
            await find_temporal(click.echo)  # which may take minutes, so before the ports are looked for
            ports = _free("Temporal", 7233), _free("Temporal's UI", 8233)
            temporal = await stack.enter_async_context(dev_server(port=ports[0], ui_port=ports[1], say=click.echo))
            settings.temporal["target_host"], ui_url = temporal.address, temporal.ui_url
        client = await Client.connect(**settings.temporal, data_converter=data_converter(settings))
        await add_search_attributes(client)
        stand_ins = StandIns(pace_seconds=0.7)
        await stack.enter_async_context(create_worker(client, settings.orders_task_queue, stand_ins))
        port = _free("the API", settings.port)
        await stack.enter_async_context(serving(create_app(settings), settings.host, port))
        api = f"http://{settings.host}:{port}"
        bearer = sign(settings, "dev", DEV_SCOPES, 86_400)
        ui = ui_url or f"that of {settings.temporal['target_host']}"
        click.echo(f"\nAPI          {api}\nDocs         {api}/docs\nTemporal UI  {ui}\n")
        delivered.append(await _place_order(api, bearer))
        if not once:
            click.echo("\nRunning until Ctrl-C.")
            await asyncio.Event().wait()


def _free(what: str, wanted: int) -> int:
    port = free_port(wanted)
    if wanted and port != wanted:
        click.echo(f"Port {wanted} is busy: {what} takes {port}.")
    return port


async def _place_order(api: str, bearer: str) -> bool:
    """Place an order over HTTP and say its status at each change; whether it was delivered."""

    def call(path: str, body: object = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own address
            api + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    order = await asyncio.to_thread(call, "/api/v1/orders", DEV_ORDER)
    auth = '-H "Authorization: Bearer $TOKEN"'
    click.echo(f"""export TOKEN={bearer}
curl -s {api}/api/v1/orders {auth} -H "Content-Type: application/json" -d '{json.dumps(DEV_ORDER)}'
curl -s {api}/api/v1/orders/{order["id"]} {auth}
""")
    click.echo(f"Order {order['id']}: {order['status']}")
    while order["status"] not in ("delivered", "cancelled"):
        await asyncio.sleep(0.2)
        seen, order = order, (await asyncio.to_thread(call, f"/api/v1/orders/{order['id']}"))["order"]
        if order["status"] != seen["status"]:
            click.echo(f"Order {order['id']}: {order['status']}")
    return bool(order["status"] == "delivered")


class _Server(uvicorn.Server):
    """A server inside somebody else's event loop: signals are theirs, and it says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = Connections(cast(Litestar, config.app).state.settings)
        self.listening = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
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
