"""Everything that can go wrong: one class for each failure, with its code and status.

Code raises a Problem, and `problems` answers it. The class's docstring is the default message, and the explanation at
`/problems`: its first sentence says what the error means, the others what to do. Catch a class or its base: `NotFound`
is every 404, `Unavailable` every 503. A resource adds classes of its own (`order_not_found`, `order_not_cancellable`).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

LONGEST_ECHO = 200
_LONGEST_MESSAGE = 500


def shown(text: str, most: int = LONGEST_ECHO) -> str:
    """Shorten what a caller sent, to quote it in an answer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def quoted(value: object) -> str:
    """Quote what a caller sent for the log: on one line, shortened."""
    return shown(ascii(value))


class FieldError(msgspec.Struct):
    """One mistake in a request: where it is (`items[0].quantity`) and what is expected there."""

    key: Annotated[str, Meta(description="Where it is, such as `items[0].quantity`; empty: the body itself.")]
    message: Annotated[str, Meta(description="What is expected there.")]


class Problem(Exception):
    """A failure that is answered to the caller."""

    code: ClassVar[str]
    status: ClassVar[int]
    retry_after: ClassVar[int] = 0
    """Seconds until the caller may try again (RFC 9110 10.2.3); 0: trying again does not help."""

    def __init_subclass__(cls, code: str = "", status: int = 0, retry_after: int = 0) -> None:
        for name, value in (("code", code), ("status", status), ("retry_after", retry_after)):
            if value:
                setattr(cls, name, value)

    def __init__(self, message: str | None = None, headers: Mapping[str, str] | None = None, **details: Any) -> None:
        """`message` defaults to the class's docstring; `details` are values that a program can act on."""
        self.message = shown(message or type(self).__doc__ or self.code, _LONGEST_MESSAGE)
        super().__init__(self.message)
        self.details = {name: value for name, value in details.items() if value not in (None, "")}
        self.headers = dict(headers or {})
        if self.retry_after:
            self.headers.setdefault("Retry-After", str(self.retry_after))
            self.details.setdefault("retryable", True)

    def adding(self, hint: str = "", headers: Mapping[str, str] | None = None, **details: Any) -> Self:
        """Copy the failure, with a hint, headers and details added. Its own headers and details stay."""
        more = copy.copy(self)
        more.message = f"{self.message} {hint}".rstrip()
        more.headers = {**(headers or {}), **self.headers}
        more.details = {**details, **self.details}
        return more


class ValidationError(Problem, code="validation_error", status=400):
    """The request is not valid. Correct the fields that `details.errors` lists."""


class MalformedJSON(ValidationError, code="malformed_json"):
    """The body is not JSON. Send valid JSON in UTF-8."""


class InvalidQuery(ValidationError, code="invalid_query"):
    """Temporal cannot search with these filters. Check the names and types of the search attributes."""


class InvalidPageToken(ValidationError, code="invalid_page_token"):
    """The page token is not from this listing. Send it with the same parameters, or start again without one."""


class WorkflowStartError(ValidationError, code="workflow_start_error"):
    """Temporal refuses to start this workflow. Correct the request."""


class SearchAttributeUnknown(WorkflowStartError):
    """The namespace lacks a search attribute that the start sets. Add it, or leave it out."""


class Unauthorized(Problem, status=401):
    """The request needs a valid token. The `WWW-Authenticate` header says what is wrong (RFC 6750)."""

    challenge: ClassVar[str | None] = "invalid_token"
    """The `error` of the challenge. A request without a token gets none (RFC 6750 3.1)."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message)
        value = 'Bearer realm="temporal_api"'
        if self.challenge:
            value += f', error="{self.challenge}", error_description="{self.message}"'
        self.headers["WWW-Authenticate"] = value


class MissingToken(Unauthorized, code="missing_token"):
    """The request has no token. Send one: Authorization: Bearer TOKEN."""

    challenge = None


class InvalidToken(Unauthorized, code="invalid_token"):
    """The token is not accepted. Get a new one."""


class ExpiredToken(Unauthorized, code="expired_token"):
    """The token has expired. Get a new one."""


class InsufficientScope(Problem, code="insufficient_scope", status=403):
    """The token lacks a scope. Get one with the scope that the `WWW-Authenticate` header names."""

    def __init__(self, message: str, scope: str = "") -> None:
        challenge = f'Bearer realm="temporal_api", error="insufficient_scope", scope="{scope}"'
        super().__init__(message, {"WWW-Authenticate": challenge})


class NotAllowed(Problem, code="not_allowed", status=403):
    """The service's settings do not allow this. Ask its operators."""


class OriginNotAllowed(Problem, code="origin_not_allowed", status=403):
    """Pages of this origin may not call this service. Ask its operators to name it in ALLOWED_ORIGINS."""


class NotFound(Problem, code="not_found", status=404):
    """There is nothing here. Check the path: /openapi.json lists every one."""


class WorkflowNotFound(NotFound, code="workflow_not_found"):
    """There is no such workflow, or you may not see it. Check its id."""


class UpdateNotFound(NotFound, code="update_not_found"):
    """The workflow has no such update. Check its id; a rejected update is not kept."""


