"""What lies between HTTP and Temporal: payloads, failures, what its errors mean, and ways to connect."""

import asyncio
import json
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from temporalio.api.common.v1 import GrpcStatus, Payload, Payloads, WorkflowType
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.failure.v1 import (
    ActivityFailureInfo,
    ApplicationFailureInfo,
    CanceledFailureInfo,
    ChildWorkflowExecutionFailureInfo,
    Failure,
    ServerFailureInfo,
    TerminatedFailureInfo,
    TimeoutFailureInfo,
)
from temporalio.api.schedule.v1 import Schedule, ScheduleAction, ScheduleSpec
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import NewWorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    CreateScheduleRequest,
    DeleteScheduleRequest,
    DescribeNamespaceResponse,
    DescribeScheduleRequest,
    DescribeWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from api import assert_problem, order, service
from scripted import Scripted
from temporal_api.dev.server import DevServer
from temporal_api.errors import Conflict, NotFound, Problem, TemporalError, ValidationError
from temporal_api.memory import Memory
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.failures import Subject, start_subject, workflow_subject
from temporal_api.temporal.payloads import DATA_CONVERTER, raw_json

pytestmark = pytest.mark.anyio

CONVERTER = DATA_CONVERTER.payload_converter


def payload(data: bytes, encoding: str = "json/plain", **metadata: bytes) -> Payload:
    """A payload as some worker may have written it."""
    return Payload(metadata={"encoding": encoding.encode(), **metadata}, data=data)


# --- payloads ---


class Line(msgspec.Struct):
    """Something that workflows are given."""

    name: str
    price: Decimal


@pytest.mark.parametrize(
    ("value", "data", "kind"),
    [
        (Line("ü", Decimal("0.10")), '{"name":"ü","price":0.10}'.encode(), Line),
        (Decimal("12345678901234567890.10"), b"12345678901234567890.10", Decimal),
        ({"a": [1, None, "x"]}, b'{"a":[1,null,"x"]}', dict),
        (msgspec.Raw(b'{ "a" : 1.10 }'), b'{ "a" : 1.10 }', msgspec.Raw),
        ([Line("a", Decimal(2))], b'[{"name":"a","price":2}]', list[Line]),
    ],
)
def test_json_payloads(value: object, data: bytes, kind: Any) -> None:
    """Structs, decimals and raw JSON go in without losing a digit, and come out as the type that is asked for."""
    encoded = CONVERTER.to_payload(value)

    assert (data, {"encoding": b"json/plain"}) == (encoded.data, encoded.metadata)
    assert value == CONVERTER.from_payload(encoded, kind)


@pytest.mark.parametrize(("value", "encoding"), [(None, b"binary/null"), (b"\x00", b"binary/plain")])
def test_what_is_no_json_stays_with_the_sdk(value: object, encoding: bytes) -> None:
    """Nothing and bytes are encoded as every other Temporal client does it."""
    encoded = CONVERTER.to_payload(value)

    assert encoding == encoded.metadata["encoding"]
    assert value == CONVERTER.from_payload(encoded)


@pytest.mark.parametrize(
    "data",
    [
        b"1.10",
        b"1e400",
        b"-0",
        b"9" * 6000,
        b' {"a" :\n1} ',
        '"ü\\u00fc"'.encode(),
        b'{"a":1,"a":2}',
        b"null",
        b'""',
    ],
    ids=lambda data: data[:20].decode(),
)
def test_json_is_handed_on_as_it_is(data: bytes) -> None:
    """Whatever JSON a worker wrote is the answer's, byte for byte, a number however large included."""
    assert data == bytes(raw_json(payload(data)))


def test_a_protobuf_message_as_json_is_json() -> None:
    """What the SDKs write for a protobuf message is JSON, and handed on as such."""
    data = b'{"seconds": "1"}'

    assert data == bytes(raw_json(payload(data, "json/protobuf", messageType=b"my.Message")))


