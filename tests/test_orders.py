"""Orders over HTTP, against a real Temporal server and a real worker."""

import asyncio
import json
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import httpx
import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio import workflow
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import ItemFactory, OrderFactory, assert_problem, bearer, eventually, order, service
from temporal_api.dev.server import DevServer
from temporal_api.logs import JSONFormatter
from temporal_api.temporal.payloads import DATA_CONVERTER
from temporal_api.worker import StandIns, create_worker
from temporal_api.worker.order_processing import Order

pytestmark = pytest.mark.anyio

BOB = bearer("bob")
ADMIN = bearer("root", "orders:admin")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def task_queue() -> str:
    """The orders queue of `shop`, with a worker while a test runs one; what other tests left there, it takes up too."""
    return f"queue-{uuid.uuid4()}"


@pytest.fixture(scope="module")
async def shop(dev_server: DevServer, task_queue: str) -> AsyncIterator[httpx.AsyncClient]:
    """Alice at a service whose orders queue is `task_queue`."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as alice:
        yield alice


class Held(StandIns):
    """Stand-ins that come to a step and stay there."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.step = step
        self.let_go = asyncio.Event()

    async def pretend(self, step: str, order: Order) -> None:
        """Wait at that step."""
        if step == self.step:
            await self.let_go.wait()


@workflow.defn(name="order_processing")
class ForeignOrderProcessing:
    """Another team's worker, which keeps no memo: it does what the order's payment method says."""

    @workflow.run
    async def run(self, order: dict[str, Any]) -> str:
        """End well or badly."""
        if order["payment_method"] == "fail":
            raise ApplicationError("no")
        return "done"


