"""Every way to start a workflow, seen in what Temporal then has."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from temporalio import workflow
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.client import Client
from temporalio.common import Priority, VersioningBehavior, WorkerDeploymentVersion
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker, WorkerDeploymentConfig

from api import SOON, assert_problem, bearer, eventually, service
from temporal_api.controllers.workflows.start import WorkflowExecutionRequest
from temporal_api.dev.server import DevServer
from temporal_api.idempotency import fingerprint
from temporal_api.temporal import updates

pytestmark = pytest.mark.anyio

START = "/api/v1/workflows"


@workflow.defn(name="collect")
class Collect:
    """Ends with what it was sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    @workflow.run
    async def run(self, wanted: int = 0) -> list[Any]:
        """Wait for that many signals."""
        await workflow.wait_condition(lambda: len(self.sent) >= wanted)
        return self.sent

    @workflow.update
    def put(self, value: Any) -> int:
        """Keep it, and tell how many there are."""
        if value is None:
            raise ApplicationError("nothing to put", type="Nothing")
        self.sent.append(value)
        return len(self.sent)

    @workflow.update(unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON)
    async def fill(self) -> int:
        """Tell how many there are once there are ten."""
        await workflow.wait_condition(lambda: len(self.sent) >= 10)
        return len(self.sent)

    @workflow.signal
    def send(self, *values: Any) -> None:
        """Keep it."""
        self.sent.append(list(values))


@pytest.fixture(scope="module")
async def queue(client: Client) -> AsyncIterator[str]:
    """A task queue with a worker for `collect`."""
    name = f"collect-{uuid.uuid4()}"
    async with Worker(client, task_queue=name, workflows=[Collect], workflow_runner=UnsandboxedWorkflowRunner()):
        yield name


async def attributes(client: Client, workflow_id: str) -> WorkflowExecutionStartedEventAttributes:
    """What Temporal was asked for."""
    handle = client.get_workflow_handle(workflow_id)
    async for event in handle.fetch_history_events():
        return event.workflow_execution_started_event_attributes
    raise AssertionError("no history")


