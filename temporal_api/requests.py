"""The body's bytes decoded once, strictly, straight into the handler's struct; and paths that carry any workflow id.

Litestar's own way decodes untyped and converts leniently (`"2"` passes for 2, digits are lost), hence `JSONRequest`.
"""

from typing import Any
from urllib.parse import unquote

import msgspec
from litestar import Request
from litestar.types import Scope

from temporal_api.errors import Problem, invalid

_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}


class JSONRequest(Request[Any, Any, Any]):
    """A request whose `json()` is the handler's `data` parameter, already of its type."""

    async def json(self) -> Any:
        """Decode the body. Raises Problem: `unsupported_media_type`, `malformed_json`, `validation_error`."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise Problem("unsupported_media_type", "Send JSON, with Content-Type: application/json.")
        body = await self.body()
        # An operation whose body is optional has a default; an empty body means that default.
        annotation = self.route_handler.parsed_data_field.annotation  # type: ignore[union-attr]
        decoder = _DECODERS.get(annotation)
        if decoder is None:
            decoder = _DECODERS[annotation] = msgspec.json.Decoder(annotation)
        try:
            body.decode()  # msgspec.Raw takes bytes that are not UTF-8
            return decoder.decode(body)
        except msgspec.ValidationError as error:  # a DecodeError too: this order matters
            message, _, path = str(error).partition(" - at `")
            raise invalid(path.rstrip("`").removeprefix("$").removeprefix("."), message.replace("`", "")) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(" (")[0]
            raise Problem("malformed_json", f"The body is not JSON: {reason}.") from None


def keep_encoded_slashes(scope: Any) -> None:
    """Before routing: leave `%2F` (and `%`) encoded, so that a workflow id with a slash stays one path segment."""
    raw = scope.get("raw_path") or b""
    if b"%" in raw:
        kept = raw.decode("latin-1").replace("%25", "%2525").replace("%2F", "%252F").replace("%2f", "%252F")
        scope["path"] = unquote(kept)


def decode_path_params(scope: Scope) -> None:
    """After routing: the path parameters as the caller meant them."""
    if "%" in scope["path"]:
        # A new dict: Litestar caches the old one and shares it between requests.
        scope["path_params"] = {
            name: value.replace("%2F", "/").replace("%25", "%") if isinstance(value, str) else value
            for name, value in scope["path_params"].items()
        }