async def place(http: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    """Place an order; gives the answer's body."""
    response = await http.post("/api/v1/orders", json=order(**changes))
    assert 201 == response.status_code, response.text
    body: dict[str, Any] = response.json()
    return body


async def read(http: httpx.AsyncClient, order_id: str) -> dict[str, Any]:
    """The order with its run."""
    response = await http.get(f"/api/v1/orders/{order_id}")
    assert 200 == response.status_code, response.text
    body: dict[str, Any] = response.json()
    return body


async def reached(http: httpx.AsyncClient, order_id: str, *states: str) -> dict[str, Any]:
    """The order with its run once it has one of these statuses, and its run is closed when they are final."""

    async def there() -> dict[str, Any]:
        body = await read(http, order_id)
        final = body["order"]["status"] in ("delivered", "cancelled")
        ended = not final or body["status"] != "RUNNING"
        return body if body["order"]["status"] in states and ended else {}

    return await eventually(there)


async def started(client: Client, workflow_id: str) -> WorkflowExecutionStartedEventAttributes:
    """What the run was started with, as Temporal's history has it."""
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    return history.events[0].workflow_execution_started_event_attributes


def lines(*prices: object, quantity: int = 1) -> list[dict[str, object]]:
    """One line for each price."""
    return [{"id": str(n), "quantity": quantity, "unit_price": price} for n, price in enumerate(prices)]


async def post_text(http: httpx.AsyncClient, items: str, **changes: Any) -> httpx.Response:
    """Post an order whose `items` are given as JSON text."""
    text = json.dumps(order(items="ITEMS", **changes)).replace('"ITEMS"', items)
    return await http.post("/api/v1/orders", content=text, headers=JSON)


# --- placing ---


async def test_an_order_is_created_with_its_exact_total(alice: httpx.AsyncClient, client: Client) -> None:
    """A placed order is a 201 with its location and the exact sum, pending, and its run is there at once."""
    before = datetime.now(UTC)
    items = [{"id": "1", "quantity": 2, "unit_price": 19.99}, {"id": "2", "quantity": 1, "unit_price": "29.50"}]
    response = await alice.post("/api/v1/orders", json=order(items=items, customer_id="cust_1"))
    body = response.json()
    created_at = datetime.fromisoformat(body.pop("created_at"))
    described = await client.get_workflow_handle(body["workflow_id"]).describe()

    assert 201 == response.status_code
    assert f"/api/v1/orders/{body['id']}" == response.headers["location"]
    assert {
        "id": str(uuid.UUID(body["id"])),
        "customer_id": "cust_1",
        "status": "pending",
        "total_amount": "69.48",
        "workflow_id": f"order-{body['id']}",
    } == body
    assert before <= created_at <= datetime.now(UTC)
    assert "order_processing" == described.workflow_type


async def test_the_location_is_the_order(alice: httpx.AsyncClient) -> None:
    """`Location` leads to the order as it was answered, with the state of its run."""
    response = await alice.post("/api/v1/orders", json=order())
    location = response.headers["location"]
    found = (await alice.get(location)).json()
    run_id = found.pop("run_id")

    assert str(uuid.UUID(run_id)) == run_id
    assert {
        "workflow_id": response.json()["workflow_id"],
        "status": "RUNNING",
        "result": None,
        "history_length": 2,
        "execution_time_seconds": None,
        "order": response.json(),
    } == found


async def test_a_trailing_slash_makes_no_difference(alice: httpx.AsyncClient) -> None:
    """Placing, reading and cancelling work with a slash at the end of the path as well, without a redirect."""
    created = await alice.post("/api/v1/orders/", json=order())
    path = f"/api/v1/orders/{created.json()['id']}"

    assert 201 == created.status_code
    assert (await alice.get(path)).json() == (await alice.get(path + "/")).json()
    assert 204 == (await alice.post(path + "/cancel/")).status_code


@pytest.mark.parametrize(
    ("items", "total"),
    [
        ('[{"id": "1", "quantity": 1, "unit_price": 0}]', "0.00"),
        ('[{"id": "1", "quantity": 3, "unit_price": 0.1}]', "0.30"),
        ('[{"id": "1", "quantity": 1, "unit_price": "0.000001"}]', "0.000001"),
        ('[{"id": "1", "quantity": 2, "unit_price": 1e3}]', "2000.00"),
        ('[{"id": "1", "quantity": 1, "unit_price": 1.5E-5}]', "0.000015"),
        ('[{"id": "1", "quantity": 1, "unit_price": "007.10"}]', "7.10"),
        ('[{"id": "1", "quantity": 1000000, "unit_price": 1000000000000}]', "1000000000000000000.00"),
    ],
)
async def test_every_way_to_write_a_price(alice: httpx.AsyncClient, items: str, total: str) -> None:
    """A price is a JSON number or a decimal string; the total is a plain decimal with at least the cents."""
    response = await post_text(alice, items)

    assert (201, total) == (response.status_code, response.json().get("total_amount")), response.text


async def test_the_largest_order_is_summed_exactly(alice: httpx.AsyncClient) -> None:
    """A thousand lines at the largest quantity and the longest prices lose no digit."""
    dear, odd = 10**12, Fraction("999999999999.999999")
    body = await place(alice, items=lines(*[dear, "999999999999.999999"] * 500, quantity=1_000_000))

    assert "999999999999999999500.000000" == body["total_amount"]
    assert 500 * 1_000_000 * (dear + odd) == Fraction(body["total_amount"])


async def test_any_order_has_the_sum_of_its_lines(alice: httpx.AsyncClient) -> None:
    """For a hundred random orders, numbers and strings mixed, the total is the sum that exact fractions give."""
    bodies, sums = [], []
    for seed in range(100):
        chance = random.Random(seed)  # noqa: S311 - not a secret
        OrderFactory.seed_random(seed)
        ItemFactory.seed_random(seed)
        prices = [f"{chance.randrange(10 ** chance.randrange(1, 13))}.{chance.randrange(10**6):06}" for _ in range(9)]
        items = ItemFactory.batch(len(prices))
        for item, price in zip(items, prices, strict=True):
            item.quantity = chance.choice([1, 7, 1_000_000, chance.randrange(1, 1_000_000)])
            shown = price[: len(price) - chance.randrange(6)]
            item.unit_price = msgspec.Raw((f'"{shown}"' if chance.random() < 0.5 else shown).encode())
        built = OrderFactory.build(items=items)
        sums.append(
            sum((i.quantity * Fraction(bytes(i.unit_price).decode().strip('"')) for i in items), start=Fraction())
        )
        bodies.append(msgspec.json.encode(built))

    answers = await asyncio.gather(*(alice.post("/api/v1/orders", content=body, headers=JSON) for body in bodies))

    assert sums == [Fraction(answer.json()["total_amount"]) for answer in answers]


async def test_the_workflow_gets_what_the_caller_sent(alice: httpx.AsyncClient, client: Client) -> None:
    """Prices reach the workflow as JSON numbers with all their digits, payment details byte for byte."""
    items = (
        '[{"id": "a", "quantity": 2, "unit_price": 19.990000}, {"id": "b", "quantity": 1, "unit_price": "0029.50"},'
        ' {"id": "c", "quantity": 1, "unit_price": 999999999999.999999}, {"id": "d", "quantity": 1, "unit_price": 1E2}]'
    )
    details = b'{ "z":1.10,"a": 12345678901234567890123 , "text":"\\u00fc\\/ \xc3\xbc", "deep" : [ {"x":-0.0} ,null] }'
    text = json.dumps(order(items="ITEMS", payment_details={"kept": "DETAILS"}, customer_id="Zoë")).encode()
    text = text.replace(b'"ITEMS"', items.encode()).replace(b'"DETAILS"', details)
    response = await alice.post("/api/v1/orders", content=text, headers=JSON)
    assert 201 == response.status_code, response.text

    (payload,) = (await started(client, response.json()["workflow_id"])).input.payloads
    seen = json.loads(payload.data, parse_float=lambda digits: ("number", digits))

    assert {"encoding": b"json/plain"} == payload.metadata
    assert [
        ("number", "19.990000"),
        ("number", "29.50"),
        ("number", "999999999999.999999"),
        ("number", "1E2"),
    ] == [item["unit_price"] for item in seen["items"]]
    assert b'"payment_details":{"kept":' + details + b"}" in payload.data
    assert response.json()["id"] == seen["id"]
    assert "Zoë" == seen["customer_id"]


async def test_payment_details_are_nowhere_but_in_the_input(
    alice: httpx.AsyncClient, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """No answer, memo, search attribute or log line holds a payment detail or the method."""
    secret = f"tok_{uuid.uuid4().hex}"
    caplog.set_level(logging.DEBUG)
    placed = await alice.post(
        "/api/v1/orders", json=order(payment_details={secret: secret}, payment_method=f"method {secret}")
    )
    found = await alice.get(placed.headers["location"])
    refused = await alice.post("/api/v1/orders", json=order(payment_details={secret: secret}, items=[]))
    attributes = await started(client, placed.json()["workflow_id"])
    said = "\n".join(JSONFormatter().format(record) for record in caplog.records)

    assert secret.encode() in attributes.input.payloads[0].data
    attributes.ClearField("input")
    assert secret not in str(attributes)
    assert "OrderOwner" in attributes.search_attributes.indexed_fields
    assert secret not in placed.text + found.text + refused.text
    assert placed.json()["workflow_id"] in said
    assert secret not in said


def without(name: str) -> dict[str, Any]:
    """An order that lacks a field."""
    return {k: v for k, v in order().items() if k != name}


def with_item(**changes: object) -> dict[str, Any]:
    """An order with one line, changed."""
    return order(items=[{"id": "1", "quantity": 1, "unit_price": 1, **changes}])


REFUSED = [
    (without("customer_id"), "customer_id"),
    (without("items"), "items"),
    (without("shipping_address"), "shipping_address"),
    (without("payment_method"), "payment_method"),
    (without("payment_details"), "payment_details"),
    (order(customer_id=""), "customer_id"),
    (order(customer_id=7), "customer_id"),
    (order(customer_id=None), "customer_id"),
    (order(items=[]), "items"),
    (order(items=lines(*[1] * 1001)), "items"),
    (order(items={}), "items"),
    (order(shipping_address={"street": 1}), "shipping_address.street"),
    (order(shipping_address="here"), "shipping_address"),
    (order(payment_details=["tok"]), "payment_details"),
    (order(note="hurry"), "note"),
    (order(id="mine"), "id"),
    (order(total_amount="0.01"), "total_amount"),
    (with_item(colour="red"), "items[0].colour"),
    (with_item(id=""), "items[0].id"),
    (with_item(quantity="2"), "items[0].quantity"),
    (with_item(quantity=0), "items[0].quantity"),
    (with_item(quantity=-1), "items[0].quantity"),
    (with_item(quantity=1_000_001), "items[0].quantity"),
    (with_item(quantity=1.5), "items[0].quantity"),
    (with_item(quantity=True), "items[0].quantity"),
    (with_item(quantity=None), "items[0].quantity"),
    (with_item(unit_price=-0.01), "items[0].unit_price"),
    (with_item(unit_price=True), "items[0].unit_price"),
    (with_item(unit_price=None), "items[0].unit_price"),
    (with_item(unit_price=[1]), "items[0].unit_price"),
    (with_item(unit_price=0.0000001), "items[0].unit_price"),
    (with_item(unit_price="1000000000000.01"), "items[0].unit_price"),
    (with_item(unit_price="0.10000000000000000555"), "items[0].unit_price"),
    (with_item(unit_price=""), "items[0].unit_price"),
    (with_item(unit_price="1,50"), "items[0].unit_price"),
    (with_item(unit_price="1e3"), "items[0].unit_price"),
    (with_item(unit_price="NaN"), "items[0].unit_price"),
    (with_item(unit_price="Infinity"), "items[0].unit_price"),
    (with_item(unit_price=" 1"), "items[0].unit_price"),
    (with_item(unit_price="١٢"), "items[0].unit_price"),
    (with_item(unit_price="+1"), "items[0].unit_price"),
    (with_item(unit_price="1_000"), "items[0].unit_price"),
]


@pytest.mark.parametrize(("body", "key"), REFUSED, ids=[f"{n}-{key}" for n, (_, key) in enumerate(REFUSED)])
async def test_a_wrong_order_is_refused(alice: httpx.AsyncClient, body: dict[str, Any], key: str) -> None:
    """What is not an order by the contract is a 400 that names the field and what is expected there."""
    problem = assert_problem(await alice.post("/api/v1/orders", json=body), 400, "validation_error")

    assert [key] == [error["key"] for error in problem["details"]["errors"]]
    assert problem["details"]["errors"][0]["message"]
    assert {"errors"} == set(problem["details"])


@pytest.mark.parametrize(
    ("price", "code"),
    [
        ("NaN", "malformed_json"),
        ("Infinity", "malformed_json"),
        ("-Infinity", "malformed_json"),
        ("01", "malformed_json"),
        (".5", "malformed_json"),
        ("1e9999999", "validation_error"),
        ("0e999", "validation_error"),
        ("0.10000000000000000555", "validation_error"),
        ("1000000000000.000001", "validation_error"),
        ("-0", "validation_error"),
        ("9" * 5000, "validation_error"),
        ("0." + "0" * 100_000, "validation_error"),
        (f'"{"0" * 100_000}x"', "validation_error"),
    ],
    ids=lambda value: value[:30],
)
async def test_a_price_that_is_none_is_refused_at_once(alice: httpx.AsyncClient, price: str, code: str) -> None:
    """What JSON or money does not know is a 400, and however long it is it costs no time."""
    began = time.monotonic()
    response = await post_text(alice, f'[{{"id": "1", "quantity": 1, "unit_price": {price}}}]')

    assert_problem(response, 400, code)
    assert time.monotonic() - began < 5


async def test_an_order_too_large_for_temporal_is_refused(shop: httpx.AsyncClient, dev_server: DevServer) -> None:
    """An order that the service takes and Temporal does not is a 413, not a failure of the service."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_BODY_BYTES=str(10**8)) as roomy:
        over_blob = await roomy.post("/api/v1/orders", json=order(payment_details={"blob": "x" * 2_200_000}))
        over_message = await roomy.post("/api/v1/orders", json=order(payment_details={"blob": "x" * 8_000_000}))
    over_body = await shop.post("/api/v1/orders", json=order(payment_details={"blob": "x" * 2_200_000}))

    assert_problem(over_blob, 413, "payload_too_large")
    assert_problem(over_message, 413, "payload_too_large")
    assert_problem(over_body, 413, "payload_too_large")


async def test_an_order_expires_as_the_settings_say(
    alice: httpx.AsyncClient, client: Client, dev_server: DevServer
) -> None:
    """The run's execution timeout is two hours, or what ORDERS_EXECUTION_TIMEOUT_SECONDS says."""
    usual = await started(client, (await place(alice))["workflow_id"])
    async with service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_EXECUTION_TIMEOUT_SECONDS="90") as hasty:
        short = await started(client, (await place(hasty))["workflow_id"])

    assert timedelta(hours=2) == usual.workflow_execution_timeout.ToTimedelta()
    assert timedelta(seconds=90) == short.workflow_execution_timeout.ToTimedelta()


# --- whose order it is ---


async def test_another_callers_order_does_not_exist(alice: httpx.AsyncClient, client: Client) -> None:
    """Bob's answers about Alice's order are those about an order that never was, and his cancel does nothing."""
    placed = await place(alice)
    told = []
    for order_id in (placed["id"], str(uuid.uuid4())):
        for method, path in (("GET", ""), ("POST", "/cancel")):
            response = await alice.request(method, f"/api/v1/orders/{order_id}{path}", headers=BOB)
            problem = assert_problem(response, 404, "order_not_found")
            told.append((problem["message"].replace(order_id, "ID"), problem["details"]))
    history = await client.get_workflow_handle(placed["workflow_id"]).fetch_history()

    assert [told[0]] * 4 == told
    assert [1, 5] == [event.event_type for event in history.events]  # started, and a task for a worker; no signal


async def test_an_administrator_sees_and_steers_every_order(alice: httpx.AsyncClient) -> None:
    """`orders:admin` alone is enough to read and to cancel what others have placed."""
    placed = await place(alice)
    path = f"/api/v1/orders/{placed['id']}"

    assert (await alice.get(path)).json() == (await alice.get(path, headers=ADMIN)).json()
    assert 204 == (await alice.post(f"{path}/cancel", headers=ADMIN)).status_code


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("orders:read", {"read"}),
        ("orders:write", {"place", "cancel"}),
        ("workflows:read workflows:write workflows:admin", set()),
        ("orders", set()),
    ],
)
async def test_each_call_needs_its_scope(alice: httpx.AsyncClient, scope: str, allowed: set[str]) -> None:
    """Reading needs `orders:read`, placing and cancelling need `orders:write`; nothing else opens them."""
    path = f"/api/v1/orders/{(await place(alice))['id']}"
    headers = bearer(scope=scope)
    answers = {
        "place": await alice.post("/api/v1/orders", json=order(), headers=headers),
        "read": await alice.get(path, headers=headers),
        "cancel": await alice.post(f"{path}/cancel", headers=headers),
    }

    assert allowed == {name for name, answer in answers.items() if answer.is_success}
    for name in answers.keys() - allowed:
        assert_problem(answers[name], 403, "insufficient_scope")


