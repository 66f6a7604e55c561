"""Order processing: reserve inventory, charge the payment, ship, deliver; undone in reverse when that cannot be done.

The order's status is kept where it can be read without a worker: in the memo `temporal_api.status`, and in the search
attribute `OrderStatus` of a run that was started with it. A status never runs ahead of what has happened.

How an order ends as `cancelled`, with its `reason`:
- A step refuses (`REFUSALS`): it did nothing, the steps before it are undone.
- A step fails for good: whether it did anything is unknown, so it is undone too.
- The signal `cancel`, until the order is shipped. No further step begins; the attempt under way is finished but not
  repeated, and its step is undone with the others. `ship` is no exception: a parcel handed over meanwhile is recalled,
  so who reads `processing` and cancels is not too late because shipping has begun. Too late is only what reaches the
  workflow after it has recorded `shipped` (a cancel that crosses with that very record included): it is ignored.
- Temporal's own cancellation, an operator's word: likewise, but at any time before the run closes, shipped or not.
The status becomes `cancelled` when all is undone. Undoing is tried until it works: leave a run hours to live. One that
exceeds its execution timeout is ended by Temporal without asking the workflow, and then nothing is undone.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy, SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import msgspec

TASK_QUEUE = "temporal-product-queue"
STATUS_MEMO = "temporal_api.status"
ORDER_STATUS = SearchAttributeKey.for_keyword("OrderStatus")

REFUSALS = {"OutOfStock": "out_of_stock", "PaymentDeclined": "payment_declined"}
"""The failures by which a step says no, having done nothing: an `ApplicationError`'s type, and the order's reason."""

ATTEMPT_TIMEOUT = timedelta(seconds=10)
"""What one attempt of a step may take; a worker lost in the middle of one is noticed after it."""
# Attempts are counted, not time: an order that waits for a worker to come back is not given up.
STEP_RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=250),
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=10,
    non_retryable_error_types=list(REFUSALS),
)
UNDO_RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=250), maximum_interval=timedelta(minutes=1))

Status = Literal["pending", "confirmed", "processing", "shipped", "delivered", "cancelled"]


class OrderItem(msgspec.Struct, frozen=True):
    """One line of an order."""

    id: str
    quantity: int
    unit_price: Decimal
    name: str = ""
    sku: str = ""


class Order(msgspec.Struct, frozen=True):
    """The workflow's argument; fields that it does not know are ignored."""

    id: str
    customer_id: str
    items: list[OrderItem]
    shipping_address: dict[str, str]
    payment_method: str
    payment_details: dict[str, Any]

    def __repr__(self) -> str:
        """Tell the id only: payment details reach no log and no failure message."""
        return f"Order({self.id!r})"

    @property
    def total(self) -> Decimal:
        """What is to be paid, exactly."""
        return sum((item.quantity * item.unit_price for item in self.items), Decimal())


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The workflow's result."""

    order_id: str
    status: Status
    reason: str | None = None


def refusal(kind: str, message: str) -> ApplicationError:
    """A step's no, one of `REFUSALS`: final, and an answer rather than an error to be logged."""
    return ApplicationError(message, type=kind, non_retryable=True, category=ApplicationErrorCategory.BENIGN)


class StandIns:
    """Replace me: your inventory, your payment provider and your carrier go here, one activity for each thing they do.

    Every activity may run more than once for the same order (a retry, a worker lost before it could report): make it
    idempotent by `order.id`, say as the provider's idempotency key. An undo must also be content with nothing to undo.
    Only `charge_payment` is given the payment details; keep them out of logs and exceptions.

    These pretend: each takes `pace_seconds`, sku `OUT-OF-STOCK` is never there, card token `tok_declined` is declined.
    """

    def __init__(self, pace_seconds: float = 0.0) -> None:
        if not 0 <= pace_seconds < ATTEMPT_TIMEOUT.total_seconds():
            raise ValueError(f"a step takes less than {ATTEMPT_TIMEOUT.total_seconds():g} seconds")
        self.pace_seconds = pace_seconds

    async def pretend(self, step: str, order: Order) -> None:
        """Do the step's work, or rather don't: the one place where a test can look, wait or fail."""
        activity.logger.info("%s: order %s", step, order.id)
        await asyncio.sleep(self.pace_seconds)

    @activity.defn
    async def reserve_inventory(self, order: Order) -> None:
        """Set the items aside, or refuse with `OutOfStock`."""
        await self.pretend("reserve_inventory", order)
        if any(item.sku == "OUT-OF-STOCK" for item in order.items):
            raise refusal("OutOfStock", "an item is out of stock")

    @activity.defn
    async def release_inventory(self, order: Order) -> None:
        """Undo `reserve_inventory`."""
        await self.pretend("release_inventory", order)

    @activity.defn
    async def charge_payment(self, order: Order) -> None:
        """Charge `order.total`, or refuse with `PaymentDeclined`."""
        await self.pretend("charge_payment", order)
        if order.payment_details.get("card_token") == "tok_declined":
            raise refusal("PaymentDeclined", "the payment was declined")

    @activity.defn
    async def refund_payment(self, order: Order) -> None:
        """Undo `charge_payment`."""
        await self.pretend("refund_payment", order)

    @activity.defn
    async def ship(self, order: Order) -> None:
        """Hand the parcel to the carrier."""
        await self.pretend("ship", order)

    @activity.defn
    async def recall_shipment(self, order: Order) -> None:
        """Undo `ship`."""
        await self.pretend("recall_shipment", order)

    @activity.defn
    async def deliver(self, order: Order) -> None:
        """Return when the carrier has delivered the parcel."""
        await self.pretend("deliver", order)


