"""Connections to Temporal: as many as the calls under way need; one that has gone silent is given up."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, cast

from google.protobuf.message import Message
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode, ServiceClient, WorkflowService

CALLS_EACH = 100
"""What one connection carries at once. Proxies allow 128 (nginx), and hold back every further call."""
SILENCE_SECONDS = 3.0
"""Keep-alive takes up to 13 s to notice a dead connection, as Temporal takes no more than one ping in 10 s."""

_UNANSWERED = (RPCStatusCode.CANCELLED, RPCStatusCode.DEADLINE_EXCEEDED)

log = logging.getLogger(__name__)

Connect = Callable[[], Awaitable[Client]]


@dataclass(eq=False)
class _Connection:
    service: ServiceClient
    made_by: Connect
    under_way: int = 0
    unanswered_since: float = inf
    """When the first call after Temporal's last answer began."""
    limits: set[asyncio.Timeout] = field(default_factory=set)
    """Of the calls that may be given up."""

    async def wait(self, call: Awaitable[Message]) -> Message:
        """The answer, unless the call is given up."""
        async with asyncio.timeout(None) as limit:
            self.limits.add(limit)
            try:
                return await call
            finally:
                self.limits.remove(limit)


class Connections:
    """Carries each call on a connection that has room for it, and opens one when none has.

    Calls are prompt when `waits` is given, for those that are not: a connection that leaves them without an answer for
    three seconds is dead. The next call opens another one, and what waits on those of `waits` is given up with it, as
    a dead connection there looks like a long wait.
    """

    def __init__(self, connect: Connect, waits: "Connections | None" = None) -> None:
        self._connect = connect
        self._waits = waits
        self._open: list[_Connection] = []
        # All that it asks of its client is `_rpc_call`.
        self.service = WorkflowService(cast(ServiceClient, self))

    def abandon(self) -> None:
        """Give up every connection. The calls under way end in TimeoutError."""
        for connection in self._open:
            for limit in connection.limits:
                limit.reschedule(0)
        self._open = []

    def renew(self, connect: Connect) -> None:
        """Make each new call on a connection that is opened in this way. The calls under way end on theirs."""
        self._connect, self._open = connect, []

    async def _rpc_call(self, rpc: str, req: Message, **options: Any) -> Message:
        now = asyncio.get_running_loop().time()
        connection = await self._with_room(now)
        connection.unanswered_since = min(connection.unanswered_since, now)
        connection.under_way += 1
        try:
            call = connection.service._rpc_call(rpc, req, **options)
            answer = await (call if self._waits else connection.wait(call))
        except (RPCError, RuntimeError) as error:
            if not (isinstance(error, RPCError) and error.status in _UNANSWERED):
                connection.unanswered_since = inf
            raise
        finally:
            connection.under_way -= 1
        connection.unanswered_since = inf
        if connection not in self._open and connection.made_by is self._connect:  # it was not dead, but slow
            self._open.insert(0, connection)
        return answer

    async def _with_room(self, now: float) -> _Connection:
        if self._waits:
            for silent in [each for each in self._open if now - each.unanswered_since > SILENCE_SECONDS]:
                log.warning("A connection to Temporal has gone silent: opening another one.")
                self._open.remove(silent)
                self._waits.abandon()
        for connection in self._open:
            if connection.under_way < CALLS_EACH:
                return connection
        connect = self._connect
        connection = _Connection((await connect()).service_client, connect)
        if connect is self._connect:
            self._open.append(connection)
        return connection
