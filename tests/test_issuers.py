"""Tokens and keys in the forms of the usual identity providers, made here with keys of our own."""

import time
from typing import Any

import jwt
import msgspec
import pytest

from api import SECRET
from tokens import Issuer, jwk, private_key, verifier

pytestmark = pytest.mark.anyio

TENANT, CLIENT = "72f988bf-86f1-41af-91ab-2d7cd011db47", "6731de76-14a6-49ae-97bc-6eba6914391e"
GRANTED = frozenset({"orders:read", "orders:write"})


class Provider(msgspec.Struct):
    """What an identity provider issues, and the settings that take it."""

    settings: dict[str, str]
    token: dict[str, Any]
    sub: str
    scopes: frozenset[str] = GRANTED
    key: dict[str, Any] = {}
    """Members of its JWKs, beside the key itself."""
    other_keys: list[dict[str, Any]] = []
    header: dict[str, Any] = {}
    kind: str = "RSA"
    algorithm: str = "RS256"


COGNITO = "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI"
ENTRA = {
    "JWT_ISSUER": f"https://sts.windows.net/{TENANT}/|https://login.microsoftonline.com/{TENANT}/v2.0",
    "JWT_AUDIENCE": f"api://{CLIENT},{CLIENT}",
    "JWT_SCOPES_CLAIM": "scp,roles",
}
ENTRA_KEY = {
    "alg": None,
    "x5t": "nOo3ZDrODXEK1jKWhXslHR_KXEg",
    "x5c": ["MIIC/jCCAeagAwIBAgIJ"],
    "issuer": f"https://login.microsoftonline.com/{TENANT}/v2.0",
}
KEYCLOAK = "https://login.shop.example/realms/shop"
AUTH0 = "https://shop.eu.auth0.com/"
GOOGLE = {"JWT_ISSUER": "https://accounts.google.com|accounts.google.com", "JWT_AUDIENCE": "1234.apps.example"}

