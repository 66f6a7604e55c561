"""Temporal's failures: a failed call becomes a Problem; a run's failure is shown without its stack trace."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from google.protobuf.message import Message
from msgspec import Meta
from temporalio.api.common.v1 import Payload
from temporalio.api.errordetails import v1 as errordetails
from temporalio.api.failure.v1 import Failure, MultiOperationExecutionAborted
from temporalio.service import RPCError
from temporalio.service import RPCStatusCode as Code

from temporal_api import errors
from temporal_api.errors import Problem, shown
from temporal_api.temporal.access import AccessDeniedError, cause

Detail = TypeVar("Detail", bound=Message)

log = logging.getLogger(__name__)


class FailureInfo(msgspec.Struct, omit_defaults=True):
    """Why a run failed: Temporal's failure without its stack trace."""

    type: Annotated[
        str, Meta(description="The failure's type: the application's own, or Temporal's, such as `Timeout`.")
    ]
    message: Annotated[str, Meta(description="The failure's message.")]
    details: Annotated[list[msgspec.Raw], Meta(description="The details that the code added: any JSON.")] = []
    cause: Annotated["FailureInfo | None", Meta(description="The failure that caused it.")] = None


class Subject(msgspec.Struct, frozen=True):
    """What a call is about, and the Problems for when it is missing, exists already, or the request is invalid."""

    name: str = ""
    missing: type[Problem] = errors.TemporalError
    exists: type[Problem] = errors.TemporalError
    invalid: type[Problem] = errors.ValidationError
    invalid_intro: str = ""
    details: Mapping[str, Any] = {}


NOTHING = Subject()


def workflow_subject(workflow_id: str, run_id: str = "") -> Subject:
    """A workflow, or one run of it."""
    return Subject(
        f"workflow {shown(workflow_id)!r}" + (f" with the run {run_id!r}" if run_id else ""),
        missing=errors.WorkflowNotFound,
        details={"workflow_id": workflow_id, "run_id": run_id},
    )


def start_subject(workflow_id: str) -> Subject:
    """A workflow to start. It may close or vanish before the update sent with the start reaches it: hence `missing`."""
    return Subject(
        f"workflow {shown(workflow_id)!r}",
        missing=errors.WorkflowNotFound,
        exists=errors.WorkflowAlreadyExists,
        invalid=errors.WorkflowStartError,
        invalid_intro="Temporal refuses this start: ",
        details={"workflow_id": workflow_id, "run_id": ""},
    )


# For these, the class's own message is clearer than Temporal's.
_BY_STATUS: dict[Code, type[Problem]] = {
    Code.CANCELLED: errors.TemporalTimeout,  # how the SDK reports some deadlines
    Code.DEADLINE_EXCEEDED: errors.TemporalTimeout,
    Code.RESOURCE_EXHAUSTED: errors.TemporalOverloaded,
    Code.UNAVAILABLE: errors.TemporalConnectionError,
}
_PASSING = {Code.UNAVAILABLE, Code.UNKNOWN, Code.INTERNAL, Code.ABORTED, Code.OUT_OF_RANGE, Code.DATA_LOSS}
# The SDK has no status of its own for a connection that broke during a call.
_OF_CALLS_CUT_OFF = {Code.UNKNOWN, Code.INTERNAL, Code.CANCELLED, Code.DATA_LOSS, Code.RESOURCE_EXHAUSTED}
_CUT_OFF = re.compile(
    r"transport error|h2 protocol error|operation was canceled|error reading a body|broken pipe|channel closed"
    r"|unexpected eof|connection (was )?(error|reset|closed|refused|aborted|lost|not ready)"
    r"|response with status: 50[234]"  # a proxy between here and Temporal
)
_TOO_LARGE = re.compile("exceeds (size )?limit|larger than max|too large")


def is_overload(error: RPCError) -> bool:
    """Whether a rate limit of Temporal was reached."""
    return error.status is Code.RESOURCE_EXHAUSTED and not _is_too_large(error.message.lower())


def is_namespace_missing(error: RPCError) -> bool:
    """Whether Temporal says that the namespace does not exist. It also says so when its own lookup timed out."""
    return error.status is Code.NOT_FOUND and bool(detail_of(error, errordetails.NamespaceNotFoundFailure))


def is_passing(error: RPCError) -> bool:
    """Whether the same call may succeed in a moment."""
    return error.status in _PASSING or _is_cut_off(error)


