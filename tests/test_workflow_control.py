"""Steering workflows over HTTP: updates, six kinds of silence, cancel, terminate, reset and delete."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import Message
from temporalio import workflow
from temporalio.api.common.v1 import GrpcStatus, Payload, Payloads
from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus
from temporalio.api.errordetails.v1 import WorkflowNotReadyFailure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.update.v1 import Outcome
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueResponse,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryReverseResponse,
    PollWorkflowExecutionUpdateResponse,
    UpdateWorkflowExecutionResponse,
)
from temporalio.client import Client
from temporalio.common import RawValue, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import SOON, WORKFLOWS, assert_problem, bearer, eventually, service
from temporal_api.dev.server import DevServer
from temporal_api.errors import Problem
from temporal_api.temporal import updates, workers
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.payloads import DATA_CONVERTER
from temporal_api.temporal.workflow import Workflow

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
ADMIN = bearer("operator", f"{WORKFLOWS} workflows:admin")
UUID = "00000000-0000-4000-8000-000000000000"
REASON = {"reason": "the test says so"}
ABANDON = workflow.HandlerUnfinishedPolicy.ABANDON

resume = threading.Event()
"""What the worker's thread waits for in `stuck`."""


# --- the workflows of the tests ---


@workflow.defn(name="till")
class Till:
    """Takes updates, of all kinds, until it is told to close."""

    def __init__(self) -> None:
        self.released = False
        self.end = ""
        self.seen: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        """Wait for the end."""
        await workflow.wait_condition(lambda: bool(self.end))
        if self.end == "again":
            workflow.continue_as_new()
        return self.seen

    @workflow.signal
    def close(self, how: str) -> None:
        """End like that."""
        self.end = how

    @workflow.signal
    def release(self) -> None:
        """Let the slow ones go on."""
        self.released = True

    @workflow.signal
    def note(self, what: str) -> None:
        """Remember it."""
        self.seen.append(what)

    @workflow.update
    def echo(self, value: RawValue) -> RawValue:
        """Give it back as it is."""
        self.seen.append(value.payload.data.decode())
        return value

    @workflow.update(unfinished_policy=ABANDON)
    async def slow(self, value: RawValue) -> RawValue:
        """Give it back after the signal `release`."""
        await workflow.wait_condition(lambda: self.released)
        return value

    @workflow.update
    def nothing(self) -> None:
        """Give nothing back."""

    @workflow.update
    def picky(self, value: int) -> int:
        """Take nothing over a limit."""
        return value

    @picky.validator
    def _picky(self, value: int) -> None:
        raise ApplicationError("too much", {"most": "1.10"}, type="TooMuch")

    @workflow.update
    def unlucky(self) -> None:
        """Fail on purpose."""
        try:
            raise KeyError("deep down")
        except KeyError as error:
            raise ApplicationError("out of stock", {"left": 0}, type="Stock") from error

    @workflow.update
    def broken(self) -> None:
        """Fail by a mistake in the code."""
        raise KeyError("a bug")

    @workflow.update
    def stuck(self) -> None:
        """Hold up the worker."""
        resume.wait(5)

    @workflow.query(name="stuck")
    def stuck_query(self) -> None:
        """Hold up the worker."""
        resume.wait(5)

    @workflow.query
    def seen_so_far(self) -> list[str]:
        """What came."""
        return self.seen


@workflow.defn(name="parrot")
class Parrot:
    """Answers any update with its arguments' bytes."""

    @workflow.run
    async def run(self) -> None:
        """Wait for ever."""
        await workflow.wait_condition(lambda: False)

    @workflow.update(dynamic=True)
    def any(self, name: str, args: Sequence[RawValue]) -> list[str]:
        """Say them."""
        return [value.payload.data.decode() for value in args]


@pytest.fixture(scope="module")
async def foreign(dev_server: DevServer) -> Client:
    """A client with the SDK's own converter: workers are not ours."""
    return await Client.connect(dev_server.address)


