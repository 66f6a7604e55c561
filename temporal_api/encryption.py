"""Payload encryption: AES-256-GCM before anything reaches Temporal, with the key's id beside the ciphertext.

The bytes are those of Temporal's published samples (Go, Java, Python, TypeScript): workers in these languages read
them. They need the same keys. The first key encrypts, all decrypt. README.md says how to rotate them.
"""

import os
from collections.abc import Sequence
from contextlib import suppress

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import DecodeError
from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

from temporal_api.errors import PayloadUndecodable

ENCODING = b"binary/encrypted"
_NONCE_BYTES = 12


class EncryptionCodec(PayloadCodec):
    """Encrypts whole payloads with their metadata. Reads plain payloads too, so that old runs stay readable."""

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        self._ciphers = {key_id.encode(): AESGCM(key) for key_id, key in keys}
        self._first = next(iter(self._ciphers))

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Encrypt with the first key."""
        return [self._encrypt(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Decrypt with the key that each names. Raises PayloadUndecodable."""
        return [self._decrypt(payload) for payload in payloads]

    def _encrypt(self, payload: Payload) -> Payload:
        nonce = os.urandom(_NONCE_BYTES)
        encrypted = self._ciphers[self._first].encrypt(nonce, payload.SerializeToString(), None)
        return Payload(metadata={"encoding": ENCODING, "encryption-key-id": self._first}, data=nonce + encrypted)

    def _decrypt(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != ENCODING:
            return payload
        key_id = payload.metadata.get("encryption-key-id", b"")
        is_known = key_id in self._ciphers
        # Earlier versions of this service authenticated the key's id too, as additional data.
        for additional in (None, key_id) if is_known else ():
            with suppress(InvalidTag, ValueError, DecodeError):
                nonce, encrypted = payload.data[:_NONCE_BYTES], payload.data[_NONCE_BYTES:]
                return Payload.FromString(self._ciphers[key_id].decrypt(nonce, encrypted, additional))
        unknown = f"the key {key_id.decode(errors='replace')!r} is not among this service's"
        why = "it was not encrypted with the key that it names" if is_known else unknown
        raise PayloadUndecodable(f"What Temporal keeps here cannot be decrypted: {why}.")
