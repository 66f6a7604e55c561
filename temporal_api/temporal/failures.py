"""What Temporal's failures mean: gRPC statuses as HTTP problems, a run's failure without its stack trace."""

import logging
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload
from temporalio.api.errordetails.v1 import (
    MultiOperationExecutionFailure,
    NamespaceNotFoundFailure,
    WorkflowExecutionAlreadyStartedFailure,
)
from temporalio.api.failure.v1 import Failure, MultiOperationExecutionAborted
from temporalio.service import RPCError, RPCStatusCode

from temporal_api.errors import Problem

log = logging.getLogger(__name__)


class FailureInfo(msgspec.Struct, omit_defaults=True):
    """Why a run failed: Temporal's failure without its stack trace."""

    type: str
    message: str
    details: list[msgspec.Raw] = []
    cause: "FailureInfo | None" = None


# What Temporal's failures mean to an HTTP caller; a status that is not here is Temporal's own defect.
_CODES = {
    RPCStatusCode.CANCELLED: "temporal_timeout",  # how the SDK reports some deadlines
    RPCStatusCode.DEADLINE_EXCEEDED: "temporal_timeout",
    RPCStatusCode.NOT_FOUND: "workflow_not_found",
    RPCStatusCode.ALREADY_EXISTS: "workflow_already_exists",
    RPCStatusCode.RESOURCE_EXHAUSTED: "temporal_overloaded",
    RPCStatusCode.UNAVAILABLE: "temporal_connection_error",
    RPCStatusCode.INVALID_ARGUMENT: "validation_error",
}
_MESSAGES = {
    "temporal_timeout": "Temporal did not answer in time. What was asked may still happen: look before asking again.",
    "temporal_overloaded": "Temporal is at its limit; try again later.",
    "temporal_connection_error": "Temporal cannot be reached now; try again.",
    "temporal_error": "Temporal refused or failed the request; the operators of this service can tell why.",
    "workflow_task_failing": "The workflow cannot answer: its task fails again and again until its code is mended.",
    "shutting_down": "This replica is ending, and Temporal has not answered; ask again, another one will.",
    "payload_too_large": "The data is larger than Temporal takes.",
}
_TOO_LARGE = ("exceeds size limit", "exceeds limit", "larger than max", "too large")


def problem_of(error: RPCError, workflow_id: str | None, run_id: str | None) -> Problem:
    """A failed call as the caller is told of it."""
    code = _CODES.get(error.status, "temporal_error")
    text = error.message.lower()
    if code in ("validation_error", "temporal_overloaded") and any(t in text for t in _TOO_LARGE):
        # A too large message is also reported as RESOURCE_EXHAUSTED.
        code = "payload_too_large" if "size" in text or "message" in text else code
    elif code == "workflow_not_found" and (detail_of(error, NamespaceNotFoundFailure) or workflow_id is None):
        code = "temporal_error"
    elif error.status is RPCStatusCode.FAILED_PRECONDITION and "poller" in text:
        code = "no_worker"
    elif error.status is RPCStatusCode.FAILED_PRECONDITION and "task in failed state" in text:
        code = "workflow_task_failing"
    message = _MESSAGES.get(code, error.message)
    if code == "workflow_not_found":
        message = f"There is no workflow {workflow_id!r}" + (f" with the run {run_id!r}." if run_id else ".")
    elif code == "no_worker":
        message = "No worker is there to answer; start one, or try again."
    if code == "temporal_error":
        log.error("Temporal failed: %s %s", error.status.name, error.message)
    return Problem(code, message, source="temporal", workflow_id=workflow_id, run_id=run_id)


Detail = TypeVar("Detail", bound=Message)


def detail_of(error: RPCError, kind: type[Detail]) -> Detail | None:
    """The detail of that kind, if Temporal gave one."""
    for packed in error.grpc_status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None


def gateway_problem(code: str, workflow_id: str | None) -> Problem:
    """What the gateway itself finds when Temporal does not."""
    return Problem(code, _MESSAGES[code], source="gateway", workflow_id=workflow_id)


def completed_problem(workflow_id: str, run_id: str) -> Problem:
    """For a workflow that is there, but closed."""
    return Problem(
        "workflow_completed", f"The workflow {workflow_id!r} is closed.", workflow_id=workflow_id, run_id=run_id
    )


def start_problem(problem: Problem) -> Problem:
    """What went wrong with a start, in its own words."""
    cause = problem.__cause__
    if problem.code == "workflow_already_exists" and isinstance(cause, RPCError):
        existing = detail_of(cause, WorkflowExecutionAlreadyStartedFailure)
        problem.message = f"The workflow {problem.details['workflow_id']!r} exists already; take another id."
        problem.details["run_id"] = existing.run_id if existing else None
    elif problem.code == "validation_error":
        return Problem("workflow_start_error", f"Temporal refuses this start: {problem.message}", **problem.details)
    return problem


def multi_operation_problem(error: RPCError, workflow_id: str) -> Problem:
    """What went wrong with a start and an update in one call: the one that failed, not the one given up for it."""
    both = detail_of(error, MultiOperationExecutionFailure)
    for position, status in enumerate(both.statuses if both else ()):
        aborted = any(packed.Is(MultiOperationExecutionAborted.DESCRIPTOR) for packed in status.details)
        if status.code and not aborted:
            code = RPCStatusCode(status.code)
            if position == 0 and code is RPCStatusCode.ALREADY_EXISTS:
                message = f"The workflow {workflow_id!r} exists already; take another id."
                return Problem("workflow_already_exists", message, source="temporal", workflow_id=workflow_id)
            if code is RPCStatusCode.INVALID_ARGUMENT:
                message = f"Temporal refuses this start: {status.message}"
                return Problem("workflow_start_error", message, source="temporal", workflow_id=workflow_id)
            return problem_of(RPCError(status.message, code, b""), workflow_id, None)
    return problem_of(error, workflow_id, None)


def failure_kind(failure: Failure) -> tuple[str, Iterable[Payload]]:
    """The failure's type in words, and its details."""
    match failure.WhichOneof("failure_info"):
        case "application_failure_info":
            info = failure.application_failure_info
            return info.type or "ApplicationError", info.details.payloads
        case "timeout_failure_info":
            return "Timeout", failure.timeout_failure_info.last_heartbeat_details.payloads
        case "canceled_failure_info":
            return "Canceled", failure.canceled_failure_info.details.payloads
        case None:
            return "Failure", ()
        case kind:
            return kind.removesuffix("_failure_info").title().replace("_", ""), ()
