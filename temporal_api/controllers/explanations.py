"""`/problems`, where a problem's `type` leads: what each error means and what to do, from the errors' docstrings."""

import re
from html import escape
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.params import FromPath

from temporal_api.controllers.pages import FAVICON, html_page
from temporal_api.errors import NotFound, Problem, shown
from temporal_api.problems import phrase
from temporal_api.record import record_of

_CODE = re.compile(r"`([^`]*)`")
_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:.4rem .8rem "
    ".4rem 0;border-bottom:1px solid #8884}code{font-size:.9em;background:#8882;padding:.1em .3em;border-radius:4px}"
)


class Explanation(msgspec.Struct):
    """An error: what it means and what to do. `retry_after` is in seconds; 0: to try again does not help."""

    type: str
    title: str
    status: int
    error: str
    meaning: str
    what_to_do: str
    retry_after: int


@get(["/problems", "/problems/{code:str}"], include_in_schema=False, sync_to_thread=False)
def explain(request: Request[Any, Any, Any], code: FromPath[str] = "") -> Response[bytes]:
    """One error, or all by their status: a page, or JSON for who accepts that and no page."""
    address = f"{record_of(request.scope).root_path}/problems"
    explained = [_explanation(kind, address) for kind in request.app.state.problems if code in ("", kind.code)]
    if not explained:
        raise NotFound(f"There is no error {shown(code)}. {address} lists every one.")
    explained.sort(key=lambda each: (each.status, each.error))
    accepted = request.headers.get("accept", "")
    if "json" in accepted and "text/html" not in accepted:
        content = msgspec.json.encode(explained[0] if code else explained)
        return Response(content, media_type="application/json", headers={"Vary": "Accept"})
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
        f"<title>{title}</title>{FAVICON}<style>{_STYLE}</style><h1>{title}</h1>"
        f'<p>Every <a href="{address}">error</a> has the same body (RFC 9457). Its <code>error</code> is stable.'
        "<table><tr><th>Status<th>Error<th>What it means<th>What to do<th><code>Retry-After</code>"
        f"{''.join(rows)}</table>"
    )


def _html(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))
