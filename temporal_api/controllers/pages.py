"""The public pages: `/`, `/openapi.json`, `/docs`, `/redoc` and `/problems`. They need no internet."""

import functools
import gzip
import hashlib
import re
import threading
from html import escape
from importlib.resources import files
from typing import Annotated, Any

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.openapi.plugins import RedocRenderPlugin, SwaggerRenderPlugin
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler
from msgspec import Meta

from temporal_api import __version__
from temporal_api.errors import NotFound, Problem, shown
from temporal_api.observe import accepts_gzip
from temporal_api.openapi import TITLE, contract
from temporal_api.preconditions import matches
from temporal_api.problems import phrase
from temporal_api.record import record_of
from temporal_api.requests import JSONResponse, accepted

# The pages run the bundled scripts, which may ask only this service. No other page may frame them.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; worker-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_BUNDLES = files("openapi_ui_bundles")
_REDOC_LOGO = re.compile(rb"https://[^/\"'\s]+/redoc/(?=logo)")
FAVICON = '<link rel="icon" href="data:,">'
# Errors show only their codes until clicked: otherwise an operation takes eight screens.
_SWAGGER_STYLE = """<style>
body { margin: 0 }
.swagger-ui .response[data-code^="4"]:not(.open) .response-col_description > :not(:first-child),
.swagger-ui .response[data-code^="5"]:not(.open) .response-col_description > :not(:first-child) { display: none }
.swagger-ui .response:is([data-code^="4"], [data-code^="5"]) .response-col_status { cursor: pointer }
.swagger-ui .response:is([data-code^="4"], [data-code^="5"]) .response-col_status::after { content: " \\25B8" }
.swagger-ui .response.open .response-col_status::after { content: " \\25BE" !important }
</style><script>
addEventListener("click", ({ target }) => target.closest(".response-col_status")?.parentNode.classList.toggle("open"))
</script>"""


_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_ASSETS = [f"swagger_ui/swagger-ui{end}" for end in ("-bundle.js", "-standalone-preset.js", ".css")]
_ASSETS += ["redoc/redoc.standalone.js", "redoc/logo-mini.svg"]


class Document:
    """A document that never changes: compressed once, and 304 for a client that has it."""

    def __init__(self, body: bytes, media_type: str, cache_control: str) -> None:
        self._body, self._media_type = body, media_type
        self._compressed = gzip.compress(body, 6, mtime=0)
        self._version = hashlib.sha256(body).hexdigest()[:32]
        self._headers = {"ETag": f'W/"{self._version}"', "Cache-Control": cache_control}

    def answer(self, request: Request[Any, Any, Any]) -> Response[Any]:
        """The document, or 304 (RFC 9110 13.1.2)."""
        if matches(request.headers.get("if-none-match", ""), self._version):
            return JSONResponse(None, status_code=304, headers={**self._headers, "Vary": "Accept-Encoding"})
        if accepts_gzip(request.headers.get("accept-encoding", "").encode()):
            encoded = {**self._headers, "Vary": "Accept-Encoding", "Content-Encoding": "gzip"}
            return Response(self._compressed, media_type=self._media_type, headers=encoded)
        return Response(self._body, media_type=self._media_type, headers=self._headers)


@functools.cache
def _asset(name: str, root_path: str) -> Document:
    content = _BUNDLES.joinpath(name.replace("/", "/vendor/")).read_bytes()
    # ReDoc's logo comes from this service instead of its maker's server.
    content = _REDOC_LOGO.sub(f"{root_path}/docs/assets/redoc/".encode(), content)
    return Document(content, _KINDS[name[name.rindex(".") :]], "max-age=86400, public")


