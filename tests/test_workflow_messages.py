"""Messages to workflows over HTTP: updates, and six kinds of silence."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from google.protobuf.any_pb2 import Any as PackedAny
from temporalio.api.common.v1 import GrpcStatus, Payload, Payloads
from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus
from temporalio.api.errordetails.v1 import WorkflowNotReadyFailure
from temporalio.api.update.v1 import Outcome
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueResponse,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryReverseResponse,
    PollWorkflowExecutionUpdateResponse,
    UpdateWorkflowExecutionResponse,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from api import SOON, assert_problem, eventually, service
from scripted import AWAY, REFUSED, Scripted
from temporal_api.dev.server import DevServer
from temporal_api.errors import Problem, TemporalError
from temporal_api.temporal import history, updates, workflow
from till import ADMIN, JSON, REASON, close, events, resume, signal, start, update, worker

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def foreign(dev_server: DevServer) -> Client:
    """A client with the SDK's own converter: workers are not ours."""
    return await Client.connect(dev_server.address)


@pytest.fixture(scope="module")
async def queue(foreign: Client) -> AsyncIterator[str]:
    """A queue with a worker for these workflows."""
    name = f"till-{uuid.uuid4()}"
    async with worker(foreign, name):
        yield name


# --- updates ---


async def test_an_update_gives_its_result(alice: httpx.AsyncClient, queue: str) -> None:
    """Done within the wait is a 200 with the result, the run and an id, which is made up when none was given."""
    path = await start(alice, queue)
    run_id = (await alice.get(path)).json()["run_id"]
    first = await update(alice, path, "echo", update_input={"a": 1})
    named = await update(alice, path, "nothing", "wait=5", update_id="mine")
    workflow_id = path.rpartition("/")[2]

    assert 200 == first.status_code
    made_up = first.json()["update_id"]
    assert str(uuid.UUID(made_up)) == made_up
    assert {"workflow_id": workflow_id, "run_id": run_id, "update_id": made_up, "result": {"a": 1}} == first.json()
    assert "preference-applied" not in first.headers
    assert {"workflow_id": workflow_id, "run_id": run_id, "update_id": "mine", "result": None} == named.json()
    assert "wait=5" == named.headers["preference-applied"]


async def test_the_former_path_answers_the_same(alice: httpx.AsyncClient, queue: str, contract: dict[str, Any]) -> None:
    """`/update` is still there for clients that use it; the contract names `/updates` only."""
    path = await start(alice, queue)
    body = {"update_name": "echo", "update_id": "u", "update_input": 1}
    now, before = [await alice.post(f"{path}/{name}", json=body) for name in ("updates", "update")]

    assert (200, now.content) == (before.status_code, before.content)
    posted = contract["paths"]["/api/v1/workflows/{workflow_id}/updates"]["post"]
    assert "updateWorkflow" == posted["operationId"]
    assert "/api/v1/workflows/{workflow_id}/update" not in contract["paths"]


