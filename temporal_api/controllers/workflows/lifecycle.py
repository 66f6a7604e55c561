"""Cancel, terminate, pause, reset and delete workflows."""

from typing import Annotated, Literal

import msgspec
from litestar import delete, post
from litestar.params import JSONBody
from msgspec import Meta

from temporal_api import errors
from temporal_api.controllers.workflows.addressing import (
    ADMIN,
    CHANGES,
    WRITE,
    NonEmpty,
    RunId,
    Target,
    WorkflowId,
    check_lengths,
    excludes,
)
from temporal_api.errors import invalid
from temporal_api.problems import responses
from temporal_api.temporal.history import workflow_task_end

_PAUSES = responses(errors.WorkflowNotFound, errors.PreconditionFailed, errors.WorkflowCompleted, errors.NotSupported)


class CancelRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Why the workflow is cancelled, for its history."""

    reason: Annotated[str, Meta(max_length=1000, description="Why.", examples=["ordered twice"])] = ""


class CancelResponse(msgspec.Struct):
    """The workflow that gets the cancellation request."""

    workflow_id: WorkflowId


@post("/cancel", scope=WRITE, status_code=202, summary="Cancel a workflow", responses=CHANGES)
async def cancel_workflow(target: Target, data: JSONBody[CancelRequest | None] = None) -> CancelResponse:
    """Ask the workflow's code to end. It may clean up first, or go on. To end it at once, terminate it."""
    await target.cancel(data.reason if data else "")
    return CancelResponse(target.id)


class TerminateRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Why the workflow is terminated, for its history."""

    reason: Annotated[NonEmpty, Meta(description="Why.", examples=["runs away"])]


@post("/terminate", scope=ADMIN, status_code=204, summary="Terminate a workflow", responses=CHANGES)
async def terminate_workflow(target: Target, data: JSONBody[TerminateRequest]) -> None:
    """End the workflow at once. Its code cannot clean up."""
    await target.terminate(data.reason)


class PauseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Why the workflow is paused or unpaused, for its history."""

    reason: Annotated[str, Meta(max_length=1000, description="Why.", examples=["the bank is closed"])] = ""

    def __post_init__(self) -> None:
        """Refuse a reason that Temporal does not take: this one it keeps where ids and names are kept."""
        check_lengths(self, "reason")


@post("/pause", scope=ADMIN, status_code=204, summary="Pause a workflow", responses=_PAUSES)
async def pause_workflow(target: Target, data: JSONBody[PauseRequest | None] = None) -> None:
    """Stop the workflow's code until it is unpaused. Temporal keeps its signals; queries and updates answer 409.

    A workflow that is paused already stays paused. This needs Temporal 1.31 with `frontend.WorkflowPauseEnabled`.
    """
    await target.pause(data.reason if data else "")


@post("/unpause", scope=ADMIN, status_code=204, summary="Unpause a workflow", responses=_PAUSES)
async def unpause_workflow(target: Target, data: JSONBody[PauseRequest | None] = None) -> None:
    """Let the workflow's code run again. A workflow that is not paused stays as it is."""
    await target.unpause(data.reason if data else "")


class ResetRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The point to reset to, and why. Send exactly one of `to` and `event_id`."""

    to: Annotated[
        Literal["first_workflow_task", "last_workflow_task"] | None,
        Meta(description="Reset to the end of this workflow task.", examples=["last_workflow_task"]),
    ] = None
    event_id: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000_000)] | None,
        Meta(description="Reset to this event: the start or end of a workflow task.", extra_json_schema=excludes("to")),
    ] = None
    reason: Annotated[NonEmpty, Meta(description="Why.", examples=["fixed code"])]

    def __post_init__(self) -> None:
        if (self.to is None) == (self.event_id is None):
            raise ValueError("to: Expected either to or event_id")


class ResetResponse(msgspec.Struct):
    """The new run."""

    workflow_id: WorkflowId
    run_id: RunId


@post(
    "/reset",
    scope=ADMIN,
    status_code=200,
    summary="Reset a workflow",
    responses=responses(errors.WorkflowNotFound, errors.PreconditionFailed),
)
async def reset_workflow(target: Target, data: JSONBody[ResetRequest]) -> ResetResponse:
    """Begin a new run with the history up to that point. Temporal sends it later signals and updates again.

    A running workflow is terminated first; a closed one can be reset too.
    """
    run = target.run((await target.describe()).run_id)
    event_id = data.event_id or await workflow_task_end(run, last=data.to == "last_workflow_task")
    if event_id is None:
        raise invalid("to", "Expected a run with a completed workflow task; this one has none")
    try:
        return ResetResponse(target.id, await run.reset(event_id, data.reason))
    except errors.ValidationError as error:
        field = "event_id" if data.event_id else "to"
        raise invalid(field, f"Temporal cannot reset the run to the event {event_id}: {error.message}") from None


@delete(
    scope=ADMIN, summary="Delete a workflow", responses=responses(errors.WorkflowNotFound, errors.PreconditionFailed)
)
async def delete_workflow(target: Target) -> None:
    """Permanently delete the workflow and its history. A running workflow is terminated first.

    Temporal may take a minute to do it.
    """
    await target.delete()