@pytest.mark.parametrize("order_id", ["no-such-order", "x" * 2000, "a%2Fb", "%C3%BC", "order-", "%00", "%F0%9F%93%A6"])
async def test_an_id_of_no_order_is_not_found(alice: httpx.AsyncClient, order_id: str) -> None:
    """Any id that is not an order's is a 404, also one that Temporal would not take."""
    assert_problem(await alice.get(f"/api/v1/orders/{order_id}"), 404, "order_not_found")
    assert_problem(await alice.post(f"/api/v1/orders/{order_id}/cancel"), 404, "order_not_found")


async def test_a_workflow_that_is_no_order_is_not_found(
    alice: httpx.AsyncClient, client: Client, task_queue: str
) -> None:
    """A run with an order's id but without an order's memo is nobody's order, not even an administrator's."""
    order_id = str(uuid.uuid4())
    await client.start_workflow("order_processing", id=f"order-{order_id}", task_queue=task_queue)

    assert_problem(await alice.get(f"/api/v1/orders/{order_id}"), 404, "order_not_found")
    assert_problem(await alice.get(f"/api/v1/orders/{order_id}", headers=ADMIN), 404, "order_not_found")


# --- its status ---


@pytest.mark.parametrize(
    ("step", "status"),
    [("reserve_inventory", "pending"), ("charge_payment", "confirmed"), ("ship", "processing"), ("deliver", "shipped")],
)
async def test_the_status_is_the_workflows(
    shop: httpx.AsyncClient, client: Client, task_queue: str, step: str, status: str
) -> None:
    """While a step is under way the order has the status before it, with or without a worker; at the end: delivered."""
    placed = await place(shop)
    held = Held(step)
    async with create_worker(client, task_queue, held):
        at_step = await reached(shop, placed["id"], status)
        held.let_go.set()
        at_end = await reached(shop, placed["id"], "delivered")
    after = await read(shop, placed["id"])

    assert {**placed, "status": status} == at_step["order"]
    assert ("RUNNING", None, None) == (at_step["status"], at_step["result"], at_step["execution_time_seconds"])
    assert {**placed, "status": "delivered"} == at_end["order"]
    assert "COMPLETED" == at_end["status"]
    assert {"order_id": placed["id"], "status": "delivered"} == at_end["result"]
    assert 0 < at_end["execution_time_seconds"] < 60
    assert at_end == after


