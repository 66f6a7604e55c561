"""Any workflow over HTTP: started, watched, signalled and asked, on a worker that knows nothing of this service."""

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from temporalio import activity, workflow
from temporalio.api.batch.v1 import BatchOperationSignal
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import PollWorkflowTaskQueueRequest, StartBatchOperationRequest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleSpec,
    WorkflowExecutionStatus,
)
from temporalio.common import RawValue, RetryPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import WORKFLOWS, assert_problem, bearer, eventually, order, service
from temporal_api.dev.server import DevServer

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
OPERATOR = bearer("operator", f"{WORKFLOWS} workflows:admin orders:admin")
UUID = "00000000-0000-4000-8000-000000000000"


# --- the workflows of the tests ---


@workflow.defn(name="echo")
class Echo:
    """Gives back its argument's payload as it is."""

    @workflow.run
    async def run(self, value: RawValue) -> RawValue:
        """Give it back."""
        return value


@workflow.defn(name="give")
class Give:
    """Results that JSON cannot carry, and none."""

    @workflow.run
    async def run(self, what: str) -> Any:
        """Give what is asked for."""
        return {
            "nan": [1.5, float("nan"), float("inf")],
            "bytes": b"\x00\xff",
            "nothing": None,
            "not utf-8": RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b'"\xff"')),
            "not json": RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"{")),
            "foreign": RawValue(Payload(metadata={"encoding": b"x/y", "key": b"\xff1"}, data=b"{}")),
        }[what]


@activity.defn
async def stumble() -> None:
    """Fail for good."""
    raise ApplicationError("stumbled", {"at": 7}, type="Stumble", non_retryable=True)


@workflow.defn(name="fail")
class Fail:
    """Ends badly, in one way or another."""

    @workflow.run
    async def run(self, how: str) -> None:
        """Fail like that."""
        match how:
            case "application":
                try:
                    raise KeyError("deep down")
                except KeyError as error:
                    raise ApplicationError("out of luck", {"left": "1.10"}, 2, type="Luck") from error
            case "activity":
                await workflow.execute_activity(stumble, schedule_to_close_timeout=timedelta(seconds=10))
            case "timeout":
                await workflow.execute_activity(
                    "nobody", schedule_to_close_timeout=timedelta(milliseconds=1), task_queue="nobody-polls-this"
                )


@workflow.defn(name="listen")
class Listen:
    """Waits for the signal `tell`, and gives it back; answers queries well and badly."""

    def __init__(self) -> None:
        self.told: RawValue | None = None

    @workflow.run
    async def run(self) -> RawValue:
        """Wait."""
        await workflow.wait_condition(lambda: self.told is not None)
        assert self.told is not None
        return self.told

    @workflow.signal
    def tell(self, value: RawValue) -> None:
        """Note it."""
        self.told = value

    @workflow.query
    def is_told(self) -> bool:
        """Whether the signal came."""
        return self.told is not None

    @workflow.query
    def broken(self) -> None:
        """Fail."""
        raise ValueError("the cupboard is bare")

    @workflow.query
    def refused(self) -> None:
        """Fail in the SDK's own way."""
        raise ApplicationError("not today", type="NotToday") from KeyError("hidden")


@activity.defn
async def count_pages() -> None:
    """Say how far it has come, and fail for half an hour."""
    activity.heartbeat({"page": 7})
    raise ApplicationError("out of paper", next_retry_delay=timedelta(minutes=30))


@workflow.defn(name="wait")
class Wait:
    """Waits for an activity, for a child, or for its code to be fixed."""

    @workflow.run
    async def run(self, what: str) -> None:
        """Wait for that."""
        match what:
            case "activity":
                policy = RetryPolicy(maximum_attempts=3)
                timeout = timedelta(minutes=1)
                await workflow.execute_activity(count_pages, start_to_close_timeout=timeout, retry_policy=policy)
            case "child":
                policy = workflow.ParentClosePolicy.REQUEST_CANCEL
                name = f"{workflow.info().workflow_id}-child"
                await workflow.execute_child_workflow("listen", id=name, parent_close_policy=policy)
            case "fix":
                raise KeyError("invoice")


@workflow.defn(name="parrot")
class Parrot:
    """Answers any query with its arguments' bytes."""

    @workflow.run
    async def run(self) -> None:
        """Wait for ever."""
        await workflow.wait_condition(lambda: False)

    @workflow.query(dynamic=True)
    def ask(self, name: str, args: Sequence[RawValue]) -> list[str]:
        """Say them."""
        return [value.payload.data.decode() for value in args]

    @workflow.query
    def literal(self, value: RawValue) -> RawValue:
        """Give it back as it is."""
        return value


@pytest.fixture(scope="module")
async def foreign(dev_server: DevServer) -> Client:
    """A client with the SDK's own converter: workers are not ours."""
    return await Client.connect(dev_server.address)


