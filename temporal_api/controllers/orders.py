"""Orders: the worked business resource. An order is a run of `order_processing`; Temporal keeps all there is of it.

Payment details go into the workflow's input and nowhere else: no answer, memo, log line or search attribute holds them.
"""

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, get, post
from litestar.datastructures import State
from litestar.params import JSONBody, PathParameter
from msgspec import Meta, Raw
from temporalio.api.enums.v1 import WorkflowIdReusePolicy

from temporal_api import idempotency
from temporal_api.auth import CurrentUser, User
from temporal_api.controllers.order_runs import (
    ADMIN,
    ID_PREFIX,
    ORDER_MEMO,
    PENDING,
    STATUS_MEMO,
    WORKFLOW_TYPE,
    OrderMemo,
    OrderResponse,
    read_order,
    status_events,
    watched_run,
)
from temporal_api.errors import Problem, responses
from temporal_api.idempotency import REPLAYED, IdempotencyKey, check_key, check_same, derived_id, fingerprint
from temporal_api.money import Price, check_price, exact
from temporal_api.requests import NOT_MODIFIED, JSONResponse, unchanged
from temporal_api.temporal import STATUS, TemporalClient, is_open, seconds_between
from temporal_api.temporal.visibility import findable
from temporal_api.temporal.workflow import Workflow
from temporal_api.waiting import (
    EventStream,
    IfNoneMatch,
    LastEventId,
    Prefer,
    applied,
    awaited,
    etag,
    is_known,
    preferred_wait,
    resume,
)

NonEmpty = Annotated[str, Meta(min_length=1, max_length=1000)]
OrderId = Annotated[str, PathParameter(description="The order's `id`.")]
_ID = "0b9f3c1e-5d3c-4c56-9d0a-1f2f6b8f7a55"


class OrderItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One line of an order. `unit_price`: a JSON number or plain decimal string, 0 to 10^12, at most 6 decimals."""

    id: Annotated[NonEmpty, Meta(examples=["item_1"])]
    name: Annotated[str, Meta(max_length=1000, examples=["Mug"])] = ""
    sku: Annotated[str, Meta(max_length=1000, examples=["MUG-1"])] = ""
    quantity: Annotated[int, Meta(ge=1, le=1_000_000, examples=[2])]
    unit_price: Price

    def __post_init__(self) -> None:
        """Check the price, and keep the caller's own digits."""
        self.unit_price = check_price("unit_price", self.unit_price)


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


class OrderStatusResponse(msgspec.Struct):
    """An order with the state of its run; `execution_time_seconds` is null while it runs."""

    workflow_id: Annotated[str, Meta(examples=[ID_PREFIX + _ID])]
    run_id: Annotated[str, Meta(examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
    status: Annotated[str, Meta(examples=["RUNNING"])]
    result: Annotated[Raw, Meta(description="What the run gave back: any JSON; null while it runs.", examples=[None])]
    history_length: Annotated[int, Meta(examples=[11])]
    execution_time_seconds: Annotated[float | None, Meta(examples=[None])]
    order: OrderResponse


_TOO_LATE = ("shipped", "delivered", "cancelled")


class OrderController(Controller):
    """Place, watch and cancel orders."""

    path = "/orders"
    tags = ["orders"]  # noqa: RUF012 - Litestar's way
    opt = {"workflow_id_prefix": ID_PREFIX}  # noqa: RUF012 - for the access log

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
        total = format(sum((item.quantity * exact(item.unit_price) for item in data.items), Decimal("0.00")), "f")
        order = OrderMemo(user.sub, data.customer_id, total, datetime.now(UTC))
        memo = {ORDER_MEMO: order, STATUS_MEMO: PENDING}
        start = await temporal.start_request(
            WORKFLOW_TYPE,
            workflow_id=workflow_id,
            task_queue=state.settings.orders_task_queue,
            args=[{"id": order_id, **msgspec.structs.asdict(data)}],
            memo={**memo, idempotency.MEMO: fingerprint(key, data)} if key else memo,
            execution_timeout_seconds=state.settings.orders_execution_timeout_seconds,
        )
        start.workflow_id_reuse_policy = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
        headers = {"Location": f"/api/v1/orders/{order_id}"}
        try:
            await temporal.start(start, {"OrderOwner": findable(user.sub), "OrderStatus": "pending"})
        except Problem as problem:
            if key is None or problem.code != "workflow_already_exists":
                raise
            placed, run = await read_order(temporal, user, order_id)
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
        responses={304: NOT_MODIFIED, **responses("order_not_found", "too_many_waits")},
    )
    async def get_order(
        self,
        request: Request[User, Any, Any],
        order_id: OrderId,
        state: State,
        user: CurrentUser,
        temporal: TemporalClient,
        if_none_match: IfNoneMatch = None,
        prefer: Prefer = None,
    ) -> JSONResponse[OrderStatusResponse]:
        """Its status is the one that the workflow keeps, right while it runs and after its end.

        With `If-None-Match` it is a 304 while nothing changed; with `Prefer: wait` too, it answers when something does.
        """
        seconds = preferred_wait(request, state.settings.max_wait_seconds) if if_none_match else 0
        order, run = await read_order(temporal, user, order_id)
        if await awaited(request, run, seconds):
            order, run = await read_order(temporal, user, order_id)
        headers = {"ETag": etag(run), **applied(seconds)}
        if if_none_match and is_known(request, run):
            return unchanged(headers)
        lasted, result = None, Raw(b"null")
        if not is_open(run):
            lasted = seconds_between(run.start_time, run.close_time)
            result = (await state.endings.end(order.workflow_id, run.execution.run_id)).result
        status, run_id = STATUS[run.status], run.execution.run_id
        answer = OrderStatusResponse(order.workflow_id, run_id, status, result, run.history_length, lasted, order)
        return JSONResponse(answer, headers=headers)

    @get(
        "/{order_id:str}/events",
        scope=("orders:read", ADMIN),
        operation_id="streamOrderEvents",
        summary="An order's status, live",
        media_type="text/event-stream",
        responses=responses("order_not_found", "too_many_waits", "shutting_down"),
    )
    async def stream_order(
        self,
        order_id: OrderId,
        state: State,
        user: CurrentUser,
        temporal: TemporalClient,
        last_event_id: LastEventId = None,
    ) -> EventStream:
        """Server-sent events: `status` (`status`, `reason`) at each change, from the first one on, then `done`."""
        run_id, seen = resume(last_event_id)
        _, run = await read_order(temporal, user, order_id)
        run = await watched_run(temporal, run, run_id, seen)
        return EventStream(state.waits, status_events(temporal, state.feeds, run, seen), user.expires_at)

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
        order, run = await read_order(temporal, user, order_id)
        if order.status in _TOO_LATE:
            raise _not_cancellable(order)
        try:
            await Workflow(temporal, order.workflow_id, run.execution.run_id).signal(
                "cancel", [data or CancelOrderRequest()]
            )
        except Problem as problem:
            if problem.code != "workflow_completed":
                raise
            order, _ = await read_order(temporal, user, order_id)  # it closed just now: say how
            raise _not_cancellable(order) from None


def _not_cancellable(order: OrderResponse) -> Problem:
    return Problem(
        "order_not_cancellable",
        f"The order can no longer be cancelled: it is {order.status}.",
        workflow_id=order.workflow_id,
        status=order.status,
    )
