"""Verify a token's signature and claims, and make the User."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import jwt
import msgspec
from jwt.exceptions import InvalidJTIError, InvalidSubjectError
from jwt.types import Options

from temporal_api.auth.jwks import Keys
from temporal_api.auth.keys import Key, accepted_algorithms, public_keys
from temporal_api.errors import ExpiredToken, InvalidToken, Problem, quoted
from temporal_api.settings import Settings

REMEMBERED_TOKENS, REMEMBERED_BYTES = 2000, 5000
"""How many verified tokens are remembered, so as not to verify them at every request, and what each may take."""
REMEMBERED_SECONDS = 60.0
TOKEN_MAX_CHARS = 16_384
SUBJECT_MAX_CHARS = 255

log = logging.getLogger(__name__)

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
        secrets = (settings.jwt_secret, settings.jwt_secret_previous)
        given = tuple(Key(secret, self._accepted) for secret in secrets if secret)
        if settings.jwt_public_key:
            given = public_keys(settings.jwt_public_key, self._accepted)
        self.keys = Keys(settings.jwt_jwks_url, tuple(self._issuers), self._accepted, given)
        self._verified: dict[str, tuple[User, float]] = {}

    async def user(self, token: str) -> User:
        """The verified caller. Raises InvalidToken, ExpiredToken or AuthUnavailable."""
        now = time.time()
        known = self._verified.get(token)
        if known is not None and now < known[1]:
            return known[0]
        user = await self._verify(token)
        self._verified.pop(token, None)
        if len(token) + 100 * len(user.scopes) <= REMEMBERED_BYTES:  # a short text takes about 100 bytes
            self._verified[token] = (user, min(user.expires_at, now + REMEMBERED_SECONDS))
        if len(self._verified) > REMEMBERED_TOKENS:
            del self._verified[next(iter(self._verified))]  # the oldest
        return user

    async def _verify(self, token: str) -> User:
        try:
            claims = await self._claims(token)
            expires = float(claims["exp"])
        except jwt.ExpiredSignatureError:
            leeway = self._settings.jwt_leeway_seconds
            log.warning("a token was refused: it has expired %s s ago or more (JWT_LEEWAY_SECONDS)", leeway)
            raise ExpiredToken from None
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"it has no {error.claim} claim", "exp and sub are required") from None
        except jwt.InvalidSignatureError:
            header = jwt.get_unverified_header(token)
            found = f"alg is {quoted(header['alg'])}, kid is {quoted(header.get('kid'))}"
            raise _refused("its signature is not that of a trusted key", found) from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            why = next(why for kinds, why in _REASONS if isinstance(error, kinds))
            raise _refused(why, quoted(str(error))) from None
        name = self._name(claims)
        self._check_audience(claims)
        return User(name, self._scopes(claims), expires)

    async def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token with a valid signature, if it is valid now."""
        header = self._header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._accepted:  # before a key is fetched for it
            found = f"alg is {quoted(algorithm)}, accepted (JWT_ALGORITHMS): {', '.join(sorted(self._accepted))}"
            raise _refused("its algorithm is not accepted", found)
        if self.keys.url:  # no key is fetched for another issuer's or an expired token
            self._prefix(jwt.decode(token, leeway=self._settings.jwt_leeway_seconds, options=_UNVERIFIED))
        try:
            return self._decoded(token, algorithm, await self._trusted(kid))
        except jwt.InvalidSignatureError:  # the issuer may have changed the key under this id
            if not await self.keys.renew():
                raise
            return self._decoded(token, algorithm, await self._trusted(kid))

    async def _trusted(self, kid: str | None) -> Sequence[Key]:
        """The keys with that id; at least one."""
        try:
            keys = await self.keys.find(kid)
        except Problem:
            log.warning("the key of a token cannot be fetched now: %s", self._found(kid))
            raise
        if not keys:
            why = "its key id (kid) is not known" if kid is not None else "it has no kid, and its issuer several keys"
            raise _refused(why, self._found(kid))
        return keys

    def _found(self, kid: str | None) -> str:
        return f"kid is {quoted(kid)}, the keys had are {quoted([key.kid for key in self.keys.known])}"

    def _header(self, token: str) -> dict[str, Any]:
        if len(token) > TOKEN_MAX_CHARS:
            raise _refused("it is too long", f"{len(token)} characters, at most {TOKEN_MAX_CHARS} are read")
        parts = token.count(".") + 1
        if parts == 5:
            raise _refused("it is encrypted (JWE); a signed one is needed", "it has five parts")
        if parts != 3:
            raise _refused("it is not a JWT, which has three parts with dots between", f"it has {parts}")
        try:
            header: dict[str, Any] = jwt.get_unverified_header(token)
        except (jwt.DecodeError, ValueError) as error:
            raise _refused("it is not a JWT, or a part of it was lost", quoted(str(error))) from None
        except jwt.InvalidTokenError as error:
            raise _refused("its header is not accepted (kid is a string, crit not used)", quoted(str(error))) from None
        return header

    def _decoded(self, token: str, algorithm: str, keys: Sequence[Key]) -> dict[str, Any]:
        fitting = [key for key in keys if algorithm in key.algorithms]
        if not fitting:
            able = ", ".join(sorted({name for key in keys for name in key.algorithms}))
            found = f"alg is {algorithm}, the key takes {able}"
            raise _refused("its algorithm does not go with its key", found)
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
            told = f"{' or '.join(names)} is {quoted(found)}, JWT_AUDIENCE has {', '.join(map(quoted, expected))}"
            raise _refused(why, told)

    def _scopes(self, claims: dict[str, Any]) -> frozenset[str]:
        """The scopes of all the claims that JWT_SCOPES_CLAIM names, without their prefix."""
        paths, prefixes = self._settings.jwt_scopes_claim, self._settings.jwt_scopes_prefix
        said = {scope for path in paths for scope in _texts(_reached(claims, path.split(".")))}
        if prefixes:
            said = {scope.removeprefix(prefix) for scope in said for prefix in prefixes if scope.startswith(prefix)}
        scopes = frozenset(said - {""})
        if not scopes:  # the token is valid, but every handler will refuse it
            expected = f"JWT_SCOPES_CLAIM has {', '.join(paths)}, JWT_SCOPES_PREFIX {', '.join(prefixes) or 'none'}"
            log.warning("a token has no scopes: %s, its claims are %s", expected, quoted([*claims]))
        return scopes

    def _name(self, claims: dict[str, Any]) -> str:
        """The caller's name, checked to be usable and not to look like another issuer's."""
        sub: str = claims["sub"]
        issuer = self._prefix(claims)
        name = f"{issuer} {sub}" if issuer else sub
        if not sub or len(name) > SUBJECT_MAX_CHARS or not sub.isprintable():
            found = f"expected 1 to {SUBJECT_MAX_CHARS} printable characters, got {quoted(sub)}"
            raise _refused("its sub claim names nobody", found)
        if not issuer and any(other and sub.startswith(f"{other} ") for other in self._issuers.values()):
            raise _refused("its sub claim reads like another issuer's", f"sub is {quoted(sub)}")
        return name

    def _prefix(self, claims: dict[str, Any]) -> str:
        """The prefix of its issuer's subjects: empty for the first group."""
        if not self._issuers:
            return ""
        found = claims.get("iss")
        if not isinstance(found, str) or found not in self._issuers:
            why = "it has no iss claim" if found is None else "it comes from another issuer"
            expected = ", ".join(map(quoted, self._issuers))
            raise _refused(why, f"iss is {quoted(found)}, JWT_ISSUER has {expected}")
        return self._issuers[found]


def _refused(why: str, found: str) -> InvalidToken:
    """Make the 401 for the caller. `found` says what was expected and may quote the token: it goes only to the log."""
    log.warning(f"a token was refused: {why}: %s", found)
    return InvalidToken(f"The token is not accepted: {why}.")


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
