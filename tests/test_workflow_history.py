"""Results, histories and live events, against a real server with a real worker."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHistory
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, Worker

from api import assert_problem, bearer, eventually, order, service
from temporal_api.dev.server import DevServer
from temporal_api.temporal.payloads import DATA_CONVERTER
from temporal_api.worker import create_worker
from temporal_api.worker.order_processing import OrderProcessing

pytestmark = pytest.mark.anyio


@activity.defn
async def fail(times: int) -> None:
    """Fail that often."""
    if activity.info().attempt <= times:
        raise ApplicationError("not yet", category=ApplicationErrorCategory.BENIGN)


@workflow.defn(name="steps")
class Steps:
    """Counts signals up to a number, then ends as it is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @workflow.run
    async def run(self, plan: dict[str, Any]) -> Any:
        """Go by the plan."""
        if "fails" in plan:
            often = RetryPolicy(initial_interval=timedelta(seconds=0.2), backoff_coefficient=1)
            await workflow.execute_activity(
                fail, plan["fails"], start_to_close_timeout=timedelta(seconds=9), retry_policy=often
            )
        await workflow.wait_condition(lambda: len(self.seen) >= plan["signals"])
        if plan.get("again"):
            workflow.continue_as_new({**plan, "again": plan["again"] - 1})
        if plan.get("fail"):
            raise ApplicationError("it broke", {"at": 1.10}, type="Broken")
        return {"seen": self.seen}

    @workflow.signal
    def step(self, value: Any = None) -> None:
        """One more."""
        self.seen.append(value)


@pytest.fixture(scope="module")
async def queue(client: Client) -> AsyncIterator[str]:
    """A task queue with a worker for `steps`."""
    name = f"steps-{uuid.uuid4()}"
    runner = UnsandboxedWorkflowRunner()
    async with Worker(client, task_queue=name, workflows=[Steps], activities=[fail], workflow_runner=runner):
        yield name


async def started(alice: httpx.AsyncClient, queue: str, **plan: Any) -> str:
    """The path of a new run of `steps`."""
    body = {"workflow_type": "steps", "task_queue": queue, "input_data": {"signals": 1, **plan}}
    response = await alice.post("/api/v1/workflows", json=body)
    assert 201 == response.status_code, response.text
    return str(response.headers["location"])


async def step(alice: httpx.AsyncClient, path: str) -> None:
    """One signal to it."""
    response = await alice.post(f"{path}/signal", json={"signal_name": "step", "signal_input": 1})
    assert 202 == response.status_code, response.text


class Stream:
    """Server-sent events as they arrive."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.ids: list[str] = []

    async def next(self) -> tuple[str, Any]:
        """The next event and its data."""
        event = data = None
        async with asyncio.timeout(60):
            async for line in self._lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    event = value
                elif field == "id":
                    self.ids.append(value)
                elif field == "data":
                    data = json.loads(value)
                elif not line and event:
                    return event, data
        raise AssertionError("the stream ended")

    async def until(self, wanted: str) -> list[tuple[str, Any]]:
        """All events up to the first of that name, or with that event type."""
        events = []
        while True:
            events.append(await self.next())
            if events[-1][0] == wanted or events[-1][1].get("event_type") == wanted:
                return events


async def test_a_result_is_waited_for(alice: httpx.AsyncClient, queue: str) -> None:
    """Not yet is a 202 that says when to ask again; with `Prefer: wait` the answer comes with the end."""
    path = await started(alice, queue)

    early = await alice.get(f"{path}/result")
    waiting = asyncio.create_task(alice.get(f"{path}/result", headers={"Prefer": "wait=20"}))
    short = await alice.get(f"{path}/result", headers={"Prefer": "wait=1"})
    await step(alice, path)
    done = await waiting

    assert [202, 202, 200] == [early.status_code, short.status_code, done.status_code]
    assert "wait=1" == short.headers["preference-applied"]
    assert early.headers["retry-after"]
    assert ("COMPLETED", {"seen": [1]}) == (done.json()["status"], done.json()["result"])


async def test_a_failed_run_is_a_200_that_says_so(alice: httpx.AsyncClient, queue: str) -> None:
    """Type, message and details of the failure, exact, with no stack trace."""
    path = await started(alice, queue, signals=0, fail=True)

    response = await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})

    assert 200 == response.status_code
    assert "FAILED" == response.json()["status"]
    assert "Traceback" not in response.text


async def test_a_result_follows_continue_as_new_unless_pinned(alice: httpx.AsyncClient, queue: str) -> None:
    """Without `run_id` the chain's end counts; a pinned run says what it went on as."""
    body = {"workflow_type": "steps", "task_queue": queue, "input_data": {"signals": 0, "again": 1}}
    first = (await alice.post("/api/v1/workflows", json=body)).json()
    path = f"/api/v1/workflows/{first['workflow_id']}"
    end = (await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})).json()
    page = (await alice.get(f"{path}/history", params={"run_id": first["run_id"]})).json()
    pinned = (await alice.get(f"{path}/result", params={"run_id": first["run_id"]})).json()

    assert "COMPLETED" == end["status"]
    assert "WORKFLOW_EXECUTION_STARTED" == page["items"][0]["event_type"]
    assert "WORKFLOW_EXECUTION_CONTINUED_AS_NEW" == page["items"][-1]["event_type"]
    assert ("CONTINUED_AS_NEW", end["run_id"]) == (pinned["status"], pinned["new_run_id"])


