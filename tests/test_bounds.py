"""How much a request may hold: lists, objects and texts have bounds, cheap to check and in the contract."""

import asyncio
import itertools
import json
import string
import time
import tracemalloc
import uuid
from collections.abc import Awaitable, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from api import assert_problem, bearer, order
from temporal_api import bounds
from temporal_api.bounds import check_entries
from temporal_api.controllers.workflows.start import WorkflowExecutionRequest
from temporal_api.errors import ValidationError

pytestmark = pytest.mark.anyio

MIB = 2**20
JSON = {"Content-Type": "application/json"}
START = msgspec.inspect.type_info(WorkflowExecutionRequest)

ONES = "[" + ",".join(["1"] * 900_000) + "]"
NAMES = ["".join(letters) for letters in itertools.islice(itertools.product(string.ascii_letters, repeat=3), 130_000)]
MAP = "{" + ",".join(f'"{name}":1' for name in NAMES) + "}"
TEXTS = "[" + ",".join(['""'] * 450_000) + "]"

WORKFLOW = '"workflow_type": "none"'
TOO_MANY = {
    "arguments of a start": ("/workflows", f'{{{WORKFLOW}, "args": {ONES}}}', "args"),
    "arguments of a signal": ("/workflows/x/signal", f'{{"signal_name": "s", "signal_args": {ONES}}}', "signal_args"),
    "arguments of an update": ("/workflows/x/updates", f'{{"update_name": "u", "update_args": {ONES}}}', "update_args"),
    "arguments of a query": ("/workflows/x/query", f'{{"query_name": "q", "query_args": {ONES}}}', "query_args"),
    "arguments of a start's signal": (
        "/workflows",
        f'{{{WORKFLOW}, "signal": {{"signal_name": "s", "signal_args": {ONES}}}}}',
        "signal.signal_args",
    ),
    "memo fields": ("/workflows", f'{{{WORKFLOW}, "memo": {MAP}}}', "memo"),
    "search attributes": ("/workflows", f'{{{WORKFLOW}, "search_attributes": {MAP}}}', "search_attributes"),
    "keywords": (
        "/workflows",
        f'{{{WORKFLOW}, "search_attributes": {{"K": {{"type": "KeywordList", "value": {TEXTS}}}}}}}',
        "search_attributes.K.value",
    ),
    "error types": (
        "/workflows",
        f'{{{WORKFLOW}, "retry_policy": {{"non_retryable_error_types": {TEXTS}}}}}',
        "retry_policy.non_retryable_error_types",
    ),
    "arguments twice": ("/workflows", f'{{{WORKFLOW}, "args": {ONES}, "args": []}}', ""),
    "values of an unknown field": ("/workflows", f'{{{WORKFLOW}, "arguments": {ONES}}}', ""),
    "lines of an order": ("/orders", json.dumps(order(items=0)).replace('"items": 0', f'"items": {ONES}'), "items"),
    "lines of an address": (
        "/orders",
        json.dumps(order(shipping_address=0)).replace('"shipping_address": 0', f'"shipping_address": {MAP}'),
        "shipping_address",
    ),
    "payment details": (
        "/orders",
        json.dumps(order(payment_details=0)).replace('"payment_details": 0', f'"payment_details": {MAP}'),
        "payment_details",
    ),
    "payloads": ("/codec/encode", '{"payloads": [' + ",".join(["{}"] * 600_000) + "]}", "payloads"),
}