async def test_every_option_reaches_temporal(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """Timeouts, retry policy, memo, typed search attributes and start delay are what the caller asked for."""
    body = {
        "workflow_type": "any",
        "task_queue": task_queue,
        "args": [1, {"two": 2}],
        "execution_timeout_seconds": 100,
        "run_timeout_seconds": 50.5,
        "task_timeout_seconds": 7,
        "start_delay_seconds": 3600,
        "retry_policy": {
            "initial_interval_seconds": 2,
            "backoff_coefficient": 1.5,
            "maximum_interval_seconds": 30,
            "maximum_attempts": 4,
            "non_retryable_error_types": ["Fatal"],
        },
        "memo": {"note": {"exact": 1}},
        "search_attributes": {"OrderStatus": {"type": "Keyword", "value": "new"}},
    }
    workflow_id = (await alice.post(START, json=body)).json()["workflow_id"]
    asked = await attributes(client, workflow_id)
    status = (await alice.get(f"{START}/{workflow_id}")).json()

    assert ({"note": {"exact": 1}}, {"OrderStatus": "new"}) == (status["memo"], status["search_attributes"])
    assert (None, []) == (status["parent_workflow_id"], status["pending_activities"])
    assert [b"1", b'{"two":2}'] == [p.data.replace(b" ", b"") for p in asked.input.payloads]
    assert 100 == asked.workflow_execution_timeout.ToTimedelta().total_seconds()
    assert 50.5 == asked.workflow_run_timeout.ToTimedelta().total_seconds()
    assert 7 == asked.workflow_task_timeout.ToTimedelta().total_seconds()
    assert 3600 == asked.first_workflow_task_backoff.ToTimedelta().total_seconds()
    assert (2, 1.5, 30, 4, ["Fatal"]) == (
        asked.retry_policy.initial_interval.seconds,
        asked.retry_policy.backoff_coefficient,
        asked.retry_policy.maximum_interval.seconds,
        asked.retry_policy.maximum_attempts,
        list(asked.retry_policy.non_retryable_error_types),
    )
    assert {"exact": 1} == msgspec.json.decode(asked.memo.fields["note"].data)
    assert b'"new"' == asked.search_attributes.indexed_fields["OrderStatus"].data


FOR_PEOPLE = {"summary": "Invoice 2041", "details": "For *everyone*"}
PRIORITY = {"priority_key": 2, "fairness_key": "tenant-7", "fairness_weight": 2.5}


@pytest.mark.parametrize("message", [{}, {"signal": {"signal_name": "send"}}], ids=["alone", "with a signal"])
async def test_priority_texts_and_headers_reach_temporal(
    alice: httpx.AsyncClient, client: Client, task_queue: str, message: dict[str, Any]
) -> None:
    """Temporal shows the priority, the texts for people and the headers, which are plain JSON, as they were sent."""
    headers = {"tenant": {"id": 7}, "_tracer": "x"}
    body = {"workflow_type": "any", "task_queue": task_queue, "headers": headers, "priority": PRIORITY, **FOR_PEOPLE}
    workflow_id = (await alice.post(START, json={**body, **message})).json()["workflow_id"]
    asked = await attributes(client, workflow_id)
    told = await client.get_workflow_handle(workflow_id).describe()

    assert Priority(**PRIORITY) == Priority(  # type: ignore[arg-type]
        asked.priority.priority_key, asked.priority.fairness_key, asked.priority.fairness_weight
    )
    assert headers == {name: json.loads(payload.data) for name, payload in asked.header.fields.items()}
    assert FOR_PEOPLE == {"summary": await told.static_summary(), "details": await told.static_details()}


async def test_a_worker_version_is_pinned(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """A pinned version's worker runs it; one that is not there is refused, however it is started."""
    version = WorkerDeploymentVersion(f"collectors-{uuid.uuid4()}", "1")
    deployment = WorkerDeploymentConfig(
        version=version, use_worker_versioning=True, default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE
    )
    body = {"workflow_type": "collect", "task_queue": task_queue}
    pinned = {"deployment_name": version.deployment_name, "build_id": "1"}
    runner = UnsandboxedWorkflowRunner()
    async with Worker(
        client, task_queue=task_queue, workflows=[Collect], workflow_runner=runner, deployment_config=deployment
    ):

        async def known() -> httpx.Response | None:
            answer = await alice.post(START, json={**body, "versioning_override": {"pinned": pinned}})
            return answer if answer.is_success else None  # Temporal takes a moment to know a new worker's version

        path = (await eventually(known)).headers["location"]
        ended = await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})
        upgraded = await alice.post(START, json={**body, "versioning_override": {"auto_upgrade": True}})
        for message in ({}, {"signal": {"signal_name": "send"}}, {"update": {"update_name": "put"}}):
            unknown = {"versioning_override": {"pinned": {**pinned, "build_id": "2"}}}
            refused = await alice.post(START, json={**body, **unknown, **message})
            assert_problem(refused, 400, "workflow_start_error")

    assert "COMPLETED" == ended.json()["status"]
    override = (await attributes(client, path.rpartition("/")[2])).versioning_override
    assert ("1", version.deployment_name) == (override.pinned.version.build_id, override.pinned.version.deployment_name)
    assert (await attributes(client, upgraded.json()["workflow_id"])).versioning_override.auto_upgrade


async def test_no_timeout_is_no_timeout(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """`null` lets a workflow run for ever; without a word it has an hour."""
    body = {"workflow_type": "any", "task_queue": task_queue}
    endless = (await alice.post(START, json={**body, "execution_timeout_seconds": None})).json()["workflow_id"]
    usual = (await alice.post(START, json=body)).json()["workflow_id"]

    assert 0 == (await attributes(client, endless)).workflow_execution_timeout.seconds
    assert 3600 == (await attributes(client, usual)).workflow_execution_timeout.seconds


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("execution_timeout_seconds", 0, "execution_timeout_seconds"),
        ("execution_timeout_seconds", -1, "execution_timeout_seconds"),
        ("run_timeout_seconds", "5", "run_timeout_seconds"),
        ("start_delay_seconds", 1e12, "start_delay_seconds"),
        ("retry_policy", {"backoff_coefficient": 0.5}, "retry_policy.backoff_coefficient"),
        ("retry_policy", {"attempts": 3}, "retry_policy.attempts"),
        ("id_reuse_policy", "SOMETIMES", "id_reuse_policy"),
        ("memo", {"temporal_api.order": 1}, "memo"),
        ("memo", {"": 1}, "memo"),
        ("search_attributes", {"A": {"type": "Int", "value": "x"}}, "search_attributes.A.value"),
        (
            "search_attributes",
            {"OrderStatus": {"type": "Datetime", "value": "today"}},
            "search_attributes.OrderStatus.value",
        ),
        ("signal", {"signal_input": 1}, "signal.signal_name"),
        ("workflow_id", "..", "workflow_id"),
        ("priority", {"priority_key": 0}, "priority.priority_key"),
        ("priority", {"fairness_weight": 1001}, "priority.fairness_weight"),
        ("summary", "x" * 401, "summary"),
        ("details", "x" * 20_001, "details"),
        ("headers", {"": 1}, "headers"),
        ("headers", {"_tracer-data": {"traceparent": "00-"}}, "headers"),
        ("headers", {str(n): n for n in range(101)}, "headers"),
        ("versioning_override", {}, "versioning_override.pinned"),
        ("versioning_override", {"pinned": {"deployment_name": "d"}}, "versioning_override.pinned.build_id"),
        (
            "versioning_override",
            {"pinned": {"deployment_name": "d", "build_id": "1"}, "auto_upgrade": True},
            "versioning_override.pinned",
        ),
        ("typo", 1, "typo"),
    ],
)
async def test_what_cannot_be_is_refused(alice: httpx.AsyncClient, field: str, value: Any, key: str) -> None:
    """A wrong option is a 400 with its path, before anything is started."""
    problem = assert_problem(
        await alice.post(START, json={"workflow_type": "any", field: value}), 400, "validation_error"
    )

    assert key == problem["details"]["errors"][0]["key"]


