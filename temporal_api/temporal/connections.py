"""Connections to Temporal: as many as the current calls need. A silent connection is replaced."""

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
"""The most calls at once on one connection. Proxies allow 128 (nginx), and hold back further ones."""
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
    """Makes each call on a connection that has room for it, and opens one when none has.

    With `waits` (the connections of waiting calls), the calls here are expected to be prompt: a connection without an
    answer for three seconds counts as dead. The next call then opens another one. The connections of `waits` are given
    up too, as a dead one there looks like a long wait.
    """

    def __init__(self, connect: Connect, waits: "Connections | None" = None) -> None:
        self._connect = connect
        self._waits = waits
        self._open: list[_Connection] = []
        # It only calls `_rpc_call` of its client.
        self.service = WorkflowService(cast(ServiceClient, self))

    def abandon(self) -> None:
        """Give up every connection. Current calls raise TimeoutError."""
        for connection in self._open:
            for limit in connection.limits:
                limit.reschedule(0)
        self._open = []

    def renew(self, connect: Connect) -> None:
        """Open connections for new calls with `connect`. Current calls end on their old ones."""
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
        if connection not in self._open and connection.made_by is self._connect:  # it was slow, not dead
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
