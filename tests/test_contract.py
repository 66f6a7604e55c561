"""What Temporal's own HTTP API does, case by case, and what this service promises instead.

The tests mirror, in its order, a table of what its server (1.29) answered, and then the list of what it does not have.
In parentheses: what Temporal answers.
"""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from httpx import AsyncClient, Response
from temporalio import workflow
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import SOON, WORKFLOWS, assert_problem, bearer, eventually, resolved, service
from temporal_api.dev.server import DevServer
from temporal_api.temporal.failures import problem_of, start_subject, workflow_subject

pytestmark = pytest.mark.anyio

START = "/api/v1/workflows"
JSON = {"Content-Type": "application/json"}
WAIT = {"Prefer": "wait=20"}
ADMIN = bearer("operator", f"{WORKFLOWS} workflows:admin")
CLERK = bearer("clerk", f"{WORKFLOWS} orders:admin")
REASON = {"reason": "the test says so"}
UNINDEXED = {"Nowhere": {"type": "Int", "value": 1}}


@workflow.defn(name="contract")
class Contract:
    """Takes updates until the signal `finish`."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @workflow.run
    async def run(self, fail: bool = False) -> int:
        """Wait for the end, and count the updates."""
        await workflow.wait_condition(lambda: "finish" in self.seen)
        if fail:
            raise ApplicationError("as it was told", type="Told")
        return self.seen.count("put")

    @workflow.signal(dynamic=True)
    def any(self, name: str, _: Sequence[RawValue]) -> None:
        """Note it."""
        self.seen.append(name)

    @workflow.update
    def put(self, value: RawValue) -> RawValue:
        """Count it, and give it back as it is, unless it is sold."""
        if value.payload.data == b'"sold"':
            raise ApplicationError("out of stock", type="Stock")
        self.seen.append("put")
        return value

    @put.validator
    def _put(self, value: RawValue) -> None:
        if value.payload.data == b"null":
            raise ApplicationError("nothing to put", type="Nothing")

    @workflow.update(unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON)
    async def slow(self) -> bytes:
        """After the signal `release`, give what JSON cannot carry."""
        await workflow.wait_condition(lambda: "release" in self.seen)
        return b"\x00\xff"


@pytest.fixture(scope="module")
async def alice(alice: AsyncClient, contract: dict[str, Any]) -> AsyncIterator[AsyncClient]:
    """Alice, who gets no header that the contract does not declare for that answer."""
    paths = {re.compile(re.sub("{.*?}", "[^/]+", path)): operations for path, operations in contract["paths"].items()}
    names = {name.lower() for name in contract["components"]["headers"]}

    async def check(response: Response) -> None:
        path, method = response.request.url.raw_path.decode().partition("?")[0], response.request.method.lower()
        for pattern, operations in paths.items():
            answer = operations.get(method, {}).get("responses", {}).get(str(response.status_code))
            if answer and pattern.fullmatch(path):
                declared = {name.lower() for name in resolved(contract, answer)["headers"]}
                assert names & set(response.headers) <= declared, (method, path, response.status_code)

    async with AsyncClient(
        base_url=alice.base_url, timeout=30, headers=alice.headers, event_hooks={"response": [check]}
    ) as client:
        yield client


@pytest.fixture(scope="module")
async def queue(client: Client) -> AsyncIterator[str]:
    """A task queue with a worker for `contract`; `task_queue` is one that nobody polls."""
    name = f"contract-{uuid.uuid4()}"
    async with Worker(client, task_queue=name, workflows=[Contract], workflow_runner=UnsandboxedWorkflowRunner()):
        yield name


async def start(alice: AsyncClient, queue: str, headers: Any = None, **body: Any) -> Response:
    """Ask for a start."""
    return await alice.post(START, json={"workflow_type": "contract", "task_queue": queue, **body}, headers=headers)


async def running(alice: AsyncClient, queue: str, **body: Any) -> str:
    """The path of a new run."""
    return str((await start(alice, queue, **body)).headers["location"])


async def signal(alice: AsyncClient, path: str, name: str) -> Response:
    """Send a signal."""
    return await alice.post(f"{path}/signal", json={"signal_name": name})


async def finish(alice: AsyncClient, path: str) -> Any:
    """End it, and see what it gave back."""
    await signal(alice, path, "finish")
    return (await alice.get(f"{path}/result", headers=WAIT)).json()["result"]


async def update(alice: AsyncClient, path: str, name: str, headers: Any = None, **body: Any) -> Response:
    """Send an update."""
    return await alice.post(f"{path}/updates", json={"update_name": name, **body}, headers=headers)


async def test_start(alice: AsyncClient, queue: str) -> None:
    """A start is a 201 that says where the run is (Temporal: 200, no Location)."""
    response = await start(alice, queue)
    assert (201, "RUNNING") == (response.status_code, response.json()["status"])
    assert response.json()["run_id"] == (await alice.get(response.headers["location"])).json()["run_id"]


async def test_start_of_an_id_that_runs(alice: AsyncClient, queue: str) -> None:
    """Taken: 409 with a code and the run that has the id (Temporal: 409 code 6, the run within a protobuf)."""
    first = (await start(alice, queue)).json()
    refused = await start(alice, queue, workflow_id=first["workflow_id"])
    assert first["run_id"] == assert_problem(refused, 409, "workflow_already_exists")["details"]["run_id"]


async def test_start_again_with_the_same_key(alice: AsyncClient, queue: str) -> None:
    """The same run as it is now, said to be a replay, after its end too (Temporal: the same run, not marked)."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    answers = [await start(alice, queue, key), await start(alice, queue, key)]
    await finish(alice, answers[0].headers["location"])
    answers.append(await start(alice, queue, key))
    assert ["RUNNING", "RUNNING", "COMPLETED"] == [answer.json()["status"] for answer in answers]
    assert [None, "true", "true"] == [answer.headers.get("idempotent-replayed") for answer in answers]
    assert {(201, answers[0].json()["run_id"])} == {(answer.status_code, answer.json()["run_id"]) for answer in answers}
    assert answers[1].elapsed < SOON