async def test_what_is_expected_is_said_in_json_s_words(alice: httpx.AsyncClient) -> None:
    """Of what may be null too: a number, not a float."""
    for field, expected in (("execution_timeout_seconds", "a number or null"), ("workflow_id", "a string or null")):
        problem = assert_problem(
            await alice.post(START, json={"workflow_type": "t", field: True}), 400, "validation_error"
        )
        assert f"{field}: Expected {expected}, got a boolean" == problem["message"]


async def test_temporal_s_own_refusals_say_why(alice: httpx.AsyncClient) -> None:
    """An unknown search attribute is refused by Temporal, and its reason is passed on."""
    unknown = {"Nobody": {"type": "Keyword", "value": "x"}}
    response = await alice.post(START, json={"workflow_type": "any", "search_attributes": unknown})

    assert "Nobody" in assert_problem(response, 400, "workflow_start_error")["message"]


async def test_attach_by_policy(alice: httpx.AsyncClient, queue: str) -> None:
    """USE_EXISTING: 201 creates, 200 attaches to the run that is there; FAIL: 409."""
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 1, "workflow_id": f"at-{uuid.uuid4()}"}
    use = {**body, "id_conflict_policy": "USE_EXISTING"}
    created, attached = await alice.post(START, json=use), await alice.post(START, json=use)

    assert (201, 200) == (created.status_code, attached.status_code)
    assert created.json()["run_id"] == attached.json()["run_id"]
    assert_problem(await alice.post(START, json=body), 409, "workflow_already_exists")


async def test_terminating_by_policy_needs_admin(alice: httpx.AsyncClient, queue: str) -> None:
    """TERMINATE_EXISTING is a termination: refused without `workflows:admin`, done with it."""
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 1, "workflow_id": f"te-{uuid.uuid4()}"}
    first = (await alice.post(START, json=body)).json()["run_id"]
    replace = {**body, "id_conflict_policy": "TERMINATE_EXISTING"}

    assert_problem(await alice.post(START, json=replace), 403, "not_allowed")
    second = await alice.post(START, json=replace, headers=bearer(scope="workflows:write workflows:admin"))
    assert 201 == second.status_code
    assert first != second.json()["run_id"]


async def test_a_closed_id_may_be_used_again(alice: httpx.AsyncClient, queue: str) -> None:
    """As in Temporal: by default yes, with REJECT_DUPLICATE no."""
    body = {"workflow_type": "collect", "task_queue": queue, "workflow_id": f"re-{uuid.uuid4()}"}
    wait = {"Prefer": "wait=20"}
    first = await alice.post(START, json=body, headers=wait)
    again = await alice.post(START, json=body, headers=wait)
    refused = await alice.post(START, json={**body, "id_reuse_policy": "REJECT_DUPLICATE"})

    assert ("COMPLETED", "COMPLETED") == (first.json()["status"], again.json()["status"])
    assert first.json()["run_id"] != again.json()["run_id"]
    assert_problem(refused, 409, "workflow_already_exists")


