"""Token -> User: verified JWTs, scopes, and the middleware that closes everything under `/api/v1`.

Every route handler names the scope it needs (`@get(..., scope="orders:read")`); one that names none is refused.
"""

import asyncio
import logging
import time
import urllib.request
from collections.abc import Iterable
from typing import Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK, PyJWKSet
from litestar import Request
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation
from litestar.types import ASGIApp, Receive, Scope, Send

from temporal_api.errors import AuthUnavailable, ExpiredToken, InsufficientScope, InvalidToken, MissingToken
from temporal_api.record import record_of
from temporal_api.settings import DEFAULT_ASYMMETRIC_ALGORITHMS, Settings, SettingsError

REMEMBERED_BYTES = 8 * 1024 * 1024
"""What verified tokens may take that are kept, so that a token is checked once and not at every request."""
TOKEN_BYTES, SCOPE_BYTES = 500, 100
"""What a token that is kept takes beside its text, and each of its scopes."""
REMEMBERED_SECONDS = 60.0
JWKS_REFRESH_SECONDS = 240.0
"""How old keys may be. One taken out of the JWKS stops working within this time and `REMEMBERED_SECONDS`."""
JWKS_COOLDOWN_SECONDS = 30.0
"""However many tokens with unknown key ids come, the JWKS is asked at most this often."""
JWKS_TIMEOUT_SECONDS = 5.0
JWKS_MAX_BYTES = 1_000_000
TOKEN_MAX_CHARS = 16_384

log = logging.getLogger(__name__)


class User(msgspec.Struct, frozen=True):
    """Who calls: the token's `sub`, its scopes, and when the token ends (seconds since the epoch)."""

    sub: str
    scopes: frozenset[str]
    expires_at: float


class JWKS:
    """The keys of an issuer. Known keys go on working while the issuer is away; the event loop never waits for it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str | None, PyJWK] = {}
        self._tried_at = self._fetched_at = float("-inf")
        self._away = False
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str | None) -> PyJWK:
        """The key of that id; the issuer is asked when it is new or may be out of date. Raises InvalidToken, ..."""
        found = self._keys.get(kid)
        now = time.monotonic()
        if found is not None and now - self._fetched_at < JWKS_REFRESH_SECONDS:
            return found
        fetching = self._fetch(now)
        # A known key waits only for an issuer that answered the last time.
        if fetching is not None and (found is None or not self._away):
            await asyncio.shield(fetching)  # shared: a caller that goes away does not cancel it for the others
        if (found := self._keys.get(kid)) is not None:
            return found
        if self._away:
            raise AuthUnavailable
        raise _invalid("its key id is not known")

    def _fetch(self, now: float) -> asyncio.Task[None] | None:
        if self._fetching is None and now - self._tried_at >= JWKS_COOLDOWN_SECONDS:
            self._tried_at = now
            self._fetching = asyncio.create_task(self._fetch_keys())
        return self._fetching

    async def _fetch_keys(self) -> None:
        try:
            async with asyncio.timeout(JWKS_TIMEOUT_SECONDS):  # finding the host's address has no other
                answer = await asyncio.to_thread(_get, self._url)
            keys = {
                k.key_id: k
                for k in PyJWKSet.from_json(answer).keys
                if k.public_key_use in (None, "sig") and k.key_type != "oct" and isinstance(k.key_id, str | None)
            }
        except Exception as error:  # whatever the issuer sends: the old keys stay
            log.warning("the JWKS cannot be had: %s: %s", type(error).__name__, error)
            self._away = True
        else:
            self._keys, self._fetched_at, self._away = keys, time.monotonic(), False
        finally:
            self._fetching = None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from where the settings say, or not at all."""

    def redirect_request(self, *_: object) -> None:
        """Leave the redirect as the failure that it is."""


def _get(url: str) -> str:
    """The body at that address, read in a thread that always ends: the process waits for it when it exits."""
    deadline = time.monotonic() + JWKS_TIMEOUT_SECONDS
    body = b""
    with urllib.request.build_opener(_NoRedirects).open(url, timeout=JWKS_TIMEOUT_SECONDS) as answer:
        while piece := answer.read1(65_536):
            body += piece
            if len(body) > JWKS_MAX_BYTES or time.monotonic() > deadline:
                raise TimeoutError("its answer does not end")
    return body.decode()


