"""A token's signature and claims -> who calls."""

import time
from collections.abc import Sequence
from typing import Any

import jwt
import msgspec
from jwt.exceptions import InvalidSubjectError
from jwt.types import Options

from temporal_api.auth.jwks import JWKS
from temporal_api.auth.keys import Key, accepted_algorithms, public_keys
from temporal_api.auth.refusals import Refusals, shown
from temporal_api.auth.scopes import scopes_of
from temporal_api.errors import Problem
from temporal_api.settings import Settings

REMEMBERED_BYTES = 8 * 1024 * 1024
"""What verified tokens may take that are kept, so that a token is checked once and not at every request."""
TOKEN_BYTES, SCOPE_BYTES = 500, 100
"""What a token that is kept takes beside its text, and each of its scopes."""
REMEMBERED_SECONDS = 60.0
TOKEN_MAX_CHARS = 16_384
SUBJECT_MAX_CHARS = 255

# Issuer and audience are checked here, by rules that PyJWT does not have.
_OPTIONS: Options = {
    "require": ["exp", "sub"],
    "verify_aud": False,
    "verify_iss": False,
    "enforce_minimum_key_length": True,
}
_UNVERIFIED: Options = {**_OPTIONS, "verify_signature": False, "verify_exp": True, "verify_nbf": True}


class User(msgspec.Struct, frozen=True):
    """Who calls: a name that is nobody else's, the token's scopes, and when it ends (seconds since the epoch).

    `sub` is the token's, and for an issuer of JWT_ISSUER's second or a later group `issuer sub`. It is what ownership
    and Idempotency-Key go by.
    """

    sub: str
    scopes: frozenset[str]
    expires_at: float


