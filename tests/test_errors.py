"""Whatever goes wrong: one body, a stable code, and nothing of the service's inside."""

import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
from litestar import Controller, get
from litestar.exceptions import HTTPException, PermissionDeniedException
from litestar.params import FromQuery
from litestar.routes import HTTPRoute
from temporalio import workflow
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import ORDERS, WORKFLOWS, assert_problem, bearer, order, service
from temporal_api import app as app_module
from temporal_api import errors
from temporal_api.app import RESOURCES, create_app
from temporal_api.dev.server import DevServer
from temporal_api.errors import Problem
from temporal_api.logs import JSONFormatter
from temporal_api.problems import EXCEPTION_HANDLERS, encode_problem, phrase
from temporal_api.record import Record
from temporal_api.settings import Settings

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
START = {"workflow_type": "none", "task_queue": "nobody"}
CODES = {
    400: ["validation_error", "malformed_json", "invalid_query", "invalid_page_token", "workflow_start_error"],
    401: ["missing_token", "invalid_token", "expired_token"],
    403: ["insufficient_scope", "not_allowed", "origin_not_allowed"],
    404: ["not_found", "order_not_found", "workflow_not_found", "update_not_found"],
    405: ["method_not_allowed"],
    408: ["request_timeout"],
    409: ["workflow_already_exists", "workflow_completed", "workflow_paused", "order_not_cancellable", "reserved_id"],
    412: ["precondition_failed"],
    413: ["payload_too_large"],
    414: ["uri_too_long"],
    415: ["unsupported_media_type"],
    422: ["idempotency_key_reused", "update_rejected", "query_failed"],
    429: ["temporal_overloaded"],
    431: ["header_fields_too_large"],
    500: ["internal_server_error"],
    501: ["search_attributes_missing", "not_supported"],
    502: ["temporal_error", "payload_undecodable"],
    503: [
        *("temporal_connection_error", "no_worker", "workflow_task_failing", "too_many_waits", "auth_unavailable"),
        *("shutting_down", "overloaded"),
    ],
    504: ["temporal_timeout"],
}
STATUS = {code: status for status, codes in CODES.items() for code in codes}
INSIDE = re.compile(r"Traceback|\.py\b|temporal_api\.|temporalio|litestar|msgspec|grpc|Exception|<class|0x[0-9a-f]{6}")


