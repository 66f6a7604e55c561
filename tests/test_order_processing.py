"""The order workflow against a real Temporal: every end an order can come to, and what is undone on the way there."""

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import MessageToJson
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowHistory,
)
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Replayer, Worker

from temporal_api.temporal.payloads import DATA_CONVERTER
from temporal_api.worker import StandIns, create_worker
from temporal_api.worker.order_processing import ORDER_STATUS, STATUS_MEMO, Order, OrderProcessing

pytestmark = pytest.mark.anyio

Handle = WorkflowHandle[Any, Any]

HISTORIES = json.loads(Path(__file__).with_name("histories").joinpath("order_processing.json").read_text())
STEP_NAMES = ["reserve_inventory", "charge_payment", "ship", "deliver"]
UNDO_NAMES = {"reserve_inventory": "release_inventory", "charge_payment": "refund_payment", "ship": "recall_shipment"}
PENDING = {"status": "pending", "reason": None}


class Shop(StandIns):
    """Stand-ins that note what they are asked to do, and wait or fail where a test says so."""

    def __init__(self, *, hold: str | None = None, **failures: list[Exception]) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.orders: dict[str, Order] = {}
        self.hold = hold
        self.held = asyncio.Event()
        self.let_go = asyncio.Event()
        self.failures: dict[str, Iterator[Exception]] = {step: iter(errors) for step, errors in failures.items()}

    async def pretend(self, step: str, order: Order) -> None:
        """Note, wait, fail."""
        await super().pretend(step, order)
        self.calls.append(step)
        self.orders[step] = order
        if step == self.hold:
            self.held.set()
            await self.let_go.wait()
        if error := next(self.failures.get(step, iter(())), None):
            raise error


def passing(delay: timedelta = timedelta(milliseconds=1)) -> ApplicationError:
    """A failure that is retried after the delay."""
    return ApplicationError("the line is down", next_retry_delay=delay)


def final() -> ApplicationError:
    """A failure that is not retried, and no refusal."""
    return ApplicationError("broken", type="Broken", non_retryable=True)


def order(**changes: object) -> dict[str, object]:
    """An order as the API starts the workflow with it."""
    return {
        "id": str(uuid.uuid4()),
        "customer_id": "customer-1",
        "items": [{"id": "1", "name": "Cup", "sku": "CUP", "quantity": 2, "unit_price": Decimal("34.74")}],
        "shipping_address": {"city": "Ghent"},
        "payment_method": "card",
        "payment_details": {"card_token": "tok_visa"},
        **changes,
    }


DECLINED = {"payment_details": {"card_token": "tok_declined"}}
OUT_OF_STOCK = {"items": [{"id": "1", "sku": "OUT-OF-STOCK", "quantity": 1, "unit_price": 1}]}


async def start(client: Client, task_queue: str, argument: object = None, **options: Any) -> Handle:
    """Start an order as the API does."""
    return await client.start_workflow(
        "order_processing",
        argument or order(),
        id=f"order-{uuid.uuid4()}",
        task_queue=task_queue,
        memo={STATUS_MEMO: PENDING},
        **options,
    )


async def events_of(handle: Handle) -> list[HistoryEvent]:
    """The run's history, which must also replay: every test proves its own path deterministic."""
    history = await handle.fetch_history()
    await Replayer(workflows=[OrderProcessing], data_converter=DATA_CONVERTER).replay_workflow(history)
    return list(history.events)


async def told(handle: Handle) -> list[tuple[str, str | None]]:
    """Every status with its reason that the run has told in its memo, in order."""
    payloads = [
        event.workflow_properties_modified_event_attributes.upserted_memo.fields[STATUS_MEMO]
        for event in await events_of(handle)
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED
    ]
    return [(memo["status"], memo["reason"]) for memo in map(json.loads, (payload.data for payload in payloads))]


async def recorded(handle: Handle, event_type: EventType.ValueType, times: int = 1) -> None:
    """Wait until the run's history holds so many such events."""
    async for event in handle.fetch_history_events(wait_new_event=True):
        times -= event.event_type == event_type
        if times == 0:
            return