class Verifier:
    """Checks bearer tokens by the settings' one kind of key. Raises SettingsError when that key is unfit."""

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
        """Litestar copies what stands before a route for each route: they all share one verifier."""
        return self

    def start(self) -> None:
        """Begin to ask for the keys, when they are an issuer's."""
        if self._jwks is not None:
            self._jwks.start()

    def close(self) -> None:
        """End what `start` began."""
        if self._jwks is not None:
            self._jwks.close()

    @property
    def keys_state(self) -> str:
        """For health: "healthy" once there are keys, however old; else what is wrong."""
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
        refused = self._refusals.invalid
        try:
            claims = await self._claims(token)
            expires = float(claims["exp"])
        except jwt.ExpiredSignatureError:
            leeway = self._settings.jwt_leeway_seconds
            raise self._refusals.expired(f"its exp is {leeway} s ago or more (JWT_LEEWAY_SECONDS)") from None
        except jwt.MissingRequiredClaimError as error:
            raise refused(f"it has no {error.claim} claim", "exp and sub are required") from None
        except InvalidSubjectError:
            raise refused("its sub claim is not a string", "it is a number, or another kind of JSON") from None
        except jwt.ImmatureSignatureError as error:
            raise refused("it is not valid yet", str(error)) from None
        except jwt.InvalidSignatureError:
            header = jwt.get_unverified_header(token)
            told = f"alg is {shown(header['alg'])}, kid is {shown(header.get('kid'))}"
            raise refused("its signature is not that of a trusted key", told) from None
        except (jwt.DecodeError, jwt.InvalidIssuedAtError, ValueError, OverflowError, RecursionError) as error:
            why = "its claims cannot be read; exp, nbf and iat are numbers in a JSON object"
            raise refused(why, shown(str(error))) from None
        except (jwt.PyJWTError, TypeError) as error:
            raise refused("it cannot be verified", shown(str(error))) from None
        name = self._name(claims)
        self._check_audience(claims)
        return User(name, self._scopes(claims), expires)

    async def _claims(self, token: str) -> dict[str, Any]:
        """What a token says whose signature is right and whose time is now."""
        header = self._header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._accepted:  # before anything is fetched for it
            raise self._refusals.invalid(
                "its algorithm is not accepted",
                f"alg is {shown(algorithm)}, accepted (JWT_ALGORITHMS): {', '.join(sorted(self._accepted))}",
            )
        if self._jwks is None:
            return self._decoded(token, algorithm, self._keys)
        # What refuses itself needs no key: no issuer is asked for another's token, or one whose time is over.
        self._prefix(jwt.decode(token, leeway=self._settings.jwt_leeway_seconds, options=_UNVERIFIED))
        try:
            return self._decoded(token, algorithm, await self._published(self._jwks, kid))
        except jwt.InvalidSignatureError:  # the key may be another by now, under the same id or none
            if not await self._jwks.renew():
                raise
            return self._decoded(token, algorithm, await self._published(self._jwks, kid))

    async def _published(self, jwks: JWKS, kid: str | None) -> list[Key]:
        """The issuer's keys with that id; at least one."""
        try:
            keys = await jwks.keys(kid)
        except Problem:
            self._refusals.note("the key of a token cannot be had now", _found(jwks, kid))
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
            raise refused("it is no JWT, which has three parts with dots between", f"it has {parts}")
        try:
            header: dict[str, Any] = jwt.get_unverified_header(token)
        except (jwt.DecodeError, ValueError) as error:
            raise refused("it is no JWT, or a part of it was lost", shown(str(error))) from None
        except jwt.InvalidTokenError as error:
            raise refused("its header is not accepted (kid is a string, crit not used)", shown(str(error))) from None
        return header

    def _decoded(self, token: str, algorithm: str, keys: Sequence[Key]) -> dict[str, Any]:
        fitting = [key for key in keys if algorithm in key.algorithms]
        if not fitting:
            able = sorted({name for key in keys for name in key.algorithms})
            raise self._refusals.invalid(
                "its algorithm does not go with its key", f"alg is {algorithm}, the key takes {', '.join(able)}"
            )
        for key in fitting[:-1]:
            try:
                return self._decoded_by(token, algorithm, key)
            except jwt.InvalidSignatureError:
                continue
        return self._decoded_by(token, algorithm, fitting[-1])

    def _decoded_by(self, token: str, algorithm: str, key: Key) -> dict[str, Any]:
        return jwt.decode(
            token,
            key.material,
            algorithms=[algorithm],
            leeway=self._settings.jwt_leeway_seconds,
            options=_OPTIONS,
        )

    def _check_audience(self, claims: dict[str, Any]) -> None:
        expected = self._settings.jwt_audience
        if not expected:  # without an audience of our own, a token's is not ours to judge
            return
        if (said := claims.get("aud")) is not None:
            found = said if isinstance(said, list) else [said]
            told = f"aud is {shown(said)}"
        else:  # AWS Cognito's, for one
            found = [claims[name] for name in ("client_id", "azp") if claims.get(name) is not None]
            told = f"no aud, client_id or azp is {shown(found)}"
        strings = [name for name in found if isinstance(name, str)]
        if len(strings) < len(found) or not set(strings) & set(expected):
            why = "it is meant for another audience" if found else "it has no aud claim"
            raise self._refusals.invalid(why, f"{told}, JWT_AUDIENCE has {', '.join(map(shown, expected))}")

    def _scopes(self, claims: dict[str, Any]) -> frozenset[str]:
        scopes = scopes_of(claims, self._settings)
        if not scopes:  # no refusal yet, but one by every handler
            expected = ", ".join(self._settings.jwt_scopes_claim)
            prefixes = ", ".join(self._settings.jwt_scopes_prefix) or "none"
            found = f"JWT_SCOPES_CLAIM has {expected}, JWT_SCOPES_PREFIX {prefixes}, its claims are {shown([*claims])}"
            self._refusals.note("a token has no scopes", found)
        return scopes

    def _name(self, claims: dict[str, Any]) -> str:
        """Who it is, checked to be somebody, and nobody of another issuer."""
        sub: str = claims["sub"]
        issuer = self._prefix(claims)
        name = f"{issuer} {sub}" if issuer else sub
        if not sub or len(name) > SUBJECT_MAX_CHARS or not sub.isprintable():
            raise self._refusals.invalid(
                "its sub claim names nobody",
                f"expected 1 to {SUBJECT_MAX_CHARS} printable characters, got {shown(sub)}",
            )
        if not issuer and any(other and sub.startswith(f"{other} ") for other in self._issuers.values()):
            raise self._refusals.invalid("its sub claim reads like another issuer's", f"sub is {shown(sub)}")
        return name

    def _prefix(self, claims: dict[str, Any]) -> str:
        """What stands before the `sub` of its issuer: nothing for the first group."""
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