@dataclass
class World:
    """What the causes of failures are made of."""

    http: httpx.AsyncClient
    alice: httpx.AsyncClient
    client: Client
    address: str
    queue: str

    async def post(self, path: str, json: Any = None, **more: Any) -> httpx.Response:
        """Alice posts."""
        return await self.alice.post(f"/api/v1{path}", json=json, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        """Alice gets."""
        return await self.alice.get(f"/api/v1{path}", **more)


@pytest.fixture
def world(
    http: httpx.AsyncClient, alice: httpx.AsyncClient, client: Client, dev_server: DevServer, task_queue: str
) -> World:
    """The shared service, its callers, and Temporal beside it."""
    return World(http, alice, client, dev_server.address, task_queue)


@workflow.defn(name="deaf")
class Deaf:
    """A workflow that knows no query."""

    @workflow.run
    async def run(self) -> None:
        """Wait for ever."""
        await workflow.wait_condition(lambda: False)


async def signalled_late(world: World) -> httpx.Response:
    """A signal to a workflow that is over."""
    workflow_id = str(uuid.uuid4())
    await world.client.start_workflow("none", id=workflow_id, task_queue=world.queue)
    await world.client.get_workflow_handle(workflow_id).terminate()
    return await world.post(f"/workflows/{workflow_id}/signal", {"signal_name": "s"})


async def changed_meanwhile(world: World) -> httpx.Response:
    """A workflow cancelled for a state that it has no longer."""
    started = await world.post("/workflows", START)
    return await world.alice.post(f"{started.headers['location']}/cancel", headers={"If-Match": '"before"'})


async def twice(world: World) -> httpx.Response:
    """The same id started again."""
    body = {**START, "workflow_id": str(uuid.uuid4())}
    await world.post("/workflows", body)
    return await world.post("/workflows", body)


async def cancelled_late(world: World) -> httpx.Response:
    """An order whose run is over."""
    placed = (await world.post("/orders", order())).json()
    await world.client.get_workflow_handle(placed["workflow_id"]).terminate()
    return await world.post(f"/orders/{placed['id']}/cancel")


async def asked_in_vain(world: World) -> httpx.Response:
    """A query that the workflow does not know."""
    runner = UnsandboxedWorkflowRunner()
    async with Worker(world.client, task_queue=world.queue, workflows=[Deaf], workflow_runner=runner):
        handle = await world.client.start_workflow(
            "deaf", id=str(uuid.uuid4()), task_queue=world.queue, run_timeout=timedelta(minutes=1)
        )
        return await world.post(f"/workflows/{handle.id}/query", {"query_name": "anything"})


async def start_with(world: World, **environ: str) -> httpx.Response:
    """A start at a service with these settings."""
    async with service(**{"TEMPORAL_ADDRESS": world.address, **environ}) as client:
        return await client.post("/api/v1/workflows", json=START)


def with_token(**claims: Any) -> Callable[[World], Awaitable[httpx.Response]]:
    """A request with a token that says this."""
    return lambda world: world.get("/workflows/x", headers=bearer(**claims))


CAUSES: dict[str, tuple[str, Callable[[World], Awaitable[httpx.Response]]]] = {
    "a missing field": ("validation_error", lambda w: w.post("/orders", {})),
    "no body": ("validation_error", lambda w: w.post("/orders", headers=JSON)),
    "a run id that is none": ("validation_error", lambda w: w.get("/workflows/x", params={"run_id": "x"})),
    "two kinds of arguments": (
        "validation_error",
        lambda w: w.post("/workflows", {**START, "args": [1], "input_data": 1}),
    ),
    "an id for no URL": ("validation_error", lambda w: w.post("/workflows", {**START, "workflow_id": "."})),
    "bad JSON": ("malformed_json", lambda w: w.post("/orders", headers=JSON, content=b"{")),
    "a name too long for Temporal": (
        "validation_error",
        lambda w: w.post("/workflows", {**START, "workflow_type": "é" * 900}),
    ),
    "a search attribute that is not there": (
        "workflow_start_error",
        lambda w: w.post("/workflows", {**START, "search_attributes": {"Nobody": {"type": "Int", "value": 1}}}),
    ),
    "no token": ("missing_token", lambda w: w.http.get("/api/v1/workflows/x")),
    "a wrong token": ("invalid_token", lambda w: w.get("/workflows/x", headers={"Authorization": "Bearer x"})),
    "an old token": ("expired_token", with_token(exp=int(time.time()) - 60)),
    "too few scopes": ("insufficient_scope", with_token(scope="orders:read")),
    "an internal query": (
        "insufficient_scope",
        lambda w: w.post("/workflows/x/query", {"query_name": "__stack_trace"}),
    ),
    "a type that is not allowed": ("not_allowed", lambda w: start_with(w, ALLOWED_WORKFLOW_TYPES="other")),
    "a queue that is not allowed": ("not_allowed", lambda w: start_with(w, ALLOWED_TASK_QUEUES="other")),
    "an unknown path": ("not_found", lambda w: w.http.get("/nowhere")),
    "an unknown path of the API": ("not_found", lambda w: w.get("/nowhere")),
    "an unknown order": ("order_not_found", lambda w: w.get(f"/orders/{uuid.uuid4()}")),
    "an order that is none": ("order_not_found", lambda w: w.get("/orders/x%2Fy")),
    "a cancel of an unknown order": ("order_not_found", lambda w: w.post(f"/orders/{uuid.uuid4()}/cancel")),
    "an unknown workflow": ("workflow_not_found", lambda w: w.get(f"/workflows/{uuid.uuid4()}")),
    "an unknown run": ("workflow_not_found", lambda w: w.get("/workflows/x", params={"run_id": str(uuid.uuid4())})),
    "a signal to nobody": ("workflow_not_found", lambda w: w.post("/workflows/x/signal", {"signal_name": "s"})),
    "an order read as a workflow": ("workflow_not_found", lambda w: w.get(f"/workflows/order-{uuid.uuid4()}")),
    "a wrong method": ("method_not_allowed", lambda w: w.alice.put("/api/v1/orders", json=order())),
    "an id that is taken": ("workflow_already_exists", twice),
    "an id of an order": ("reserved_id", lambda w: w.post("/workflows", {**START, "workflow_id": "order-x"})),
    "a signal too late": ("workflow_completed", signalled_late),
    "an order that is over": ("order_not_cancellable", cancelled_late),
    "a state that has changed": ("precondition_failed", changed_meanwhile),
    "too large a body": ("payload_too_large", lambda w: w.post("/orders", headers=JSON, content=b" " * 3_000_000)),
    "a form": ("unsupported_media_type", lambda w: w.alice.post("/api/v1/orders", data={"a": "b"})),
    "an unknown query": ("query_failed", asked_in_vain),
    "Temporal away": (
        "temporal_connection_error",
        lambda w: start_with(w, TEMPORAL_ADDRESS="127.0.0.1:1", RPC_TIMEOUT_SECONDS="1"),
    ),
    "a namespace that is not there": ("temporal_error", lambda w: start_with(w, TEMPORAL_NAMESPACE="nowhere")),
}


@pytest.mark.parametrize(("code", "cause"), CAUSES.values(), ids=CAUSES)
async def test_every_failure_has_the_one_body(
    world: World, code: str, cause: Callable[[World], Awaitable[httpx.Response]]
) -> None:
    """Its status and code are the contract's, its title is the status's, and nothing of the inside is in it."""
    response = await cause(world)

    problem = assert_problem(response, STATUS[code], code)
    assert phrase(STATUS[code]) == problem["title"]
    assert not INSIDE.search(response.text), response.text
    assert isinstance(problem["details"], dict)
    assert None not in problem["details"].values()
    if problem["details"].get("retryable"):
        assert "retry-after" in response.headers


def failures() -> list[type[Problem]]:
    """Every class of failure of the service, those of its resources too."""
    ours = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Problem)]
    return [*ours[1:], *(kind for each in RESOURCES for kind in (each.resource.NotFound, each.resource.NotCancellable))]


