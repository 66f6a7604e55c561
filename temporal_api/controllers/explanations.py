"""`/problems`, where a problem's `type` leads: what each error means and what to do, from the errors' docstrings."""

import re
from html import escape
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

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


@get("/problems", include_in_schema=False, sync_to_thread=False)
def list_problems(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Every error: a page, or JSON for who accepts that and no page."""
    found = _explanations(request)
    rows = (
        f'<tr><td>{each.status}<td><a href="{each.type}"><code>{each.error}</code></a>'
        f"<td>{_html(each.meaning)}<td>{_html(each.what_to_do)}"
        for each in found
    )
    table = f"<table><tr><th>Status<th>Error<th>What it means<th>What to do{''.join(rows)}</table>"
    about = "<p>Every error has the same body (RFC 9457). Its <code>error</code> is one of these, and stable."
    return _answer(request, found, "Errors", f"{about}{table}")


@get("/problems/{code:str}", include_in_schema=False, sync_to_thread=False)
def explain_problem(request: Request[Any, Any, Any], code: FromPath[str]) -> Response[bytes]:
    """One error: a page, or JSON for who accepts that and no page."""
    found = next((each for each in _explanations(request) if each.error == code), None)
    if found is None:
        raise NotFound(f"There is no error {shown(code)}. {_address(request)} lists every one.")
    again = f"<p>Usually <code>Retry-After: {found.retry_after}</code>, in seconds." if found.retry_after else ""
    content = (
        f"<p>Status {found.status} {escape(found.title)}<h2>What it means</h2><p>{_html(found.meaning)}"
        f'<h2>What to do</h2><p>{_html(found.what_to_do)}{again}<p><a href="{_address(request)}">All errors</a>'
    )
    return _answer(request, found, code, content)


def _address(request: Request[Any, Any, Any]) -> str:
    return f"{record_of(request.scope).root_path}/problems"


def _explanations(request: Request[Any, Any, Any]) -> list[Explanation]:
    """Every class with a code of its own, those of resources too, by status.

    The first sentence of its docstring is what the error means, the others are what to do.
    """
    kinds, found, address = [Problem], {}, _address(request)
    for kind in kinds:
        kinds += kind.__subclasses__()  # the loop goes on with them
        if "code" in vars(kind):
            meaning, _, advice = (kind.__doc__ or "").partition(". ")
            told = (phrase(kind.status), kind.status, kind.code, f"{meaning}.", advice, kind.retry_after)
            found[kind.code] = Explanation(f"{address}/{kind.code}", *told)
    return sorted(found.values(), key=lambda each: (each.status, each.error))


def _html(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _answer(request: Request[Any, Any, Any], content: Any, title: str, body: str) -> Response[bytes]:
    accepted = request.headers.get("accept", "")
    if "json" in accepted and "text/html" not in accepted:
        answer = Response(msgspec.json.encode(content), media_type="application/json")
    else:
        head = f"<meta charset=utf-8><meta name=viewport content=width=device-width><title>{title}</title>{FAVICON}"
        answer = html_page(f"<!DOCTYPE html><html lang=en>{head}<style>{_STYLE}</style><h1>{title}</h1>{body}".encode())
    answer.headers["Vary"] = "Accept"
    return answer


HANDLERS: list[ControllerRouterHandler] = [list_problems, explain_problem]
