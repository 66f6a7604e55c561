"""The contract: the OpenAPI document that `/openapi.json` serves and `/docs` and `/redoc` show.

Litestar describes the operations. msgspec checks the bodies, so it describes them too: Litestar's own schemas lack
docstrings, half of the bounds, and that a request may hold no other field.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from inspect import cleandoc
from typing import Any

import msgspec
from litestar import Litestar, Router
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, OpenAPIHeader, Schema, SecurityScheme, Server, Tag
from litestar.openapi.spec.enums import OpenAPIType
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import ControllerRouterHandler

from temporal_api import __version__, errors
from temporal_api.owned.resource import Resource
from temporal_api.problems import EVERYWHERE, PROBLEM_JSON, phrase

TITLE = "Temporal Enterprise API"
EVENT_STREAM = "text/event-stream"

_HOW_TO_AUTHORIZE = (
    "A token (JWT) of your identity provider, with the scopes that an operation names. Paste it without `Bearer`. "
    "To try things out: `temporal-api dev` prints one, and `temporal-api token` signs one with `JWT_SECRET`."
)
_STREAM = (
    "Swagger UI shows a stream only when it has ended. To see each event as it comes: "
    '`curl -N -H "Authorization: Bearer $TOKEN" HOST{address}`.'
)

_JSON = dict[str, Any]


class _Unserved(Router):
    """Leave out Litestar's own pages: `controllers/pages.py` serves ours, and Litestar's 404 is HTML."""

    def register(self, value: ControllerRouterHandler) -> list[BaseRoute]:
        return []


def _operation_id(handler: HTTPRouteHandler, method: object, path: object) -> str:
    """The handler's name in camel case: `get_workflow` is `getWorkflow`."""
    first, *others = handler.handler_name.split("_")
    return first + "".join(word.title() for word in others)


def _header(description: str, kind: OpenAPIType = OpenAPIType.STRING, *, always: bool = True) -> OpenAPIHeader:
    return OpenAPIHeader(schema=Schema(type=kind), description=description, required=always)


def openapi_config(resources: Iterable[Resource[Any, Any]], root_path: str) -> OpenAPIConfig:
    """Configure the parts of the document that are not operations."""
    return OpenAPIConfig(
        title=TITLE,
        version=__version__,
        servers=[Server(root_path or "/")],
        description=(
            "Start, watch and steer Temporal workflows over REST.\n\n"
            "Everything under `/api/v1` needs a bearer token with the scopes of the operation. "
            f"Every error is one body, `{PROBLEM_JSON}` (RFC 9457), whose `error` is a stable code for programs. "
            f"[{root_path}/problems]({root_path}/problems) explains each."
        ),
        openapi_router=_Unserved("/openapi", route_handlers=[]),
        use_handler_docstrings=True,
        operation_id_creator=_operation_id,
        tags=[
            *(Tag(resource.plural, resource.description) for resource in resources),
            Tag("workflows", "Any workflow of the namespace, for operators."),
            Tag("codec", "Temporal's remote codec, for its UI and command line."),
            Tag("health", "Probes."),
        ],
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(
                    type="http", scheme="bearer", bearer_format="JWT", description=_HOW_TO_AUTHORIZE
                )
            },
            headers={
                "X-Request-ID": _header("The request's id: the caller's, or a new one. The service's log has it too."),
                "Location": _header("The path of what was created, or where to ask again."),
                "Retry-After": _header("Seconds until you may try again.", OpenAPIType.INTEGER),
                "Retry-After.open": _header("Seconds until the next try.", OpenAPIType.INTEGER, always=False),
                "WWW-Authenticate": _header("What is wrong with the token (RFC 6750)."),
                "WWW-Authenticate.scope": _header("The scope that the token lacks (RFC 6750).", always=False),
                "Accept-Encoding": _header(
                    "`identity`: the body had a Content-Encoding (RFC 9110 12.5.3).", always=False
                ),
                "ETag": _header("The version of this state. Send it as `If-None-Match` to get only a newer state."),
                "Preference-Applied": _header("The wait that was granted.", always=False),
                "Idempotent-Replayed": _header(
                    "`true`: the same request came before, and nothing new was started.", always=False
                ),
            },
        ),
    )