PROVIDERS = {
    "AWS Cognito, an access token": Provider(
        {"JWT_ISSUER": COGNITO, "JWT_AUDIENCE": "6j4v2example", "JWT_SCOPES_PREFIX": "orders-api/"},
        {
            "iss": COGNITO,
            "sub": "aaaaaaaa-bbbb-4ccc-8ddd-example",
            "client_id": "6j4v2example",
            "token_use": "access",
            "scope": "orders-api/orders:read orders-api/orders:write openid",
            "version": 2,
            "jti": "c1",
        },
        sub="aaaaaaaa-bbbb-4ccc-8ddd-example",
        key={"alg": "RS256"},
        other_keys=[jwk("RSA", 1, alg="RS256")],
    ),
    "Entra ID, v1": Provider(
        ENTRA,
        {
            "iss": f"https://sts.windows.net/{TENANT}/",
            "aud": f"api://{CLIENT}",
            "appid": CLIENT,
            "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
            "scp": "orders:read orders:write",
            "ver": "1.0",
        },
        sub="AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
        key=ENTRA_KEY,
        other_keys=[jwk("RSA", 1, **ENTRA_KEY)],
        header={"x5t": "nOo3ZDrODXEK1jKWhXslHR_KXEg"},
    ),
    "Entra ID, v2": Provider(
        ENTRA,
        {
            "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
            "aud": CLIENT,
            "azp": CLIENT,
            "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
            "scp": "orders:read orders:write",
            "ver": "2.0",
        },
        sub="AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
        key=ENTRA_KEY,
    ),
    "Entra ID, app-only": Provider(
        ENTRA,
        {
            "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
            "aud": CLIENT,
            "azp": "another-client",
            "idtyp": "app",
            "sub": "0b6f2d0f-3a5e-4a5f-8f1d-3c9f4b1f7a10",
            "oid": "0b6f2d0f-3a5e-4a5f-8f1d-3c9f4b1f7a10",
            "roles": ["orders:read", "orders:write"],
        },
        sub="0b6f2d0f-3a5e-4a5f-8f1d-3c9f4b1f7a10",
        key=ENTRA_KEY,
    ),
    "Keycloak, a client's roles": Provider(
        {
            "JWT_ISSUER": KEYCLOAK,
            "JWT_AUDIENCE": "orders.api",
            "JWT_SCOPES_CLAIM": "resource_access.orders.api.roles",
        },
        {
            "iss": KEYCLOAK,
            "aud": ["orders.api", "account"],
            "azp": "web",
            "typ": "Bearer",
            "sub": "f1b0c7e2-keycloak",
            "scope": "openid email profile",
            "realm_access": {"roles": ["offline_access"]},
            "resource_access": {
                "orders.api": {"roles": ["orders:read", "orders:write"]},
                "account": {"roles": ["manage-account"]},
            },
        },
        sub="f1b0c7e2-keycloak",
        key={"alg": "RS256"},
        other_keys=[jwk("RSA", 1, use="enc", alg="RSA-OAEP")],
    ),
    "Keycloak, without an audience mapper": Provider(
        {"JWT_ISSUER": KEYCLOAK, "JWT_AUDIENCE": "web"},
        {"iss": KEYCLOAK, "azp": "web", "sub": "f1b0c7e2-keycloak", "scope": "orders:read orders:write"},
        sub="f1b0c7e2-keycloak",
    ),
    "Auth0": Provider(
        {
            "JWT_ISSUER": AUTH0,
            "JWT_AUDIENCE": "https://orders.shop.example",
            "JWT_SCOPES_CLAIM": "scope,permissions",
        },
        {
            "iss": AUTH0,
            "sub": "auth0|65f0c0ffee",
            "aud": ["https://orders.shop.example", f"{AUTH0}userinfo"],
            "azp": "my-client",
            "scope": "openid orders:read",
            "permissions": ["orders:read", "orders:write"],
        },
        sub="auth0|65f0c0ffee",
        scopes=GRANTED | {"openid"},
        key={"alg": "RS256", "x5c": ["MIIDDTCC"], "x5t": "NEVGQz"},
    ),
    "Okta": Provider(
        {"JWT_ISSUER": "https://shop.okta.com/oauth2/default", "JWT_AUDIENCE": "api://default"},
        {
            "ver": 1,
            "jti": "AT.0mP4JKAZX1iACIT4vbEDF7LpvDVjxypPMf0D7uX39RE",
            "iss": "https://shop.okta.com/oauth2/default",
            "aud": "api://default",
            "cid": "0oa1example",
            "uid": "00u1example",
            "scp": ["orders:read", "orders:write"],
            "sub": "alice@shop.example",
        },
        sub="alice@shop.example",
        key={"alg": "RS256"},
    ),
    "Google, an ID token": Provider(
        GOOGLE,
        {
            "iss": "https://accounts.google.com",
            "azp": "1234.apps.example",
            "aud": "1234.apps.example",
            "sub": "110169484474386276334",
            "email_verified": True,
        },
        sub="110169484474386276334",
        scopes=frozenset(),
        key={"alg": "RS256"},
        other_keys=[jwk("RSA", 1, alg="RS256")],
    ),
    "Google, by its older name": Provider(
        GOOGLE,
        {"iss": "accounts.google.com", "aud": "1234.apps.example", "sub": "110169484474386276334"},
        sub="110169484474386276334",
        scopes=frozenset(),
    ),
    "Clerk, a session token": Provider(
        {
            "JWT_ISSUER": "https://clerk.shop.example",
            "JWT_AUDIENCE": "https://app.shop.example",
            "JWT_SCOPES_CLAIM": "scp,metadata.scopes",
        },
        {
            "azp": "https://app.shop.example",
            "iss": "https://clerk.shop.example",
            "sub": "user_2NNEqL2nrIRdJ194ndJqAHwEfxC",
            "sid": "sess_2NNEqL",
            "fva": [7, -1],
            "v": 2,
            "metadata": {"scopes": ["orders:read", "orders:write"]},
        },
        sub="user_2NNEqL2nrIRdJ194ndJqAHwEfxC",
        key={"alg": "RS256"},
        header={"cat": "cl_B7d4PD111AAA"},
    ),
    "Supabase": Provider(
        {
            "JWT_ISSUER": "https://abcdefgh.supabase.co/auth/v1",
            "JWT_AUDIENCE": "authenticated",
            "JWT_SCOPES_CLAIM": "app_metadata.scopes",
        },
        {
            "iss": "https://abcdefgh.supabase.co/auth/v1",
            "aud": "authenticated",
            "role": "authenticated",
            "aal": "aal1",
            "amr": [{"method": "password", "timestamp": 1}],
            "app_metadata": {"provider": "email", "scopes": ["orders:read", "orders:write"]},
            "sub": "ef0493c9-3582-425f-a362-aef909588df7",
        },
        sub="ef0493c9-3582-425f-a362-aef909588df7",
        key={"alg": "ES256", "ext": True, "key_ops": ["verify"]},
        kind="P-256",
        algorithm="ES256",
    ),
}


def issued(provider: Provider, key: Any, header: dict[str, Any]) -> str:
    """A token of that provider."""
    now = int(time.time())
    times = {"iat": now, "nbf": now, "exp": now + 3600}
    return jwt.encode({**times, **provider.token}, key, provider.algorithm, headers={**provider.header, **header})


@pytest.mark.parametrize("discovered", [False, True], ids=["JWKS", "discovery"])
@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS)
async def test_a_provider_s_token_is_taken(issuer: Issuer, provider: Provider, discovered: bool) -> None:
    """By settings alone, from its JWKS or its discovery document: the subject, and the scopes it grants."""
    issuer.keys = [jwk(provider.kind, **provider.key), *provider.other_keys]
    first = provider.settings["JWT_ISSUER"].split("|")[0]
    path = "/.well-known/openid-configuration"
    issuer.documents[path] = {"issuer": first, "jwks_uri": issuer.address("/keys"), "scopes_supported": ["openid"]}
    url = issuer.address(path if discovered else "/keys")

    checker = verifier(**provider.settings, JWT_JWKS_URL=url)
    user = await checker.user(
        issued(provider, private_key(provider.kind), {"kid": f"{provider.kind}-0"}),
    )

    assert (provider.sub, provider.scopes) == (user.sub, user.scopes)


async def test_supabase_s_shared_secret() -> None:
    """Its older projects sign by HS256 with a secret that the settings hold."""
    provider = PROVIDERS["Supabase"]
    hs256 = msgspec.structs.replace(provider, algorithm="HS256")

    user = await verifier(**provider.settings, JWT_SECRET=SECRET).user(issued(hs256, SECRET, {}))

    assert (provider.sub, provider.scopes) == (user.sub, user.scopes)
