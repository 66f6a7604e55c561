"""`temporal-api dev`: run the service and all it needs on this machine, to try it out and to develop it."""

import asyncio
import json
import os
import secrets
import socket
import sys
import time
import urllib.request
from collections import Counter
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from typing import Any

import jwt
from rich.console import Console
from rich.live import Live
from rich.style import Style
from rich.text import Text
from temporalio.runtime import Runtime, TelemetryConfig

from temporal_api.app import SCOPES, SEARCH_ATTRIBUTES, create_app
from temporal_api.controllers.codec import SCOPE as CODEC_SCOPE
from temporal_api.dev.browser import CODEC_PATH, public_handlers
from temporal_api.dev.build import find_temporal
from temporal_api.dev.processes import process
from temporal_api.dev.server import STOP_SECONDS, dev_server, free_port
from temporal_api.logs import SDK_LOGGING, configure_logging
from temporal_api.serving import listen, serving
from temporal_api.settings import Settings, SettingsError, from_env
from temporal_api.temporal.access import add_search_attributes, connect

ORDER = {
    "customer_id": "cust_123",
    "items": [{"id": "item_1", "name": "Mug", "sku": "MUG-1", "quantity": 2, "unit_price": 19.99}],
    "shipping_address": {"street": "1 Main Street", "city": "Springfield"},
    "payment_method": "card",
    "payment_details": {"card_token": "tok_visa"},
}
# Steps are slow enough to watch. -P: a module in the current folder must not replace one of Python's.
WORKER = (sys.executable, "-Pm", "temporal_api", "worker", "--pace", "0.7")
# The statuses in which an order ends, and their colors.
ENDS = {"delivered": "bold green", "cancelled": "bold red"}

# A terminal that cannot show a live line gets plain lines.
UTF_8 = sys.stdout.encoding.lower() == "utf-8"
console = Console(highlight=False, emoji=False, force_terminal=None if UTF_8 else False)
LIVE = console.is_terminal and not console.is_dumb_terminal
_KEYS_OF_OTHERS = ("JWT_JWKS_URL", "JWT_PUBLIC_KEY", "JWT_ALGORITHMS")
# The shell's proxy may not reach this machine's loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# Do not wrap addresses and tokens: people click and copy them.
show = partial(console.print, soft_wrap=True)
say = partial(show, markup=False)


async def run_everything(*, once: bool, crash: bool) -> bool:
    """Run Temporal, the worker and the API, and place an order. Run until cancelled, or `once` until the order ends.

    With `crash`, kill the worker after the payment and start another one. Returns whether the order was delivered and,
    after a crash, charged once.
    """
    # The token of `dev` is signed with a secret, whatever keys the shell names.
    environ = {name: value for name, value in os.environ.items() if name not in _KEYS_OF_OTHERS}
    if not environ.get("JWT_SECRET"):
        environ["JWT_SECRET"] = secrets.token_urlsafe(32)
    environ.setdefault("LOG_LEVEL", "warning")
    environ.setdefault("LOG_FORMAT", "console")
    if not environ.get("TEMPORAL_ADDRESS"):
        environ["TEMPORAL_TLS"] = "false"  # the server of `dev` has no TLS, whatever the shell or the profile says
    async with AsyncExitStack() as stack:
        dev = Dev(environ, stack)
        await dev.start()
        fine = await dev.process_order(crash=crash)
        if not once:
            say(f"Running until Ctrl-C. (It took {dev.start_seconds:.1f} s to start.)")
            await asyncio.Event().wait()
    return fine


