"""The connection to Temporal: every call has a deadline, and fails only with a Problem."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
from google.protobuf.message import Message
from temporalio.api.common.v1 import Memo, Payload, Payloads
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.failure.v1 import Failure
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import GrpcCompression, KeepAliveConfig, RetryConfig, RPCError, WorkflowService

from temporal_api.encryption import ENCODING as ENCRYPTED
from temporal_api.errors import PayloadUndecodable, Problem, ShuttingDown, TemporalTimeout
from temporal_api.memory import Memory
from temporal_api.record import current_record
from temporal_api.settings import Settings
from temporal_api.temporal import failures
from temporal_api.temporal.access import renewals
from temporal_api.temporal.caller import sign
from temporal_api.temporal.connections import Connections
from temporal_api.temporal.failures import NOTHING, FailureInfo, Subject, failure_kind, problem_of
from temporal_api.temporal.payloads import OWN_MEMO, data_converter, raw_json
from temporal_api.temporal.polls import Polls

Response = TypeVar("Response", bound=Message)
RPC = Callable[..., Awaitable[Response]]
Value = TypeVar("Value")

ASK_EVERY_SECONDS = 1.0
POLLED_WITHIN_SECONDS = 75.0
"""A worker's poll lasts a minute, and Temporal knows when it began; a dead worker stays listed for five."""

log = logging.getLogger(__name__)


@asynccontextmanager
async def connected(
    settings: Settings, runtime: Runtime, memory: Memory, make: "Callable[..., Temporal] | None" = None
) -> "AsyncIterator[Temporal]":
    """Connect to Temporal at the first call, so that the service can start and recover without it.

    While the block runs, changed certificate files and API keys are used for new connections.
    """
    options: dict[str, Any] = {
        "data_converter": data_converter(settings),
        "runtime": runtime,
        # No gzip: orders are too small to gain from it, and each call would pay.
        "grpc_compression": GrpcCompression.NONE,
        # The SDK must not retry: it would try for seconds when Temporal is at its limit. See `_attempt`.
        "retry_config": RetryConfig(max_retries=1),
        # The shortest interval that Temporal allows between pings of an idle client.
        "keep_alive_config": KeepAliveConfig(interval_millis=10_000, timeout_millis=3_000),
        "lazy": True,
    }
    connect = functools.partial(Client.connect, **settings.temporal, **options)
    waits = Connections(connect)
    calls = Connections(connect, waits)
    temporal = (make or Temporal)(await connect(), calls.service, waits.service, settings.rpc_timeout_seconds, memory)

    async def follow() -> None:
        # Where nobody probes, an operator hears at once that Temporal or the namespace is not there. Any call in the
        # namespace tells; `check` is for probes, which make it once a second.
        try:
            await temporal.has_worker("temporal_api")
        except TemporalTimeout:
            log.warning("Temporal cannot be reached: TEMPORAL_ADDRESS: no answer in time from this address")
        except Problem:  # already logged
            pass
        async for config, _ in renewals(settings, runtime=runtime):
            for each in (waits, calls):
                each.renew(functools.partial(Client.connect, **config, **options))

    following = asyncio.create_task(follow())
    try:
        yield temporal
    finally:
        following.cancel()


async def _attempt(rpc: RPC[Response], request: Message, now: float, ending_at: float) -> Response:
    """Retry after a passing failure; only once, and soon, when Temporal is at its limit or lacks the namespace."""
    # Stop in time, so that "cannot be reached" is not reported as "did not answer".
    last_at, pause, timeout = (now + ending_at) / 2, 0.1, timedelta(seconds=max(0, ending_at - now))
    missed = False
    while True:
        try:
            # Without `retry`, the SDK's metrics count a long poll as a call.
            return await rpc(request, retry=True, timeout=timeout)
        except RPCError as error:
            if failures.is_overload(error):
                last_at, pause = min(last_at, now + 0.4), 0.25
            elif failures.is_namespace_missing(error) and not missed:
                missed, last_at = True, ending_at
            elif not failures.is_passing(error):
                raise
            if asyncio.get_running_loop().time() + pause > last_at:
                raise
        await asyncio.sleep(pause)
        pause *= 1.5


class _FailureAttributes(msgspec.Struct):
    message: str = ""


