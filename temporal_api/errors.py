"""What can go wrong: one class per failure.

Whatever fails on purpose raises a Problem. Its class has the code and the status; its docstring is what the caller is
told when there is nothing more exact to say:

    Problem
      ValidationError                400  validation_error
        MalformedJSON                     malformed_json
        InvalidQuery                      invalid_query
        InvalidPageToken                  invalid_page_token
        WorkflowStartError                workflow_start_error
          SearchAttributeUnknown
      Unauthorized                   401
        MissingToken                      missing_token
        InvalidToken                      invalid_token
        ExpiredToken                      expired_token
      InsufficientScope              403  insufficient_scope
      NotAllowed                     403  not_allowed
      NotFound                       404  not_found
        WorkflowNotFound                  workflow_not_found
        UpdateNotFound                    update_not_found
        (a resource's own)                order_not_found
      MethodNotAllowed               405  method_not_allowed
      Conflict                       409
        WorkflowAlreadyExists             workflow_already_exists
        WorkflowCompleted                 workflow_completed
        ReservedId                        reserved_id
        (a resource's own)                order_not_cancellable
      PayloadTooLarge                413  payload_too_large
      UnsupportedMediaType           415  unsupported_media_type
      IdempotencyKeyReused           422  idempotency_key_reused
      UpdateRejected                 422  update_rejected
      QueryFailed                    422  query_failed
      TemporalOverloaded             429  temporal_overloaded
      InternalServerError            500  internal_server_error
      SearchAttributesMissing        501  search_attributes_missing
      TemporalError                  502  temporal_error
      PayloadUndecodable             502  payload_undecodable
      Unavailable                    503
        TemporalConnectionError           temporal_connection_error
        NoWorker                          no_worker
        WorkflowTaskFailing               workflow_task_failing
        TooManyWaits                      too_many_waits
        AuthUnavailable                   auth_unavailable
        ShuttingDown                      shutting_down
      TemporalTimeout                504  temporal_timeout

`problems` tells them to the caller.
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


class ValidationError(Problem):
    """The request is not as expected; `details.errors` says where and what is expected there."""

    code = "validation_error"
    status = 400


class MalformedJSON(ValidationError):
    """The body is not JSON."""

    code = "malformed_json"


class InvalidQuery(ValidationError):
    """Temporal cannot search by these filters."""

    code = "invalid_query"


class InvalidPageToken(ValidationError):
    """This page token was not given for this listing: send it unchanged, with the same parameters."""

    code = "invalid_page_token"


class WorkflowStartError(ValidationError):
    """Temporal refuses this start."""

    code = "workflow_start_error"


class SearchAttributeUnknown(WorkflowStartError):
    """The namespace does not have a search attribute that the start sets."""


class Unauthorized(Problem):
    """The request needs a token. The `WWW-Authenticate` header says what is wrong (RFC 6750)."""

    status = 401
    challenge: ClassVar[str | None] = "invalid_token"
    """RFC 6750 3.1: no error is named when the request carried no token at all."""

    def __init__(self, message: str | None = None) -> None:
        """Say in the header too what is wrong."""
        super().__init__(message)
        value = 'Bearer realm="temporal_api"'
        if self.challenge:
            value += f', error="{self.challenge}", error_description="{self.message}"'
        self.headers["WWW-Authenticate"] = value


class MissingToken(Unauthorized):
    """Send a token: Authorization: Bearer TOKEN."""

    code = "missing_token"
    challenge = None


class InvalidToken(Unauthorized):
    """The token is not accepted."""

    code = "invalid_token"


class ExpiredToken(Unauthorized):
    """The token has expired; get a new one."""

    code = "expired_token"


class InsufficientScope(Problem):
    """The token lacks a scope that this needs; the `WWW-Authenticate` header names it."""

    code = "insufficient_scope"
    status = 403

    def __init__(self, message: str, scope: str = "") -> None:
        """Name the scope that would do."""
        challenge = f'Bearer realm="temporal_api", error="insufficient_scope", scope="{scope}"'
        super().__init__(message, {"WWW-Authenticate": challenge})


class NotAllowed(Problem):
    """The operators of this service do not allow this."""

    code = "not_allowed"
    status = 403


class NotFound(Problem):
    """There is nothing here."""

    code = "not_found"
    status = 404


class WorkflowNotFound(NotFound):
    """There is no such workflow, or none that you may see."""

    code = "workflow_not_found"


class UpdateNotFound(NotFound):
    """The workflow has no such update; a rejected update is not kept."""

    code = "update_not_found"


class MethodNotAllowed(Problem):
    """This method is not possible here; the `Allow` header lists those that are."""

    code = "method_not_allowed"
    status = 405


class Conflict(Problem):
    """The state of the thing does not allow this."""

    status = 409


class WorkflowAlreadyExists(Conflict):
    """The workflow exists already; take another id."""

    code = "workflow_already_exists"


class WorkflowCompleted(Conflict):
    """The workflow is closed."""

    code = "workflow_completed"


class ReservedId(Conflict):
    """Ids that begin like this belong to a resource of its own; take another."""

    code = "reserved_id"


class PayloadTooLarge(Problem):
    """The data is larger than Temporal or this service takes."""

    code = "payload_too_large"
    status = 413


class UnsupportedMediaType(Problem):
    """Send JSON, with Content-Type: application/json."""

    code = "unsupported_media_type"
    status = 415


class IdempotencyKeyReused(Problem):
    """This Idempotency-Key came with another body before; take a new key for this one."""

    code = "idempotency_key_reused"
    status = 422


class UpdateRejected(Problem):
    """The workflow rejected the update, or failed at it."""

    code = "update_rejected"
    status = 422


class QueryFailed(Problem):
    """The workflow does not know the query, or failed at it."""

    code = "query_failed"
    status = 422


class TemporalOverloaded(Problem):
    """Temporal is at its limit; try again later."""

    code = "temporal_overloaded"
    status = 429
    retry_after = 1


class InternalServerError(Problem):
    """The service failed. Quote the request_id when you report this."""

    code = "internal_server_error"
    status = 500


class SearchAttributesMissing(Problem):
    """The namespace lacks the search attributes of this resource: its operators run temporal-api setup."""

    code = "search_attributes_missing"
    status = 501


class TemporalError(Problem):
    """Temporal refused or failed the request; the operators of this service can tell why."""

    code = "temporal_error"
    status = 502


class PayloadUndecodable(Problem):
    """What Temporal keeps here cannot be decrypted."""

    code = "payload_undecodable"
    status = 502


class Unavailable(Problem):
    """Not now; try again after `Retry-After` seconds."""

    status = 503


class TemporalConnectionError(Unavailable):
    """Temporal cannot be reached now; try again."""

    code = "temporal_connection_error"
    retry_after = 2


class NoWorker(Unavailable):
    """No worker is there to answer; start one, or try again."""

    code = "no_worker"
    retry_after = 5


class WorkflowTaskFailing(Unavailable):
    """The workflow cannot answer: its task fails again and again until its code is fixed."""

    code = "workflow_task_failing"
    retry_after = 10


class TooManyWaits(Unavailable):
    """Too many callers wait here; try again, or ask without waiting."""

    code = "too_many_waits"
    retry_after = 2


class AuthUnavailable(Unavailable):
    """The keys that tokens are checked with cannot be fetched now; try again."""

    code = "auth_unavailable"
    retry_after = 5


class ShuttingDown(Unavailable):
    """This replica is shutting down; ask again, another one will answer."""

    code = "shutting_down"
    retry_after = 1


class TemporalTimeout(Problem):
    """Temporal did not answer in time. What was asked may still happen: look before asking again."""

    code = "temporal_timeout"
    status = 504


TEMPORAL_AWAY = (TemporalTimeout, TemporalConnectionError, TemporalOverloaded)
"""How a call fails that may work when it is made again."""


def invalid(key: str, message: str) -> ValidationError:
    """A 400 for one wrong field; `key` is its path in the body, or the parameter's name."""
    return ValidationError(f"{key}: {message}" if key else message, errors=[FieldError(key, message)])