@pytest.fixture(scope="module")
async def queue(foreign: Client) -> AsyncIterator[str]:
    """A queue with a worker for these workflows."""
    name = f"samples-{uuid.uuid4()}"
    async with Worker(
        foreign,
        task_queue=name,
        workflows=[Echo, Give, Fail, Listen, Parrot, Wait],
        activities=[stumble, count_pages],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        yield name


def at(workflow_id: str, action: str = "") -> str:
    """The workflow's path."""
    return f"/api/v1/workflows/{quote(workflow_id, safe='')}{action}"


async def start(
    http: httpx.AsyncClient, workflow_type: str, task_queue: str, *, more: str = "", **changes: Any
) -> dict[str, Any]:
    """Start a workflow, with `more` as JSON text beside the fields; gives the answer's body."""
    body = json.dumps({"workflow_type": workflow_type, "task_queue": task_queue, **changes})
    response = await http.post("/api/v1/workflows", content=body[:-1] + more + "}", headers=JSON)
    assert 201 == response.status_code, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def closed(http: httpx.AsyncClient, workflow_id: str) -> httpx.Response:
    """The answer about the workflow once it is closed."""

    async def there() -> httpx.Response | None:
        response = await http.get(at(workflow_id))
        return response if b'"status":"RUNNING"' not in response.content else None

    response = await eventually(there)
    assert response is not None
    return response


async def events(client: Client, workflow_id: str, kind: EventType.ValueType) -> list[HistoryEvent]:
    """Events of the run as Temporal has them."""
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    return [event for event in history.events if event.event_type == kind]


async def arguments(client: Client, workflow_id: str) -> list[bytes]:
    """The bytes that the workflow was started with."""
    (event,) = await events(client, workflow_id, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)
    return [payload.data for payload in event.workflow_execution_started_event_attributes.input.payloads]


# --- starting ---


async def test_a_started_workflow(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """A start is a 201 with a location, before any worker has seen it; the run has what was asked for."""
    response = await alice.post(
        "/api/v1/workflows",
        json={"workflow_type": "any", "task_queue": task_queue, "input_data": 1, "execution_timeout_seconds": 90.5},
    )
    body = response.json()
    (event,) = await events(client, body["workflow_id"], EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)
    attributes = event.workflow_execution_started_event_attributes

    assert 201 == response.status_code
    assert at(body["workflow_id"]) == response.headers["location"]
    assert str(uuid.UUID(body["workflow_id"])) == body["workflow_id"]
    assert attributes.original_execution_run_id == body["run_id"]
    assert {"status": "RUNNING", "result": None} == {k: body[k] for k in body.keys() - {"workflow_id", "run_id"}}
    assert ("any", task_queue) == (attributes.workflow_type.name, attributes.task_queue.name)
    assert timedelta(seconds=90.5) == attributes.workflow_execution_timeout.ToTimedelta()


async def test_the_least_that_starts_a_workflow(alice: httpx.AsyncClient, client: Client) -> None:
    """A type is enough: the queue is `temporal-product-queue`, the timeout an hour, and there is no argument."""
    response = await alice.post("/api/v1/workflows/", json={"workflow_type": "any"})
    workflow_id = response.json()["workflow_id"]
    (event,) = await events(client, workflow_id, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)
    attributes = event.workflow_execution_started_event_attributes

    assert "temporal-product-queue" == attributes.task_queue.name
    assert timedelta(hours=1) == attributes.workflow_execution_timeout.ToTimedelta()
    assert not attributes.input.payloads


async def test_no_timeout(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """`execution_timeout_seconds: null` means that the workflow may run for ever."""
    body = await start(alice, "any", task_queue, execution_timeout_seconds=None)
    (event,) = await events(client, body["workflow_id"], EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)

    assert timedelta(0) == event.workflow_execution_started_event_attributes.workflow_execution_timeout.ToTimedelta()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", []),
        (', "input_data": null', [b"null"]),
        (', "input_data": [1, 2]', [b"[1, 2]"]),
        (', "input_data": {"a": [ ]}', [b'{"a": [ ]}']),
        (', "input_data": ""', [b'""']),
        (', "args": []', []),
        (', "args": [null]', [b"null"]),
        (', "args": [ 1.10 , [2,  3],{"a":4}]', [b"1.10", b"[2,  3]", b'{"a":4}']),
    ],
)
async def test_arguments(
    alice: httpx.AsyncClient, client: Client, task_queue: str, more: str, expected: list[bytes]
) -> None:
    """`input_data` is one argument, `args` is the list of them, nothing is none: for starts and signals alike."""
    body = await start(alice, "any", task_queue, more=more)
    signal = '{"signal_name": "s"' + more.replace("input_data", "signal_input").replace("args", "signal_args") + "}"
    response = await alice.post(at(body["workflow_id"], "/signal"), content=signal, headers=JSON)
    (event,) = await events(client, body["workflow_id"], EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED)
    attributes = event.workflow_execution_signaled_event_attributes

    assert expected == await arguments(client, body["workflow_id"])
    assert (202, {"workflow_id": body["workflow_id"], "signal_name": "s"}) == (response.status_code, response.json())
    assert ("s", expected) == (attributes.signal_name, [payload.data for payload in attributes.input.payloads])


EXACT = [
    "1.10",
    "-0.0",
    "1E400",
    "-1e-500",
    "12345678901234567890.12345678901234567890",
    "123456789012345678901234567890",
    "9" * 5000,
    '{ "b" : 1,\n\t"a":[ ] , "c" : 0.1e-7 }',
    '{"a":1,"a":2}',
    '"\\u00fc\\/ü \\ud83d\\ude00 😀"',
    '""',
    "null",
    "true",
    "[]",
    "{}",
    "[" * 200 + "]" * 200,
]


@pytest.mark.parametrize("text", EXACT, ids=lambda text: text[:20])
async def test_json_passes_untouched(alice: httpx.AsyncClient, client: Client, queue: str, text: str) -> None:
    """By start, signal and query: the bytes in Temporal are the caller's, and the answer's are Temporal's."""
    data = text.encode()
    echoed = await start(alice, "echo", queue, more=f', "input_data": {text}')
    told = await start(alice, "listen", queue)
    parrot = await start(alice, "parrot", queue)
    signal = b'{"signal_name": "tell", "signal_input": ' + data + b"}"
    query = b'{"query_name": "literal", "query_args": [' + data + b"]}"
    await alice.post(at(told["workflow_id"], "/signal"), content=signal, headers=JSON)
    answer = await alice.post(at(parrot["workflow_id"], "/query"), content=query, headers=JSON)
    (event,) = await events(client, told["workflow_id"], EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED)

    assert [data] == await arguments(client, echoed["workflow_id"])
    assert [data] == [p.data for p in event.workflow_execution_signaled_event_attributes.input.payloads]
    assert b'"result":' + data + b"," in (await closed(alice, echoed["workflow_id"])).content
    assert b'"result":' + data + b"," in (await closed(alice, told["workflow_id"])).content
    assert b'{"result":' + data + b"}" == answer.content


@pytest.mark.parametrize(
    ("what", "metadata", "data"),
    [
        ("nan", {"encoding": "json/plain"}, b"[1.5,NaN,Infinity]"),
        ("bytes", {"encoding": "binary/plain"}, b"\x00\xff"),
        ("not utf-8", {"encoding": "json/plain"}, b'"\xff"'),
        ("not json", {"encoding": "json/plain"}, b"{"),
        ("foreign", {"encoding": "x/y", "key": "\ufffd1"}, b"{}"),
    ],
)
async def test_results_that_json_cannot_carry(
    alice: httpx.AsyncClient, queue: str, what: str, metadata: dict[str, str], data: bytes
) -> None:
    """A payload that is no JSON comes as its metadata and its bytes in base64."""
    body = await start(alice, "give", queue, input_data=what)
    answer = (await closed(alice, body["workflow_id"])).json()

    assert {"metadata": metadata, "data": base64.b64encode(data).decode()} == answer["result"]


async def test_no_result_is_null(alice: httpx.AsyncClient, queue: str) -> None:
    """A workflow that gives nothing back has the result null."""
    body = await start(alice, "give", queue, input_data="nothing")
    answer = (await closed(alice, body["workflow_id"])).json()

    assert ("COMPLETED", None) == (answer["status"], answer["result"])


IDS = [
    "a/b",
    "/a//b/",
    "a b",
    " a ",
    "100%",
    "%2F",
    "a%2Fb%25",
    "a?b#c&d=e",
    "a+b",
    "ü/日本/😀",
    "...",
    "a;b,c:d@e",
    "'\"<>\\",
    "x" * 1000,
    "signal",
    "a/signal",
]


@pytest.mark.parametrize("name", IDS, ids=lambda name: name[:20])
async def test_any_id_is_addressable(alice: httpx.AsyncClient, queue: str, name: str) -> None:
    """Whatever the id, its location leads to it, and it can be signalled and asked."""
    workflow_id = name if len(name) == 1000 else f"{name}{uuid.uuid4()}{name}"
    body = {"workflow_type": "listen", "task_queue": queue, "workflow_id": workflow_id}
    started = await alice.post("/api/v1/workflows", json=body)
    location = started.headers["location"]
    found = await alice.get(location)
    asked = await alice.post(location + "/query", json={"query_name": "is_told"})
    signalled = await alice.post(location + "/signal", json={"signal_name": "tell", "signal_input": 1})

    assert (201, workflow_id) == (started.status_code, started.json()["workflow_id"])
    assert (200, workflow_id) == (found.status_code, found.json()["workflow_id"])
    assert {"result": False} == asked.json()
    assert (202, workflow_id) == (signalled.status_code, signalled.json()["workflow_id"])


NAMES = [
    ({}, "workflow_type"),
    ({"workflow_type": ""}, "workflow_type"),
    ({"workflow_type": "x" * 1001}, "workflow_type"),
    ({"workflow_type": "x", "task_queue": ""}, "task_queue"),
    ({"workflow_type": "x", "task_queue": "x" * 1001}, "task_queue"),
    ({"workflow_type": "x", "workflow_id": ""}, "workflow_id"),
    ({"workflow_type": "x", "workflow_id": "x" * 1001}, "workflow_id"),
    ({"workflow_type": "x", "workflow_id": "."}, "workflow_id"),
    ({"workflow_type": "x", "workflow_id": ".."}, "workflow_id"),
    ({"workflow_type": "x", "workflow_id": 7}, "workflow_id"),
    ({"workflow_type": "x", "execution_timeout_seconds": 0}, "execution_timeout_seconds"),
    ({"workflow_type": "x", "execution_timeout_seconds": -1}, "execution_timeout_seconds"),
    ({"workflow_type": "x", "execution_timeout_seconds": 1e-9}, "execution_timeout_seconds"),
    ({"workflow_type": "x", "execution_timeout_seconds": 1e300}, "execution_timeout_seconds"),
    ({"workflow_type": "x", "execution_timeout_seconds": "1"}, "execution_timeout_seconds"),
    ({"workflow_type": "x", "args": None}, "args"),
    ({"workflow_type": "x", "args": {}}, "args"),
    ({"workflow_type": "x", "args": [2], "input_data": None}, "args"),
    ({"workflow_type": "x", "inputdata": 1}, "inputdata"),
]


@pytest.mark.parametrize(("body", "key"), NAMES, ids=[f"{n}-{key}" for n, (_, key) in enumerate(NAMES)])
async def test_a_wrong_start_is_refused(alice: httpx.AsyncClient, body: dict[str, Any], key: str) -> None:
    """What cannot be started is a 400 that names the field."""
    problem = assert_problem(await alice.post("/api/v1/workflows", json=body), 400, "validation_error")

    assert [key] == [error["key"] for error in problem["details"]["errors"]]


async def test_an_id_is_used_once(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """A second start of an id is a 409 that names the run that is there: running, and by policy also closed."""
    body = {"workflow_type": "any", "task_queue": task_queue, "workflow_id": f"once-{uuid.uuid4()}"}
    body["id_reuse_policy"] = "REJECT_DUPLICATE"
    run_id = (await alice.post("/api/v1/workflows", json=body)).json()["run_id"]
    while_running = await alice.post("/api/v1/workflows", json=body)
    await client.get_workflow_handle(body["workflow_id"]).terminate()
    when_closed = await alice.post("/api/v1/workflows", json=body)

    for response in (while_running, when_closed):
        problem = assert_problem(response, 409, "workflow_already_exists")
        assert body["workflow_id"] == problem["details"]["workflow_id"]
        assert run_id == problem["details"]["run_id"]


async def test_of_many_starts_of_an_id_one_wins(alice: httpx.AsyncClient, task_queue: str) -> None:
    """Twenty starts at once: one 201 and nineteen 409, all with the same run."""
    body = {"workflow_type": "any", "task_queue": task_queue, "workflow_id": f"race-{uuid.uuid4()}"}
    responses = await asyncio.gather(*(alice.post("/api/v1/workflows", json=body) for _ in range(20)))
    problems = [assert_problem(r, 409, "workflow_already_exists") for r in responses if r.status_code != 201]
    (created,) = [r.json() for r in responses if r.status_code == 201]

    assert 19 == len(problems)
    assert {created["run_id"]} == {problem["details"]["run_id"] for problem in problems}


async def test_too_large_for_temporal(dev_server: DevServer, queue: str) -> None:
    """Data over Temporal's limits, of a payload (2 MB) or of a message (4 MB), is a 413, in every call."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_BODY_BYTES=str(10**8)) as roomy:
        running = at((await start(roomy, "parrot", queue))["workflow_id"])
        for size in (2_200_000, 6_000_000):
            blob = "x" * size
            started = await roomy.post("/api/v1/workflows", json={"workflow_type": "x", "input_data": blob})
            signalled = await roomy.post(running + "/signal", json={"signal_name": "s", "signal_input": blob})

            assert_problem(started, 413, "payload_too_large")
            assert_problem(signalled, 413, "payload_too_large")
        asked = await roomy.post(running + "/query", json={"query_name": "any", "query_args": "x" * 6_000_000})

        assert_problem(asked, 413, "payload_too_large")


async def test_allow_lists(dev_server: DevServer) -> None:
    """Only the types and queues of the settings may be started; orders are not started by their caller's choice."""
    allowed = {"workflow_type": "good", "task_queue": "fine"}
    async with service(
        TEMPORAL_ADDRESS=dev_server.address, ALLOWED_WORKFLOW_TYPES="other, good", ALLOWED_TASK_QUEUES="fine"
    ) as strict:
        for body in ({**allowed, "workflow_type": "bad"}, {**allowed, "task_queue": "bad"}, {"workflow_type": "good"}):
            assert_problem(await strict.post("/api/v1/workflows", json=body), 403, "not_allowed")
        admin = await strict.post("/api/v1/workflows", json={**allowed, "workflow_type": "bad"}, headers=OPERATOR)

        assert_problem(admin, 403, "not_allowed")
        assert 201 == (await strict.post("/api/v1/workflows", json=allowed)).status_code
        assert 201 == (await strict.post("/api/v1/orders", json=order())).status_code


# --- reading ---


async def test_a_workflow_from_running_to_completed(alice: httpx.AsyncClient, queue: str) -> None:
    """The status is Temporal's as it is now; result, close time and duration come with the end."""
    before = datetime.now(UTC)
    body = await start(alice, "listen", queue)
    path = at(body["workflow_id"])
    running = (await alice.get(path)).json()
    await alice.post(path + "/signal", json={"signal_name": "tell", "signal_input": {"a": 1}})
    ended = (await closed(alice, body["workflow_id"])).json()
    begun, end = (datetime.fromisoformat(ended[name]) for name in ("start_time", "close_time"))

    same = {"workflow_id": body["workflow_id"], "run_id": body["run_id"], "workflow_type": "listen"}
    same |= {"task_queue": queue, "failure": None, "start_time": ended["start_time"], "parent_workflow_id": None}
    same |= {"memo": {}, "pending_activities": [], "pending_children": [], "pending_workflow_task": None}
    assert {**same, "status": "RUNNING", "result": None, "close_time": None, "execution_time_seconds": None} == {
        k: v for k, v in running.items() if k not in ("history_length", "search_attributes")
    }
    assert {**same, "status": "COMPLETED", "result": {"a": 1}} == {
        k: v
        for k, v in ended.items()
        if k not in ("history_length", "close_time", "execution_time_seconds", "search_attributes")
    }
    assert before <= begun < end <= datetime.now(UTC)
    assert (end - begun).total_seconds() == pytest.approx(ended["execution_time_seconds"], abs=1e-5)
    assert 0 < running["history_length"] < ended["history_length"]
    assert [] == [name for name in ended["search_attributes"] if name != "BuildIds"]  # Temporal's own


async def waits_for(alice: httpx.AsyncClient, queue: str, what: str, field: str) -> Any:
    """What the status says in that field once it says something."""
    path = at((await start(alice, "wait", queue, input_data=what))["workflow_id"])

    async def told() -> Any:
        return (await alice.get(path)).json()[field]

    return await eventually(told)


async def test_an_activity_that_will_be_tried_again(alice: httpx.AsyncClient, foreign: Client, queue: str) -> None:
    """The status tells how far it came, who had it, why it failed and when its next attempt is."""
    path = at((await start(alice, "wait", queue, input_data="activity"))["workflow_id"])

    async def told() -> dict[str, Any] | None:
        pending = (await alice.get(path)).json()["pending_activities"]
        return pending[0] if pending and pending[0]["next_attempt_time"] else None

    pending = await eventually(told)
    assert pending is not None
    left = datetime.fromisoformat(pending.pop("next_attempt_time")) - datetime.now(UTC)
    assert timedelta(minutes=25) < left < timedelta(minutes=31)
    assert "out of paper" == pending.pop("last_failure")["message"]
    assert pending == {
        "activity_id": "1",
        "activity_type": "count_pages",
        "state": "SCHEDULED",
        "attempt": 2,
        "maximum_attempts": 3,
        "heartbeat_details": [{"page": 7}],
        "last_worker_identity": foreign.identity,
    }


async def test_a_child_that_is_waited_for(alice: httpx.AsyncClient, queue: str) -> None:
    """The status names the children that are open."""
    (child,) = await waits_for(alice, queue, "child", "pending_children")
    found = (await alice.get(at(child["workflow_id"]))).json()

    assert found["parent_workflow_id"] == child["workflow_id"].removesuffix("-child")
    assert child == {
        "workflow_id": found["workflow_id"],
        "run_id": found["run_id"],
        "workflow_type": "listen",
        "parent_close_policy": "REQUEST_CANCEL",
    }


async def test_code_that_fails_again_and_again(alice: httpx.AsyncClient, queue: str) -> None:
    """The status of such a run, which is RUNNING to Temporal, tells the failure and the attempt, without a trace."""
    task = await waits_for(alice, queue, "fix", "pending_workflow_task")

    assert task["attempt"] > 1
    assert ("KeyError", "'invoice'") == (task["failure"]["type"], task["failure"]["message"])
    assert "stack_trace" not in task["failure"]


async def test_a_task_whose_worker_went_away(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """A workflow task that nobody has answered is tried again; that is no failure of the code."""
    path = at((await start(alice, "wait", task_queue, task_timeout_seconds=1))["workflow_id"])
    queue = TaskQueue(name=task_queue)
    poll = PollWorkflowTaskQueueRequest(namespace=client.namespace, task_queue=queue, identity="gone")
    assert (await client.workflow_service.poll_workflow_task_queue(poll)).attempt == 1
    assert (await client.workflow_service.poll_workflow_task_queue(poll)).attempt == 2

    assert (await alice.get(path)).json()["pending_workflow_task"] is None


async def test_a_result_that_is_not_there_yet(alice: httpx.AsyncClient, queue: str) -> None:
    """202 says where to ask again: for the run that was pinned, or whatever follows."""
    body = await start(alice, "parrot", queue)
    path = at(body["workflow_id"], "/result")
    for asked in (path, f"{path}?run_id={body['run_id']}"):
        answer = await alice.get(asked)
        assert (202, asked) == (answer.status_code, answer.headers["location"])


async def test_the_service_s_own_memo_is_hidden(alice: httpx.AsyncClient, task_queue: str) -> None:
    """What the service keeps for itself is in no status and no history; a caller's own memo is."""
    body = {"workflow_type": "any", "task_queue": task_queue, "memo": {"note": "mine"}}
    started = await alice.post("/api/v1/workflows", json=body, headers={"Idempotency-Key": str(uuid.uuid4())})
    placed = (await alice.post("/api/v1/orders", json=order())).json()["workflow_id"]
    for workflow_id, memo in ((started.json()["workflow_id"], {"note": "mine"}), (placed, {})):
        status = await alice.get(at(workflow_id), headers=OPERATOR)
        history = await alice.get(at(workflow_id, "/history"), headers=OPERATOR)
        kept = history.json()["items"][0]["attributes"]["memo"]
        assert (memo, {"fields": memo} if memo else kept) == (status.json()["memo"], kept)
        assert "temporal_api." not in status.text + history.text


@pytest.mark.parametrize(
    ("how", "failure"),
    [
        (
            "application",
            {
                "type": "Luck",
                "message": "out of luck",
                "details": [{"left": "1.10"}, 2],
                "cause": {"type": "KeyError", "message": "'deep down'"},
            },
        ),
        (
            "activity",
            {
                "type": "Activity",
                "message": "Activity task failed",
                "cause": {"type": "Stumble", "message": "stumbled", "details": [{"at": 7}]},
            },
        ),
    ],
)
async def test_a_failed_workflow(alice: httpx.AsyncClient, queue: str, how: str, failure: dict[str, Any]) -> None:
    """A run that failed is a 200 that tells the failure and its causes, without a stack trace."""
    body = await start(alice, "fail", queue, input_data=how)
    response = await closed(alice, body["workflow_id"])

    assert (200, "FAILED", None) == (response.status_code, response.json()["status"], response.json()["result"])
    assert failure == response.json()["failure"]
    assert "test_workflows.py" not in response.text


async def test_a_failure_by_timeout(alice: httpx.AsyncClient, queue: str) -> None:
    """An activity's timeout is told as such at the end of the causes."""
    body = await start(alice, "fail", queue, input_data="timeout")
    failure = (await closed(alice, body["workflow_id"])).json()["failure"]

    assert ("Activity", "Timeout") == (failure["type"], failure["cause"]["type"])


@pytest.mark.parametrize("end", ["TERMINATED", "CANCELED", "TIMED_OUT"])
async def test_other_ends(alice: httpx.AsyncClient, client: Client, queue: str, end: str) -> None:
    """A run that was ended from outside has Temporal's word for it, and neither result nor failure."""
    timeout = 1 if end == "TIMED_OUT" else 60
    body = await start(alice, "listen", queue, execution_timeout_seconds=timeout)
    handle = client.get_workflow_handle(body["workflow_id"])
    if end == "TERMINATED":
        await handle.terminate("enough")
    elif end == "CANCELED":
        await handle.cancel()
    answer = (await closed(alice, body["workflow_id"])).json()

    assert (end, None, None) == (answer["status"], answer["result"], answer["failure"])


async def test_a_run_is_pinned(alice: httpx.AsyncClient, client: Client, queue: str) -> None:
    """`run_id` names one run of an id, to read, to signal and to ask; without it the latest answers."""
    workflow_id = f"twice-{uuid.uuid4()}"
    runs = []
    for told in ("first", "second"):
        handle = await client.start_workflow(
            "listen", id=workflow_id, task_queue=queue, id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
        )
        runs.append(handle.result_run_id)
        if told == "first":
            await handle.signal("tell", told)
            await handle.result()
    first, second = ({"run_id": run_id} for run_id in runs)

    pinned = (await alice.get(at(workflow_id), params=first)).json()
    latest = (await alice.get(at(workflow_id))).json()
    assert (runs[0], "COMPLETED", "first") == (pinned["run_id"], pinned["status"], pinned["result"])
    assert (runs[1], "RUNNING") == (latest["run_id"], latest["status"])
    assert runs[1] == (await alice.get(at(workflow_id), params=second)).json()["run_id"]

    signal, query = {"signal_name": "tell", "signal_input": "again"}, {"query_name": "is_told"}
    too_late = await alice.post(at(workflow_id, "/signal"), params=first, json=signal)
    problem = assert_problem(too_late, 409, "workflow_completed")
    assert {"workflow_id": workflow_id, "run_id": runs[0]}.items() <= problem["details"].items()
    assert {"result": True} == (await alice.post(at(workflow_id, "/query"), params=first, json=query)).json()
    assert {"result": False} == (await alice.post(at(workflow_id, "/query"), json=query)).json()
    loud = {"run_id": runs[1].upper()}
    assert {"result": False} == (await alice.post(at(workflow_id, "/query"), params=loud, json=query)).json()
    assert 202 == (await alice.post(at(workflow_id, "/signal"), params=second, json=signal)).status_code

    assert_problem(await alice.get(at(workflow_id), params={"run_id": "no-uuid"}), 400, "validation_error")
    for response in (
        await alice.get(at(workflow_id), params={"run_id": UUID}),
        await alice.post(at(workflow_id, "/signal"), params={"run_id": UUID}, json=signal),
        await alice.post(at(workflow_id, "/query"), params={"run_id": UUID}, json=query),
    ):
        problem = assert_problem(response, 404, "workflow_not_found")
        assert {"workflow_id": workflow_id, "run_id": UUID}.items() <= problem["details"].items()


async def test_a_workflow_that_is_not_there(alice: httpx.AsyncClient) -> None:
    """An unknown id is a 404 that repeats it, in every call."""
    workflow_id = f"nobody/{uuid.uuid4()}"
    for response in (
        await alice.get(at(workflow_id)),
        await alice.post(at(workflow_id, "/signal"), json={"signal_name": "s"}),
        await alice.post(at(workflow_id, "/query"), json={"query_name": "q"}),
    ):
        problem = assert_problem(response, 404, "workflow_not_found")
        assert workflow_id == problem["details"]["workflow_id"]


TOO_LONG = ["x" * 1001, "x" * 7000, "é" * 501, "😀" * 600]


@pytest.mark.parametrize("name", TOO_LONG, ids=lambda name: f"{len(name)}{name[0]}")
async def test_an_id_that_is_longer_than_temporal_takes(alice: httpx.AsyncClient, queue: str, name: str) -> None:
    """It is the id of nothing: 404 in every path, and told cut."""
    workflow_id = (await start(alice, "listen", queue))["workflow_id"]
    for method, action, body in CALLS:
        response = await alice.request(method, at(name, action), json=body, headers=OPERATOR)
        assert 200 == len(assert_problem(response, 404, "workflow_not_found")["details"]["workflow_id"])
    assert_problem(await alice.get(at(workflow_id, f"/updates/{quote(name, safe='')}")), 404, "update_not_found")
    for method, action in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
        response = await alice.request(method, f"/api/v1/orders/{quote(name, safe='')}{action}")
        assert_problem(response, 404, "order_not_found")


@pytest.mark.parametrize(
    ("action", "body", "key"),
    [
        ("", {"workflow_type": "NAME"}, "workflow_type"),
        ("", {"workflow_type": "x", "task_queue": "NAME"}, "task_queue"),
        ("", {"workflow_type": "x", "workflow_id": "NAME"}, "workflow_id"),
        ("", {"workflow_type": "x", "signal": {"signal_name": "NAME"}}, "signal.signal_name"),
        ("", {"workflow_type": "x", "update": {"update_name": "NAME"}}, "update.update_name"),
        ("", {"workflow_type": "x", "update": {"update_name": "x", "update_id": "NAME"}}, "update.update_id"),
        ("/ID/signal", {"signal_name": "NAME"}, "signal_name"),
        ("/ID/query", {"query_name": "NAME"}, "query_name"),
        ("/ID/updates", {"update_name": "NAME"}, "update_name"),
        ("/ID/updates", {"update_name": "x", "update_id": "NAME"}, "update_id"),
    ],
)
async def test_a_name_that_is_longer_than_temporal_takes(
    alice: httpx.AsyncClient, queue: str, action: str, body: dict[str, Any], key: str
) -> None:
    """In a body it is a 400 that names the field: Temporal counts bytes, and takes 1000."""
    workflow_id = (await start(alice, "listen", queue))["workflow_id"]
    path = "/api/v1/workflows" + action.replace("ID", workflow_id)
    for name in ("é" * 501, "😀" * 1000, "x" * 1001):
        sent = json.dumps(body).replace("NAME", name)
        problem = assert_problem(await alice.post(path, content=sent, headers=JSON), 400, "validation_error")
        assert [key] == [error["key"] for error in problem["details"]["errors"]]


# --- Temporal's own workflows ---


CALLS: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("GET", "/result", None),
    ("GET", "/history", None),
    ("GET", "/events", None),
    ("GET", "/updates/x", None),
    ("POST", "/signal", {"signal_name": "patch", "signal_input": {"trigger_immediately": {}}}),
    ("POST", "/query", {"query_name": "describe"}),
    ("POST", "/updates", {"update_name": "x"}),
    ("POST", "/cancel", None),
    ("POST", "/terminate", {"reason": "x"}),
    ("POST", "/reset", {"reason": "x", "to": "first_workflow_task"}),
    ("DELETE", "", None),
]


async def test_a_schedule_is_no_workflow_to_callers(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """The workflow behind a schedule is there for nobody: no signal triggers it, no call ends or shows it."""
    action = ScheduleActionStartWorkflow("any", id=f"made-{uuid.uuid4()}", task_queue=task_queue)
    schedule = await client.create_schedule(str(uuid.uuid4()), Schedule(action, ScheduleSpec()))
    hidden = f"temporal-sys-scheduler:{schedule.id}"
    assert WorkflowExecutionStatus.RUNNING == (await client.get_workflow_handle(hidden).describe()).status
    for method, below, body in CALLS:
        response = await alice.request(method, at(hidden, below), json=body, headers=OPERATOR)
        assert_problem(response, 404, "workflow_not_found")
    signal = {"signal_name": "patch", "signal_input": {"trigger_immediately": {}}}
    body = {"workflow_type": "any", "workflow_id": hidden, "task_queue": task_queue, "signal": signal}
    assert_problem(await alice.post("/api/v1/workflows", json=body, headers=OPERATOR), 403, "not_allowed")

    assert 0 == (await schedule.describe()).info.num_actions
    assert WorkflowExecutionStatus.RUNNING == (await client.get_workflow_handle(hidden).describe()).status
    await schedule.delete()


@pytest.mark.parametrize(
    "own",
    [
        {"workflow_type": "temporal-sys-batch-workflow", "task_queue": "temporal-sys-per-ns-tq"},
        {"workflow_type": "temporal-sys-batch-workflow-protobuf"},
        {"task_queue": "temporal-sys-per-ns-tq"},
        {"task_queue": "/_sys/temporal-sys-per-ns-tq/1"},
        {"workflow_id": "temporal-sys-scheduler:mine"},
        {"workflow_id": "/_sys/mine"},
        {"search_attributes": {"TemporalNamespaceDivision": {"type": "Keyword", "value": "TemporalScheduler"}}},
    ],
)
@pytest.mark.parametrize("message", [{}, {"signal": {"signal_name": "s"}}, {"update": {"update_name": "u"}}])
async def test_nobody_starts_temporal_s_own_workflows(
    alice: httpx.AsyncClient, client: Client, task_queue: str, own: dict[str, Any], message: dict[str, Any]
) -> None:
    """A batch job by the way of a start would end other callers' workflows: 403, and nothing ends."""
    victim = (await start(alice, "any", task_queue))["workflow_id"]
    job = {"Namespace": "default", "Query": f"WorkflowId='{victim}'", "BatchType": "terminate", "Reason": "x"}
    body = {"workflow_type": "any", "task_queue": task_queue, "input_data": job, **own, **message}
    for headers in (bearer(scope="workflows:write"), OPERATOR):
        assert_problem(await alice.post("/api/v1/workflows", json=body, headers=headers), 403, "not_allowed")

    assert "RUNNING" == (await alice.get(at(victim))).json()["status"]


async def test_a_batch_job_is_no_workflow_to_callers(alice: httpx.AsyncClient, client: Client) -> None:
    """Its id may be any; its type says what it is."""
    job = f"job-{uuid.uuid4()}"
    request = StartBatchOperationRequest(
        namespace=client.namespace,
        job_id=job,
        reason="x",
        visibility_query="WorkflowId = 'nobody'",
        signal_operation=BatchOperationSignal(signal="s"),
    )
    await client.workflow_service.start_batch_operation(request)
    for method, below, body in CALLS:
        if below not in ("/signal", "/query", "/updates"):  # which the job does not read
            response = await alice.request(method, at(job, below), json=body, headers=OPERATOR)
            assert_problem(response, 404, "workflow_not_found")


# --- signalling and asking ---


async def test_a_closed_workflow_takes_no_signal(alice: httpx.AsyncClient, queue: str) -> None:
    """A signal to a closed run is a 409; told from an unknown one."""
    body = await start(alice, "echo", queue, input_data=1)
    await closed(alice, body["workflow_id"])
    response = await alice.post(at(body["workflow_id"], "/signal"), json={"signal_name": "tell"})
    problem = assert_problem(response, 409, "workflow_completed")

    assert body["workflow_id"] == problem["details"]["workflow_id"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", []),
        (', "query_args": null', ["null"]),
        (', "query_args": {"a": 1.10}', ['{"a": 1.10}']),
        (', "query_args": "x"', ['"x"']),
        (', "query_args": 12345678901234567890.10', ["12345678901234567890.10"]),
        (', "query_args": []', []),
        (', "query_args":\n [1.10, null, [2]]', ["1.10", "null", "[2]"]),
        (', "query_args": [[1, 2]]', ["[1, 2]"]),
    ],
)
async def test_query_arguments(alice: httpx.AsyncClient, queue: str, more: str, expected: list[str]) -> None:
    """An array is the list of arguments, anything else one argument, nothing none; bytes are kept."""
    body = await start(alice, "parrot", queue)
    text = '{"query_name": "anything"' + more + "}"
    response = await alice.post(at(body["workflow_id"], "/query"), content=text, headers=JSON)

    assert (200, {"result": expected}) == (response.status_code, response.json())


@pytest.mark.parametrize(
    ("name", "message"), [("nonsense", "nonsense"), ("broken", "the cupboard is bare"), ("refused", "not today")]
)
async def test_a_query_that_fails(alice: httpx.AsyncClient, queue: str, name: str, message: str) -> None:
    """A query that is unknown or that its handler refuses is a 422 with the reason and no stack trace."""
    body = await start(alice, "listen", queue)
    response = await alice.post(at(body["workflow_id"], "/query"), json={"query_name": name})
    problem = assert_problem(response, 422, "query_failed")

    assert message in problem["message"]
    assert {"source": "workflow", "workflow_id": body["workflow_id"]} == problem["details"]
    assert ".py" not in response.text
    assert "Traceback" not in response.text


async def test_internal_queries_are_for_administrators(alice: httpx.AsyncClient, queue: str) -> None:
    """`__stack_trace` and its like show code: only `workflows:admin` may ask them."""
    path = at((await start(alice, "listen", queue))["workflow_id"], "/query")
    refused = await alice.post(path, json={"query_name": "__stack_trace"})
    admitted = await alice.post(path, json={"query_name": "__stack_trace"}, headers=OPERATOR)

    assert "workflows:admin" in assert_problem(refused, 403, "insufficient_scope")["message"]
    assert 'scope="workflows:admin"' in refused.headers["www-authenticate"]
    assert "Stack for" in admitted.json()["result"]


@pytest.mark.parametrize(
    ("action", "body", "key"),
    [
        ("signal", {}, "signal_name"),
        ("signal", {"signal_name": ""}, "signal_name"),
        ("signal", {"signal_name": "s", "signal_args": 1}, "signal_args"),
        ("signal", {"signal_name": "s", "signal_args": [2], "signal_input": 1}, "signal_args"),
        ("signal", {"signal_name": "s", "input": 1}, "input"),
        ("query", {}, "query_name"),
        ("query", {"query_name": "x" * 1001}, "query_name"),
        ("query", {"query_name": "q", "args": []}, "args"),
    ],
)
async def test_a_wrong_signal_or_query_is_refused(
    alice: httpx.AsyncClient, action: str, body: dict[str, Any], key: str
) -> None:
    """A body that is not one is a 400 that names the field, before Temporal is asked about the id."""
    response = await alice.post(at("nobody", f"/{action}"), json=body)
    problem = assert_problem(response, 400, "validation_error")

    assert [key] == [error["key"] for error in problem["details"]["errors"]]


# --- who may ---


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("workflows:read", {"read", "query"}),
        ("workflows:write", {"start", "signal"}),
        ("workflows:admin", {"read", "query", "start", "signal"}),
        ("orders:read orders:write orders:admin", set()),
    ],
)
async def test_each_call_needs_its_scope(alice: httpx.AsyncClient, queue: str, scope: str, allowed: set[str]) -> None:
    """`workflows:read` reads and asks, `workflows:write` starts and signals, `workflows:admin` does all of it."""
    path = at((await start(alice, "listen", queue))["workflow_id"])
    headers = bearer(scope=scope)
    answers = {
        "start": await alice.post("/api/v1/workflows", json={"workflow_type": "any"}, headers=headers),
        "read": await alice.get(path, headers=headers),
        "query": await alice.post(path + "/query", json={"query_name": "is_told"}, headers=headers),
        "signal": await alice.post(path + "/signal", json={"signal_name": "s"}, headers=headers),
    }

    assert allowed == {name for name, answer in answers.items() if answer.is_success}
    for name in answers.keys() - allowed:
        problem = assert_problem(answers[name], 403, "insufficient_scope")
        assert 'error="insufficient_scope"' in answers[name].headers["www-authenticate"], problem


