"""The contract: the OpenAPI document that `/openapi.json` serves and `/docs` and `/redoc` show.

Litestar describes the operations. msgspec, which checks the bodies, describes them: Litestar's own descriptions of
structs lack docstrings, half of the bounds, and that a request may hold no other field.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from litestar import Litestar, Router
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, OpenAPIHeader, Schema, SecurityScheme, Tag
from litestar.openapi.spec.enums import OpenAPIType
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import ControllerRouterHandler

from temporal_api import __version__
from temporal_api.errors import FieldError
from temporal_api.owned.resource import Resource
from temporal_api.problems import PROBLEM_JSON

TITLE = "Temporal Enterprise API"
EVENT_STREAM = "text/event-stream"

# A part of the document: JSON, with the field names of OpenAPI 3.1.
_JSON = dict[str, Any]


class _Unserved(Router):
    """Serve none of Litestar's own pages: `controllers/pages.py` serves ours, and Litestar's 404 is HTML."""

    def register(self, value: ControllerRouterHandler) -> list[BaseRoute]:
        return []


def _header(description: str, kind: OpenAPIType = OpenAPIType.STRING, *, always: bool = True) -> OpenAPIHeader:
    return OpenAPIHeader(schema=Schema(type=kind), description=description, required=always)


def openapi_config(resources: Iterable[Resource[Any, Any]]) -> OpenAPIConfig:
    """What the document says beside the operations."""
    return OpenAPIConfig(
        title=TITLE,
        version=__version__,
        description=(
            "Start, watch and steer Temporal workflows over REST.\n\n"
            "Everything under `/api/v1` needs a bearer token with the scopes of the operation. "
            f"Every error is one body, `{PROBLEM_JSON}` (RFC 9457), whose `error` is a stable code to act on."
        ),
        openapi_router=_Unserved("/openapi", route_handlers=[]),
        use_handler_docstrings=True,
        tags=[
            *(Tag(resource.plural, resource.description) for resource in resources),
            Tag("workflows", "Any workflow of the namespace, for operators."),
            Tag("codec", "Temporal's remote codec, for its UI and command line."),
            Tag("health", "Probes."),
        ],
        components=Components(
            security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")},
            headers={
                "X-Request-ID": _header("The caller's own, or a new one: names this request in the service's log."),
                "Location": _header("The path of what was made."),
                "Retry-After": _header("Seconds after which another try makes sense.", OpenAPIType.INTEGER),
                "WWW-Authenticate": _header("What is wrong with the token (RFC 6750)."),
                "ETag": _header("The state that was told; `If-None-Match` asks for another."),
                "Preference-Applied": _header("The `Prefer` that was followed.", always=False),
                "Idempotent-Replayed": _header(
                    "`true`: the same request came before; nothing new was started.", always=False
                ),
            },
        ),
    )


def contract(app: Litestar) -> _JSON:
    """Make the OpenAPI document of an app."""
    document = app.openapi_schema.to_schema()
    handlers = list(_handlers(app))
    schemas: _JSON = document["components"]["schemas"]
    schemas.update(_body_schemas(handlers))
    scopes = _scopes(handlers)
    headers = {handler.operation_id: handler.opt.get("headers", {}) for handler in handlers}
    document["paths"] = dict(sorted(document["paths"].items()))
    for path_item in document["paths"].values():
        for operation in path_item.values():
            if "security" in operation:
                operation["security"] = [{"bearer": [scope]} for scope in scopes[operation["operationId"]]]
            _complete_request(operation, schemas)
            _complete_responses(operation, schemas, headers.get(operation["operationId"], {}))
    return document


def _handlers(app: Litestar) -> Iterator[HTTPRouteHandler]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            yield from route.route_handlers


def _body_schemas(handlers: Iterable[HTTPRouteHandler]) -> _JSON:
    """msgspec's schema of every struct that is sent or answered."""
    schemas = msgspec.json.schema_components(_structs(handlers), ref_template="#/components/schemas/{name}")[1]
    for schema in schemas.values():
        for name, field in schema.get("properties", {}).items():
            _rewrite_for_generators(name, field)
    return schemas


def _structs(handlers: Iterable[HTTPRouteHandler]) -> set[Any]:
    """Every struct that an operation takes or answers, and the one in the details of a problem."""
    structs: set[Any] = {FieldError}
    for handler in handlers:
        signature = handler.parsed_fn_signature
        for field in (signature.return_type, signature.parameters.get("data", signature.return_type)):
            structs.update(f.annotation for f in (field, *field.inner_types) if f.is_subclass_of(msgspec.Struct))
        structs.update(spec.data_container for spec in (handler.responses or {}).values())
    return structs