async def run_status(handle: Handle) -> WorkflowExecutionStatus | None:
    """Temporal's word for how the run stands."""
    return (await handle.describe()).status


def up_to(step: str) -> list[str]:
    """The calls of an order that comes to a step, and is then undone with that step."""
    done = STEP_NAMES[: STEP_NAMES.index(step) + 1]
    return done + [UNDO_NAMES[name] for name in reversed(done) if name in UNDO_NAMES]


async def test_delivers(client: Client, task_queue: str) -> None:
    """An order goes through its steps, tells each status once, in order, and no reason, and answers small."""
    shop, placed = Shop(), order(gift="a field of tomorrow")
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue, placed)
        result = await handle.result()
        said = await handle.query("status")
    assert result == {"order_id": placed["id"], "status": "delivered"}
    assert said == {"status": "delivered", "reason": None}
    assert shop.calls == STEP_NAMES
    assert await told(handle) == [(status, None) for status in ("confirmed", "processing", "shipped", "delivered")]
    assert await (await handle.describe()).memo_value(STATUS_MEMO) == said


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("reserve_inventory", "pending", "confirmed"),
        ("charge_payment", "confirmed", "processing"),
        ("ship", "processing", "shipped"),
        ("deliver", "shipped", "delivered"),
    ],
)
async def test_status_never_runs_ahead(client: Client, task_queue: str, step: str, before: str, after: str) -> None:
    """While a step runs, memo and query still say what was before it; once it is done, the memo says so."""
    shop = Shop(hold=step)
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue)
        await shop.held.wait()
        assert await handle.query("status") == {"status": before, "reason": None}
        assert await (await handle.describe()).memo_value(STATUS_MEMO) == {"status": before, "reason": None}
        shop.let_go.set()
        await handle.result()
    statuses = [status for status, _ in await told(handle)]
    assert statuses[STEP_NAMES.index(step)] == after


@pytest.mark.parametrize(
    ("changes", "reason", "calls", "before"),
    [
        (OUT_OF_STOCK, "out_of_stock", ["reserve_inventory"], []),
        (
            DECLINED,
            "payment_declined",
            ["reserve_inventory", "charge_payment", "release_inventory"],
            [("confirmed", None)],
        ),
    ],
)
async def test_refusal_cancels(
    client: Client,
    task_queue: str,
    changes: dict[str, object],
    reason: str,
    calls: list[str],
    before: list[tuple[str, None]],
) -> None:
    """A refusal is not retried; the order ends as cancelled with its reason, the steps before it undone, not itself."""
    shop, placed = Shop(), order(**changes)
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue, placed)
        assert await handle.result() == {"order_id": placed["id"], "status": "cancelled", "reason": reason}
        assert await handle.query("status") == {"status": "cancelled", "reason": reason}
    assert shop.calls == calls
    assert await told(handle) == [*before, ("cancelled", reason)]
    assert await run_status(handle) == WorkflowExecutionStatus.COMPLETED


async def test_refusal_is_final_by_its_type(client: Client, task_queue: str) -> None:
    """A refusal that forgets to say that it is not to be retried is not retried either."""
    shop = Shop(charge_payment=[ApplicationError("no", type="PaymentDeclined")])
    async with create_worker(client, task_queue, shop):
        result = await (await start(client, task_queue)).result()
    assert (result["status"], result["reason"]) == ("cancelled", "payment_declined")
    assert shop.calls == ["reserve_inventory", "charge_payment", "release_inventory"]


@pytest.mark.parametrize("step", STEP_NAMES)
async def test_failure_undoes_in_reverse(client: Client, task_queue: str, step: str) -> None:
    """A step that fails for good may have done something: it is undone with those before it, last first."""
    shop = Shop(**{step: [final()]})
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue)
        result = await handle.result()
    assert (result["status"], result["reason"]) == ("cancelled", f"{step}_failed")
    assert shop.calls == up_to(step)
    assert (await told(handle))[-1] == ("cancelled", f"{step}_failed")


