"""Page tokens: Temporal's own, encrypted, so that each opens only the listing that it was given for."""

import base64
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from temporal_api.errors import InvalidPageToken
from temporal_api.settings import Settings

LONGEST_TOKEN = 8_000
"""More than a sealed token has."""


class PageTokens:
    """Encrypts with AES-256-GCM. Replicas with the same settings read each other's tokens.

    The key comes from JWT_SECRET. With a public key or a JWKS it is no secret: a token is then bound, but readable.
    """

    def __init__(self, settings: Settings) -> None:
        secret = settings.jwt_secret or settings.jwt_public_key or settings.jwt_jwks_url or ""
        namespace = settings.temporal.get("namespace", "default")
        self._cipher = AESGCM(hashlib.sha256(f"page tokens\0{namespace}\0{secret}".encode()).digest())

    def seal(self, token: bytes, *bound_to: str) -> str | None:
        """The token for the caller; None when there is no next page."""
        if not token:
            return None
        nonce = os.urandom(12)
        return base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, token, _bound(bound_to))).decode()

    def unseal(self, sealed: str, *bound_to: str) -> bytes:
        """Temporal's token; empty without one. Raises InvalidPageToken."""
        if not sealed:
            return b""
        try:
            data = base64.b64decode(sealed, altchars=b"-_", validate=True)
            if base64.urlsafe_b64encode(data).decode() != sealed:  # refuse unused bits in base64's last character
                raise ValueError
            return self._cipher.decrypt(data[:12], data[12:], _bound(bound_to))
        except (ValueError, InvalidTag):
            raise InvalidPageToken from None


def _bound(parts: tuple[str, ...]) -> bytes:
    return "\0".join(str(len(part)) + part for part in parts).encode()
