"""The contract: the OpenAPI document that generators of clients and people read."""

import json
import re
import uuid
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import httpx
import msgspec
import pytest

from api import bearer
from temporal_api import __version__, controllers, errors, problems
from temporal_api.app import RESOURCES

pytestmark = pytest.mark.anyio

MODULES = [
    errors,
    problems,
    *(import_module(m.name) for m in walk_packages(controllers.__path__, f"{controllers.__name__}.")),
]
SCOPES = [f"{resource}:{what}" for resource in ("orders", "workflows", "codec") for what in ("admin", "decode")]
STRUCTS = {
    name: value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, msgspec.Struct)
} | {
    struct.__name__: struct
    for resource in (controller.resource for controller in RESOURCES)
    for struct in (resource.cancel_request, resource.status_response, resource.list_response)
}


def operations(contract: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation, with its path."""
    for path, item in contract["paths"].items():
        for operation in item.values():
            yield path, operation


def answers(contract: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every answer of every operation, with its path and status."""
    for path, operation in operations(contract):
        for status, answer in operation["responses"].items():
            yield path, status, answer


def everything_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of the document, at any depth."""
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from everything_in(child)
    elif isinstance(value, list):
        for child in value:
            yield from everything_in(child)


def examples(body: dict[str, Any]) -> Iterator[tuple[type[msgspec.Struct], Any]]:
    """Every example of a JSON body, with the struct that it is one of."""
    for kind, content in body.get("content", {}).items():
        if kind == "text/event-stream":
            assert {"type": "string"} == content["schema"]
            continue
        schema = content["schema"].get("oneOf", [content["schema"]])[0]  # the example is of the first choice
        struct = STRUCTS[schema["$ref"].removeprefix("#/components/schemas/")]
        values = [example["value"] for example in content["examples"].values()] if "examples" in content else []
        for value in values or [content["example"]]:
            yield struct, value


async def test_the_contract_is_openapi_3_1(http: httpx.AsyncClient, contract: dict[str, Any]) -> None:
    """The contract is JSON, says its version, and is in the order of its paths."""
    response = await http.get("/openapi.json")

    assert "application/json" == response.headers["content-type"]
    assert "3.1.0" == contract["openapi"]
    assert __version__ == contract["info"]["version"]
    assert sorted(contract["paths"]) == list(contract["paths"])


async def test_every_operation_is_named_and_described(contract: dict[str, Any]) -> None:
    """Unique operation ids, a summary of a few words, a description, and one declared tag."""
    ids = [operation["operationId"] for _, operation in operations(contract)]
    tags = {tag["name"] for tag in contract["tags"]}

    assert len(set(ids)) == len(ids)
    for _, operation in operations(contract):
        assert re.fullmatch("[a-z]+([A-Z][a-z]+)+", operation["operationId"])
        assert 3 < len(operation["summary"]) < 50
        assert not operation["summary"].endswith(".")
        assert operation["description"].endswith(".")
        assert 1 == len(operation["tags"])
        assert operation["tags"][0] in tags


async def test_what_is_under_api_v1_needs_a_bearer_token(contract: dict[str, Any]) -> None:
    """Each operation under /api/v1 names the scopes that open it; the others need nothing."""
    schemes = contract["components"]["securitySchemes"]
    assert {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}} == {
        name: {key: value for key, value in scheme.items() if key != "description"} for name, scheme in schemes.items()
    }
    for path, operation in operations(contract):
        scopes = [scope for way in operation.get("security", ()) for scope in way["bearer"]]
        assert path.startswith("/api/v1/") == bool(scopes), path
        assert all(re.fullmatch("[a-z]+:(read|write|admin|decode)", scope) for scope in scopes)


async def test_every_error_is_the_one_body_and_names_its_codes(contract: dict[str, Any]) -> None:
    """Each status of 400 and above is a problem whose description and examples are the codes of that status."""
    seen = 0
    for path, status, answer in answers(contract):
        if int(status) >= 400 and not path.startswith("/health"):
            content = answer["content"]["application/problem+json"]
            codes = re.findall("`([a-z_]+)`", answer["description"])
            assert {"$ref": "#/components/schemas/ProblemDetails"} == content["schema"]
            assert codes
            assert codes == list(content["examples"])
            for code in codes:
                example = content["examples"][code]["value"]
                assert (code, int(status)) == (example["error"], example["status"])
            seen += 1
    assert seen > 50


async def test_every_operation_tells_the_errors_it_can_answer(contract: dict[str, Any]) -> None:
    """What the token, the body, Temporal or a defect can cause is declared where it can happen."""
    for path, operation in operations(contract):
        if path.startswith("/api/v1/"):
            expected = {"400", "401", "403", "429", "500", "502", "503", "504"}
            if "requestBody" in operation:
                expected |= {"413", "415"}
            if "{" in path:
                expected |= {"404"}
            assert expected <= set(operation["responses"]), path


async def test_every_header_that_an_answer_carries_is_declared(contract: dict[str, Any]) -> None:
    """X-Request-ID everywhere; what was made where, what is wrong with the token, when to ask again, what is known."""
    needed = {
        "201": "Location",
        "304": "ETag",
        "401": "WWW-Authenticate",
        "415": "Accept-Encoding",
        "429": "Retry-After",
        "503": "Retry-After",
    }
    optional = {"Prefer": "Preference-Applied", "Idempotency-Key": "Idempotent-Replayed"}
    for path, operation in operations(contract):
        statuses = operation["responses"]
        for status, answer in statuses.items():
            expected = {"X-Request-ID"}
            if status in needed and not path.startswith("/health"):
                expected.add(needed[status])
            if status == "200" and "304" in statuses:
                expected.add("ETag")
            if status == "202" and "200" in statuses:
                expected |= {"Location", "Retry-After"}
            if status == "200" and "201" in statuses:
                expected.add("Location")  # of the workflow that ran already
            for parameter in operation.get("parameters", ()):
                # Only a start is answered as a replay; a signal or an update of one key is sent once, unsaid.
                started = parameter["name"] != "Idempotency-Key" or status == "201"
                if int(status) < 400 and parameter["name"] in optional and started:
                    expected.add(optional[parameter["name"]])
            assert expected == set(answer["headers"]), (path, status)
    for name, header in contract["components"]["headers"].items():
        assert header["description"]
        assert (name in {*optional.values(), "Accept-Encoding"}) != header["required"]
        assert header["schema"]["type"] in ("string", "integer")


async def test_every_parameter_is_declared_and_described(contract: dict[str, Any]) -> None:
    """A path's parameters are those of its template; each parameter says what it is, and that is never null."""
    for path, operation in operations(contract):
        parameters = operation.get("parameters", [])
        assert set(re.findall(r"{(\w+)}", path)) == {p["name"] for p in parameters if p["in"] == "path"}
        assert all(parameter["description"] for parameter in parameters)
        for parameter in parameters:
            assert isinstance(parameter["schema"]["type"], str), (path, parameter)
            assert None not in parameter["schema"].get("enum", ())
            assert parameter["schema"].get("default") != ""


async def test_schemas_resolve_and_none_is_degenerate(contract: dict[str, Any]) -> None:
    """Every reference leads somewhere, and no choice has one alternative."""
    for thing in everything_in(contract):
        for choice in ("oneOf", "anyOf", "allOf"):
            assert not isinstance(thing.get(choice), list) or len(thing[choice]) > 1, thing
        if isinstance(reference := thing.get("$ref"), str):
            kind, name = reference.removeprefix("#/components/").split("/")
            assert name in contract["components"][kind]


def named_in(value: Any, schemas: dict[str, Any]) -> set[str]:
    """The schemas that something refers to, directly or through others."""
    names: set[str] = set()
    waiting = [value]
    while waiting:
        references = [thing["$ref"] for thing in everything_in(waiting.pop()) if isinstance(thing.get("$ref"), str)]
        found = {r.removeprefix("#/components/schemas/") for r in references} & schemas.keys() - names
        names |= found
        waiting += [schemas[name] for name in found]
    return names


async def test_every_body_is_described_and_requests_are_closed(contract: dict[str, Any]) -> None:
    """Each schema says what it is; a request's refuses fields that it does not name, as the service does."""
    schemas = contract["components"]["schemas"]
    sent = named_in([operation.get("requestBody") for _, operation in operations(contract)], schemas)

    assert {"CreateOrderRequest", "OrderItem", "WorkflowExecutionRequest", "SignalRequest", "QueryRequest"} <= sent
    for name, schema in schemas.items():
        assert schema["description"].endswith("."), name
        # What we write may grow; what Temporal's codec protocol sends is Temporal's.
        is_open = name not in sent or name.startswith("Codec")
        assert is_open == (schema.get("additionalProperties") is not False), name


async def test_generators_of_clients_are_not_misled(contract: dict[str, Any]) -> None:
    """No default, which makes a field required; no object without fields, which is an empty one; no nameless choice."""
    schemas = contract["components"]["schemas"]
    for name, schema in schemas.items():
        for field in schema["properties"].values():
            assert "default" not in field, name
            assert field.get("type") != "object" or "additionalProperties" in field, name
            assert all("title" in choice for choice in field.get("anyOf", ()) if "enum" in choice), name

    start = schemas["WorkflowExecutionRequest"]
    assert ["workflow_type"] == start["required"]
    assert "Default: `3600`." == start["properties"]["execution_timeout_seconds"]["description"]
    assert "description" not in start["properties"]["memo"]
    details = schemas["ProblemDetails"]["properties"]["details"]
    assert {"$ref": "#/components/schemas/FieldError"} == details["properties"]["errors"]["items"]


async def test_an_answer_requires_every_field_that_it_always_holds(contract: dict[str, Any]) -> None:
    """Only a field that is left out of some answers is optional."""
    schemas = contract["components"]["schemas"]
    sent = named_in([operation.get("requestBody") for _, operation in operations(contract)], schemas)
    answered = named_in([answer for _, _, answer in answers(contract)], schemas) - sent

    assert {"ProblemDetails", "WorkflowResultResponse", "WorkflowStatusResponse", "FailureInfo"} <= answered
    for name in answered:
        if not STRUCTS[name].__struct_config__.omit_defaults:
            assert set(schemas[name]["properties"]) == set(schemas[name]["required"]), name


async def test_bounds_are_told_as_they_are_enforced(contract: dict[str, Any]) -> None:
    """Numbers, lengths and the price's two forms are in the contract; untouched JSON is any JSON."""
    schemas = contract["components"]["schemas"]
    item, start = schemas["OrderItem"]["properties"], schemas["WorkflowExecutionRequest"]["properties"]
    price, quantity = item["unit_price"], item["quantity"]

    assert ["number", "string"] == price["type"]
    assert (0, 10**12) == (price["minimum"], price["maximum"])
    assert re.fullmatch(price["pattern"], "19.990000")
    assert not re.fullmatch(price["pattern"], "19.9900001")
    assert ("integer", 1, 10**6) == (quantity["type"], quantity["minimum"], quantity["maximum"])
    assert {"minItems": 1, "maxItems": 1000}.items() <= schemas["CreateOrderRequest"]["properties"]["items"].items()
    timeout, null = start["execution_timeout_seconds"]["anyOf"]
    assert ("number", 315_360_000, {"type": "null"}) == (timeout["type"], timeout["maximum"], null)
    assert {} == {k: v for k, v in start["input_data"].items() if k not in ("description", "examples")}
    assert "date-time" == schemas["OrderResponse"]["properties"]["created_at"]["format"]


async def test_every_body_has_an_example_that_is_one(contract: dict[str, Any]) -> None:
    """Each example of a request or an answer, decoded strictly, is what its schema says."""
    requests = [operation["requestBody"] for _, operation in operations(contract) if "requestBody" in operation]
    shown = [example for body in requests for example in examples(body)]
    answered = [example for _, _, answer in answers(contract) for example in examples(answer)]

    assert len(requests) == len(shown)
    assert len(answered) > 50
    for struct, value in shown + answered:
        msgspec.json.decode(json.dumps(value), type=struct)


async def test_the_examples_of_requests_are_accepted(alice: httpx.AsyncClient, contract: dict[str, Any]) -> None:
    """What the contract shows works when sent: a full order, a workflow start, a signal."""
    shown = {
        operation["operationId"]: operation["requestBody"]["content"]["application/json"]["example"]
        for _, operation in operations(contract)
        if "requestBody" in operation
    }
    workflow_id = str(uuid.uuid4())
    order = await alice.post("/api/v1/orders", json=shown["createOrder"])
    start = await alice.post("/api/v1/workflows", json={**shown["startWorkflow"], "workflow_id": workflow_id})
    signal = await alice.post(f"/api/v1/workflows/{workflow_id}/signal", json=shown["signalWorkflow"])
    cancel = await alice.post(f"{order.headers['location']}/cancel", json=shown["cancelOrder"])

    assert [201, 201, 202, 204] == [r.status_code for r in (order, start, signal, cancel)]
    assert "39.98" == order.json()["total_amount"]
    assert {"customer_id", "items", "shipping_address", "payment_method", "payment_details"} == set(
        shown["createOrder"]
    )


async def test_only_an_optional_body_may_be_left_out(alice: httpx.AsyncClient, contract: dict[str, Any]) -> None:
    """The contract asks for a body exactly where the service does."""
    seen = set()
    for path, operation in operations(contract):
        if "requestBody" in operation:
            needed = operation["requestBody"]["required"]
            answer = await alice.post(re.sub("{.*?}", "none", path), headers=bearer(scope=" ".join(SCOPES)))
            assert needed == (answer.status_code == 400 and "no" in answer.json()["message"]), (path, answer.text)
            seen.add(needed)
    assert {True, False} == seen
