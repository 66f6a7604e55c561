"""Who did it: Temporal's history names the caller of every write, and carries the trace that it is part of."""

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import httpx
import msgspec
import pytest
from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload
from temporalio.api.workflowservice import v1 as api
from temporalio.client import Client
from temporalio.service import RPCError

from api import ORDERS, WORKFLOWS, bearer, order, service
from temporal_api.dev.server import DevServer
from temporal_api.record import Record, begin
from temporal_api.temporal.caller import sign
from till import REASON, worker

pytestmark = pytest.mark.anyio

EVERY = f"{ORDERS} {WORKFLOWS} workflows:admin"
TRACE = {
    "traceparent": f"00-{'4bf92f35' * 4}-00f067aa0ba902b7-01",
    "tracestate": "congo=t61rcWkgMzE",
    "baggage": "tenant=acme;tier=gold",
}
NOTE = {"signal_name": "note", "signal_input": "x"}
NOTHING = {"update_name": "nothing"}
START = {"workflow_type": "till"}

# The operations that Temporal keeps something of: the bodies to send, and whether there is a place for the trace.
WRITES: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "createOrder": ([order()], True),
    "cancelOrder": ([{"reason": "ordered twice"}], True),
    "startWorkflow": ([START, {**START, "signal": NOTE}, {**START, "update": NOTHING}], True),
    "signalWorkflow": ([NOTE], True),
    "updateWorkflow": ([NOTHING], True),
    "cancelWorkflow": ([{}], False),
    "terminateWorkflow": ([REASON], False),
    "pauseWorkflow": ([REASON], False),
    "unpauseWorkflow": ([REASON], False),
    "resetWorkflow": ([{"to": "first_workflow_task", **REASON}], False),
}
# The others, and why.
LEAVE_NOTHING = {
    "queryWorkflow": "it changes nothing",
    "deleteWorkflow": "the history goes with it",
    "encodePayloads": "Temporal is not asked",
    "decodePayloads": "Temporal is not asked",
}


@pytest.fixture(scope="module")
async def foreign(dev_server: DevServer) -> Client:
    """A client with the SDK's own converter: workers are not ours."""
    return await Client.connect(dev_server.address, identity="somebody else")


@pytest.fixture(scope="module")
async def queue(foreign: Client) -> AsyncIterator[str]:
    """A queue with a worker for `till`."""
    name = f"till-{uuid.uuid4()}"
    async with worker(foreign, name):
        yield name


async def prepared(operation: str, http: httpx.AsyncClient, foreign: Client, queue: str) -> dict[str, str]:
    """What somebody else has begun, for the operation's path."""
    if operation == "cancelOrder":
        placed = await http.post("/api/v1/orders", json=order(), headers=bearer("somebody else", EVERY))
        return {"order_id": placed.json()["id"], "workflow_id": placed.json()["workflow_id"]}
    begun = await foreign.start_workflow("till", id=f"till-{uuid.uuid4()}", task_queue=queue)
    await begun.query("seen_so_far")  # its first task is done: it can be reset
    if operation == "unpauseWorkflow":
        pause = api.PauseWorkflowExecutionRequest(namespace="default", workflow_id=begun.id, request_id="r")
        with suppress(RPCError):
            await foreign.workflow_service.pause_workflow_execution(pause)
    return {"workflow_id": begun.id}


def kept(message: Message) -> Iterator[tuple[str, Any]]:
    """Every identity, message of a failure and header in it."""
    for field, value in message.ListFields():
        if field.name in ("identity", "message") and isinstance(value, str):
            yield "who", value
        elif field.name == "header":
            yield "header", value.fields
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for inner in value if field.is_repeated else [value]:
                yield from kept(inner)


async def kept_of(client: Client, workflow_id: str) -> list[tuple[str, Any]]:
    """The same of a history."""
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    return [each for event in history.events for each in kept(event)]