async def test_every_step_is_bounded(client: Client, task_queue: str) -> None:
    """Each attempt has a timeout; a step is tried ten times, an undo without end, and neither dies of waiting."""
    shop = Shop(deliver=[final()])
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue)
        await handle.result()
    scheduled = [
        event.activity_task_scheduled_event_attributes
        for event in await events_of(handle)
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]
    assert [activity.activity_type.name for activity in scheduled] == up_to("deliver")
    assert [activity.retry_policy.maximum_attempts for activity in scheduled] == [10] * 4 + [0] * 3
    assert {activity.start_to_close_timeout.ToTimedelta() for activity in scheduled} == {timedelta(seconds=10)}
    # Temporal fills in "as long as the run may last", which here is for ever.
    assert {activity.schedule_to_close_timeout.ToTimedelta() for activity in scheduled} == {timedelta()}


async def test_retries_the_same_order(client: Client, task_queue: str) -> None:
    """A charge whose report is lost is tried again under the same order id, so that it is charged once."""

    class Provider(Shop):
        def __init__(self) -> None:
            super().__init__(charge_payment=[passing()])
            self.charges: dict[str, Decimal] = {}

        async def pretend(self, step: str, order: Order) -> None:
            if step == "charge_payment":
                self.charges[order.id] = self.charges.get(order.id, order.total)
            await super().pretend(step, order)

    shop, placed = Provider(), order()
    async with create_worker(client, task_queue, shop):
        result = await (await start(client, task_queue, placed)).result()
    assert result["status"] == "delivered"
    assert shop.calls == ["reserve_inventory", *["charge_payment"] * 2, "ship", "deliver"]
    assert shop.charges == {placed["id"]: Decimal("69.48")}


async def test_undo_is_retried(client: Client, task_queue: str) -> None:
    """An undo that fails is tried again before the one that follows it."""
    shop = Shop(ship=[final()], refund_payment=[passing()])
    async with create_worker(client, task_queue, shop):
        result = await (await start(client, task_queue)).result()
    assert result["status"] == "cancelled"
    assert shop.calls[-3:] == [*["refund_payment"] * 2, "release_inventory"]


async def test_impossible_undo_fails_the_run(client: Client, task_queue: str) -> None:
    """An undo that says itself that it is impossible does not keep the others, and the run fails for someone to see."""
    shop = Shop(ship=[final()], refund_payment=[final()])
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue)
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
    assert isinstance(failed.value.cause, ApplicationError)
    assert (failed.value.cause.type, failed.value.cause.message) == ("UndoFailed", "not undone: refund_payment")
    assert shop.calls == up_to("ship")
    assert (await told(handle))[-1] == ("cancelled", "ship_failed")


async def test_cancel_before_a_worker(client: Client, task_queue: str) -> None:
    """An order cancelled while no worker is up never begins: nothing is reserved, nothing charged."""
    shop, placed = Shop(), order()
    handle = await start(client, task_queue, placed)
    await handle.signal("cancel", {"reason": "customer_request"})
    async with create_worker(client, task_queue, shop):
        result = await handle.result()
    assert result == {"order_id": placed["id"], "status": "cancelled", "reason": "customer_request"}
    assert shop.calls == []
    assert await told(handle) == [("cancelled", "customer_request")]


@pytest.mark.parametrize("step", ["reserve_inventory", "charge_payment", "ship"])
async def test_cancel_during_a_step(client: Client, task_queue: str, step: str) -> None:
    """A cancel while a step runs lets it finish, begins no other, and undoes all, last first; also while shipping."""
    shop = Shop(hold=step)
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue)
        await shop.held.wait()
        await handle.signal("cancel", {"reason": "customer_request"})
        await recorded(handle, EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED)
        assert shop.calls == STEP_NAMES[: STEP_NAMES.index(step) + 1]  # No undo overtakes the step.
        shop.let_go.set()
        result = await handle.result()
    assert (result["status"], result["reason"]) == ("cancelled", "customer_request")
    assert shop.calls == up_to(step)
    assert (await told(handle))[-1] == ("cancelled", "customer_request")
    assert await run_status(handle) == WorkflowExecutionStatus.COMPLETED


