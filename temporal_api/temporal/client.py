"""The connection to Temporal: every call has a deadline, and fails only with a Problem."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import msgspec
from google.protobuf.message import Message
from temporalio.api.common.v1 import Memo, Payload, Payloads
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import GrpcCompression, RetryConfig, RPCError

from temporal_api.encryption import ENCODING as ENCRYPTED
from temporal_api.errors import PayloadUndecodable, ShuttingDown, TemporalConnectionError, TemporalTimeout
from temporal_api.memory import Memory
from temporal_api.settings import Settings
from temporal_api.temporal.failures import NOTHING, FailureInfo, Subject, failure_kind, problem_of
from temporal_api.temporal.payloads import data_converter, raw_json

Response = TypeVar("Response", bound=Message)
Value = TypeVar("Value")


def connect(settings: Settings, runtime: Runtime) -> Awaitable[Client]:
    """A client that connects when first used: the service starts, and recovers, whether Temporal is there or not."""
    return Client.connect(
        **settings.temporal,
        data_converter=data_converter(settings),
        runtime=runtime,
        lazy=True,
        # Orders are smaller than what gzip saves, and each call would pay for it.
        grpc_compression=GrpcCompression.NONE,
        # Give up retrying before the deadline, so that "cannot be reached" is not reported as "did not answer".
        retry_config=RetryConfig(max_elapsed_time_millis=int(settings.rpc_timeout_seconds * 500)),
    )


class _FailureAttributes(msgspec.Struct):
    message: str = ""


class Temporal:
    """Temporal's services as this gateway uses them."""

    def __init__(self, client: Client, rpc_timeout_seconds: float, memory: Memory) -> None:
        self.memory = memory
        self.service = client.workflow_service
        self.namespace = client.namespace
        self.identity = client.identity
        self.codec = client.data_converter.payload_codec
        self._to_payload = client.data_converter.payload_converter.to_payload
        self._timeout = timedelta(seconds=rpc_timeout_seconds)
        self._under_way: set[asyncio.Timeout] = set()
        self._ending_at = float("inf")

    async def call(
        self,
        rpc: Callable[..., Awaitable[Response]],
        request: Message,
        subject: Subject = NOTHING,
        seconds: float | None = None,
    ) -> Response:
        """Make one call, retries included, within the deadline: `seconds`, else RPC_TIMEOUT_SECONDS.

        Raises Problem, never RPCError. `subject` names what the call is about in the words of whoever makes it.
        """
        limit = self._timeout if seconds is None else timedelta(seconds=seconds)
        deadline = min(asyncio.get_running_loop().time() + limit.total_seconds(), self._ending_at)
        try:
            # The SDK's own timeout is for one attempt; connecting has none.
            async with asyncio.timeout_at(deadline) as timeout:
                self._under_way.add(timeout)
                try:
                    return await rpc(request, retry=True, timeout=limit)
                finally:
                    self._under_way.remove(timeout)
        except RPCError as error:
            raise problem_of(error, subject) from error
        except TimeoutError as error:
            kind = ShuttingDown if asyncio.get_running_loop().time() >= self._ending_at else TemporalTimeout
            raise kind(source="gateway", **subject.details) from error
        except RuntimeError as error:  # a lazy connect that failed
            raise TemporalConnectionError(source="gateway", **subject.details) from error

    def shorten_deadlines(self, seconds: float) -> None:
        """Give up every call, open or to come, in that many seconds: the process is ending."""
        self._ending_at = asyncio.get_running_loop().time() + seconds
        for timeout in self._under_way:
            timeout.reschedule(min(timeout.when() or self._ending_at, self._ending_at))

    async def check(self) -> None:
        """Ask whether Temporal answers and the namespace exists."""
        await self.call(self.service.describe_namespace, DescribeNamespaceRequest(namespace=self.namespace))

    # --- payloads ---

    async def encode(self, values: Iterable[object]) -> Payloads:
        """Encode arguments as payloads."""
        payloads = [self._to_payload(value) for value in values]
        return Payloads(payloads=await self.codec.encode(payloads) if self.codec else payloads)

    async def encode_memo(self, fields: Mapping[str, object]) -> Memo:
        """Encode a memo."""
        encoded = await self.encode(fields.values())
        return Memo(fields=dict(zip(fields, encoded.payloads, strict=True)))

    async def decode(self, payloads: Iterable[Payload]) -> Iterable[Payload]:
        """Decrypt payloads, if there are keys. Raises PayloadUndecodable."""
        return await self.codec.decode(list(payloads)) if self.codec else payloads

    async def values(self, fields: Mapping[str, Payload]) -> dict[str, msgspec.Raw]:
        """A memo or search attributes as JSON, in the order of their names."""
        names = sorted(fields)
        decoded = await self.decode(fields[name] for name in names)
        return {name: raw_json(payload) for name, payload in zip(names, decoded, strict=True)}

    async def result(self, payloads: Iterable[Payload]) -> msgspec.Raw:
        """What a workflow returned: no payload is null, one is itself, more are a list."""
        values = [raw_json(payload) for payload in await self.decode(payloads)]
        if len(values) == 1:
            return values[0]
        return msgspec.Raw(msgspec.json.encode(values) if values else b"null")

    async def memo(self, memo: Memo, key: str, kind: type[Value]) -> Value | None:
        """One memo field as that type; None when it is missing or is something else. Raises PayloadUndecodable."""
        if key not in memo.fields:
            return None
        (payload,) = await self.decode([memo.fields[key]])
        if payload.metadata.get("encoding") == ENCRYPTED:
            raise PayloadUndecodable("What Temporal keeps here is encrypted, and this service has no key.")
        try:
            return msgspec.json.decode(payload.data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    async def failure(self, failure: Failure) -> FailureInfo:
        """A failure as the caller may see it: never a stack trace."""
        kind, details = failure_kind(failure)
        message = failure.message
        if failure.HasField("encoded_attributes"):  # encrypted, with the stack trace
            (attributes,) = await self.decode([failure.encoded_attributes])
            # Without the key, Temporal's own message stays ("Encoded failure").
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                message = msgspec.json.decode(attributes.data, type=_FailureAttributes).message
        return FailureInfo(
            type=kind,
            message=message,
            details=[raw_json(payload) for payload in await self.decode(details)],
            cause=await self.failure(failure.cause) if failure.HasField("cause") else None,
        )
