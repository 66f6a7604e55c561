"""What can go wrong: one class per failure, with the code and the status that the caller is told.

Whatever fails on purpose raises a Problem. A class's docstring is the message when there is nothing more exact to say.
Catch the class, or the class above it: `NotFound` is every 404, `Unavailable` every 503. A resource adds its own from
its declaration (`order_not_found`, `order_not_cancellable`). `problems` tells them to the caller.
"""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import msgspec


class FieldError(msgspec.Struct):
    """One thing wrong with the request: where (`items[0].quantity`), and what is expected there."""

    key: str
    message: str


class Problem(Exception):
    """A failure that the caller is told about."""

    code: ClassVar[str]
    status: ClassVar[int]
    retry_after: ClassVar[int | None] = None
    """Seconds after which another try makes sense (RFC 9110 10.2.3)."""

    def __init_subclass__(cls, code: str = "", status: int = 0, retry_after: int | None = None) -> None:
        """Give a class what it does not inherit."""
        if code:
            cls.code = code
        if status:
            cls.status = status
        if retry_after is not None:
            cls.retry_after = retry_after

    def __init__(self, message: str | None = None, headers: Mapping[str, str] | None = None, **details: Any) -> None:
        """Without a message the class's docstring is told. `details` are what a program can act on."""
        self.message = message or type(self).__doc__ or self.code
        super().__init__(self.message)
        self.details = {name: value for name, value in details.items() if value not in (None, "")}
        self.headers = dict(headers or {})
        if self.retry_after is not None:
            self.headers.setdefault("Retry-After", str(self.retry_after))
            self.details.setdefault("retryable", True)

    def adding(self, hint: str = "", headers: Mapping[str, str] | None = None, **details: Any) -> Self:
        """The same failure with more to act on; what it says already stays."""
        more = copy.copy(self)
        more.message = f"{self.message} {hint}".rstrip()
        more.headers = {**(headers or {}), **self.headers}
        more.details = {**details, **self.details}
        return more


class ValidationError(Problem, code="validation_error", status=400):
    """The request is not as expected; `details.errors` says where and what is expected there."""


class MalformedJSON(ValidationError, code="malformed_json"):
    """The body is not JSON."""


class InvalidQuery(ValidationError, code="invalid_query"):
    """Temporal cannot search by these filters."""


class InvalidPageToken(ValidationError, code="invalid_page_token"):
    """This page token was not given for this listing: send it unchanged, with the same parameters."""


class WorkflowStartError(ValidationError, code="workflow_start_error"):
    """Temporal refuses this start."""


class SearchAttributeUnknown(WorkflowStartError):
    """The namespace does not have a search attribute that the start sets."""


class Unauthorized(Problem, status=401):
    """The request needs a token. The `WWW-Authenticate` header says what is wrong (RFC 6750)."""

    challenge: ClassVar[str | None] = "invalid_token"
    """RFC 6750 3.1: no error is named when the request carried no token at all."""

    def __init__(self, message: str | None = None) -> None:
        """Say in the header too what is wrong."""
        super().__init__(message)
        value = 'Bearer realm="temporal_api"'
        if self.challenge:
            value += f', error="{self.challenge}", error_description="{self.message}"'
        self.headers["WWW-Authenticate"] = value


class MissingToken(Unauthorized, code="missing_token"):
    """Send a token: Authorization: Bearer TOKEN."""

    challenge = None


class InvalidToken(Unauthorized, code="invalid_token"):
    """The token is not accepted."""


class ExpiredToken(Unauthorized, code="expired_token"):
    """The token has expired; get a new one."""


class InsufficientScope(Problem, code="insufficient_scope", status=403):
    """The token lacks a scope that this needs; the `WWW-Authenticate` header names it."""

    def __init__(self, message: str, scope: str = "") -> None:
        """Name the scope that would do."""
        challenge = f'Bearer realm="temporal_api", error="insufficient_scope", scope="{scope}"'
        super().__init__(message, {"WWW-Authenticate": challenge})


