"""Send messages to a workflow: signals, queries and updates.

JSON passes through untouched: what the caller sends as an argument is, byte for byte, the payload's data, and a
result's bytes are the answer's.
"""

import asyncio
import uuid
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, get, post
from litestar.datastructures import ResponseHeader
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, JSONBody, PathParameter
from msgspec import UNSET, Meta, Raw, UnsetType

from temporal_api import errors
from temporal_api.auth import APIRequest
from temporal_api.controllers.workflows.addressing import (
    WORKFLOW,
    Argument,
    Arguments,
    NonEmpty,
    PathWorkflow,
    arguments,
    location,
)
from temporal_api.errors import invalid
from temporal_api.idempotency import check_key, derived_id
from temporal_api.problems import responses
from temporal_api.requests import JSONResponse
from temporal_api.services import CurrentServices
from temporal_api.temporal import updates
from temporal_api.temporal.updates import Update
from temporal_api.waiting import RETRY_AFTER_SECONDS, Prefer, preference_applied, preferred_wait

# Fields of answers, with the examples that the documentation shows.
_WorkflowId = Annotated[str, Meta(examples=["invoice-2041"])]
_RunId = Annotated[str, Meta(examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
_UpdateId = Annotated[str, Meta(examples=["add-line-7"])]

SignalKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="A run gets the signals with one key of one caller once, whatever else they say, also when they "
        "are sent again; a run that comes from a reset may get one more. 1 to 255 visible ASCII characters.",
    ),
]


class SignalRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A signal. `signal_input` is one argument; `signal_args` is the argument list; neither: no argument."""

    signal_name: Annotated[NonEmpty, Meta(examples=["approve"])]
    signal_input: Annotated[Argument, Meta(description="Any JSON.", examples=[{"by": "alice"}])] = UNSET
    signal_args: Arguments = UNSET


class SignalResponse(msgspec.Struct):
    """The signal that was accepted."""

    workflow_id: _WorkflowId
    signal_name: Annotated[str, Meta(examples=["approve"])]


class QueryRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A query. An array in `query_args` is the argument list; anything else is one argument."""

    query_name: Annotated[NonEmpty, Meta(examples=["progress"])]
    query_args: Annotated[Argument, Meta(description="Any JSON.", examples=[["in percent"]])] = UNSET


class QueryResponse(msgspec.Struct):
    """What the workflow answered."""

    result: Annotated[Raw, Meta(description="Any JSON.", examples=[{"percent": 40}])]


def _query_arguments(args: Argument) -> list[Raw]:
    if isinstance(args, UnsetType):
        return []
    return msgspec.json.decode(args, type=list[Raw]) if bytes(args).startswith(b"[") else [args]


UpdateKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="Serves as `update_id`: the same one again gives the first outcome, whatever else the body says, "
        "also after the workflow has closed. 1 to 255 visible ASCII characters.",
    ),
]
PathUpdateId = Annotated[
    str, PathParameter(description="The update's id. In the URL it is percent-encoded: a slash is %2F.")
]


class UpdateRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An update. `update_input` is one argument; `update_args` is the argument list; neither: no argument."""

    update_name: Annotated[NonEmpty, Meta(examples=["add_line"])]
    update_input: Annotated[Argument, Meta(description="Any JSON.", examples=[{"sku": "MUG-1"}])] = UNSET
    update_args: Arguments = UNSET
    update_id: Annotated[NonEmpty | None, Meta(examples=["add-line-7"])] = None


class UpdateResponse(msgspec.Struct):
    """An update that was done, and what its handler gave back."""

    workflow_id: _WorkflowId
    run_id: _RunId
    update_id: _UpdateId
    result: Annotated[Raw, Meta(description="Any JSON.", examples=[{"lines": 3}])]


class UpdatePendingResponse(msgspec.Struct):
    """An update that a worker has accepted, and that goes on: ask at `Location` after `Retry-After` seconds."""

    workflow_id: _WorkflowId
    run_id: _RunId
    update_id: _UpdateId
    status: Annotated[Literal["ACCEPTED"], Meta(examples=["ACCEPTED"])]


_PENDING: dict[int, ResponseSpec] = {
    202: ResponseSpec(UpdatePendingResponse, description="Accepted, not done yet.", generate_examples=False)
}


class WorkflowMessageController(Controller):
    """Send messages to workflows."""

    path = "/workflows"
    tags = ["workflows"]  # noqa: RUF012 - Litestar's way
    dependencies = {"workflow": WORKFLOW}  # noqa: RUF012 - likewise

    @post(
        "/{workflow_id:str}/signal",
        scope=("workflows:write", "workflows:admin"),
        status_code=202,
        operation_id="signalWorkflow",
        summary="Send a signal",
        responses=responses(errors.WorkflowNotFound, errors.WorkflowCompleted, body=True),
    )
    async def signal_workflow(
        self,
        workflow: PathWorkflow,
        data: JSONBody[SignalRequest],
        request: APIRequest,
        idempotency_key: SignalKey = None,
    ) -> SignalResponse:
        """Accepted (202): Temporal keeps it until a worker handles it."""
        args = arguments(("signal_input", "signal_args"), data.signal_input, data.signal_args)
        key = check_key(idempotency_key)
        await workflow.signal(data.signal_name, args, derived_id("signals", request.user, key) if key else None)
        return SignalResponse(workflow.id, data.signal_name)

    @post(
        "/{workflow_id:str}/query",
        scope=("workflows:read", "workflows:admin"),
        status_code=200,
        operation_id="queryWorkflow",
        summary="Ask a workflow",
        responses=responses(
            errors.WorkflowNotFound,
            errors.WorkflowCompleted,
            errors.QueryFailed,
            errors.NoWorker,
            errors.WorkflowTaskFailing,
            body=True,
        ),
    )
    async def query_workflow(
        self, workflow: PathWorkflow, data: JSONBody[QueryRequest], request: APIRequest
    ) -> QueryResponse:
        """Its worker answers; names that begin with `__` need the scope `workflows:admin`."""
        if data.query_name.startswith("__") and "workflows:admin" not in request.user.scopes:
            message = "Queries that begin with __ need the scope workflows:admin."
            raise errors.InsufficientScope(message, "workflows:admin")
        return QueryResponse(await workflow.query(data.query_name, _query_arguments(data.query_args)))

    @post(
        "/{workflow_id:str}/update",
        scope=("workflows:write", "workflows:admin"),
        status_code=200,
        operation_id="updateWorkflow",
        summary="Send an update",
        response_headers=[
            ResponseHeader("Location", description="Where its outcome is (with 202).", documentation_only=True)
        ],
        responses={
            **_PENDING,
            **responses(
                errors.WorkflowNotFound,
                errors.WorkflowCompleted,
                errors.UpdateRejected,
                errors.NoWorker,
                errors.WorkflowTaskFailing,
                body=True,
            ),
        },
    )
    async def update_workflow(
        self,
        request: APIRequest,
        workflow: PathWorkflow,
        data: JSONBody[UpdateRequest],
        services: CurrentServices,
        idempotency_key: UpdateKey = None,
        prefer: Prefer = None,
    ) -> JSONResponse[UpdateResponse]:
        """The outcome once it is done within the wait (without `Prefer`, that of any call), else 202 and a `Location`.

        202 means that a worker has accepted it, so that it will not be lost. Refused, or failed: 422.
        """
        args = arguments(("update_input", "update_args"), data.update_input, data.update_args)
        update_id = _update_id(data, check_key(idempotency_key))
        settings, waits = services.settings, services.waits
        preferred = preferred_wait(request, settings.max_wait_seconds)
        now = asyncio.get_running_loop().time
        until = now() + (settings.rpc_timeout_seconds if preferred is None else preferred)
        update = await updates.send(workflow, update_id, data.update_name, args)
        if update.result is None:
            preferred = None if waits.full_for(request.user) else preferred
            left = max(0, until - now())
            done = await waits.within(request, left, lambda: updates.wait(workflow, update))
            update = done or update
        return _answer(update, preferred)

    @get(
        "/{workflow_id:str}/updates/{update_id:str}",
        scope=("workflows:read", "workflows:admin"),
        operation_id="getWorkflowUpdate",
        summary="An update's outcome",
        responses={
            **_PENDING,
            **responses(
                errors.WorkflowNotFound,
                errors.UpdateNotFound,
                errors.UpdateRejected,
                errors.NoWorker,
                errors.WorkflowTaskFailing,
            ),
        },
    )
    async def get_update(
        self,
        request: APIRequest,
        workflow: PathWorkflow,
        update_id: PathUpdateId,
        services: CurrentServices,
        prefer: Prefer = None,
    ) -> JSONResponse[UpdateResponse]:
        """Kept as long as the run is, also after its end; but a refusal is told once and not kept."""
        seconds = preferred_wait(request, services.settings.max_wait_seconds)
        update = await updates.find(workflow, update_id)
        if update.result is None:
            done = await services.waits.within(request, seconds, lambda: updates.wait(workflow, update))
            update = done or update
        return _answer(update, seconds)


def _update_id(data: UpdateRequest, key: str | None) -> str:
    if key and data.update_id:
        raise invalid("update_id", "Send update_id or Idempotency-Key, not both")
    update_id = key or data.update_id or str(uuid.uuid4())
    if update_id in (".", ".."):
        raise invalid("Idempotency-Key" if key else "update_id", "Expected an id that a URL can carry: not . or ..")
    return update_id


def _answer(update: Update, waited: float | None) -> JSONResponse[UpdateResponse]:
    headers = preference_applied(waited)
    if update.result is not None:
        return JSONResponse(
            UpdateResponse(update.workflow_id, update.run_id, update.update_id, update.result), headers=headers
        )
    # Pinned: an update is of one run, and the next one, after a continue-as-new, does not know it.
    headers["Location"] = f"{location(update.workflow_id, 'updates', update.update_id)}?run_id={update.run_id}"
    headers["Retry-After"] = RETRY_AFTER_SECONDS
    pending: Any = UpdatePendingResponse(update.workflow_id, update.run_id, update.update_id, "ACCEPTED")
    return JSONResponse(pending, status_code=202, headers=headers)