class Step(NamedTuple):
    """What is done, what undoes it, and the order's status once it is done."""

    do: Callable[[StandIns, Order], Awaitable[None]]
    undo: Callable[[StandIns, Order], Awaitable[None]] | None
    status: Status


STEPS = (
    Step(StandIns.reserve_inventory, StandIns.release_inventory, "confirmed"),
    Step(StandIns.charge_payment, StandIns.refund_payment, "processing"),
    Step(StandIns.ship, StandIns.recall_shipment, "shipped"),
    Step(StandIns.deliver, None, "delivered"),
)


# An order that cannot be read fails its run at once, instead of a workflow task for ever.
@workflow.defn(name="order_processing", failure_exception_types=[msgspec.DecodeError])
class OrderProcessing:
    """One order, from pending to delivered or cancelled."""

    def __init__(self) -> None:
        self._status: Status = "pending"
        self._reason: str | None = None
        self._stop: str | None = None
        """Why the order is to be cancelled, from the moment it is."""

    @workflow.run
    async def run(self, order: Order) -> Outcome:
        """Process the order; Temporal's cancellation is heeded, but never tears a step or its undoing apart."""
        work = asyncio.create_task(self._process(order))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The run's status, as the API tells the reason of a run that ended without its workflow's doing.
            self._stop = self._stop or "CANCELED"
            await work
            raise

    @workflow.signal
    def cancel(self, *request: Any) -> None:
        """Cancel the order unless it is shipped; `{"reason": ...}` is welcome, anything else will do."""
        if self._stop is not None or self._status in ("shipped", "delivered"):
            return
        match request:
            case ({"reason": str(reason)}, *_) if reason.strip():
                self._stop = reason[:500]
            case _:
                self._stop = "customer_request"

    @workflow.query
    def status(self) -> dict[str, str | None]:
        """The status, and the reason of a cancelled order: what the memo says."""
        return {"status": self._status, "reason": self._reason}

    async def _process(self, order: Order) -> Outcome:
        without_payment = msgspec.structs.replace(order, payment_details={})
        begun: list[Step] = []
        for step in STEPS:
            argument = order if step.do is StandIns.charge_payment else without_payment
            if self._stop is None and await self._do(step, argument):
                begun.append(step)
            if self._stop is not None:
                await self._undo(begun, without_payment)
                break
            self._tell(step.status)
        return Outcome(order.id, self._status, self._reason)

    async def _do(self, step: Step, order: Order) -> bool:
        """Do a step, and say whether there may be anything to undo; one that fails for good stops the order."""
        work = workflow.start_activity_method(
            step.do,
            order,
            start_to_close_timeout=ATTEMPT_TIMEOUT,
            retry_policy=STEP_RETRY,
            # Cancelled is what has not begun and what would be repeated; an attempt under way is waited for.
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        await workflow.wait_condition(lambda: work.done() or self._stop is not None)
        work.cancel()
        try:
            await work
        except ActivityError as error:
            refused = REFUSALS.get(error.cause.type or "") if isinstance(error.cause, ApplicationError) else None
            self._stop = self._stop or refused or f"{error.activity_type}_failed"
            return refused is None
        return True

    async def _undo(self, begun: list[Step], order: Order) -> None:
        failed = []
        for step in reversed(begun):
            if step.undo is not None:
                try:
                    await workflow.execute_activity_method(
                        step.undo, order, start_to_close_timeout=ATTEMPT_TIMEOUT, retry_policy=UNDO_RETRY
                    )
                except ActivityError as error:  # The activity itself said: do not retry. The others are still undone.
                    failed.append(error.activity_type)
        self._tell("cancelled", self._stop)
        if failed:  # The run fails: someone has to look.
            raise ApplicationError(f"not undone: {', '.join(failed)}", type="UndoFailed")

    def _tell(self, status: Status, reason: str | None = None) -> None:
        self._status, self._reason = status, reason
        workflow.upsert_memo({STATUS_MEMO: {"status": status, "reason": reason}})
        # One that the namespace does not know fails the workflow task for ever; one that the run has, it knows.
        if workflow.info().typed_search_attributes.get(ORDER_STATUS) is not None:
            workflow.upsert_search_attributes([ORDER_STATUS.value_set(status)])


def create_worker(client: Client, task_queue: str, activities: StandIns | None = None) -> Worker:
    """A worker for orders, to be run by `async with` or its `run()`; the client needs `temporal.DATA_CONVERTER`."""
    does = activities or StandIns()
    named = [work.__name__ for step in STEPS for work in (step.do, step.undo) if work is not None]
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[OrderProcessing],
        activities=[getattr(does, name) for name in named],
        graceful_shutdown_timeout=timedelta(seconds=5),
    )
