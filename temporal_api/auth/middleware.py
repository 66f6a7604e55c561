"""What stands before every route under `/api/v1`."""

from collections.abc import Iterable
from typing import Any

from litestar import Request
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation
from litestar.types import ASGIApp, Receive, Scope, Send

from temporal_api.auth.refusals import unauthorized
from temporal_api.auth.verifier import User, Verifier
from temporal_api.errors import Problem


class Authenticate:
    """The `/api/v1` router's middleware: no token, no handler; no scope, no handler."""

    def __init__(self, app: ASGIApp, verifier: Verifier) -> None:
        self._app = app
        self._verifier = verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set `scope["user"]`, or raise Problem."""
        user = await self._verifier.user(_bearer(scope["headers"]))
        scope["user"] = user
        needed = scope["route_handler"].opt.get("scope", ())
        allowed = (needed,) if isinstance(needed, str) else needed
        # Litestar's own OPTIONS handlers tell which methods there are, and name no scope.
        if user.scopes.isdisjoint(allowed) and scope.get("method") != "OPTIONS":
            needs = " or ".join(allowed) or "(none is enough)"
            challenge = f'Bearer realm="temporal_api", error="insufficient_scope", scope="{" ".join(allowed[:1])}"'
            raise Problem("insufficient_scope", f"The token needs the scope {needs}.", {"WWW-Authenticate": challenge})
        await self._app(scope, receive, send)


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> str:
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        raise unauthorized("missing_token", "Send a token: Authorization: Bearer TOKEN.")
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise unauthorized(
            "missing_token", "Send exactly one Authorization header of the form: Authorization: Bearer TOKEN."
        )
    token = token.strip()
    # Pasted with its own prefix, where a form asks for the token alone.
    return token[7:].lstrip() if token[:7].lower() == "bearer " else token


def provide_user(request: Request[User, Any, Any]) -> User:
    """The verified caller. Outside `/api/v1` there is none, and asking for one is an error: never an anonymous pass."""
    return request.user


CurrentUser = NamedDependency[SkipValidation[User]]
USER = Provide(provide_user, sync_to_thread=False)