@pytest.mark.parametrize(
    ("given", "metadata", "data"),
    [
        (payload(b"NaN"), {"encoding": "json/plain"}, "TmFO"),
        (payload(b'{"a":-Infinity}'), {"encoding": "json/plain"}, "eyJhIjotSW5maW5pdHl9"),
        (payload(b'"\xff"'), {"encoding": "json/plain"}, "Iv8i"),
        (payload(b""), {"encoding": "json/plain"}, ""),
        (payload(b"1 2"), {"encoding": "json/plain"}, "MSAy"),
        (payload(b"{}", "binary/plain"), {"encoding": "binary/plain"}, "e30="),
        (payload(b"\x01", "binary/encrypted", key=b"\xff"), {"encoding": "binary/encrypted", "key": "\ufffd"}, "AQ=="),
        (Payload(data=b"1"), {}, "MQ=="),
    ],
)
def test_what_json_cannot_carry(given: Payload, metadata: dict[str, str], data: str) -> None:
    """Any other payload comes as its metadata and its bytes in base64."""
    assert {"metadata": metadata, "data": data} == json.loads(bytes(raw_json(given)))


def test_a_deeply_nested_result_harms_nobody() -> None:
    """JSON nested deeper than a parser takes is handed on as bytes."""
    data = b"[" * 100_000 + b"]" * 100_000

    assert {"metadata", "data"} == json.loads(bytes(raw_json(payload(data)))).keys()


@pytest.mark.parametrize(
    ("payloads", "expected"),
    [([], b"null"), ([payload(b"1.10")], b"1.10"), ([payload(b"1.10"), payload(b"", "binary/null")], b"[1.10,null]")],
)
async def test_results(client: Client, payloads: list[Payload], expected: bytes) -> None:
    """No payload is null, one is itself, several are a list."""
    assert expected == bytes(await Scripted().temporal().result(payloads))


# --- failures ---

SECRET_TRACE = '  File "/srv/secret.py", line 1, in charge'
KINDS = [
    ("application_failure_info", ApplicationFailureInfo(type="Luck"), "Luck"),
    ("application_failure_info", ApplicationFailureInfo(), "ApplicationError"),
    ("timeout_failure_info", TimeoutFailureInfo(), "Timeout"),
    ("canceled_failure_info", CanceledFailureInfo(), "Canceled"),
    ("terminated_failure_info", TerminatedFailureInfo(), "Terminated"),
    ("server_failure_info", ServerFailureInfo(), "Server"),
    ("activity_failure_info", ActivityFailureInfo(), "Activity"),
    ("child_workflow_execution_failure_info", ChildWorkflowExecutionFailureInfo(), "ChildWorkflowExecution"),
    (None, None, "Failure"),
]


@pytest.mark.parametrize(("field", "info", "kind"), KINDS)
async def test_kinds_of_failure(client: Client, field: str | None, info: Message | None, kind: str) -> None:
    """Each kind of failure has a word of its own, and no kind shows a stack trace."""
    given = Failure(message="m", stack_trace=SECRET_TRACE, **({field: info} if field else {}))
    told = msgspec.to_builtins(await Scripted().temporal().failure(given))

    assert {"type": kind, "message": "m"} == told


async def test_a_chain_of_failures(client: Client) -> None:
    """Every cause is told with its details, and the stack trace of none."""
    details = Payloads(payloads=[payload(b'{"left": 1.10}'), payload(b"\x00", "binary/plain")])
    given = Failure(message="0", stack_trace=SECRET_TRACE, activity_failure_info=ActivityFailureInfo(identity="worker"))
    cause = given
    for n in range(1, 30):
        cause = cause.cause
        cause.message, cause.stack_trace = str(n), SECRET_TRACE
        cause.application_failure_info.type = f"Type{n}"
        cause.application_failure_info.details.CopyFrom(details)
    text = msgspec.json.encode(await Scripted().temporal().failure(given)).decode()
    told = json.loads(text)

    assert "secret" not in text
    assert "worker" not in text
    assert ("Activity", "0") == (told["type"], told["message"])
    for n in range(1, 30):
        told = told["cause"]
        assert (f"Type{n}", str(n)) == (told["type"], told["message"])
        assert [{"left": 1.1}, {"metadata": {"encoding": "binary/plain"}, "data": "AA=="}] == told["details"]
    assert "cause" not in told
    assert text.count('{"left": 1.10}') == 29


# --- what Temporal's errors mean ---

