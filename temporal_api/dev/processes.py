"""Runs programs that end with this process, whatever ends it."""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Runs in the new process. It leaves a watcher behind, which reads from a pipe that only we hold the other end of: when
# we end, even by SIGKILL, the watcher removes the folder it was given and kills the whole group.
_DIE_WITH_US = """
import os, shutil, sys
folder, *command = sys.argv[1:]
if os.fork():
    os.execvp(command[0], command)
os.read(0, 1)
if folder:
    shutil.rmtree(folder, ignore_errors=True)
os.killpg(0, 9)
"""


@asynccontextmanager
async def process(
    command: list[str | Path], output: BinaryIO, env: Mapping[str, str], *, folder: str = ""
) -> AsyncIterator[Process]:
    """A process that a terminal's Ctrl-C does not reach; it and all its children end with this context, or with us.

    The caller removes the `folder`; if we are killed, the watcher does.
    """
    watched, ours = os.pipe()
    try:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, "-ISc", _DIE_WITH_US, folder, *command),
            stdin=watched,
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,
        )
        try:
            yield started
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            await started.wait()
    finally:
        os.close(watched)
        os.close(ours)


async def run(*command: str | Path, seconds: float, **env: str) -> tuple[int, str]:
    """Run to the end; the exit code and the last lines of the output."""
    with tempfile.TemporaryFile() as output:
        async with process([*command], output, {**os.environ, **env}) as started:
            try:
                return await asyncio.wait_for(started.wait(), seconds), last_lines(output)
            except TimeoutError:
                return -1, f"not done after {seconds:.0f} s"


def last_lines(output: BinaryIO) -> str:
    """The end of what a process wrote so far."""
    # pread: the process goes on writing at the position that we share with it.
    size = os.fstat(output.fileno()).st_size
    text = os.pread(output.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-10:])