async def test_a_start_waits_for_the_result(alice: httpx.AsyncClient, queue: str) -> None:
    """With `Prefer: wait` a 201 carries the result when there is one in time, else where to ask again."""
    body = {"workflow_type": "collect", "task_queue": queue}
    done = await alice.post(START, json=body, headers={"Prefer": "wait=20"})
    slow = await alice.post(START, json={**body, "input_data": 1}, headers={"Prefer": "respond-async, wait=1"})

    assert (201, "COMPLETED", []) == (done.status_code, done.json()["status"], done.json()["result"])
    assert (201, "RUNNING", None) == (slow.status_code, slow.json()["status"], slow.json()["result"])
    assert ("wait=20", "wait=1") == (done.headers["preference-applied"], slow.headers["preference-applied"])
    assert "retry-after" in slow.headers
    assert 200 == (await alice.get(slow.headers["location"])).status_code


async def test_a_start_that_may_not_wait_says_when_to_ask(dev_server: DevServer, queue: str) -> None:
    """With no place to wait left it is started all the same, claims no wait, and says when to ask for the result."""
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 1}
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_OPEN_WAITS="1") as alice:
        path = (await alice.post(START, json=body)).headers["location"]
        async with alice.stream("GET", f"{path}/events") as stream:
            assert 200 == stream.status_code
            answer = await alice.post(START, json=body, headers={"Prefer": "wait=9"})

    assert (201, "2") == (answer.status_code, answer.headers["retry-after"])
    assert "preference-applied" not in answer.headers


async def test_ways_to_prefer_a_wait(dev_server: DevServer, queue: str) -> None:
    """As RFC 7240 writes preferences; more than MAX_WAIT_SECONDS, however much, is that; the first one counts."""
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 1}
    ways = {
        "wait=1": "wait=1",
        "respond-async, wait=99999999999999999999": "wait=2",
        'WAIT = "1"; x=y, wait=9': "wait=1",
        r'x="a\", wait=9", wait=1': "wait=1",
        'x="a; wait=1, b"': None,
    }
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_WAIT_SECONDS="2") as alice:
        answers = await asyncio.gather(*(alice.post(START, json=body, headers={"Prefer": way}) for way in ways))

    assert [201] * len(ways) == [answer.status_code for answer in answers]
    assert list(ways.values()) == [answer.headers.get("preference-applied") for answer in answers]


async def test_signal_with_start(alice: httpx.AsyncClient, queue: str) -> None:
    """One call starts it and signals it; the next one only signals the run that is there."""
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 2, "workflow_id": f"si-{uuid.uuid4()}"}
    first = await alice.post(START, json={**body, "signal": {"signal_name": "send", "signal_args": [1, "a"]}})
    second = await alice.post(
        START, json={**body, "signal": {"signal_name": "send", "signal_input": 2}}, headers={"Prefer": "wait=20"}
    )

    assert (201, 200) == (first.status_code, second.status_code)
    assert first.json()["run_id"] == second.json()["run_id"]
    assert [[1, "a"], [2]] == second.json()["result"]


async def test_update_with_start(alice: httpx.AsyncClient, queue: str) -> None:
    """One call starts it and has its update's result; the next one updates the run that is there."""
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 9, "workflow_id": f"up-{uuid.uuid4()}"}
    first = await alice.post(START, json={**body, "update": {"update_name": "put", "update_input": "a"}})
    second = await alice.post(
        START, json={**body, "update": {"update_name": "put", "update_args": ["b"], "update_id": "second"}}
    )
    found = await alice.get(f"{second.headers['location']}/updates/second")

    assert (201, 200) == (first.status_code, second.status_code), first.text
    assert first.json()["run_id"] == second.json()["run_id"]
    assert (1, 2) == (first.json()["update"]["result"], second.json()["update"]["result"])
    assert {"update_id": "second", "status": "COMPLETED", "result": 2} == second.json()["update"]
    assert 2 == found.json()["result"]


async def test_an_update_with_start_that_was_done_already(alice: httpx.AsyncClient, queue: str) -> None:
    """The same update again gets its outcome, and how the workflow is by now."""
    update = {"update_name": "put", "update_input": "a", "update_id": "only"}
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 1, "workflow_id": f"up-{uuid.uuid4()}"}
    first = await alice.post(START, json={**body, "update": update})
    ended = (await alice.get(f"{first.headers['location']}/result", headers={"Prefer": "wait=20"})).json()
    again = await alice.post(START, json={**body, "update": update})

    assert (200, first.json()["update"]) == (again.status_code, again.json()["update"])
    assert ("COMPLETED", ended["result"]) == (again.json()["status"], again.json()["result"])