async def decided_at_once(
    client: Client, task_queue: str, step: str, cancel: Callable[[Handle], Awaitable[None]], cancel_first: bool
) -> tuple[Handle, Shop]:
    """Let a step end and a cancel come while no worker decides, in that order or the other; then let one decide."""
    shop = Shop(hold=step)
    does = [getattr(shop, name) for name in (*STEP_NAMES, *UNDO_NAMES.values())]

    def decider() -> Worker:
        return Worker(client, task_queue=task_queue, workflows=[OrderProcessing], max_cached_workflows=0)

    async with Worker(client, task_queue=task_queue, activities=does):
        async with decider():
            handle = await start(client, task_queue)
            await shop.held.wait()
        if cancel_first:
            await cancel(handle)
        shop.let_go.set()
        await recorded(handle, EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED, times=len(shop.calls))
        if not cancel_first:
            await cancel(handle)
        async with decider():
            await recorded(handle, EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED, times=len(up_to(step)) + 1)
            with contextlib.suppress(WorkflowFailureError):
                await handle.result()
    return handle, shop


@pytest.mark.parametrize("cancel_first", [True, False])
@pytest.mark.parametrize("step", ["reserve_inventory", "charge_payment", "ship"])
async def test_cancel_between_two_steps(client: Client, task_queue: str, step: str, cancel_first: bool) -> None:
    """A cancel that the workflow learns of together with a step's end, on either side of it, is honoured."""
    handle, shop = await decided_at_once(client, task_queue, step, lambda order: order.signal("cancel"), cancel_first)
    assert await run_status(handle) == WorkflowExecutionStatus.COMPLETED
    assert shop.calls == up_to(step)
    statuses = await told(handle)
    assert statuses[-1] == ("cancelled", "customer_request")
    assert ("shipped", None) not in statuses


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_temporal_cancellation_with_the_end(client: Client, task_queue: str, cancel_first: bool) -> None:
    """Temporal's cancellation that comes together with the delivery: memo and run status still say the same."""
    handle, shop = await decided_at_once(client, task_queue, "deliver", lambda order: order.cancel(), cancel_first)
    assert await run_status(handle) == WorkflowExecutionStatus.CANCELED
    assert shop.calls == up_to("deliver")
    assert (await told(handle))[-1] == ("cancelled", "CANCELED")


async def test_cancel_ends_the_retries(client: Client, task_queue: str) -> None:
    """A cancel does not wait for the next attempt of a step that is being retried; that step is undone too."""
    shop = Shop(charge_payment=[passing(timedelta(hours=1))])
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue)
        while [activity.attempt for activity in (await handle.describe()).raw_description.pending_activities] != [2]:
            pass
        await handle.signal("cancel")
        result = await handle.result()
    assert (result["status"], result["reason"]) == ("cancelled", "customer_request")
    assert shop.calls == up_to("charge_payment")


async def test_cancel_and_refusal(client: Client, task_queue: str) -> None:
    """A card declined while a cancel waits is not refunded; the reason is the caller's, who came first."""
    shop = Shop(hold="charge_payment")
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue, order(**DECLINED))
        await shop.held.wait()
        await handle.signal("cancel", {"reason": "changed my mind"})
        await recorded(handle, EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED)
        shop.let_go.set()
        result = await handle.result()
    assert (result["status"], result["reason"]) == ("cancelled", "changed my mind")
    assert shop.calls == ["reserve_inventory", "charge_payment", "release_inventory"]


