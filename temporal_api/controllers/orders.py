"""Orders: the worked business resource. An order is a run of `order_processing`; Temporal keeps all there is of it.

Everything an answer needs lies in the run's memo, so it is right with no worker up and after the end. Payment details
go into the workflow's input and nowhere else: no answer, memo, log line or search attribute holds them.
"""

import re
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, get, post
from litestar.datastructures import State
from litestar.params import JSONBody, PathParameter
from msgspec import Meta, Raw
from temporalio.api.enums.v1 import WorkflowIdReusePolicy

from temporal_api import idempotency
from temporal_api.auth import CurrentUser, User
from temporal_api.errors import Problem, responses
from temporal_api.idempotency import REPLAYED, IdempotencyKey, check_key, check_same, derived_id, fingerprint
from temporal_api.requests import JSONResponse
from temporal_api.temporal import COMPLETED, RUNNING, STATUS, TemporalClient, seconds_between

WORKFLOW_TYPE = "order_processing"
ID_PREFIX = "order-"
ADMIN = "orders:admin"
MAX_PRICE = 10**12

OrderStatus = Literal["pending", "confirmed", "processing", "shipped", "delivered", "cancelled"]
NonEmpty = Annotated[str, Meta(min_length=1, max_length=1000)]
OrderId = Annotated[str, PathParameter(description="The order's `id`.")]
_ID = "0b9f3c1e-5d3c-4c56-9d0a-1f2f6b8f7a55"

# A JSON number or a plain decimal string; what is captured is the number's own digits.
_PRICE = re.compile(r'"0*(\d+(?:\.\d+)?)"|(\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)', re.ASCII)
_PRICE_SCHEMA = {
    "type": ["number", "string"],
    "minimum": 0,
    "maximum": MAX_PRICE,
    "pattern": r"^\d+(\.\d{1,6})?$",
    "examples": [19.99, "19.99"],
}


class OrderItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One line of an order. `unit_price`: a JSON number or plain decimal string, 0 to 10^12, at most 6 decimals."""

    id: Annotated[NonEmpty, Meta(examples=["item_1"])]
    name: Annotated[str, Meta(max_length=1000, examples=["Mug"])] = ""
    sku: Annotated[str, Meta(max_length=1000, examples=["MUG-1"])] = ""
    quantity: Annotated[int, Meta(ge=1, le=1_000_000, examples=[2])]
    unit_price: Annotated[Raw, Meta(extra_json_schema=_PRICE_SCHEMA)]

    def __post_init__(self) -> None:
        """Check the price, and keep it as the caller's own digits, a JSON number: float never sees it."""
        text = bytes(self.unit_price).decode()
        # The pattern backtracks: megabytes of zeros would hold up everyone. No price is as long as this.
        digits = _PRICE.fullmatch(text) if len(text) <= 64 else None
        if digits is None:
            raise ValueError("unit_price: Expected a price from 0 to 10^12, such as 19.99")
        self.unit_price = Raw((digits[1] or digits[2]).encode())
        price = self.price
        if price.adjusted() > 12 or price > MAX_PRICE:
            raise ValueError("unit_price: Expected a price from 0 to 10^12")
        if int(price.as_tuple().exponent) < -6:
            raise ValueError("unit_price: Expected at most 6 decimals")

    @property
    def price(self) -> Decimal:
        """The price, exact."""
        return Decimal(bytes(self.unit_price).decode())


class CreateOrderRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An order as the caller places it."""

    customer_id: Annotated[NonEmpty, Meta(examples=["cust_123"])]
    items: Annotated[list[OrderItem], Meta(min_length=1, max_length=1000)]
    shipping_address: Annotated[dict[str, str], Meta(examples=[{"street": "1 Main Street", "city": "Springfield"}])]
    payment_method: Annotated[NonEmpty, Meta(examples=["card"])]
    payment_details: Annotated[dict[str, Raw], Meta(examples=[{"card_token": "tok_visa"}])]


class CancelOrderRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Why an order is cancelled."""

    reason: Annotated[str, Meta(min_length=1, max_length=500, examples=["ordered twice"])] = "customer_request"


