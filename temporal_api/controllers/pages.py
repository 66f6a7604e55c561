"""The public pages: `/`, `/openapi.json`, `/docs` and `/redoc`. They need no internet."""

import functools
import re
from importlib.resources import files
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import CacheControlHeader
from litestar.exceptions import InternalServerException, NotFoundException
from litestar.openapi.plugins import RedocRenderPlugin, SwaggerRenderPlugin
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler
from msgspec import Meta

from temporal_api import __version__
from temporal_api.openapi import TITLE, contract
from temporal_api.problems import on_http_exception

# The pages run the bundled scripts, which may ask only this service. No other page may frame them.
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


def _no_such_file(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    return on_http_exception(request, NotFoundException())


ASSETS = [
    create_static_files_router(
        f"/docs/assets/{name}",
        directories=[str(_BUNDLES / name / "vendor")],
        cache_control=_A_DAY,
        include_in_schema=False,
        name=name,
        # No file system takes some names, as a NUL byte or a thousand letters.
        exception_handlers=dict.fromkeys((ValueError, OSError, InternalServerException), _no_such_file),
    )
    for name in ("swagger_ui", "redoc")
]


class Welcome(msgspec.Struct):
    """The service's name and version."""

    message: Annotated[str, Meta(description="The service's name.", examples=[TITLE])]
    version: Annotated[str, Meta(description="The service's version.", examples=[__version__])]


@get("/", operation_id="getRoot", summary="Name and version", tags=["health"], sync_to_thread=False)
def root() -> Welcome:
    """Tell the service's name and version."""
    return Welcome(TITLE, __version__)


# An app's contract never changes.
_contract = functools.lru_cache(maxsize=1)(contract)


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi_json(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The contract as an OpenAPI 3.1 document."""
    return Response(msgspec.json.encode(_contract(request.app)), media_type="application/json")


@get("/docs", include_in_schema=False, sync_to_thread=False)
def swagger(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Swagger UI."""
    return _page(_SWAGGER.render(request, _contract(request.app)))


@get("/redoc", include_in_schema=False, sync_to_thread=False)
def redoc(request: Request[Any, Any, Any]) -> Response[bytes]:
    """ReDoc."""
    return _page(_REDOC.render(request, _contract(request.app)))


@get("/docs/redoc.js", include_in_schema=False, sync_to_thread=False, cache_control=_A_DAY)
def redoc_script() -> Response[bytes]:
    """ReDoc's script; its logo comes from this service instead of its maker's server."""
    return Response(_redoc_script(), media_type="text/javascript")


@functools.cache
def _redoc_script() -> bytes:
    script = _BUNDLES / "redoc" / "vendor" / "redoc.standalone.js"
    return _REDOC_LOGO.sub(b"/docs/assets/redoc/", script.read_bytes())


def _page(html: bytes) -> Response[bytes]:
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": _CONTENT_SECURITY_POLICY})


HANDLERS: list[ControllerRouterHandler] = [root, openapi_json, swagger, redoc, redoc_script, *ASSETS]
