"""How failures are answered: one body (RFC 9457) for our own errors, Litestar's and defects."""

import itertools
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, InternalServerException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from msgspec import Meta

from temporal_api import errors
from temporal_api.errors import FieldError, Problem, ValidationError, invalid, invalid_fields, shown
from temporal_api.mistakes import MOST, in_json_words, parameter_mistakes
from temporal_api.record import Record, record_of

PROBLEM_JSON = "application/problem+json"

log = logging.getLogger(__name__)

_FIELD_ERRORS = {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}}


class ProblemDetails(msgspec.Struct):
    """The body of every error (`application/problem+json`, RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    message: str
    details: Annotated[dict[str, Any], Meta(extra_json_schema={"properties": {"errors": _FIELD_ERRORS}})]
    request_id: str | None


def encode_problem(problem: Problem, record: Record) -> bytes:
    """Encode the body of an error. Its `type` leads to the explanation that `controllers/explanations.py` serves."""
    details = ProblemDetails(
        type=f"{record.root_path}/problems/{problem.code}",
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=problem.message,
        error=problem.code,
        message=problem.message,
        details=problem.details,
        request_id=record.request_id,
    )
    return msgspec.json.encode(details)


def on_problem(request: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    """Answer one of our own failures."""
    if isinstance(problem, ValidationError) and (told := problem.details.get("errors")):
        keys = {mistake.key for mistake in told}
        if more := [mistake for mistake in parameter_mistakes(request) if mistake.key not in keys]:
            problem = invalid_fields([*told, *more][:MOST])
    return Response(
        encode_problem(problem, record_of(request.scope)),
        status_code=problem.status,
        media_type=PROBLEM_JSON,
        headers=problem.headers,
    )


def allow(methods: Iterable[str]) -> dict[str, str]:
    """Make the `Allow` header (RFC 9110 10.2.1). HEAD is possible wherever GET is: `observe` sees to it."""
    return {"Allow": ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))}


def on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer what Litestar itself refuses."""
    if isinstance(error, InternalServerException) and "disconnect" in error.detail:
        record_of(request.scope).client_gone = True  # no defect, and nobody reads this answer
        return on_problem(request, errors.InternalServerError())
    problem: Problem
    match error.status_code:
        case 400:
            problem = _bad_request(request, error)
        case 404:
            problem = errors.NotFound(
                f"There is nothing at {shown(request.scope['path'])}. "
                f"{record_of(request.scope).root_path}/openapi.json lists every path."
            )
        case 405:
            methods = (error.headers or {})["allow"].split(", ")
            message = f"{request.method} is not possible here. Use a method that the Allow header lists."
            problem = errors.MethodNotAllowed(message, allow(methods))
        case 413:
            problem = errors.PayloadTooLarge("The body is larger than this service takes.")
        case 415:
            problem = errors.UnsupportedMediaType()
        case _:
            return on_exception(request, error)
    return on_problem(request, problem)


def _bad_request(request: Request[Any, Any, Any], error: HTTPException) -> Problem:
    if not (isinstance(error.extra, list) and error.extra):
        return errors.ValidationError(error.detail)
    first = error.extra[0]
    if first["key"] == "data":  # the handler's parameter for the body
        return invalid("", "Expected a JSON body; there is none.")
    return invalid_fields(parameter_mistakes(request) or [FieldError(first["key"], in_json_words(first["message"]))])


def on_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer a defect with 500, and log its traceback."""
    fields = {"request_id": record_of(request.scope).request_id, "path": request.scope["path"]}
    log.error("unhandled exception", exc_info=error, extra={"fields": fields})
    return on_problem(request, errors.InternalServerError())


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
    """Declare the errors of an operation under `/api/v1`: those of every operation, and `problems`, its own."""
    declared = sorted((*_EVERY_OPERATION, *(_EVERY_BODY if body else ()), *problems), key=lambda p: (p.status, p.code))
    return {status: _spec(status, list(group)) for status, group in itertools.groupby(declared, key=lambda p: p.status)}


def _spec(status: int, problems: list[type[Problem]]) -> ResponseSpec:
    codes = ", ".join(f"`{problem.code}`" for problem in problems)
    return ResponseSpec(
        ProblemDetails,
        description=f"{HTTPStatus(status).phrase}: {codes}",
        media_type=PROBLEM_JSON,
        generate_examples=False,
        examples=[_example(problem) for problem in problems],
    )


def _example(problem: type[Problem]) -> Example:
    shown = problem(problem.__doc__ or "")
    return Example(
        id=problem.code, value=msgspec.json.decode(encode_problem(shown, Record("5bc187c43e794a7eb10e091afa264f8c")))
    )