async def test_a_declined_card_cancels_with_its_reason(
    shop: httpx.AsyncClient, client: Client, task_queue: str
) -> None:
    """An order whose payment is declined ends as cancelled and says why."""
    placed = await place(shop, payment_details={"card_token": "tok_declined"})
    async with create_worker(client, task_queue):
        body = await reached(shop, placed["id"], "cancelled")

    assert {**placed, "status": "cancelled", "reason": "payment_declined"} == body["order"]
    assert "COMPLETED" == body["status"]


async def test_a_terminated_order_is_cancelled(shop: httpx.AsyncClient, client: Client) -> None:
    """A run that an operator ended, which could not say so itself, is a cancelled order with the run's status."""
    placed = await place(shop)
    await client.get_workflow_handle(placed["workflow_id"]).terminate()
    body = await read(shop, placed["id"])

    assert ("TERMINATED", None) == (body["status"], body["result"])
    assert {**placed, "status": "cancelled", "reason": "TERMINATED"} == body["order"]
    assert_problem(await shop.post(f"/api/v1/orders/{placed['id']}/cancel"), 409, "order_not_cancellable")


async def test_a_terminated_order_that_was_under_way_is_cancelled(
    shop: httpx.AsyncClient, client: Client, task_queue: str
) -> None:
    """A status that the workflow had told before it was ended is not the last word."""
    placed = await place(shop)
    held = Held("deliver")
    async with create_worker(client, task_queue, held):
        await reached(shop, placed["id"], "shipped")
        await client.get_workflow_handle(placed["workflow_id"]).terminate()
        body = await reached(shop, placed["id"], "cancelled")
        held.let_go.set()

    assert {**placed, "status": "cancelled", "reason": "TERMINATED"} == body["order"]


