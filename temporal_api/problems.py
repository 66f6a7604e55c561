"""How failures are told to the caller: one body (RFC 9457), for our own errors, for Litestar's and for defects."""

import logging
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, InternalServerException, NotFoundException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from msgspec import Meta

from temporal_api import errors
from temporal_api.errors import Problem, invalid
from temporal_api.record import record_of

PROBLEM_JSON = "application/problem+json"

log = logging.getLogger(__name__)

_FIELD_ERRORS = {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}}


class ProblemDetails(msgspec.Struct):
    """The body of every error answer (`application/problem+json`, RFC 9457)."""

    title: str
    status: int
    error: str
    message: str
    details: Annotated[dict[str, Any], Meta(extra_json_schema={"properties": {"errors": _FIELD_ERRORS}})]
    request_id: str | None


# msgspec's words for what JSON calls otherwise.
_JSON_WORDS = {"int": "an integer", "float": "a number", "str": "a string", "bool": "a boolean"}
_QUOTED = re.compile(r"`([^`]*)`")


def in_json_words(message: str) -> str:
    """What msgspec says of a value, with no Python name in it."""
    return _QUOTED.sub(lambda m: " or ".join(_JSON_WORDS.get(kind, kind) for kind in m[1].split(" | ")), message)


def body(problem: Problem, request_id: str | None) -> bytes:
    """The one error body, encoded."""
    return msgspec.json.encode(
        ProblemDetails(
            title=HTTPStatus(problem.status).phrase,
            status=problem.status,
            error=problem.code,
            message=problem.message,
            details=problem.details,
            request_id=request_id,
        )
    )


def _response(request: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    return Response(
        body(problem, record_of(request.scope).request_id),
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
    """Tell Litestar's own refusals as ours."""
    if isinstance(error, InternalServerException) and "disconnect" in error.detail:
        record_of(request.scope).client_gone = True  # nobody's defect, and nobody reads this answer
        return _response(request, errors.InternalServerError())
    match error.status_code:
        case 400:
            return _response(request, _bad_request(error))
        case 404:
            return _response(
                request,
                errors.NotFound(f"There is nothing at {request.scope['path']}. /openapi.json lists every path."),
            )
        case 405:
            methods = (error.headers or {})["allow"].split(", ")
            message = f"{request.method} is not possible here; the Allow header lists what is."
            return _response(request, errors.MethodNotAllowed(message, allow(methods)))
        case 413:
            return _response(request, errors.PayloadTooLarge("The body is larger than this service takes."))
        case 415:
            return _response(request, errors.UnsupportedMediaType())
    return on_exception(request, error)


def _bad_request(error: HTTPException) -> Problem:
    if not (isinstance(error.extra, list) and error.extra):
        return errors.ValidationError(error.detail)
    first = error.extra[0]  # msgspec stops at the first
    if first["key"] == "data":  # Litestar's name for a body that is not there
        return invalid("", "Expected a JSON body; there is none.")
    return invalid(first["key"], in_json_words(first["message"]))


def on_no_file(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """There can be no file of that name."""
    return on_http_exception(request, NotFoundException())


def on_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer a defect: 500 to the caller, the traceback to the log."""
    fields = {"request_id": record_of(request.scope).request_id, "path": request.scope["path"]}
    log.error("unhandled exception", exc_info=error, extra={"fields": fields})
    return _response(request, errors.InternalServerError())


EXCEPTION_HANDLERS: Any = {Problem: on_problem, HTTPException: on_http_exception, Exception: on_exception}

_EVERY_OPERATION: tuple[type[Problem], ...] = (
    errors.ValidationError,
    errors.MissingToken,
    errors.InvalidToken,
    errors.ExpiredToken,
    errors.InsufficientScope,
    errors.TemporalOverloaded,
    errors.InternalServerError,
    errors.TemporalError,
    errors.TemporalConnectionError,
    errors.Overloaded,
    errors.AuthUnavailable,
    errors.TemporalTimeout,
)
_EVERY_BODY: tuple[type[Problem], ...] = (errors.MalformedJSON, errors.PayloadTooLarge, errors.UnsupportedMediaType)


def responses(*problems: type[Problem], body: bool = False) -> dict[int, ResponseSpec]:
    """For OpenAPI: every error that an operation under /api/v1 can answer; `problems` are those of its own."""
    by_status: dict[int, list[type[Problem]]] = {}
    for problem in sorted((*_EVERY_OPERATION, *(_EVERY_BODY if body else ()), *problems), key=lambda p: p.code):
        by_status.setdefault(problem.status, []).append(problem)
    return {
        status: ResponseSpec(
            ProblemDetails,
            description=f"{HTTPStatus(status).phrase}: "
            + ", ".join(f"`{problem.code}`" for problem in by_status[status]),
            media_type=PROBLEM_JSON,
            generate_examples=False,
            examples=[_example(problem) for problem in by_status[status]],
        )
        for status in sorted(by_status)
    }


def _example(problem: type[Problem]) -> Example:
    told = problem(problem.__doc__ or "")
    return Example(id=problem.code, value=msgspec.json.decode(body(told, "5bc187c43e794a7eb10e091afa264f8c")))