async def test_the_history_is_paged_by_our_own_tokens(alice: httpx.AsyncClient, queue: str) -> None:
    """Each event once, in order, both ways, in full pages; a token opens only the listing that it was given for."""
    path = await started(alice, queue, signals=3)
    other = await started(alice, queue, signals=3)
    for _ in range(3):
        await step(alice, path)
    await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})

    async def ids(order: str) -> list[int]:
        found, token = [], ""
        while True:
            page = (
                await alice.get(f"{path}/history", params={"order": order, "page_size": 4, "page_token": token})
            ).json()
            found += [event["event_id"] for event in page["items"]]
            token = page["next_page_token"] or ""
            if not token:
                return found
            assert 4 == len(page["items"])  # Temporal's own hold whole batches: more than were asked for

    forward, backward = await ids("forward"), await ids("reverse")
    token = (await alice.get(f"{path}/history", params={"page_size": 1})).json()["next_page_token"]

    assert list(range(1, len(forward) + 1)) == forward
    assert forward[::-1] == backward
    for params in ({"page_token": token[:-2] + "AA"}, {"page_token": token, "order": "reverse"}, {"page_token": "x"}):
        assert_problem(await alice.get(f"{path}/history", params=params), 400, "invalid_page_token")
    assert_problem(await alice.get(f"{other}/history", params={"page_token": token}), 400, "invalid_page_token")


async def test_the_history_in_temporal_s_own_json(dev_server: DevServer, client: Client) -> None:
    """All of it at once, unchanged, for administrators: the sample worker's code replays it."""
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=(queue := f"orders-{uuid.uuid4()}")) as alice,
        create_worker(client, queue),
    ):
        placed = await alice.post("/api/v1/orders", json=order(), headers={"Idempotency-Key": queue})
        path = f"/api/v1/workflows/order-{placed.json()['id']}"
        admin = bearer(scope="workflows:admin orders:admin")
        await alice.get(f"{path}/result", headers={**admin, "Prefer": "wait=60"})
        defaults = {"order": "forward", "page_size": 100}  # as some generated clients send them
        whole = await alice.get(f"{path}/history", params={"format": "temporal", **defaults}, headers=admin)
        paged = await alice.get(f"{path}/history", headers=admin)
        kept = WorkflowHistory.from_json(path, whole.text)
        await Replayer(workflows=[OrderProcessing], data_converter=DATA_CONVERTER).replay_workflow(kept)

        assert len(paged.json()["items"]) == len(kept.events)
        assert kept.events == (await client.get_workflow_handle(path.rpartition("/")[2]).fetch_history()).events
        for more in ("order=reverse", "page_size=9", "page_token=x"):
            refused = await alice.get(f"{path}/history?format=temporal&{more}", headers=admin)
            key = more.partition("=")[0]
            assert key == assert_problem(refused, 400, "validation_error")["details"]["errors"][0]["key"]
        for scope, status, code in (
            ("workflows:read orders:admin", 403, "insufficient_scope"),
            ("workflows:admin", 404, "workflow_not_found"),
        ):
            refused = await alice.get(f"{path}/history?format=temporal", headers=bearer(scope=scope))
            assert_problem(refused, status, code)