class NotAllowed(Problem, code="not_allowed", status=403):
    """The operators of this service do not allow this."""


class NotFound(Problem, code="not_found", status=404):
    """There is nothing here."""


class WorkflowNotFound(NotFound, code="workflow_not_found"):
    """There is no such workflow, or none that you may see."""


class UpdateNotFound(NotFound, code="update_not_found"):
    """The workflow has no such update; a rejected update is not kept."""


class MethodNotAllowed(Problem, code="method_not_allowed", status=405):
    """This method is not possible here; the `Allow` header lists those that are."""


class Conflict(Problem, status=409):
    """The state of the thing does not allow this."""


class WorkflowAlreadyExists(Conflict, code="workflow_already_exists"):
    """The workflow exists already; take another id."""


class WorkflowCompleted(Conflict, code="workflow_completed"):
    """The workflow is closed."""


class ReservedId(Conflict, code="reserved_id"):
    """Ids that begin like this belong to a resource of its own; take another."""


class PayloadTooLarge(Problem, code="payload_too_large", status=413):
    """The data is larger than Temporal or this service takes."""


class UnsupportedMediaType(Problem, code="unsupported_media_type", status=415):
    """Send JSON, with Content-Type: application/json."""


class IdempotencyKeyReused(Problem, code="idempotency_key_reused", status=422):
    """This Idempotency-Key came with another body before; take a new key for this one."""


class UpdateRejected(Problem, code="update_rejected", status=422):
    """The workflow rejected the update, or failed at it."""


class QueryFailed(Problem, code="query_failed", status=422):
    """The workflow does not know the query, or failed at it."""


class TemporalOverloaded(Problem, code="temporal_overloaded", status=429, retry_after=1):
    """Temporal is at its limit; try again later."""


class InternalServerError(Problem, code="internal_server_error", status=500):
    """The service failed. Quote the request_id when you report this."""


class SearchAttributesMissing(Problem, code="search_attributes_missing", status=501):
    """The namespace lacks the search attributes of this resource: its operators run temporal-api setup."""


class TemporalError(Problem, code="temporal_error", status=502):
    """Temporal refused or failed the request; the operators of this service can tell why."""


class PayloadUndecodable(Problem, code="payload_undecodable", status=502):
    """What Temporal keeps here cannot be decrypted."""


class Unavailable(Problem, status=503):
    """Not now; try again after `Retry-After` seconds."""


class TemporalConnectionError(Unavailable, code="temporal_connection_error", retry_after=2):
    """Temporal cannot be reached now; try again."""


class NoWorker(Unavailable, code="no_worker", retry_after=5):
    """No worker is there to answer; start one, or try again."""


class WorkflowTaskFailing(Unavailable, code="workflow_task_failing", retry_after=10):
    """The workflow cannot answer: its task fails again and again until its code is fixed."""


class TooManyWaits(Unavailable, code="too_many_waits", retry_after=2):
    """Too many callers wait here; try again, or ask without waiting."""


class Overloaded(Unavailable, code="overloaded", retry_after=1):
    """The service has as much to do as it can; try again."""


class AuthUnavailable(Unavailable, code="auth_unavailable", retry_after=5):
    """The keys that tokens are checked with cannot be fetched now; try again."""


class ShuttingDown(Unavailable, code="shutting_down", retry_after=1):
    """This replica is shutting down; ask again, another one will answer."""


class TemporalTimeout(Problem, code="temporal_timeout", status=504):
    """Temporal did not answer in time. What was asked may still happen: look before asking again."""


TEMPORAL_AWAY = (TemporalTimeout, TemporalConnectionError, TemporalOverloaded)
"""How a call fails that may work when it is made again."""


def invalid(key: str, message: str) -> ValidationError:
    """A 400 for one wrong field; `key` is its path in the body, or the parameter's name."""
    return ValidationError(f"{key}: {message}" if key else message, errors=[FieldError(key, message)])
