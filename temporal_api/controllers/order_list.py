"""Whose orders there are: the caller's own, or for an operator everyone's."""

import asyncio
import logging
from typing import Annotated

import msgspec
from litestar import Controller, get
from litestar.datastructures import State
from litestar.params import QueryParameter
from temporalio.api.workflow.v1 import WorkflowExecutionInfo

from temporal_api.auth import CurrentUser
from temporal_api.controllers.order_runs import ADMIN, WORKFLOW_TYPE, OrderResponse, OrderStatus, order_of
from temporal_api.errors import Problem, responses
from temporal_api.temporal import STATUS, Temporal, TemporalClient
from temporal_api.temporal.visibility import equal, findable, listed

log = logging.getLogger(__name__)


class OrderListResponse(msgspec.Struct):
    """A page of orders, eventually consistent; `next_page_token` is null on the last one."""

    items: list[OrderResponse]
    next_page_token: str | None


# A run that ended without a word is cancelled, or delivered, whatever its search attribute still says.
_STATUS_QUERY = {
    "delivered": "(OrderStatus = 'delivered' OR (ExecutionStatus = 'Completed' AND OrderStatus != 'cancelled'))",
    "cancelled": "(OrderStatus = 'cancelled' OR ExecutionStatus IN ('Failed', 'Canceled', 'Terminated', 'TimedOut'))",
}


class OrderListController(Controller):
    """Find orders."""

    path = "/orders"
    tags = ["orders"]  # noqa: RUF012 - Litestar's way

    @get(
        scope=("orders:read", ADMIN),
        operation_id="listOrders",
        summary="The caller's orders",
        responses=responses("invalid_page_token", "search_attributes_missing"),
    )
    async def list_orders(
        self,
        state: State,
        user: CurrentUser,
        temporal: TemporalClient,
        status: Annotated[OrderStatus | None, QueryParameter(description="Only those with this status.")] = None,
        owner: Annotated[
            str | None, QueryParameter(description="With `orders:admin`, whose; without it, everyone's.")
        ] = None,
        page_size: Annotated[int, QueryParameter(ge=1, le=1000, description="Orders a page, at most.")] = 100,
        page_token: Annotated[str, QueryParameter(description="`next_page_token` of the page before.")] = "",
    ) -> OrderListResponse:
        """Running ones, newest first, then closed ones, last closed first. An operator sees everyone's."""
        whose = owner if ADMIN in user.scopes else user.sub
        terms = [equal("WorkflowType", WORKFLOW_TYPE), "OrderOwner IS NOT NULL"]
        terms += [equal("OrderOwner", findable(whose))] if whose is not None else []
        if status is not None:
            terms.append(_STATUS_QUERY.get(status) or f"OrderStatus = '{status}' AND ExecutionStatus = 'Running'")
        query = " AND ".join(terms)
        token = state.page_tokens.unseal(page_token, "orders", query)
        try:
            page = await listed(temporal, query, page_size, token)
        except Problem as problem:
            if problem.code != "invalid_query":
                raise
            message = "The namespace lacks the search attributes of orders: its operators run temporal-api setup."
            raise Problem("search_attributes_missing", message) from None
        found = await asyncio.gather(*(_listable(temporal, run) for run in page.executions))
        return OrderListResponse(
            [order for order, owner in filter(None, found) if whose in (None, owner)],
            state.page_tokens.seal(page.next_page_token, "orders", query),
        )


async def _listable(temporal: Temporal, run: WorkflowExecutionInfo) -> tuple[OrderResponse, str] | None:
    """One order whose key is gone must not hide all the others; one that was reset goes on in another run."""
    try:
        if STATUS[run.status] == "TERMINATED":
            described = await temporal.describe(run.execution.workflow_id, run.execution.run_id)
            if described.workflow_extended_info.reset_run_id:
                return None
        return await order_of(temporal, run)
    except Problem as problem:
        if problem.code == "workflow_not_found":  # deleted, and the index does not know it yet
            return None
        if problem.code != "payload_undecodable":
            raise
        log.warning("order %s is left out of a list: %s", run.execution.workflow_id, problem.message)
        return None
