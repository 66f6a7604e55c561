"""The open connections of one server: how many there may be, how long each may be silent, and how they end."""

import asyncio
import heapq
import logging
import resource
from collections import deque
from typing import TYPE_CHECKING

from uvicorn.server import ServerState

from temporal_api.settings import Settings

if TYPE_CHECKING:
    from temporal_api.protocol import Connection

SWEEP_SECONDS = 0.5
LAST_BODY_SECONDS = 4.0
"""While stopping, how long a request has to arrive completely, before uvicorn cancels it."""
SPARE_CONNECTIONS = 32
"""Connections beyond MAX_CONNECTIONS, for requests for health and metrics."""
OTHER_DESCRIPTORS = 32
"""Files and sockets of the process that are not its clients' connections."""
BEGUN_IN_A_TURN = 32
"""The most requests that begin in one turn of the event loop, so that health never waits for 500 others."""

log = logging.getLogger(__name__)


class Clients(ServerState):
    """The open connections of one server: how many there may be, how long each may be silent, and how they end."""

    connections: set["Connection"]  # type: ignore[assignment]

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.limit = max(1, min(settings.max_connections, descriptors - SPARE_CONNECTIONS - OTHER_DESCRIPTORS))
        self.request_timeout = settings.request_timeout_seconds
        self.spared = tuple(f"{root}/{first}" for root in ("", settings.root_path) for first in ("health", "metrics"))
        self.draining = False
        self.ends_at: float | None = None
        self.clock = 0.0  # counted, not read: when this process itself is slow, no caller is late
        self.held_bytes = 0
        self._made = 0
        self._evicted = 0
        self._longest: list[tuple[float, int, Connection]] = []
        self._sweeping = False
        self._begun = 0
        self._later: deque[Connection] = deque()

    def add(self, connection: "Connection") -> None:
        """Find a place for a new connection. If there is none, close the connection that has been idle the longest."""
        self._made += 1
        connection.number = self._made
        connection.since = self.clock
        over = len(self.connections) - self.limit
        if over > 0 and not self._evict(connection, every=over > SPARE_CONNECTIONS):
            connection.over_limit = over <= SPARE_CONNECTIONS
            if not connection.over_limit:
                self._evicted += 1
                connection.transport.abort()
        if not self._sweeping:
            self._sweeping = True
            connection.loop.call_later(SWEEP_SECONDS, self._sweep, connection.loop)

    def _evict(self, new: "Connection", *, every: bool) -> bool:
        for found in (False, True):  # use up a list before making the next: that takes a look at every connection
            while self._longest:
                since, _, connection = self._longest.pop()
                if connection.waits and connection.since == since and not connection.transport.is_closing():
                    self._evicted += 1
                    connection.transport.abort()
                    return True
            if not found:
                waiting = (
                    (c.since, c.number, c)
                    for c in self.connections
                    if c.waits and c is not new and (every or not c.over_limit)
                )
                self._longest = heapq.nsmallest(SPARE_CONNECTIONS, waiting)[::-1]
        return False

    def begin(self, connection: "Connection", path: str) -> None:
        """Begin the connection's request now, or in a later turn if many have begun in this one."""
        if self._begun < BEGUN_IN_A_TURN or path.startswith(self.spared):
            self._begin(connection)
        else:
            self._later.append(connection)

    def _begin(self, connection: "Connection") -> None:
        if not self._begun:
            connection.loop.call_soon(self._next_turn)
        self._begun += 1
        connection.answer()

    def _next_turn(self) -> None:
        self._begun = 0
        while self._later and self._begun < BEGUN_IN_A_TURN:
            self._begin(self._later.popleft())

    def drain(self) -> None:
        """From now on, answer with `Connection: close`."""
        self.draining = True
        for connection in self.connections:
            cycle = connection.cycle
            if cycle is not None and not cycle.response_started:
                cycle.keep_alive = False

    def end(self) -> None:
        """Close idle connections now, and the others soon."""
        if self.ends_at is None:
            self.drain()
            self.ends_at = self.clock + LAST_BODY_SECONDS
            for connection in self.connections:
                if connection.waits:
                    connection.since = self.clock

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.clock += SWEEP_SECONDS
        for connection in list(self.connections):
            connection.check()
        if self._evicted:
            log.warning("closed %d connections: %d are open, as many as may be", self._evicted, len(self.connections))
            self._evicted = 0
        self._sweeping = bool(self.connections)
        if self._sweeping:
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)
