"""What a request may be: bodies are decoded once and strictly, and a path carries any workflow id."""

import asyncio
import gzip
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest

from api import WORKFLOWS, assert_problem, bearer, order, service

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
ORDERS, STARTS = "/api/v1/orders", "/api/v1/workflows"


def with_raw(place: str, text: str, value: dict[str, Any] | None = None) -> bytes:
    """A valid order as JSON text, with exactly this text at that place (`items[0].quantity`)."""
    body: Any = value or order()
    *path, last = place.replace("[0]", ".0").split(".")
    inner = body
    for name in path:
        inner = inner[int(name) if name.isdigit() else name]
    inner[int(last) if last.isdigit() else last] = msgspec.Raw(text.encode("utf-8", "surrogatepass"))
    return msgspec.json.encode(body)


async def refused(client: httpx.AsyncClient, path: str, body: bytes, **headers: str) -> tuple[str, str, str]:
    """The code of the refusal (a 400 or 415), the field that it names, and what it says of it."""
    response = await client.post(path, content=body, headers=headers or JSON)
    code = response.json().get("error")
    problem = assert_problem(response, 415 if code == "unsupported_media_type" else 400, code)
    if code != "validation_error":
        assert {} == problem["details"]
        return code, "", problem["message"]
    error, *others = problem["details"]["errors"]
    message = f"{error['key']}: {error['message']}" if error["key"] else error["message"]
    assert problem["message"].startswith(message) if others else problem["message"] == message
    return code, error["key"], error["message"]


# Types


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("items[0].quantity", '"2"', "Expected an integer, got a string"),
        ("items[0].quantity", "true", "Expected an integer, got a boolean"),
        ("items[0].quantity", "null", "Expected an integer, got null"),
        ("items[0].quantity", "[2]", "Expected an integer, got array"),
        ("items[0].quantity", "{}", "Expected an integer, got object"),
        ("items[0].quantity", "2.5", "Expected an integer, got a number"),
        ("items[0].quantity", "0", "Expected an integer >= 1"),
        ("items[0].quantity", "-1", "Expected an integer >= 1"),
        ("items[0].quantity", "1000001", "Expected an integer <= 1000000"),
        ("items[0].quantity", "1" + "0" * 30, "Expected an integer <= 1000000"),
        ("items[0].quantity", "1e9999999", "Number out of range"),
        ("items[0].unit_price", "true", "Expected a price from 0 to 10^12, such as 19.99"),
        ("items[0].unit_price", '"NaN"', "Expected a price from 0 to 10^12, such as 19.99"),
        ("items[0].unit_price", '"Infinity"', "Expected a price from 0 to 10^12, such as 19.99"),
        ("items[0].unit_price", "1e9999999", "Expected a price from 0 to 10^12, such as 19.99"),
        ("items[0].unit_price", "-1", "Expected a price from 0 to 10^12, such as 19.99"),
        ("items[0].id", "7", "Expected a string, got an integer"),
        ("items[0].id", '""', "Expected a string of length >= 1"),
        ("items[0]", "7", "Expected object, got an integer"),
        ("items", "{}", "Expected array, got object"),
        ("items", "[]", "Expected array of length >= 1"),
        ("customer_id", "null", "Expected a string, got null"),
        ("customer_id", "1.5", "Expected a string, got a number"),
        ("shipping_address", '"Main Street"', "Expected object, got a string"),
        ("shipping_address", '{"street": 1}', "Expected a string, got an integer"),
        ("payment_details", "[]", "Expected object, got array"),
    ],
)
async def test_a_value_is_what_it_is(alice: httpx.AsyncClient, place: str, text: str, message: str) -> None:
    """Nothing is taken for something else; the refusal names the field by its path and says what is expected."""
    code, key, said = await refused(alice, ORDERS, with_raw(place, text))

    assert ("validation_error", message) == (code, said)
    assert key == (f"{place}.street" if "street" in text else place)


