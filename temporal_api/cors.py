"""CORS: what pages of other origins may do here (the Fetch standard's CORS protocol)."""

from collections.abc import Collection
from typing import Any

from temporal_api.errors import OriginNotAllowed

EXPOSED_HEADERS = (
    *("Accept-Encoding", "Allow", "ETag", "Idempotent-Replayed", "Location", "Preference-Applied"),
    *("Retry-After", "WWW-Authenticate", "X-Request-ID"),
)
_USUAL_HEADERS = b"Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, Prefer"

Headers = list[tuple[bytes, bytes]]


class Cors:
    """The allowed origins (ALLOWED_ORIGINS); without any there is no CORS."""

    def __init__(self, origins: Collection[str]) -> None:
        # Also for requests without Origin: a cache would give their answer to every page.
        self.default: Headers = [(b"vary", b"Origin")] if origins else []
        """The headers of answers to no allowed origin."""
        exposed = ", ".join(EXPOSED_HEADERS).encode()
        self.headers: dict[bytes, Headers] = {
            origin.encode(): [
                *self.default,
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", exposed),
            ]
            for origin in origins
        }
        """The headers of answers, by origin."""

    def preflight(self, scope: Any) -> Headers | None:
        """The headers that answer a preflight; None for other requests, or without CORS. Raises OriginNotAllowed."""
        if scope["method"] != "OPTIONS" or not self.headers:
            return None
        asked = dict(scope["headers"])
        if b"origin" not in asked or b"access-control-request-method" not in asked:
            return None
        if asked[b"origin"] not in self.headers:
            raise OriginNotAllowed
        names = asked.get(b"access-control-request-headers", _USUAL_HEADERS).split(b",")
        return [
            (b"access-control-allow-methods", b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
            (b"access-control-allow-headers", b", ".join(name.strip() for name in names)),
            (b"access-control-max-age", b"600"),
        ]