def worker(client: Client, task_queue: str) -> Worker:
    """A worker for these workflows."""
    return Worker(client, task_queue=task_queue, workflows=[Till, Parrot], workflow_runner=UnsandboxedWorkflowRunner())


@pytest.fixture(scope="module")
async def queue(foreign: Client) -> AsyncIterator[str]:
    """A queue with a worker for these workflows."""
    name = f"control-{uuid.uuid4()}"
    async with worker(foreign, name):
        yield name


async def start(alice: httpx.AsyncClient, task_queue: str, kind: str = "till") -> str:
    """The path of a new workflow."""
    response = await alice.post("/api/v1/workflows", json={"workflow_type": kind, "task_queue": task_queue})
    assert 201 == response.status_code, response.text
    return str(response.headers["location"])


async def update(
    alice: httpx.AsyncClient, path: str, name: str, prefer: str | None = None, **body: Any
) -> httpx.Response:
    """Send an update."""
    headers = {"Prefer": prefer} if prefer else {}
    return await alice.post(f"{path}/update", json={"update_name": name, **body}, headers=headers)


async def signal(alice: httpx.AsyncClient, path: str, name: str, *args: str) -> None:
    """Send a signal."""
    response = await alice.post(f"{path}/signal", json={"signal_name": name, "signal_args": args})
    assert 202 == response.status_code, response.text


async def close(alice: httpx.AsyncClient, path: str) -> Any:
    """End the workflow, and see its result."""
    await signal(alice, path, "close", "now")
    return (await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})).json()["result"]


