"""Whose orders are listed, and which."""

import uuid
from collections import Counter
from typing import Any

import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import Worker

from api import assert_problem, bearer, eventually, order, service
from temporal_api.dev.server import DevServer
from temporal_api.temporal.visibility import index_value
from temporal_api.worker import create_worker
from temporal_api.worker.order_processing import OrderProcessing

pytestmark = pytest.mark.anyio

ORDERS = "/api/v1/orders"
ADMIN = bearer("ops", "orders:admin")


async def listed(http: httpx.AsyncClient, headers: dict[str, str], **params: Any) -> list[str]:
    """The ids of every page."""
    found, token = [], ""
    while True:
        response = await http.get(ORDERS, headers=headers, params={**params, "page_token": token})
        assert 200 == response.status_code, response.text
        found += [item["id"] for item in response.json()["items"]]
        token = response.json()["next_page_token"] or ""
        if not token:
            return found


async def placed(http: httpx.AsyncClient, headers: dict[str, str], count: int) -> list[str]:
    """So many new orders, the newest first, once the index knows them."""
    ids = [(await http.post(ORDERS, json=order(), headers=headers)).json()["id"] for _ in range(count)][::-1]

    async def indexed() -> bool:
        return set(ids) <= set(await listed(http, headers))

    await eventually(indexed)
    return ids


async def test_a_caller_lists_their_own_orders_page_by_page(http: httpx.AsyncClient) -> None:
    """Newest first, each once, whatever the page size; another caller's never; `owner` is an operator's."""
    anna, bert = (bearer(f"{name}-{uuid.uuid4()}", "orders:read orders:write") for name in ("anna", "bert"))
    ids = await placed(http, anna, 7)
    theirs = await placed(http, bert, 1)

    assert ids == await listed(http, anna, page_size=3)
    assert theirs == await listed(http, bert)
    assert theirs == await listed(http, bert, owner="anna")


async def test_an_operator_lists_everyone_s(http: httpx.AsyncClient) -> None:
    """`orders:admin` sees all, and with `owner` one caller's; a name is data, whatever it holds."""
    name = f"o'neil-{uuid.uuid4()}"
    ids = await placed(http, bearer(name, "orders:read orders:write"), 2)

    assert ids == await listed(http, ADMIN, owner=name)
    assert set(ids) < set(await listed(http, ADMIN, page_size=1000))
    assert [] == await listed(http, ADMIN, owner="x' OR OrderOwner != '")


@pytest.mark.parametrize("name", ["DOMAIN\\anna", 'a"nna', "'anna'", "'", "änna*%"])
async def test_every_caller_lists_their_orders(http: httpx.AsyncClient, name: str) -> None:
    """Whatever the token's `sub`, such as a Windows account: also one that Temporal's index cannot look for."""
    name = f"{name[:-1]}{uuid.uuid4()}{name[-1]}"
    ids = await placed(http, bearer(name, "orders:read orders:write"), 2)
    namesake = bearer(index_value(name) if index_value(name) != name else f"{name}.", "orders:read")

    assert ids == await listed(http, ADMIN, owner=name)
    assert [] == await listed(http, namesake)


async def test_orders_are_found_by_status(
    http: httpx.AsyncClient, dev_server: DevServer, client: Client, task_queue: str
) -> None:
    """By the status that a read gives, also for a run that was terminated; an unknown status is a 400."""
    carol = bearer(f"carol-{uuid.uuid4()}", "orders:read orders:write")
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as worked,
        create_worker(client, task_queue),
    ):
        (first,) = await placed(worked, carol, 1)

        async def delivered() -> bool:
            return [first] == await listed(http, carol, status="delivered")

        await eventually(delivered)
    pending, terminated = await placed(http, carol, 2)
    await client.get_workflow_handle(f"order-{terminated}").terminate()

    async def cancelled() -> bool:
        return [terminated] == await listed(http, carol, status="cancelled")

    await eventually(cancelled)
    assert [pending] == await listed(http, carol, status="pending")
    assert [first] == await listed(http, carol, status="delivered")
    for unknown in ("lost", "null", "NULL", ""):
        assert_problem(await http.get(ORDERS, headers=carol, params={"status": unknown}), 400, "validation_error")


async def test_an_order_that_was_reset_is_listed_once(dev_server: DevServer, client: Client, task_queue: str) -> None:
    """With the run that goes on; the one that a reset ended, or followed, is no cancelled order."""
    admin = bearer("ops", "orders:admin workflows:admin")
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as http,
        Worker(client, task_queue=task_queue, workflows=[OrderProcessing]),  # which does nothing more for an order
    ):
        dora = bearer(f"dora-{uuid.uuid4()}", "orders:read orders:write")
        ids = {name: f"order-{name}" for name in await placed(http, dora, 3)}
        (revived, reset, ended), body = ids, {"to": "first_workflow_task", "reason": "mended code"}

        async def worked_at() -> bool:
            histories = [await client.get_workflow_handle(each).fetch_history() for each in ids.values()]
            done = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
            return all(done in [event.event_type for event in history.events] for history in histories)

        async def indexed() -> bool:
            query = " OR ".join(f"WorkflowId = '{each}'" for each in ids.values())
            found = Counter([run.status async for run in client.list_workflows(query)])
            return found == {WorkflowExecutionStatus.TERMINATED: 3, WorkflowExecutionStatus.RUNNING: 2}

        await eventually(worked_at)
        for name in (revived, ended):
            await client.get_workflow_handle(ids[name]).terminate()
        for name in (revived, reset):
            answer = await http.post(f"/api/v1/workflows/{ids[name]}/reset", json=body, headers=admin)
            assert 200 == answer.status_code, answer.text
        await eventually(indexed)

        for size in (1, 100):
            found = await listed(http, dora, page_size=size)
            assert ({revived, reset}, [ended]) == (set(found[:2]), found[2:])
            assert [ended] == await listed(http, dora, status="cancelled", page_size=size)


async def test_a_page_token_is_its_caller_s(http: httpx.AsyncClient) -> None:
    """Another caller's token, one of another filter, and a tampered one are refused."""
    anna, bert = (bearer(f"{name}-{uuid.uuid4()}", "orders:read orders:write") for name in ("anna", "bert"))
    await placed(http, anna, 2)
    token = (await http.get(ORDERS, headers=anna, params={"page_size": 1})).json()["next_page_token"]

    for headers, params in ((bert, {}), (anna, {"status": "pending"}), (anna, {"page_token": token[:-4] + "AAAA"})):
        response = await http.get(ORDERS, headers=headers, params={"page_token": token, **params})
        assert_problem(response, 400, "invalid_page_token")


async def test_a_namespace_without_search_attributes_says_so(client: Client, dev_server: DevServer) -> None:
    """Orders still work there, and the list tells which command is missing."""
    namespace = f"bare-{uuid.uuid4()}"
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=namespace, workflow_execution_retention_period=Duration(seconds=86_400))
    )
    async with service(TEMPORAL_ADDRESS=dev_server.address, TEMPORAL_NAMESPACE=namespace) as alice:

        async def placed() -> Any:
            response = await alice.post(ORDERS, json=order())
            return response if response.status_code == 201 else None

        created = await eventually(placed, seconds=30)
        assert 200 == (await alice.get(created.headers["location"])).status_code
        problem = assert_problem(await alice.get(ORDERS), 501, "search_attributes_missing")
        assert "temporal-api setup" in problem["message"]