class Verifier:
    """Checks bearer tokens by the settings' one kind of key. Raises SettingsError when that key is unfit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jwks = JWKS(settings.jwt_jwks_url) if settings.jwt_jwks_url else None
        self._key: Any = settings.jwt_secret
        self._algorithms: tuple[str, ...] = settings.jwt_algorithms
        if settings.jwt_secret:
            self._algorithms = self._algorithms or ("HS256",)
        else:
            self._algorithms = self._algorithms or DEFAULT_ASYMMETRIC_ALGORITHMS
        if settings.jwt_public_key:
            self._key, kind = _public_key(settings.jwt_public_key)
            self._algorithms = tuple(a for a in self._algorithms if a.startswith(kind))
            if not self._algorithms:
                raise SettingsError(f"JWT_ALGORITHMS: none of them goes with this JWT_PUBLIC_KEY ({'/'.join(kind)})")
        self._verified: dict[str, tuple[User, float]] = {}
        self._verified_bytes = 0
        # Without an audience of our own, a token's audience is not ours to judge.
        self._options: Any = {
            "require": ["exp", "sub"],
            "verify_aud": bool(settings.jwt_audience),
            "enforce_minimum_key_length": True,
        }

    def __deepcopy__(self, memo: object) -> "Verifier":
        """Litestar copies what stands before a route for each route: they all share one verifier."""
        return self

    async def user(self, token: str) -> User:
        """The verified caller. Raises InvalidToken, ExpiredToken or AuthUnavailable."""
        now = time.time()
        known = self._verified.get(token)
        if known is not None and now < known[1]:
            return known[0]
        user = await self._verify(token)
        self._forget(token)
        self._verified[token] = (user, min(user.expires_at, now + REMEMBERED_SECONDS))
        self._verified_bytes += _bytes(token, user)
        while self._verified_bytes > REMEMBERED_BYTES:
            self._forget(next(iter(self._verified)))  # the oldest
        return user

    def _forget(self, token: str) -> None:
        known = self._verified.pop(token, None)
        if known is not None:
            self._verified_bytes -= _bytes(token, known[0])

    async def _verify(self, token: str) -> User:
        if len(token) > TOKEN_MAX_CHARS:
            raise _invalid("it is too long")
        try:
            key, algorithms = self._key, self._algorithms
            if self._jwks is not None:
                header = jwt.get_unverified_header(token)
                if header.get("alg") not in algorithms:  # before anything is fetched for it
                    raise _invalid("its algorithm is not accepted")
                jwk = await self._jwks.key(header.get("kid"))
                # PyJWK itself takes an RSA key without `alg` for RS256 only.
                key, algorithms = jwk.key, tuple(a for a in algorithms if a in _algorithms_of(jwk))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(algorithms),
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                leeway=self._settings.jwt_leeway_seconds,
                options=self._options,
            )
            subject, expires = claims["sub"], float(claims["exp"])
        except jwt.ExpiredSignatureError:
            raise ExpiredToken from None
        except jwt.MissingRequiredClaimError as error:
            raise _invalid(f"it has no {error.claim} claim") from None
        except jwt.InvalidAudienceError:
            raise _invalid("it is meant for another audience") from None
        except jwt.InvalidIssuerError:
            raise _invalid("it comes from another issuer") from None
        except jwt.ImmatureSignatureError:
            raise _invalid("it is not valid yet") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise _invalid("it cannot be verified") from None
        if not isinstance(subject, str) or not subject or len(subject) > 255 or not subject.isprintable():
            raise _invalid("its sub claim names nobody")
        return User(subject, _scopes(claims, self._settings.jwt_scopes_claim), expires)


def _public_key(pem: str) -> tuple[Any, tuple[str, ...]]:
    """The key and the beginnings of the algorithms it can be used with."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError("JWT_PUBLIC_KEY: not a PEM public key (-----BEGIN PUBLIC KEY-----)") from None
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            raise SettingsError("JWT_PUBLIC_KEY: an RSA key of 2048 bits or more is needed")
        return key, ("RS", "PS")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key, (_CURVES[key.curve.name],)
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return key, ("EdDSA",)
    raise SettingsError("JWT_PUBLIC_KEY: an RSA, P-256, P-384, P-521 or Ed25519 key is needed")


_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_JWK_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


def _algorithms_of(key: PyJWK) -> tuple[str, ...]:
    """What a JWK may be used with, by its type and not by the token's word; its own `alg` narrows it (RFC 7517 4.4)."""
    data = key._jwk_data
    if alg := data.get("alg"):
        return (str(alg),)
    match data.get("kty"):
        case "RSA":
            return ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
        case "EC":
            return (_JWK_CURVES.get(str(data.get("crv")), ""),)
        case "OKP":
            return ("EdDSA",)
    return ()


def _scopes(claims: dict[str, Any], path: str) -> frozenset[str]:
    value: Any = claims.get(path)
    if value is None:
        value = claims
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list):
        return frozenset(scope for scope in value if isinstance(scope, str) and scope)
    return frozenset()


def _bytes(token: str, user: User) -> int:
    return len(token) + TOKEN_BYTES + SCOPE_BYTES * len(user.scopes)


def _invalid(why: str) -> InvalidToken:
    return InvalidToken(f"The token is not accepted: {why}.")


class Authenticate:
    """The `/api/v1` router's middleware: no token, no handler; no scope, no handler."""

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
        # Litestar's own OPTIONS handlers tell which methods there are, and name no scope.
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
    return token.strip()


APIRequest = Request[User, Any, Any]
"""A request under `/api/v1`: its `user` is the verified caller."""


def provide_user(request: APIRequest) -> User:
    """The verified caller. Outside `/api/v1` there is none, and asking for one is an error: never an anonymous pass."""
    return request.user


CurrentUser = NamedDependency[SkipValidation[User]]
USER = Provide(provide_user, sync_to_thread=False)