def _is_cut_off(error: RPCError) -> bool:
    return error.status in _OF_CALLS_CUT_OFF and _CUT_OFF.search(error.message.lower()) is not None


def problem_of(error: RPCError | RuntimeError, subject: Subject = NOTHING) -> Problem:
    """The Problem for a failed call. A RuntimeError means that no connection could be made."""
    if isinstance(error, RuntimeError):
        if "code: ResourceExhausted" in str(error):
            return errors.TemporalOverloaded(source="temporal", **subject.details)
        log.warning("Temporal cannot be reached: %s", cause(error))
        return errors.TemporalConnectionError(source="gateway", **subject.details)
    error = _decisive(error)
    details: dict[str, Any] = {"source": "temporal", **subject.details}
    text = error.message.lower()
    match error.status:
        case Code.INVALID_ARGUMENT | Code.RESOURCE_EXHAUSTED if _is_too_large(text):
            return errors.PayloadTooLarge("The data is larger than Temporal takes.", **details)
        case Code.INVALID_ARGUMENT if detail_of(error, errordetails.QueryFailedFailure) is not None:
            # All that Temporal (1.29) passes on of an encrypted failure is "Encoded failure".
            hidden = "The workflow refused the query. The reason is encrypted: only the worker's log tells it."
            why = hidden if error.message == "Encoded failure" else error.message
            return errors.QueryFailed(why, **{**details, "source": "workflow"})
        case Code.INVALID_ARGUMENT:
            kind = subject.invalid
            if kind is errors.WorkflowStartError and "search attribute" in text:
                kind = errors.SearchAttributeUnknown
            return kind(subject.invalid_intro + _without_internals(error.message), **details)
        case Code.NOT_FOUND if not is_namespace_missing(error):
            if subject.missing is not errors.TemporalError:
                return subject.missing(f"There is no {subject.name}.", **details)
        case Code.ALREADY_EXISTS if subject.exists is not errors.TemporalError:
            existing = detail_of(error, errordetails.WorkflowExecutionAlreadyStartedFailure)
            if existing and "run_id" in details:  # not for a schedule's run, which callers cannot see
                details["run_id"] = existing.run_id
            return subject.exists(f"The {subject.name} exists already; take another id.", **details)
        case Code.FAILED_PRECONDITION if "poller" in text:
            return errors.NoWorker(**details)
        case Code.FAILED_PRECONDITION if "task in failed state" in text:
            return errors.WorkflowTaskFailing(**details)
        case Code.FAILED_PRECONDITION if "paused" in text:
            return errors.WorkflowPaused(**details)
        case Code.FAILED_PRECONDITION if "not present in task queue" in text:  # a version
            return subject.invalid(subject.invalid_intro + error.message, **details)
        case Code.UNIMPLEMENTED:
            return errors.NotSupported("This Temporal server cannot do this, or it is switched off there.", **details)
    by_status = _BY_STATUS.get(error.status, errors.TemporalError)
    kind = errors.TemporalConnectionError if _is_cut_off(error) else by_status
    if kind is errors.TemporalError:
        denied = cause(error)
        told = denied if isinstance(denied, AccessDeniedError) else f"{error.status.name} {error.message}"
        log.error("Temporal failed: %s", told)
    elif kind is errors.TemporalConnectionError:
        log.warning("Temporal cannot be reached: %s", cause(error))
    return kind(**details)


def _decisive(error: RPCError) -> RPCError:
    """For a start and an update in one call: the failure of the one that failed, not of the one that was aborted."""
    both = detail_of(error, errordetails.MultiOperationExecutionFailure)
    for status in both.statuses if both else ():
        given_up = any(packed.Is(MultiOperationExecutionAborted.DESCRIPTOR) for packed in status.details)
        if status.code and not given_up:
            return RPCError(status.message, Code(status.code), status.SerializeToString())
    return error


def _is_too_large(text: str) -> bool:
    """Whether a message was too large: Temporal reports this as RESOURCE_EXHAUSTED too."""
    return _TOO_LARGE.search(text) is not None and ("size" in text or "message" in text)


def _without_internals(message: str) -> str:
    if "StateRebuilder" in message:  # of a reset
        return "the event is no boundary of a workflow task"
    return message.removeprefix("invalid query: ").replace("*sqlparser.", "").replace("sqlparser.", "")


def detail_of(error: RPCError, kind: type[Detail]) -> Detail | None:
    """The detail of that kind, if Temporal gave one."""
    for packed in error.grpc_status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None


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
