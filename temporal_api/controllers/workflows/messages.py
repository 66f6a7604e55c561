"""Send messages to a workflow: signals, queries and updates.

JSON is not changed: an argument's bytes become the payload's data, and a result's bytes become the answer.
"""

import time
import uuid
from typing import Annotated, Literal

import msgspec
from litestar import get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from msgspec import UNSET, Meta, Raw, UnsetType

from temporal_api import errors
from temporal_api.auth import APIRequest
from temporal_api.bounds import check_entries
from temporal_api.controllers.workflows.addressing import (
    ADMIN,
    ASK_AGAIN,
    CHANGES,
    READ,
    WRITE,
    NonEmpty,
    PathWorkflow,
    RunId,
    Target,
    WorkflowId,
    ask_again,
    check_lengths,
    excludes,
    in_path,
)
from temporal_api.errors import invalid, invalid_fields
from temporal_api.idempotency import check_key, derived_id, key_header
from temporal_api.mistakes import body_mistakes
from temporal_api.problems import responses
from temporal_api.record import record_of
from temporal_api.requests import JSONResponse
from temporal_api.services import CurrentServices, Services
from temporal_api.temporal import updates
from temporal_api.temporal.updates import Update
from temporal_api.temporal.workflow import Workflow
from temporal_api.waiting import Prefer, preference_applied, preferred_wait

_ASKED = (errors.WorkflowNotFound, errors.NoWorker, errors.WorkflowTaskFailing)
"""The errors of an operation that a worker answers."""
DOTS = (".", "..")
NOT_DOTS = "Expected an id that a URL can carry: not . or .."

Argument = Raw | UnsetType
ArgumentList = Annotated[list[Raw], Meta(max_length=100)]
Arguments = Annotated[
    ArgumentList | UnsetType, Meta(description="The arguments, each any JSON. An empty list counts as none.")
]


def check_in_path(body: msgspec.Struct, field: str) -> None:
    """Raises ValueError, as `check_lengths` does, for the ids `.` and `..`: HTTP clients remove them from a path."""
    if getattr(body, field, None) in DOTS:
        raise ValueError(f"{field}: {NOT_DOTS}")


def check_arguments(body: msgspec.Struct, one: str, many: str) -> None:
    """Raises ValueError for one argument and an argument list at once."""
    # Some generated clients send an empty list when there are no arguments.
    if getattr(body, one, UNSET) is not UNSET and getattr(body, many, False):
        raise ValueError(f"{many}: Send {one} or {many}, not both")


def arguments(one: Argument, many: Arguments) -> list[Raw]:
    """One argument, an argument list, or none."""
    return many or [] if isinstance(one, UnsetType) else [one]


SignalKey = Annotated[
    str | None,
    key_header(
        "A run gets only one signal for each key of a caller; later bodies are ignored. After a reset, the new run may "
        "get it again. 1 to 255 visible ASCII characters."
    ),
]


class SignalRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A signal. Send one argument in `signal_input`, several in `signal_args`, or neither."""

    signal_name: Annotated[NonEmpty, Meta(description="The signal's name.", examples=["cancel"])]
    signal_input: Annotated[
        Argument, Meta(description="The argument: any JSON.", examples=[{"reason": "ordered twice"}])
    ] = UNSET
    signal_args: Annotated[Arguments, Meta(extra_json_schema=excludes("signal_input"))] = UNSET

    def __post_init__(self) -> None:
        check_lengths(self, "signal_name")
        check_arguments(self, "signal_input", "signal_args")


class SignalResponse(msgspec.Struct):
    """The signal that was accepted."""

    workflow_id: WorkflowId
    signal_name: Annotated[str, Meta(description="The signal's name.", examples=["cancel"])]


@post("/signal", scope=WRITE, status_code=202, summary="Send a signal", responses=CHANGES)
async def signal_workflow(
    target: Target, data: JSONBody[SignalRequest], request: APIRequest, idempotency_key: SignalKey = None
) -> SignalResponse:
    """Send a signal. Temporal keeps it (202) until a worker handles it."""
    key = check_key(request, idempotency_key)
    request_id = derived_id("signals", request.user, key) if key else None
    await target.signal(data.signal_name, arguments(data.signal_input, data.signal_args), request_id)
    return SignalResponse(target.id, data.signal_name)


class QueryRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A query. An array in `query_args` is the argument list; anything else is one argument."""

    query_name: Annotated[NonEmpty, Meta(description="The query's name.", examples=["status"])]
    query_args: Annotated[Argument, Meta(description="One argument (any JSON), or an array of at most 100.")] = UNSET

    def __post_init__(self) -> None:
        check_lengths(self, "query_name")


class QueryResponse(msgspec.Struct):
    """The query's result."""

    result: Annotated[Raw, Meta(description="Any JSON.", examples=[{"status": "processing", "reason": None}])]