async def test_start_with_the_same_key_and_another_input(alice: AsyncClient, queue: str) -> None:
    """A key that is used for something else is a 422 (Temporal: 200 with the first run, the difference ignored)."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    assert 201 == (await start(alice, queue, key, input_data=False)).status_code
    assert_problem(await start(alice, queue, key, input_data=True), 422, "idempotency_key_reused")


async def test_start_with_use_existing(alice: AsyncClient, queue: str) -> None:
    """The status tells: 201 created, 200 attached (Temporal: 200 for both, told by a field that is left out)."""
    body = {"workflow_id": str(uuid.uuid4()), "id_conflict_policy": "USE_EXISTING"}
    first, second = await start(alice, queue, **body), await start(alice, queue, **body)
    assert (201, 200, first.json()["run_id"]) == (first.status_code, second.status_code, second.json()["run_id"])


async def test_start_after_the_end_with_reject_duplicate(alice: AsyncClient, queue: str) -> None:
    """A 409 that names the closed run (Temporal: 409 code 6, the run within a protobuf)."""
    first = (await start(alice, queue)).json()
    await finish(alice, f"{START}/{first['workflow_id']}")
    refused = await start(alice, queue, workflow_id=first["workflow_id"], id_reuse_policy="REJECT_DUPLICATE")
    assert first["run_id"] == assert_problem(refused, 409, "workflow_already_exists")["details"]["run_id"]


async def test_an_unknown_id(alice: AsyncClient) -> None:
    """404 `workflow_not_found` with the id, in every call (Temporal: 404 code 5, as for a closed run)."""
    path = f"{START}/nobody"
    for answer in (await alice.get(path), await alice.post(f"{path}/cancel"), await signal(alice, path, "finish")):
        assert "nobody" == assert_problem(answer, 404, "workflow_not_found")["details"]["workflow_id"]


async def test_signal_terminate_and_update_of_a_closed_run(alice: AsyncClient, queue: str) -> None:
    """A closed run is told from an unknown one: 409, not 404 (Temporal: 404 for both)."""
    path = await running(alice, queue)
    await finish(alice, path)
    for action, body in (("signal", {"signal_name": "x"}), ("terminate", REASON), ("update", {"update_name": "put"})):
        assert_problem(await alice.post(f"{path}/{action}", json=body, headers=ADMIN), 409, "workflow_completed")


async def test_cancel_of_a_closed_run(alice: AsyncClient, queue: str) -> None:
    """Nothing is cancelled, so nobody is told it was: 409 (Temporal: 200 and an empty object)."""
    path = await running(alice, queue)
    await finish(alice, path)
    assert_problem(await alice.post(f"{path}/cancel"), 409, "workflow_completed")


async def test_a_completed_update_sent_again(alice: AsyncClient, queue: str) -> None:
    """200 with the stored outcome, after the end too; a key serves as its id (Temporal: the same, without the key)."""
    path, key = await running(alice, queue), {"Idempotency-Key": "one"}
    first = await update(alice, path, "put", key, update_input=7)
    assert 1 == await finish(alice, path)
    again = await update(alice, path, "put", key, update_input=7)
    assert (200, 7, first.json()) == (again.status_code, again.json()["result"], again.json())


async def test_an_update_id_with_other_arguments(alice: AsyncClient, queue: str) -> None:
    """The first outcome, done once; our documentation says so (Temporal: the first outcome, the difference ignored)."""
    path = await running(alice, queue)
    answers = [await update(alice, path, "put", update_input=value, update_id="one") for value in (7, 8)]
    assert [(200, 7)] * 2 == [(answer.status_code, answer.json()["result"]) for answer in answers]
    assert 1 == await finish(alice, path)
    assert (
        "gets the first outcome, also after the workflow has closed; later bodies are ignored"
        in (await alice.get("/openapi.json")).text
    )


@pytest.mark.parametrize(("name", "value"), [("put", None), ("put", "sold"), ("nonsense", 7)])
async def test_an_update_that_is_refused(alice: AsyncClient, queue: str, name: str, value: Any) -> None:
    """By validator, by handler or unknown: 422 with the failure (Temporal: 200, with the failure and a stack trace)."""
    answer = await update(alice, await running(alice, queue), name, update_input=value)
    problem = assert_problem(answer, 422, "update_rejected")
    assert {"type", "message"} == problem["details"]["failure"].keys()
    assert ("workflow", problem["message"]) == (problem["details"]["source"], problem["details"]["failure"]["message"])


async def test_a_slow_update(alice: AsyncClient, queue: str) -> None:
    """At the end of the caller's own wait, 202 says where it will be (Temporal: 200 without an outcome after 20 s)."""
    path = await running(alice, queue)
    answer = await update(alice, path, "slow", {"Prefer": "wait=1"}, update_id="one")
    assert (202, "wait=1") == (answer.status_code, answer.headers["preference-applied"])
    assert f"{path}/updates/one?run_id={answer.json()['run_id']}" == answer.headers["location"]
    assert timedelta(seconds=0.9) < answer.elapsed < timedelta(seconds=5)