async def events(client: Client, path: str, kind: EventType.ValueType, run_id: str | None = None) -> list[HistoryEvent]:
    """Events of the workflow as Temporal has them."""
    history = await client.get_workflow_handle(path.rpartition("/")[2], run_id=run_id).fetch_history()
    return [event for event in history.events if event.event_type == kind]


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
    answer = await alice.post(f"{path}/update", content=body, headers=JSON)
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
    response = await alice.post(f"{path}/update", content='{"update_name": "any"' + more + "}", headers=JSON)

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
    """When too many wait, an update that was accepted is a 202 at once; who only asks again is told."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_OPEN_WAITS="1") as crowded:
        path = await start(crowded, queue)
        results = [asyncio.create_task(crowded.get(f"{path}/result", headers={"Prefer": "wait=30"})) for _ in "12"]
        # One of the two has found no place; so the other has the only one.
        (refused,), (waiting,) = await asyncio.wait(results, return_when=asyncio.FIRST_COMPLETED)
        crowd = await update(crowded, path, "slow", "wait=30", update_input=1)
        asked = await crowded.get(crowd.headers["location"], headers={"Prefer": "wait=30"})
        await signal(crowded, path, "close", "now")
        assert 200 == (await waiting).status_code

    assert 202 == crowd.status_code
    assert "preference-applied" not in crowd.headers
    assert crowd.elapsed < SOON
    for response in (await refused, asked):
        assert_problem(response, 503, "too_many_waits")


async def test_an_update_id_is_used_once(alice: httpx.AsyncClient, queue: str) -> None:
    """The same id gives the first outcome, whatever else is said, after the end too; a new id is a 409 then."""
    path = await start(alice, queue)
    headers = {"Idempotency-Key": "key-1"}
    sent = [
        await alice.post(f"{path}/update", json={"update_name": "echo", "update_input": value}, headers=headers)
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
        f"{path}/update", json={"update_name": "echo", "update_id": "a"}, headers={"Idempotency-Key": "b"}
    )
    dots = await alice.post(f"{path}/update", json={"update_name": "echo"}, headers={"Idempotency-Key": ".."})
    spaced = await alice.post(f"{path}/update", json={"update_name": "echo"}, headers={"Idempotency-Key": "a b"})
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

    for response in (asked, sent, found):
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


ACTIONS = [
    ("update", {"update_name": "echo"}),
    ("cancel", {}),
    ("terminate", REASON),
    ("reset", {"to": "first_workflow_task", **REASON}),
    ("reset", {"event_id": 4, **REASON}),
]


async def answers(alice: httpx.AsyncClient, path: str, **options: Any) -> list[httpx.Response]:
    """What every call of this file says of the workflow; deletion last."""
    told = [await alice.post(f"{path}/{action}", json=body, **options) for action, body in ACTIONS]
    return [*told, await alice.get(f"{path}/updates/u", **options), await alice.delete(path, **options)]


async def test_a_workflow_that_is_not_there(alice: httpx.AsyncClient, queue: str) -> None:
    """An unknown id, or an unknown run of a known id, is a 404 that repeats it, in every call."""
    path = await start(alice, queue)
    unknown = f"nobody/{uuid.uuid4()}"
    for response in await answers(alice, f"/api/v1/workflows/{quote(unknown, safe='')}", headers=ADMIN):
        assert unknown == assert_problem(response, 404, "workflow_not_found")["details"]["workflow_id"]
    for response in await answers(alice, path, headers=ADMIN, params={"run_id": UUID}):
        assert UUID == assert_problem(response, 404, "workflow_not_found")["details"]["run_id"]


async def test_a_closed_workflow(alice: httpx.AsyncClient, queue: str) -> None:
    """To signal, update, cancel or terminate a closed workflow is a 409, told from an unknown one."""
    path = await start(alice, queue)
    await close(alice, path)
    told = [await alice.post(f"{path}/{action}", json=body, headers=ADMIN) for action, body in ACTIONS[:3]]
    told.append(await alice.post(f"{path}/signal", json={"signal_name": "note", "signal_input": "x"}))

    for response in told:
        problem = assert_problem(response, 409, "workflow_completed")
        assert path.rpartition("/")[2] == problem["details"]["workflow_id"]


# --- its end ---


@pytest.mark.parametrize("body", [None, {}, {"reason": "ordered twice"}])
async def test_cancel(
    alice: httpx.AsyncClient, client: Client, queue: str, body: dict[str, str] | None, task_queue: str
) -> None:
    """The workflow is asked to end, with the reason if there is one; asked again before it has, it is accepted too."""
    path = await start(alice, queue)
    waiting = await start(alice, task_queue)
    response = await alice.post(f"{path}/cancel", json=body) if body is not None else await alice.post(f"{path}/cancel")
    twice = [await alice.post(f"{waiting}/cancel", json=REASON) for _ in range(2)]
    result = await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})
    (event,) = await events(client, path, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)

    assert (202, {"workflow_id": path.rpartition("/")[2]}) == (response.status_code, response.json())
    assert [202, 202] == [response.status_code for response in twice]
    assert "CANCELED" == result.json()["status"]
    assert (body or {}).get("reason", "") == event.workflow_execution_cancel_requested_event_attributes.cause


async def test_terminate(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """It ends at once, with no worker, and its history has the reason."""
    path = await start(alice, task_queue)
    response = await alice.post(f"{path}/terminate", json=REASON, headers=ADMIN)
    (event,) = await events(client, path, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED)

    assert (204, b"") == (response.status_code, response.content)
    assert "TERMINATED" == (await alice.get(path)).json()["status"]
    assert REASON["reason"] == event.workflow_execution_terminated_event_attributes.reason


@pytest.mark.parametrize("where", ["first_workflow_task", "last_workflow_task", "event_id"])
async def test_reset(alice: httpx.AsyncClient, client: Client, queue: str, where: str) -> None:
    """A new run goes on from that task's end; what was sent later is sent to it again; a closed one can be reset."""
    path = await start(alice, queue)
    assert 200 == (await update(alice, path, "nothing")).status_code
    await signal(alice, path, "note", "later")
    await update(alice, path, "echo", update_input=1)
    old = (await alice.get(path)).json()["run_id"]
    ends = [event.event_id for event in await events(client, path, EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)]
    point = {"first_workflow_task": ends[0], "last_workflow_task": ends[-1], "event_id": ends[1]}[where]
    body = {"event_id": point, **REASON} if where == "event_id" else {"to": where, **REASON}
    response = await alice.post(f"{path}/reset", json=body, headers=ADMIN)
    run_id = response.json()["run_id"]
    (event, *_) = await events(client, path, EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED, run_id)
    failed = event.workflow_task_failed_event_attributes

    assert (200, path.rpartition("/")[2]) == (response.status_code, response.json()["workflow_id"])
    assert (old, run_id) == (failed.base_run_id, failed.new_run_id)
    assert point == event.event_id
    assert REASON["reason"] in failed.failure.message
    assert "TERMINATED" == (await alice.get(path, params={"run_id": old})).json()["status"]
    assert ["later", "1"] == await close(alice, path)

    again = await alice.post(f"{path}/reset", json=body, headers=ADMIN, params={"run_id": run_id})
    assert 200 == again.status_code
    assert again.json()["run_id"] not in (old, run_id)


