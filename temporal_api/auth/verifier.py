"""Verify a token's signature and claims, and make the User."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import jwt
import msgspec
from jwt.exceptions import InvalidJTIError, InvalidSubjectError
from jwt.types import Options

from temporal_api.auth.jwks import JWKS
from temporal_api.auth.keys import Key, accepted_algorithms, public_keys
from temporal_api.auth.refusals import Refusals, shown
from temporal_api.errors import ExpiredToken, Problem
from temporal_api.settings import Settings

REMEMBERED_BYTES = 8 * 1024 * 1024
"""The memory for verified tokens, which are remembered so as not to verify them at every request."""
TOKEN_BYTES, SCOPE_BYTES = 500, 100
"""The memory that a remembered token takes beside its text, and each of its scopes."""
REMEMBERED_SECONDS = 60.0
TOKEN_MAX_CHARS = 16_384
SUBJECT_MAX_CHARS = 255

# This module checks issuer and audience, by rules that PyJWT lacks.
_OPTIONS: Options = {"require": ["exp", "sub"], "verify_aud": False, "enforce_minimum_key_length": True}
_UNVERIFIED: Options = {**_OPTIONS, "verify_signature": False, "verify_exp": True, "verify_nbf": True}
_REASONS = (
    (InvalidSubjectError, "its sub claim is not a string"),
    (InvalidJTIError, "its jti claim is not a string"),
    (jwt.ImmatureSignatureError, "it is not valid yet"),
    (
        (jwt.DecodeError, jwt.InvalidIssuedAtError, ValueError, OverflowError, RecursionError),
        "its claims cannot be read; exp, nbf and iat are numbers in a JSON object",
    ),
    (Exception, "it cannot be verified"),
)


class User(msgspec.Struct, frozen=True):
    """The caller: a unique name, the token's scopes, and when it expires (seconds since the epoch).

    `sub` is the token's `sub`, with the issuer before it for all but the first group of JWT_ISSUER. Ownership and
    Idempotency-Key depend on it.
    """

    sub: str
    scopes: frozenset[str]
    expires_at: float


class Verifier:
    """Verifies bearer tokens with the key of the settings. Raises SettingsError if that key is unfit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._issuers = settings.issuers
        self._accepted = accepted_algorithms(settings)
        self._keys: tuple[Key, ...] = ()
        self._jwks: JWKS | None = None
        if settings.jwt_jwks_url:
            self._jwks = JWKS(settings.jwt_jwks_url, tuple(self._issuers), self._accepted)
        elif settings.jwt_public_key:
            self._keys = public_keys(settings.jwt_public_key, self._accepted)
        else:
            secrets = (settings.jwt_secret, settings.jwt_secret_previous)
            self._keys = tuple(Key(secret, self._accepted) for secret in secrets if secret)
        self._refusals = Refusals()
        self._verified: dict[str, tuple[User, float]] = {}
        self._verified_bytes = 0

    def __deepcopy__(self, memo: object) -> "Verifier":
        """Return itself: Litestar copies a middleware's arguments for each route, but all share one verifier."""
        return self

    def start(self) -> None:
        """Begin to fetch an issuer's keys."""
        if self._jwks is not None:
            self._jwks.start()

    def close(self) -> None:
        """End what `start` began."""
        if self._jwks is not None:
            self._jwks.close()

    @property
    def keys_state(self) -> str:
        """For `/health`: "healthy" once there are keys, however old; otherwise the error."""
        return "healthy" if self._keys or (self._jwks is not None and self._jwks.known) else "unhealthy: no keys yet"

    async def user(self, token: str) -> User:
        """The verified caller. Raises InvalidToken, ExpiredToken or AuthUnavailable."""
        now = time.time()
        known = self._verified.get(token)
        if known is not None and now < known[1]:
            return known[0]
        user = await self._verify(token)
        self._forget(token)
        self._verified_bytes += _bytes(token, user)
        while self._verified_bytes > REMEMBERED_BYTES:
            self._forget(next(iter(self._verified)))  # the oldest
        self._verified[token] = (user, min(user.expires_at, now + REMEMBERED_SECONDS))
        return user

    def _forget(self, token: str) -> None:
        known = self._verified.pop(token, None)
        if known is not None:
            self._verified_bytes -= _bytes(token, known[0])

    async def _verify(self, token: str) -> User:
        try:
            claims = await self._claims(token)
            expires = float(claims["exp"])
        except jwt.ExpiredSignatureError:
            leeway = self._settings.jwt_leeway_seconds
            self._refusals.note("a token was refused: it has expired", f"{leeway} s ago or more (JWT_LEEWAY_SECONDS)")
            raise ExpiredToken from None
        except jwt.MissingRequiredClaimError as error:
            raise self._refusals.invalid(f"it has no {error.claim} claim", "exp and sub are required") from None
        except jwt.InvalidSignatureError:
            header = jwt.get_unverified_header(token)
            found = f"alg is {shown(header['alg'])}, kid is {shown(header.get('kid'))}"
            raise self._refusals.invalid("its signature is not that of a trusted key", found) from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            why = next(why for kinds, why in _REASONS if isinstance(error, kinds))
            raise self._refusals.invalid(why, shown(str(error))) from None
        name = self._name(claims)
        self._check_audience(claims)
        return User(name, self._scopes(claims), expires)

    async def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token with a valid signature, if it is valid now."""
        header = self._header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._accepted:  # before a key is fetched for it
            found = f"alg is {shown(algorithm)}, accepted (JWT_ALGORITHMS): {', '.join(sorted(self._accepted))}"
            raise self._refusals.invalid("its algorithm is not accepted", found)
        if self._jwks is None:
            return self._decoded(token, algorithm, self._keys)
        # First the checks that need no key: no key is fetched for another issuer's or an expired token.
        self._prefix(jwt.decode(token, leeway=self._settings.jwt_leeway_seconds, options=_UNVERIFIED))
        try:
            return self._decoded(token, algorithm, await self._published(self._jwks, kid))
        except jwt.InvalidSignatureError:  # the issuer may have changed the key under this id
            if not await self._jwks.renew():
                raise
            return self._decoded(token, algorithm, await self._published(self._jwks, kid))

    async def _published(self, jwks: JWKS, kid: str | None) -> list[Key]:
        """The issuer's keys with that id; at least one."""
        try:
            keys = await jwks.keys(kid)
        except Problem:
            self._refusals.note("the key of a token cannot be fetched now", _found(jwks, kid))
            raise
        if not keys:
            why = "its key id (kid) is not known" if kid is not None else "it has no kid, and its issuer several keys"
            raise self._refusals.invalid(why, _found(jwks, kid))
        return keys

    def _header(self, token: str) -> dict[str, Any]:
        refused = self._refusals.invalid
        if len(token) > TOKEN_MAX_CHARS:
            raise refused("it is too long", f"{len(token)} characters, at most {TOKEN_MAX_CHARS} are read")
        parts = token.count(".") + 1
        if parts == 5:
            raise refused("it is encrypted (JWE); a signed one is needed", "it has five parts")
        if parts != 3:
            raise refused("it is not a JWT, which has three parts with dots between", f"it has {parts}")
        try:
            header: dict[str, Any] = jwt.get_unverified_header(token)
        except (jwt.DecodeError, ValueError) as error:
            raise refused("it is not a JWT, or a part of it was lost", shown(str(error))) from None
        except jwt.InvalidTokenError as error:
            raise refused("its header is not accepted (kid is a string, crit not used)", shown(str(error))) from None
        return header

    def _decoded(self, token: str, algorithm: str, keys: Sequence[Key]) -> dict[str, Any]:
        fitting = [key for key in keys if algorithm in key.algorithms]
        if not fitting:
            able = ", ".join(sorted({name for key in keys for name in key.algorithms}))
            found = f"alg is {algorithm}, the key takes {able}"
            raise self._refusals.invalid("its algorithm does not go with its key", found)
        leeway = self._settings.jwt_leeway_seconds
        for key in fitting:
            with suppress(jwt.InvalidSignatureError):
                return jwt.decode(token, key.material, [algorithm], leeway=leeway, options=_OPTIONS)
        raise jwt.InvalidSignatureError

    def _check_audience(self, claims: dict[str, Any]) -> None:
        expected = self._settings.jwt_audience
        if not expected:  # without JWT_AUDIENCE, any audience is accepted
            return
        # Some issuers, such as AWS Cognito, send no aud.
        names = ("aud",) if claims.get("aud") is not None else ("client_id", "azp")
        found = [claims[name] for name in names if claims.get(name) is not None]
        if isinstance(claims.get("aud"), list):
            found = claims["aud"]
        if not all(isinstance(name, str) for name in found) or not set(found) & set(expected):
            why = "it is meant for another audience" if found else "it has no aud claim"
            told = f"{' or '.join(names)} is {shown(found)}, JWT_AUDIENCE has {', '.join(map(shown, expected))}"
            raise self._refusals.invalid(why, told)

    def _scopes(self, claims: dict[str, Any]) -> frozenset[str]:
        """The scopes of all the claims that JWT_SCOPES_CLAIM names, without their prefix."""
        paths, prefixes = self._settings.jwt_scopes_claim, self._settings.jwt_scopes_prefix
        said = {scope for path in paths for scope in _texts(_reached(claims, path.split(".")))}
        if prefixes:
            said = {scope.removeprefix(prefix) for scope in said for prefix in prefixes if scope.startswith(prefix)}
        scopes = frozenset(said - {""})
        if not scopes:  # the token is valid, but every handler will refuse it
            expected = f"JWT_SCOPES_CLAIM has {', '.join(paths)}, JWT_SCOPES_PREFIX {', '.join(prefixes) or 'none'}"
            self._refusals.note("a token has no scopes", f"{expected}, its claims are {shown([*claims])}")
        return scopes

    def _name(self, claims: dict[str, Any]) -> str:
        """The caller's name, checked to be usable and not to look like another issuer's."""
        sub: str = claims["sub"]
        issuer = self._prefix(claims)
        name = f"{issuer} {sub}" if issuer else sub
        if not sub or len(name) > SUBJECT_MAX_CHARS or not sub.isprintable():
            found = f"expected 1 to {SUBJECT_MAX_CHARS} printable characters, got {shown(sub)}"
            raise self._refusals.invalid("its sub claim names nobody", found)
        if not issuer and any(other and sub.startswith(f"{other} ") for other in self._issuers.values()):
            raise self._refusals.invalid("its sub claim reads like another issuer's", f"sub is {shown(sub)}")
        return name

    def _prefix(self, claims: dict[str, Any]) -> str:
        """The prefix of its issuer's subjects: empty for the first group."""
        if not self._issuers:
            return ""
        found = claims.get("iss")
        if not isinstance(found, str) or found not in self._issuers:
            why = "it has no iss claim" if found is None else "it comes from another issuer"
            expected = ", ".join(map(shown, self._issuers))
            raise self._refusals.invalid(why, f"iss is {shown(found)}, JWT_ISSUER has {expected}")
        return self._issuers[found]


def _found(jwks: JWKS, kid: str | None) -> str:
    return f"kid is {shown(kid)}, the keys had are {shown([key.kid for key in jwks.known])}"


def _bytes(token: str, user: User) -> int:
    return len(token) + TOKEN_BYTES + SCOPE_BYTES * len(user.scopes)


def _reached(value: Any, names: list[str]) -> Any:
    """The claim at a dotted path. A name may itself contain dots (a Keycloak client's id): try the longest first."""
    if not names:
        return value
    if not isinstance(value, dict):
        return None
    for end in range(len(names), 0, -1):
        found = _reached(value.get(".".join(names[:end])), names[end:])
        if found is not None:
            return found
    return None


def _texts(value: Any) -> list[str]:
    """The scopes in a string (separated by spaces) or a list. Any other value has none."""
    if isinstance(value, str):
        return value.split()
    return [scope for scope in value if isinstance(scope, str)] if isinstance(value, list) else []
