"""`GET /`, `/metrics`, `/openapi.json`, `/docs` and `/redoc`. Public, and nothing in them points outside."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import msgspec
import prometheus_client.exposition
import prometheus_client.openmetrics.exposition
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, RedocRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme, Tag
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler

from temporal_api import __version__

TITLE = "Temporal Enterprise API"

OPENAPI = OpenAPIConfig(
    title=TITLE,
    version=__version__,
    description="Start, watch and steer Temporal workflows over REST.",
    path="/openapi",
    render_plugins=[JsonRenderPlugin()],
    use_handler_docstrings=True,
    tags=[
        Tag("orders", "Orders: the worked business resource."),
        Tag("workflows", "Any workflow of the namespace, for operators."),
        Tag("health", "Probes."),
    ],
    components=Components(
        security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")}
    ),
)

# The pages run the bundled scripts; they may ask this service and nobody else.
_CSP = "default-src 'self' 'unsafe-inline' blob: data:"

_BUNDLES = files("openapi_ui_bundles")
_FAVICON = '<link rel="icon" href="data:,">'
_SWAGGER = SwaggerRenderPlugin(
    js_url="/docs/assets/swagger_ui/swagger-ui-bundle.js",
    css_url="/docs/assets/swagger_ui/swagger-ui.css",
    standalone_preset_js_url="/docs/assets/swagger_ui/swagger-ui-standalone-preset.js",
    favicon=_FAVICON,
)
_REDOC = RedocRenderPlugin(js_url="/docs/assets/redoc/redoc.standalone.js", google_fonts=False, favicon=_FAVICON)

ASSETS = [
    create_static_files_router(
        f"/docs/assets/{name}", directories=[str(_BUNDLES / name / "vendor")], include_in_schema=False, name=name
    )
    for name in ("swagger_ui", "redoc")
]


class Welcome(msgspec.Struct):
    """What answers here."""

    message: str
    version: str


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
        encode, media_type = prometheus_client.exposition.generate_latest, prometheus_client.CONTENT_TYPE_LATEST
    return Response(encode(state.metrics.registry), media_type=media_type)


def _once(state: State, name: str, make: Callable[[], bytes]) -> bytes:
    """The schema is as old as the process: render each page once."""
    if name not in state:
        state[name] = make()
    page: bytes = state[name]
    return page


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi_json(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """The contract, OpenAPI 3.1."""
    schema = _once(state, "openapi.json", lambda: msgspec.json.encode(request.app.openapi_schema.to_schema()))
    return Response(schema, media_type="application/json")


@get("/docs", include_in_schema=False, sync_to_thread=False)
def swagger(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """Swagger UI."""
    return _page(_once(state, "docs", lambda: _SWAGGER.render(request, request.app.openapi_schema.to_schema())))


@get("/redoc", include_in_schema=False, sync_to_thread=False)
def redoc(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """ReDoc."""
    return _page(_once(state, "redoc", lambda: _REDOC.render(request, request.app.openapi_schema.to_schema())))


def _page(html: bytes) -> Response[bytes]:
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": _CSP})


PLUGINS: list[Any] = []
HANDLERS: list[ControllerRouterHandler] = [root, metrics, openapi_json, swagger, redoc, *ASSETS]
