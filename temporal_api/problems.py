"""How failures are answered: one body (RFC 9457) for our own errors, Litestar's and defects."""

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, InternalServerException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from msgspec import Meta

from temporal_api import errors
from temporal_api.errors import FieldError, Problem, ValidationError, invalid, invalid_fields, shown
from temporal_api.mistakes import MOST, in_json_words, parameter_mistakes
from temporal_api.record import Record, record_of

PROBLEM_JSON = "application/problem+json"

log = logging.getLogger(__name__)

_FIELD_ERRORS = {
    "type": "array",
    "items": {"$ref": "#/components/schemas/FieldError"},
    "description": "The mistakes in the request.",
}


class ProblemDetails(msgspec.Struct):
    """The body of every error (`application/problem+json`, RFC 9457)."""

    type: Annotated[str, Meta(description="The page that explains the code.")]
    title: Annotated[str, Meta(description="The status in words (RFC 9110).")]
    status: Annotated[int, Meta(description="The HTTP status.")]
    detail: Annotated[str, Meta(description="The same as `message`, which RFC 9457 calls `detail`.")]
    error: Annotated[str, Meta(description="What went wrong: a stable code for programs.")]
    message: Annotated[str, Meta(description="What went wrong, and what to do.")]
    details: Annotated[
        dict[str, Any],
        Meta(description="Values for programs.", extra_json_schema={"properties": {"errors": _FIELD_ERRORS}}),
    ]
    request_id: Annotated[str | None, Meta(description="The request's id, as in `X-Request-ID`.")]


# Phrases of RFC 9110 that some versions of Python lack.
_PHRASES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


def phrase(status: int) -> str:
    """The status in words (RFC 9110 15)."""
    return _PHRASES.get(status) or HTTPStatus(status).phrase


def encode_problem(problem: Problem, record: Record) -> bytes:
    """Encode the body of an error. Its `type` leads to the explanation that `/problems` serves."""
    details = ProblemDetails(
        type=f"{record.root_path}/problems/{problem.code}",
        title=phrase(problem.status),
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
        record_of(request.scope).client_gone = True  # no defect; nobody reads this answer
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
EVERYWHERE = {problem.code for problem in _EVERY_OPERATION}
_EVERY_BODY: tuple[type[Problem], ...] = (errors.MalformedJSON, errors.PayloadTooLarge, errors.UnsupportedMediaType)


@dataclass
class DeclaredProblems(ResponseSpec):
    """The errors of one status that an operation declares; `/problems` explains them."""

    problems: Sequence[type[Problem] | Problem] = ()


def responses(*problems: type[Problem] | Problem) -> dict[int, ResponseSpec]:
    """Declare the errors of an operation. `declare_common` adds those of every operation.

    An instance is the contract's example of its error; for a class, the example is below.
    """
    specs: dict[int, ResponseSpec] = {}
    for status, group in itertools.groupby(sorted(problems, key=lambda p: (p.status, p.code)), key=lambda p: p.status):
        found = list(group)
        examples = [_example(problem) for problem in found]
        codes = ", ".join(f"`{example.id}`" for example in examples)
        description = f"{phrase(status)}: {codes}"
        specs[status] = DeclaredProblems(ProblemDetails, False, description, PROBLEM_JSON, examples, found)
    return specs


def declare_common(handler: HTTPRouteHandler) -> None:
    """Add the errors of every operation under `/api/v1`, and those of every body, to the handler's own."""
    declared = handler.responses or {}
    own = (problem for spec in declared.values() if isinstance(spec, DeclaredProblems) for problem in spec.problems)
    common = (*_EVERY_OPERATION, *(_EVERY_BODY if handler.parsed_data_field else ()))
    handler.responses = {**declared, **responses(*dict.fromkeys((*common, *own)))}  # each once, even for two paths


# Which workflow and run the examples are about.
_INVOICE: Any = {"workflow_id": "invoice-2041"}
_RUN: Any = {**_INVOICE, "run_id": "019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"}
_UNKNOWN_UPDATE = "Update handler for 'add_line' expected but not found, and there is no dynamic handler."
# Realistic messages, for classes whose docstring is rarely the message.
_EXAMPLES: dict[str, Problem] = {
    problem.code: problem
    for problem in (
        invalid("page_size", "Expected an integer <= 1000"),
        errors.MalformedJSON("The body is not JSON: expected ',' or '}' (byte 13)."),
        errors.InvalidQuery("Temporal refuses this query: malformed SQL query", source="temporal"),
        errors.WorkflowStartError(
            "Temporal refuses this start: Namespace default has no mapping defined for search attribute Customer",
            source="temporal",
            **_INVOICE,
        ),
        errors.InvalidToken("The token is not accepted: it is not a JWT, or a part of it was lost."),
        errors.InsufficientScope("The token needs the scope workflows:read or workflows:admin.", "workflows:read"),
        errors.NotAllowed("This service may not start the workflow type 'temporal-sys-x'."),
        errors.NotFound("Payloads are not encrypted here: PAYLOAD_ENCRYPTION_KEYS is not set."),
        errors.WorkflowNotFound("There is no workflow 'invoice-2041'.", source="temporal", **_INVOICE),
        errors.UpdateNotFound(
            "The workflow 'invoice-2041' has no update 'add-line-7'; one that was rejected is not kept.",
            update_id="add-line-7",
            **_INVOICE,
        ),
        errors.WorkflowAlreadyExists(
            "The workflow 'invoice-2041' exists already; take another id.", source="temporal", **_RUN
        ),
        errors.WorkflowCompleted("The workflow 'invoice-2041' is closed.", **_INVOICE),
        errors.ReservedId("Ids that begin with order- are reserved for a resource of the API. Choose another id."),
        errors.PreconditionFailed(**_RUN),
        errors.UriTooLong("The path and query are longer than 8179 bytes."),
        errors.UpdateRejected(
            _UNKNOWN_UPDATE,
            source="workflow",
            update_id="add-line-7",
            failure={"type": "RuntimeError", "message": _UNKNOWN_UPDATE},
            **_RUN,
        ),
        errors.QueryFailed(
            "Query handler for 'progress' expected but not found, known queries: [status]",
            source="workflow",
            **_INVOICE,
        ),
        errors.NoWorker(
            "No worker polls the task queue 'invoices'; start one, or try again.",
            source="gateway",
            task_queue="invoices",
            **_INVOICE,
        ),
        errors.PayloadUndecodable("What Temporal keeps here is encrypted, and this service has no key."),
    )
}


def _example(problem: type[Problem] | Problem) -> Example:
    if isinstance(problem, type):
        problem = _EXAMPLES.get(problem.code) or problem(problem.__doc__ or "")
    return Example(
        id=problem.code, value=msgspec.json.decode(encode_problem(problem, Record("5bc187c43e794a7eb10e091afa264f8c")))
    )