def test_every_code_of_the_contract_is_one_class() -> None:
    """Each code has one class, which has its status; no class has a code beside them."""
    named = [failure for failure in failures() if "code" in vars(failure)]

    assert STATUS == {failure.code: failure.status for failure in named}
    assert len(STATUS) == len(named)


@pytest.mark.parametrize("failure", [f for f in failures() if hasattr(f, "code")], ids=lambda f: f.__name__)
def test_every_failure_can_be_answered(failure: type[Problem]) -> None:
    """Its body has the code, the status and the details, and says whether and when to try again."""
    problem = failure("Why.").adding(workflow_id="w")
    retried = failure.status in (429, 503)

    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", failure.code)
    assert {
        "type": f"/problems/{failure.code}",
        "title": phrase(failure.status),
        "status": failure.status,
        "detail": "Why.",
        "error": failure.code,
        "message": "Why.",
        "details": {"workflow_id": "w", **({"retryable": True} if retried else {})},
        "request_id": "r-1",
    } == json.loads(encode_problem(problem, Record("r-1")))
    assert (str(failure.retry_after) if retried else None) == problem.headers.get("Retry-After")
    assert retried == (failure.retry_after > 0)


ADVICE = "Add|Ask|Check|Choose|Correct|Fix|Get|Quote|Read|Send|Start|Try|Use"