@pytest.mark.parametrize(("path", "body", "key"), TOO_MANY.values(), ids=list(TOO_MANY))
async def test_too_many_entries_are_refused_before_they_are_made(
    alice: httpx.AsyncClient, path: str, body: str, key: str
) -> None:
    """A list or an object that is longer than it may be is a 400, for a few times the body's bytes in memory."""
    content = body.encode()
    headers = JSON | bearer(scope="orders:write workflows:write workflows:read codec:decode")
    await alice.get("/health/live")
    tracemalloc.start()
    try:
        response = await alice.post(f"/api/v1{path}", content=content, headers=headers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    (error,) = assert_problem(response, 400, "validation_error")["details"]["errors"]
    assert key == error["key"]
    if key != "search_attributes[...].value":  # texts cost little, and one empty text is all of these
        assert peak < 9 * len(content)


async def longest_pause(work: Awaitable[None]) -> float:
    """The longest time of this process, in seconds, for which the work let nothing else run."""
    working, longest = asyncio.ensure_future(work), 0.0
    before = time.process_time()
    while not working.done():
        await asyncio.sleep(0)
        now = time.process_time()
        longest, before = max(longest, now - before), now
    await working
    return longest


LARGE = {
    "one list of numbers": f"[{ONES}]",
    "one list of texts": f"[{TEXTS}]",
    "one object": f"[{MAP}]",
    "lists in a list": f"[[{','.join(['[0]'] * 450_000)}]]",
    "nested lists": f"[{'[0,' * 400}{ONES}{']' * 400}]",
    "a text of escapes": json.dumps(['"' * 900_000, [0] * 20_000]),
}


@pytest.mark.parametrize("args", LARGE.values(), ids=list(LARGE))
async def test_a_large_argument_is_one_argument(args: str) -> None:
    """However much JSON an argument is, it is taken; the count holds up others for a fraction of a second at most."""
    body = f'{{{WORKFLOW}, "args": {args}}}'.encode()

    assert await longest_pause(check_entries(body, START)) < 0.15


def values(depth: int) -> Iterator[Any]:
    """Values that a careless count would mistake for more, or for fewer."""
    texts = ["", '"', "\\", '\\"', ",", "[", "]", "{", "}", '{"a":1,', "],[", "é,"]
    yield from (None, -1.5e-7, [], {}, *texts)
    if depth:
        for value in values(depth - 1):
            yield from ([value, value], {str(value): value, ",": value})


@pytest.mark.parametrize("indent", [None, 1])
async def test_entries_are_counted_exactly(monkeypatch: pytest.MonkeyPatch, indent: int | None) -> None:
    """A hundred arguments or memo fields are taken, one more is refused, whatever they are."""
    monkeypatch.setattr(bounds, "FEW", 10)
    for value in values(2):
        for field, kind, make in (
            ("args", "array", lambda n, value=value: [value] * n),
            ("memo", "object", lambda n, value=value: {f"{i}{value}": value for i in range(n)}),
        ):
            body = {"workflow_type": "none", field: make(100)}
            await check_entries(json.dumps(body, indent=indent).encode(), START)
            body[field] = make(101)
            with pytest.raises(ValidationError, match=rf"{field}: Expected {kind} of length <= 100"):
                await check_entries(json.dumps(body, indent=indent).encode(), START)


async def test_a_few_too_many_are_refused_alike(alice: httpx.AsyncClient) -> None:
    """The same field and the same words, whether a body is small or large."""
    for args in ([1] * 101, [1] * 20_000):
        body = {"workflow_type": "none", "args": args}
        problem = assert_problem(await alice.post("/api/v1/workflows", json=body), 400, "validation_error")
        assert "args: Expected array of length <= 100" == problem["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/workflows", {"`" * 950_000: 1}),
        ("/workflows", {"workflow_type": "none", "signal": {"signal_name": "s", "x" * 1_900_000: 1}}),
        ("/workflows", {"workflow_type": "none", "id_reuse_policy": "`" * 1_900_000}),
        ("/workflows", {"workflow_type": "none", "workflow_id": "x" * 1_900_000}),
        ("/workflows/x/reset", {"reason": "r", "to": " - at `" * 100_000}),
    ],
)
async def test_what_a_caller_sent_is_not_sent_back_at_length(
    alice: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    """A refusal shows at most 200 characters of the name or value that it refuses."""
    headers = bearer(scope="workflows:write workflows:admin")
    response = await alice.post(f"/api/v1{path}", json=body, headers=headers)

    assert_problem(response, 400, "validation_error")
    assert len(response.content) < 1_500


async def test_a_path_and_a_parameter_are_not_sent_back_at_length(alice: httpx.AsyncClient) -> None:
    """Of an unknown path, id or parameter, a message shows at most 200 characters."""
    long = "x" * 900
    for path, status in ((f"/{long}", 404), (f"/api/v1/orders/{long}", 404), (f"/api/v1/orders?{long}=1", 400)):
        response = await alice.get(path)
        assert status == response.status_code
        assert long[:190] in response.json()["message"]
        assert long[:201] not in response.text


async def test_every_list_and_text_of_a_request_has_its_bound_in_the_contract(contract: dict[str, Any]) -> None:
    """Bodies, headers and query values: a text says its longest, a list or an object its most entries."""
    schemas = contract["components"]["schemas"]
    unbounded = []

    def check(where: str, schema: dict[str, Any]) -> None:
        for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            check(where, choice)
        if "$ref" in schema:
            check(where, schemas[schema["$ref"].rpartition("/")[2]])
        if schema.get("type") == "string" and not {"maxLength", "enum", "pattern"} & schema.keys():
            unbounded.append(where)
        if schema.get("type") == "array":
            if "maxItems" not in schema:
                unbounded.append(where)
            check(f"{where}[]", schema["items"])
        if schema.get("type") == "object" and "properties" not in schema:
            if "maxProperties" not in schema or "maxLength" not in schema.get("propertyNames", {}):
                unbounded.append(where)
            check(f"{where}[...]", schema.get("additionalProperties", {}))
        for name, field in schema.get("properties", {}).items():
            check(f"{where}.{name}", field)

    for path, methods in contract["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] != "path":
                    check(f"{method} {path} {parameter['name']}", parameter["schema"])
            for body in operation.get("requestBody", {}).get("content", {}).values():
                check(f"{method} {path}", body["schema"])

    assert [] == unbounded


@pytest.mark.parametrize("number", ["1e99999999999999999999", "-1E+9999999999999999999", "1e-99999999999999999999"])
async def test_a_number_that_no_machine_has(alice: httpx.AsyncClient, number: str) -> None:
    """With an Idempotency-Key, which needs the body's meaning, it is a 400 and no defect."""
    body = f'{{{WORKFLOW}, "input_data": {{"n": {number}}}}}'
    headers = {**JSON, "Idempotency-Key": str(uuid.uuid4())}

    assert_problem(await alice.post("/api/v1/workflows", content=body, headers=headers), 400, "validation_error")