async def test_every_write_tells_who_and_of_which_trace(
    http: httpx.AsyncClient, foreign: Client, contract: dict[str, Any], queue: str
) -> None:
    """A new write belongs into one of the two tables above. What it leaves names the caller, and has the trace."""
    found = {
        operation["operationId"]: (method, path)
        for path, methods in contract["paths"].items()
        for method, operation in methods.items()
        if method not in ("get", "head")
    }
    assert found.keys() == WRITES.keys() | LEAVE_NOTHING.keys()
    # An admin of orders steers everyone's, and is named all the same.
    headers = {**bearer("carol", f"{EVERY} orders:admin"), **TRACE}
    for operation, body, has_trace in ((name, body, has) for name, (bodies, has) in WRITES.items() for body in bodies):
        method, template = found[operation]
        there = await prepared(operation, http, foreign, queue)
        content = {**body, "task_queue": queue} if operation == "startWorkflow" else body

        answer = await http.request(method, template.format(**there), json=content, headers=headers)
        if answer.status_code == 501:
            continue  # a Temporal that cannot pause
        assert answer.is_success, (operation, answer.text)

        told = answer.json() if answer.content else there
        left = await kept_of(foreign, told.get("workflow_id", there["workflow_id"]))
        assert [who for kind, who in left if kind == "who" and "carol" in who], (operation, left)
        traces = [fields["_tracer-data"] for kind, fields in left if kind == "header" and "_tracer-data" in fields]
        assert has_trace == bool(traces), operation
        for payload in traces:
            assert (TRACE, b"json/plain") == (msgspec.json.decode(payload.data), payload.metadata["encoding"])


@pytest.mark.parametrize(
    ("issuer", "sub", "identity"),
    [
        ("https://one.example", "alice", "alice"),
        ("https://two.example", "alice", "https://two.example alice"),
        ("https://one.example", "\U0001f600" * 255, "\U0001f600" * 250),  # 1000 bytes
    ],
)
async def test_whose_name_it_is(dev_server: DevServer, client: Client, issuer: str, sub: str, identity: str) -> None:
    """The token's `sub`; behind its issuer if that is not the first one. It ends after 1000 bytes."""
    issuers = "https://one.example,https://two.example"
    async with service(TEMPORAL_ADDRESS=dev_server.address, JWT_ISSUER=issuers) as http:
        body = {"workflow_type": "till", "task_queue": "nobody"}
        answer = await http.post("/api/v1/workflows", json=body, headers=bearer(sub, iss=issuer))
        again = await http.post(f"{answer.headers['location']}/cancel", headers=bearer(sub, iss=issuer))

    assert (201, 202) == (answer.status_code, again.status_code)
    assert [identity, identity] == [who for _, who in await kept_of(client, answer.json()["workflow_id"])]


def test_every_request_to_temporal_can_be_signed() -> None:
    """Each kind, with the messages in it; what is there already stays; without a caller it is the process."""
    kinds = [kind for name, kind in vars(api).items() if name.endswith("Request")]
    for kind in kinds:
        sign(kind(), "this process")
    operation = api.ExecuteMultiOperationRequest.Operation
    both = api.ExecuteMultiOperationRequest(operations=[operation(), operation()])
    both.operations[0].start_workflow.header.fields["own"].CopyFrom(Payload(data=b"1"))
    both.operations[1].update_workflow.request.meta.identity = "alice (link)"
    both.operations[1].update_workflow.request.input.name = "u"
    terminate = api.TerminateWorkflowExecutionRequest()
    sign(terminate, "this process")

    def ask() -> None:
        begin({}, Record("r", trace=TRACE, user="alice"))
        sign(both, "this process")

    copy_context().run(ask)

    start, update = both.operations[0].start_workflow, both.operations[1].update_workflow.request
    assert ("this process", "alice", "alice (link)") == (terminate.identity, start.identity, update.meta.identity)
    assert {"own", "_tracer-data"} == start.header.fields.keys()
    assert {"_tracer-data"} == update.input.header.fields.keys()