async def test_an_update_without_a_worker(alice: AsyncClient, task_queue: str) -> None:
    """503 soon, with the id to send it again by (Temporal: 200 after 20 s, for an update that it may forget)."""
    answer = await update(alice, await running(alice, task_queue), "put", WAIT)
    details = assert_problem(answer, 503, "no_worker")["details"]
    assert (True, task_queue, 36) == (details["retryable"], details["task_queue"], len(details["update_id"]))
    assert answer.elapsed < SOON


async def test_an_update_without_an_id(alice: AsyncClient, queue: str) -> None:
    """None has to be given: one is made, and told (Temporal: 400 "Update meta is not set")."""
    path = await running(alice, queue)
    made = (await update(alice, path, "put", update_input=7)).json()
    assert made == (await alice.get(f"{path}/updates/{made['update_id']}")).json()


async def test_queries_that_get_no_answer(alice: AsyncClient, queue: str, task_queue: str) -> None:
    """No worker 503 soon, unknown name 422, closed before its first task 409 (Temporal: 504 after 30 s, 400, 400)."""
    question, alone, path = {"query_name": "any"}, await running(alice, task_queue), await running(alice, queue)
    nobody, unknown = [await alice.post(f"{run}/query", json=question) for run in (alone, path)]
    await alice.post(f"{alone}/terminate", json=REASON, headers=ADMIN)
    assert_problem(nobody, 503, "no_worker")
    assert nobody.elapsed < SOON
    assert_problem(unknown, 422, "query_failed")
    assert_problem(await alice.post(f"{alone}/query", json=question), 409, "workflow_completed")


async def test_waiting_for_what_happens(alice: AsyncClient, task_queue: str) -> None:
    """As long as the caller says; a change ends it (Temporal: 20 s or a gRPC header, then an empty page)."""
    path = await running(alice, task_queue)
    known = {"If-None-Match": (await alice.get(path)).headers["etag"]}
    short = known | {"Prefer": "wait=1"}
    result, status = await asyncio.gather(alice.get(f"{path}/result", headers=short), alice.get(path, headers=short))
    change = asyncio.create_task(alice.get(path, headers=known | WAIT))
    await signal(alice, path, "finish")
    assert (202, 304, 200) == (result.status_code, status.status_code, (await change).status_code)
    assert ["wait=1"] * 2 == [answer.headers["preference-applied"] for answer in (result, status)]
    assert timedelta(seconds=0.9) < result.elapsed < timedelta(seconds=5)


