"""A TCP proxy before Temporal that a test makes late, silent or rude."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close with a reset."""
PREFACE_BYTES = 24
HEADERS, END_STREAM = 1, 1


class Frames:
    """What goes one way on an HTTP/2 connection, frame by frame (RFC 9113 4.1)."""

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._rest = b""

    def read(self, data: bytes) -> list[tuple[int, int, int]]:
        """Type, flags and stream of each frame that begins in the data."""
        found, self._rest = [], self._rest + data
        while len(self._rest) >= self._skip + 9:
            head = self._rest[self._skip : self._skip + 9]
            found.append((head[3], head[4], int.from_bytes(head[5:]) & 0x7FFF_FFFF))
            self._skip += 9 + int.from_bytes(head[:3])
            self._rest, self._skip = self._rest[self._skip :], max(0, self._skip - len(self._rest))
        return found


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: "Proxy", near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.dead = proxy.silent
        self.calls: set[int] = set()
        """The streams of the calls under way."""
        self._proxy, self._near, self._far = proxy, near, far

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on what comes, after the proxy's delay when it comes from Temporal."""
        loop, due, from_temporal = asyncio.get_running_loop(), 0.0, writer is self._near
        frames = Frames(0 if from_temporal else PREFACE_BYTES)
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                self._count(frames.read(data), from_temporal)
                due = max(due, loop.time() + (self._proxy.delay if from_temporal else 0))
                loop.call_at(due, self._write, writer, data)
        if not self.dead:
            writer.close()

    def _count(self, frames: list[tuple[int, int, int]], from_temporal: bool) -> None:
        for kind, flags, stream in frames:
            if from_temporal and flags & END_STREAM and kind <= HEADERS:
                self.calls.discard(stream)
            elif not from_temporal and kind == HEADERS:
                self.calls.add(stream)

    def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self.dead or writer.is_closing():
            return
        if writer is self._near and self._proxy.resets:
            self._proxy.resets -= 1
            writer.write(data[: len(data) // 2])
            self.reset(self._near)
        else:
            writer.write(data)

    def reset(self, *ends: asyncio.StreamWriter) -> None:
        """Break it: both ends get a reset, or the ends given."""
        self.dead = True
        for writer in ends or (self._near, self._far):
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()


class Proxy:
    """Where the service finds Temporal."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.delay = 0.0
        """Seconds by which all that Temporal says is late."""
        self.silent = False
        self.resets = 0
        """So many of the next pieces that Temporal sends are cut in the middle, and their connections reset.

        Temporal's end stays open: cut off during a query, the dev server's store may break for good.
        """
        self.links: list[Link] = []
        self._target = target

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect it to Temporal."""
        host, _, port = self._target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        link = Link(self, writer, far_writer)
        self.links.append(link)
        await asyncio.gather(link.forward(reader, far_writer), link.forward(far_reader, writer))
        self.links.remove(link)

    def fall_silent(self) -> None:
        """Forward nothing more, on no connection that there is or comes, and close none."""
        self.silent = True
        for link in self.links:
            link.dead = True

    def speak(self) -> None:
        """Forward on new connections; those from before stay dead."""
        self.silent = False


@asynccontextmanager
async def listening(
    accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The address of a server that does that with each connection."""
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Proxy]:
    """A proxy before that address."""
    proxy = Proxy(target)
    async with listening(proxy.accept) as proxy.address:
        try:
            yield proxy
        finally:
            for link in list(proxy.links):
                link.reset()