async def test_a_slow_update_with_start_is_waited_for_as_preferred(
    alice: httpx.AsyncClient, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wait=0` waits for it to be accepted and no longer, others no longer in all; it says when to ask again."""
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 20, "update": {"update_name": "fill"}}
    answers = [await alice.post(START, json=body, headers={"Prefer": "wait=0"})]
    send = updates.send_with_start

    async def accepted_late(*sent: Any) -> Any:
        await asyncio.sleep(2.5)
        return await send(*sent)

    monkeypatch.setattr(updates, "send_with_start", accepted_late)
    answers += [await alice.post(START, json=body, headers={"Prefer": "wait=3"})]

    assert ["ACCEPTED"] * 2 == [answer.json()["update"]["status"] for answer in answers]
    assert [None, "wait=3"] == [answer.headers.get("preference-applied") for answer in answers]
    assert ["2", "2"] == [answer.headers.get("retry-after") for answer in answers]
    assert max(answer.elapsed for answer in answers) < SOON


async def test_a_refused_update_leaves_the_workflow_started(alice: httpx.AsyncClient, queue: str) -> None:
    """422 says why, and which run is there all the same; with nobody to answer it is a 503 soon."""
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 1, "workflow_id": f"no-{uuid.uuid4()}"}
    refused = await alice.post(START, json={**body, "update": {"update_name": "put", "update_input": None}})
    problem = assert_problem(refused, 422, "update_rejected")
    status = (await alice.get(f"{START}/{body['workflow_id']}")).json()

    assert ("RUNNING", problem["details"]["run_id"]) == (status["status"], status["run_id"])
    nobody = {**body, "task_queue": str(uuid.uuid4()), "workflow_id": f"nobody-{uuid.uuid4()}"}
    update = {"update_name": "put", "update_input": 1}
    unheard = await alice.post(START, json={**nobody, "update": update})
    assert uuid.UUID(assert_problem(unheard, 503, "no_worker")["details"]["update_id"])
    assert unheard.elapsed < SOON
    both = await alice.post(START, json={**body, "update": update, "signal": {"signal_name": "send"}})
    assert_problem(both, 400, "validation_error")
    with_bad = {**body, "update": update, "search_attributes": {"Nobody": {"type": "Keyword", "value": "x"}}}
    with_bad["workflow_id"] = f"bad-{uuid.uuid4()}"
    assert_problem(await alice.post(START, json=with_bad), 400, "workflow_start_error")


async def test_a_key_starts_once(alice: httpx.AsyncClient, queue: str) -> None:
    """Twenty at once with one key: one run and one answer; a replay after the end has the result."""
    body = {"workflow_type": "collect", "task_queue": queue}
    key = {"Idempotency-Key": str(uuid.uuid4())}
    answers = await asyncio.gather(*(alice.post(START, json=body, headers=key) for _ in range(20)))
    ended = await alice.get(f"{answers[0].headers['location']}/result", headers={"Prefer": "wait=20"})
    replay = await alice.post(START, json=body, headers=key)

    assert {201} == {answer.status_code for answer in answers}
    assert 1 == len({answer.json()["run_id"] for answer in answers})
    assert 19 == sum(answer.headers.get("idempotent-replayed") == "true" for answer in answers)
    assert ("COMPLETED", ended.json()["result"]) == (replay.json()["status"], replay.json()["result"])


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b'{"workflow_type":"send"}', "939966fe91c5550c7b13b9d23a83f8e23112c6cb7b8dec6974d2a3f266964a35"),
        (
            b'{"workflow_type":"send","args":[1.50,{"b":1,"a":2}],"memo":{"x":1},"retry_policy":{"maximum_attempts":3},'
            b'"search_attributes":{"A":{"type":"Int","value":3}},"execution_timeout_seconds":60}',
            "390dd0e410067e7396591aca9ec5a1765200680d450ce4dd89fd7697d9a8ba95",
        ),
    ],
)
def test_a_key_is_good_after_an_upgrade(body: bytes, kept: str) -> None:
    """The first release kept these fingerprints: the same key and body is the same start for a later one too."""
    assert kept == fingerprint("k", msgspec.json.decode(body, type=WorkflowExecutionRequest))


async def test_a_replay_of_what_runs_is_answered_as_a_start_is(alice: httpx.AsyncClient, queue: str) -> None:
    """At once with the run that is there; with `Prefer: wait` when it has ended, if that is in time."""
    body = {"workflow_type": "collect", "task_queue": queue, "input_data": 1}
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = await alice.post(START, json=body, headers=key)
    replay = await alice.post(START, json=body, headers=key)
    short = await alice.post(START, json=body, headers={**key, "Prefer": "wait=1"})
    waiting = asyncio.create_task(alice.post(START, json=body, headers={**key, "Prefer": "wait=20"}))
    await alice.post(f"{first.headers['location']}/signal", json={"signal_name": "send", "signal_input": 7})
    waited = await waiting

    assert (201, first.json(), "true") == (replay.status_code, replay.json(), replay.headers["idempotent-replayed"])
    assert replay.elapsed < SOON
    assert (201, "COMPLETED", [[7]]) == (waited.status_code, waited.json()["status"], waited.json()["result"])
    assert ("RUNNING", "wait=1") == (short.json()["status"], short.headers["preference-applied"])
    assert "true" == waited.headers["idempotent-replayed"]


async def test_a_key_signals_once(alice: httpx.AsyncClient, queue: str) -> None:
    """Sent again with one key, a signal reaches the workflow once; another caller's same key is another signal."""
    path = (await alice.post(START, json={"workflow_type": "collect", "task_queue": queue, "input_data": 3})).headers[
        "location"
    ]
    key = {"Idempotency-Key": "k"}
    for value, headers in ((1, key), (1, key), (2, key | bearer("bob")), (2, key | bearer("bob")), (3, {})):
        body = {"signal_name": "send", "signal_input": value}
        assert 202 == (await alice.post(f"{path}/signal", json=body, headers=headers)).status_code
    result = (await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})).json()["result"]

    assert [[1], [2], [3]] == result
    wrong = await alice.post(f"{path}/signal", json={"signal_name": "send"}, headers={"Idempotency-Key": "two words"})
    assert "Idempotency-Key" == assert_problem(wrong, 400, "validation_error")["details"]["errors"][0]["key"]


async def test_a_key_is_bound_to_its_body_and_its_caller(alice: httpx.AsyncClient, queue: str) -> None:
    """Another body is a 422; another caller's same key is another workflow; with an id it is a 400."""
    body = {"workflow_type": "collect", "task_queue": queue}
    key = {"Idempotency-Key": str(uuid.uuid4())}
    mine = await alice.post(START, json=body, headers=key)
    theirs = await alice.post(START, json=body, headers=key | bearer("bob"))

    assert_problem(await alice.post(START, json={**body, "input_data": 0}, headers=key), 422, "idempotency_key_reused")
    assert mine.json()["workflow_id"] != theirs.json()["workflow_id"]
    with_id = await alice.post(START, json={**body, "workflow_id": "x"}, headers=key)
    assert "Idempotency-Key" == assert_problem(with_id, 400, "validation_error")["details"]["errors"][0]["key"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ('{"a":1,"b":[2.50]}', ' {\n"b" : [ 2.50 ],\t"a": 1 }', 201),
        ('"ä"', '"\\u00e4"', 201),
        ("1" + "0" * 5000, "1" + "0" * 5000, 201),
        ("1e400", "1e400", 201),
        ("123456789012345678901234567890", "123456789012345678901234567891", 422),
        ("0.10000000000000000001", "0.10000000000000000002", 422),
        ("[1,2]", "[2,1]", 422),
        ("1", '"1"', 422),
        ("1", "true", 422),
    ],
)
async def test_the_same_body_written_otherwise(
    alice: httpx.AsyncClient, task_queue: str, first: str, second: str, expected: int
) -> None:
    """A replay may be spaced and ordered in another way, as a JSON column of a database gives it back; no more."""
    headers = {"Idempotency-Key": uuid.uuid4().hex, "Content-Type": "application/json"}
    body = '{"workflow_type": "collect", "task_queue": "%s", "memo": {"m": %s}, "input_data": %s}'
    answers = [
        await alice.post(START, content=body % (task_queue, text, text), headers=headers) for text in (first, second)
    ]

    assert [201, expected] == [answer.status_code for answer in answers]


@pytest.mark.parametrize("key", [b"", b"a b", b"x" * 256, "schlüssel".encode()])
async def test_a_key_that_is_none_is_refused(alice: httpx.AsyncClient, queue: str, key: bytes) -> None:
    """1 to 255 visible ASCII characters, or a 400: a key that is ignored would be worse than none."""
    response = await alice.post(
        START,
        json={"workflow_type": "collect", "task_queue": queue},
        headers=[(b"idempotency-key", key)],
    )

    assert_problem(response, 400, "validation_error")
