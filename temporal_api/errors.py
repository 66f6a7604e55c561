"""What can go wrong and how it is told: one table, one body (RFC 9457).

Everything that fails on purpose raises `Problem(code, message)`; the code decides the status:

    Problem            our own, by the table below
    HTTPException      Litestar's (unknown route, wrong method, too large, bad parameter), put under our codes
    anything else      500 `internal_server_error`; the traceback goes to the log, never to the caller
"""

import logging
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, InternalServerException, NotFoundException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from msgspec import Meta

PROBLEM_JSON = "application/problem+json"

# What belongs to one resource, the resource adds: see `controllers/order_runs.py`.
STATUS = {
    "validation_error": 400,
    "malformed_json": 400,
    "invalid_query": 400,
    "invalid_page_token": 400,
    "workflow_start_error": 400,
    "missing_token": 401,
    "invalid_token": 401,
    "expired_token": 401,
    "insufficient_scope": 403,
    "not_allowed": 403,
    "not_found": 404,
    "workflow_not_found": 404,
    "update_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "workflow_already_exists": 409,
    "workflow_completed": 409,
    "reserved_id": 409,
    "payload_too_large": 413,
    "uri_too_long": 414,
    "unsupported_media_type": 415,
    "idempotency_key_reused": 422,
    "update_rejected": 422,
    "query_failed": 422,
    "temporal_overloaded": 429,
    "header_fields_too_large": 431,
    "internal_server_error": 500,
    "not_supported": 501,
    "search_attributes_missing": 501,
    "temporal_error": 502,
    "payload_undecodable": 502,
    "temporal_connection_error": 503,
    "no_worker": 503,
    "workflow_task_failing": 503,
    "too_many_waits": 503,
    "overloaded": 503,
    "auth_unavailable": 503,
    "shutting_down": 503,
    "temporal_timeout": 504,
}

# Seconds after which another try makes sense (RFC 9110 10.2.3); also what makes a problem `retryable`.
RETRY_AFTER = {
    "temporal_overloaded": 1,
    "temporal_connection_error": 2,
    "no_worker": 5,
    "workflow_task_failing": 10,
    "too_many_waits": 2,
    "overloaded": 2,
    "auth_unavailable": 5,
    "shutting_down": 1,
}

# Litestar's own refusals.
_HTTP_CODES = {
    400: "validation_error",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
}

log = logging.getLogger(__name__)


class FieldError(msgspec.Struct):
    """One thing wrong with the request: where (`items[0].quantity`), and what is expected there."""

    key: str
    message: str


_FIELD_ERRORS = {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}}


class ProblemDetails(msgspec.Struct):
    """The body of every error answer (`application/problem+json`, RFC 9457)."""

    title: str
    status: int
    error: str
    message: str
    details: Annotated[dict[str, Any], Meta(extra_json_schema={"properties": {"errors": _FIELD_ERRORS}})]
    request_id: str | None


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """A failure the caller is told about: a code of the table, what to do about it, and what to act on."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUS[code]
        self.message = message
        self.details = details
        self.headers = dict(headers or {})
        if code in RETRY_AFTER:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER[code]))
            self.details.setdefault("retryable", True)


# msgspec's words for what JSON calls otherwise.
_JSON_WORDS = {"int": "an integer", "float": "a number", "str": "a string", "bool": "a boolean"}
_QUOTED = re.compile(r"`([^`]*)`")


def in_json_words(message: str) -> str:
    """What msgspec says of a value, with no Python name in it."""
    return _QUOTED.sub(lambda m: " or ".join(_JSON_WORDS.get(kind, kind) for kind in m[1].split(" | ")), message)


def invalid(key: str, message: str) -> Problem:
    """A 400 for one wrong field; `key` is its path in the body, or the parameter's name."""
    return Problem("validation_error", f"{key}: {message}" if key else message, errors=[FieldError(key, message)])


