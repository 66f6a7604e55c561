"""Runs programs that end when this process ends, however it ends."""

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

# Runs in the new process. It forks: the parent becomes the program, the child watches a pipe whose other end only we
# hold. When we end, even by SIGKILL, the child removes the folder and kills the whole process group.
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
    command: list[str | Path], output: BinaryIO, env: Mapping[str, str], *, folder: str = "", stop_seconds: float = 0
) -> AsyncIterator[Process]:
    """Run a process out of reach of the terminal's Ctrl-C. It ends with its children when this block ends, or we do.

    With `stop_seconds` it may end by itself first. The caller removes the `folder`; if we are killed, the watcher does.
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
            try:
                yield started
            finally:
                with suppress(ProcessLookupError, TimeoutError):
                    if stop_seconds:
                        started.send_signal(signal.SIGCONT)
                        started.terminate()
                        await asyncio.wait_for(started.wait(), stop_seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            await started.wait()
    finally:
        os.close(watched)
        os.close(ours)


async def run(*command: str | Path, seconds: float, **env: str) -> tuple[int, str]:
    """Run a program to its end; return its exit code and the last lines of its output."""
    with tempfile.TemporaryFile() as output:
        async with process([*command], output, {**os.environ, **env}) as started:
            try:
                return await asyncio.wait_for(started.wait(), seconds), last_lines(output)
            except TimeoutError:
                return -1, f"not done after {seconds:.0f} s"


def last_lines(output: BinaryIO) -> str:
    """Read the end of what a process has written."""
    # pread does not move the position, which the process shares with us.
    size = os.fstat(output.fileno()).st_size
    text = os.pread(output.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-10:])