async def test_cancel_after_shipped_is_ignored(client: Client, task_queue: str) -> None:
    """A cancel of a shipped order changes nothing: it is delivered."""
    shop = Shop(hold="deliver")
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue)
        await shop.held.wait()
        await handle.signal("cancel", {"reason": "customer_request"})
        assert await handle.query("status") == {"status": "shipped", "reason": None}
        shop.let_go.set()
        result = await handle.result()
    assert result["status"] == "delivered"
    assert shop.calls == STEP_NAMES
    assert (await told(handle))[-2:] == [("shipped", None), ("delivered", None)]


CANCELS: list[tuple[list[Any], str]] = [
    ([], "customer_request"),
    ([None], "customer_request"),
    (["too slow"], "customer_request"),
    ([17], "customer_request"),
    ([[]], "customer_request"),
    ([{}], "customer_request"),
    ([{"reason": None}], "customer_request"),
    ([{"reason": {"code": 3}}], "customer_request"),
    ([{"reason": " "}], "customer_request"),
    ([b"\x00\xff"], "customer_request"),
    ([{"reason": "too slow", "more": 1}], "too slow"),
    ([{"reason": "too slow"}, "and", ["more"]], "too slow"),
    ([{"reason": "x" * 100_000}], "x" * 500),
]


async def test_cancel_takes_any_argument(client: Client, task_queue: str) -> None:
    """Whatever comes with the signal, the order is cancelled; a reason is kept when there is one, of bounded length."""
    handles = [await start(client, task_queue) for _ in CANCELS]
    for handle, (arguments, _) in zip(handles, CANCELS, strict=True):
        await handle.signal("cancel", args=arguments)
    async with create_worker(client, task_queue):
        results = [await handle.result() for handle in handles]
    assert [(result["status"], result["reason"]) for result in results] == [
        ("cancelled", reason) for _, reason in CANCELS
    ]


@pytest.mark.parametrize("step", STEP_NAMES)
async def test_temporal_cancellation(client: Client, task_queue: str, step: str) -> None:
    """Temporal's cancellation undoes all at any time, shipped or not, and the run ends as CANCELED."""
    shop = Shop(hold=step)
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue)
        await shop.held.wait()
        await handle.cancel()
        await recorded(handle, EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED)
        assert shop.calls == STEP_NAMES[: STEP_NAMES.index(step) + 1]
        shop.let_go.set()
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
    assert isinstance(failed.value.cause, CancelledError)
    assert await run_status(handle) == WorkflowExecutionStatus.CANCELED
    assert shop.calls == up_to(step)
    assert (await told(handle))[-1] == ("cancelled", "CANCELED")


async def test_temporal_cancellation_before_a_worker(client: Client, task_queue: str) -> None:
    """A run cancelled before any worker saw it charges nothing and ends as CANCELED."""
    shop = Shop()
    handle = await start(client, task_queue)
    await handle.cancel()
    async with create_worker(client, task_queue, shop):
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert await run_status(handle) == WorkflowExecutionStatus.CANCELED
    assert "charge_payment" not in shop.calls
    assert (await told(handle))[-1] == ("cancelled", "CANCELED")