class OrderResponse(msgspec.Struct, omit_defaults=True):
    """An order as it is now. `total_amount` is an exact decimal string; `reason` tells why it was cancelled."""

    id: Annotated[str, Meta(examples=[_ID])]
    customer_id: Annotated[str, Meta(examples=["cust_123"])]
    status: Annotated[OrderStatus, Meta(examples=["pending"])]
    total_amount: Annotated[str, Meta(pattern=r"^\d+(\.\d+)?$", examples=["39.98"])]
    created_at: Annotated[datetime, Meta(tz=True, examples=["2026-01-31T12:00:00.123456Z"])]
    workflow_id: Annotated[str, Meta(examples=[ID_PREFIX + _ID])]
    reason: str | None = None


class OrderStatusResponse(msgspec.Struct):
    """An order with the state of its run; `execution_time_seconds` is null while it runs."""

    workflow_id: Annotated[str, Meta(examples=[ID_PREFIX + _ID])]
    run_id: Annotated[str, Meta(examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
    status: Annotated[str, Meta(examples=["RUNNING"])]
    result: Annotated[Raw, Meta(description="What the run gave back: any JSON; null while it runs.", examples=[None])]
    history_length: Annotated[int, Meta(examples=[11])]
    execution_time_seconds: Annotated[float | None, Meta(examples=[None])]
    order: OrderResponse


class OrderInput(msgspec.Struct):
    """What the workflow is started with."""

    id: str
    customer_id: str
    items: list[OrderItem]
    shipping_address: dict[str, str]
    payment_method: str
    payment_details: dict[str, Raw]


class OrderMemo(msgspec.Struct):
    """Memo `temporal_api.order`: what never changes of an order."""

    owner: str
    customer_id: str
    total_amount: str
    created_at: datetime


class StatusMemo(msgspec.Struct):
    """Memo `temporal_api.status`: written at the start, and by the workflow at every change."""

    status: OrderStatus
    reason: str | None = None


ORDER_MEMO = "temporal_api.order"
STATUS_MEMO = "temporal_api.status"
_PENDING = StatusMemo("pending")
_TOO_LATE = ("shipped", "delivered", "cancelled")


def _not_found(order_id: str) -> Problem:
    return Problem("order_not_found", f"There is no order {order_id!r}.")


async def _read(temporal: TemporalClient, user: User, order_id: str) -> tuple[OrderResponse, Any]:
    """The order and its run, or `order_not_found`: another caller's order does not exist."""
    workflow_id = ID_PREFIX + order_id
    try:
        run = (await temporal.describe(workflow_id)).workflow_execution_info
    except Problem as problem:
        # An id that Temporal does not take is the id of no order.
        raise _not_found(order_id) if problem.status in (400, 404) else problem from None
    order: OrderMemo | None = await temporal.memo(run.memo, ORDER_MEMO, OrderMemo)
    if order is None or not (order.owner == user.sub or ADMIN in user.scopes):
        raise _not_found(order_id)
    now: StatusMemo = await temporal.memo(run.memo, STATUS_MEMO, StatusMemo) or _PENDING
    if run.status != RUNNING and now.status not in ("delivered", "cancelled"):
        # The run ended without saying so: terminated, timed out, or a worker that keeps no memo.
        now = StatusMemo("delivered") if run.status == COMPLETED else StatusMemo("cancelled", STATUS[run.status])
    return (
        OrderResponse(
            order_id, order.customer_id, now.status, order.total_amount, order.created_at, workflow_id, now.reason
        ),
        run,
    )


class OrderController(Controller):
    """Place, watch and cancel orders."""

    path = "/orders"
    tags = ["orders"]  # noqa: RUF012 - Litestar's way

    @post(
        scope=("orders:write", ADMIN),
        operation_id="createOrder",
        summary="Place an order",
        responses=responses("workflow_start_error", "idempotency_key_reused", body=True),
    )
    async def create_order(
        self,
        request: Request[User, Any, Any],
        data: JSONBody[CreateOrderRequest],
        state: State,
        user: CurrentUser,
        temporal: TemporalClient,
        idempotency_key: IdempotencyKey = None,
    ) -> JSONResponse[OrderResponse]:
        """Start `order_processing` for it. The order goes on by itself; `Location` is where to look."""
        key = check_key(idempotency_key)
        order_id = derived_id("orders", user, key) if key else str(uuid.uuid4())
        workflow_id = ID_PREFIX + order_id
        request.scope["workflow_id"] = workflow_id  # type: ignore[typeddict-unknown-key] # for the access log
        # 1000 lines of at most 10^6 x 10^12 with 6 decimals fit into Decimal's 28 digits: the sum is exact.
        total = format(sum((item.quantity * item.price for item in data.items), Decimal("0.00")), "f")
        order = OrderMemo(user.sub, data.customer_id, total, datetime.now(UTC))
        memo = {ORDER_MEMO: order, STATUS_MEMO: _PENDING}
        start = await temporal.start_request(
            WORKFLOW_TYPE,
            workflow_id=workflow_id,
            task_queue=state.settings.orders_task_queue,
            args=[OrderInput(order_id, *msgspec.structs.astuple(data))],
            memo={**memo, idempotency.MEMO: fingerprint(key, data)} if key else memo,
            execution_timeout_seconds=state.settings.orders_execution_timeout_seconds,
        )
        start.workflow_id_reuse_policy = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
        headers = {"Location": f"/api/v1/orders/{order_id}"}
        try:
            await temporal.start(start, {"OrderOwner": user.sub, "OrderStatus": "pending"})
        except Problem as problem:
            if key is None or problem.code != "workflow_already_exists":
                raise
            placed, run = await _read(temporal, user, order_id)
            check_same(key, data, await temporal.memo(run.memo, idempotency.MEMO, str))
            return JSONResponse(placed, headers=headers | REPLAYED)
        return JSONResponse(
            OrderResponse(order_id, data.customer_id, "pending", total, order.created_at, workflow_id), headers=headers
        )

    @get(
        "/{order_id:str}",
        scope=("orders:read", ADMIN),
        operation_id="getOrder",
        summary="An order as it is now",
        responses=responses("order_not_found"),
    )
    async def get_order(self, order_id: OrderId, user: CurrentUser, temporal: TemporalClient) -> OrderStatusResponse:
        """Its status is the one that the workflow keeps, right while it runs and after its end."""
        order, run = await _read(temporal, user, order_id)
        seconds, event = None, None
        if run.status != RUNNING:
            seconds = seconds_between(run.start_time, run.close_time)
            event = await temporal.close_event(order.workflow_id, run.execution.run_id)
        result, _ = await temporal.outcome(event)
        return OrderStatusResponse(
            order.workflow_id, run.execution.run_id, STATUS[run.status], result, run.history_length, seconds, order
        )

    @post(
        "/{order_id:str}/cancel",
        scope=("orders:write", ADMIN),
        status_code=204,
        operation_id="cancelOrder",
        summary="Cancel an order",
        responses=responses("order_not_found", "order_not_cancellable", body=True),
    )
    async def cancel_order(
        self,
        order_id: OrderId,
        user: CurrentUser,
        temporal: TemporalClient,
        data: JSONBody[CancelOrderRequest | None] = None,
    ) -> None:
        """Asks the workflow, which undoes what was done. Too late (409) once shipped, delivered or closed."""
        order, run = await _read(temporal, user, order_id)
        if order.status in _TOO_LATE or run.status != RUNNING:
            raise _not_cancellable(order)
        try:
            await temporal.signal(order.workflow_id, run.execution.run_id, "cancel", [data or CancelOrderRequest()])
        except Problem as problem:
            if problem.code != "workflow_completed":
                raise
            # It closed just now; say how.
            order, _ = await _read(temporal, user, order_id)
            raise _not_cancellable(order) from None


def _not_cancellable(order: OrderResponse) -> Problem:
    return Problem(
        "order_not_cancellable",
        f"The order can no longer be cancelled: it is {order.status}.",
        workflow_id=order.workflow_id,
        status=order.status,
    )