async def test_events_arrive_live_and_resume_with_no_loss_and_no_repeat(
    alice: httpx.AsyncClient, dev_server: DevServer, queue: str
) -> None:
    """Cut anywhere, a stream goes on after its last id at another replica, over continue-as-new, up to `done`."""
    path = await started(alice, queue, signals=2, again=1)
    seen: list[str] = []
    last: dict[str, str] = {}
    done = None

    async with service(TEMPORAL_ADDRESS=dev_server.address) as other:
        for replica, cut in ((alice, 1), (other, 3), (alice, 2), (other, 100)):
            async with replica.stream("GET", f"{path}/events", headers=last) as response:
                assert "text/event-stream" == response.headers["content-type"]
                stream = Stream(response)
                for _ in range(cut):
                    if len(seen) + len(stream.ids) in (3, 6, 12, 15):
                        await step(alice, path)
                    event, done = await stream.next()
                    if event == "done":
                        assert 204 == (await ended(other, path, stream.ids.pop())).status_code
                        break
                seen += stream.ids
                last = {"Last-Event-ID": seen[-1]}
    runs = list(dict.fromkeys(event_id.partition(":")[0] for event_id in seen))
    expected = []
    for run in runs:
        events = (await alice.get(f"{path}/history", params={"run_id": run})).json()["items"]
        expected += [f"{run}:{event['event_id']}" for event in events]

    assert expected == seen
    assert 2 == len(runs)
    assert {"run_id": runs[-1], "status": "COMPLETED"} == done


async def test_a_stream_of_a_closed_run_ends_at_once(alice: httpx.AsyncClient, queue: str) -> None:
    """All events, then `done`; resumed at the last one, `done` alone; resumed at that, nothing: 204."""
    path = await started(alice, queue, signals=0)
    await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})

    async with alice.stream("GET", f"{path}/events") as response:
        stream = Stream(response)
        events = await stream.until("done")
    (*_, last, end) = stream.ids
    async with alice.stream("GET", f"{path}/events", headers={"Last-Event-ID": last}) as response:
        again = await Stream(response).until("done")

    assert "WORKFLOW_EXECUTION_COMPLETED" == events[-2][1]["event_type"]
    assert [events[-1]] == again
    run_id, _, number = last.partition(":")
    assert f"{run_id}:{int(number) + 1}" == end
    answer = await ended(alice, path, end)
    assert (204, b"") == (answer.status_code, answer.content)
    assert_problem(await ended(alice, path, f"{run_id}:{int(number) + 2}"), 400, "validation_error")


async def ended(replica: httpx.AsyncClient, path: str, last: str) -> httpx.Response:
    """What somebody hears who comes back with the id of the stream's end, or what they take for it."""
    return await replica.get(f"{path}/events", headers={"Last-Event-ID": last})


async def test_an_event_is_one_line_however_its_payload_was_sent(alice: httpx.AsyncClient, queue: str) -> None:
    """JSON sent on several lines, empty ones among them, neither cuts an event short nor begins another."""
    plan = {"signals": 0, "note": "a\nb\r"}
    body = json.dumps({"workflow_type": "steps", "task_queue": queue, "input_data": plan}, indent=1)
    body = body.replace("\n", "\n\r\n\r")
    started = await alice.post("/api/v1/workflows", content=body, headers={"Content-Type": "application/json"})

    text = (await alice.get(f"{started.headers['location']}/events")).text
    events = (await alice.get(f"{started.headers['location']}/history")).json()["items"]

    assert "\r" not in text
    assert [plan] == events[0]["attributes"]["input"]
    assert events == [json.loads(event) for event in re.findall(r"^event: history\ndata: (.*)\n\n", text, re.MULTILINE)]


@pytest.mark.parametrize("last", ["x", ":", "1", "run:x", f"{uuid.UUID(int=1)}:-1", f"{uuid.UUID(int=1)}:٣"])
async def test_a_forged_last_event_id_is_refused(alice: httpx.AsyncClient, queue: str, last: str) -> None:
    """What is not an id of a stream is a 400 that names the header."""
    path = await started(alice, queue)

    problem = assert_problem(
        await alice.get(f"{path}/events", headers=[(b"last-event-id", last.encode())]), 400, "validation_error"
    )

    assert "Last-Event-ID" == problem["details"]["errors"][0]["key"]


async def test_streams_of_what_is_not_there_are_plain_404s(alice: httpx.AsyncClient, queue: str) -> None:
    """An unknown workflow and a run that is gone are answered before any stream begins."""
    path = await started(alice, queue)
    gone = {"Last-Event-ID": f"{uuid.uuid4()}:1"}

    assert_problem(await alice.get("/api/v1/workflows/nope/events"), 404, "workflow_not_found")
    assert_problem(await alice.get(f"{path}/events", headers=gone), 404, "workflow_not_found")


async def test_a_status_is_answered_when_it_changes(alice: httpx.AsyncClient, queue: str) -> None:
    """304 while nothing changes, at the end of the wait; a change is answered as soon as it happens."""
    path = await started(alice, queue)

    async def settled() -> str:
        first, second = await alice.get(path), await alice.get(path)
        same = first.headers["etag"] == second.headers["etag"]
        return second.headers["etag"] if same and first.json()["history_length"] >= 4 else ""

    etag = await eventually(settled)
    same = await alice.get(path, headers={"If-None-Match": etag})
    waited = await alice.get(path, headers={"If-None-Match": etag, "Prefer": "wait=1"})
    waiting = asyncio.create_task(alice.get(path, headers={"If-None-Match": etag, "Prefer": "wait=20"}))
    await step(alice, path)
    changed = await waiting

    assert [304, 304, 200] == [same.status_code, waited.status_code, changed.status_code]
    assert etag == same.headers["etag"]
    assert b"" == same.content
    assert etag != changed.headers["etag"]


