"""Every mistake of a request is told at once, where it is and what is allowed there."""

import itertools
import re
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from api import assert_problem, order
from temporal_api.controllers.codec import CodecPayloads
from temporal_api.controllers.orders import ORDERS, CreateOrderRequest
from temporal_api.controllers.workflows.lifecycle import ResetRequest
from temporal_api.controllers.workflows.messages import QueryRequest, SignalRequest, UpdateRequest
from temporal_api.controllers.workflows.start import WorkflowExecutionRequest
from temporal_api.mistakes import MOST, body_mistakes

pytestmark = pytest.mark.anyio

LINE = {"id": "a", "quantity": 1, "unit_price": 1}
RIGHT: list[tuple[Any, dict[str, Any]]] = [
    (
        CreateOrderRequest,
        {
            "customer_id": "c",
            "items": [{**LINE, "name": "n", "sku": "s"}, LINE],
            "shipping_address": {"street": "s", "a.b": "c"},
            "payment_method": "card",
            "payment_details": {"token": [1]},
        },
    ),
    (
        WorkflowExecutionRequest,
        {
            "workflow_type": "t",
            "workflow_id": "w",
            "args": [1],
            "run_timeout_seconds": 5,
            "retry_policy": {"maximum_attempts": 3, "non_retryable_error_types": ["A"]},
            "id_reuse_policy": "ALLOW_DUPLICATE",
            "memo": {"a": 1},
            "search_attributes": {"A": {"type": "Int", "value": 1}},
            "signal": {"signal_name": "s", "signal_args": []},
        },
    ),
    (SignalRequest, {"signal_name": "s", "signal_input": 1}),
    (QueryRequest, {"query_name": "q"}),
    (UpdateRequest, {"update_name": "u", "update_id": "i"}),
    (ResetRequest, {"to": "last_workflow_task", "reason": "r"}),
    (ORDERS.cancel_request, {"reason": "r"}),
    (CodecPayloads, {"payloads": [{"metadata": {"encoding": "YQ=="}, "data": "YQ=="}]}),
]
WRONG = (None, True, 7, -1, 1.5, "", "é" * 999, "x" * 10_001, [], [None], {}, {"": 1}, {"unknown": 1})


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in it, the whole first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The same with another value at that place."""
    if not path:
        return new
    if isinstance(value, dict):
        return {**value, path[0]: changed(value[path[0]], path[1:], new)}
    return [*value[: path[0]], changed(value[path[0]], path[1:], new), *value[path[0] + 1 :]]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(date, "a date"), (datetime, "a time"), (time, "a time of day"), (timedelta, "a duration"), (UUID, "a UUID")],
)
def test_types_are_named_in_words(kind: Any, name: str) -> None:
    """Those too that only a resource of one's own has."""
    assert [f"Expected {name}, got object"] == [mistake.message for mistake in body_mistakes(b"{}", kind)]


@pytest.mark.parametrize(("kind", "right"), RIGHT, ids=lambda value: getattr(value, "__name__", ""))
def test_what_msgspec_finds_first_is_found(kind: Any, right: dict[str, Any]) -> None:
    """Whatever is wrong, one place or two: its mistake is among ours; a body without one has none, and so has ours."""
    wrong = [(place, value) for place in places(right) for value in WRONG]
    bodies = [changed(right, place, value) for place, value in wrong]
    # Two mistakes, neither inside the other.
    bodies += [
        changed(changed(right, place, value), other, {"unknown": None})
        for (place, value), other in itertools.product(wrong[::5], places(right))
        if place[: len(other)] != other[: len(place)]
    ]
    refused = 0
    for body in [right, *bodies]:
        text = msgspec.json.encode(body)
        found = body_mistakes(text, kind)
        keys = [mistake.key for mistake in found]
        assert len(found) == len({(mistake.key, mistake.message) for mistake in found})
        assert not any(re.search(r"`|Raw|UnsetType|\bstr\b|\bint\b", mistake.message) for mistake in found)
        if (said := said_of(text, kind)) is None:
            assert [] == found, text
        else:
            refused += 1
            assert any(re.fullmatch(place(said), key) for key in keys) or len(found) == MOST, (text, keys, said)
    assert refused > 10


def said_of(text: bytes, kind: Any) -> str | None:
    """What msgspec says of it, which stops at the first mistake."""
    try:
        msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def place(said: str) -> str:
    """A pattern of the place that msgspec names."""
    said, _, path = said.rpartition(" - at `") if " - at `" in said else (said, "", "")
    at = path.rstrip("`").removeprefix("key` in `").removeprefix("$").removeprefix(".")
    if named := re.search(r"field `(.*?)`", said) or re.match(r"([a-z_]+): ", said):
        at = f"{at}.{named[1]}".removeprefix(".")
    return re.escape(at).replace(r"\[\.\.\.\]", r"\..*")


