"""Order processing: reserve inventory, charge the payment, ship, deliver. A saga: cancelling undoes it in reverse.

The order's status can be read without a worker: it is in the memo `temporal_api.status`, and in the search attribute
`OrderStatus` of a run that was started with it. The status never says more than what has happened.

An order is cancelled, with a `reason`, when
- a step refuses (`REFUSALS`). The step did nothing; the steps before it are undone.
- a step fails for good. It may have done something, so it is undone too.
- the signal `cancel` comes before the order is shipped. No further step begins. An attempt under way may finish, is not
  repeated, and its step is undone with the others. That includes `ship`: a parcel that was handed over meanwhile is
  recalled. A signal that reaches the workflow after it has recorded `shipped` is ignored.
- Temporal cancels the run, at any time before it closes, shipped or not.
The status becomes `cancelled` once everything is undone. Each undo is tried until it works, so give a run hours. At its
execution timeout Temporal ends a run without asking the workflow, and nothing is undone.
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
"""How a step refuses without having done anything: the type of its `ApplicationError`, and the order's reason."""

ATTEMPT_TIMEOUT = timedelta(seconds=10)
"""The time of one attempt of a step. After it, Temporal notices a worker that was lost during the attempt."""
# Limit the attempts, not the time: an order waits until its workers come back.
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
    """The workflow's argument. Unknown fields are ignored."""

    id: str
    customer_id: str
    items: list[OrderItem]
    shipping_address: dict[str, str]
    payment_method: str
    payment_details: dict[str, Any]

    def __repr__(self) -> str:
        """Show the id only: payment details must reach no log and no failure message."""
        return f"Order({self.id!r})"

    @property
    def total(self) -> Decimal:
        """The exact sum to pay."""
        return sum((item.quantity * item.unit_price for item in self.items), Decimal())


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The workflow's result."""

    order_id: str
    status: Status
    reason: str | None = None


def refusal(kind: str, message: str) -> ApplicationError:
    """Make the refusal of a step, one of `REFUSALS`. It is not retried, and not logged as an error."""
    return ApplicationError(message, type=kind, non_retryable=True, category=ApplicationErrorCategory.BENIGN)


class StandIns:
    """Replace me with your inventory, your payment provider and your carrier: one activity for each thing they do.

    An activity may run more than once for an order: it is retried, or its worker is lost before it could report. Make
    it idempotent by `order.id`, for example as the provider's idempotency key. An undo may find nothing to undo. Only
    `charge_payment` gets the payment details: keep them out of logs and exceptions.

    These only pretend. Each takes `pace_seconds`. The sku `OUT-OF-STOCK` and the card token `tok_declined` are refused.
    """

    def __init__(self, pace_seconds: float = 0.0) -> None:
        if not 0 <= pace_seconds < ATTEMPT_TIMEOUT.total_seconds():
            raise ValueError(f"a step takes less than {ATTEMPT_TIMEOUT.total_seconds():g} seconds")
        self.pace_seconds = pace_seconds

    async def pretend(self, step: str, order: Order) -> None:
        """Stand in for the step's work. Tests override this to watch, wait or fail."""
        activity.logger.info("%s: order %s", step, order.id)
        await asyncio.sleep(self.pace_seconds)

    @activity.defn
    async def reserve_inventory(self, order: Order) -> None:
        """Reserve the items, or refuse with `OutOfStock`."""
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
        """Return once the carrier has delivered the parcel."""
        await self.pretend("deliver", order)


class Step(NamedTuple):
    """An activity, the one that undoes it, and the order's status once it is done."""

    do: Callable[[StandIns, Order], Awaitable[None]]
    undo: Callable[[StandIns, Order], Awaitable[None]] | None
    status: Status


STEPS = (
    Step(StandIns.reserve_inventory, StandIns.release_inventory, "confirmed"),
    Step(StandIns.charge_payment, StandIns.refund_payment, "processing"),
    Step(StandIns.ship, StandIns.recall_shipment, "shipped"),
    Step(StandIns.deliver, None, "delivered"),
)


# An argument that is no order fails the run at once, instead of its workflow task for ever.
@workflow.defn(name="order_processing", failure_exception_types=[msgspec.DecodeError])
class OrderProcessing:
    """Processes one order, from pending to delivered or cancelled."""

    def __init__(self) -> None:
        self._status: Status = "pending"
        self._reason: str | None = None
        self._stop: str | None = None
        """Why the order is being cancelled; None while it is not."""

    @workflow.run
    async def run(self, order: Order) -> Outcome:
        """Process the order. Temporal's cancellation never interrupts a step or an undo."""
        work = asyncio.create_task(self._process(order))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The run's status: the API gives the same reason for a run that Temporal itself ended.
            self._stop = self._stop or "CANCELED"
            await work
            raise

    @workflow.signal
    def cancel(self, *request: Any) -> None:
        """Cancel the order unless it is shipped. Takes `{"reason": ...}`, or anything else."""
        if self._stop is not None or self._status in ("shipped", "delivered"):
            return
        match request:
            case ({"reason": str(reason)}, *_) if reason.strip():
                self._stop = reason[:500]
            case _:
                self._stop = "customer_request"

    @workflow.query
    def status(self) -> dict[str, str | None]:
        """Tell the status and the reason, as the memo does."""
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
            self._set_status(step.status)
        return Outcome(order.id, self._status, self._reason)

    async def _do(self, step: Step, order: Order) -> bool:
        """Do a step; return whether there may be something to undo. A step that fails for good stops the order."""
        work = workflow.start_activity_method(
            step.do,
            order,
            start_to_close_timeout=ATTEMPT_TIMEOUT,
            retry_policy=STEP_RETRY,
            # Cancelling stops an attempt that has not begun and further ones; an attempt under way may finish.
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
                except ActivityError as error:  # not to be retried: the others are still undone
                    failed.append(error.activity_type)
        self._set_status("cancelled", self._stop)
        if failed:  # fail the run, so that somebody looks
            raise ApplicationError(f"not undone: {', '.join(failed)}", type="UndoFailed")

    def _set_status(self, status: Status, reason: str | None = None) -> None:
        self._status, self._reason = status, reason
        workflow.upsert_memo({STATUS_MEMO: {"status": status, "reason": reason}})
        # A search attribute that the namespace lacks would fail the workflow task for ever: set one that the run has.
        if workflow.info().typed_search_attributes.get(ORDER_STATUS) is not None:
            workflow.upsert_search_attributes([ORDER_STATUS.value_set(status)])


def create_worker(client: Client, task_queue: str, activities: StandIns | None = None) -> Worker:
    """Make a worker for orders; run it with `async with` or `run()`. The client needs `payloads.data_converter`."""
    activities = activities or StandIns()
    methods = [work for step in STEPS for work in (step.do, step.undo) if work is not None]
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[OrderProcessing],
        activities=[getattr(activities, method.__name__) for method in methods],
        graceful_shutdown_timeout=timedelta(seconds=5),
    )