@pytest.mark.parametrize(
    "text",
    [
        "1.10",
        "-0.0",
        "1E400",
        "12345678901234567890.12345678901234567890",
        "123456789012345678901234567890",
        '{ "b" : 1,\n\t"a":[ ] , "c" : 0.1e-7 }',
        '{"a":1,"a":2}',
        '"\\u00fc\\/ü \\ud83d\\ude00 😀"',
        "null",
    ],
)
async def test_json_passes_untouched(alice: httpx.AsyncClient, client: Client, queue: str, text: str) -> None:
    """The bytes in Temporal are the caller's, and the answer's are Temporal's, at once and when found again."""
    path = await start(alice, queue)
    data = text.encode()
    body = b'{"update_name": "echo", "update_id": "u", "update_input": ' + data + b"}"
    answer = await alice.post(f"{path}/updates", content=body, headers=JSON)
    found = await alice.get(f"{path}/updates/u")
    (accepted,) = await events(client, path, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED)
    request = accepted.workflow_execution_update_accepted_event_attributes.accepted_request

    assert [data] == [payload.data for payload in request.input.args.payloads]
    assert answer.content.endswith(b',"result":' + data + b"}")
    assert answer.content == found.content


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", []),
        (', "update_input": null', ["null"]),
        (', "update_input": [1, 2]', ["[1, 2]"]),
        (', "update_args": []', []),
        (', "update_args": [ 1.10 , [2,  3],{"a":4}]', ["1.10", "[2,  3]", '{"a":4}']),
    ],
)
async def test_arguments(alice: httpx.AsyncClient, queue: str, more: str, expected: list[str]) -> None:
    """`update_input` is one argument, `update_args` is the list of them, nothing is none."""
    path = await start(alice, queue, "parrot")
    response = await alice.post(f"{path}/updates", content='{"update_name": "any"' + more + "}", headers=JSON)

    assert (200, expected) == (response.status_code, response.json()["result"])


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("picky", {"type": "TooMuch", "message": "too much", "details": [{"most": "1.10"}]}),
        (
            "unlucky",
            {
                "type": "Stock",
                "message": "out of stock",
                "details": [{"left": 0}],
                "cause": {"type": "KeyError", "message": "'deep down'"},
            },
        ),
        ("nonsense", None),
    ],
)
async def test_a_refused_update(
    alice: httpx.AsyncClient, queue: str, name: str, failure: dict[str, Any] | None
) -> None:
    """Refused by its validator, failed in its handler or unknown: a 422 with the failure and no stack trace."""
    path = await start(alice, queue)
    response = await update(alice, path, name, update_args=[7] if name == "picky" else [], update_id="u")
    problem = assert_problem(response, 422, "update_rejected")
    details = problem["details"]

    assert failure in (None, details["failure"])
    assert problem["message"] == details["failure"]["message"]
    assert ("workflow", "u", path.rpartition("/")[2]) == tuple(
        details[key] for key in ("source", "update_id", "workflow_id")
    )
    assert ".py" not in response.text
    assert "stack" not in response.text


async def test_a_slow_update_is_waited_for(alice: httpx.AsyncClient, queue: str) -> None:
    """Accepted and not done is a 202 with the place of its outcome, which is there when the handler has ended."""
    path = await start(alice, queue)
    early = await update(alice, path, "slow", "wait=0", update_input="first", update_id="a/b c")
    location = early.headers["location"]
    pending = await alice.get(location)
    short = await alice.get(location, headers={"Prefer": "wait=1"})
    again = await update(alice, path, "slow", "wait=1", update_input="second", update_id="a/b c")
    waiting = [
        asyncio.create_task(alice.get(location, headers={"Prefer": "wait=20"})),
        asyncio.create_task(update(alice, path, "slow", "wait=20", update_input="third")),
        asyncio.create_task(update(alice, path, "slow", update_input="fourth")),
    ]
    await signal(alice, path, "release")
    done = await asyncio.gather(*waiting)

    run_id = early.json()["run_id"]
    assert f"{path}/updates/a%2Fb%20c?run_id={run_id}" == location
    for response, applied in ((early, None), (pending, None), (short, "wait=1"), (again, "wait=1")):
        body = {"workflow_id": path.rpartition("/")[2], "run_id": run_id, "update_id": "a/b c", "status": "ACCEPTED"}
        assert (202, body) == (response.status_code, response.json())
        assert location == response.headers["location"]
        assert int(response.headers["retry-after"]) > 0
        assert applied == response.headers.get("preference-applied")
    assert [200, 200, 200] == [response.status_code for response in done]
    assert ["first", "third", "fourth"] == [response.json()["result"] for response in done]
    assert ["wait=20", "wait=20", None] == [response.headers.get("preference-applied") for response in done]


