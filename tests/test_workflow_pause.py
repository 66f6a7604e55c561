"""Paused workflows over HTTP, on a Temporal that can pause (1.31); what an older one says, where it cannot."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.query.v1 import QueryRejected
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryResponse,
    PauseWorkflowExecutionRequest,
    QueryWorkflowResponse,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from api import assert_problem, eventually
from scripted import Scripted
from temporal_api.errors import WorkflowPaused
from temporal_api.temporal import endings, feeds, history
from till import ADMIN, REASON, close, events, signal, start, update, worker

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def queue(client: Client) -> AsyncIterator[str]:
    """A queue with a worker for these workflows."""
    name = f"till-{uuid.uuid4()}"
    async with worker(client, name):
        yield name


async def _can_pause(client: Client) -> bool:
    request = PauseWorkflowExecutionRequest(namespace="default", workflow_id="nobody", request_id="r")
    try:
        await client.workflow_service.pause_workflow_execution(request)
    except RPCError as error:
        return error.status is not RPCStatusCode.UNIMPLEMENTED
    return True


@pytest.fixture(scope="module")
async def pausing(client: Client) -> None:
    """A Temporal that can pause workflows."""
    if not await _can_pause(client):
        pytest.skip("this Temporal cannot pause workflows: point TEMPORAL_CLI to one with server 1.31 or newer")


async def pause(alice: httpx.AsyncClient, path: str, how: str = "pause") -> None:
    """Pause the workflow, or unpause it."""
    response = await alice.post(f"{path}/{how}", json=REASON, headers=ADMIN)
    assert 204 == response.status_code, response.text


async def test_paused(pausing: None, alice: httpx.AsyncClient, client: Client, queue: str) -> None:
    """A paused workflow says so everywhere and answers nothing; signals are kept; paused or unpaused twice is once."""
    path = await start(alice, queue)
    assert 200 == (await update(alice, path, "nothing", update_id="before")).status_code
    for _ in range(2):
        await pause(alice, path)
    await signal(alice, path, "note", "kept")
    result = await alice.get(f"{path}/result", headers={"Prefer": "wait=2"})

    status = (await alice.get(path)).json()

    assert ("PAUSED", None) == (status["status"], status["close_time"])
    assert (202, "PAUSED", f"{path}/result") == (
        result.status_code,
        result.json()["status"],
        result.headers["location"],
    )
    assert_problem(await alice.post(f"{path}/query", json={"query_name": "seen_so_far"}), 409, "workflow_paused")
    assert_problem(await alice.get(f"{path}/metadata"), 409, "workflow_paused")
    assert_problem(await update(alice, path, "nothing"), 409, "workflow_paused")
    assert 200 == (await update(alice, path, "nothing", update_id="before")).status_code
    same = {"workflow_type": "till", "task_queue": queue, "workflow_id": path.rpartition("/")[2]}
    with_start = {**same, "update": {"update_name": "nothing"}}
    assert_problem(await alice.post("/api/v1/workflows", json=with_start), 409, "workflow_paused")
    with_signal = {**same, "signal": {"signal_name": "note", "signal_input": "with a start"}}
    for attached in (with_signal, {**same, "id_conflict_policy": "USE_EXISTING"}):
        answer = await alice.post("/api/v1/workflows", json=attached)
        assert (200, "PAUSED") == (answer.status_code, answer.json()["status"])
    for _ in range(2):
        await pause(alice, path, "unpause")
    assert ["kept", "with a start"] == await close(alice, path)
    assert_problem(await alice.post(f"{path}/pause", headers=ADMIN), 409, "workflow_completed")
    for kind in (EventType.EVENT_TYPE_WORKFLOW_EXECUTION_PAUSED, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UNPAUSED):
        assert 1 == len(await events(client, path, kind))


async def test_paused_workflows_are_found(pausing: None, alice: httpx.AsyncClient, task_queue: str) -> None:
    """The list and the count know the status PAUSED."""
    path = await start(alice, task_queue)
    await pause(alice, path)

    async def found() -> Any:
        listed = await alice.get("/api/v1/workflows", params={"status": "PAUSED", "task_queue": task_queue})
        return [item["status"] for item in listed.json()["items"]]

    assert ["PAUSED"] == await eventually(found)
    counted = await alice.get("/api/v1/workflow-count", params={"status": "PAUSED", "task_queue": task_queue})
    assert {"PAUSED": 1} == counted.json()["groups"]


async def test_waits_and_streams_outlast_a_pause(pausing: None, alice: httpx.AsyncClient, queue: str) -> None:
    """Who waits for a workflow or watches it hears of a pause, of what comes in it, and of what comes after it."""
    path = await start(alice, queue)
    waiting = asyncio.create_task(alice.get(f"{path}/result", headers={"Prefer": "wait=45"}))
    told: list[str] = []

    async def watch() -> None:
        async with alice.stream("GET", f"{path}/events") as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    told.append(json.loads(line.removeprefix("data: ")).get("event_type", "done"))

    async def has(event: str) -> bool:
        return f"WORKFLOW_EXECUTION_{event}" in told

    watching = asyncio.create_task(watch())
    await pause(alice, path)
    await eventually(lambda: has("PAUSED"))
    await signal(alice, path, "note", "in the pause")
    await eventually(lambda: has("SIGNALED"))
    assert not waiting.done()
    await pause(alice, path, "unpause")
    await eventually(lambda: has("UNPAUSED"))
    assert ["in the pause"] == await close(alice, path)
    await watching

    assert (200, ["in the pause"]) == ((await waiting).status_code, waiting.result().json()["result"])
    assert "done" == told[-1]
    assert 1 == told.count("WORKFLOW_EXECUTION_PAUSED")


async def test_a_wait_for_a_change_hears_of_a_pause(pausing: None, alice: httpx.AsyncClient, task_queue: str) -> None:
    """A status is waited for in a pause as ever: a pause, and its end, are changes."""
    path = await start(alice, task_queue)
    for how, status in (("pause", "PAUSED"), ("unpause", "RUNNING")):
        tag = (await alice.get(path)).headers["etag"]
        headers = {"If-None-Match": tag, "Prefer": "wait=1"}
        assert 304 == (await alice.get(path, headers=headers)).status_code
        waiting = asyncio.create_task(alice.get(path, headers={**headers, "Prefer": "wait=30"}))
        await asyncio.sleep(0.2)
        await pause(alice, path, how)
        changed = await waiting
        assert (200, status) == (changed.status_code, changed.json()["status"])


async def test_a_temporal_that_cannot_pause(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """It is a 501, and a workflow that is not there is a 404 all the same."""
    if await _can_pause(client):
        pytest.skip("this Temporal can pause workflows")
    path = await start(alice, task_queue)
    for how in ("pause", "unpause"):
        assert_problem(await alice.post(f"{path}/{how}", json=REASON, headers=ADMIN), 501, "not_supported")
        unknown = await alice.post(f"/api/v1/workflows/nobody/{how}", json=REASON, headers=ADMIN)
        assert_problem(unknown, 404, "workflow_not_found")


@pytest.mark.parametrize("how", ["pause", "unpause"])
async def test_who_may_pause(alice: httpx.AsyncClient, how: str) -> None:
    """It takes the admin scope; a body of anything else is refused."""
    path = f"/api/v1/workflows/w/{how}"
    assert_problem(await alice.post(path, json=REASON), 403, "insufficient_scope")
    for body in ({"reason": 1}, {"reason": "x" * 1001}, {"reasons": ""}):
        assert_problem(await alice.post(path, json=body, headers=ADMIN), 400, "validation_error")


# --- what newer servers say ---

RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
PAUSED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED


def run(status: WorkflowExecutionStatus.ValueType, length: int = 1) -> DescribeWorkflowExecutionResponse:
    """A run with that status."""
    info = WorkflowExecutionInfo(status=status, history_length=length)
    return DescribeWorkflowExecutionResponse(workflow_execution_info=info)


def page(*kinds: str) -> GetWorkflowExecutionHistoryResponse:
    """The last page of a history with those events."""
    told = [
        HistoryEvent(event_id=n, event_type=EventType.Value(f"EVENT_TYPE_WORKFLOW_EXECUTION_{kind}"))
        for n, kind in enumerate(kinds, 1)
    ]
    return GetWorkflowExecutionHistoryResponse(history=History(events=told))


async def test_a_query_that_is_rejected() -> None:
    """Temporal rejects the query of a paused workflow without an error."""
    rejected = QueryWorkflowResponse(query_rejected=QueryRejected(status=PAUSED))
    with pytest.raises(WorkflowPaused):
        await Scripted(query_workflow=[rejected]).workflow().query("q", [])


@pytest.mark.parametrize("message", ["workflow is already paused.", "workflow is not paused."])
async def test_paused_or_unpaused_already(message: str) -> None:
    """What is so already is no failure."""
    refusal = RPCError(message, RPCStatusCode.FAILED_PRECONDITION, b"")
    scripted = Scripted(
        describe_workflow_execution=[run(RUNNING)],
        pause_workflow_execution=[refusal],
        unpause_workflow_execution=[refusal],
    )
    await scripted.workflow().pause("")
    await scripted.workflow().unpause("")
    assert {"pause_workflow_execution": 1, "unpause_workflow_execution": 1} == {
        name: count for name, count in scripted.asked.items() if "pause" in name
    }


async def test_a_paused_run_is_not_asked_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long poll that ends at once is not made again until the run is unpaused, which is looked for now and then."""
    monkeypatch.setattr(history, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(history, "PAUSED_SECONDS", 0.2)
    paused, closed = page("STARTED", "PAUSED"), page("STARTED", "PAUSED", "UNPAUSED", "TERMINATED")
    states = [run(PAUSED, 2), run(PAUSED, 2), run(RUNNING, 3)]
    ending = Scripted(wait_for_history=[paused, closed], describe_workflow_execution=list(states))
    told = await endings.wait(ending.workflow(), follow=True)
    feed = Scripted(
        wait_for_history=[paused, closed],
        get_workflow_execution_history=[paused],
        describe_workflow_execution=list(states),
    )
    seen = [event.event_id async for some in feeds.events(feed.workflow(), 0, 2) for event in some]

    assert ("TERMINATED", [1, 2, 3, 4]) == (told.status, seen)
    assert {"wait_for_history": 2, "describe_workflow_execution": 3} == dict(ending.asked)
    assert (2, 3) == (feed.asked["wait_for_history"], feed.asked["describe_workflow_execution"])


async def test_a_feed_that_begins_again_holds_no_memory_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause the long poll begins again: while it waits, nothing is reserved for events that may never come."""
    monkeypatch.setattr(history, "RETRY_SECONDS", 0)
    before, after = page("STARTED", "PAUSED"), page("STARTED", "PAUSED", "UNPAUSED")
    after.history.events[2].workflow_execution_unpaused_event_attributes.reason = "x" * 1_500_000
    after.next_page_token = b"more"
    feed = Scripted(
        wait_for_history=[before, after, asyncio.get_running_loop().create_future()],
        get_workflow_execution_history=[before],
        describe_workflow_execution=[run(RUNNING, 3)],
    )
    workflow, told = feed.workflow(), []

    async def watch() -> None:
        async for some in feeds.events(workflow, 0, 2, history_bytes=1000):
            told.extend(event.event_id for event in some)

    watching = asyncio.create_task(watch())
    await eventually(lambda: feed.asked["wait_for_history"] == 3 and told == [1, 2, 3])
    assert 0 == workflow.temporal.memory.held
    watching.cancel()
    await asyncio.wait({watching})
