"""Page tokens: Temporal's own, encrypted, so that each is valid only for the listing that gave it."""

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
    """The parameter for the size of a page."""
    return QueryParameter(ge=1, le=1000, description=f"The most {what} on a page.")


def page_token(hint: str = "") -> QueryParameter:
    """The parameter for where a page begins. Sealed tokens are far shorter than its bound."""
    return QueryParameter(max_length=8_000, description=f"The `next_page_token` of the previous page{hint}.")


NextPageToken = Annotated[
    str | None, Meta(description="The `page_token` of the next page. Null on the last page.", examples=[None])
]


class PageTokens:
    """Encrypts with AES-256-GCM. Replicas with the same secrets read each other's tokens.

    The key comes from SECRET_KEY, else from JWT_SECRET. Tokens of JWT_SECRET and JWT_SECRET_PREVIOUS are read too, so
    that a secret can be replaced without losing a page token.
    """

    def __init__(self, settings: Settings) -> None:
        secrets = [s for s in (settings.secret_key, settings.jwt_secret, settings.jwt_secret_previous) if s]
        if not secrets:
            log.warning("SECRET_KEY is not set: page tokens open only on the replica that gave them, until it ends")
            secrets = [os.urandom(32).hex()]
        namespace = settings.temporal["namespace"]
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
        with suppress(ValueError):
            data = base64.b64decode(sealed, altchars=b"-_", validate=True)
            if base64.urlsafe_b64encode(data).decode() != sealed:  # refuse unused bits in base64's last character
                raise ValueError
            for cipher in self._ciphers:
                with suppress(InvalidTag):
                    return cipher.decrypt(data[:12], data[12:], _bound(bound_to))
        raise InvalidPageToken


def _bound(parts: tuple[str, ...]) -> bytes:
    return "\0".join(str(len(part)) + part for part in parts).encode()
