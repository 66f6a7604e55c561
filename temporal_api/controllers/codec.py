"""Temporal's remote codec protocol, for its UI and CLI: payloads in, payloads out, sealed or opened.

`temporal workflow show --codec-endpoint https://HOST/api/v1/codec --codec-auth "Bearer TOKEN" ...`
"""

from typing import Any

import msgspec
from litestar import Controller, post
from litestar.datastructures import State
from litestar.params import JSONBody
from temporalio.api.common.v1 import Payload

from temporal_api.errors import Problem, responses

SCOPE = "codec:decode"


class CodecPayload(msgspec.Struct):
    """A payload in Temporal's JSON form: metadata values and data are base64."""

    metadata: dict[str, bytes] = {}
    data: bytes = b""


class CodecPayloads(msgspec.Struct):
    """What the protocol sends, and wants back in the same order."""

    payloads: list[CodecPayload] = []


class CodecController(Controller):
    """Seals and opens payloads for Temporal's own tools. Needs PAYLOAD_ENCRYPTION_KEYS."""

    path = "/codec"
    tags = ["codec"]  # noqa: RUF012 - Litestar's way

    @post(
        "/encode",
        scope=SCOPE,
        status_code=200,
        operation_id="encodePayloads",
        summary="Seal payloads",
        responses=responses("not_found", body=True),
    )
    async def encode(self, data: JSONBody[CodecPayloads], state: State) -> CodecPayloads:
        """With the first key."""
        return _json(await _codec(state).encode(_payloads(data)))

    @post(
        "/decode",
        scope=SCOPE,
        status_code=200,
        operation_id="decodePayloads",
        summary="Open payloads",
        responses=responses("not_found", "payload_undecodable", body=True),
    )
    async def decode(self, data: JSONBody[CodecPayloads], state: State) -> CodecPayloads:
        """With the key that each names; what is not sealed comes back as it is."""
        return _json(await _codec(state).decode(_payloads(data)))


def _codec(state: State) -> Any:
    codec = state.temporal.codec
    if codec is None:
        raise Problem("not_found", "Payloads are not encrypted here: PAYLOAD_ENCRYPTION_KEYS is not set.")
    return codec


def _payloads(data: CodecPayloads) -> list[Payload]:
    return [Payload(metadata=payload.metadata, data=payload.data) for payload in data.payloads]


def _json(payloads: list[Payload]) -> CodecPayloads:
    return CodecPayloads([CodecPayload(dict(payload.metadata), payload.data) for payload in payloads])
