"""The public pages: the root, the contract's two viewers and their scripts."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from api import assert_problem
from temporal_api import __version__
from temporal_api.dev.browser import CODEC_PATH

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/openapi.json", "/metrics"])
async def test_the_pages_are_public(http: httpx.AsyncClient, path: str) -> None:
    """Each page answers without a token, with or without a trailing slash."""
    response = await http.get(path)

    assert 200 == response.status_code
    assert 200 == (await http.get(f"{path.rstrip('/')}/")).status_code


async def test_the_root_says_what_answers(http: httpx.AsyncClient) -> None:
    """GET / is the service's name and version."""
    assert {"message": "Temporal Enterprise API", "version": __version__} == (await http.get("/")).json()


async def test_the_framework_serves_no_pages_of_its_own(http: httpx.AsyncClient) -> None:
    """There is one contract and one 404."""
    for path in ("/openapi", "/openapi/openapi.json", "/openapi/swagger", "/schema"):
        assert_problem(await http.get(path), 404, "not_found")


class Page(HTMLParser):
    """An HTML page: every address in it, and its scripts' text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.script = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the addresses."""
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        """Keep the scripts."""
        self.script += data if self._in_script else ""


@pytest.mark.parametrize(("path", "assets"), [("/docs", 3), ("/redoc", 1)])
async def test_a_viewer_shows_the_contract_and_asks_nobody_else(
    http: httpx.AsyncClient, contract: dict[str, Any], path: str, assets: int
) -> None:
    """The page holds the contract; every address in it is the service's own and answers what it should."""
    response = await http.get(path)
    page = Page(response.text)
    fetched = [address for address in page.addresses if not address.startswith("data:")]

    assert "text/html; charset=utf-8" == response.headers["content-type"]
    assert assets == len(fetched)
    for address in fetched:
        asset = await http.get(address)
        kind = "text/css" if address.endswith(".css") else "text/javascript"
        assert (200, f"{kind}; charset=utf-8") == (asset.status_code, asset.headers["content-type"])
        assert address.startswith("/docs/")
        assert asset.headers["cache-control"] == "max-age=86400, public"
    assert "://" not in response.text
    shown, _ = json.JSONDecoder().raw_decode(page.script, page.script.index('{"info"'))
    assert contract == shown


async def test_only_dev_takes_a_token_from_the_address_and_decrypts_without_one(http: httpx.AsyncClient) -> None:
    """Swagger UI remembers the token that it was given. What else `dev` does for its browser, nothing else does."""
    page = (await http.get("/docs")).text

    assert "persistAuthorization: true" in page
    assert "location" not in Page(page).script
    assert_problem(await http.post(f"{CODEC_PATH}/decode", json={"payloads": []}), 404, "not_found")


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_a_viewer_may_ask_only_this_service(http: httpx.AsyncClient, path: str) -> None:
    """The Content-Security-Policy names no other place, and nobody may frame the page."""
    policy = (await http.get(path)).headers["content-security-policy"]
    directives = {name: values for name, *values in map(str.split, policy.split(";"))}

    assert ["'none'"] == directives["default-src"]
    assert ["'none'"] == directives["frame-ancestors"]
    allowed = {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}
    assert {value for values in directives.values() for value in values} <= allowed
    assert {"data:", "blob:"}.isdisjoint(directives["script-src"])


async def test_redoc_takes_its_logo_from_the_service(http: httpx.AsyncClient) -> None:
    """The bundled script would fetch a picture from its maker's server; here it asks this one, which has it."""
    script = (await http.get("/docs/redoc.js")).text

    assert "cdn.redoc.ly" not in script
    logo = re.search(r'"(/docs/assets/redoc/[^"]+\.svg)"', script)
    assert logo
    assert (await http.get(logo[1])).headers["content-type"].startswith("image/svg+xml")