@pytest.mark.parametrize(
    "failure", [f for f in failures() if f.__module__ == errors.__name__], ids=lambda f: f.__name__
)
def test_every_message_says_what_to_do(failure: type[Problem]) -> None:
    """A message tells the caller, in whole sentences, what is wrong and what to do about it."""
    message = failure.__doc__ or ""

    assert re.search(rf"(^|[.] )({ADVICE})\b", message) or "header says" in message, message
    assert re.fullmatch(r"[A-Z].*\.", message)
    assert not INSIDE.search(message)


def test_what_is_not_known_is_left_out() -> None:
    """Details without a value are not sent, and what is added to a failure replaces nothing."""
    problem = errors.NotFound("Why.", {"X-A": "1"}, workflow_id="w", run_id=None, source="")
    more = problem.adding("Look.", {"X-A": "2", "X-B": "2"}, workflow_id="x", run_id="r")

    assert {"workflow_id": "w"} == problem.details
    assert ("Why. Look.", {"X-A": "1", "X-B": "2"}) == (more.message, more.headers)
    assert {"workflow_id": "w", "run_id": "r"} == more.details


# Unknown paths, wrong methods


UNKNOWN = (
    *(
        "/nope",
        "/api",
        "/api/v1",
        "/API/v1/orders",
        "/api/v1/orders/x/y",
        "/api%2Fv1/orders",
        "/health/nope",
        "/openapi",
    ),
    *("*", "/..", "/<script>", "/a?b=%3Cscript%3E", "/%e2%98%83", "/%ff", "/%00%0d%0aX-Evil:%20yes", "/x" * 2000),
)
FILES = (
    "nope.js",
    "../../../../../etc/passwd",
    "..%2f..%2f..%2fpyproject.toml",
    "%2e%2e/%2e%2e/__init__.py",
    "%00",
    "x" * 300,
    "",
    ".",
)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *((method, target) for method in ("GET", "POST", "DELETE") for target in UNKNOWN),
        *(("GET", f"/docs/assets/{name}") for name in ("nope", *(f"swagger_ui/{file}" for file in FILES))),
    ],
    ids=lambda value: value[:40],
)
async def test_an_unknown_path_is_a_404(http: httpx.AsyncClient, method: str, target: str) -> None:
    """Whatever it looks like; and it says where the known ones are."""
    response = await http.request(method, "/", extensions={"target": target.encode()})

    assert "/openapi.json" in assert_problem(response, 404, "not_found")["message"]
    assert "x-evil" not in response.headers


def paths(settings: Settings) -> dict[str, set[str]]:
    """Every path of the service, its parameters filled in, and its methods."""
    return {
        re.sub(r"\{[^}]*\}", "x", route.path): set(route.methods)
        for route in create_app(settings).routes
        if isinstance(route, HTTPRoute)
    }


async def test_a_wrong_method_is_a_405_that_lists_the_right_ones(http: httpx.AsyncClient, settings: Settings) -> None:
    """On every path of the service, public or not, for every method that it does not have."""
    for path, methods in paths(settings).items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE"} - methods:
            response = await http.request(method, path)
            problem = assert_problem(response, 405, "method_not_allowed")
            assert method in problem["message"]
            allowed = {name.strip() for name in response.headers["allow"].split(",")}
            assert {*methods, *(["HEAD"] if "GET" in methods else [])} == allowed, path


async def test_options_lists_the_methods(http: httpx.AsyncClient) -> None:
    """A public path tells its methods to everyone, with no content."""
    response = await http.options("/health/live")

    assert (204, b"") == (response.status_code, response.content)
    assert {"GET", "OPTIONS"} <= {name.strip() for name in response.headers["allow"].split(",")}