@pytest.mark.parametrize(
    ("method", "asked", "code", "named"),
    [
        ("POST", {"content": "{", "headers": JSON | CLERK}, "malformed_json", "truncated"),
        ("POST", {"json": {"workflow_type": "x", "typo": 1}}, "validation_error", "typo"),
        ("POST", {"json": {"workflow_type": "x", "task_queue": ""}}, "validation_error", "task_queue"),
        ("GET", {"params": {"query": "WorkflowId = 'x' OR"}}, "invalid_query", "syntax error"),
        ("GET", {"params": {"query": "Nowhere = 'x'"}}, "invalid_query", "Nowhere"),
        ("POST", {"json": {"workflow_type": "x", "search_attributes": UNINDEXED}}, "workflow_start_error", "Nowhere"),
    ],
)
async def test_bad_requests(alice: AsyncClient, method: str, asked: dict[str, Any], code: str, named: str) -> None:
    """400, each with its code and what is wrong (Temporal: 400 code 3 for all of them)."""
    response = await alice.request(method, START, **{"headers": CLERK, **asked})
    assert named in assert_problem(response, 400, code)["message"]


async def test_a_start_without_a_task_queue(alice: AsyncClient) -> None:
    """It goes to the service's own (Temporal: 400 code 3)."""
    location = (await alice.post(START, json={"workflow_type": "contract"})).headers["location"]
    assert "temporal-product-queue" == (await alice.get(location)).json()["task_queue"]


async def test_a_wrong_method_and_an_unknown_route(alice: AsyncClient) -> None:
    """405 that lists the right ones, and 404 that says where all paths are (Temporal: 501 code 12, and 404)."""
    wrong, unknown = await alice.put(START), await alice.get("/api/v1/nowhere")
    assert_problem(wrong, 405, "method_not_allowed")
    assert {"GET", "POST"} <= set(wrong.headers["allow"].split(", "))
    assert "/openapi.json" in assert_problem(unknown, 404, "not_found")["message"]


async def test_a_body_that_is_too_large(alice: AsyncClient, dev_server: DevServer, queue: str) -> None:
    """Over the service's limit or over Temporal's, 413 (Temporal: 400 for both)."""
    assert_problem(await start(alice, queue, input_data="x" * (4 << 20)), 413, "payload_too_large")
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_BODY_BYTES=str(16 << 20)) as roomy:
        assert_problem(await start(roomy, queue, input_data="x" * 2_200_000), 413, "payload_too_large")


async def test_an_id_with_a_slash(alice: AsyncClient, queue: str) -> None:
    """Any id is addressable in every call (Temporal: 404, such a workflow cannot be reached)."""
    workflow_id = f"a/b {uuid.uuid4()}/%2F/ü"
    path = await running(alice, queue, workflow_id=workflow_id)
    await update(alice, path, "put", update_input=7, update_id="c/d")
    found = [(await alice.get(asked)).json()["workflow_id"] for asked in (path, f"{path}/updates/c%2Fd")]
    assert (f"{START}/{quote(workflow_id, safe='')}", [workflow_id] * 2) == (path, found)
    assert 1 == await finish(alice, path)


async def test_headers_of_every_reply(alice: AsyncClient, task_queue: str) -> None:
    """A true type, the caller's request id, an ETag that makes a 304 (Temporal: `Content-Type: *`, no more)."""
    path = await running(alice, task_queue)
    kinds = {
        "": ("application/json", "no-cache"),
        "/events": ("text/event-stream", "no-cache, no-transform"),
        "-unknown": ("application/problem+json", "no-store"),
    }
    for below, (kind, kept) in kinds.items():
        headers = (await alice.head(path + below, headers={"X-Request-ID": "mine-1"})).headers
        assert (kind, "mine-1") == (headers["content-type"], headers["x-request-id"])
        assert (below == "", kept, "nosniff") == (
            "etag" in headers,
            headers["cache-control"],
            headers["x-content-type-options"],
        )
    known = {"If-None-Match": (await alice.get(path)).headers["etag"]}
    same = await alice.get(path, headers=known)
    await signal(alice, path, "release")
    assert (304, b"", known["If-None-Match"]) == (same.status_code, same.content, same.headers["etag"])
    assert 200 == (await alice.get(path, headers=known)).status_code