async def test_every_way_to_name_an_etag(alice: httpx.AsyncClient, queue: str) -> None:
    """If-None-Match is a list, on one line or more, or `*`; strong or weak, it is the same tag (RFC 9110 13.1.2)."""
    path = await started(alice, queue, signals=0)
    await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})
    tag = (await alice.get(path)).headers["etag"]
    strong = tag.removeprefix("W/")

    async def status(*values: str) -> int:
        return (await alice.get(path, headers=[("If-None-Match", value) for value in values])).status_code

    known = [await status(value) for value in (tag, strong, "*", f'"x", {tag}', f'W/"a,b",{strong} , "y"')]
    assert [304] * 5 == known
    assert 304 == await status('"x"', tag)
    assert [200] * 4 == [await status(value) for value in ('"x"', strong.strip('"'), '"*"', "")]


async def test_the_end_of_a_wait_is_never_stale(alice: httpx.AsyncClient, queue: str) -> None:
    """What changed without an event, such as an activity's attempts, is answered at the end of the wait: no 304."""
    path = await started(alice, queue, fails=1000)

    async def tried() -> str:
        status = await alice.get(path)
        activities = status.json()["pending_activities"]
        return status.headers["etag"] if activities and activities[0]["attempt"] > 1 else ""

    etag = await eventually(tried)
    waited = await alice.get(path, headers={"If-None-Match": etag, "Prefer": "wait=2"})

    assert 200 == waited.status_code
    assert etag != waited.headers["etag"]


async def test_watchers_share_one_poll_and_free_it_when_they_go(dev_server: DevServer, queue: str) -> None:
    """Twenty streams of one run are one long poll; over MAX_OPEN_WAITS is a 503; all gone, all is free."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, MAX_OPEN_WAITS="20") as alice:
        path = await started(alice, queue)

        started_watching = []

        async def watch() -> None:
            async with alice.stream("GET", f"{path}/events") as response:
                stream = Stream(response)
                started_watching.append(await stream.next())
                await stream.until("done")

        async def polls() -> float:
            text = (await alice.get("/metrics")).text
            lines = [line for line in text.splitlines() if line.startswith("temporal_long_request{")]
            return sum(float(line.split()[-1]) for line in lines if '"GetWorkflowExecutionHistory"' in line)

        async def in_progress() -> float:
            text = (await alice.get("/metrics")).text
            return next(float(li.split()[-1]) for li in text.splitlines() if li.startswith("http_requests_in_progress"))

        watchers = [asyncio.create_task(watch()) for _ in range(20)]

        async def all_open() -> bool:
            return len(started_watching) == 20

        await eventually(all_open)
        assert 1 <= await polls() < 20  # one after the other, each until something happened
        assert_problem(await alice.get(f"{path}/events"), 503, "too_many_waits")
        for watcher in watchers[1:]:
            watcher.cancel()
        await asyncio.gather(*watchers[1:], return_exceptions=True)

        async def one_open() -> bool:
            return await in_progress() == 2

        await eventually(one_open)
        await step(alice, path)
        await watchers[0]
        assert 200 == (await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})).status_code


async def test_a_stream_ends_with_its_token(alice: httpx.AsyncClient, queue: str) -> None:
    """When the token that opened it expires, the stream ends and tells the client to come back."""
    path = await started(alice, queue)
    async with alice.stream("GET", f"{path}/events", headers=bearer(exp=int(time.time()) + 2)) as response:
        async with asyncio.timeout(60):
            text = (await response.aread()).decode()

    assert text.endswith("retry: 1000\n")
    assert "event: done" not in text


async def test_any_id_is_streamed(alice: httpx.AsyncClient, queue: str) -> None:
    """Ids with slashes and spaces have results, histories and streams too."""
    workflow_id = f"a/b c%2F{uuid.uuid4()}"
    body = {"workflow_type": "steps", "task_queue": queue, "workflow_id": workflow_id, "input_data": {"signals": 0}}
    await alice.post("/api/v1/workflows", json=body)
    path = f"/api/v1/workflows/{quote(workflow_id, safe='')}"

    assert 200 == (await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})).status_code
    assert 200 == (await alice.get(f"{path}/history")).status_code