async def test_what_cannot_be_reset(alice: httpx.AsyncClient, queue: str, task_queue: str) -> None:
    """An event that is not a workflow task's end is a 400 with Temporal's reason, as is a run without one."""
    path = await start(alice, queue)
    await update(alice, path, "nothing")
    for event_id, reason in ((1, "must be > 1"), (2, "boundary"), (10**9, "last event ID")):
        response = await alice.post(f"{path}/reset", json={"event_id": event_id, **REASON}, headers=ADMIN)
        (error,) = assert_problem(response, 400, "validation_error")["details"]["errors"]
        assert "event_id" == error["key"]
        assert reason in error["message"]
        assert "StateRebuilder" not in error["message"]
    fresh = await start(alice, task_queue)
    for to in ("first_workflow_task", "last_workflow_task"):
        response = await alice.post(f"{fresh}/reset", json={"to": to, **REASON}, headers=ADMIN)
        (error,) = assert_problem(response, 400, "validation_error")["details"]["errors"]
        assert "to" == error["key"]


async def test_delete(alice: httpx.AsyncClient, client: Client, queue: str) -> None:
    """A run that is deleted ends and is unknown, and only it; a closed one is taken too (Temporal is slow with it)."""
    workflow_id = f"twice-{uuid.uuid4()}"
    path = f"/api/v1/workflows/{workflow_id}"
    runs = []
    for _ in range(2):
        handle = await client.start_workflow(
            "till", id=workflow_id, task_queue=queue, id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
        )
        runs.append({"run_id": handle.result_run_id})
        if len(runs) == 1:
            await close(alice, path)
    running = await alice.delete(path, headers=ADMIN, params=runs[1])

    async def is_gone() -> bool:
        return (await alice.get(path, params=runs[1])).status_code == 404

    await eventually(is_gone)
    left = await alice.get(path, params=runs[0])
    closed = await alice.delete(path, headers=ADMIN, params=runs[0])

    assert [(204, b""), (204, b"")] == [(response.status_code, response.content) for response in (running, closed)]
    assert 200 == left.status_code
    assert_problem(await alice.delete(path, headers=ADMIN, params=runs[1]), 404, "workflow_not_found")