async def test_how_long_an_update_is_waited_for(dev_server: DevServer, queue: str) -> None:
    """Without a preference as long as any call may take, with one no longer than the service allows."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, RPC_TIMEOUT_SECONDS="1", MAX_WAIT_SECONDS="2") as hasty:
        path = await start(hasty, queue)
        usual, long = await asyncio.gather(
            update(hasty, path, "slow", update_input=1), update(hasty, path, "slow", "wait=9", update_input=2)
        )

    assert [202, 202] == [usual.status_code, long.status_code]
    assert [None, "wait=2"] == [response.headers.get("preference-applied") for response in (usual, long)]
    assert timedelta(seconds=0.9) < usual.elapsed < long.elapsed < timedelta(seconds=9)
    assert timedelta(seconds=1.9) < long.elapsed


async def test_an_accepted_update_is_not_refused_for_want_of_a_place_to_wait(dev_server: DevServer, queue: str) -> None:
    """When too many wait, an update that was accepted is a 202 at once, and so is every preferred wait."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_OPEN_WAITS="1") as crowded:
        path = await start(crowded, queue)
        results = [asyncio.create_task(crowded.get(f"{path}/result", headers={"Prefer": "wait=30"})) for _ in "12"]
        # One of the two has found no place; so the other has the only one.
        (at_once,), (waiting,) = await asyncio.wait(results, return_when=asyncio.FIRST_COMPLETED)
        crowd = await update(crowded, path, "slow", "wait=30", update_input=1)
        asked = await crowded.get(crowd.headers["location"], headers={"Prefer": "wait=30"})
        await signal(crowded, path, "close", "now")
        assert 200 == (await waiting).status_code

    for response in (crowd, asked, await at_once):
        assert 202 == response.status_code
        assert "preference-applied" not in response.headers
        assert response.elapsed < SOON


async def test_what_a_workflow_can_be_sent_and_asked(alice: httpx.AsyncClient, queue: str) -> None:
    """The names and descriptions of its own signals, queries and updates; null takes every name."""
    till = (await alice.get(f"{await start(alice, queue)}/metadata")).json()
    parrot = await start(alice, queue, "parrot")
    told = (await alice.get(f"{parrot}/metadata")).json()

    assert ["close", "note", "release"] == [signal["name"] for signal in till["signals"]]
    assert {"name": "seen_so_far", "description": "What came."} in till["queries"]
    assert ["seen_so_far", "stuck"] == [query["name"] for query in till["queries"]]
    assert {"echo", "slow", "picky"} < {update["name"] for update in till["updates"]}
    assert {
        "workflow_id": parrot.rpartition("/")[2],
        "workflow_type": "parrot",
        "current_details": "waits for *you*",
        "signals": [],
        "queries": [],
        "updates": [{"name": None, "description": ""}],
    } == told
    assert_problem(await alice.get("/api/v1/workflows/nobody/metadata"), 404, "workflow_not_found")


async def test_an_update_id_is_used_once(alice: httpx.AsyncClient, queue: str) -> None:
    """The same id gives the first outcome, whatever else is said, after the end too; a new id is a 409 then."""
    path = await start(alice, queue)
    headers = {"Idempotency-Key": "key-1"}
    sent = [
        await alice.post(f"{path}/updates", json={"update_name": "echo", "update_input": value}, headers=headers)
        for value in ("first", "second")
    ]
    named = await update(alice, path, "echo", update_input="third", update_id="key-1")
    result = await close(alice, path)
    late = await update(alice, path, "echo", update_input="fourth", update_id="key-1")
    found = await alice.get(f"{path}/updates/key-1")
    new = await update(alice, path, "echo", update_input="fifth", update_id="key-2")

    for response in (*sent, named, late, found):
        assert (200, "key-1", "first") == (
            response.status_code,
            response.json()["update_id"],
            response.json()["result"],
        )
    assert ['"first"'] == result
    assert "key-2" == assert_problem(new, 409, "workflow_completed")["details"]["update_id"]


@pytest.mark.parametrize("update_id", ["a/b", "%2F", "100%", "ü/日本/😀", "a?b#c&d=e+f", " ", "x" * 1000])
async def test_any_update_id_is_addressable(alice: httpx.AsyncClient, queue: str, update_id: str) -> None:
    """Whatever the update's id and the workflow's, the outcome is found under it."""
    workflow_id = f"a/b {uuid.uuid4()} %2F/ü"
    body = {"workflow_type": "till", "task_queue": queue, "workflow_id": workflow_id}
    path = (await alice.post("/api/v1/workflows", json=body)).headers["location"]
    await update(alice, path, "echo", update_input=1, update_id=update_id)
    found = await alice.get(f"{path}/updates/{quote(update_id, safe='')}")

    assert (workflow_id, update_id, 1) == tuple(found.json()[key] for key in ("workflow_id", "update_id", "result"))


