"""Token -> User: verified JWTs, scopes, and the middleware that closes everything under `/api/v1`.

Every route handler names the scope it needs (`@get(..., scope="orders:read")`); one that names none is refused.

    verifier      the token's signature and claims -> User and scopes
    jwks          the keys; an issuer's are fetched at start, and renewed in the background
    keys          the algorithms that a key may be used with; the forms of JWT_PUBLIC_KEY
"""

from collections.abc import Iterable
from typing import Any

from litestar import Request
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation
from litestar.types import ASGIApp, Receive, Scope, Send

from temporal_api.auth.verifier import User, Verifier
from temporal_api.errors import InsufficientScope, MissingToken
from temporal_api.record import record_of

__all__ = ["USER", "APIRequest", "Authenticate", "CurrentUser", "User", "Verifier"]


class Authenticate:
    """The `/api/v1` router's middleware: without a token and the handler's scope, no handler runs."""

    def __init__(self, app: ASGIApp, verifier: Verifier) -> None:
        self._app = app
        self._verifier = verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate and authorize, or raise Unauthorized or InsufficientScope."""
        user = await self._verifier.user(_bearer(scope["headers"]))
        scope["user"] = user
        record_of(scope).user = user.sub
        needed = scope["route_handler"].opt.get("scope", ())
        allowed = (needed,) if isinstance(needed, str) else needed
        # Litestar's own OPTIONS handlers name no scope.
        if user.scopes.isdisjoint(allowed) and scope.get("method") != "OPTIONS":
            needs = " or ".join(allowed) or "(none is enough)"
            raise InsufficientScope(f"The token needs the scope {needs}.", " ".join(allowed[:1]))
        await self._app(scope, receive, send)


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> str:
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        raise MissingToken
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise MissingToken("Send exactly one Authorization header of the form: Authorization: Bearer TOKEN.")
    token = token.strip()
    # Some paste the token with its prefix into a form that adds one.
    return token[7:].lstrip() if token[:7].lower() == "bearer " else token


APIRequest = Request[User, Any, Any]
"""A request under `/api/v1`: its `user` is the verified caller."""


def provide_user(request: APIRequest) -> User:
    """The verified caller. Outside `/api/v1` there is none, and this raises an error."""
    return request.user


CurrentUser = NamedDependency[SkipValidation[User]]
USER = Provide(provide_user, sync_to_thread=False)
