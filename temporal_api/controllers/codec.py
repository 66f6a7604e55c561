"""Temporal's remote codec protocol, for its UI and CLI: payloads in, payloads out, encrypted or decrypted.

`temporal workflow show --codec-endpoint https://HOST/api/v1/codec --codec-auth "Bearer TOKEN" ...`
"""

from typing import Annotated

import msgspec
from litestar import Controller, post
from litestar.params import JSONBody
from msgspec import Meta

from temporal_api.errors import NotFound, PayloadUndecodable
from temporal_api.problems import responses
from temporal_api.services import CurrentServices, Services
from temporal_api.temporal.payloads import Payload

SCOPE = "codec:decode"
LARGEST_PAYLOAD = 4 * 2**20
"""Temporal takes no larger message."""
_PAYLOAD = {"metadata": {"encoding": "anNvbi9wbGFpbg=="}, "data": "eyJpbnZvaWNlIjoyMDQxfQ=="}
"""The JSON `{"invoice":2041}`."""


class CodecPayload(msgspec.Struct):
    """A payload in Temporal's JSON form: metadata values and data are base64."""

    metadata: Annotated[
        dict[Annotated[str, Meta(max_length=1000)], Annotated[bytes, Meta(max_length=10_000)]],
        Meta(max_length=100, description="The payload's metadata, such as its `encoding`."),
    ] = {}
    data: Annotated[bytes, Meta(max_length=LARGEST_PAYLOAD, description="The data.")] = b""


class CodecPayloads(msgspec.Struct):
    """Payloads. The answer has them in the same order."""

    payloads: Annotated[
        list[CodecPayload], Meta(max_length=1000, description="The payloads, in order.", examples=[[_PAYLOAD]])
    ] = []


class CodecController(Controller):
    """Encrypts and decrypts payloads for Temporal's own tools. Needs PAYLOAD_ENCRYPTION_KEYS."""

    path = "/codec"
    tags = ["codec"]  # noqa: RUF012 - Litestar's way

    @post("/encode", scope=SCOPE, status_code=200, summary="Encrypt payloads", responses=responses(NotFound))
    async def encode_payloads(self, data: JSONBody[CodecPayloads], services: CurrentServices) -> CodecPayloads:
        """Encrypt each payload with the first of PAYLOAD_ENCRYPTION_KEYS."""
        return await _coded(data, services, encode=True)

    @post(
        "/decode",
        scope=SCOPE,
        status_code=200,
        summary="Decrypt payloads",
        responses=responses(NotFound, PayloadUndecodable),
    )
    async def decode_payloads(self, data: JSONBody[CodecPayloads], services: CurrentServices) -> CodecPayloads:
        """Decrypt each payload with the key that it names. A payload that is not encrypted is returned unchanged."""
        return await _coded(data, services, encode=False)


async def _coded(data: CodecPayloads, services: Services, *, encode: bool) -> CodecPayloads:
    codec = services.temporal.codec
    if codec is None:
        raise NotFound("Payloads are not encrypted here: PAYLOAD_ENCRYPTION_KEYS is not set.")
    payloads = [Payload(metadata=payload.metadata, data=payload.data) for payload in data.payloads]
    coded = await (codec.encode(payloads) if encode else codec.decode(payloads))
    return CodecPayloads([CodecPayload(dict(payload.metadata), payload.data) for payload in coded])
