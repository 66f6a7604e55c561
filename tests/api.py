"""What a test says to the service: tokens, orders, and the one shape of every error."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import jwt
import msgspec
from polyfactory.factories.msgspec_factory import MsgspecFactory
from prometheus_client.parser import text_string_to_metric_families

from temporal_api.app import create_app
from temporal_api.controllers.orders import CreateOrderRequest, OrderItem
from temporal_api.dev.server import DevServer, dev_server, free_port
from temporal_api.serving import serving
from temporal_api.settings import from_env

T = TypeVar("T")

SECRET = "tests-sign-their-tokens-with-this-secret"
ORDERS = "orders:read orders:write"
WORKFLOWS = "workflows:read workflows:write"
SOON = timedelta(seconds=5)
"""At once, as far as a busy machine can tell: half of what a call to Temporal may take (RPC_TIMEOUT_SECONDS)."""

TLS = httpx.create_ssl_context()
"""For every client: one of its own takes it 20 ms."""

run_dev_server = partial(dev_server, search_attributes=("OrderOwner", "OrderStatus"))
"""A Temporal dev server that knows the search attributes of orders."""


def token(sub: str = "alice", scope: object = f"{ORDERS} {WORKFLOWS}", **claims: Any) -> str:
    """A token of the test service's issuer; `claims` override or, when None, leave out."""
    payload = {"sub": sub, "scope": scope, "exp": int(time.time()) + 3600, **claims}
    return jwt.encode({k: v for k, v in payload.items() if v is not None}, SECRET, algorithm="HS256")


def bearer(sub: str = "alice", scope: object = f"{ORDERS} {WORKFLOWS}", **claims: Any) -> dict[str, str]:
    """The header that carries such a token."""
    return {"Authorization": f"Bearer {token(sub, scope, **claims)}"}


@asynccontextmanager
async def service(**environ: str) -> AsyncIterator[httpx.AsyncClient]:
    """A service of its own, really listening, with these settings; gives a client with Alice's token."""
    port = free_port()
    async with (
        serving(create_app(from_env({"JWT_SECRET": SECRET, **environ})), "127.0.0.1", port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=90, headers=bearer(), verify=TLS) as client,
    ):
        yield client


@asynccontextmanager
async def own_server(**options: Any) -> AsyncIterator[DevServer]:
    """A Temporal dev server that the test may harm; killed in the end, since a graceful one takes a second."""
    async with run_dev_server(**options) as server:
        try:
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGKILL)


async def freeze(pid: int) -> None:
    """Stop a process with SIGSTOP and wait until every thread stands still: the signal itself does not wait."""
    os.kill(pid, signal.SIGSTOP)

    async def stands_still() -> bool:
        return all(state in "Tt" for state in _states(pid))

    await eventually(stands_still)


def _states(pid: int) -> list[str]:
    """The state of each thread of a process (proc(5))."""
    return [each.read_text().rpartition(")")[2].split()[0] for each in Path(f"/proc/{pid}/task").glob("*/stat")]


async def eventually(condition: Callable[[], T | Awaitable[T]], seconds: float = 60) -> T:
    """What the condition says once that is true; a failure, with what it said last, when it takes too long."""
    deadline = time.monotonic() + seconds
    while not (value := await said if isawaitable(said := condition()) else said):
        assert time.monotonic() < deadline, f"not within {seconds} s: {value!r}"
        await asyncio.sleep(0.02)
    return value


async def samples(http: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Every series with its value: (name, label, value, ...)."""
    text = (await http.get("/metrics")).text
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(s.name, *(part for pair in sorted(s.labels.items()) for part in pair)): s.value for s in found}


class ItemFactory(MsgspecFactory[OrderItem]):
    """Order lines as callers send them."""

    quantity = 2

    @classmethod
    def unit_price(cls) -> msgspec.Raw:
        """A price in cents, as a JSON number."""
        cents = cls.__random__.randint(1, 100_000)
        return msgspec.Raw(str(Decimal(cents) / 100).encode())


class OrderFactory(MsgspecFactory[CreateOrderRequest]):
    """Orders as callers send them."""

    shipping_address = {"street": "1 Main Street", "city": "Springfield"}  # noqa: RUF012
    payment_details = {"card_token": "tok_visa"}  # noqa: RUF012

    @classmethod
    def items(cls) -> list[OrderItem]:
        """Two lines."""
        return ItemFactory.batch(2)


def order(**changes: Any) -> dict[str, Any]:
    """A valid order as JSON-able data, with `changes`."""
    return {**msgspec.json.decode(msgspec.json.encode(OrderFactory.build())), **changes}


def resolved(contract: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """An answer in the contract, which is written down once where several operations have it."""
    if "$ref" in answer:
        answer = contract["components"]["responses"][answer["$ref"].removeprefix("#/components/responses/")]
    return answer


def assert_problem(response: httpx.Response, status: int, code: str, root_path: str = "") -> dict[str, Any]:
    """The one error body (DESIGN: RFC 9457 with a stable code), whatever went wrong; gives the body back."""
    body: dict[str, Any] = response.json()

    assert (status, code) == (response.status_code, body["error"]), body
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-content-type-options"] == "nosniff"
    names = ("type", "title", "status", "detail", "error", "message", "details", "request_id")
    assert tuple(body) == names
    assert (f"{root_path}/problems/{code}", body["message"]) == (body["type"], body["detail"])
    assert body["status"] == status
    assert body["message"]
    assert body["request_id"] == response.headers["x-request-id"]
    if status in (429, 503):
        assert int(response.headers["retry-after"]) > 0
    if status == 401:
        assert response.headers["www-authenticate"].startswith("Bearer ")
    return body