@pytest.mark.parametrize("scope", [WORKFLOWS, f"{WORKFLOWS} workflows:admin", f"{WORKFLOWS} orders:read orders:write"])
async def test_orders_are_hidden_from_operators(alice: httpx.AsyncClient, queue: str, scope: str) -> None:
    """Ids of orders do not exist for callers without `orders:admin`, not even their own, and cannot be taken."""
    headers = bearer(scope=scope)
    placed = (await alice.post("/api/v1/orders", json=order())).json()["workflow_id"]
    never = f"order-{uuid.uuid4()}"
    told = []
    for workflow_id in (placed, never):
        for response in (
            await alice.get(at(workflow_id), headers=headers),
            await alice.post(at(workflow_id, "/signal"), json={"signal_name": "cancel"}, headers=headers),
            await alice.post(at(workflow_id, "/query"), json={"query_name": "status"}, headers=headers),
        ):
            problem = assert_problem(response, 404, "workflow_not_found")
            told.append((problem["message"].replace(workflow_id, "ID"), problem["details"].keys()))
        body = {"workflow_type": "listen", "task_queue": queue, "workflow_id": workflow_id}
        assert_problem(await alice.post("/api/v1/workflows", json=body, headers=headers), 409, "reserved_id")

    assert [told[0]] * 6 == told


async def test_operators_with_orders_admin_see_orders(alice: httpx.AsyncClient, queue: str) -> None:
    """With `orders:admin` an order is a workflow like any other."""
    placed = (await alice.post("/api/v1/orders", json=order())).json()["workflow_id"]
    taken = f"order-{uuid.uuid4()}"
    body = {"workflow_type": "listen", "task_queue": queue, "workflow_id": taken}
    found = await alice.get(at(placed), headers=OPERATOR)

    assert (200, "order_processing") == (found.status_code, found.json()["workflow_type"])
    assert 201 == (await alice.post("/api/v1/workflows", json=body, headers=OPERATOR)).status_code
    assert_problem(await alice.get(f"/api/v1/orders/{taken.removeprefix('order-')}"), 404, "order_not_found")
