"""Steering a workflow: updates with their outcome, and its end: cancel, terminate, reset, delete."""

import asyncio
import uuid
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, delete, get, post
from litestar.datastructures import ResponseHeader, State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, JSONBody, PathParameter
from msgspec import UNSET, Meta, Raw

from temporal_api.auth import User
from temporal_api.controllers.workflows.addressing import (
    WORKFLOW,
    Argument,
    Arguments,
    NamedWorkflow,
    NonEmpty,
    arguments,
    location,
)
from temporal_api.controllers.workflows.history import RETRY_AFTER_SECONDS
from temporal_api.errors import Problem, invalid, responses
from temporal_api.idempotency import check_key
from temporal_api.requests import JSONResponse
from temporal_api.temporal import updates
from temporal_api.temporal.updates import Update
from temporal_api.waiting import Prefer, applied, preferred_wait

# Fields of answers, with the examples that the documentation shows.
_Id = Annotated[str, Meta(examples=["invoice-2041"])]
_Run = Annotated[str, Meta(examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
_UpdateId = Annotated[str, Meta(examples=["add-line-7"])]

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

    workflow_id: _Id
    run_id: _Run
    update_id: _UpdateId
    result: Annotated[Raw, Meta(description="Any JSON.", examples=[{"lines": 3}])]


class UpdatePendingResponse(msgspec.Struct):
    """An update that a worker has accepted, and that goes on: ask at `Location` after `Retry-After` seconds."""

    workflow_id: _Id
    run_id: _Run
    update_id: _UpdateId
    status: Annotated[Literal["ACCEPTED"], Meta(examples=["ACCEPTED"])]


class CancelRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Why it is cancelled, for its history."""

    reason: Annotated[str, Meta(max_length=1000, examples=["ordered twice"])] = ""


class CancelResponse(msgspec.Struct):
    """The workflow that was asked to end."""

    workflow_id: _Id


class TerminateRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Why it is terminated, for its history."""

    reason: Annotated[NonEmpty, Meta(examples=["runs away"])]


class ResetRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Where to go back to: `to` or `event_id` (that of a workflow task's start or end); and why."""

    to: Annotated[
        Literal["first_workflow_task", "last_workflow_task"] | None, Meta(examples=["last_workflow_task"])
    ] = None
    event_id: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    reason: Annotated[NonEmpty, Meta(examples=["mended code"])]

    def __post_init__(self) -> None:
        """One place, and only one."""
        if (self.to is None) == (self.event_id is None):
            raise ValueError("to: Expected either to or event_id")


class ResetResponse(msgspec.Struct):
    """The new run, which goes on from there."""

    workflow_id: _Id
    run_id: _Run


_PENDING: dict[int, ResponseSpec] = {
    202: ResponseSpec(UpdatePendingResponse, description="Accepted, not done yet.", generate_examples=False)
}


class WorkflowControlController(Controller):
    """Update, cancel, terminate, reset and delete workflows."""

    path = "/workflows"
    tags = ["workflows"]  # noqa: RUF012 - Litestar's way
    dependencies = {"workflow": WORKFLOW}  # noqa: RUF012 - likewise

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
                "workflow_not_found",
                "workflow_completed",
                "update_rejected",
                "no_worker",
                "workflow_task_failing",
                body=True,
            ),
        },
    )
    async def update_workflow(
        self,
        request: Request[User, Any, Any],
        workflow: NamedWorkflow,
        data: JSONBody[UpdateRequest],
        state: State,
        idempotency_key: UpdateKey = None,
        prefer: Prefer = None,
    ) -> JSONResponse[UpdateResponse]:
        """The outcome once it is done within the wait (without `Prefer`, that of any call), else 202 and a `Location`.

        202 means that a worker has accepted it, so that it will not be lost. Refused, or failed: 422.
        """
        args = arguments(("update_input", "update_args"), data.update_input, data.update_args)
        update_id = _update_id(data, check_key(idempotency_key))
        seconds = preferred_wait(request, state.settings.max_wait_seconds)
        preferred = "waits" in request.scope
        now = asyncio.get_running_loop().time
        until = now() + (seconds if preferred else state.settings.rpc_timeout_seconds)
        update = await updates.start(workflow, update_id, data.update_name, args)
        if update.result is None:
            left = max(0, until - now())
            seconds = 0 if state.waits.full else seconds
            done = await state.waits.within(
                request, left, lambda: updates.done(workflow.temporal, update), already_done=True
            )
            update = done or update
        return _answer(update, seconds)

    @get(
        "/{workflow_id:str}/updates/{update_id:str}",
        scope=("workflows:read", "workflows:admin"),
        operation_id="getWorkflowUpdate",
        summary="An update's outcome",
        responses={
            **_PENDING,
            **responses(
                "workflow_not_found",
                "update_not_found",
                "update_rejected",
                "no_worker",
                "workflow_task_failing",
                "too_many_waits",
            ),
        },
    )
    async def get_update(
        self,
        request: Request[User, Any, Any],
        workflow: NamedWorkflow,
        update_id: PathUpdateId,
        state: State,
        prefer: Prefer = None,
    ) -> JSONResponse[UpdateResponse]:
        """Kept as long as the run is, also after its end; but a refusal is told once and not kept."""
        seconds = preferred_wait(request, state.settings.max_wait_seconds)
        update = await updates.find(workflow, update_id)
        if update.result is None:
            update = (
                await state.waits.within(request, seconds, lambda: updates.done(workflow.temporal, update)) or update
            )
        return _answer(update, seconds)

    @post(
        "/{workflow_id:str}/cancel",
        scope=("workflows:write", "workflows:admin"),
        status_code=202,
        operation_id="cancelWorkflow",
        summary="Ask a workflow to end",
        responses=responses("workflow_not_found", "workflow_completed", body=True),
    )
    async def cancel_workflow(
        self, workflow: NamedWorkflow, data: JSONBody[CancelRequest | None] = None
    ) -> CancelResponse:
        """Its code decides what it does about it, and may clean up first; to end it at once, terminate it."""
        await workflow.cancel(data.reason if data else "")
        return CancelResponse(workflow.id)

    @post(
        "/{workflow_id:str}/terminate",
        scope=("workflows:admin",),
        status_code=204,
        operation_id="terminateWorkflow",
        summary="End a workflow at once",
        responses=responses("workflow_not_found", "workflow_completed", body=True),
    )
    async def terminate_workflow(self, workflow: NamedWorkflow, data: JSONBody[TerminateRequest]) -> None:
        """Without asking its code, which cleans nothing up."""
        await workflow.terminate(data.reason)

    @post(
        "/{workflow_id:str}/reset",
        scope=("workflows:admin",),
        status_code=200,
        operation_id="resetWorkflow",
        summary="Run a workflow again from a point",
        responses=responses("workflow_not_found", body=True),
    )
    async def reset_workflow(self, workflow: NamedWorkflow, data: JSONBody[ResetRequest]) -> ResetResponse:
        """A new run with the history up to there; signals and updates that came later are sent to it again.

        A run that is still open is terminated; a closed one can be reset too.
        """
        run = await workflow.pinned()
        event_id = data.event_id or await run.task_end(backward=data.to == "last_workflow_task")
        if event_id is None:
            raise invalid("to", "Expected a run with a workflow task that was completed; this one has none")
        try:
            return ResetResponse(workflow.id, await run.reset(event_id, data.reason))
        except Problem as problem:
            if problem.code != "validation_error":
                raise
            why = "it is no boundary of a workflow task" if "StateRebuilder" in problem.message else problem.message
            reason = f"Temporal cannot reset the run to the event {event_id}: {why}"
            raise invalid("event_id" if data.event_id else "to", reason) from None

    @delete(
        "/{workflow_id:str}",
        scope=("workflows:admin",),
        operation_id="deleteWorkflow",
        summary="Delete a workflow",
        responses=responses("workflow_not_found"),
    )
    async def delete_workflow(self, workflow: NamedWorkflow) -> None:
        """With its history, for good; one that still runs is terminated. Temporal may take a minute to do it."""
        await workflow.delete()


def _update_id(data: UpdateRequest, key: str | None) -> str:
    if key and data.update_id:
        raise invalid("update_id", "Send update_id or Idempotency-Key, not both")
    update_id = key or data.update_id or str(uuid.uuid4())
    if update_id in (".", ".."):
        raise invalid("Idempotency-Key" if key else "update_id", "Expected an id that a URL can carry: not . or ..")
    return update_id


def _answer(update: Update, waited: float) -> JSONResponse[UpdateResponse]:
    headers = applied(waited)
    if update.result is not None:
        return JSONResponse(
            UpdateResponse(update.workflow_id, update.run_id, update.update_id, update.result), headers=headers
        )
    # Pinned: an update is of one run, and the next one, after a continue-as-new, does not know it.
    headers["Location"] = f"{location(update.workflow_id, 'updates', update.update_id)}?run_id={update.run_id}"
    headers["Retry-After"] = RETRY_AFTER_SECONDS
    pending: Any = UpdatePendingResponse(update.workflow_id, update.run_id, update.update_id, "ACCEPTED")
    return JSONResponse(pending, status_code=202, headers=headers)
