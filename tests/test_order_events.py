"""Orders live and exactly once."""

import asyncio
import json
import statistics
import time
import uuid
from typing import Any

import httpx
import pytest
from temporalio.client import Client

from api import SECRET, assert_problem, bearer, order, service
from temporal_api.dev.server import DevServer
from temporal_api.worker import StandIns, create_worker
from temporal_api.worker.order_processing import Order

pytestmark = pytest.mark.anyio

ORDERS = "/api/v1/orders"
STATUSES = ["pending", "confirmed", "processing", "shipped", "delivered"]


class Gated(StandIns):
    """Waits before every step until it is let through; counts charges."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.gate = asyncio.Semaphore(0)
        self.charged: list[str] = []

    async def pretend(self, step: str, order: Order) -> None:
        """One step through the gate."""
        self.reached.set()
        await self.gate.acquire()
        if step == "charge_payment":
            self.charged.append(order.id)


async def statuses(alice: httpx.AsyncClient, order_id: str, last: str | None = None) -> list[tuple[str, str, float]]:
    """Id, status and time of arrival of every status event, up to `done`."""
    seen, event_id, event = [], "", ""
    headers = {"Last-Event-ID": last} if last else {}
    async with asyncio.timeout(60), alice.stream("GET", f"{ORDERS}/{order_id}/events", headers=headers) as response:
        assert 200 == response.status_code
        async for line in response.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "id":
                event_id = value
            elif field == "event":
                event = value
            elif field == "data" and event == "status":
                seen.append((event_id, json.loads(value)["status"], time.monotonic()))
            elif field == "data":
                assert "done" == event
                end = await alice.get(f"{ORDERS}/{order_id}/events", headers={"Last-Event-ID": event_id})
                assert 204 == end.status_code
                return seen
    raise AssertionError("no done")


async def test_statuses_appear_once_in_order(dev_server: DevServer, client: Client, task_queue: str) -> None:
    """Each status is told once, in order; resumed after any of them, what follows comes and nothing twice."""
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as alice,
        create_worker(client, task_queue),
    ):
        order_id = (await alice.post(ORDERS, json=order())).json()["id"]
        seen = await statuses(alice, order_id)

        assert STATUSES == [status for _, status, _ in seen]
        for position, (event_id, _, _) in enumerate(seen):
            rest = await statuses(alice, order_id, event_id)
            assert STATUSES[position + 1 :] == [status for _, status, _ in rest]


async def test_a_status_appears_within_200_ms(dev_server: DevServer, client: Client, task_queue: str) -> None:
    """As a rule, a watcher learns of a change within 200 ms after one who watches Temporal itself."""
    happened: dict[int, float] = {}

    async def watch(workflow_id: str) -> None:
        async for event in client.get_workflow_handle(workflow_id).fetch_history_events(wait_new_event=True):
            happened[event.event_id] = time.monotonic()

    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as alice,
        create_worker(client, task_queue, StandIns(pace_seconds=0.3)),
    ):
        placed = (await alice.post(ORDERS, json=order())).json()
        seen, _ = await asyncio.gather(statuses(alice, placed["id"]), watch(placed["workflow_id"]))
    late = [told_at - happened[int(event_id.rpartition(":")[2])] for event_id, _, told_at in seen]

    assert STATUSES == [status for _, status, _ in seen]
    assert statistics.median(late[1:]) < 0.2, late


async def test_a_change_is_told_as_it_happens(dev_server: DevServer, client: Client, task_queue: str) -> None:
    """A watcher and a conditional read learn of a change when it happens, not when they ask next."""
    gated = Gated()
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as alice,
        create_worker(client, task_queue, gated),
    ):
        order_id = (await alice.post(ORDERS, json=order())).json()["id"]
        path = f"{ORDERS}/{order_id}"
        watching = asyncio.create_task(statuses(alice, order_id))

        await gated.reached.wait()
        etag = (await alice.get(path)).headers["etag"]
        assert 304 == (await alice.get(path, headers={"If-None-Match": etag})).status_code
        admin = bearer("ops", "orders:admin workflows:read")
        (activity,) = (await alice.get(f"/api/v1/workflows/order-{order_id}", headers=admin)).json()[
            "pending_activities"
        ]
        assert ("reserve_inventory", "STARTED", 1) == tuple(activity[k] for k in ("activity_type", "state", "attempt"))
        waiting = asyncio.create_task(alice.get(path, headers={"If-None-Match": etag, "Prefer": "wait=20"}))
        gated.gate.release()
        changed = await waiting
        assert 200 == changed.status_code
        for _ in range(3):
            gated.gate.release()
        assert STATUSES == [status for _, status, _ in await watching]


async def test_a_run_that_ends_without_a_word_is_told_too(alice: httpx.AsyncClient, client: Client) -> None:
    """A terminated order is `cancelled` for its watchers, once, with Temporal's word as the reason."""
    order_id = (await alice.post(ORDERS, json=order())).json()["id"]
    watching = asyncio.create_task(statuses(alice, order_id))
    await client.get_workflow_handle(f"order-{order_id}").terminate()
    seen = await watching

    assert ["pending", "cancelled"] == [status for _, status, _ in seen]
    assert [] == await statuses(alice, order_id, seen[-1][0])


