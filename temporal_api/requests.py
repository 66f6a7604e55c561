"""JSON in and out: a body is decoded once, strictly, into the handler's struct. Paths carry any workflow id.

Litestar itself would decode without a type and convert leniently: it takes `"2"` for 2, and loses digits of numbers.
"""

import asyncio
import codecs
import functools
import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from litestar import Request, Response
from litestar.types import Receive, Scope, Send
from litestar.utils.path import normalize_path

from temporal_api.bounds import FEW, check_entries
from temporal_api.errors import FieldError, MalformedJSON, Problem, UnsupportedMediaType, invalid_fields, shown
from temporal_api.mistakes import MOST, PARAMETERS, Parameter, body_mistakes, parameter_mistakes, there_are

T = TypeVar("T")

_LARGE = 100_000
"""From this many bytes on, a thread looks for the mistakes of a body, while other requests run."""

_GZIP = b"\x1f\x8b"
_REFUSED = re.compile(rb";q=0(\.0*)?(;|$)")
_decoder = functools.cache(msgspec.json.Decoder)


def accepted(header: bytes) -> dict[bytes, bool]:
    """What a header such as Accept names, and whether it is acceptable: `q=0` refuses it (RFC 9110 12.4.2)."""
    items = header.lower().replace(b" ", b"").split(b",")
    return {item.partition(b";")[0]: not _REFUSED.search(item) for item in items}


class JSONResponse(Response[T]):
    """A struct as JSON. It has no cookies and no background tasks, and so costs a fraction of Litestar's response."""

    def __init__(
        self, content: T, *, status_code: int | None = None, headers: Mapping[str, str] | None = None, **_: Any
    ) -> None:
        self._answer = content
        self._status = status_code
        self._headers = headers

    def to_asgi_response(self, app: object, request: object, *, status_code: int | None = None, **_: Any) -> Any:
        """Encode the answer. `status_code` is the handler's, for a response that has none of its own."""
        body, headers = b"", []
        if self._answer is not None:
            body = msgspec.json.encode(self._answer)
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if self._headers:
            headers += [(name.lower().encode(), value.encode()) for name, value in self._headers.items()]
        start: Any = {"type": "http.response.start", "status": self._status or status_code, "headers": headers}
        end: Any = {"type": "http.response.body", "body": body, "more_body": False}

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await send(start)
            await send(end)

        return answer


class JSONRequest(Request[Any, Any, Any]):
    """A request whose `json()` decodes the body into the type of the handler's `data`."""

    @property
    def path_params(self) -> dict[str, Any]:
        """Decode what `settle_slashes` kept encoded for the router."""
        found = super().path_params
        if b"%" not in self.scope["raw_path"]:
            return found
        return {
            name: value.replace("%2F", "/").replace("%25", "%") if isinstance(value, str) else value
            for name, value in found.items()
        }

    async def json(self) -> Any:
        """Decode the body. Raises UnsupportedMediaType, MalformedJSON or ValidationError."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise UnsupportedMediaType
        codings = ",".join(self.headers.getall("content-encoding", ())).lower().split(",")
        if any(coding.strip() not in ("", "identity") for coding in codings):
            message = "Send the body without Content-Encoding."
            raise UnsupportedMediaType(message, {"Accept-Encoding": "identity"})
        body = await self.body()
        annotation = self.route_handler.parsed_data_field.annotation  # type: ignore[union-attr]
        try:
            body.decode()  # msgspec.Raw takes bytes that are not UTF-8
            if body.count(b",") >= FEW:
                await check_entries(body, msgspec.inspect.type_info(annotation))
                await asyncio.sleep(0)  # decoding takes some milliseconds more
            try:
                return _decoder(annotation).decode(body)
            except msgspec.ValidationError:
                msgspec.json.decode(body, type=msgspec.Raw)  # what follows the mistake may be no JSON
                find = functools.partial(body_mistakes, body, annotation)
                raise invalid_fields(find() if len(body) < _LARGE else await asyncio.to_thread(find)) from None
        except UnicodeDecodeError as error:
            compressed = "it is compressed, and has no Content-Encoding that says so"
            raise _malformed(compressed if body[:2] == _GZIP else f"it is not UTF-8 (byte {error.start})") from None
        except RecursionError:
            raise _malformed("it is nested too deeply") from None
        except msgspec.DecodeError as error:
            if body.startswith(codecs.BOM_UTF8):
                raise _malformed("it begins with a byte order mark (BOM); leave that out") from None
            raise _malformed(str(error).removeprefix("JSON is malformed: ")) from None


def _malformed(why: str) -> MalformedJSON:
    return MalformedJSON(f"The body is not JSON: {why}.")


async def check_parameters(request: Request[Any, Any, Any]) -> None:
    """Refuse unknown and repeated query parameters: a filter that is ignored would mislead."""
    if not request.scope["query_string"]:
        return
    known: Mapping[str, Parameter] = request.route_handler.opt[PARAMETERS]
    sent = [name for name, _ in request.query_params.multi_items()]
    mistakes = [
        FieldError(
            shown(name), f"There is no such parameter{there_are(name, known) if known else '; this operation has none'}"
        )
        for name in sorted({*sent} - {*known})[:MOST]
    ]
    mistakes += [
        FieldError(name, "Expected it once")
        for name, parameter in known.items()
        if not parameter.repeatable and sent.count(name) > 1
    ]
    if "null" in map(str.lower, request.query_params.values()):
        mistakes += parameter_mistakes(request)
    if mistakes:
        if request.route_handler.parsed_data_field:
            try:
                await request.json()
            except Problem as problem:
                mistakes += problem.details.get("errors", ())
        raise invalid_fields(mistakes[:MOST])


def settle_slashes(scope: Any) -> None:
    """Before routing, keep `%2F` and `%25` encoded (a workflow id may have them), and take several slashes for one."""
    raw = scope.get("raw_path") or b""
    if b"%" in raw:
        kept = raw.decode("latin-1").replace("%25", "%2525").replace("%2F", "%252F").replace("%2f", "%252F")
        scope["path"] = unquote(kept)
    if b"//" in raw:
        scope["path"] = normalize_path(scope["path"])
