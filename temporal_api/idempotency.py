"""`Idempotency-Key` without a store: the workflow's id comes from the caller and the key, its memo identifies the body.

Temporal starts only one run for an id, however many requests come at once, to any replica.
"""

import hashlib
import hmac
import uuid
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
from litestar.params import HeaderParameter

from temporal_api.auth import APIRequest, User
from temporal_api.bounds import FEW
from temporal_api.errors import IdempotencyKeyReused, invalid
from temporal_api.mistakes import KEY

MEMO = "temporal_api.idempotency"
REPLAYED = {"Idempotent-Replayed": "true"}

_ANY = msgspec.json.Decoder(float_hook=Decimal)
_CANONICAL = msgspec.json.Encoder(order="sorted", decimal_format="number")


def key_header(what_it_does: str) -> HeaderParameter:
    """The header `Idempotency-Key`, with what it does in an operation."""
    return HeaderParameter(name="Idempotency-Key", pattern=KEY, description=what_it_does)


IdempotencyKey = Annotated[
    str | None,
    key_header(
        "Makes the request safe to repeat: the same key and body from the same caller start one workflow, as long as "
        "Temporal keeps its run. 1 to 255 visible ASCII characters."
    ),
]


def check_key(request: APIRequest, key: str | None) -> str | None:
    """The key as it is. Raises ValidationError."""
    if key and len(request.headers.getall("idempotency-key")) > 1:
        raise invalid("Idempotency-Key", "Expected it once")
    return key


def derived_id(resource: str, user: User, key: str) -> str:
    """The id derived from a caller and a key: another caller's same key gives another id."""
    parts = "".join(f"{len(part)}:{part}" for part in (resource, user.sub, key))
    return str(uuid.UUID(bytes=hashlib.sha256(parts.encode()).digest()[:16]))


def fingerprint(key: str, body: msgspec.Struct) -> str:
    """The HMAC of a body, to tell a replay from another request. The memo with it does not reveal the body."""
    canonical = msgspec.json.encode(body, order="sorted")
    # `msgspec.Raw` is as the caller wrote it: ignore spaces and the order of names. But compare a very large body as
    # written: decoding it would hold up other requests.
    if canonical.count(b",") < FEW:
        try:
            # A number of thousands of digits is compared as written.
            with suppress(ValueError, OverflowError, RecursionError):
                canonical = _CANONICAL.encode(_ANY.decode(canonical))
        except InvalidOperation:
            raise invalid("", "Expected numbers with an exponent of at most 18 digits") from None
    return hmac.new(key.encode(), canonical, hashlib.sha256).hexdigest()


def check_same(key: str, body: msgspec.Struct, remembered: Any) -> None:
    """Raises IdempotencyKeyReused when the key came with another body before."""
    if not isinstance(remembered, str) or not hmac.compare_digest(remembered, fingerprint(key, body)):
        raise IdempotencyKeyReused