def _scopes(handlers: Iterable[HTTPRouteHandler]) -> dict[Any, tuple[str, ...]]:
    """For each operation id, the scopes of which any one opens the operation."""
    named = {handler.operation_id: handler.opt["scope"] for handler in handlers if "scope" in handler.opt}
    return {name: (scope,) if isinstance(scope, str) else scope for name, scope in named.items()}


def _rewrite_for_generators(name: str, field: _JSON) -> None:
    """Say in other words what generators of clients misread."""
    # They take a field with a default for one that every request must hold and every answer holds.
    default = msgspec.json.encode(field.pop("default", None)).decode()
    if default not in ("null", '""', "[]", "{}"):
        field["description"] = f"{field.get('description', '')} Default: `{default}`.".lstrip()
    # They take an object that does not name its fields for one that has none.
    if field.get("type") == "object":
        field.setdefault("additionalProperties", {})
    # They call a choice without a name "type 0".
    for choice in field.get("anyOf", ()):
        if "enum" in choice:
            choice["title"] = name


def _complete_request(operation: _JSON, schemas: _JSON) -> None:
    """Say which bodies may be left out, and show an example of each."""
    for parameter in operation.get("parameters", ()):
        _remove_null(parameter["schema"])
        if parameter["schema"].get("default") == "":
            del parameter["schema"]["default"]  # stands for a parameter that was left out; it can't be sent
    if body := operation.get("requestBody"):
        schema = body["content"]["application/json"]["schema"]
        body["required"] = {"type": "null"} not in schema.get("oneOf", ())
        _remove_null(schema)
        _add_examples(body["content"], schemas)


def _remove_null(schema: _JSON) -> None:
    """Leave out null, by which a handler knows that a parameter or a body was not sent: no caller can send it."""
    if {"type": "null"} in schema.get("oneOf", ()):
        schema.update(schema.pop("oneOf")[0])
    if isinstance(schema.get("type"), list):
        schema["type"] = next(kind for kind in schema["type"] if kind != "null")
        schema["enum"] = [value for value in schema["enum"] if value is not None]


def _complete_responses(operation: _JSON, schemas: _JSON, headers: Mapping[int, Iterable[str]]) -> None:
    """Give each response its headers and an example of its body, and put them in the order of their statuses."""
    operation["responses"] = dict(sorted(operation["responses"].items()))
    for status, response in operation["responses"].items():
        names = _headers(status, response, headers)
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        _add_examples(response.get("content", {}), schemas)


def _headers(status: str, response: _JSON, declared: Mapping[int, Iterable[str]]) -> Iterator[str]:
    """The headers that a response carries: `headers` of its handler, and those that go with a problem's status."""
    yield "X-Request-ID"
    yield from declared.get(int(status), ())
    if PROBLEM_JSON in response.get("content", {}):
        if status == "401":
            yield "WWW-Authenticate"
        if status in ("429", "503"):
            yield "Retry-After"


def _add_examples(content: _JSON, schemas: _JSON) -> None:
    """Show what a body looks like, in each of its media types that has no example yet."""
    for media_type, body in content.items():
        if media_type == EVENT_STREAM:
            body["schema"] = {"type": "string"}
        elif "examples" not in body:
            body["example"] = _example(body["schema"], schemas)
        for example in body.get("examples", {}).values():
            del example["id"]  # Litestar's own, no part of OpenAPI


_EXAMPLES_BY_TYPE = {
    "string": "text",
    "date-time": "2026-01-31T12:00:00Z",
    "integer": 1,
    "number": 1,
    "boolean": True,
    "object": {},
}


def _example(schema: _JSON, schemas: _JSON) -> Any:
    """Make an example from those of the fields; leave out optional fields that have none."""
    if "examples" in schema:
        return schema["examples"][0]
    if choices := (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        return _example(choices[0], schemas)
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "array":
        return [_example(schema["items"], schemas)]
    if "properties" not in schema:
        return _EXAMPLES_BY_TYPE.get(schema.get("format") or str(schema.get("type")))
    return {
        name: _example(field, schemas)
        for name, field in schema["properties"].items()
        if name in schema.get("required", ()) or "examples" in field
    }