class MethodNotAllowed(Problem, code="method_not_allowed", status=405):
    """This path does not take this method. Use one that the `Allow` header lists."""


class Conflict(Problem, status=409):
    """The current state does not allow this. Read it again."""


class WorkflowAlreadyExists(Conflict, code="workflow_already_exists"):
    """The workflow exists already. Choose another id."""


class WorkflowCompleted(Conflict, code="workflow_completed"):
    """The workflow is closed and takes no more requests. Read its result."""


class WorkflowPaused(Conflict, code="workflow_paused"):
    """The workflow is paused, so its code answers nothing. Ask again when it is unpaused."""


class ReservedId(Conflict, code="reserved_id"):
    """Ids that begin like this are reserved for a resource of the API. Choose another id."""


class RequestTimeout(Problem, code="request_timeout", status=408):
    """The request did not arrive in time. Send it again, without pauses."""


class PreconditionFailed(Problem, code="precondition_failed", status=412):
    """The state is not the one that `If-Match` names: it has changed. Read it again."""


class PayloadTooLarge(Problem, code="payload_too_large", status=413):
    """The data is larger than Temporal or this service takes. Send less."""


class UriTooLong(Problem, code="uri_too_long", status=414):
    """The request line is too long. Send long values in the body."""


class UnsupportedMediaType(Problem, code="unsupported_media_type", status=415):
    """The body is not sent as JSON. Send JSON, with Content-Type: application/json."""


class HeaderFieldsTooLarge(Problem, code="header_fields_too_large", status=431):
    """The header fields are too many or too long. Send fewer or shorter ones."""


class IdempotencyKeyReused(Problem, code="idempotency_key_reused", status=422):
    """This Idempotency-Key was sent with another body before. Use a new key for this body."""


class UpdateRejected(Problem, code="update_rejected", status=422):
    """The workflow rejected the update, or its handler failed. Read `details.failure`."""


class QueryFailed(Problem, code="query_failed", status=422):
    """The workflow does not know the query, or its handler failed. Check the name and the arguments."""


class TemporalOverloaded(Problem, code="temporal_overloaded", status=429, retry_after=1):
    """Temporal is at its limit. Try again later."""


class InternalServerError(Problem, code="internal_server_error", status=500):
    """The service failed. Quote the request_id when you report this."""


class SearchAttributesMissing(Problem, code="search_attributes_missing", status=501):
    """The namespace lacks the search attributes of this resource. Ask its operators to run temporal-api setup."""


class NotSupported(Problem, code="not_supported", status=501):
    """This service or its Temporal server does not support this. Ask its operators."""


class TemporalError(Problem, code="temporal_error", status=502):
    """Temporal refused the request or failed. Ask the service's operators."""


class PayloadUndecodable(Problem, code="payload_undecodable", status=502):
    """Data that Temporal keeps cannot be decrypted. Ask the service's operators for its key."""


class Unavailable(Problem, status=503):
    """This is not possible now. Try again after `Retry-After` seconds."""


class TemporalConnectionError(Unavailable, code="temporal_connection_error", retry_after=2):
    """Temporal cannot be reached. Try again."""


class NoWorker(Unavailable, code="no_worker", retry_after=5):
    """No worker answers. Start one, or try again."""


class WorkflowTaskFailing(Unavailable, code="workflow_task_failing", retry_after=10):
    """The workflow cannot answer: its code fails again and again. Fix it, then try again."""


class TooManyWaits(Unavailable, code="too_many_waits", retry_after=2):
    """Too many callers wait here. Try again, or ask without waiting."""


class Overloaded(Unavailable, code="overloaded", retry_after=1):
    """The service is at its limit. Try again after `Retry-After` seconds."""


class AuthUnavailable(Unavailable, code="auth_unavailable", retry_after=5):
    """The keys that verify tokens cannot be fetched. Try again."""


class ShuttingDown(Unavailable, code="shutting_down", retry_after=1):
    """This replica is shutting down. Ask again, and another one will answer."""


class TemporalTimeout(Problem, code="temporal_timeout", status=504):
    """Temporal did not answer in time. The request may still take effect. Check that before you send it again."""


EVERY: list[type[Problem]] = [kind for kind in list(globals().values()) if "code" in getattr(kind, "__dict__", ())]
"""The classes with a code of their own."""
TEMPORAL_AWAY = (TemporalTimeout, TemporalConnectionError, TemporalOverloaded)
"""Failures of calls that may succeed when repeated."""


def invalid(key: str, message: str) -> ValidationError:
    """Make the error about one field. `key` is its path in the body, or the parameter's name."""
    return invalid_fields([FieldError(shown(key), message)])


def invalid_fields(mistakes: Sequence[FieldError]) -> ValidationError:
    """Make the error about one or more fields."""
    first, more = mistakes[0], len(mistakes) - 1
    message = f"{first.key}: {first.message}" if first.key else first.message
    if more:
        message = f"{message.rstrip('.')}. {more} more mistake{'s' * (more > 1)}: see details.errors."
    return ValidationError(message, errors=mistakes)
