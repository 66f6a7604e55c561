"""A TCP proxy before Temporal that a test makes late, silent or rude."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close with a reset."""


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: "Proxy", near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.proxy, self.near, self.far = proxy, near, far
        self.dead = proxy.silent
        self.sent = 0

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on what comes, after the proxy's delay when it comes from Temporal."""
        loop, due = asyncio.get_running_loop(), 0.0
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if self.dead:
                    continue
                if writer is self.near:
                    self.sent += len(data)
                    due = max(due, loop.time() + self.proxy.delay)
                    loop.call_at(due, self._write, data)
                else:
                    writer.write(data)
        if not self.dead:
            writer.close()

    def _write(self, data: bytes) -> None:
        if self.dead:
            return
        if self.proxy.resets > 0:
            self.proxy.resets -= 1
            self.near.write(data[: len(data) // 2])
            self.reset()
        elif not self.near.is_closing():
            self.near.write(data)

    def reset(self) -> None:
        """Break it: both ends get a reset."""
        self.dead = True
        for writer in (self.near, self.far):
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()


class Proxy:
    """Where the service finds Temporal."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = ""
        self.delay = 0.0
        self.silent = False
        self.resets = 0
        """So many of Temporal's next answers are cut in the middle, and the connection is reset."""
        self.links: list[Link] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect it to Temporal."""
        host, _, port = self.target.rpartition(":")
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

    def reset_all(self) -> None:
        """Break every connection."""
        for link in list(self.links):
            link.reset()


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Proxy]:
    """A proxy before that address."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy.address = f"{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.reset_all()
