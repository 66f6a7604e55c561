"""The public pages: the root, the contract's two viewers and their scripts."""

import asyncio
import functools
import json
import re
import threading
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from litestar import Litestar

from api import assert_problem, service
from temporal_api import __version__, openapi
from temporal_api.controllers import pages
from temporal_api.dev.browser import CODEC_PATH
from temporal_api.problems import phrase
from test_errors import failures

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/redoc", "/openapi.json", "/metrics", "/problems", "/problems/no_worker"]
)
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


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/problems", "/problems/no_worker"])
async def test_a_viewer_may_ask_only_this_service(http: httpx.AsyncClient, path: str) -> None:
    """The Content-Security-Policy names no other place, and nobody may frame the page."""
    policy = (await http.get(path)).headers["content-security-policy"]
    directives = {name: values for name, *values in map(str.split, policy.split(";"))}

    assert ["'none'"] == directives["default-src"]
    assert ["'none'"] == directives["frame-ancestors"]
    allowed = {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}
    assert {value for values in directives.values() for value in values} <= allowed
    assert {"data:", "blob:"}.isdisjoint(directives["script-src"])


async def test_the_contract_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a tenth of a second to make: not in the event loop, and once for all who ask first."""
    makers: list[threading.Thread] = []

    def make(app: Litestar) -> dict[str, Any]:
        makers.append(threading.current_thread())
        return openapi.contract(app)

    monkeypatch.setattr(pages, "_made", functools.lru_cache(maxsize=1)(make))
    async with service(TEMPORAL_ADDRESS="127.0.0.1:1") as api:
        answers = await asyncio.gather(*(api.get(path) for path in ("/openapi.json", "/docs", "/redoc")))

    assert [200, 200, 200] == [answer.status_code for answer in answers]
    assert 1 == len(makers)
    assert makers[0] is not threading.current_thread()


async def test_redoc_takes_its_logo_from_the_service(http: httpx.AsyncClient) -> None:
    """The bundled script would fetch a picture from its maker's server; here it asks this one, which has it."""
    script = (await http.get("/docs/assets/redoc/redoc.standalone.js")).text

    assert "cdn.redoc.ly" not in script
    logo = re.search(r'"(/docs/assets/redoc/[^"]+\.svg)"', script)
    assert logo
    assert (await http.get(logo[1])).headers["content-type"].startswith("image/svg+xml")


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/docs/assets/swagger_ui/swagger-ui-bundle.js",
        "/docs/assets/swagger_ui/swagger-ui.css",
        "/docs/assets/redoc/redoc.standalone.js",
    ],
)
async def test_what_stays_the_same_is_sent_once_and_compressed(http: httpx.AsyncClient, path: str) -> None:
    """Gzip for who accepts it, the same content for all, and 304 for who has it, by whatever proxy."""
    plain = await http.get(path, headers={"Accept-Encoding": "identity"})
    packed = await http.get(path, headers={"Accept-Encoding": "gzip"})
    tag = packed.headers["etag"]

    assert "gzip" == packed.headers["content-encoding"]
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert "content-encoding" not in plain.headers
    assert (plain.content, plain.headers["etag"]) == (packed.content, tag)
    for known in (tag, tag.removeprefix("W/"), f'"x", {tag[:-1]}-gzip"', "*"):
        again = await http.get(path, headers={"If-None-Match": known})
        assert (304, b"", tag) == (again.status_code, again.content, again.headers["etag"])
        assert plain.headers["cache-control"] == again.headers["cache-control"]
    assert all("Accept-Encoding" in answer.headers["vary"] for answer in (plain, packed, again))
    assert 200 == (await http.get(path, headers={"If-None-Match": '"another"'})).status_code


def test_an_operation_says_what_it_needs(contract: dict[str, Any]) -> None:
    """Its scopes, in its description and its security; how to get a token; and how to watch a stream."""
    operations = {(path, method): each for path, of in contract["paths"].items() for method, each in of.items()}
    secured = {key: each for key, each in operations.items() if key[0].startswith("/api/v1")}

    assert secured
    for (path, _), operation in secured.items():
        scopes = [scope for each in operation["security"] for scope in each["bearer"]]
        assert f"Needs the scope {' or '.join(f'`{scope}`' for scope in scopes)}." in operation["description"]
        assert path.endswith("/events") == ("curl -N" in operation["description"])
        assert path.endswith("/events") == (path in operation["description"])
    how = contract["components"]["securitySchemes"]["bearer"]["description"]
    assert "without `Bearer`" in how
    assert "`temporal-api token`" in how


async def test_errors_are_folded(http: httpx.AsyncClient) -> None:
    """An operation has a dozen of them; the page shows their codes, and the rest when it is asked for."""
    assert '[data-code^="4"]:not(.open)' in (await http.get("/docs")).text


# /problems


CODES = {kind.code: kind for kind in failures() if "code" in vars(kind)}


async def test_every_error_is_explained(http: httpx.AsyncClient) -> None:
    """Every code with its status, what it means and what to do, as JSON and as a page that says the same."""
    found = (await http.get("/problems", headers={"Accept": "application/json"})).json()
    page = await http.get("/problems", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})

    assert CODES.keys() <= {each["error"] for each in found}
    assert "text/html; charset=utf-8" == page.headers["content-type"]
    for each in found:
        if kind := CODES.get(each["error"]):
            assert (kind.status, phrase(kind.status)) == (each["status"], each["title"])
            assert f"{each['meaning']} {each['what_to_do']}" == kind.__doc__
            assert kind.retry_after == each["retry_after"]
            assert each["meaning"].endswith(".")
            assert each["what_to_do"].endswith(".")
        assert f'href="{each["type"]}"' in page.text
        one = await http.get(each["type"])
        assert each["error"] in one.text
        text = re.sub("<.*?>", "", unescape(one.text))
        assert each["meaning"].replace("`", "") in text
        assert each["what_to_do"].replace("`", "") in text
        for accept in ("application/problem+json", "Application/JSON", "application/json, text/html; q=0.0"):
            assert each == (await http.get(each["type"], headers={"Accept": accept})).json()


async def test_a_problem_s_type_leads_to_its_explanation(alice: httpx.AsyncClient) -> None:
    """As it stands in the error, from the address that answered; a code that is none is a 404."""
    problem = assert_problem(await alice.get("/api/v1/orders/none"), 404, "order_not_found")
    page = await alice.get(str(alice.base_url.join(problem["type"])))

    assert (200, True) == (page.status_code, "no such order" in page.text)
    for accept in ("*/*", "application/json", "text/html", "garbage", "a/b;q=inf"):
        assert 200 == (await alice.get("/problems", headers={"Accept": accept})).status_code
    unknown = assert_problem(await alice.get("/problems/<b>"), 404, "not_found")
    assert "/problems lists every one" in unknown["message"]
