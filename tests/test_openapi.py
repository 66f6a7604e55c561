"""The contract: the OpenAPI document that generators of clients and people read."""

import base64
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, get_args

import httpx
import msgspec
import pytest
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import ORDERS, WORKFLOWS, bearer, order, resolved, service
from temporal_api import __version__, controllers, errors, problems
from temporal_api.app import RESOURCES
from temporal_api.dev.server import DevServer
from temporal_api.owned import EXAMPLE_ID
from temporal_api.temporal.run import Status
from test_errors import CODES

pytestmark = pytest.mark.anyio

MODULES = [
    errors,
    problems,
    *(import_module(m.name) for m in walk_packages(controllers.__path__, f"{controllers.__name__}.")),
]
SCOPES = [f"{resource}:{what}" for resource in ("orders", "workflows", "codec") for what in ("admin", "decode")]
JSON = {"Content-Type": "application/json"}
STRUCTS = {
    name: value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, msgspec.Struct)
} | {
    struct.__name__: struct
    for resource in (controller.resource for controller in RESOURCES)
    for struct in (resource.cancel_request, resource.status_response, resource.list_response, resource.event)
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
            yield path, status, resolved(contract, answer)


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
    for content in body.get("content", {}).values():
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
        assert all(
            answer["description"].endswith(".") for status, answer in operation["responses"].items() if status < "4"
        )
        assert 1 == len(operation["tags"])
        assert operation["tags"][0] in tags


async def test_what_is_under_api_v1_needs_a_bearer_token(contract: dict[str, Any]) -> None:
    """Each operation under /api/v1 names the scopes that open it; the others need nothing."""
    schemes = contract["components"]["securitySchemes"]
    assert {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}} == {
        name: {key: value for key, value in scheme.items() if key != "description"} for name, scheme in schemes.items()
    }
    for path, operation in operations(contract):
        scopes = [scope for way in operation["security"] for scope in way["bearer"]]
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
        "403": "WWW-Authenticate",
        "415": "Accept-Encoding",
        "429": "Retry-After",
        "503": "Retry-After",
    }
    optional = {"Prefer": "Preference-Applied", "Idempotency-Key": "Idempotent-Replayed"}
    for path, operation in operations(contract):
        statuses = {s: resolved(contract, answer) for s, answer in operation["responses"].items()}
        for status, answer in statuses.items():
            expected = {"X-Request-ID"}
            if status in needed and not path.startswith("/health"):
                expected.add(needed[status])
            if status == "200" and "304" in statuses:
                expected.add("ETag")
            if status == "202" and "200" in statuses:
                expected |= {"Location", "Retry-After"}
            if status == "200" and "201" in statuses:
                expected |= {"Location", "Retry-After"}  # of the workflow that ran already
            if status == "201" and "200" in statuses:
                expected.add("Retry-After")  # a wait was too short
            for parameter in operation.get("parameters", ()):
                # Only a start is answered as a replay; a signal or an update of one key is sent once, unsaid.
                started = parameter["name"] != "Idempotency-Key" or status == "201"
                if int(status) < 400 and parameter["name"] in optional and started:
                    expected.add(optional[parameter["name"]])
            assert expected == set(answer["headers"]), (path, status)
    for name, header in contract["components"]["headers"].items():
        assert header["description"]
        assert (name in {*optional.values(), "Accept-Encoding"} or "." in name) != header["required"]
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
            for part in (field, field.get("items", {})):
                assert part.get("type") != "object" or "additionalProperties" in part, name
            assert all("title" in choice for choice in field.get("anyOf", ()) if "enum" in choice), name

    start = schemas["WorkflowExecutionRequest"]
    assert ["workflow_type"] == start["required"]
    assert start["properties"]["execution_timeout_seconds"]["description"].endswith(" Default: `3600`.")
    assert "Default" not in start["properties"]["memo"]["description"]
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

    text, number = price["anyOf"]
    assert ("string", "number", "double") == (text["type"], number["type"], number["format"])
    assert (0, 10**12) == (number["minimum"], number["maximum"])
    assert re.fullmatch(text["pattern"], "19.990000")
    for value in ("19.9900001", "1000000000000.01", "1000000000001", "1_9"):
        assert not re.fullmatch(text["pattern"], value)
    assert ("integer", 1, 10**6) == (quantity["type"], quantity["minimum"], quantity["maximum"])
    assert {"minItems": 1, "maxItems": 1000}.items() <= schemas["CreateOrderRequest"]["properties"]["items"].items()
    (pair,) = (
        p for p in contract["paths"]["/api/v1/workflows"]["get"]["parameters"] if p["name"] == "search_attribute"
    )
    assert [True, False] == [bool(re.search(pair["schema"]["items"]["pattern"], text)) for text in ("A=", "=A")]
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