_ARGUMENT_LIST = msgspec.inspect.type_info(ArgumentList)


async def _query_arguments(args: Argument) -> list[Raw]:
    if isinstance(args, UnsetType):
        return []
    text = bytes(args)
    if not text.startswith(b"["):
        return [args]
    await check_entries(text, _ARGUMENT_LIST, "query_args")
    try:
        return msgspec.json.decode(text, type=ArgumentList)
    except msgspec.ValidationError:
        raise invalid_fields(body_mistakes(text, ArgumentList, "query_args")) from None


@post(
    "/query",
    scope=READ,
    status_code=200,
    summary="Query a workflow",
    responses=responses(*_ASKED, errors.WorkflowCompleted, errors.WorkflowPaused, errors.QueryFailed),
)
async def query_workflow(workflow: PathWorkflow, data: JSONBody[QueryRequest], request: APIRequest) -> QueryResponse:
    """Send a query; a worker answers it. Names that begin with `__` need the scope `workflows:admin`."""
    if data.query_name.startswith("__") and ADMIN not in request.user.scopes:
        raise errors.InsufficientScope(f"Queries that begin with __ need the scope {ADMIN}.", ADMIN)
    return QueryResponse(await workflow.query(data.query_name, await _query_arguments(data.query_args)))


class MessageHandler(msgspec.Struct):
    """A handler of signals, queries or updates. Its name is null if it takes every name (a dynamic handler)."""

    name: Annotated[str | None, Meta(description="The handler's name.", examples=["approve"])]
    description: Annotated[str, Meta(description="What it does.", examples=["Approve the invoice."])]


class MetadataResponse(msgspec.Struct, kw_only=True):
    """What the workflow's code says about itself."""

    workflow_id: WorkflowId
    workflow_type: Annotated[str, Meta(description="The workflow type.", examples=["send_invoice"])]
    current_details: Annotated[
        str, Meta(description="The workflow's current details, in Markdown.", examples=["waits for approval"])
    ]
    signals: Annotated[list[MessageHandler], Meta(description="The signals that it handles.")]
    queries: Annotated[list[MessageHandler], Meta(description="The queries that it handles.")]
    updates: Annotated[list[MessageHandler], Meta(description="The updates that it handles.")]


# The SDKs answer in Protobuf's JSON, which leaves out empty fields.


class _Handler(msgspec.Struct):
    name: str | None = None
    description: str = ""


class _Definition(msgspec.Struct, rename="camel"):
    type: str = ""
    signal_definitions: list[_Handler] = []
    query_definitions: list[_Handler] = []
    update_definitions: list[_Handler] = []


class _Metadata(msgspec.Struct, rename="camel"):
    definition: _Definition
    current_details: str = ""


@get(
    "/metadata",
    scope=READ,
    summary="A workflow's signals, queries and updates",
    responses=responses(
        *_ASKED, errors.WorkflowCompleted, errors.WorkflowPaused, errors.QueryFailed, errors.PayloadUndecodable
    ),
)
async def get_workflow_metadata(workflow: PathWorkflow) -> MetadataResponse:
    """The signals, queries and updates that the workflow's code handles now, with their descriptions.

    A worker answers. If its SDK is too old for this, the answer is 422.
    """
    answer = await workflow.query("__temporal_workflow_metadata", [])
    try:
        told = msgspec.json.decode(answer, type=_Metadata)
    except msgspec.ValidationError:
        raise errors.PayloadUndecodable(**workflow.subject.details) from None
    return MetadataResponse(
        workflow_id=workflow.id,
        workflow_type=told.definition.type,
        current_details=told.current_details,
        signals=_own(told.definition.signal_definitions),
        queries=_own(told.definition.query_definitions),
        updates=_own(told.definition.update_definitions),
    )


def _own(handlers: list[_Handler]) -> list[MessageHandler]:
    """Leave out the SDK's handlers, such as `__stack_trace`."""
    own = (handler for handler in handlers if not (handler.name or "").startswith("__"))
    return [MessageHandler(handler.name or None, handler.description) for handler in own]


UpdateKey = Annotated[
    str | None,
    key_header(
        "Used as `update_id`: send one of the two. The same key again gets the first outcome, also after the workflow "
        "has closed; later bodies are ignored. 1 to 255 visible ASCII characters."
    ),
]
UpdateId = Annotated[str, Meta(description="The update's id.", examples=["add-line-7"])]


class UpdateRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An update. Send one argument in `update_input`, several in `update_args`, or neither."""

    update_name: Annotated[NonEmpty, Meta(description="The update's name.", examples=["add_line"])]
    update_input: Annotated[Argument, Meta(description="The argument: any JSON.", examples=[{"sku": "MUG-1"}])] = UNSET
    update_args: Annotated[Arguments, Meta(extra_json_schema=excludes("update_input"))] = UNSET
    update_id: Annotated[
        NonEmpty | None,
        Meta(description="An id of your choice. The same id again gets the first outcome. Without it: a new id."),
    ] = None

    def __post_init__(self) -> None:
        check_lengths(self, "update_name", "update_id")
        check_in_path(self, "update_id")
        check_arguments(self, "update_input", "update_args")


class UpdateResponse(msgspec.Struct):
    """A completed update and its result."""

    workflow_id: WorkflowId
    run_id: RunId
    update_id: UpdateId
    result: Annotated[Raw, Meta(description="Any JSON.", examples=[{"lines": 3}])]


class UpdatePendingResponse(msgspec.Struct):
    """An update that is accepted and not completed yet. Ask at `Location` after `Retry-After` seconds."""

    workflow_id: WorkflowId
    run_id: RunId
    update_id: UpdateId
    status: Annotated[Literal["ACCEPTED"], Meta(description="The update's stage.", examples=["ACCEPTED"])]


_PENDING: dict[int, ResponseSpec] = {
    202: ResponseSpec(UpdatePendingResponse, description="Accepted, not completed yet.", generate_examples=False)
}


@post(
    "/updates",
    scope=WRITE,
    status_code=200,
    summary="Send an update",
    headers=ASK_AGAIN,
    responses={
        **_PENDING,
        **responses(
            *_ASKED,
            errors.WorkflowCompleted,
            errors.WorkflowPaused,
            errors.PreconditionFailed,
            errors.UpdateRejected,
        ),
    },
)
async def update_workflow(
    request: APIRequest,
    target: Target,
    data: JSONBody[UpdateRequest],
    services: CurrentServices,
    idempotency_key: UpdateKey = None,
    prefer: Prefer = None,
) -> JSONResponse[UpdateResponse]:
    """Send an update and wait for its outcome: as long as `Prefer` says, else as long as for any call to Temporal.

    202 means that a worker has accepted the update and has not completed it: it cannot be lost, and `Location` is where
    to ask for the outcome. For an update that is rejected or fails, the answer is 422.
    """
    key = check_key(request, idempotency_key)
    if key and data.update_id:
        raise invalid("update_id", "Send update_id or Idempotency-Key, not both")
    if key in DOTS:
        raise invalid("Idempotency-Key", NOT_DOTS)
    update_id = key or data.update_id or str(uuid.uuid4())
    preferred = preferred_wait(request, services.settings.max_wait_seconds)
    record_of(request.scope).waited = bool(preferred)  # sending waits for a worker too
    began = time.monotonic()
    update = await updates.send(target, update_id, data.update_name, arguments(data.update_input, data.update_args))
    update = await until_done(request, services, target, update, time_left(services, preferred, began))
    return _answer(request, update, preferred)


# An earlier path of this operation, for clients that still use it.
update_at_old_path = post("/update", scope=WRITE, status_code=200, include_in_schema=False)(update_workflow.fn)


@get(
    "/updates/{update_id:str}",
    scope=READ,
    summary="An update's outcome",
    headers=ASK_AGAIN,
    responses={**_PENDING, **responses(*_ASKED, errors.UpdateNotFound, errors.UpdateRejected)},
)
async def get_workflow_update(
    request: APIRequest,
    workflow: PathWorkflow,
    update_id: Annotated[str, in_path("update")],
    services: CurrentServices,
    prefer: Prefer = None,
) -> JSONResponse[UpdateResponse]:
    """Temporal keeps the outcome as long as the run. A rejected update is not kept: the answer is 404."""
    seconds = preferred_wait(request, services.settings.max_wait_seconds)
    update = await until_done(request, services, workflow, await updates.find(workflow, update_id), seconds)
    return _answer(request, update, seconds)


def time_left(services: Services, preferred: float | None, began: float) -> float:
    """The seconds that are left of the preferred wait; without one, of the time that any call may take."""
    seconds = services.settings.rpc_timeout_seconds if preferred is None else preferred
    return max(0, began + seconds - time.monotonic())


async def until_done(
    request: APIRequest, services: Services, workflow: Workflow, update: Update, seconds: float | None
) -> Update:
    """The update once it has completed, or as it was when the time is over."""
    if update.result is not None:
        return update
    return await services.waits.within(request, seconds, lambda: updates.wait(workflow, update)) or update


def _answer(request: APIRequest, update: Update, preferred: float | None) -> JSONResponse[UpdateResponse]:
    headers = preference_applied(request, preferred)
    ids = update.workflow_id, update.run_id, update.update_id
    if update.result is not None:
        return JSONResponse(UpdateResponse(*ids, update.result), headers=headers)
    # Pinned: an update belongs to one run. After a continue-as-new, the next run does not know it.
    pending = UpdatePendingResponse(*ids, "ACCEPTED")
    return ask_again(pending, headers, update.run_id, update.workflow_id, "updates", update.update_id)