async def test_an_update_that_is_not_there(alice: httpx.AsyncClient, queue: str) -> None:
    """Unknown to a workflow, running or closed, or refused by it: 404, told from an unknown workflow."""
    path = await start(alice, queue)
    await update(alice, path, "picky", update_input=7, update_id="refused")
    unknown = [await alice.get(f"{path}/updates/{update_id}") for update_id in ("never", "refused")]
    await close(alice, path)
    unknown.append(await alice.get(f"{path}/updates/never", headers={"Prefer": "wait=20"}))

    for response in unknown:
        details = assert_problem(response, 404, "update_not_found")["details"]
        assert {"workflow_id", "update_id"} == details.keys()
    assert_problem(await alice.get("/api/v1/workflows/nobody/updates/never"), 404, "workflow_not_found")


async def test_an_update_that_its_workflow_did_not_finish(alice: httpx.AsyncClient, queue: str) -> None:
    """The workflow closed first: who waits is told at once, and who asks later the same."""
    path = await start(alice, queue)
    accepted = await update(alice, path, "slow", "wait=0", update_input=1)
    waiting = asyncio.create_task(alice.get(accepted.headers["location"], headers={"Prefer": "wait=30"}))
    await close(alice, path)

    for response in (await waiting, await alice.get(accepted.headers["location"])):
        problem = assert_problem(response, 422, "update_rejected")
        assert "AcceptedUpdateCompletedWorkflow" == problem["details"]["failure"]["type"]


async def test_a_location_outlives_its_run(alice: httpx.AsyncClient, queue: str) -> None:
    """After a continue-as-new the outcome is still where the 202 said, though the latest run does not know it."""
    path = await start(alice, queue)
    await update(alice, path, "echo", update_input="old", update_id="u")
    pending = await update(alice, path, "slow", "wait=0", update_input=1, update_id="v")
    run_id = pending.json()["run_id"]
    await signal(alice, path, "close", "again")

    async def has_gone_on() -> bool:
        return (await alice.get(path)).json()["run_id"] != run_id

    await eventually(has_gone_on)

    assert "old" == (await alice.get(f"{path}/updates/u", params={"run_id": run_id})).json()["result"]
    assert_problem(await alice.get(pending.headers["location"]), 422, "update_rejected")
    assert_problem(await alice.get(f"{path}/updates/v"), 404, "update_not_found")


async def test_update_ids_that_cannot_be(alice: httpx.AsyncClient, queue: str) -> None:
    """Two ids for one update, one that no URL carries, or one over Temporal's limit: 400."""
    path = await start(alice, queue)
    both = await alice.post(
        f"{path}/updates", json={"update_name": "echo", "update_id": "a"}, headers={"Idempotency-Key": "b"}
    )
    dots = await alice.post(f"{path}/updates", json={"update_name": "echo"}, headers={"Idempotency-Key": ".."})
    spaced = await alice.post(f"{path}/updates", json={"update_name": "echo"}, headers={"Idempotency-Key": "a b"})
    keys = [
        assert_problem(response, 400, "validation_error")["details"]["errors"][0]["key"]
        for response in (both, dots, spaced, await update(alice, path, "echo", update_id="."))
    ]

    assert ["update_id", "Idempotency-Key", "Idempotency-Key", "update_id"] == keys
    assert_problem(await update(alice, path, "echo", update_id="ü" * 600), 400, "validation_error")