async def test_types_are_told_as_generators_read_them(contract: dict[str, Any]) -> None:
    """One type each, also for a choice of values; numbers of 64 bits, whole bounds of whole numbers, base64."""
    for thing in everything_in([contract["paths"], contract["components"]["schemas"]]):
        assert not isinstance(thing.get("type"), list), thing
        if isinstance(thing.get("enum"), list):
            assert "string" == thing["type"], thing
        if thing.get("type") == "number":
            assert "double" == thing["format"], thing
        if thing.get("type") == "integer":
            assert all(isinstance(thing.get(bound, 0), int) for bound in ("minimum", "maximum")), thing
        if "contentEncoding" in thing:
            assert ("base64", "byte") == (thing["contentEncoding"], thing["format"]), thing
    schemas = contract["components"]["schemas"]
    assert set(get_args(Status)) == set(schemas["WorkflowStatusResponse"]["properties"]["status"]["enum"])
    assert {code for codes in CODES.values() for code in codes} <= set(
        schemas["ProblemDetails"]["properties"]["error"]["enum"]
    )
    assert "date-time" == schemas["Event"]["properties"]["event_time"]["format"]


async def test_every_field_is_described(contract: dict[str, Any]) -> None:
    """Whoever reads a schema, or the comments in a client made from it, learns what each field is."""
    for thing in everything_in(contract["components"]["schemas"]):
        if ("required" in thing and "title" in thing) or "errors" in thing.get("properties", ()):
            for name, field in thing["properties"].items():
                assert field["description"].endswith((".", "`")), (thing.get("title"), name)


async def test_the_headers_of_requests_have_patterns(contract: dict[str, Any]) -> None:
    """What a header may be, as far as its form goes."""
    good = {
        "Prefer": ("wait=5", "respond-async, wait=10"),
        "If-None-Match": ('W/"run-5"', '"a", W/"b"', "*"),
        "If-Match": ('W/"run-5"', "*"),
        "Last-Event-ID": ("019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10:7",),
        "Idempotency-Key": ("order-7",),
    }
    bad = {
        "Prefer": "wait",
        "If-None-Match": "run-5",
        "If-Match": "",
        "Last-Event-ID": f"{'a-' * 18}:7",
        "Idempotency-Key": "a b",
    }
    seen = set()
    for _, operation in operations(contract):
        for name, schema in ((p["name"], p["schema"]) for p in operation.get("parameters", ()) if p["in"] == "header"):
            assert all(re.search(schema["pattern"], value) for value in good[name])
            assert not re.search(schema["pattern"], bad[name])
            seen.add(name)
    assert good.keys() == seen


@pytest.mark.parametrize(
    ("name", "body", "accepted"),
    [
        ("WorkflowExecutionRequest", {"input_data": None, "args": []}, True),
        ("WorkflowExecutionRequest", {"input_data": None, "args": [1]}, False),
        ("WorkflowExecutionRequest", {"signal": {"signal_name": "s"}, "update": None}, True),
        ("WorkflowExecutionRequest", {"signal": {"signal_name": "s"}, "update": {"update_name": "u"}}, False),
        ("WorkflowExecutionRequest", {"signal": {"signal_name": "s"}, "start_delay_seconds": 1}, False),
        ("SignalRequest", {"signal_name": "s", "signal_input": 1, "signal_args": [1]}, False),
        ("UpdateRequest", {"update_name": "s", "update_input": 1, "update_args": []}, True),
        ("UpdateRequest", {"update_name": "s", "update_input": 1, "update_args": [1]}, False),
        ("ResetRequest", {"to": "last_workflow_task", "event_id": None}, True),
        ("ResetRequest", {"to": "last_workflow_task", "event_id": 4}, False),
    ],
)
async def test_what_excludes_each_other_is_told(
    alice: httpx.AsyncClient, contract: dict[str, Any], name: str, body: dict[str, Any], accepted: bool
) -> None:
    """A body is refused by its schema exactly where the service refuses it."""
    path, rest = {
        "WorkflowExecutionRequest": ("", {"workflow_type": "t"}),
        "SignalRequest": ("/none/signal", {}),
        "UpdateRequest": ("/none/updates", {}),
        "ResetRequest": ("/none/reset", {"reason": "r"}),
    }[name]
    answer = await alice.post(
        f"/api/v1/workflows{path}",
        json={**rest, **body},
        headers=bearer(scope=" ".join(SCOPES)),
    )

    assert accepted == (answer.status_code != 400), answer.text
    assert accepted != holds(contract["components"]["schemas"][name]["not"], body)


