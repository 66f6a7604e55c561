"""What a run tells of an order: its memo while it goes on, its status when it ended without a word.

Everything an answer needs lies there, so it is right with no worker up, and after the end.
"""

import functools
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from temporalio.api.workflow.v1 import WorkflowExecutionInfo

from temporal_api import errors
from temporal_api.auth import User
from temporal_api.controllers.workflows.addressing import RESERVED
from temporal_api.errors import Problem, invalid
from temporal_api.temporal import COMPLETED, STATUS, Temporal, is_open
from temporal_api.temporal.history import CLOSING, Feeds, patient
from temporal_api.waiting import sse

WORKFLOW_TYPE = "order_processing"
ID_PREFIX = "order-"
ADMIN = "orders:admin"
ORDER_MEMO = "temporal_api.order"
STATUS_MEMO = "temporal_api.status"

# What else of the service has to know of this resource.
errors.STATUS.update(order_not_found=404, order_not_cancellable=409)
RESERVED[ID_PREFIX] = ADMIN

OrderStatus = Literal["pending", "confirmed", "processing", "shipped", "delivered", "cancelled"]
_ID = "0b9f3c1e-5d3c-4c56-9d0a-1f2f6b8f7a55"


class OrderResponse(msgspec.Struct, omit_defaults=True):
    """An order as it is now. `total_amount` is an exact decimal string; `reason` tells why it was cancelled."""

    id: Annotated[str, Meta(examples=[_ID])]
    customer_id: Annotated[str, Meta(examples=["cust_123"])]
    status: Annotated[OrderStatus, Meta(examples=["pending"])]
    total_amount: Annotated[str, Meta(pattern=r"^\d+(\.\d+)?$", examples=["39.98"])]
    created_at: Annotated[datetime, Meta(tz=True, examples=["2026-01-31T12:00:00.123456Z"])]
    workflow_id: Annotated[str, Meta(examples=[ID_PREFIX + _ID])]
    reason: str | None = None


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


PENDING = StatusMemo("pending")


async def order_of(temporal: Temporal, run: WorkflowExecutionInfo) -> tuple[OrderResponse, str] | None:
    """The order and its owner; None when the run is no order of this service."""
    order: OrderMemo | None = await temporal.memo(run.memo, ORDER_MEMO, OrderMemo)
    if order is None:
        return None
    kept = await _kept(temporal, run)
    now, workflow_id = _unsaid(run, kept) or kept, run.execution.workflow_id
    order_id = workflow_id.removeprefix(ID_PREFIX)
    return (
        OrderResponse(
            order_id, order.customer_id, now.status, order.total_amount, order.created_at, workflow_id, now.reason
        ),
        order.owner,
    )


async def read_order(temporal: Temporal, user: User, order_id: str) -> tuple[OrderResponse, WorkflowExecutionInfo]:
    """The order and its run, or `order_not_found`: another caller's order does not exist."""
    missing = Problem("order_not_found", f"There is no order {order_id!r}.")
    try:
        run = (await temporal.describe(ID_PREFIX + order_id)).workflow_execution_info
    except Problem as problem:
        # An id that Temporal does not take is the id of no order.
        raise missing if problem.status in (400, 404) else problem from None
    match await order_of(temporal, run):
        case (order, owner) if owner == user.sub or ADMIN in user.scopes:
            return order, run
    raise missing


async def _kept(temporal: Temporal, run: WorkflowExecutionInfo) -> StatusMemo:
    return await temporal.memo(run.memo, STATUS_MEMO, StatusMemo) or PENDING


def _unsaid(run: WorkflowExecutionInfo, kept: StatusMemo) -> StatusMemo | None:
    """How an order ended whose run did not say so: terminated, timed out, or of a worker that keeps no memo."""
    if is_open(run) or kept.status in ("delivered", "cancelled"):
        return None
    return StatusMemo("delivered") if run.status == COMPLETED else StatusMemo("cancelled", STATUS[run.status])


async def watched_run(temporal: Temporal, run: WorkflowExecutionInfo, run_id: str, seen: int) -> WorkflowExecutionInfo:
    """The order's run that a watcher was at, which is an earlier one when an operator has reset it. Raises Problem."""
    forged = invalid("Last-Event-ID", "Expected the id of an event of this order")
    if run_id not in ("", run.execution.run_id):
        try:
            run = (await temporal.describe(run.execution.workflow_id, run_id)).workflow_execution_info
        except Problem as problem:
            raise forged if problem.status in (400, 404) else problem from None
    if seen > run.history_length:
        raise forged
    return run


async def status_events(
    temporal: Temporal, feeds: Feeds, run: WorkflowExecutionInfo, seen: int
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: the statuses that the workflow keeps in its memo, as its history tells them, then `done`.

    An order that an operator has reset goes on in another run, from an earlier status.
    """
    workflow_id, run_id, length = run.execution.workflow_id, run.execution.run_id, run.history_length
    while True:
        closing = ""
        async for events in feeds.events(workflow_id, run_id, seen, length):
            for event in events:
                started = event.workflow_execution_started_event_attributes
                changed = event.workflow_properties_modified_event_attributes
                memo = changed.upserted_memo if changed.HasField("upserted_memo") else started.memo
                now: StatusMemo | None = await temporal.memo(memo, STATUS_MEMO, StatusMemo)
                event_id = f"{run_id}:{event.event_id}"
                if now is not None:
                    yield sse(now, event="status", event_id=event_id)
                if event.event_type in CLOSING:
                    closing = event_id
        ended = await patient(functools.partial(temporal.describe, workflow_id, run_id))
        if not ended.workflow_extended_info.reset_run_id:
            break
        run_id, seen, length = ended.workflow_extended_info.reset_run_id, 0, 0
    run = ended.workflow_execution_info
    if closing and (now := _unsaid(run, await _kept(temporal, run))) is not None:
        yield sse(now, event="status", event_id=closing)
    yield sse({"workflow_id": workflow_id}, event="done")