async def test_too_large_for_temporal(dev_server: DevServer, queue: str) -> None:
    """An update over Temporal's limits is a 413."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_BODY_BYTES=str(10**8)) as roomy:
        path = await start(roomy, queue)

        assert_problem(await update(roomy, path, "echo", update_input="x" * 6_000_000), 413, "payload_too_large")


# --- six different silences ---


async def test_nobody_is_there_to_answer(alice: httpx.AsyncClient, foreign: Client, task_queue: str) -> None:
    """With no worker a query and an update are a 503 within 2 s; sent again, the update happens once."""
    path = await start(alice, task_queue)
    asked = await alice.post(f"{path}/query", json={"query_name": "seen_so_far"})
    sent = await update(alice, path, "echo", "wait=30", update_input="x", update_id="u")
    found = await alice.get(f"{path}/updates/u")

    # Temporal holds back one query and ten updates, and refuses more.
    busy = await start(alice, task_queue)
    crowd = [alice.post(f"{busy}/query", json={"query_name": "seen_so_far"}) for _ in range(3)]
    crowd += [update(alice, busy, "echo") for _ in range(12)]
    for response in (asked, sent, found, *await asyncio.gather(*crowd)):
        problem = assert_problem(response, 503, "no_worker")
        expected = {"retryable": True, "source": "gateway", "task_queue": task_queue}
        assert expected.items() <= problem["details"].items()
        assert response.elapsed < SOON
    assert "u" == sent.json()["details"]["update_id"]
    async with worker(foreign, task_queue):
        again = await update(alice, path, "echo", update_input="y", update_id="u")
        result = await close(alice, path)

    assert (200, "x") == (again.status_code, again.json()["result"])
    assert ['"x"'] == result


async def test_the_workflows_code_is_broken(alice: httpx.AsyncClient, client: Client, queue: str) -> None:
    """While its workflow task fails, query and update are a 503 that says why, without a stack trace."""
    path = await start(alice, queue)
    told = [await update(alice, path, "broken", update_id="u")]
    told += await asyncio.gather(
        alice.get(f"{path}/updates/u"),
        update(alice, path, "echo", "wait=30", update_input=1),
        alice.post(f"{path}/query", json={"query_name": "seen_so_far"}),
    )
    await client.get_workflow_handle(path.rpartition("/")[2]).terminate()

    for response in told:
        problem = assert_problem(response, 503, "workflow_task_failing")
        assert "a bug" in problem["message"]
        assert {"type": "KeyError", "message": "'a bug'"} == problem["details"]["failure"]
        assert ("workflow", True) == (problem["details"]["source"], problem["details"]["retryable"])
        assert response.elapsed < SOON
        assert ".py" not in response.text


async def test_a_worker_that_does_not_know_the_workflow(alice: httpx.AsyncClient, client: Client, queue: str) -> None:
    """A type that the queue's workers lack is told as what it is."""
    path = await start(alice, queue, "unheard-of")
    response = await alice.post(f"{path}/query", json={"query_name": "any"})
    await client.get_workflow_handle(path.rpartition("/")[2]).terminate()

    assert "unheard-of is not registered" in assert_problem(response, 503, "workflow_task_failing")["message"]


async def test_an_answer_that_takes_too_long(dev_server: DevServer, foreign: Client, task_queue: str) -> None:
    """A worker is there and does not come to an end: 504 at the deadline, with the update's id to look for."""
    resume.clear()
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, RPC_TIMEOUT_SECONDS="1") as hasty,
        worker(foreign, task_queue),
    ):
        paths = [await start(hasty, task_queue) for _ in range(2)]
        for path in paths:
            assert 200 == (await update(hasty, path, "nothing")).status_code
        try:
            sent, asked = await asyncio.gather(
                update(hasty, paths[0], "stuck", "wait=1", update_id="u"),
                hasty.post(f"{paths[1]}/query", json={"query_name": "stuck"}),
            )
        finally:
            resume.set()

    assert "u" == assert_problem(sent, 504, "temporal_timeout")["details"]["update_id"]
    assert_problem(asked, 504, "temporal_timeout")
    assert sent.elapsed < SOON


