"""`temporal-api dev`: the service and all it needs on this machine, to try it out and to develop it."""

import asyncio
import json
import os
import secrets
import urllib.request
from contextlib import AsyncExitStack
from typing import Any

import click
from temporalio.runtime import Runtime, TelemetryConfig

from temporal_api.app import SCOPES, SEARCH_ATTRIBUTES, create_app
from temporal_api.dev.build import find_temporal
from temporal_api.dev.server import dev_server, free_port
from temporal_api.dev.tokens import sign
from temporal_api.logs import SDK_LOGGING, configure_logging
from temporal_api.serving import listen, serving
from temporal_api.settings import from_env
from temporal_api.temporal.access import connect
from temporal_api.temporal.payloads import data_converter
from temporal_api.temporal.search_attributes import add_search_attributes
from temporal_api.worker import TASK_QUEUE, StandIns, create_worker

ORDER = {
    "customer_id": "cust_123",
    "items": [{"id": "item_1", "name": "Mug", "sku": "MUG-1", "quantity": 2, "unit_price": 19.99}],
    "shipping_address": {"street": "1 Main Street", "city": "Springfield"},
    "payment_method": "card",
    "payment_details": {"card_token": "tok_visa"},
}


async def run_everything(*, once: bool) -> bool:
    """Run Temporal, the worker and the API, and place an order. Run until cancelled, or `once` until the order ends.

    Returns whether the order was delivered.
    """
    environ = {name: value for name, value in os.environ.items() if name not in ("JWT_JWKS_URL", "JWT_PUBLIC_KEY")}
    if not environ.get("JWT_SECRET"):
        environ["JWT_SECRET"] = secrets.token_urlsafe(32)
    environ.setdefault("LOG_LEVEL", "warning")
    environ.setdefault("LOG_FORMAT", "console")
    settings = from_env(environ)
    for listener in listen(settings.host, 0):  # a wrong HOST is told now, not after what takes minutes
        listener.close()
    configure_logging(settings.log_level, settings.log_format)
    async with AsyncExitStack() as stack:
        ui = f"that of {settings.temporal['target_host']}"
        if not environ.get("TEMPORAL_ADDRESS"):
            await find_temporal(click.echo)  # first: it may take minutes, and ports that are free now may be busy then
            port, ui_port = _free("Temporal", 7233), _free("Temporal's UI", 8233)
            server = dev_server(search_attributes=SEARCH_ATTRIBUTES, port=port, ui_port=ui_port, say=click.echo)
            temporal = await stack.enter_async_context(server)
            settings = from_env({**environ, "TEMPORAL_ADDRESS": temporal.address})
            ui = temporal.ui_url or ui
        runtime = Runtime(telemetry=TelemetryConfig(logging=SDK_LOGGING))
        client = await connect(settings.read_temporal(), data_converter=data_converter(settings), runtime=runtime)
        await add_search_attributes(client, SEARCH_ATTRIBUTES)
        stand_ins = StandIns(pace_seconds=0.7)
        await stack.enter_async_context(
            create_worker(client, settings.resource("orders", TASK_QUEUE).task_queue, stand_ins)
        )
        port = _free("the API", settings.port)
        await stack.enter_async_context(serving(create_app(settings), settings.host, port))
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
        api = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        click.echo(f"\nAPI          {api}\nDocs         {api}/docs\nTemporal UI  {ui}\n")
        delivered = await _place_order(api, sign(settings, "dev", " ".join(SCOPES), 86_400))
        if not once:
            click.echo("\nRunning until Ctrl-C.")
            await asyncio.Event().wait()
    return delivered


def _free(what: str, wanted: int) -> int:
    port = free_port(wanted)
    if wanted and port != wanted:
        click.echo(f"Port {wanted} is busy: {what} takes {port}.")
    return port


async def _place_order(api: str, token: str) -> bool:
    """Place an order over HTTP and print each of its statuses; return whether it was delivered."""

    def call(path: str, body: object = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own address
            api + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    order = await asyncio.to_thread(call, "/api/v1/orders", ORDER)
    auth = '-H "Authorization: Bearer $TOKEN"'
    click.echo(f"""export TOKEN={token}
export ORDER_ID={order["id"]}
curl -s {api}/api/v1/orders {auth} -H "Content-Type: application/json" -d '{json.dumps(ORDER)}'
curl -s {api}/api/v1/orders/$ORDER_ID {auth}
""")
    click.echo(f"Order {order['id']}: {order['status']}")
    while order["status"] not in ("delivered", "cancelled"):
        await asyncio.sleep(0.2)
        seen, order = order, (await asyncio.to_thread(call, f"/api/v1/orders/{order['id']}"))["order"]
        if order["status"] != seen["status"]:
            click.echo(f"Order {order['id']}: {order['status']}")
    return bool(order["status"] == "delivered")
