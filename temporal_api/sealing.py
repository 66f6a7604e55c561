"""Page tokens: Temporal's own, encrypted, so that each opens only the listing that it was given for."""

import base64
import hashlib
import logging
import os
from contextlib import suppress
from typing import Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from litestar.params import QueryParameter
from msgspec import Meta

from temporal_api.errors import InvalidPageToken
from temporal_api.settings import Settings

log = logging.getLogger(__name__)


def page_size(what: str) -> QueryParameter:
    """How many of them a page has."""
    return QueryParameter(ge=1, le=1000, description=f"{what} a page, at most.")


def page_token(hint: str = "") -> QueryParameter:
    """Where the page begins. No sealed token is as long."""
    return QueryParameter(max_length=8_000, description=f"`next_page_token` of the page before{hint}.")


NextPageToken = Annotated[
    str | None, Meta(description="The `page_token` of the next page; null on the last one.", examples=[None])
]


class PageTokens:
    """Encrypts with AES-256-GCM. Replicas with the same secrets read each other's tokens.

    The key comes from SECRET_KEY, else from JWT_SECRET. What any of the settings' secrets has sealed is opened, so that
    a secret can be replaced without losing a page token.
    """

    def __init__(self, settings: Settings) -> None:
        secrets = [s for s in (settings.secret_key, settings.jwt_secret, settings.jwt_secret_previous) if s]
        if not secrets:
            log.warning("SECRET_KEY is not set: page tokens open only on the replica that gave them, until it ends")
            secrets = [os.urandom(32).hex()]
        namespace = settings.temporal.get("namespace", "default")
        keys = [hashlib.sha256(f"page tokens\0{namespace}\0{secret}".encode()).digest() for secret in secrets]
        self._ciphers = [AESGCM(key) for key in keys]

    def seal(self, token: bytes, *bound_to: str) -> str | None:
        """The token for the caller; None when there is no next page."""
        if not token:
            return None
        nonce = os.urandom(12)
        return base64.urlsafe_b64encode(nonce + self._ciphers[0].encrypt(nonce, token, _bound(bound_to))).decode()

    def unseal(self, sealed: str, *bound_to: str) -> bytes:
        """Temporal's token; empty without one. Raises InvalidPageToken."""
        if not sealed:
            return b""
        try:
            data = base64.b64decode(sealed, altchars=b"-_", validate=True)
            if base64.urlsafe_b64encode(data).decode() != sealed:  # refuse unused bits in base64's last character
                raise ValueError
            for cipher in self._ciphers:
                with suppress(InvalidTag):
                    return cipher.decrypt(data[:12], data[12:], _bound(bound_to))
        except ValueError:
            pass
        raise InvalidPageToken


def _bound(parts: tuple[str, ...]) -> bytes:
    return "\0".join(str(len(part)) + part for part in parts).encode()