def contract(app: Litestar) -> _JSON:
    """Make the OpenAPI document of an app."""
    document = app.openapi_schema.to_schema()
    handlers = {
        (route.path_format, method.lower()): handler
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in handler.http_methods
    }
    schemas: _JSON = document["components"]["schemas"]
    schemas.update(_body_schemas(handlers.values()))
    shared: _JSON = document["components"].setdefault("responses", {})
    root_path = document["servers"][0]["url"].rstrip("/")
    document["paths"] = paths = dict(sorted(document["paths"].items()))
    for path, path_item in paths.items():
        for method, operation in path_item.items():
            options = handlers[path, method].opt
            scopes = options.get("scope", ())
            _complete_description(operation, root_path + path, (scopes,) if isinstance(scopes, str) else scopes)
            _complete_request(operation, schemas)
            _complete_responses(operation, schemas, options.get("headers", {}))
            _share_errors(operation["responses"], shared, root_path)
    for path, path_item in paths.items():
        if "post" in path_item:
            _link(path, path_item["post"], paths, schemas)
    # Those that operations declare, and those that any request can meet.
    declared = {code for answer in shared.values() for code in answer["content"][PROBLEM_JSON]["examples"]}
    codes = declared.union(kind.code for kind in errors.EVERY)
    schemas["ProblemDetails"]["properties"]["error"]["enum"] = sorted(codes)
    for part in (paths, schemas):
        _complete_types(part)
    return document


def _body_schemas(handlers: Iterable[HTTPRouteHandler]) -> _JSON:
    """Make msgspec's schema of every struct that is sent or answered."""
    schemas = msgspec.json.schema_components(_structs(handlers), ref_template="#/components/schemas/{name}")[1]
    for schema in schemas.values():
        # Python before 3.13 keeps a docstring's indentation.
        schema["description"] = cleandoc(schema.get("description", ""))
        fields = schema.get("properties", {})
        for name, field in fields.items():
            _rewrite_for_generators(name, field)
        if pairs := [_both(fields, name, other) for name in fields for other in fields[name].pop("excludes", ())]:
            schema["not"] = pairs[0] if len(pairs) == 1 else {"anyOf": pairs}
    return schemas


def _both(fields: _JSON, *names: str) -> _JSON:
    """Describe a body that has all of these fields. An empty list, or null instead of an object, is none."""
    given = {
        name: {"minItems": 1} if fields[name].get("type") == "array" else {"not": {"type": "null"}}
        for name in names
        if fields[name].keys() & {"type", "anyOf"}
    }
    return {"required": list(names), "properties": given}


def _structs(handlers: Iterable[HTTPRouteHandler]) -> set[Any]:
    """Collect the structs that operations take or answer, and the one in a problem's details."""
    structs: set[Any] = {errors.FieldError}
    for handler in handlers:
        signature = handler.parsed_fn_signature
        for field in (signature.return_type, signature.parameters.get("data", signature.return_type)):
            found = [f for f in (field, *field.inner_types) if f.is_subclass_of(msgspec.Struct)]
            # msgspec takes no union of structs.
            structs.update(one.annotation for f in found for one in (f.inner_types if f.is_union else (f,)))
        structs.update(spec.data_container for spec in (handler.responses or {}).values())
    return structs


def _rewrite_for_generators(name: str, field: _JSON) -> None:
    """Rewrite what generators of clients misread."""
    # They require a field with a default in every request, and expect it in every answer.
    default = msgspec.json.encode(field.pop("default", None)).decode()
    if default not in ("null", '""', "[]", "{}"):
        field["description"] = f"{field.get('description', '')} Default: `{default}`.".lstrip()
    # They name a choice without a title "type 0".
    for choice in field.get("anyOf", ()):
        if "enum" in choice:
            choice["title"] = name


def _complete_description(operation: _JSON, address: str, scopes: Sequence[str]) -> None:
    """Say how a stream is watched, and which scopes open the operation: Swagger UI shows no bearer token's scopes."""
    operation["security"] = [{"bearer": [scope]} for scope in scopes]
    if any(EVENT_STREAM in answer.get("content", ()) for answer in operation["responses"].values()):
        operation["description"] += f"\n\n{_STREAM.replace('{address}', address)}"
    if scopes:
        operation["description"] += f"\n\nNeeds the scope {' or '.join(f'`{scope}`' for scope in scopes)}."


def _complete_types(part: Any) -> None:
    """Say at every depth what generators need to choose a type, and what msgspec and Litestar leave out."""
    if isinstance(part, list):
        for each in part:
            _complete_types(each)
    elif isinstance(part, dict):
        if "enum" in part:
            part.setdefault("type", "string")
        match part.get("type"):
            case "object" if "title" not in part:  # no struct: else some of them take it for an empty object
                part.setdefault("additionalProperties", {})
            case "number":
                part.setdefault("format", "double")  # else some of them take 32 bits
            case "integer":
                part.update({bound: int(part[bound]) for bound in ("minimum", "maximum") if bound in part})
            case "string" if part.get("contentEncoding") == "base64":
                part["format"] = "byte"  # OpenAPI 3.0's name of it
        for name, each in part.items():
            if name not in ("example", "examples"):
                _complete_types(each)


