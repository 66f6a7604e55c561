"""Orders over HTTP, against a real Temporal server and a real worker."""

import httpx
import pytest
from api import order

pytestmark = pytest.mark.anyio


async def test_an_order_is_created_with_its_exact_total(alice: httpx.AsyncClient) -> None:
    """A placed order is a 201 with its location and the exact sum."""
    response = await alice.post("/api/v1/orders", json=order())

    assert response.status_code == 201, response.text
