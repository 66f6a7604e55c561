"""Temporal: the one place that knows gRPC. Connection, JSON converter, deadlines, errors."""

import msgspec
import temporalio.converter
from temporalio.api.common.v1 import Payload


def _enc_hook(value: object) -> object:
    raise NotImplementedError(f"{type(value).__name__} cannot be written as JSON")


# Prices stay JSON numbers with all their digits, in Temporal as in HTTP.
_ENCODER = msgspec.json.Encoder(decimal_format="number")


class JSONPayloadConverter(temporalio.converter.EncodingPayloadConverter):
    """JSON by msgspec: structs and Decimals as they are, `msgspec.Raw` byte for byte in both directions."""

    @property
    def encoding(self) -> str:
        return "json/plain"

    def to_payload(self, value: object) -> Payload | None:
        data = bytes(value) if isinstance(value, msgspec.Raw) else _ENCODER.encode(value)
        return Payload(metadata={"encoding": b"json/plain"}, data=data)

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> object:
        if type_hint is msgspec.Raw:
            return msgspec.Raw(payload.data)
        return msgspec.json.decode(payload.data, type=type_hint or object)


class PayloadConverter(temporalio.converter.CompositePayloadConverter):
    """Temporal's default converters with their JSON one replaced."""

    def __init__(self) -> None:
        defaults = temporalio.converter.DefaultPayloadConverter.default_encoding_payload_converters
        super().__init__(
            *(
                JSONPayloadConverter() if isinstance(c, temporalio.converter.JSONPlainPayloadConverter) else c
                for c in defaults
            )
        )


DATA_CONVERTER = temporalio.converter.DataConverter(payload_converter_class=PayloadConverter)
