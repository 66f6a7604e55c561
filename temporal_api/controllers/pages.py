"""The public pages: `GET /`, `/openapi.json`, `/docs` and `/redoc`. They work with no internet."""

import functools
import re
from importlib.resources import files
from typing import Annotated, Any

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.datastructures import CacheControlHeader
from litestar.exceptions import InternalServerException
from litestar.openapi.plugins import RedocRenderPlugin, SwaggerRenderPlugin
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler
from msgspec import Meta

from temporal_api import __version__
from temporal_api.openapi import TITLE, contract
from temporal_api.problems import on_no_file

# The pages run the bundled scripts; these may ask this service and nobody else, and no other page may frame them.
_CONTENT_SECURITY_POLICY = (
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
        # Names that no file system takes, as a NUL byte or a thousand letters: an OSError, or Litestar's word for one.
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
    return Welcome(TITLE, __version__)


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi_json(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The contract as an OpenAPI 3.1 document."""
    return Response(_documents(request.app).json, media_type="application/json")


@get("/docs", include_in_schema=False, sync_to_thread=False)
def swagger(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Swagger UI."""
    documents = _documents(request.app)
    documents.swagger = documents.swagger or _SWAGGER.render(request, documents.contract)
    return _page(documents.swagger)


@get("/redoc", include_in_schema=False, sync_to_thread=False)
def redoc(request: Request[Any, Any, Any]) -> Response[bytes]:
    """ReDoc."""
    documents = _documents(request.app)
    documents.redoc = documents.redoc or _REDOC.render(request, documents.contract)
    return _page(documents.redoc)


class _Documents:
    """The contract and its pages; an app's contract never changes."""

    def __init__(self, app: Litestar) -> None:
        self.contract = contract(app)
        self.json = msgspec.json.encode(self.contract)
        self.swagger = b""
        self.redoc = b""


@functools.lru_cache(maxsize=1)
def _documents(app: Litestar) -> _Documents:
    return _Documents(app)


@get("/docs/redoc.js", include_in_schema=False, sync_to_thread=False, cache_control=_A_DAY)
def redoc_script() -> Response[bytes]:
    """ReDoc's script, which here takes its logo from this service and not from its maker's server."""
    return Response(_redoc_script(), media_type="text/javascript")


@functools.cache
def _redoc_script() -> bytes:
    script = _BUNDLES / "redoc" / "vendor" / "redoc.standalone.js"
    return _REDOC_LOGO.sub(b"/docs/assets/redoc/", script.read_bytes())


def _page(html: bytes) -> Response[bytes]:
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": _CONTENT_SECURITY_POLICY})


HANDLERS: list[ControllerRouterHandler] = [root, openapi_json, swagger, redoc, redoc_script, *ASSETS]