async def test_a_timed_out_order_is_cancelled(dev_server: DevServer) -> None:
    """An order that nobody processed in time is cancelled, and says that it timed out."""
    queue = f"queue-{uuid.uuid4()}"
    async with service(
        TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=queue, ORDERS_EXECUTION_TIMEOUT_SECONDS="1"
    ) as hasty:
        placed = await place(hasty)
        body = await reached(hasty, placed["id"], "cancelled")

    assert "TIMED_OUT" == body["status"]
    assert {**placed, "status": "cancelled", "reason": "TIMED_OUT"} == body["order"]
    assert 0.5 < body["execution_time_seconds"] < 30  # by Temporal's own clocks


@pytest.mark.parametrize(
    ("payment_method", "run", "status", "result"),
    [
        ("card", "COMPLETED", {"status": "delivered"}, "done"),
        ("fail", "FAILED", {"status": "cancelled", "reason": "FAILED"}, None),
    ],
)
async def test_a_worker_that_keeps_no_memo(
    shop: httpx.AsyncClient,
    client: Client,
    task_queue: str,
    payment_method: str,
    run: str,
    status: dict[str, str],
    result: str | None,
) -> None:
    """An order processed by a foreign worker is pending until its run ends, then delivered or cancelled."""
    placed = await place(shop, payment_method=payment_method)
    async with Worker(
        client,
        task_queue=task_queue,
        workflows=[ForeignOrderProcessing],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        body = await reached(shop, placed["id"], "delivered", "cancelled")

    assert (run, result) == (body["status"], body["result"])
    assert {**placed, **status} == body["order"]


# --- cancelling ---


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "customer_request"),
        ({"json": {}}, "customer_request"),
        ({"json": {"reason": "falsche Größe, désolé"}}, "falsche Größe, désolé"),
        ({"json": {"reason": "x" * 500}}, "x" * 500),
    ],
)
async def test_cancelling_really_cancels(
    shop: httpx.AsyncClient, client: Client, task_queue: str, body: dict[str, Any], reason: str
) -> None:
    """A 204, and a worker, even one that comes later, cancels the order for the given reason."""
    placed = await place(shop)
    response = await shop.post(f"/api/v1/orders/{placed['id']}/cancel", **body)
    async with create_worker(client, task_queue):
        seen = await reached(shop, placed["id"], "cancelled", "delivered")

    assert (204, b"") == (response.status_code, response.content)
    assert {**placed, "status": "cancelled", "reason": reason} == seen["order"]
    assert {"order_id": placed["id"], "status": "cancelled", "reason": reason} == seen["result"]


