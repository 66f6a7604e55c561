"""Payloads: JSON by msgspec into Temporal and out of it, byte for byte."""

import base64
import dataclasses

import msgspec
import temporalio.converter
from temporalio.api.common.v1 import Payload as Payload

from temporal_api.encryption import EncryptionCodec
from temporal_api.settings import Settings

# Prices stay JSON numbers with all their digits, in Temporal as in HTTP.
_ENCODER = msgspec.json.Encoder(decimal_format="number")
JSON_METADATA = {"encoding": b"json/plain"}
OWN_MEMO = "temporal_api."
"""The prefix of this service's own memo keys, which callers neither set nor see."""


class JSONPayloadConverter(temporalio.converter.JSONPlainPayloadConverter):
    """JSON by msgspec, with structs and exact Decimals. `msgspec.Raw` keeps its bytes in both directions."""

    def to_payload(self, value: object) -> Payload | None:
        """Encode any value that msgspec can."""
        data = bytes(value) if isinstance(value, msgspec.Raw) else _ENCODER.encode(value)
        return Payload(metadata=JSON_METADATA, data=data)

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> object:
        """Decode into `type_hint`."""
        if type_hint is msgspec.Raw:
            return msgspec.Raw(payload.data)
        return msgspec.json.decode(payload.data, type=type_hint or object)


class PayloadConverter(temporalio.converter.DefaultPayloadConverter):
    """Temporal's default converters with their JSON one replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.converters = {**self.converters, b"json/plain": JSONPayloadConverter()}


DATA_CONVERTER = temporalio.converter.DataConverter(payload_converter_class=PayloadConverter)


def data_converter(settings: Settings) -> temporalio.converter.DataConverter:
    """The converter of the API and its workers; it encrypts when the settings have keys."""
    if not settings.payload_encryption_keys:
        return DATA_CONVERTER
    return dataclasses.replace(
        DATA_CONVERTER,
        payload_codec=EncryptionCodec(settings.encryption_keys),
        # Encrypt the messages of failures too: by default they are not payloads.
        failure_converter_class=temporalio.converter.DefaultFailureConverterWithEncodedAttributes,
    )


def raw_json(payload: Payload) -> msgspec.Raw:
    """A payload's JSON, byte for byte, or `{"metadata": ..., "data": base64}` for a payload that is not JSON."""
    encoding = payload.metadata.get("encoding")
    if encoding == b"binary/null":
        return msgspec.Raw(b"null")
    if encoding in (b"json/plain", b"json/protobuf"):
        try:  # a Python worker may have written NaN, or bytes that are not UTF-8
            payload.data.decode()
            msgspec.json.decode(payload.data, type=msgspec.Raw)
        except (ValueError, RecursionError):
            pass
        else:
            return msgspec.Raw(payload.data)
    metadata = {k: v.decode("utf-8", "replace") for k, v in payload.metadata.items()}
    return msgspec.Raw(msgspec.json.encode({"metadata": metadata, "data": base64.b64encode(payload.data).decode()}))


def typed_payload(kind: str, value: msgspec.Raw | bytes) -> Payload:
    """A search attribute's value. Its type is Temporal's name, such as `Keyword`."""
    return Payload(metadata={**JSON_METADATA, "type": kind.encode()}, data=bytes(value))