class Temporal:
    """Temporal's services as this gateway uses them."""

    def __init__(
        self,
        client: Client,
        service: WorkflowService,
        waits: WorkflowService,
        rpc_timeout_seconds: float,
        memory: Memory,
    ) -> None:
        self.memory = memory
        self.polls = Polls()
        self.unindexed_until: dict[tuple[str, ...], float] = {}
        """Until when `starts` leaves out these search attributes, which the namespace lacks."""
        self.service = service
        self.waits = waits
        """Connections for calls that wait for events or a worker, so that they do not fill the others."""
        self.namespace = client.namespace
        self.process_identity = client.identity
        """The identity of calls outside a request."""
        self.codec = client.data_converter.payload_codec
        self._to_payload = client.data_converter.payload_converter.to_payload
        self._seconds = rpc_timeout_seconds
        self._under_way: set[asyncio.Timeout] = set()
        self._ending_at = float("inf")
        self._polled: dict[str, tuple[float, bool]] = {}

    async def call(
        self, rpc: RPC[Response], request: Message, subject: Subject = NOTHING, seconds: float | None = None
    ) -> Response:
        """Make one call, retries included, within `seconds`; without them, by the request's deadline.

        It sets the request's identity. `subject` says what the call is about. Raises Problem, never RPCError.
        """
        sign(request, self.process_identity)
        now = asyncio.get_running_loop().time()
        record = current_record() if seconds is None else None
        ending_at = record.end_of_call(now, self._seconds) if record else now + (seconds or self._seconds)
        ending_at = min(ending_at, self._ending_at)
        try:
            # The SDK's timeout covers one attempt, without connecting.
            async with asyncio.timeout_at(ending_at) as timeout:
                self._under_way.add(timeout)
                try:
                    return await _attempt(rpc, request, now, ending_at)
                finally:
                    self._under_way.remove(timeout)
        except (RPCError, RuntimeError) as error:  # a RuntimeError: a lazy connect that failed
            raise problem_of(error, subject) from error
        except TimeoutError as error:
            kind = ShuttingDown if asyncio.get_running_loop().time() >= self._ending_at else TemporalTimeout
            raise kind(source="gateway", **subject.details) from error

    def shorten_deadlines(self, seconds: float) -> None:
        """End every call, also later ones, in that many seconds: the process is shutting down."""
        self._ending_at = asyncio.get_running_loop().time() + seconds
        for timeout in self._under_way:
            timeout.reschedule(min(timeout.when() or self._ending_at, self._ending_at))

    async def check(self) -> None:
        """Ask whether Temporal answers and the namespace exists."""
        await self.call(self.service.describe_namespace, DescribeNamespaceRequest(namespace=self.namespace))

    async def has_worker(self, task_queue: str) -> bool:
        """Whether a worker has recently polled this queue for workflow tasks. Asks about each at most once a second."""
        now = time.monotonic()
        self._polled = {name: known for name, known in self._polled.items() if now - known[0] < ASK_EVERY_SECONDS}
        if task_queue not in self._polled:
            request = DescribeTaskQueueRequest(
                namespace=self.namespace,
                task_queue=TaskQueue(name=task_queue),
                task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
            )
            response = await self.call(self.service.describe_task_queue, request)
            since = time.time() - POLLED_WITHIN_SECONDS
            polled = any(poller.last_access_time.ToMicroseconds() / 1e6 > since for poller in response.pollers)
            self._polled[task_queue] = (now, polled)
        return self._polled[task_queue][1]

    # --- payloads ---

    async def encode(self, values: Iterable[object]) -> Payloads:
        """Encode arguments as payloads."""
        payloads = [self._to_payload(value) for value in values]
        return Payloads(payloads=await self.codec.encode(payloads) if self.codec else payloads)

    async def encode_memo(self, fields: Mapping[str, object]) -> Memo:
        """Encode a memo."""
        encoded = await self.encode(fields.values())
        return Memo(fields=dict(zip(fields, encoded.payloads, strict=True)))

    async def decode(self, payloads: Iterable[Payload]) -> Sequence[Payload]:
        """Decrypt payloads, if there are keys. A payload that cannot be decrypted stays encrypted."""
        encoded = list(payloads)
        if self.codec is None:
            return encoded
        try:
            return await self.codec.decode(encoded)
        except PayloadUndecodable:
            return encoded if len(encoded) == 1 else [one for each in encoded for one in await self.decode([each])]

    async def values(self, fields: Mapping[str, Payload]) -> dict[str, msgspec.Raw]:
        """A memo or search attributes as JSON, sorted by name, without this service's own memo keys."""
        names = sorted(name for name in fields if not name.startswith(OWN_MEMO))
        decoded = await self.decode(fields[name] for name in names)
        return {name: raw_json(payload) for name, payload in zip(names, decoded, strict=True)}

    async def result(self, payloads: Iterable[Payload]) -> msgspec.Raw:
        """A workflow's result: null for no payload, its value for one, a list for more."""
        values = [raw_json(payload) for payload in await self.decode(payloads)]
        if len(values) == 1:
            return values[0]
        return msgspec.Raw(msgspec.json.encode(values) if values else b"null")

    async def memo(self, memo: Memo, key: str, kind: type[Value]) -> Value | None:
        """One memo field as that type; None if it is missing or of another type. Raises PayloadUndecodable."""
        if key not in memo.fields:
            return None
        payload = memo.fields[key]
        if self.codec:
            (payload,) = await self.codec.decode([payload])
        elif payload.metadata.get("encoding") == ENCRYPTED:
            raise PayloadUndecodable("What Temporal keeps here is encrypted, and this service has no key.")
        try:
            return msgspec.json.decode(payload.data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    async def failure(self, failure: Failure) -> FailureInfo:
        """A failure for the caller, without its stack trace."""
        kind, details = failure_kind(failure)
        message = failure.message
        if failure.HasField("encoded_attributes"):  # encrypted, with the stack trace
            (attributes,) = await self.decode([failure.encoded_attributes])
            # Without the key, the message is Temporal's own ("Encoded failure").
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                message = msgspec.json.decode(attributes.data, type=_FailureAttributes).message
        return FailureInfo(
            type=kind,
            message=message,
            details=[raw_json(payload) for payload in await self.decode(details)],
            cause=await self.failure(failure.cause) if failure.HasField("cause") else None,
        )