async def test_the_shape_of_payloads(alice: AsyncClient, queue: str) -> None:
    """JSON byte for byte both ways, the rest as metadata and base64 (Temporal: a shorthand, unless switched off)."""
    path, exact = await running(alice, queue), b'{ "n": 1.10, "big": 123456789012345678901234567890 }'
    body = b'{"update_name": "put", "update_input": ' + exact + b"}"
    echoed = await alice.post(f"{path}/updates", content=body, headers=JSON)
    assert echoed.content.endswith(b'"result":' + exact + b"}")
    await signal(alice, path, "release")
    blob = {"metadata": {"encoding": "binary/plain"}, "data": "AP8="}
    assert blob == (await update(alice, path, "slow")).json()["result"]


@pytest.mark.parametrize("status", [status for status in RPCStatusCode if status is not RPCStatusCode.OK])
def test_grpc_as_http(status: RPCStatusCode) -> None:
    """What no caller can mend is 429 or 5xx, with Retry-After if it passes (Temporal: 400, 409 too; no hint)."""
    # By gRPC's numbers: invalid argument, not found, exists, exhausted, unavailable, cancelled, deadline, not there.
    http = {3: 400, 5: 404, 6: 409, 8: 429, 14: 503, 1: 504, 4: 504, 12: 501}.get(status.value, 502)
    subject = start_subject("x") if status is RPCStatusCode.ALREADY_EXISTS else workflow_subject("x")
    problem = problem_of(RPCError("it says so", status, b""), subject)
    assert (http, http in (429, 503)) == (problem.status, "Retry-After" in problem.headers)


# --- what Temporal's API does not have ---


async def test_an_update_asked_for_later(alice: AsyncClient, queue: str) -> None:
    """An accepted update has a place, where its outcome is waited for (Temporal: none, send the update again)."""
    path = await running(alice, queue)
    accepted = await update(alice, path, "slow", {"Prefer": "wait=0"})
    waiting = asyncio.create_task(alice.get(accepted.headers["location"], headers=WAIT))
    await signal(alice, path, "release")
    assert (202, True, 200) == (accepted.status_code, "retry-after" in accepted.headers, (await waiting).status_code)
    assert_problem(await alice.get(f"{path}/updates/never"), 404, "update_not_found")


async def test_delete(alice: AsyncClient, task_queue: str) -> None:
    """An operator can delete a workflow (Temporal: not over HTTP)."""
    path = await running(alice, task_queue)
    assert 204 == (await alice.delete(path, headers=ADMIN)).status_code

    async def is_gone() -> bool:
        return (await alice.get(path)).status_code == 404

    await eventually(is_gone)


async def test_a_result(alice: AsyncClient, queue: str) -> None:
    """202 until it has ended, then 200 and how (Temporal: none, look for the last event of the history)."""
    path = await running(alice, queue, input_data=True)
    early = await alice.get(f"{path}/result")
    await finish(alice, path)
    ended = await alice.get(f"{path}/result")
    assert (202, "RUNNING", True) == (early.status_code, early.json()["status"], "retry-after" in early.headers)
    assert (200, "FAILED", "Told") == (ended.status_code, ended.json()["status"], ended.json()["failure"]["type"])


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/health/live", "/metrics"])
async def test_health_and_metrics(http: AsyncClient, path: str) -> None:
    """Probes and metrics, without a token (Temporal: 404 for each)."""
    assert 200 == (await http.get(path)).status_code


async def test_head_options_and_cors(alice: AsyncClient, http: AsyncClient) -> None:
    """HEAD and OPTIONS are answered, and pages of an allowed origin may ask (Temporal: none of it)."""
    head, options = await alice.head(START), await alice.options(START)
    preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    allowed = (await http.options(START, headers=preflight)).headers
    assert (200, b"", "application/json") == (head.status_code, head.content, head.headers["content-type"])
    assert {"GET", "OPTIONS", "POST"} <= set(options.headers["allow"].split(", "))
    assert preflight["Origin"] == allowed["access-control-allow-origin"]


async def test_server_sent_events(alice: AsyncClient, queue: str) -> None:
    """What happens is told as it happens, and resumed after the last id (Temporal: none)."""
    path = await running(alice, queue)
    async with asyncio.timeout(60), alice.stream("GET", f"{path}/events") as stream:
        lines = stream.aiter_lines()
        assert "event: history" == await anext(line async for line in lines if line.startswith("event: "))
        await signal(alice, path, "finish")
        rest = [line async for line in lines]
    (*_, last, end) = (line.removeprefix("id: ") for line in rest if line.startswith("id: "))
    resumed = (await alice.get(f"{path}/events", headers={"Last-Event-ID": last})).text
    assert ("event: done" in rest, "event: done" in resumed, resumed.count("id: ")) == (True, True, 1)
    assert 204 == (await alice.get(f"{path}/events", headers={"Last-Event-ID": end})).status_code