def _complete_request(operation: _JSON, schemas: _JSON) -> None:
    """Say whether the body may be left out, and show an example of it."""
    for parameter in operation.get("parameters", ()):
        _remove_null(parameter["schema"])
        if parameter["schema"].get("default") == "":
            del parameter["schema"]["default"]  # stands for a parameter that was left out
    if body := operation.get("requestBody"):
        schema = body["content"]["application/json"]["schema"]
        body["required"] = {"type": "null"} not in schema.get("oneOf", ())
        _remove_null(schema)
        _add_examples(body["content"], schemas)


def _remove_null(schema: _JSON) -> None:
    """Remove null: it tells the handler that a parameter or body was left out, and no caller can send it."""
    if {"type": "null"} in schema.get("oneOf", ()):
        schema.update({**schema.pop("oneOf")[0], **schema})
    if isinstance(schema.get("type"), list):
        schema["type"] = next(kind for kind in schema["type"] if kind != "null")
        schema["enum"] = [value for value in schema["enum"] if value is not None]


_OF_STATUS = {"401": "WWW-Authenticate", "403": "WWW-Authenticate.scope", "415": "Accept-Encoding"}
_OF_STATUS |= dict.fromkeys(("429", "503"), "Retry-After")
"""The headers of problems, by their names in `openapi_config`. What follows a dot tells two of one name apart."""


def _complete_responses(operation: _JSON, schemas: _JSON, headers: Mapping[int, Iterable[str]]) -> None:
    """Sort the responses by status; give each a description, its headers and an example of its body."""
    operation["responses"] = dict(sorted(operation["responses"].items()))
    for status, response in operation["responses"].items():
        names = ["X-Request-ID", *headers.get(int(status), ())]
        if PROBLEM_JSON in response.get("content", {}) and status in _OF_STATUS:
            names.append(_OF_STATUS[status])
        response["headers"] = {name.partition(".")[0]: {"$ref": f"#/components/headers/{name}"} for name in names}
        _add_examples(response.get("content", {}), schemas)
        if response["description"] == HTTPStatus(int(status)).description:  # Python's: "document follows"
            bodies = (body["schema"].get("$ref", "") for body in response.get("content", {}).values())
            structs = (reference.rpartition("/")[2] for reference in bodies)
            response["description"] = next(
                (schemas[name]["description"] for name in structs if name in schemas), "Done."
            )


def _share_errors(responses: _JSON, shared: _JSON, root_path: str) -> None:
    """Write each error response once, named after its codes. Codes of every operation are left out of the name."""
    for status, response in responses.items():
        if codes := response.get("content", {}).get(PROBLEM_JSON, {}).get("examples"):
            own = sorted(codes.keys() - EVERYWHERE)
            name = "".join(word.title() for word in re.split("[ _]", " ".join(own) or phrase(int(status))))
            for example in codes.values():
                example["value"] = {**example["value"], "type": root_path + example["value"]["type"]}
            shared[name] = response
            responses[status] = {"$ref": f"#/components/responses/{name}"}


def _link(path: str, operation: _JSON, paths: _JSON, schemas: _JSON) -> None:
    """Link from an answer of what was created, which has a `Location`, to the operations that read it."""
    answers = [answer for status, answer in operation["responses"].items() if status < "3"]
    if not any("Location" in answer["headers"] for answer in answers):
        return
    names = {parameter["name"] for parameter in operation.get("parameters", ())}
    for answer in answers:
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        fields = schemas.get(schema.get("$ref", "").rpartition("/")[2], {}).get("properties", {})
        for read in (item["get"] for below, item in paths.items() if "get" in item and below.startswith(f"{path}/{{")):
            needed = {p["name"] for p in read["parameters"] if p["in"] == "path" or p["name"] in names & fields.keys()}
            found = {name: name if name in fields else "id" for name in sorted(needed)}
            if fields.keys() >= set(found.values()):
                answer.setdefault("links", {})[read["operationId"]] = {
                    "operationId": read["operationId"],
                    "parameters": {name: f"$response.body#/{field}" for name, field in found.items()},
                }


def _add_examples(content: _JSON, schemas: _JSON) -> None:
    """Give each media type of a body an example, if it has none."""
    for body in content.values():
        if "examples" not in body:
            body["example"] = _example(body["schema"], schemas)
        for example in body.get("examples", {}).values():
            del example["id"]  # no part of OpenAPI


_TIME = "2026-01-31T12:00:00Z"
_BY_TYPE = {"string": "text", "date-time": _TIME, "integer": 1, "number": 1, "boolean": True, "object": {}}


def _example(schema: _JSON, schemas: _JSON) -> Any:
    """Make an example from those of the fields. Leave out an optional field that has none."""
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
        return _BY_TYPE.get(schema.get("format") or str(schema.get("type")))
    return {
        name: _example(field, schemas)
        for name, field in schema["properties"].items()
        if name in schema.get("required", ()) or "examples" in field
    }