# In a thread: compressing a script takes a tenth of a second, once.
@get("/docs/assets/{name:path}", include_in_schema=False, sync_to_thread=True)
def asset(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[Any]:
    """A script, a style or a picture of the pages."""
    if name.lstrip("/") not in _ASSETS:
        raise NotFoundException
    return _asset(name.lstrip("/"), record_of(request.scope).root_path).answer(request)


class Welcome(msgspec.Struct):
    """The service's name and version."""

    message: Annotated[str, Meta(description="The service's name.", examples=[TITLE])]
    version: Annotated[str, Meta(description="The service's version.", examples=[__version__])]


@get("/", summary="Name and version", tags=["health"], sync_to_thread=False)
def get_root() -> Welcome:
    """The service's name and version."""
    return Welcome(TITLE, __version__)


# An app's contract never changes. Making it takes a tenth of a second, so it is made in a thread, and only once: hence
# the lock.
_made = functools.lru_cache(maxsize=1)(contract)
_making = threading.Lock()


def _contract(app: Litestar) -> dict[str, Any]:
    with _making:
        return _made(app)


@functools.lru_cache(maxsize=1)
def _openapi_json(app: Litestar) -> Document:
    return Document(msgspec.json.encode(_contract(app)), "application/json", "no-cache")


@get("/openapi.json", include_in_schema=False, sync_to_thread=True)
def openapi_json(request: Request[Any, Any, Any]) -> Response[Any]:
    """The contract as an OpenAPI 3.1 document."""
    return _openapi_json(request.app).answer(request)


@get("/docs", include_in_schema=False, sync_to_thread=True)
def swagger(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Swagger UI."""
    return swagger_page(request)


def swagger_page(request: Request[Any, Any, Any], script: bytes = b"") -> Response[bytes]:
    """Make the page, with a script that runs first. The page remembers the token that the user pastes."""
    assets = f"{record_of(request.scope).root_path}/docs/assets/swagger_ui"
    viewer = SwaggerRenderPlugin(
        style=_SWAGGER_STYLE,
        js_url=f"{assets}/swagger-ui-bundle.js",
        css_url=f"{assets}/swagger-ui.css",
        standalone_preset_js_url=f"{assets}/swagger-ui-standalone-preset.js",
        favicon=FAVICON,
    )
    html = viewer.render(request, _contract(request.app))
    html = html.replace(b"deepLinking: true,", b"deepLinking: true, persistAuthorization: true,")
    return html_page(html.replace(b"</head>", script + b"</head>", 1))


@get("/redoc", include_in_schema=False, sync_to_thread=True)
def redoc(request: Request[Any, Any, Any]) -> Response[bytes]:
    """ReDoc."""
    script = f"{record_of(request.scope).root_path}/docs/assets/redoc/redoc.standalone.js"
    viewer = RedocRenderPlugin(js_url=script, google_fonts=False, favicon=FAVICON)
    return html_page(viewer.render(request, _contract(request.app)))


def html_page(html: bytes) -> Response[bytes]:
    """A page that loads nothing from other servers."""
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": _CONTENT_SECURITY_POLICY})


_CODE = re.compile(r"`([^`]*)`")
_PROBLEMS_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:.4rem .8rem "
    ".4rem 0;border-bottom:1px solid #8884}code{font-size:.9em;background:#8882;padding:.1em .3em;border-radius:4px}"
)


class Explanation(msgspec.Struct):
    """An error: what it means and what to do. `retry_after` is in seconds; 0 means that a retry does not help."""

    type: str
    title: str
    status: int
    error: str
    meaning: str
    what_to_do: str
    retry_after: int


@get(["/problems", "/problems/{code:str}"], include_in_schema=False, sync_to_thread=False)
def explain(request: Request[Any, Any, Any], code: FromPath[str] = "") -> Response[bytes]:
    """One error, or all sorted by status: HTML, or JSON for a client that accepts JSON and not HTML."""
    kinds: list[type[Problem]] = request.app.state.problems
    address = f"{record_of(request.scope).root_path}/problems"
    explained = [_explanation(kind, address) for kind in kinds if code in ("", kind.code)]
    if not explained:
        raise NotFound(f"There is no error {shown(code)}. {address} lists every one.")
    explained.sort(key=lambda each: (each.status, each.error))
    told = accepted(request.headers.get("accept", "").encode())
    if not told.get(b"text/html") and any(b"json" in kind for kind in told if told[kind]):
        answer = Response(msgspec.json.encode(explained[0] if code else explained), media_type="application/json")
    else:
        answer = html_page(_page(code or "Errors", explained, address).encode())
    answer.headers["Vary"] = "Accept"
    return answer


def _explanation(kind: type[Problem], address: str) -> Explanation:
    """The first sentence of the docstring is what the error means, the others are what to do."""
    meaning, _, advice = (kind.__doc__ or "").partition(". ")
    title = phrase(kind.status)
    return Explanation(f"{address}/{kind.code}", title, kind.status, kind.code, f"{meaning}.", advice, kind.retry_after)


def _page(title: str, explained: list[Explanation], address: str) -> str:
    rows = (
        f'<tr><td>{each.status} {each.title}<td><a href="{each.type}"><code>{each.error}</code></a>'
        f"<td>{_html(each.meaning)}<td>{_html(each.what_to_do)}<td>{each.retry_after or ''}"
        for each in explained
    )
    return (
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><meta name=viewport content=width=device-width>"
        f"<title>{title}</title>{FAVICON}<style>{_PROBLEMS_STYLE}</style><h1>{title}</h1>"
        f'<p>Every <a href="{address}">error</a> has the same body (RFC 9457). Its <code>error</code> is stable.'
        "<table><tr><th>Status<th>Error<th>What it means<th>What to do<th><code>Retry-After</code>"
        f"{''.join(rows)}</table>"
    )


def _html(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))


HANDLERS: list[ControllerRouterHandler] = [get_root, openapi_json, swagger, redoc, asset, explain]
