"""Page tokens: which secrets seal them, and that nobody without one forges them."""

import base64
import hashlib
import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from temporal_api.errors import Problem
from temporal_api.sealing import PageTokens
from temporal_api.settings import from_env
from tokens import pem

OLD, NEW, OWN = "old-" * 8, "new-" * 8, "own-" * 8
JWKS = {"JWT_JWKS_URL": "https://issuer.example/jwks", "JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "orders"}


def page_tokens(**environ: str) -> PageTokens:
    """Those of a replica with these settings."""
    return PageTokens(from_env(environ))


def opens(there: PageTokens, sealed: str | None) -> bool:
    """Whether a replica opens what another has sealed for the listing `orders`."""
    assert sealed is not None
    try:
        return there.unseal(sealed, "orders") == b"next"
    except Problem as problem:
        if problem.code != "invalid_page_token":
            raise
        return False


def test_page_tokens_outlive_a_secret_that_is_replaced() -> None:
    """Replicas with the old secret, with both, with a key of its own: each opens what came before it."""
    steps = [
        page_tokens(JWT_SECRET=OLD),
        page_tokens(JWT_SECRET=NEW, JWT_SECRET_PREVIOUS=OLD),
        page_tokens(JWT_SECRET=NEW, SECRET_KEY=OWN),
        page_tokens(SECRET_KEY=OWN, **JWKS),
    ]
    sealed = [step.seal(b"next", "orders") for step in steps]

    for before, after in ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 2)):
        assert opens(steps[after], sealed[before]), (before, after)
    for before, after in ((1, 0), (0, 2), (1, 3)):
        assert not opens(steps[after], sealed[before]), (before, after)


@pytest.mark.parametrize("settings", [JWKS, {"JWT_PUBLIC_KEY": pem("RSA")}], ids=["JWKS", "PEM"])
def test_what_anyone_can_read_seals_nothing(settings: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """With public keys alone the key is the process's own, which is said once: nothing public forges a token."""
    replica = page_tokens(**settings)
    assert 1 == sum(line.startswith("SECRET_KEY is not set") for line in caplog.messages)
    assert opens(replica, replica.seal(b"next", "orders"))
    assert not opens(page_tokens(**settings), replica.seal(b"next", "orders"))

    for public in (*settings.values(), ""):
        key = hashlib.sha256(f"page tokens\0default\0{public}".encode()).digest()
        nonce = os.urandom(12)
        forged = base64.urlsafe_b64encode(nonce + AESGCM(key).encrypt(nonce, b"next", b"6orders")).decode()
        assert not opens(replica, forged)


def test_with_a_secret_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Either of the two is enough."""
    page_tokens(JWT_SECRET=NEW)
    page_tokens(SECRET_KEY=OWN, **JWKS)

    assert [] == caplog.messages