async def test_another_caller_s_order_has_no_events(alice: httpx.AsyncClient) -> None:
    """A stream of an order that is not one's own is a plain 404; an operator sees it."""
    order_id = (await alice.post(ORDERS, json=order())).json()["id"]
    path = f"{ORDERS}/{order_id}/events"

    assert_problem(await alice.get(path, headers=bearer("bob")), 404, "order_not_found")
    for forged in ("x", f"{uuid.uuid4()}:1", f"{uuid.uuid4()}:999"):
        assert_problem(await alice.get(path, headers={"Last-Event-ID": forged}), 400, "validation_error")
    async with alice.stream("GET", path, headers=bearer("ops", "orders:admin")) as response:
        assert 200 == response.status_code


async def test_an_order_that_was_reset_is_watched_to_its_end(
    dev_server: DevServer, client: Client, task_queue: str
) -> None:
    """An operator's reset is no cancellation: the stream goes on with the new run, resumed in the old one too."""
    gated = Gated()
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as alice,
        create_worker(client, task_queue, gated),
    ):
        order_id = (await alice.post(ORDERS, json=order())).json()["id"]
        watching = asyncio.create_task(statuses(alice, order_id))
        await gated.reached.wait()
        gated.gate.release()
        known = (await alice.get(f"{ORDERS}/{order_id}")).headers["etag"]
        await alice.get(f"{ORDERS}/{order_id}", headers={"If-None-Match": known, "Prefer": "wait=20"})
        response = await alice.post(
            f"/api/v1/workflows/order-{order_id}/reset",
            json={"to": "first_workflow_task", "reason": "a mended step"},
            headers=bearer("ops", "workflows:admin orders:admin"),
        )
        assert 200 == response.status_code
        for _ in range(20):
            gated.gate.release()
        seen = await watching
        again = await statuses(alice, order_id, seen[0][0])

    told = [status for _, status, _ in seen]
    assert STATUSES == told[-5:]
    assert "cancelled" not in told
    assert seen[0][0][:36] != seen[-1][0][:36]
    assert [event_id for event_id, _, _ in seen[1:]] == [event_id for event_id, _, _ in again]


async def test_a_key_places_one_order_across_replicas(dev_server: DevServer, client: Client, task_queue: str) -> None:
    """Fifty at once with one key at two services: one workflow, one charge, one answer."""
    gated = Gated()
    for _ in range(10):
        gated.gate.release()
    body, key = order(), {"Idempotency-Key": str(uuid.uuid4())}
    environ: dict[str, Any] = {"TEMPORAL_ADDRESS": dev_server.address, "ORDERS_TASK_QUEUE": task_queue}
    async with (
        service(**environ) as one,
        service(**environ, JWT_SECRET=SECRET) as two,
        create_worker(client, task_queue, gated),
    ):
        answers = await asyncio.gather(
            *(replica.post(ORDERS, json=body, headers=key) for _ in range(25) for replica in (one, two))
        )
        placed = answers[0].json()
        await statuses(one, placed["id"])
        late = await two.post(ORDERS, json=body, headers=key)
        reordered = json.dumps(body, sort_keys=True, indent=3)
        same = await two.post(ORDERS, content=reordered, headers=key | {"Content-Type": "application/json"})

    assert {201} == {answer.status_code for answer in answers}
    assert 1 == len({(answer.json()["id"], answer.json()["total_amount"]) for answer in answers})
    assert 49 == sum(answer.headers.get("idempotent-replayed") == "true" for answer in answers)
    assert [placed["id"]] == gated.charged
    assert ("delivered", "delivered") == (late.json()["status"], same.json()["status"])


async def test_a_key_is_its_caller_s_and_its_body_s(alice: httpx.AsyncClient, client: Client) -> None:
    """Another body is refused, another caller's same key is another order; replayed after a cancel and a terminate."""
    body, key = order(), {"Idempotency-Key": f"k-{uuid.uuid4()}"}
    placed = (await alice.post(ORDERS, json=body, headers=key)).json()
    theirs = await alice.post(ORDERS, json=body, headers=key | bearer("bob"))
    changed = await alice.post(ORDERS, json={**body, "customer_id": "another"}, headers=key)
    await alice.post(f"{ORDERS}/{placed['id']}/cancel")
    after_cancel = await alice.post(ORDERS, json=body, headers=key)
    await client.get_workflow_handle(placed["workflow_id"]).terminate()
    after_end = await alice.post(ORDERS, json=body, headers=key)

    assert placed["id"] != theirs.json()["id"]
    assert_problem(changed, 422, "idempotency_key_reused")
    assert {placed["id"]} == {after_cancel.json()["id"], after_end.json()["id"]}
    assert ("true", "cancelled") == (after_end.headers["idempotent-replayed"], after_end.json()["status"])


async def test_a_new_order_with_a_key_costs_one_call(dev_server: DevServer) -> None:
    """The key adds no call to Temporal when the order is new."""
    async with service(TEMPORAL_ADDRESS=dev_server.address) as alice:
        for _ in range(5):
            key = {"Idempotency-Key": str(uuid.uuid4())}
            assert 201 == (await alice.post(ORDERS, json=order(), headers=key)).status_code
        lines = (await alice.get("/metrics")).text.splitlines()
        calls = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}

    asked = {name: n for name, n in calls.items() if name.startswith("temporal_request{")}
    assert [5] == [n for name, n in asked.items() if '"StartWorkflowExecution"' in name]
    assert not any("DescribeWorkflow" in name for name in asked)