@pytest.mark.parametrize("text", ["2.0", "2e0", "20E-1"])
async def test_a_whole_number_is_written_as_one(alice: httpx.AsyncClient, text: str) -> None:
    """A quantity with a fraction or an exponent is refused, whatever its value."""
    expected = ("validation_error", "items[0].quantity", "Expected an integer, got a number")
    assert expected == await refused(alice, ORDERS, with_raw("items[0].quantity", text))


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        *((ORDERS, name) for name in ("customer_id", "items", "shipping_address", "payment_method", "payment_details")),
        *((ORDERS, f"items[0].{name}") for name in ("id", "quantity", "unit_price")),
        (STARTS, "workflow_type"),
        (f"{STARTS}/x/signal", "signal_name"),
        (f"{STARTS}/x/query", "query_name"),
    ],
)
async def test_a_missing_field_is_named(alice: httpx.AsyncClient, path: str, missing: str) -> None:
    """By its path, in every operation that takes a body."""
    body = order() if path == ORDERS else {}
    holder = body["items"][0] if "[0]" in missing else body
    name = missing.rpartition(".")[2]
    holder.pop(name, None)

    expected = ("validation_error", missing, f"Object missing required field {name}")
    assert expected == await refused(alice, path, msgspec.json.encode(body))


@pytest.mark.parametrize(
    ("path", "body", "key", "help"),
    [
        (ORDERS, order(discount=1), "discount", "there are customer_id, items, payment_details"),
        (
            ORDERS,
            order(items=[{"id": "a", "quantity": 1, "unit_price": 1, "price": 1}]),
            "items[0].price",
            "did you mean unit_price? There are id, name, quantity, sku, unit_price",
        ),
        (ORDERS, order(Customer_Id="x"), "Customer_Id", "did you mean customer_id? There are customer_id, "),
        (f"{ORDERS}/x/cancel", {"because": "x"}, "because", "there is reason"),
        (STARTS, {"workflow_type": "t", "workflowId": "x"}, "workflowId", "did you mean workflow_id? There are args, "),
        (f"{STARTS}/x/signal", {"signal_name": "s", "input": 1}, "input", "there are signal_args, "),
        (f"{STARTS}/x/query", {"query_name": "q", "": 1}, "", "there are query_args, query_name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_unknown_field_is_refused(alice: httpx.AsyncClient, path: str, body: Any, key: str, help: str) -> None:
    """A misspelt field is not passed over in silence: the known ones are named, and the one that looks like it."""
    code, found, said = await refused(alice, path, msgspec.json.encode(body))

    assert ("validation_error", key) == (code, found)
    assert said.startswith(f"Unknown field; {help}")


async def test_of_a_field_that_comes_twice_the_last_counts(alice: httpx.AsyncClient) -> None:
    """As in most JSON readers; and the first is checked no less."""
    items = [{"id": "a", "quantity": 1, "unit_price": 1}]
    text = json.dumps(order(items=items))[:-1]

    response = await alice.post(ORDERS, content=text + ', "customer_id": "second"}', headers=JSON)
    assert (201, "second") == (response.status_code, response.json().get("customer_id"))
    first_is_wrong = '{"customer_id": 1, ' + text[1:] + "}"
    assert "customer_id" == (await refused(alice, ORDERS, first_is_wrong.encode()))[1]


# What is no JSON


DEEP = 10_000
NOT_JSON = {
    "blank": b"   ",
    "cut": b'{"customer_id": "a',
    "open": b"{",
    "two": json.dumps(order()).encode() * 2,
    "trailing comma": b'{"customer_id": "a",}',
    "comment": json.dumps(order()).encode() + b"// x",
    "single quotes": b"{'customer_id': 'a'}",
    "bare name": b'{customer_id: "a"}',
    "NaN": with_raw("items[0].unit_price", "NaN"),
    "Infinity": with_raw("items[0].unit_price", "Infinity"),
    "-Infinity": with_raw("items[0].quantity", "-Infinity"),
    "leading zero": with_raw("items[0].quantity", "02"),
    "plus": with_raw("items[0].quantity", "+2"),
    "hexadecimal": with_raw("items[0].quantity", "1x2"),
    "NaN that is passed on": with_raw("payment_details", '{"a": NaN}'),
    "control character": with_raw("customer_id", '"a\nb"'),
    "bad escape": with_raw("customer_id", r'"\x41"'),
    "bad escape that is passed on": with_raw("payment_details", r'{"a": "\x41"}'),
    "lone surrogate": with_raw("customer_id", r'"\ud800"'),
    "half a pair": with_raw("customer_id", r'"\ud83dx"'),
    "surrogate bytes": with_raw("customer_id", '"\ud800"'),
    "not UTF-8": b'{"customer_id": "\xff"}',
    "not UTF-8 that is passed on": with_raw("payment_details", '{"a": "?"}').replace(b"?", b"\xc3\x28"),
    "overlong": b'{"customer_id": "\xc0\xaf"}',
    "BOM": b"\xef\xbb\xbf" + json.dumps(order()).encode(),
    "UTF-16": json.dumps(order()).encode("utf-16"),
    "NUL": json.dumps(order()).encode() + b"\0",
    "XML": b"<order/>",
    "form": b"customer_id=a",
    "wrong, then no JSON": b'{"customer_id": 7, "unknown": NaN}',
    "wrong, then more": b'{"customer_id": 7}{}',
    "deep, and wrong": b"[" * DEEP,
    "deep that is passed on": with_raw("payment_details", '{"a": ' + "[" * DEEP + "]" * DEEP + "}"),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
async def test_what_is_no_json_is_refused(alice: httpx.AsyncClient, body: bytes) -> None:
    """Whatever its bytes: 400, in words that a caller understands, and nothing is passed on to Temporal."""
    code, _, said = await refused(alice, ORDERS, body)

    assert "malformed_json" == code
    assert said.startswith("The body is not JSON: ")
    assert "codec" not in said
    assert "Error" not in said


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (NOT_JSON["BOM"], "it begins with a byte order mark"),
        (gzip.compress(json.dumps(order()).encode()), "it is compressed"),
        (NOT_JSON["UTF-16"], "it is not UTF-8"),
        (NOT_JSON["deep that is passed on"], "it is nested too deeply"),
    ],
    ids=["BOM", "gzip", "UTF-16", "deep"],
)
async def test_what_is_wrong_with_the_bytes_is_named(alice: httpx.AsyncClient, body: bytes, cause: str) -> None:
    """Where the mistake is not in the JSON but around it, the message says so."""
    assert (await refused(alice, ORDERS, body))[2].startswith(f"The body is not JSON: {cause}")


@pytest.mark.parametrize("depth", [500, DEEP])
async def test_deep_json_never_breaks_the_service(alice: httpx.AsyncClient, depth: int) -> None:
    """What can be taken is passed on, what is too deep is refused; a server error it is never."""
    body = {"workflow_type": "t", "input_data": msgspec.Raw(b"[" * depth + b"]" * depth)}
    response = await alice.post(STARTS, content=msgspec.json.encode(body), headers=JSON)

    if depth == DEEP:
        assert_problem(response, 400, "malformed_json")
    else:
        assert 201 == response.status_code


@pytest.mark.parametrize("text", ["null", "[]", "7", '"text"', "true", "[" * 99 + "]" * 99], ids=lambda text: text[:5])
async def test_a_body_is_an_object(alice: httpx.AsyncClient, text: str) -> None:
    """JSON that is no object is told so, with no field named."""
    code, key, said = await refused(alice, ORDERS, text.encode())

    assert ("validation_error", "") == (code, key)
    assert said.startswith("Expected object, got ")


async def test_no_body_at_all(alice: httpx.AsyncClient) -> None:
    """Where one is needed it is missed; where it is optional its default counts."""
    assert ("validation_error", "", "Expected a JSON body; there is none.") == await refused(alice, ORDERS, b"")
    assert_problem(await alice.post(f"{ORDERS}/{uuid.uuid4()}/cancel"), 404, "order_not_found")
    assert_problem(await alice.post(f"{ORDERS}/{uuid.uuid4()}/cancel", json={}), 404, "order_not_found")


# Content types


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=ISO-8859-1",  # RFC 8259 has no charset: it is UTF-8
        "application/json ;x",
        "application/merge-patch+json",
        "application/vnd.shop.order.v1+json; profile=x",
    ],
)
async def test_json_by_any_of_its_names(alice: httpx.AsyncClient, kind: str) -> None:
    """`application/json` and what ends with `+json`, with any parameters."""
    body = json.dumps(order(customer_id="Zoë"), ensure_ascii=False).encode()

    response = await alice.post(ORDERS, content=body, headers={"Content-Type": kind})

    assert (201, "Zoë") == (response.status_code, response.json().get("customer_id"))


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/jsonx",
        "application/x-json",
        "json",
        "+json",
        "text/html+json",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "*/*",
        "application/json, text/plain",
    ],
)
async def test_any_other_content_type_is_refused(alice: httpx.AsyncClient, kind: str | None) -> None:
    """A page's form cannot be made to place an order: the type is not JSON's, whatever the body is."""
    headers = {} if kind is None else {"Content-Type": kind}
    request = alice.build_request("POST", ORDERS, content=json.dumps(order()), headers=headers)
    if kind is None:
        request.headers.pop("Content-Type", None)

    problem = assert_problem(await alice.send(request), 415, "unsupported_media_type")

    assert "The body is not sent as JSON. Send JSON, with Content-Type: application/json." == problem["message"]


