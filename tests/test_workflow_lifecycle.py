"""The end of workflows over HTTP: cancel, terminate, reset and delete; who may, and what is refused."""

import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy

from api import WORKFLOWS, assert_problem, bearer, eventually
from temporal_api.dev.server import DevServer
from till import ADMIN, JSON, REASON, close, events, signal, start, update, worker

pytestmark = pytest.mark.anyio

UUID = "00000000-0000-4000-8000-000000000000"


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
    assert_problem(await alice.post(f"{path}/updates", json=new, params=first), 409, "workflow_completed")
    assert runs[1] == (await alice.post(f"{path}/updates", json=new, params=second)).json()["run_id"]
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
        "update": await alice.post(f"{path}/updates", json={"update_name": "nothing"}, headers=headers),
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
        ("cancel", {"reason": 1}, "reason"),
        ("cancel", {"why": "so"}, "why"),
        ("terminate", {}, "reason"),
        ("terminate", {"reason": ""}, "reason"),
        ("pause", {"reason": "é" * 501}, "reason"),
        ("unpause", {"reason": "é" * 501}, "reason"),
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
    for action in ("updates", "cancel", "terminate", "reset"):
        path = f"/api/v1/workflows/nobody/{action}"
        malformed = await alice.post(path, content="{", headers={**ADMIN, **JSON})
        assert_problem(malformed, 400, "malformed_json")
        assert_problem(await alice.get(path, headers=ADMIN), 405, "method_not_allowed")
    for action in ("updates", "terminate", "reset"):
        response = await alice.post(f"/api/v1/workflows/nobody/{action}", headers=ADMIN)
        assert_problem(response, 400, "validation_error")


# --- only as it is known ---

CHANGES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/signal", {"signal_name": "note", "signal_input": "y"}),
    ("POST", "/updates", {"update_name": "echo", "update_input": "y"}),
    *(("POST", f"/{action}", body) for action, body in ACTIONS[1:]),
]
CHANGES.append(("DELETE", "", None))


@pytest.mark.parametrize(("method", "action", "body"), CHANGES)
async def test_a_change_of_another_state_is_refused(
    alice: httpx.AsyncClient, queue: str, method: str, action: str, body: dict[str, Any] | None
) -> None:
    """With `If-Match` of another state it is a 412 and nothing happens; with the present state's ETag it is done."""
    path = await start(alice, queue)
    await update(alice, path, "echo", update_input="x")  # its first workflow task is over: what a reset needs
    before = (await alice.get(path)).headers["etag"]
    await signal(alice, path, "note", "x")

    async def settled() -> bool:
        last = await alice.get(f"{path}/history", params={"order": "reverse", "page_size": 1})
        return bool(last.json()["items"][0]["event_type"] == "WORKFLOW_TASK_COMPLETED")

    await eventually(settled)

    async def change(*tags: str) -> httpx.Response:
        headers = [*ADMIN.items(), *(("If-Match", tag) for tag in tags)]
        return await alice.request(method, f"{path}{action}", json=body, headers=headers)

    now = (await alice.get(path)).headers["etag"]
    for tags in ([before], ['"nope"'], ["nope"], [""], [f'{before}, "nope"'], [before, '"x"'], [now.replace('"', "")]):
        problem = assert_problem(await change(*tags), 412, "precondition_failed")
        assert path.rpartition("/")[2] == problem["details"]["workflow_id"]
    assert now == (await alice.get(path)).headers["etag"]
    assert (await change(f'"nope", {now}')).is_success


@pytest.mark.parametrize("form", ["{}", "W/{}", "*", '"x", {}', "{}-gzip", "{}--gzip", "{};br"])
async def test_a_state_is_known_in_every_form(alice: httpx.AsyncClient, task_queue: str, form: str) -> None:
    """A list, `*`, strong or weak, with what a proxy appends when it compresses: the same state."""
    path = await start(alice, task_queue)
    tag = (await alice.get(path)).headers["etag"].removeprefix("W/").strip('"')
    sent = form.replace("{}", f'"{tag}"') if "}-" not in form and ";" not in form else f'"{form.format(tag)}"'
    read = await alice.get(path, headers={"If-None-Match": sent})
    deleted = await alice.delete(path, headers={**ADMIN, "If-Match": sent})

    assert (304, 204) == (read.status_code, deleted.status_code)


async def test_the_precondition_of_what_is_not_there(alice: httpx.AsyncClient) -> None:
    """A workflow that is not there is a 404, whatever state is expected of it."""
    response = await alice.delete(f"/api/v1/workflows/{uuid.uuid4()}", headers={**ADMIN, "If-Match": "*"})

    assert_problem(response, 404, "workflow_not_found")
