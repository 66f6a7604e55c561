"""`GET /`, `/metrics`, `/openapi.json`, `/docs` and `/redoc`. Public, and nothing in them points outside."""

import re
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from typing import Annotated, Any

import msgspec
import prometheus_client.exposition
import prometheus_client.openmetrics.exposition
from litestar import Litestar, Request, Response, Router, get
from litestar.datastructures import CacheControlHeader, State
from litestar.exceptions import InternalServerException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import RedocRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import Components, OpenAPIHeader, Schema, SecurityScheme, Tag
from litestar.openapi.spec.enums import OpenAPIType
from litestar.routes import BaseRoute, HTTPRoute
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler
from msgspec import Meta

from temporal_api import __version__
from temporal_api.errors import PROBLEM_JSON, FieldError, on_no_file

TITLE = "Temporal Enterprise API"


class _Unserved(Router):
    """Litestar's own pages stay out: ours are below, and its 404 is HTML."""

    def register(self, value: ControllerRouterHandler) -> list[BaseRoute]:
        return []


def _header(description: str, kind: OpenAPIType = OpenAPIType.STRING, *, always: bool = True) -> OpenAPIHeader:
    return OpenAPIHeader(schema=Schema(type=kind), description=description, required=always)


OPENAPI = OpenAPIConfig(
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
        Tag("orders", "Orders: the worked business resource."),
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

# The pages run the bundled scripts; they may ask this service and nobody else, and nobody may frame them.
_CSP = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; worker-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_BUNDLES = files("openapi_ui_bundles")
_REDOC_LOGO = re.compile(rb"https://[^/\"'\s]+/redoc/(?=logo)")
_FAVICON = '<link rel="icon" href="data:,">'
_SWAGGER = SwaggerRenderPlugin(
    js_url="/docs/assets/swagger_ui/swagger-ui-bundle.js",
    css_url="/docs/assets/swagger_ui/swagger-ui.css",
    standalone_preset_js_url="/docs/assets/swagger_ui/swagger-ui-standalone-preset.js",
    favicon=_FAVICON,
)
_REDOC = RedocRenderPlugin(js_url="/docs/redoc.js", google_fonts=False, favicon=_FAVICON)

_A_DAY = CacheControlHeader(public=True, max_age=86_400)

ASSETS = [
    create_static_files_router(
        f"/docs/assets/{name}",
        directories=[str(_BUNDLES / name / "vendor")],
        cache_control=_A_DAY,
        include_in_schema=False,
        name=name,
        # Names that no file system takes: a NUL byte, a thousand letters (an OSError, or Litestar's word for one).
        exception_handlers=dict.fromkeys((ValueError, OSError, InternalServerException), on_no_file),
    )
    for name in ("swagger_ui", "redoc")
]


class Welcome(msgspec.Struct):
    """What answers here."""

    message: Annotated[str, Meta(examples=[TITLE])]
    version: Annotated[str, Meta(examples=[__version__])]


@get("/", operation_id="getRoot", summary="What answers here", tags=["health"], sync_to_thread=False)
def root() -> Welcome:
    """The service's name and version."""
    return _WELCOME


_WELCOME = Welcome(TITLE, __version__)


@get("/metrics", include_in_schema=False, sync_to_thread=False)
def metrics(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """Prometheus text, or OpenMetrics when asked: HTTP, process, and the Temporal SDK's own."""
    state.metrics.drain()
    encode: Callable[[Any], bytes]
    if "application/openmetrics-text" in request.headers.get("accept", ""):
        encode, media_type = (
            prometheus_client.openmetrics.exposition.generate_latest,
            prometheus_client.openmetrics.exposition.CONTENT_TYPE_LATEST,
        )
    else:
        encode = prometheus_client.exposition.generate_latest
        media_type = prometheus_client.CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8")  # Litestar adds it to text
    return Response(encode(state.metrics.registry), media_type=media_type)


def _contract(app: Litestar) -> dict[str, Any]:
    return _once(app.state, "contract", lambda: _make_contract(app))  # type: ignore[no-any-return]


def _make_contract(app: Litestar) -> dict[str, Any]:
    """The OpenAPI document: Litestar draws the paths; msgspec, which checks the bodies, describes them."""
    document: Any = app.openapi_schema.to_schema()
    schemas = document["components"]["schemas"]
    # Litestar's own descriptions of structs lack docstrings, half of the bounds, and that no other field may come.
    structs, scopes = _structs(_handlers(app)), _scopes(_handlers(app))
    schemas.update(msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")[1])
    for name, field in (field for schema in schemas.values() for field in schema.get("properties", {}).items()):
        _for_generators(name, field)
    document["paths"] = dict(sorted(document["paths"].items()))
    for item in document["paths"].values():
        for operation in item.values():
            if "security" in operation:
                operation["security"] = [{"bearer": [scope]} for scope in scopes[operation["operationId"]]]
            if body := operation.get("requestBody"):
                schema = body["content"]["application/json"]["schema"]
                body["required"] = {"type": "null"} not in schema.get("oneOf", ())
                _forbid_null(schema)
                _add_example(body, schemas)
            for parameter in operation.get("parameters", ()):
                _forbid_null(parameter["schema"])
            operation["responses"] = dict(sorted(operation["responses"].items()))
            for status, response in operation["responses"].items():
                _add_example(response, schemas)
                names = _headers(operation, status, response)
                response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return document  # type: ignore[no-any-return]


def _for_generators(name: str, field: Any) -> None:
    """What generators of clients would misread, said in another way."""
    # Of a default they make a field that every request must hold, and that every answer is said to hold.
    default = msgspec.json.encode(field.pop("default", None)).decode()
    if default not in ("null", '""', "[]", "{}"):
        field["description"] = f"{field.get('description', '')} Default: `{default}`.".lstrip()
    # An object that does not name its fields is to them one without any; a nameless choice they call "type 0".
    if field.get("type") == "object":
        field.setdefault("additionalProperties", {})
    for choice in field.get("anyOf", ()):
        if "enum" in choice:
            choice["title"] = name


def _forbid_null(schema: Any) -> None:
    """A parameter or a body that is left out is not null, and a parameter not the empty text either."""
    if schema.get("default") == "":
        del schema["default"]
    if {"type": "null"} in schema.get("oneOf", ()):
        schema.update(schema.pop("oneOf")[0])
    if isinstance(schema.get("type"), list):
        schema["type"] = next(kind for kind in schema["type"] if kind != "null")
        schema["enum"] = [value for value in schema["enum"] if value is not None]


def _headers(operation: Any, status: str, response: Any) -> Iterator[str]:
    """The headers that an answer of this service carries."""
    asked = {parameter["name"] for parameter in operation.get("parameters", ())}
    problem = PROBLEM_JSON in response.get("content", {})
    yield "X-Request-ID"
    if status == "201":
        yield "Location"
    if status == "304" or (status == "200" and "304" in operation["responses"]):
        yield "ETag"
    if status < "400" and "Prefer" in asked:
        yield "Preference-Applied"
    if status == "201" and "Idempotency-Key" in asked:
        yield "Idempotent-Replayed"
    if problem and status == "401":
        yield "WWW-Authenticate"
    if (problem and status in ("429", "503")) or (status == "202" and "200" in operation["responses"]):
        yield "Retry-After"


def _handlers(app: Litestar) -> Iterator[HTTPRouteHandler]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            yield from route.route_handlers


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
    """The scopes that open an operation, any one of them."""
    named = {handler.operation_id: handler.opt["scope"] for handler in handlers if "scope" in handler.opt}
    return {name: (scope,) if isinstance(scope, str) else scope for name, scope in named.items()}


def _add_example(body: Any, schemas: dict[str, Any]) -> None:
    for kind, content in body.get("content", {}).items():
        if kind == "text/event-stream":
            content["schema"] = {"type": "string"}
            continue
        for example in content.get("examples", {}).values():
            del example["id"]  # Litestar's own, no part of OpenAPI
        if "examples" not in content:
            content["example"] = _example(content["schema"], schemas)


_EXAMPLES = {
    "string": "text",
    "date-time": "2026-01-31T12:00:00Z",
    "integer": 1,
    "number": 1,
    "boolean": True,
    "object": {},
}


def _example(schema: Any, schemas: dict[str, Any]) -> Any:
    """A whole example, put together from those of the fields; an optional field without one is left out."""
    if "examples" in schema:
        return schema["examples"][0]
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        return _example(choice, schemas)
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "array":
        return [_example(schema["items"], schemas)]
    if "properties" not in schema:
        return _EXAMPLES.get(schema.get("format") or str(schema.get("type")))
    return {
        name: _example(field, schemas)
        for name, field in schema["properties"].items()
        if name in schema.get("required", ()) or "examples" in field
    }


def _once(state: State, name: str, make: Callable[[], Any]) -> Any:
    """The contract is as old as the process: it and its pages are made once."""
    if name not in state:
        state[name] = make()
    return state[name]


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi_json(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """The contract, OpenAPI 3.1."""
    schema = _once(state, "openapi.json", lambda: msgspec.json.encode(_contract(request.app)))
    return Response(schema, media_type="application/json")


@get("/docs", include_in_schema=False, sync_to_thread=False)
def swagger(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """Swagger UI."""
    return _page(_once(state, "docs", lambda: _SWAGGER.render(request, _contract(request.app))))


@get("/redoc", include_in_schema=False, sync_to_thread=False)
def redoc(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """ReDoc."""
    return _page(_once(state, "redoc", lambda: _REDOC.render(request, _contract(request.app))))


@get("/docs/redoc.js", include_in_schema=False, sync_to_thread=False, cache_control=_A_DAY)
def redoc_script(state: State) -> Response[bytes]:
    """ReDoc's script, with its logo taken from here and not from its maker's server."""
    script = _BUNDLES / "redoc" / "vendor" / "redoc.standalone.js"
    own = _once(state, "redoc.js", lambda: _REDOC_LOGO.sub(b"/docs/assets/redoc/", script.read_bytes()))
    return Response(own, media_type="text/javascript")


def _page(html: bytes) -> Response[bytes]:
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": _CSP})


HANDLERS: list[ControllerRouterHandler] = [root, metrics, openapi_json, swagger, redoc, redoc_script, *ASSETS]