async def test_all_mistakes_of_a_body_come_at_once(alice: httpx.AsyncClient) -> None:
    """A type, a bound, a rule of our own, a null in a map, a missing and an unknown field: each with its exact path."""
    address = {**{f"line{n}": "x" for n in range(12)}, "province": None}
    lines = [LINE, {"id": "", "quantity": "2", "unit_price": -1}, {"id": "b", "quantity": 0, "price": 1}]
    body = order(items=lines, shipping_address=address, paymentMethod="card", payment_method=None)

    problem = assert_problem(await alice.post("/api/v1/orders", json=body), 400, "validation_error")

    assert [
        ("items[1].id", "Expected a string of length >= 1"),
        ("items[1].quantity", "Expected an integer, got a string"),
        ("items[1].unit_price", "Expected a price from 0 to 10^12, such as 19.99"),
        ("items[2].quantity", "Expected an integer >= 1"),
        ("items[2].unit_price", "Object missing required field unit_price"),
        (
            "items[2].price",
            "Unknown field; did you mean unit_price? There are id, name, quantity, sku, unit_price",
        ),
        ("shipping_address.province", "Expected a string, got null"),
        ("payment_method", "Expected a string, got null"),
        (
            "paymentMethod",
            "Unknown field; did you mean payment_method? "
            "There are customer_id, items, payment_details, payment_method, shipping_address",
        ),
    ] == [(each["key"], each["message"]) for each in problem["details"]["errors"]]
    assert problem["message"].endswith(" 8 more mistakes: see details.errors.")


async def test_rules_between_fields_are_told_with_the_others(alice: httpx.AsyncClient) -> None:
    """What does not go together, and what only this service refuses, beside a field of the wrong type."""
    signal = {"signal_name": "é" * 900, "signal_input": 1, "signal_args": [1]}
    start = {"workflow_type": "é" * 900, "args": [1], "input_data": 1, "memo": {"temporal_api.x": 1}, "signal": signal}
    ids = {"workflow_id": "..", "update": {"update_name": "u", "update_id": "."}}
    answer = await alice.post("/api/v1/workflows", json={**start, **ids, "start_delay_seconds": "1"})

    expected = ["start_delay_seconds", "signal.signal_name", "signal.signal_args", "update.update_id"]
    assert [*expected, "workflow_type", "workflow_id", "args", "memo"] == [
        each["key"] for each in assert_problem(answer, 400, "validation_error")["details"]["errors"]
    ]


async def test_the_values_of_a_choice_are_told(alice: httpx.AsyncClient) -> None:
    """In a body and in a query, whatever stands in their place."""
    start = {"workflow_type": "t", "id_reuse_policy": "x", "id_conflict_policy": 1}
    in_body = assert_problem(await alice.post("/api/v1/workflows", json=start), 400, "validation_error")
    path = "/api/v1/workflows/x/history"
    in_query = assert_problem(await alice.get(path, params={"order": "desc"}), 400, "validation_error")

    policies = ["ALLOW_DUPLICATE, ALLOW_DUPLICATE_FAILED_ONLY, REJECT_DUPLICATE"]
    policies += ["FAIL, USE_EXISTING, TERMINATE_EXISTING"]
    assert [f"Expected one of {all_of}" for all_of in policies] == [
        each["message"] for each in in_body["details"]["errors"]
    ]
    assert "order: Expected one of forward, reverse" == in_query["message"]


async def test_all_mistakes_of_a_query_come_at_once(alice: httpx.AsyncClient) -> None:
    """Unknown, repeated and wrong ones, of the handler and of what it depends on; with those of a body and headers."""
    query = "status=NOPE&page_size=0&limit=1&query=a&query=b&closed_from=x&started_to=y&workflow_type="
    listed = assert_problem(await alice.get(f"/api/v1/workflows?{query}"), 400, "validation_error")
    sent = assert_problem(
        await alice.post(
            "/api/v1/workflows/x/signal?run_id=x&run=y", json={"signal_name": 1}, headers={"Idempotency-Key": "a b"}
        ),
        400,
        "validation_error",
    )
    resumed = assert_problem(
        await alice.get("/api/v1/workflows/x/events?run_id=x", headers={"Last-Event-ID": "7"}), 400, "validation_error"
    )
    times = assert_problem(
        await alice.get("/api/v1/workflows?closed_from=x&started_to=y&page_size=0"), 400, "validation_error"
    )

    twice = assert_problem(
        await alice.post(
            "/api/v1/orders?a=",
            json=order(customer_id=""),
            headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")],
        ),
        400,
        "validation_error",
    )

    def keys(problem: dict[str, Any]) -> list[str]:
        return [each["key"] for each in problem["details"]["errors"]]

    assert ["limit", "query", "page_size", "status", "workflow_type"] == keys(listed)
    assert ["run", "signal_name", "run_id", "Idempotency-Key"] == keys(sent)
    assert ["run_id", "Last-Event-ID"] == keys(resumed)
    assert ["a", "customer_id", "Idempotency-Key"] == keys(twice)
    told = [each["message"] for problem in (sent, resumed) for each in problem["details"]["errors"]]
    assert {"Expected 1 to 255 visible ASCII characters", "Expected a run's id, a UUID"} < {*told}
    assert not any("regex" in each for each in told)
    assert ["closed_from", "page_size", "started_to"] == sorted(keys(times))


async def test_no_more_than_twenty_are_told(alice: httpx.AsyncClient) -> None:
    """However many there are, wherever; and what the caller sent is not sent back."""
    bodies = (order(items=[{}] * 1000), {f"{n}" + "x" * 1000: 1 for n in range(1000)}, order(shipping_address=WIDE))
    for body in bodies:
        problem = assert_problem(await alice.post("/api/v1/orders", json=body), 400, "validation_error")
        assert 20 == len(problem["details"]["errors"])
        assert all(len(each["key"]) <= 200 for each in problem["details"]["errors"])
    response = await alice.get("/api/v1/orders", params={f"p{n}": "" for n in range(100)})
    assert 20 == len(assert_problem(response, 400, "validation_error")["details"]["errors"])


WIDE = {f"{n}": n for n in range(100)}