async def test_cancelling_under_way(shop: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """An order is cancelled also after its payment; a second cancel is no error and changes no reason."""
    placed = await place(shop)
    path = f"/api/v1/orders/{placed['id']}/cancel"
    held = Held("ship")
    async with create_worker(client, task_queue, held):
        await reached(shop, placed["id"], "processing")
        first = await shop.post(path, json={"reason": "first"})
        second = await shop.post(path, json={"reason": "second"})
        held.let_go.set()
        seen = await reached(shop, placed["id"], "cancelled", "delivered")

    assert (204, 204) == (first.status_code, second.status_code)
    assert {**placed, "status": "cancelled", "reason": "first"} == seen["order"]


async def test_a_shipped_order_cannot_be_cancelled(shop: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """Once shipped it is too late, and once delivered too: 409 with the status; the order is delivered."""
    placed = await place(shop)
    path = f"/api/v1/orders/{placed['id']}/cancel"
    held = Held("deliver")
    async with create_worker(client, task_queue, held):
        await reached(shop, placed["id"], "shipped")
        shipped = await shop.post(path)
        held.let_go.set()
        await reached(shop, placed["id"], "delivered")
    delivered = await shop.post(path)

    for response, status in ((shipped, "shipped"), (delivered, "delivered")):
        problem = assert_problem(response, 409, "order_not_cancellable")
        assert {"workflow_id": placed["workflow_id"], "status": status} == problem["details"]
        assert status in problem["message"]


async def test_a_cancelled_order_cannot_be_cancelled_again(
    shop: httpx.AsyncClient, client: Client, task_queue: str
) -> None:
    """Once it is cancelled there is nothing to cancel: 409."""
    placed = await place(shop)
    path = f"/api/v1/orders/{placed['id']}/cancel"
    await shop.post(path)
    async with create_worker(client, task_queue):
        await reached(shop, placed["id"], "cancelled")
    problem = assert_problem(await shop.post(path), 409, "order_not_cancellable")

    assert "cancelled" == problem["details"]["status"]


async def test_a_cancel_that_crosses_with_the_end(alice: httpx.AsyncClient, client: Client) -> None:
    """A cancel is in time, or is told the order's end: never that it is too late for an order still pending."""
    placed = await asyncio.gather(*(place(alice) for _ in range(50)))

    async def cancel(created: dict[str, Any]) -> httpx.Response:
        run = client.get_workflow_handle(created["workflow_id"])
        response, _ = await asyncio.gather(alice.post(f"/api/v1/orders/{created['id']}/cancel"), run.terminate())
        return response

    for response in await asyncio.gather(*map(cancel, placed)):
        if response.status_code != 204:
            problem = assert_problem(response, 409, "order_not_cancellable")
            assert "cancelled" == problem["details"]["status"]


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 501}, "reason"),
        ({"reason": 7}, "reason"),
        ({"reason": None}, "reason"),
        ({"why": "x"}, "why"),
        ([], ""),
    ],
)
async def test_a_wrong_cancel_is_refused(alice: httpx.AsyncClient, client: Client, body: Any, key: str) -> None:
    """A body that is no reason is a 400 that names the field, and nothing is cancelled."""
    placed = await place(alice)
    response = await alice.post(f"/api/v1/orders/{placed['id']}/cancel", json=body)
    problem = assert_problem(response, 400, "validation_error")
    history = await client.get_workflow_handle(placed["workflow_id"]).fetch_history()

    assert [key] == [error["key"] for error in problem["details"]["errors"]]
    assert 2 == len(history.events)


