"""The keys that verify tokens. An issuer's are fetched at start, and again when old or when a token names a new key."""

import asyncio
import logging
import ssl
import time
import zlib
from collections.abc import Collection, Sequence
from math import ceil
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from temporal_api import __version__
from temporal_api.auth.keys import Key, from_jwk
from temporal_api.errors import AuthUnavailable, quoted
from temporal_api.settings import is_http_address

REFRESH_SECONDS = 240.0
"""How old keys may be. A removed key stops working after this time and the verifier's `REMEMBERED_SECONDS`."""
COOLDOWN_SECONDS = 30.0
"""The shortest time between requests to the issuer, however many tokens name unknown keys. Shorter after failures."""
TIMEOUT_SECONDS = 5.0
MAX_BYTES = 1_000_000
_HEADERS = {
    "Accept": "application/json, application/jwk-set+json",  # Kubernetes has its keys as the second only
    "Accept-Encoding": "identity",
    "User-Agent": f"temporal-api/{__version__}",
}

log = logging.getLogger(__name__)


class Keys:
    """The keys that verify tokens: those of the settings, or those that an issuer publishes at `url`.

    Known keys still work while the issuer is away. Fetching never blocks the event loop.
    """

    def __init__(
        self, url: str | None, issuers: Collection[str], accepted: frozenset[str], known: tuple[Key, ...]
    ) -> None:
        self.url = url
        self._issuers = issuers
        self._accepted = accepted
        self.known = known
        self._fetched_at = self._next_at = float("-inf")
        self._failures = 0
        self._fetching: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Fetch an issuer's keys before a token needs them, and retry until it succeeds."""
        self._starting = asyncio.create_task(self._until_known())

    def close(self) -> None:
        """Stop fetching."""
        for task in (self._starting, self._fetching):
            if task is not None:
                task.cancel()

    async def _until_known(self) -> None:
        while not self.known:
            fetching = self._fetch()
            await (asyncio.shield(fetching) if fetching else asyncio.sleep(self._next_at - time.monotonic()))

    async def find(self, kid: str | None) -> Sequence[Key]:
        """The keys with that id, if the issuer has any. Raises AuthUnavailable if it cannot be asked now."""
        if not self.url:
            return self.known
        found = self._find(kid)
        fresh = time.monotonic() - self._fetched_at < REFRESH_SECONDS
        if fresh and (found or (kid is None and self.known)):
            return found
        fetching = self._fetch()
        # With a known key, wait only for an issuer that answered the last time.
        if fetching is not None and not (found and self._failures):
            await asyncio.shield(fetching)  # shared: a caller who leaves must not cancel it for the others
            found = self._find(kid)
        if not found and (fetching is None or self._failures):
            retry = {"Retry-After": str(max(1, ceil(self._next_at - time.monotonic())))}
            raise AuthUnavailable("The key to verify this token cannot be fetched now. Try again.", retry)
        return found

    async def renew(self) -> bool:
        """Fetch the keys again; return whether they are newer."""
        if (fetching := self._fetch()) is None:
            return False
        await asyncio.shield(fetching)
        return not self._failures

    def _find(self, kid: str | None) -> Sequence[Key]:
        """The keys with that id. Without an id: the keys without one, or the only key (RFC 7515 4.1.4)."""
        found = [key for key in self.known if key.kid == kid]
        return self.known if kid is None and not found and len(self.known) == 1 else found

    def _fetch(self) -> asyncio.Task[None] | None:
        if self.url and self._fetching is None and time.monotonic() >= self._next_at:
            self._fetching = asyncio.create_task(self._fetch_keys(self.url))
        return self._fetching

    async def _fetch_keys(self, url: str) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                published = await _published(url, self._issuers)
            keys = tuple(key for jwk in published if (key := from_jwk(jwk, self._accepted)))
            if not keys:
                raise ValueError(f"none of its {len(published)} keys signs by {', '.join(sorted(self._accepted))}")
        except Exception as error:  # whatever the issuer sends, the old keys stay
            seconds = min(2.0**self._failures, COOLDOWN_SECONDS)
            self._failures = min(self._failures + 1, 10)
            told = str(error)[:300] or f"no answer ({type(error).__name__})"
            log.warning("JWT_JWKS_URL: no keys can be had from there, next try in %.0f s: %s", seconds, told)
        else:
            if self._failures or not self.known:
                log.info("JWT_JWKS_URL: its keys are there: %s", quoted([key.kid for key in keys]))
            seconds, self._failures = COOLDOWN_SECONDS, 0
            self.known, self._fetched_at = keys, time.monotonic()
        finally:
            self._fetching = None
        self._next_at = time.monotonic() + seconds


async def _published(url: str, issuers: Collection[str]) -> list[object]:
    """The JWKs at that address, or at the `jwks_uri` of the discovery document there."""
    document = await _get(url)
    if "keys" not in document and "jwks_uri" in document:
        found, there = document.get("issuer"), document["jwks_uri"]
        if found not in issuers:
            ours = ", ".join(map(quoted, issuers))
            raise ValueError(f"it is the discovery document of {quoted(found)}, JWT_ISSUER has {ours}")
        if not isinstance(there, str) or not is_http_address(there):
            raise ValueError(f"its jwks_uri is no http or https address: {quoted(there)}")
        if urlsplit(url).scheme == "https" != urlsplit(there).scheme:
            raise ValueError(f"its jwks_uri leads from https to http: {quoted(there)}")
        document = await _get(there)
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise TypeError("what is there is neither a JWKS nor a discovery document")
    return keys


def _proxy(url: str) -> str | None:
    """The environment's proxy for that address."""
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


async def _get(url: str) -> dict[str, Any]:
    """The JSON object at that address."""
    import httpx  # only a JWKS needs it, and it takes 4 MB

    trusted = await asyncio.to_thread(ssl.create_default_context)  # what the machine trusts
    body = b""
    # Left to read the environment, httpx fails for any address if ALL_PROXY is SOCKS or NO_PROXY has [::1].
    client = httpx.AsyncClient(verify=trusted, timeout=TIMEOUT_SECONDS, proxy=_proxy(url), trust_env=False)
    async with client, client.stream("GET", url, headers=_HEADERS) as answer:
        if answer.next_request:  # keys come only from the address in the settings
            raise ValueError(f"redirects are not followed, this one to {quoted(str(answer.next_request.url))}")
        if not answer.is_success:
            raise ValueError(f"HTTP status {answer.status_code}")
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > MAX_BYTES:
                raise ValueError("its answer does not end")
    if answer.headers.get("Content-Encoding") == "gzip":  # unasked, as some stores of files do
        body = zlib.decompressobj(wbits=31).decompress(body, MAX_BYTES)
    return msgspec.json.decode(body.decode("utf-8-sig"), type=dict[str, Any])
