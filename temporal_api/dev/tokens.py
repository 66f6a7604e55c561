"""Signs tokens for trying things out."""

import time
from typing import Any

import jwt

from temporal_api.settings import Settings, SettingsError


def sign(settings: Settings, sub: str, scope: str, expires: int) -> str:
    """Sign a token that the service accepts. Raises SettingsError without a JWT_SECRET."""
    if settings.jwt_secret is None:
        raise SettingsError("JWT_SECRET: tokens are signed with it; the issuer of the configured key signs its own")
    claims: dict[str, Any] = {"sub": sub, "iat": int(time.time()), "exp": int(time.time()) + expires}
    nested = claims
    *path, last = settings.jwt_scopes_claim[0].split(".")
    for name in path:
        nested = nested.setdefault(name, {})
    prefix = settings.jwt_scopes_prefix[0] if settings.jwt_scopes_prefix else ""
    nested[last] = " ".join(prefix + name for name in scope.split())
    if settings.issuers:
        claims["iss"] = next(iter(settings.issuers))
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience[0]
    return jwt.encode(claims, settings.jwt_secret, algorithm=(settings.jwt_algorithms or ("HS256",))[0])