async def test_a_workflow_that_was_never_begun_cannot_be_asked(alice: httpx.AsyncClient, task_queue: str) -> None:
    """Closed before any worker saw it: 409, for a query as for an update."""
    path = await start(alice, task_queue)
    await alice.post(f"{path}/terminate", json=REASON, headers=ADMIN)

    assert_problem(await alice.post(f"{path}/query", json={"query_name": "q"}), 409, "workflow_completed")
    assert_problem(await update(alice, path, "echo"), 409, "workflow_completed")


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({}, "update_name"),
        ({"update_name": ""}, "update_name"),
        ({"update_name": "u", "update_id": ""}, "update_id"),
        ({"update_name": "u", "update_id": "x" * 1001}, "update_id"),
        ({"update_name": "u", "update_args": {}}, "update_args"),
        ({"update_name": "u", "update_args": [2], "update_input": 1}, "update_args"),
        ({"update_name": "u", "input": 1}, "input"),
    ],
)
async def test_a_wrong_update_is_refused(alice: httpx.AsyncClient, body: dict[str, Any], key: str) -> None:
    """A body that is not one is a 400 that names the field, before Temporal is asked about the id."""
    response = await alice.post("/api/v1/workflows/nobody/updates", json=body)
    problem = assert_problem(response, 400, "validation_error")

    assert [key] == [error["key"] for error in problem["details"]["errors"]]


# --- what a real server does only after long, or seldom ---


def run(attempt: int = 1, status: str = "RUNNING") -> DescribeWorkflowExecutionResponse:
    """A workflow with a pending task."""
    response = DescribeWorkflowExecutionResponse()
    response.workflow_execution_info.task_queue = "q"
    response.workflow_execution_info.status = WorkflowExecutionStatus.Value(f"WORKFLOW_EXECUTION_STATUS_{status}")
    response.pending_workflow_task.attempt = attempt
    if status != "RUNNING":
        response.workflow_execution_info.close_time.GetCurrentTime()
    return response


def pollers(*ages: float) -> DescribeTaskQueueResponse:
    """A task queue that was polled so many seconds ago."""
    response = DescribeTaskQueueResponse()
    for age in ages:
        response.pollers.add().last_access_time.FromMicroseconds(int((time.time() - age) * 1e6))
    return response


def recent(*kinds: str) -> GetWorkflowExecutionHistoryReverseResponse:
    """The last events, newest first."""
    response = GetWorkflowExecutionHistoryReverseResponse()
    for kind in kinds:
        response.history.events.add(event_type=EventType.Value(f"EVENT_TYPE_{kind}"))
    return response


async def test_an_admitted_update_is_sent_again() -> None:
    """Temporal gives up waiting for a worker and may forget the update: it is sent until it is accepted."""
    admitted, accepted = UpdateWorkflowExecutionResponse(stage=1), UpdateWorkflowExecutionResponse(stage=2)
    server = Scripted(update_workflow_execution=[admitted, admitted, accepted])
    update = await updates.send(server.workflow(), "u", "name", [])

    assert 3 == server.asked["update_workflow_execution"]
    assert update.result is None