class Dev:
    """The parts that run, and what the terminal shows of them."""

    def __init__(self, environ: dict[str, str], stack: AsyncExitStack) -> None:
        self.environ = environ
        self.settings = from_env(environ)
        self.stack = stack
        self.namespace = self.settings.temporal["namespace"]
        self.ui = ""
        self.temporal_cli = "temporal"

    async def start(self) -> None:
        """Start Temporal, unless there is one, then a worker and the API."""
        configure_logging(self.settings.log_level, self.settings.log_format)
        # Report a wrong HOST and a busy METRICS_PORT before the slow parts, and hold that port meanwhile.
        held = listen(self.settings.host, self.settings.metrics_port or 0, "METRICS_PORT")
        embedded = not self.environ.get("TEMPORAL_ADDRESS")
        if embedded:  # before looking for ports: it may take minutes, and a free port may be busy then
            self.temporal_cli = str(await find_temporal(say))
        began = time.monotonic()
        port = self._free("the API", self.settings.port)
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "::") else self.settings.host  # noqa: S104
        self.api = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        with console.status("Starting Temporal, a worker and the API"):
            ui_origins = await self._start_temporal() if embedded else []
            runtime = Runtime(telemetry=TelemetryConfig(logging=SDK_LOGGING))
            client = await connect(self.settings.temporal, runtime=runtime)
            await self._start_worker()
            await add_search_attributes(client, SEARCH_ATTRIBUTES)
            app = create_app(self.settings, public_handlers(ui_origins))
            for each in held:
                each.close()
            await self.stack.enter_async_context(serving(app, self.settings.host, port))
        self.token = sign(self.settings, "dev", " ".join([*SCOPES, CODEC_SCOPE]), 86_400)
        self.start_seconds = time.monotonic() - began

    async def _start_temporal(self) -> list[str]:
        """Start Temporal; return the origins of its UI if that needs a codec."""
        port, ui_port = self._free("Temporal", 7233), self._free("Temporal's UI", 8233)
        self.ui = f"http://127.0.0.1:{ui_port}"
        origins = [self.ui, f"http://localhost:{ui_port}"] if self.settings.payload_encryption_keys else []
        server = await self.stack.enter_async_context(
            dev_server(
                search_attributes=SEARCH_ATTRIBUTES,
                namespace=self.namespace,
                port=port,
                ui_port=ui_port,
                ui_codec=self.api + CODEC_PATH if origins else "",
                say=say,
            )
        )
        self.environ["TEMPORAL_ADDRESS"] = server.address
        self.environ["ALLOWED_ORIGINS"] = ",".join([*self.settings.allowed_origins, *origins])
        self.settings = from_env(self.environ)
        return origins

    async def _start_worker(self) -> None:
        environ = {**self.environ, "METRICS_PORT": ""}  # that port is the API's
        started = process([*WORKER], sys.stdout.buffer, environ, stop_seconds=STOP_SECONDS)
        self.worker = await self.stack.enter_async_context(started)

    def _free(self, what: str, wanted: int) -> int:
        """Find a port, and say so if it is not the wanted one."""
        # Another `dev` that starts meanwhile sees that the UDP port of this number is taken.
        mark = self.stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        port = free_port(wanted)
        while mark.getsockname()[1] != port:
            try:
                mark.bind(("127.0.0.1", port))
            except OSError:
                port = free_port(port + 1)
        if wanted and port != wanted:
            say(f"Port {wanted} is busy: {what} takes {port}.")
        return port

    def call(self, path: str, body: object = None) -> Any:
        """Call the API."""
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{self.api}/api/v1{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with _OPENER.open(request, timeout=30) as answer:
            return json.load(answer)

    async def process_order(self, *, crash: bool) -> bool:
        """Place an order over HTTP and show its statuses; return whether it was delivered, and charged once."""
        order = await asyncio.to_thread(self.call, "/orders", ORDER)
        began, reached = time.monotonic(), dict[str, float]()

        def line() -> Text:
            steps = [f"[{ENDS.get(each, 'bold')}]{each}[/] {at:.1f}" for each, at in reached.items()]
            if not ENDS.keys() & reached.keys():
                steps.append(f"… {time.monotonic() - began:.1f}")
            return Text.from_markup(" → ".join(steps) + " s")

        path, history = f"/orders/{order['id']}", f"/workflows/{order['workflow_id']}/history?format=temporal"
        self._show_addresses(await asyncio.to_thread(self.call, path))
        killed = False
        # In a terminal one line that grows, elsewhere a line for each status.
        with Live(get_renderable=line, console=console) if LIVE else nullcontext():
            while not ENDS.keys() & reached.keys():
                if order["status"] not in reached:
                    reached[order["status"]] = time.monotonic() - began
                    if not LIVE:
                        say(f"Order {order['id']}: {order['status']}")
                if crash and not killed and order["status"] in ("processing", "shipped"):
                    killed = await self._replace_worker()
                await asyncio.sleep(0.2)
                order = (await asyncio.to_thread(self.call, path))["order"]
        if not crash:
            return bool(order["status"] == "delivered")
        attempts = attempts_of((await asyncio.to_thread(self.call, history))["events"])
        charged, shipped = (times(attempts[name]) for name in ("charge_payment", "ship"))
        say(f"In Temporal's history, charge_payment ran {charged} and ship {shipped}.")
        return bool(killed and order["status"] == "delivered" and charged == "once")

    def _show_addresses(self, run: Any) -> None:
        """Show the links and commands to use next."""
        temporal = self.settings.temporal["target_host"]
        addresses = {"API": self.api, "Docs": f"{self.api}/docs#token={self.token}"}
        if self.ui:
            addresses["Temporal UI"] = self.ui
            workflow = f"workflows/{run['workflow_id']}/{run['run_id']}"
            addresses["Order's run"] = f"{self.ui}/namespaces/{self.namespace}/{workflow}/history"
        else:
            addresses["Temporal"] = temporal
        for name, address in addresses.items():
            link = Style(link=address if "://" in address else None)
            page, separator, token = address.partition("#")
            parts = (page, link + Style(color="cyan")), (separator + token, link + Style(dim=True))
            show(Text.assemble((f"{name:<13}", "bold"), *parts))
        show(f"""
export TOKEN=[dim]{self.token}[/]
export ORDER_ID={run["order"]["id"]}""")
        # A screen of 24 lines has room for one command: the one that shows what is special.
        if not self.settings.payload_encryption_keys:
            say(f'curl -s {self.api}/api/v1/orders/$ORDER_ID -H "Authorization: Bearer $TOKEN"')
        else:
            codec = f'--codec-endpoint {self.api}/api/v1/codec --codec-auth "Bearer $TOKEN"'
            place = f"--address {temporal} --namespace {self.namespace}".removesuffix(" --namespace default")
            say(f"{self.temporal_cli} workflow show {place} -w order-$ORDER_ID {codec}")
        say()

    async def _replace_worker(self) -> bool:
        killed = self.worker
        killed.kill()
        await killed.wait()
        await self._start_worker()
        console.print(f"SIGKILL for worker {killed.pid}, after the payment. Worker {self.worker.pid} goes on in 10 s.")
        return True


def sign(settings: Settings, sub: str, scope: str, expires: int) -> str:
    """Sign a token that the service accepts, to try things out. Raises SettingsError without a JWT_SECRET."""
    if settings.jwt_secret is None:
        raise SettingsError("JWT_SECRET: tokens are signed with it; the issuer of the configured key signs its own")
    claims: dict[str, Any] = {"sub": sub, "iat": int(time.time()), "exp": int(time.time()) + expires}
    nested = claims
    *path, last = settings.jwt_scopes_claim[0].split(".")
    for name in path:
        nested = nested.setdefault(name, {})
    prefix = settings.jwt_scopes_prefix[0] if settings.jwt_scopes_prefix else ""
    nested[last] = " ".join(prefix + name for name in scope.split())
    if settings.issuers:
        claims["iss"] = next(iter(settings.issuers))
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience[0]
    return jwt.encode(claims, settings.jwt_secret, algorithm=(settings.jwt_algorithms or ("HS256",))[0])


def attempts_of(events: list[dict[str, Any]]) -> Counter[str]:
    """Count how often each activity was started, from the history."""
    scheduled, started = "activityTaskScheduledEventAttributes", "activityTaskStartedEventAttributes"
    names = {event["eventId"]: event[scheduled]["activityType"]["name"] for event in events if scheduled in event}
    attempts = Counter[str]()
    for start in (event[started] for event in events if started in event):
        attempts[names[start["scheduledEventId"]]] += start["attempt"]
    return attempts


def times(count: int) -> str:
    """Say how often."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