MEANINGS = [
    (RPCStatusCode.CANCELLED, "Timeout expired", "temporal_timeout"),
    (RPCStatusCode.DEADLINE_EXCEEDED, "context deadline exceeded", "temporal_timeout"),
    (RPCStatusCode.UNAVAILABLE, "tcp connect error", "temporal_connection_error"),
    (RPCStatusCode.NOT_FOUND, "workflow not found for ID: w", "workflow_not_found"),
    (RPCStatusCode.ALREADY_EXISTS, "already started", "workflow_already_exists"),
    (RPCStatusCode.RESOURCE_EXHAUSTED, "namespace rate limit exceeded", "temporal_overloaded"),
    (RPCStatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max (9 vs. 4)", "payload_too_large"),
    (RPCStatusCode.INVALID_ARGUMENT, "Blob data size exceeds limit.", "payload_too_large"),
    (RPCStatusCode.INVALID_ARGUMENT, "WorkflowId length exceeds limit.", "validation_error"),
    (RPCStatusCode.FAILED_PRECONDITION, "no poller seen for task queue recently", "no_worker"),
    (
        RPCStatusCode.FAILED_PRECONDITION,
        "Unable to query workflow due to Workflow Task in failed state.",
        "workflow_task_failing",
    ),
    (RPCStatusCode.FAILED_PRECONDITION, "Workflow is paused. Cannot update the workflow.", "workflow_paused"),
    (RPCStatusCode.FAILED_PRECONDITION, "anything else", "temporal_error"),
    (RPCStatusCode.PERMISSION_DENIED, "Request unauthorized.", "temporal_error"),
    (RPCStatusCode.UNAUTHENTICATED, "bad key", "temporal_error"),
    (
        RPCStatusCode.INTERNAL,
        "protocol error: while receiving response with status: 502 Bad",
        "temporal_connection_error",
    ),
    (RPCStatusCode.INTERNAL, "shard 7 at 10.0.0.9 is broken", "temporal_error"),
    (RPCStatusCode.UNKNOWN, "?", "temporal_error"),
    (RPCStatusCode.UNIMPLEMENTED, "unknown method", "not_supported"),
    (RPCStatusCode.DATA_LOSS, "gone", "temporal_error"),
    (RPCStatusCode.ABORTED, "try later", "temporal_error"),
    (RPCStatusCode.OUT_OF_RANGE, "far", "temporal_error"),
]


async def told(error: RPCError | RuntimeError, subject: Subject) -> Problem:
    """What a call about the subject fails with."""
    temporal = Scripted(describe_workflow_execution=[error]).temporal(0.2)
    with pytest.raises(Problem) as caught:
        await temporal.call(temporal.service.describe_workflow_execution, DescribeWorkflowExecutionRequest(), subject)
    return caught.value


@pytest.mark.parametrize(("status", "message", "code"), MEANINGS)
async def test_what_temporals_errors_mean(status: RPCStatusCode, message: str, code: str) -> None:
    """Each of Temporal's errors is one of ours; what only operators can mend is not shown to callers."""
    subject = start_subject("w") if status is RPCStatusCode.ALREADY_EXISTS else workflow_subject("w", "r")
    problem = await told(RPCError(message, status, b""), subject)

    assert code == problem.code
    assert ("temporal", "w") == (problem.details["source"], problem.details["workflow_id"])
    assert problem.message
    if problem.status >= 404:
        assert message not in problem.message


async def test_a_limit_is_told_while_connecting_too() -> None:
    """The first call of a connection asks about the server: refused there, it is the same 429."""
    said = "Failed client connect: `get_system_info` call error after connection: Status { code: ResourceExhausted, "
    problem = await told(RuntimeError(said + 'message: "rate limit exceeded" }'), workflow_subject("w"))

    assert ("temporal_overloaded", "temporal", "w") == (
        problem.code,
        *map(problem.details.get, ("source", "workflow_id")),
    )


async def test_a_namespace_that_temporal_could_not_look_up() -> None:
    """Temporal calls it missing then: it is asked once more, late in a call too, and believed the second time."""
    detail = AnyMessage()
    detail.Pack(NamespaceNotFoundFailure(namespace="default"))
    missing = RPCError("", RPCStatusCode.NOT_FOUND, GrpcStatus(code=5, details=[detail]).SerializeToString())
    late: asyncio.Future[Exception] = asyncio.Future()
    asyncio.get_running_loop().call_later(1.2, late.set_result, missing)
    always = Scripted(describe_namespace=[missing])

    await Scripted(describe_namespace=[late, DescribeNamespaceResponse()]).temporal(2).check()
    with pytest.raises(TemporalError):
        await always.temporal(60).check()
    assert 2 == always.asked["describe_namespace"]


@pytest.mark.parametrize("status", [RPCStatusCode.NOT_FOUND, RPCStatusCode.ALREADY_EXISTS])
async def test_what_is_missing_or_there_in_a_call_about_nothing_is_no_callers_mistake(status: RPCStatusCode) -> None:
    """A call of the service's own that finds too little or too much is a 502 without Temporal's words."""
    problem = await told(RPCError("workflow temporal-sys-x", status, b""), Subject())

    assert (502, "temporal_error") == (problem.status, problem.code)
    assert TemporalError.__doc__ == problem.message


class ScheduleNotFound(NotFound, code="schedule_not_found"):
    """There is no such schedule."""


class ScheduleExists(Conflict, code="schedule_exists"):
    """The schedule exists already."""


class ScheduleError(ValidationError, code="schedule_error"):
    """Temporal refuses this schedule."""


async def test_a_call_fails_in_the_words_of_whoever_makes_it(client: Client) -> None:
    """Another kind of thing that is missing, exists or is refused is called what it is, not the workflow behind it."""
    temporal, schedule_id = (
        Temporal(client, client.workflow_service, client.workflow_service, 5, Memory(2**28)),
        f"nightly-{uuid.uuid4()}",
    )
    subject = Subject(
        f"schedule {schedule_id!r}",
        missing=ScheduleNotFound,
        exists=ScheduleExists,
        invalid=ScheduleError,
        invalid_intro="Temporal refuses this schedule: ",
        details={"schedule_id": schedule_id},
    )
    which = {"namespace": client.namespace, "schedule_id": schedule_id}
    start = NewWorkflowExecutionInfo(
        workflow_id="w", workflow_type=WorkflowType(name="t"), task_queue=TaskQueue(name="q")
    )

    async def create(spec: ScheduleSpec) -> None:
        schedule = Schedule(spec=spec, action=ScheduleAction(start_workflow=start))
        request = CreateScheduleRequest(**which, schedule=schedule, request_id=str(uuid.uuid4()))
        await temporal.call(temporal.service.create_schedule, request, subject)

    with pytest.raises(ScheduleNotFound) as missing:
        await temporal.call(temporal.service.describe_schedule, DescribeScheduleRequest(**which), subject)
    with pytest.raises(ScheduleError) as refused:
        await create(ScheduleSpec(cron_string=["every day"]))
    await create(ScheduleSpec())
    with pytest.raises(ScheduleExists) as exists:
        await create(ScheduleSpec())
    await temporal.call(temporal.service.delete_schedule, DeleteScheduleRequest(**which), subject)

    assert f"There is no schedule {schedule_id!r}." == missing.value.message
    assert f"The schedule {schedule_id!r} exists already; take another id." == exists.value.message
    assert refused.value.message.startswith("Temporal refuses this schedule: ")
    for caught in (missing, refused, exists):
        assert {"source": "temporal", "schedule_id": schedule_id} == caught.value.details
        assert "workflow" not in caught.value.message.lower()


async def test_a_wrong_namespace_is_not_the_callers_mistake(dev_server: DevServer) -> None:
    """With a namespace that does not exist, no call says that the caller's id does not: it is a 502."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, TEMPORAL_NAMESPACE=f"no-{uuid.uuid4()}") as http:
        answers = await asyncio.gather(
            http.post("/api/v1/orders", json=order()),
            http.get("/api/v1/orders/any"),
            http.post("/api/v1/orders/any/cancel"),
            http.post("/api/v1/workflows", json={"workflow_type": "any"}),
            http.get("/api/v1/workflows/any"),
            http.post("/api/v1/workflows/any/signal", json={"signal_name": "any"}),
            http.post("/api/v1/workflows/any/query", json={"query_name": "any"}),
        )

    for answer in answers:
        assert_problem(answer, 502, "temporal_error")
        assert "no-" not in answer.text