# --- a namespace that was never set up ---


async def test_orders_are_taken_without_the_search_attributes(
    client: Client, dev_server: DevServer, task_queue: str
) -> None:
    """Where `temporal-api setup` was not run, orders are placed, processed and cancelled all the same."""
    namespace = f"bare-{uuid.uuid4()}"
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=namespace, workflow_execution_retention_period=Duration(seconds=86400))
    )
    async with service(
        TEMPORAL_ADDRESS=dev_server.address, TEMPORAL_NAMESPACE=namespace, ORDERS_TASK_QUEUE=task_queue
    ) as bare:

        async def ready() -> bool:
            return (await bare.get("/health/ready")).is_success

        await eventually(ready)
        first, second = await place(bare), await place(bare)
        there = await Client.connect(dev_server.address, namespace=namespace, data_converter=DATA_CONVERTER)
        cancelled = await bare.post(f"/api/v1/orders/{second['id']}/cancel")
        async with create_worker(there, task_queue):
            ends = [await reached(bare, placed["id"], "delivered", "cancelled") for placed in (first, second)]
        text = (await bare.get("/metrics")).text

    attributes = await started(there, first["workflow_id"])
    assert 204 == cancelled.status_code
    assert ["delivered", "cancelled"] == [end["order"]["status"] for end in ends]
    assert not attributes.search_attributes.indexed_fields
    # Found out once, and remembered: three starts were asked for two orders.
    asked = [line for line in text.splitlines() if line.startswith("temporal_request{")]
    starts = sum(float(line.rpartition(" ")[2]) for line in asked if '"StartWorkflowExecution"' in line)
    assert 3 == starts


