"""Orders: the example of a business resource. An order is a run of `order_processing`; Temporal holds all its data.

Payment details go only into the workflow's input: no answer, memo, log line or search attribute holds them.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

import msgspec
from litestar.params import JSONBody
from msgspec import Meta, Raw

from temporal_api.auth import APIRequest
from temporal_api.idempotency import IdempotencyKey
from temporal_api.money import Price, check_price, exact
from temporal_api.owned import EXAMPLE_ID, Resource, ResourceController
from temporal_api.requests import JSONResponse
from temporal_api.services import CurrentServices

Text = Annotated[str, Meta(max_length=1000)]
NonEmpty = Annotated[Text, Meta(min_length=1)]


class OrderItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One line of an order."""

    id: Annotated[NonEmpty, Meta(description="The line's id in your system.", examples=["item_1"])]
    name: Annotated[Text, Meta(description="The article's name.", examples=["Mug"])] = ""
    sku: Annotated[Text, Meta(description="The article's SKU.", examples=["MUG-1"])] = ""
    quantity: Annotated[int, Meta(ge=1, le=1_000_000, description="How many.", examples=[2])]
    unit_price: Price

    def __post_init__(self) -> None:
        self.unit_price = check_price("unit_price", self.unit_price)


class CreateOrderRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A new order."""

    customer_id: Annotated[NonEmpty, Meta(description="The customer's id in your system.", examples=["cust_123"])]
    items: Annotated[list[OrderItem], Meta(min_length=1, max_length=1000, description="The lines of the order.")]
    shipping_address: Annotated[
        dict[Text, Text],
        Meta(
            max_length=100,
            description="The address, in fields of your choice.",
            examples=[{"street": "1 Main Street", "city": "Springfield"}],
        ),
    ]
    payment_method: Annotated[NonEmpty, Meta(description="The payment method.", examples=["card"])]
    payment_details: Annotated[
        dict[Text, Raw],
        Meta(
            max_length=100,
            description="Used for the payment only. No answer shows it.",
            examples=[{"card_token": "tok_visa"}],
        ),
    ]


class KeptOrder(msgspec.Struct):
    """The data of an order that never changes, kept in the workflow's memo."""

    customer_id: str
    total_amount: str


OrderStatus = Literal["pending", "confirmed", "processing", "shipped", "delivered", "cancelled"]


class OrderResponse(msgspec.Struct, omit_defaults=True):
    """An order as it is now."""

    id: Annotated[str, Meta(description="The order's id.", examples=[EXAMPLE_ID])]
    customer_id: Annotated[str, Meta(description="The customer's id, as sent.", examples=["cust_123"])]
    status: Annotated[OrderStatus, Meta(description="The order's status.", examples=["pending"])]
    total_amount: Annotated[
        str,
        Meta(pattern=r"^\d+(\.\d+)?$", description="The exact sum of its lines, a decimal string.", examples=["39.98"]),
    ]
    created_at: Annotated[
        datetime, Meta(tz=True, description="When it was placed.", examples=["2026-01-31T12:00:00.123456Z"])
    ]
    workflow_id: Annotated[str, Meta(description="The workflow's id.", examples=[f"order-{EXAMPLE_ID}"])]
    reason: Annotated[str | None, Meta(description="Why it was cancelled.")] = None


ORDERS = Resource(
    "order",
    description="Orders: the example of a business resource.",
    workflow_type="order_processing",
    task_queue="temporal-product-queue",
    kept=KeptOrder,
    answer=OrderResponse,
    completed="delivered",
    too_late_to_cancel=["shipped"],
)


class OrderController(ResourceController, resource=ORDERS):
    """Place, watch and cancel orders."""

    @ORDERS.create()
    async def create_order(
        self,
        request: APIRequest,
        data: JSONBody[CreateOrderRequest],
        services: CurrentServices,
        idempotency_key: IdempotencyKey = None,
    ) -> JSONResponse[OrderResponse]:
        """Start the workflow `order_processing`, which processes the order. `Location` is the new order's path."""
        # 1000 lines of at most 10^6 x 10^12 with 6 decimals fit into Decimal's 28 digits: the sum is exact.
        total = sum((item.quantity * exact(item.unit_price) for item in data.items), Decimal("0.00"))
        kept = KeptOrder(data.customer_id, format(total, "f"))
        return await ORDERS.place(request, services, data, kept, idempotency_key)