async def test_temporal_cancellation_spares_the_undoing(client: Client, task_queue: str) -> None:
    """Temporal's cancellation, even asked twice, never stops an undoing half-way; the first reason stays."""
    shop = Shop(ship=[final()], hold="refund_payment")
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue)
        await shop.held.wait()
        await handle.cancel()
        await recorded(handle, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
        await handle.cancel()
        await handle.query("status")
        shop.let_go.set()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert await run_status(handle) == WorkflowExecutionStatus.CANCELED
    assert shop.calls == up_to("ship")
    assert (await told(handle))[-1] == ("cancelled", "ship_failed")


async def test_search_attribute_follows(client: Client, task_queue: str) -> None:
    """A run that was started with `OrderStatus` keeps it up to date."""
    given = TypedSearchAttributes([SearchAttributePair(ORDER_STATUS, "pending")])
    async with create_worker(client, task_queue):
        handle = await start(client, task_queue, order(**DECLINED), search_attributes=given)
        await handle.result()
    values = [
        json.loads(event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields[name].data)
        for event in await events_of(handle)
        for name in event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
    ]
    assert values == [["confirmed"], ["cancelled"]] or values == ["confirmed", "cancelled"]
    assert (await handle.describe()).typed_search_attributes[ORDER_STATUS] == "cancelled"


async def test_search_attribute_left_alone(client: Client, task_queue: str) -> None:
    """A run that was started without `OrderStatus`, as where the namespace does not know it, does not touch it."""
    async with create_worker(client, task_queue):
        handle = await start(client, task_queue)
        await handle.result()
    types = [event.event_type for event in await events_of(handle)]
    assert EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES not in types


async def test_money_is_exact(client: Client, task_queue: str) -> None:
    """A price comes to the payment with all the digits it was sent with."""
    text = msgspec.json.encode(order(items=[{"id": "1", "quantity": 3, "unit_price": 1}])).decode()
    prices = ["0.100000", "999999999999.999999", "0.000001", "1e2"]
    shop = Shop()
    async with create_worker(client, task_queue, shop):
        for price in prices:
            argument = msgspec.Raw(text.replace('"unit_price":1', f'"unit_price":{price}').encode())
            await (await start(client, task_queue, argument)).result()
            charged = shop.orders["charge_payment"]
            assert str(charged.items[0].unit_price) == str(Decimal(price))
            assert charged.total == 3 * Decimal(price)


async def test_payment_details_go_to_the_payment_only(
    client: Client, task_queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Payment details lie in the workflow's input and the charge's, and nowhere else: no event, failure or log."""
    caplog.set_level(logging.DEBUG)
    secret = {"card_token": "tok_declined", "number": "4242-secret"}
    shop = Shop(release_inventory=[passing()])
    async with create_worker(client, task_queue, shop):
        handle = await start(client, task_queue, order(payment_details=secret))
        await handle.result()
    assert shop.orders["charge_payment"].payment_details == secret
    holders = [
        event.activity_task_scheduled_event_attributes.activity_type.name or EventType.Name(event.event_type)
        for event in await events_of(handle)
        if b"4242-secret" in event.SerializeToString()
    ]
    assert holders == ["EVENT_TYPE_WORKFLOW_EXECUTION_STARTED", "charge_payment"]
    assert "4242-secret" not in repr(shop.orders["charge_payment"])
    assert "charge_payment: order" in caplog.text
    assert "4242-secret" not in caplog.text


@pytest.mark.parametrize(
    "argument",
    [
        "not an order",
        {"id": "1"},
        order(items=[{"id": "1", "quantity": "4242-secret", "unit_price": 1}]),
        order(items=[{"id": "1", "quantity": 1, "unit_price": "4242-secret"}]),
        order(payment_details="4242-secret"),
    ],
)
async def test_unreadable_order_fails(client: Client, task_queue: str, argument: object) -> None:
    """What is not an order fails its run at once, without telling any of it, and does not occupy workers for ever."""
    async with create_worker(client, task_queue):
        handle = await start(client, task_queue, argument)
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert await run_status(handle) == WorkflowExecutionStatus.FAILED
    *_, last = (await handle.fetch_history()).events
    assert "4242-secret" not in MessageToJson(last)


@pytest.mark.parametrize("pace", [-1.0, 10.0])
async def test_pace_within_the_timeout(pace: float) -> None:
    """Stand-ins that would never get a step done in time are refused."""
    with pytest.raises(ValueError, match="a step takes less than 10 seconds"):
        StandIns(pace_seconds=pace)


@pytest.mark.parametrize("name", HISTORIES)
async def test_replays_recorded_histories(name: str) -> None:
    """Orders that run in production survive this code: a change that breaks these needs `workflow.patched`.

    A history is `(await handle.fetch_history()).to_json()`. Add one for every new way an order goes; never change one.
    """
    history = WorkflowHistory.from_json(name, HISTORIES[name])
    await Replayer(workflows=[OrderProcessing], data_converter=DATA_CONVERTER).replay_workflow(history)