def holds(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is as a schema says, as far as the schemas under `not` go."""
    fields = schema.get("properties", {}) if isinstance(value, dict) else {}
    return all(
        (
            "anyOf" not in schema or any(holds(choice, value) for choice in schema["anyOf"]),
            "not" not in schema or not holds(schema["not"], value),
            schema.get("type") != "null" or value is None,
            "minItems" not in schema or len(value) >= schema["minItems"],
            set(schema.get("required", ())) <= (value.keys() if isinstance(value, dict) else set()),
            all(holds(field, value[name]) for name, field in fields.items() if name in value),
        )
    )


async def test_errors_are_written_once_as_they_really_come(alice: httpx.AsyncClient, contract: dict[str, Any]) -> None:
    """Operations refer to them, and the examples are what the service answers, word by word."""
    errors = contract["components"]["responses"]
    for path, operation in operations(contract):
        if not path.startswith("/health"):
            assert all("$ref" in answer for status, answer in operation["responses"].items() if int(status) >= 400)
    assert len(json.dumps(contract)) < 180_000
    shown = {
        code: example["value"]
        for answer in errors.values()
        for code, example in answer["content"]["application/problem+json"]["examples"].items()
    }
    workflows, of_one = "/api/v1/workflows", "/api/v1/workflows/invoice-2041"
    all_scopes, none = bearer(scope=" ".join(SCOPES)), bearer(scope="orders:read")
    start = {"workflow_type": "send_invoice"}
    for code, method, path, arguments in (
        ("validation_error", "get", workflows, {"params": {"page_size": 5000}}),
        ("uri_too_long", "get", workflows, {"params": {"query": "x" * 9000}}),
        ("invalid_token", "get", workflows, {"headers": {"Authorization": "Bearer a.b.c"}}),
        ("insufficient_scope", "get", workflows, {"headers": none}),
        ("invalid_page_token", "get", workflows, {"params": {"page_token": "abc"}}),
        ("not_allowed", "post", workflows, {"json": {"workflow_type": "temporal-sys-x"}}),
        ("reserved_id", "post", workflows, {"json": {**start, "workflow_id": "order-1"}}),
        ("malformed_json", "post", workflows, {"content": b'{"args": [1] 2', "headers": JSON}),
        ("unsupported_media_type", "post", workflows, {"content": b"hi"}),
        ("workflow_not_found", "get", of_one, {}),
        ("order_not_found", "get", f"/api/v1/orders/{EXAMPLE_ID}", {}),
        ("not_found", "post", "/api/v1/codec/encode", {"json": {}, "headers": all_scopes}),
    ):
        problem = (await getattr(alice, method)(path, **arguments)).json()
        same = ("title", "status", "error", "message", "details")
        assert {key: shown[code][key] for key in same} == {key: problem[key] for key in same}


async def test_the_contract_does_not_depend_on_the_version_of_python(contract: dict[str, Any]) -> None:
    """RFC 9110's names of statuses, three of which Python knows from 3.13 on, and no indentation, which it removes."""
    phrases = {413: "Content Too Large", 422: "Unprocessable Content", 404: "Not Found"}
    for _, status, answer in answers(contract):
        if int(status) in phrases:
            assert answer["description"].startswith(phrases[int(status)])
    assert all("\n " not in thing.get("description", "") for thing in contract["components"]["schemas"].values())


async def test_a_stream_tells_what_its_schema_says(
    alice: httpx.AsyncClient, client: Client, contract: dict[str, Any]
) -> None:
    """The schema of a stream is the struct of its events' data, and its only one: clients made from it are typed."""
    placed = (await alice.post("/api/v1/orders", json=order())).json()
    await client.get_workflow_handle(placed["workflow_id"]).terminate()
    headers = bearer(scope=" ".join([*SCOPES, *ORDERS.split(), *WORKFLOWS.split()]))
    for path, one in (
        ("/api/v1/orders/{order_id}/events", placed["id"]),
        ("/api/v1/workflows/{workflow_id}/events", placed["workflow_id"]),
    ):
        responses = contract["paths"][path]["get"]["responses"]
        assert ["200"] == [status for status in responses if status < "300"]
        content = responses["200"]["content"]["text/event-stream"]
        name = content["schema"]["$ref"].removeprefix("#/components/schemas/")
        told = (await alice.get(re.sub("{.*?}", one, path), headers=headers)).text
        data = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
        assert len(data) > 1
        assert set().union(*data) == contract["components"]["schemas"][name]["properties"].keys()
        for each in data:
            msgspec.json.decode(json.dumps(each), type=STRUCTS[name])


async def test_what_was_created_links_to_what_reads_it(
    alice: httpx.AsyncClient, client: Client, contract: dict[str, Any], task_queue: str
) -> None:
    """A client finds the order, the workflow and the update by the links in the contract."""
    posts = {item["post"]["operationId"]: item["post"] for item in contract["paths"].values() if "post" in item}
    reads = {item["get"]["operationId"]: path for path, item in contract["paths"].items() if "get" in item}
    async with invoices(client, task_queue):
        start = {"workflow_type": "order_processing", "task_queue": task_queue}
        started = await alice.post("/api/v1/workflows", json=start)
        update = {"update_name": "add_line", "update_input": {"sku": "MUG-1"}}
        followed = set()
        for name, answer in (
            ("createOrder", await alice.post("/api/v1/orders", json=order())),
            ("startWorkflow", started),
            ("updateWorkflow", await alice.post(f"{started.headers['location']}/updates", json=update)),
        ):
            for link in posts[name]["responses"][str(answer.status_code)]["links"].values():
                path, query = reads[link["operationId"]], {}
                for parameter, expression in link["parameters"].items():
                    value = answer.json()[expression.removeprefix("$response.body#/")]
                    if f"{{{parameter}}}" in path:
                        path = path.replace(f"{{{parameter}}}", value)
                    else:
                        query[parameter] = value
                async with alice.stream("GET", path, params=query) as read:
                    assert read.status_code in (200, 202), path
                followed.add(link["operationId"])
        await client.get_workflow_handle(started.json()["workflow_id"]).terminate()
    assert {"getOrder", "streamOrderEvents", "getWorkflow", "getWorkflowResult", "getWorkflowHistory"} < followed
    assert followed == {name for name, path in reads.items() if path.startswith("/api/v1/") and "{" in path}


@workflow.defn(name="order_processing")
class Invoice:
    """What the examples of requests want of a workflow."""

    @workflow.run
    async def run(self, _: Any = None) -> None:
        """Run until it is cancelled."""
        await workflow.wait_condition(lambda: False)

    @workflow.signal
    def cancel(self, _: Any) -> None:
        """Take a signal."""

    @workflow.query
    def status(self) -> str:
        """Answer a query."""
        return "processing"

    @workflow.update
    def add_line(self, line: dict[str, str]) -> int:
        """Do an update."""
        return len(line)


def invoices(client: Client, task_queue: str) -> Worker:
    """A worker for it."""
    return Worker(client, task_queue=task_queue, workflows=[Invoice], workflow_runner=UnsandboxedWorkflowRunner())


async def test_the_examples_of_requests_are_accepted(
    alice: httpx.AsyncClient, client: Client, dev_server: DevServer, contract: dict[str, Any], task_queue: str
) -> None:
    """What the contract shows works when sent, each of them."""
    waiting = {
        operation["operationId"]: (path, operation["requestBody"]["content"]["application/json"]["example"])
        for path, operation in operations(contract)
        if "requestBody" in operation
    }
    encrypted = {
        "TEMPORAL_ADDRESS": dev_server.address,
        "PAYLOAD_ENCRYPTION_KEYS": "2026:" + base64.b64encode(bytes(32)).decode(),
    }

    async def send(http: httpx.AsyncClient, name: str, one: str = "", **more: str) -> Any:
        path, example = waiting.pop(name)
        every_scope = bearer(scope=" ".join([*SCOPES, ORDERS, WORKFLOWS]))
        answer = await http.post(re.sub("{.*?}", one, path), json={**example, **more}, headers=every_scope)
        assert answer.status_code < 300, (name, answer.text)
        return answer.json() if answer.content else None

    placed = await send(alice, "createOrder")
    assert "39.98" == placed["total_amount"]
    await send(alice, "cancelOrder", placed["id"])
    async with invoices(client, task_queue):
        started = await send(alice, "startWorkflow", task_queue=task_queue)
        for name in ("signal", "query", "update", "reset", "cancel"):
            await send(alice, f"{name}Workflow", started["workflow_id"])
    endless = await client.start_workflow("order_processing", id=task_queue, task_queue=task_queue)
    await send(alice, "terminateWorkflow", endless.id)
    async with service(**encrypted) as codec:
        sealed = await send(codec, "encodePayloads")
        assert "binary/encrypted" == base64.b64decode(sealed["payloads"][0]["metadata"]["encoding"]).decode()
        await send(codec, "decodePayloads")
    assert waiting.keys() <= {"pauseWorkflow", "unpauseWorkflow"}  # the test server cannot; test_workflow_pause.py


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