async def test_orders_carry_their_search_attributes(shop: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """Where the namespace has them, an order is found by its owner and its status, also when that has changed."""
    owner = f"owner-{uuid.uuid4()}"
    placed = (await shop.post("/api/v1/orders", json=order(), headers=bearer(owner))).json()

    async def found(status: str) -> list[str]:
        query = f"OrderOwner = '{owner}' AND OrderStatus = '{status}'"
        return [run.id async for run in client.list_workflows(query)]

    assert [placed["workflow_id"]] == await eventually(lambda: found("pending"))

    async with create_worker(client, task_queue):
        assert [placed["workflow_id"]] == await eventually(lambda: found("delivered"))
    described = await client.get_workflow_handle(placed["workflow_id"]).describe()

    assert WorkflowExecutionStatus.COMPLETED == described.status


async def test_an_order_is_cancelled_only_as_it_is_known(alice: httpx.AsyncClient) -> None:
    """With `If-Match` of another state a cancel is a 412, and the order goes on; with its ETag it is asked to stop."""
    path = (await alice.post("/api/v1/orders", json=order())).headers["location"]
    etag = (await alice.get(path)).headers["etag"]
    refused = await alice.post(f"{path}/cancel", headers={"If-Match": '"nope"'})
    unchanged = (await alice.get(path)).headers["etag"]
    cancelled = await alice.post(f"{path}/cancel", headers={"If-Match": etag})

    assert_problem(refused, 412, "precondition_failed")
    assert etag == unchanged
    assert 204 == cancelled.status_code