async def test_a_run_is_pinned(alice: httpx.AsyncClient, client: Client, queue: str) -> None:
    """`run_id` names one run of an id, to update, cancel, terminate and reset; without it the latest is meant."""
    workflow_id = f"twice-{uuid.uuid4()}"
    path = f"/api/v1/workflows/{workflow_id}"
    runs = []
    for value in ("first", "second"):
        handle = await client.start_workflow(
            "till", id=workflow_id, task_queue=queue, id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
        )
        runs.append(handle.result_run_id)
        await update(alice, path, "echo", update_input=value, update_id="u")
        if value == "first":
            await close(alice, path)
    first, second = ({"run_id": run_id} for run_id in runs)
    found = [(await alice.get(f"{path}/updates/u", params=pin)).json() for pin in (first, second, {})]

    assert ["first", "second", "second"] == [answer["result"] for answer in found]
    assert [runs[0], runs[1], runs[1]] == [answer["run_id"] for answer in found]
    new = {"update_name": "echo", "update_input": "new"}
    assert_problem(await alice.post(f"{path}/update", json=new, params=first), 409, "workflow_completed")
    assert runs[1] == (await alice.post(f"{path}/update", json=new, params=second)).json()["run_id"]
    for action in ("cancel", "terminate"):
        response = await alice.post(f"{path}/{action}", json=REASON, params=first, headers=ADMIN)
        assert runs[0] == assert_problem(response, 409, "workflow_completed")["details"]["run_id"]
    assert "RUNNING" == (await alice.get(path)).json()["status"]
    reset = await alice.post(f"{path}/reset", json={"to": "first_workflow_task", **REASON}, params=first, headers=ADMIN)
    ended = (await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})).json()
    assert (reset.json()["run_id"], ['"first"']) == (ended["run_id"], ended["result"])


# --- who may, and what is refused ---


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("workflows:read", {"found"}),
        ("workflows:write", {"update", "cancel"}),
        (f"{WORKFLOWS} orders:read orders:write orders:admin", {"found", "update", "cancel"}),
        ("workflows:admin", {"found", "update", "cancel", "terminate", "reset", "delete"}),
    ],
)
async def test_each_call_needs_its_scope(alice: httpx.AsyncClient, queue: str, scope: str, allowed: set[str]) -> None:
    """`read` sees outcomes, `write` updates and cancels, `admin` also terminates, resets and deletes."""
    path = await start(alice, queue)
    headers = bearer("bob", scope)
    await update(alice, path, "nothing", update_id="u")
    told = {
        "found": await alice.get(f"{path}/updates/u", headers=headers),
        "update": await alice.post(f"{path}/update", json={"update_name": "nothing"}, headers=headers),
        "reset": await alice.post(f"{path}/reset", json={"to": "first_workflow_task", **REASON}, headers=headers),
        "cancel": await alice.post(f"{path}/cancel", headers=headers),
        "terminate": await alice.post(f"{await start(alice, queue)}/terminate", json=REASON, headers=headers),
        "delete": await alice.delete(path, headers=headers),
    }

    assert allowed == {name for name, response in told.items() if response.is_success}
    for name in told.keys() - allowed:
        assert_problem(told[name], 403, "insufficient_scope")