def body(problem: Problem, request_id: str | None) -> bytes:
    """The one error body, encoded."""
    details = {k: v for k, v in problem.details.items() if v not in (None, "")}
    return msgspec.json.encode(
        ProblemDetails(
            HTTPStatus(problem.status).phrase, problem.status, problem.code, problem.message, details, request_id
        )
    )


def _response(request: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    return Response(
        body(problem, request.scope.get("request_id")),  # type: ignore[arg-type]
        status_code=problem.status,
        media_type=PROBLEM_JSON,
        headers=problem.headers,
    )


def on_problem(request: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    """Answer one of our own failures."""
    return _response(request, problem)


def allow(methods: Iterable[str]) -> dict[str, str]:
    """The header that lists what is possible (RFC 9110 10.2.1): where GET is, `observe` makes HEAD of it."""
    return {"Allow": ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))}


def on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Put Litestar's own refusals under our codes."""
    if isinstance(error, InternalServerException) and "disconnect" in error.detail:
        request.scope["gone"] = True  # type: ignore[typeddict-unknown-key] # nobody's defect, and nobody reads this
        return _response(request, internal())
    code = _HTTP_CODES.get(error.status_code)
    if code is None:
        return on_exception(request, error)
    message, headers = error.detail, error.headers or {}
    if code == "validation_error" and isinstance(error.extra, list) and error.extra:
        first = error.extra[0]  # msgspec stops at the first
        if first["key"] == "data":  # Litestar's name for a body that is not there
            return _response(request, invalid("", "Expected a JSON body; there is none."))
        return _response(request, invalid(first["key"], in_json_words(first["message"])))
    if code == "not_found":
        message = f"There is nothing at {request.scope['path']}. /openapi.json lists every path."
    elif code == "method_not_allowed":
        message = f"{request.method} is not possible here; the Allow header lists what is."
        headers = allow(headers["allow"].split(", "))
    elif code == "payload_too_large":
        message = "The body is larger than this service takes."
    return _response(request, Problem(code, message, headers))


def on_no_file(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """There can be no file of that name."""
    return on_http_exception(request, NotFoundException())


def on_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer a defect: 500 to the caller, the traceback to the log."""
    log.error(
        "unhandled exception",
        exc_info=error,
        extra={"fields": {"request_id": request.scope.get("request_id"), "path": request.scope["path"]}},
    )
    return _response(request, internal())


def internal() -> Problem:
    """The only thing a caller learns of a defect."""
    return Problem("internal_server_error", "The service failed. Quote the request_id when you report this.")


EXCEPTION_HANDLERS: Any = {Problem: on_problem, HTTPException: on_http_exception, Exception: on_exception}

_EVERY_OPERATION = (
    "validation_error",
    "missing_token",
    "invalid_token",
    "expired_token",
    "insufficient_scope",
    "temporal_overloaded",
    "internal_server_error",
    "temporal_error",
    "temporal_connection_error",
    "auth_unavailable",
    "temporal_timeout",
)
_EVERY_BODY = ("malformed_json", "payload_too_large", "unsupported_media_type")


def responses(*codes: str, body: bool = False) -> dict[int, ResponseSpec]:
    """For OpenAPI: every error an operation under /api/v1 can answer; `codes` are those of its own."""
    return _specs((*_EVERY_OPERATION, *(_EVERY_BODY if body else ()), *codes))


def _specs(codes: Iterable[str]) -> dict[int, ResponseSpec]:
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS[code], []).append(code)
    return {
        status: ResponseSpec(
            ProblemDetails,
            description=f"{HTTPStatus(status).phrase}: " + ", ".join(f"`{c}`" for c in sorted(by_status[status])),
            media_type=PROBLEM_JSON,
            generate_examples=False,
            examples=[_example(code) for code in sorted(by_status[status])],
        )
        for status in sorted(by_status)
    }


def _example(code: str) -> Example:
    problem = Problem(code, code.replace("_", " ").capitalize() + ".")
    return Example(id=code, value=msgspec.json.decode(body(problem, "5bc187c43e794a7eb10e091afa264f8c")))