# Size


@pytest.fixture(scope="module")
async def small(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """A service that takes bodies of up to 1024 bytes, with Temporal away: nothing it answers needs Temporal."""
    async with service(MAX_BODY_BYTES="1024", TEMPORAL_ADDRESS="127.0.0.1:1", RPC_TIMEOUT_SECONDS="0.5") as client:
        yield client


def of_size(size: int) -> bytes:
    """A body of exactly that many bytes; valid JSON, but no order."""
    return b'{"customer_id": ""}'.ljust(size)


async def in_pieces(body: bytes, size: int = 100) -> AsyncIterator[bytes]:
    """The body as a client sends it whose length it does not know: chunked."""
    for at in range(0, len(body), size):
        yield body[at : at + size]


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
async def test_a_body_that_is_too_large_is_refused(small: httpx.AsyncClient, chunked: bool) -> None:
    """One byte over the limit is a 413, however it is sent; the limit itself is not."""
    for size, status, code in ((1024, 400, "validation_error"), (1025, 413, "payload_too_large")):
        body = of_size(size)
        response = await small.post(ORDERS, content=in_pieces(body) if chunked else body, headers=JSON)
        problem = assert_problem(response, status, code)
    assert "The body is larger than this service takes." == problem["message"]


async def test_the_limit_is_told_before_the_body_comes(small: httpx.AsyncClient) -> None:
    """A client that declares too much, or never ends, is answered while it still sends."""
    for head in (b"Content-Length: 10000000000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n800\r\n" + b" " * 2048):
        reader, writer = await asyncio.open_connection("127.0.0.1", small.base_url.port)
        authorization = small.headers["authorization"].encode()
        writer.write(b"POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n" % authorization)
        writer.write(b"Content-Type: application/json\r\n" + head)
        async with asyncio.timeout(60):
            assert b"HTTP/1.1 413 " == (await reader.readline())[:13]
        writer.close()


async def test_the_default_limit_is_two_mebibytes(alice: httpx.AsyncClient) -> None:
    """What Temporal itself takes for one payload."""
    assert "customer_id" == (await refused(alice, ORDERS, of_size(2_097_152)))[1]
    assert_problem(await alice.post(ORDERS, content=of_size(2_097_153), headers=JSON), 413, "payload_too_large")


# Any workflow id


IDS = [
    "{}",
    "a/{}",
    "/{}",
    "{}/",
    "//{}//",
    "a/../{}",
    "../{}",
    "./{}/.",
    "..{}",
    "{}..",
    "...{}",
    " {}",
    "{} ",
    "a b {}",
    "%{}",
    "{}%",
    "%%{}",
    "100% {}",
    "%2F{}",
    "%2f{}%2F",
    "%252F{}",
    "%25{}",
    "%20{}",
    "%zz{}",
    "{}%2",
    "%u0041{}",
    "{}+x",
    "{}?a=b",
    "{}#c",
    "?#&{}",
    "{};v=1,2",
    "{}:8000@x",
    "http://x/{}",
    "'{}'",
    '"{}"',
    "`{}`",
    "<script>{}</script>",
    "\\{}\\",
    "[{}]",
    "{{{}}}",
    "$({})",
    "{}\t",
    "{}\nx",
    "{}\r\nX-Injected: 1",
    "\x01{}",
    "\x7f{}",
    "é{}",
    "e\u0301{}",
    "日本語{}",
    "עברית{}",
    "🚀{}",
    "👩‍👩‍👧{}",
    "\u202e{}",
    "\u2028{}",
    "\ufeff{}",
    "\ufffd{}",
    "{}/signal",
    "{}/query?x",
    "orders-{}",
    "Order-{}",
    "x" * 962 + "-{}",
]


async def started(client: httpx.AsyncClient, template: str) -> tuple[str, str]:
    """A workflow with an id of that form, and its Location; no worker ever takes it."""
    workflow_id = template.format(uuid.uuid4())
    body = {"workflow_type": "none", "task_queue": f"nobody-{uuid.uuid4()}", "workflow_id": workflow_id}
    response = await client.post(STARTS, json=body)
    assert (201, workflow_id) == (response.status_code, response.json().get("workflow_id")), response.text
    return workflow_id, response.headers["location"]


async def ask(client: httpx.AsyncClient, target: str, method: str = "GET", **more: Any) -> httpx.Response:
    """A request for exactly this target, which httpx would tidy up otherwise."""
    return await client.request(method, "/", extensions={"target": target.encode("ascii")}, **more)


@pytest.mark.parametrize("template", IDS, ids=lambda t: ascii(t)[:40])
async def test_any_id_is_addressable(alice: httpx.AsyncClient, template: str) -> None:
    """Whatever id Temporal takes: its Location is plain ASCII in one path segment and leads to it, and to no other."""
    workflow_id, location = await started(alice, template)

    assert location == f"{STARTS}/{quote(workflow_id, safe='')}"
    assert workflow_id == (await ask(alice, location)).json()["workflow_id"]
    signal = await ask(alice, f"{location}/signal", "POST", json={"signal_name": "s"})
    assert (202, workflow_id) == (signal.status_code, signal.json().get("workflow_id"))
    problem = assert_problem(await ask(alice, f"{location}x"), 404, "workflow_not_found")
    assert f"{workflow_id}x"[:199] == problem["details"]["workflow_id"][:199]


async def test_ids_are_read_however_they_are_encoded(alice: httpx.AsyncClient) -> None:
    """Clients differ in what they encode: lower-case hex, every byte, or only what must be."""
    workflow_id, location = await started(alice, "a/b %2F:@!$&'()*+,;=~é{}")
    hexed = "".join(f"%{byte:02X}" for byte in workflow_id.encode())
    targets = [
        location,
        f"{STARTS}/{hexed}",
        f"{STARTS}/{hexed.lower()}",
        f"{STARTS}/{quote(workflow_id, safe=':@!$&()*+,;=~')}",
        f"{location}/",
        f"{location}?run_id=",
        f"//api/v1//workflows//{quote(workflow_id, safe='')}",
    ]

    assert [workflow_id] * len(targets) == [(await ask(alice, t)).json().get("workflow_id") for t in targets]


async def test_ids_never_get_mixed_up(alice: httpx.AsyncClient) -> None:
    """Requests for different ids at the same time, over and over, each read their own."""
    known = await asyncio.gather(*(started(alice, t) for t in ("a/{}", "a%2F{}", "%{}", "é {}", "{}", "/{}/")))

    answers = await asyncio.gather(*(ask(alice, location) for _ in range(10) for _, location in known))

    assert [workflow_id for workflow_id, _ in known] * 10 == [answer.json()["workflow_id"] for answer in answers]


@pytest.mark.parametrize("workflow_id", [".", ".."])
async def test_ids_that_no_url_can_carry_are_refused(alice: httpx.AsyncClient, workflow_id: str) -> None:
    """URL libraries remove `.` and `..`, encoded or not: no such workflow is started."""
    body = msgspec.json.encode({"workflow_type": "t", "workflow_id": workflow_id})

    code, key, _ = await refused(alice, STARTS, body)

    assert ("validation_error", "workflow_id") == (code, key)


@pytest.mark.parametrize("target", ["%FF", "%C3%28", "%ED%A0%80", "%00", "%0A"])
async def test_a_path_that_is_no_text_is_not_found(alice: httpx.AsyncClient, target: str) -> None:
    """Bytes that are no UTF-8, and ids that nothing has, never break anything."""
    assert_problem(await ask(alice, f"{STARTS}/{target}"), 404, "workflow_not_found")


async def test_encoding_does_not_get_around_reserved_ids(alice: httpx.AsyncClient) -> None:
    """`order-` is hidden from operators however it is written."""
    placed = (await alice.post(ORDERS, json=order())).json()["workflow_id"]
    hexed = "".join(f"%{byte:02X}" for byte in placed.encode())
    operator = bearer(sub="alice", scope=WORKFLOWS)

    for target in (placed, hexed, hexed.lower(), f"%6Frder-{placed[6:]}", f"order%2D{placed[6:]}"):
        problem = assert_problem(await ask(alice, f"{STARTS}/{target}", headers=operator), 404, "workflow_not_found")
        assert placed == problem["details"]["workflow_id"]


# What is not ignored


@pytest.mark.parametrize("coding", [["gzip"], ["br"], ["identity", "gzip"], ["identity, deflate"], ["x"]])
async def test_a_body_with_a_coding_is_refused(alice: httpx.AsyncClient, coding: list[str]) -> None:
    """A compressed body is a 415 that says what is taken (RFC 9110 12.5.3); `identity` is none."""
    content = json.dumps(order()).encode()
    headers = [("Content-Type", "application/json"), *(("Content-Encoding", each) for each in coding)]
    response = await alice.post(ORDERS, content=content, headers=headers)
    plain = [
        await alice.post(ORDERS, content=content, headers={**JSON, "Content-Encoding": none})
        for none in ("Identity", "", "identity, identity")
    ]

    assert_problem(response, 415, "unsupported_media_type")
    assert "identity" == response.headers["accept-encoding"]
    assert [201] * 3 == [each.status_code for each in plain]


async def test_an_idempotency_key_comes_once(alice: httpx.AsyncClient) -> None:
    """A start, an order, a signal or an update with two keys is a 400: which one would count?"""
    path = f"{STARTS}/x"
    start = {"workflow_type": "none", "task_queue": f"nobody-{uuid.uuid4()}"}
    for target, body in (
        (ORDERS, order()),
        (STARTS, start),
        (f"{path}/signal", {"signal_name": "s"}),
        (f"{path}/updates", {"update_name": "u"}),
    ):
        for keys in (["a", "b"], ["a", "a"]):
            headers = [("Idempotency-Key", key) for key in keys]
            problem = assert_problem(await alice.post(target, json=body, headers=headers), 400, "validation_error")
            assert "Idempotency-Key: Expected it once" == problem["message"]


async def test_every_operation_refuses_parameters_that_it_does_not_know(
    http: httpx.AsyncClient, contract: dict[str, Any]
) -> None:
    """An unknown query parameter, or one that comes twice, is a 400 that lists the known ones, in every operation."""
    scopes = {scope for path in contract["paths"].values() for method in path.values() for scope in scopes_of(method)}
    headers = bearer(scope=" ".join(scopes))
    asked = 0
    for path, methods in contract["paths"].items():
        for method, operation in methods.items():
            if not scopes_of(operation):
                continue
            asked += 1
            known = {p["name"]: p["schema"] for p in operation.get("parameters", ()) if p["in"] == "query"}
            target = path.replace("{", "").replace("}", "")
            unknown = await http.request(method, target, params={"Page_size": "1"}, headers=headers)
            (error,) = assert_problem(unknown, 400, "validation_error")["details"]["errors"]
            assert "Page_size" == error["key"]
            assert all(name in error["message"] for name in known), (method, path)
            for name in (name for name, schema in known.items() if schema["type"] != "array"):
                twice = await http.request(method, target, params={name: ["1", "1"]}, headers=headers)
                (error,) = assert_problem(twice, 400, "validation_error")["details"]["errors"]
                assert (name, "Expected it once") == (error["key"], error["message"]), (method, path)
    assert asked > 20


def scopes_of(operation: dict[str, Any]) -> set[str]:
    """The scopes of which one is enough."""
    return {scope for each in operation.get("security", ()) for scope in each["bearer"]}


async def test_no_permission_outranks_an_unknown_parameter(http: httpx.AsyncClient) -> None:
    """Who may not ask learns nothing of what there is to ask."""
    assert_problem(await http.get(ORDERS, params={"x": "1"}), 401, "missing_token")
    answer = await http.get(ORDERS, params={"x": "1"}, headers=bearer(scope=WORKFLOWS))
    assert_problem(answer, 403, "insufficient_scope")
