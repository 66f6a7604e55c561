"""Runs the service's commands as the processes they are, and the README's curl lines as written."""

import asyncio
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import msgspec

from temporal_api.settings import Settings

SETTINGS = {field.encode_name for field in msgspec.structs.fields(Settings)}


class Process:
    """A running program, and what it printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""

    async def until(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        """Read on until the output matches. Fails when the process ends before, or takes too long."""
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            while not (found := re.search(pattern, self.output)):
                line = await self.process.stdout.readline()
                assert line, f"ended without {pattern!r}: {self.output}"
                self.output += line.decode()
        return found

    async def end(self, signal_number: int | None = None, seconds: float = 60) -> int:
        """The exit code, after a signal when one is given; `output` is then complete."""
        assert self.process.stdout is not None
        if signal_number is not None:
            self.process.send_signal(signal_number)
        async with asyncio.timeout(seconds):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()


@asynccontextmanager
async def command(program: str, *arguments: str, **environ: str) -> AsyncIterator[Process]:
    """`PROGRAM ARGUMENTS`, as it is installed beside the service, with these settings and no other of the service's."""
    inherited = {k: v for k, v in os.environ.items() if k not in SETTINGS and not k.startswith("TEMPORAL_")}
    if "TEMPORAL_CLI" in os.environ:
        inherited["TEMPORAL_CLI"] = os.environ["TEMPORAL_CLI"]
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name(program),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**inherited, "PYTHONUNBUFFERED": "1", **environ},
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


def temporal_api(*arguments: str, **environ: str) -> AbstractAsyncContextManager[Process]:
    """`temporal-api ARGUMENTS` with these settings and no other of the service's."""
    return command("temporal-api", *arguments, **environ)


async def curl(line: str, **variables: str) -> httpx.Response:
    """Do what a `curl` line of the README or of `dev` says, its shell variables filled in."""

    def filled(word: str) -> str:
        return re.sub(r"\$(\w+)", lambda found: filled(variables[found[1]]), word)

    method, data, headers, url = None, None, {}, ""
    words = map(filled, shlex.split(line.replace("\\\n", " ")))
    assert next(words) == "curl"
    for word in words:
        match word:
            case "-s" | "-si":
                pass
            case "-X":
                method = next(words)
            case "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            case "-d":
                data = next(words)
            case _:
                assert not url, f"{word} is new to this test"
                url = word
    async with httpx.AsyncClient(timeout=30) as client:
        return await client.request(method or ("POST" if data else "GET"), url, content=data, headers=headers)


@asynccontextmanager
async def javascript(module: str, cache: Path) -> AsyncIterator[Process]:
    """A JavaScript module as it runs in a browser, with fetch and streams; it may reach this machine only."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("deno"),
        *("run", "--quiet", "--no-prompt", "--no-config", "--ext=js", "--allow-net=127.0.0.1", "-"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"DENO_DIR": str(cache), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"},
        limit=2**20,
    )
    assert process.stdin is not None
    process.stdin.write(module.encode())
    process.stdin.close()
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