async def test_options_lists_the_methods_of_all_controllers(alice: httpx.AsyncClient, settings: Settings) -> None:
    """Each path's own, also where several controllers share it."""
    for path, methods in paths(settings).items():
        response = await alice.options(path)
        methods |= {"HEAD"} if "GET" in methods else set()
        assert (204, methods) == (response.status_code, set(response.headers["allow"].split(", "))), path


# Defects


SECRET = "hunter2"


def fail(how: str) -> Any:
    """Fail in one of the ways that code fails."""
    match how:
        case "a deep error":
            try:
                {}[SECRET]
            except KeyError as error:
                raise ValueError(SECRET) from error
        case "Litestar's own 403":
            raise PermissionDeniedException(SECRET)
        case "a status of no code":
            raise HTTPException(SECRET, status_code=418)
        case "a gRPC error":
            raise RPCError(SECRET, RPCStatusCode.INTERNAL, b"")
        case "a timeout":
            raise TimeoutError(SECRET)
        case "a group":
            raise ExceptionGroup(SECRET, [ValueError(SECRET)])
        case "recursion":
            return fail(how)
        case "an assertion":
            raise AssertionError(SECRET)
        case "a failure of no code":
            raise Problem(SECRET)
    return object()  # which no encoder knows


class Broken(Controller):
    """A resource with every defect."""

    path = "/broken"

    @get(scope="orders:read")
    async def break_down(self, how: FromQuery[str]) -> dict[str, Any]:
        """Fail so."""
        return {"answer": fail(how)}


DEFECTS = (
    *("a deep error", "Litestar's own 403", "a status of no code", "a gRPC error", "a timeout", "a group", "recursion"),
    *("an assertion", "a failure of no code", "an answer that is no JSON"),
)


@pytest.fixture(scope="module")
async def broken(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service with that resource."""
    async with AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app_module, "CONTROLLERS", [Broken])
            client = await stack.enter_async_context(service(TEMPORAL_ADDRESS="127.0.0.1:1"))
        yield client


def logged(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """The one line that the log has of a defect, as it stands there."""
    (record,) = (record for record in caplog.records if record.exc_info)
    line = JSONFormatter().format(record)
    assert "\n" not in line
    told: dict[str, Any] = json.loads(line)
    return told


@pytest.mark.parametrize("how", DEFECTS)
async def test_a_defect_is_a_500_that_says_nothing(
    broken: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """The caller learns the request's id, the log the traceback under the same id, and the service goes on."""
    caplog.set_level(logging.INFO)
    response = await broken.get("/api/v1/broken", params={"how": how})

    problem = assert_problem(response, 500, "internal_server_error")
    assert {} == problem["details"]
    assert SECRET not in response.text
    assert not INSIDE.search(response.text)
    line = logged(caplog)
    assert (problem["request_id"], "error") == (line["request_id"], line["level"])
    assert "Traceback (most recent call last)" in line["traceback"]
    assert "break_down" in line["traceback"] or how == "an answer that is no JSON"
    assert 200 == (await broken.get("/health/live")).status_code


async def test_a_defect_in_telling_a_defect_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when the error handlers themselves fail, the answer is the one body and the log has its traceback."""

    def worse(*_: object) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setitem(EXCEPTION_HANDLERS, Problem, worse)
    async with service(TEMPORAL_ADDRESS="127.0.0.1:1") as client:
        response = await client.get("/api/v1/orders/x", headers={"Authorization": "none"})

    problem = assert_problem(response, 500, "internal_server_error")
    assert SECRET not in response.text
    assert problem["request_id"] == logged(caplog)["request_id"]


async def test_a_refusal_is_no_defect(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What callers do wrong is in the access log, and fills no log with tracebacks."""
    caplog.set_level(logging.DEBUG)
    for code in (
        "an unknown path",
        "bad JSON",
        "no token",
        "an unknown workflow",
        "a wrong method",
        "too large a body",
    ):
        await CAUSES[code][1](world)

    assert [] == [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert ORDERS.split()[0] not in caplog.text
    assert WORKFLOWS.split()[0] not in caplog.text