async def test_orders_are_hidden(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """Ids of orders do not exist in these calls for callers without `orders:admin`."""
    workflow_id = f"order-{uuid.uuid4()}"
    await client.start_workflow("till", id=workflow_id, task_queue=task_queue)
    for response in await answers(alice, f"/api/v1/workflows/{workflow_id}", headers=ADMIN):
        assert_problem(response, 404, "workflow_not_found")
    both = bearer("operator", "workflows:admin orders:admin")
    admitted = await alice.post(f"/api/v1/workflows/{workflow_id}/terminate", json=REASON, headers=both)

    assert 204 == admitted.status_code


@pytest.mark.parametrize(
    ("action", "body", "key"),
    [
        ("update", {}, "update_name"),
        ("update", {"update_name": ""}, "update_name"),
        ("update", {"update_name": "u", "update_id": ""}, "update_id"),
        ("update", {"update_name": "u", "update_id": "x" * 1001}, "update_id"),
        ("update", {"update_name": "u", "update_args": {}}, "update_args"),
        ("update", {"update_name": "u", "update_args": [], "update_input": 1}, "update_args"),
        ("update", {"update_name": "u", "input": 1}, "input"),
        ("cancel", {"reason": 1}, "reason"),
        ("cancel", {"why": "so"}, "why"),
        ("terminate", {}, "reason"),
        ("terminate", {"reason": ""}, "reason"),
        ("reset", {"to": "first_workflow_task"}, "reason"),
        ("reset", REASON, "to"),
        ("reset", {"to": "last_workflow_task", "event_id": 4, **REASON}, "to"),
        ("reset", {"to": "the start", **REASON}, "to"),
        ("reset", {"event_id": 0, **REASON}, "event_id"),
        ("reset", {"event_id": 2**64, **REASON}, "event_id"),
        ("reset", {"event_id": "4", **REASON}, "event_id"),
    ],
)
async def test_a_wrong_body_is_refused(alice: httpx.AsyncClient, action: str, body: dict[str, Any], key: str) -> None:
    """A body that is not one is a 400 that names the field, before Temporal is asked about the id."""
    response = await alice.post(f"/api/v1/workflows/nobody/{action}", json=body, headers=ADMIN)
    problem = assert_problem(response, 400, "validation_error")

    assert [key] == [error["key"] for error in problem["details"]["errors"]]


async def test_malformed_requests(alice: httpx.AsyncClient) -> None:
    """No JSON is a 400, no body where one is needed too, and the wrong method is a 405."""
    for action in ("update", "cancel", "terminate", "reset"):
        path = f"/api/v1/workflows/nobody/{action}"
        malformed = await alice.post(path, content="{", headers={**ADMIN, **JSON})
        assert_problem(malformed, 400, "malformed_json")
        assert_problem(await alice.get(path, headers=ADMIN), 405, "method_not_allowed")
    for action in ("update", "terminate", "reset"):
        response = await alice.post(f"/api/v1/workflows/nobody/{action}", headers=ADMIN)
        assert_problem(response, 400, "validation_error")


# --- what a real server does only after long, or seldom ---


class Scripted:
    """A workflow service that answers as it is told, call by call; the last answer of a call stays."""

    def __init__(self, **script: list[Message | Exception]) -> None:
        self.script = script
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """The call of that name."""

        async def call(request: Message, **_: Any) -> Message:
            self.asked.append(name)
            answers = self.script.get(name)
            if answers is None:
                await asyncio.Event().wait()
                raise AssertionError
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def scripted(timeout: float = 5, **script: list[Any]) -> tuple[Temporal, list[str]]:
    """Temporal with that service, and the calls that it got."""
    stage = Scripted(**script)
    client: Any = SimpleNamespace(
        workflow_service=stage, namespace="default", identity="test", data_converter=DATA_CONVERTER
    )
    return Temporal(client, timeout), stage.asked


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


def history(*kinds: str) -> GetWorkflowExecutionHistoryReverseResponse:
    """The last events, newest first."""
    response = GetWorkflowExecutionHistoryReverseResponse()
    for kind in kinds:
        response.history.events.add(event_type=EventType.Value(f"EVENT_TYPE_{kind}"))
    return response


async def test_an_admitted_update_is_sent_again() -> None:
    """Temporal gives up waiting for a worker and may forget the update: it is sent until it is accepted."""
    admitted, accepted = UpdateWorkflowExecutionResponse(stage=1), UpdateWorkflowExecutionResponse(stage=2)
    temporal, asked = scripted(update_workflow_execution=[admitted, admitted, accepted])
    update = await updates.start(Workflow(temporal, "w"), "u", "name", [])

    assert 3 * ["update_workflow_execution"] == asked
    assert update.result is None


async def test_waiting_for_an_outcome_outlives_temporals_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is not told that Temporal was away; what else goes wrong ends the wait."""
    monkeypatch.setattr("temporal_api.temporal.history.RETRY_SECONDS", 0)
    away = RPCError("away", RPCStatusCode.UNAVAILABLE, b"")
    payload = Payload(metadata={"encoding": b"json/plain"}, data=b"1.10")
    done = PollWorkflowExecutionUpdateResponse(stage=3, outcome=Outcome(success=Payloads(payloads=[payload])))
    pending = updates.Update("w", "r", "u", None)
    temporal, asked = scripted(
        poll_workflow_execution_update=[PollWorkflowExecutionUpdateResponse(stage=2), away, away, done]
    )
    refusing, _ = scripted(poll_workflow_execution_update=[RPCError("no", RPCStatusCode.PERMISSION_DENIED, b"")])
    update = await updates.done(temporal, pending)

    assert b"1.10" == bytes(update.result or b"")
    assert 4 == len(asked)
    with pytest.raises(Problem) as caught:
        await updates.done(refusing, pending)
    assert "temporal_error" == caught.value.code


@pytest.mark.parametrize(
    ("queue", "expected"), [((), False), ((300.0, 80.0), False), ((300.0, 70.0), True), ((0.1,), True)]
)
async def test_who_counts_as_a_worker(queue: tuple[float, ...], expected: bool) -> None:
    """Dead workers stay listed for minutes: only one that polled lately counts; the answer is kept for a second."""
    temporal, asked = scripted(describe_task_queue=[pollers(*queue)])

    assert [expected] * 3 == [await temporal.workers.polled("q") for _ in range(3)]
    assert ["describe_task_queue"] == asked


@pytest.mark.parametrize(
    ("describe", "queue", "last", "code"),
    [
        (run(), (), None, "no_worker"),
        (run(attempt=3), (), None, "no_worker"),
        (run(attempt=2), (1,), history("WORKFLOW_TASK_FAILED"), "workflow_task_failing"),
        (run(attempt=2), (1,), history("WORKFLOW_EXECUTION_SIGNALED"), "workflow_task_failing"),
        (run(attempt=2), (1,), history("WORKFLOW_TASK_TIMED_OUT"), "temporal_timeout"),
        (run(), (1,), None, "temporal_timeout"),
        (RPCError("away", RPCStatusCode.UNAVAILABLE, b""), (), None, "temporal_timeout"),
    ],
)
async def test_what_silence_means(
    monkeypatch: pytest.MonkeyPatch, describe: Any, queue: Any, last: Any, code: str
) -> None:
    """No worker, broken code, and neither of them, in which case the answer may still come until the deadline."""
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(workers, "LOOK_EVERY_SECONDS", 0.01)
    temporal, _ = scripted(
        timeout=0.5,
        describe_workflow_execution=[describe],
        describe_task_queue=[pollers(*queue)],
        get_workflow_execution_history_reverse=[last],
    )
    with pytest.raises(Problem) as caught:
        await Workflow(temporal, "w").query("name", [])

    assert code == caught.value.code


@pytest.mark.parametrize(
    ("describe", "last", "code"),
    [
        (run(attempt=9), history("WORKFLOW_TASK_FAILED"), "workflow_task_failing"),
        (run(attempt=9), history("WORKFLOW_TASK_TIMED_OUT"), "workflow_task_failing"),
        (run(status="TERMINATED"), None, "workflow_completed"),
    ],
)
async def test_a_workflow_that_temporal_does_not_ask(describe: Any, last: Any, code: str) -> None:
    """After some failures Temporal refuses at once: that is told in the same words as before."""
    status = GrpcStatus(code=9)
    packed = PackedAny()
    packed.Pack(WorkflowNotReadyFailure())
    status.details.append(packed)
    refusal = RPCError("Workflow Task in failed state", RPCStatusCode.FAILED_PRECONDITION, status.SerializeToString())
    temporal, _ = scripted(
        query_workflow=[refusal],
        update_workflow_execution=[refusal],
        describe_workflow_execution=[describe],
        get_workflow_execution_history_reverse=[last],
    )
    for asking in (Workflow(temporal, "w").query("name", []), updates.start(Workflow(temporal, "w"), "u", "name", [])):
        with pytest.raises(Problem) as caught:
            await asking
        assert code == caught.value.code