async def test_waiting_for_an_outcome_outlives_temporals_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is not told that Temporal was away; what else goes wrong ends the wait."""
    monkeypatch.setattr(history, "RETRY_SECONDS", 0)
    payload = Payload(metadata={"encoding": b"json/plain"}, data=b"1.10")
    done = PollWorkflowExecutionUpdateResponse(stage=3, outcome=Outcome(success=Payloads(payloads=[payload])))
    pending = updates.Update("w", "r", "u", None)
    server = Scripted(poll_workflow_execution_update=[PollWorkflowExecutionUpdateResponse(stage=2), AWAY, AWAY, done])
    update = await updates.wait(server.workflow(), pending)

    assert b"1.10" == bytes(update.result or b"")
    assert 4 == server.asked["poll_workflow_execution_update"]
    with pytest.raises(TemporalError):
        await updates.wait(Scripted(poll_workflow_execution_update=[REFUSED]).workflow(), pending)


@pytest.mark.parametrize(
    ("queue", "expected"), [((), False), ((300.0, 80.0), False), ((300.0, 70.0), True), ((0.1,), True)]
)
async def test_who_counts_as_a_worker(queue: tuple[float, ...], expected: bool) -> None:
    """Dead workers stay listed for minutes: only one that polled lately counts; the answer is kept for a second."""
    server = Scripted(describe_task_queue=[pollers(*queue)])
    temporal = server.temporal()

    assert [expected] * 3 == [await temporal.has_worker("q") for _ in range(3)]
    assert 1 == server.asked["describe_task_queue"]


@pytest.mark.parametrize(
    ("describe", "queue", "last", "code"),
    [
        (run(), (), None, "no_worker"),
        (run(attempt=3), (), None, "no_worker"),
        (run(attempt=2), (1,), recent("WORKFLOW_TASK_FAILED"), "workflow_task_failing"),
        (run(attempt=2), (1,), recent("WORKFLOW_EXECUTION_SIGNALED"), "workflow_task_failing"),
        (run(attempt=2), (1,), recent("WORKFLOW_TASK_TIMED_OUT"), "temporal_timeout"),
        (run(), (1,), None, "temporal_timeout"),
        (AWAY, (), None, "temporal_timeout"),
    ],
)
async def test_what_silence_means(
    monkeypatch: pytest.MonkeyPatch, describe: Any, queue: Any, last: Any, code: str
) -> None:
    """No worker, broken code, and neither of them, in which case the answer may still come until the deadline."""
    monkeypatch.setattr(workflow, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(workflow, "LOOK_EVERY_SECONDS", 0.01)
    server = Scripted(
        describe_workflow_execution=[describe],
        describe_task_queue=[pollers(*queue)],
        get_workflow_execution_history_reverse=[last],
    )
    seconds = 0.2 if code == "temporal_timeout" else 60
    with pytest.raises(Problem) as caught:
        await server.workflow(seconds).query("name", [])

    async def given_up() -> bool:
        return server.open["query_workflow"] == 0

    assert code == caught.value.code
    await eventually(given_up)


@pytest.mark.parametrize(
    ("describe", "last", "code"),
    [
        (run(attempt=9), recent("WORKFLOW_TASK_FAILED"), "workflow_task_failing"),
        (run(attempt=9), recent("WORKFLOW_TASK_TIMED_OUT"), "workflow_task_failing"),
        (run(status="TERMINATED"), None, "workflow_completed"),
        (run(attempt=0), None, "no_worker"),
    ],
)
async def test_a_workflow_that_temporal_does_not_ask(describe: Any, last: Any, code: str) -> None:
    """After some failures, and before the first task, Temporal refuses at once: that is told in the same words."""
    status = GrpcStatus(code=9)
    packed = PackedAny()
    packed.Pack(WorkflowNotReadyFailure())
    status.details.append(packed)
    refusal = RPCError("Workflow Task in failed state", RPCStatusCode.FAILED_PRECONDITION, status.SerializeToString())
    asked = Scripted(
        query_workflow=[refusal],
        update_workflow_execution=[refusal],
        describe_workflow_execution=[describe],
        get_workflow_execution_history_reverse=[last],
    ).workflow()
    for asking in (asked.query("name", []), updates.send(asked, "u", "name", [])):
        with pytest.raises(Problem) as caught:
            await asking
        assert code == caught.value.code


async def test_an_empty_list_beside_an_input_is_no_list(alice: httpx.AsyncClient, client: Client, queue: str) -> None:
    """Some generated clients send `[]` for a list that they have not: the input beside it is the argument."""
    path = await start(alice, queue, "parrot")
    signal = {"signal_name": "s", "signal_input": {"n": 1}, "signal_args": []}
    signalled = await alice.post(f"{path}/signal", json=signal)
    told = await alice.post(f"{path}/updates", json={"update_name": "u", "update_input": None, "update_args": []})
    nothing = await alice.post(f"{path}/updates", json={"update_name": "u", "update_args": []})
    body = {"workflow_type": "none", "task_queue": f"nobody-{uuid.uuid4()}", "input_data": [7], "args": []}
    started = (await alice.post("/api/v1/workflows", json=body)).headers["location"]
    (begun,) = await events(client, started, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)

    assert 202 == signalled.status_code
    assert ["null"] == told.json()["result"]
    assert [] == nothing.json()["result"]
    assert [b"[7]"] == [each.data for each in begun.workflow_execution_started_event_attributes.input.payloads]
