"""Runs the service's commands as the processes they are, and what the README says in the shell it is meant for."""

import asyncio
import json
import os
import re
import shlex
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import msgspec

from api import TLS, eventually
from temporal_api.settings import ResourceSettings, Settings

SETTINGS = {field.encode_name for field in msgspec.structs.fields(Settings)}
OF_RESOURCES = tuple(f"_{field.encode_name}" for field in msgspec.structs.fields(ResourceSettings))


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


def inherited() -> dict[str, str]:
    """The environment of the tests without the service's settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "TEMPORAL_CLI"
        or not (name in SETTINGS or name.startswith("TEMPORAL_") or name.endswith(OF_RESOURCES))
    }


@asynccontextmanager
async def command(program: str, *arguments: str, cwd: Path | None = None, **environ: str) -> AsyncIterator[Process]:
    """`PROGRAM ARGUMENTS`, as it is installed beside the service, with these settings and no other of the service's."""
    env = {**inherited(), "PYTHONUNBUFFERED": "1", **environ}
    async with running_program(Path(sys.executable).with_name(program), *arguments, cwd=cwd, env=env) as process:
        yield process


@asynccontextmanager
async def running_program(
    *words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> AsyncIterator[Process]:
    """A program, told to end when the block ends."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=env, cwd=cwd
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


def temporal_api(*arguments: str, cwd: Path | None = None, **environ: str) -> AbstractAsyncContextManager[Process]:
    """`temporal-api ARGUMENTS` with these settings and no other of the service's."""
    return command("temporal-api", *arguments, cwd=cwd, **environ)


RUST = ("Traceback", "Error(", "Status {", "tonic")
"""What is for programmers, and not for operators."""
COMMANDS = """
import json, os, sys
from temporal_api.__main__ import main
inherited = dict(os.environ)
for arguments, environ in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(inherited | environ)
    sys.argv = ["temporal-api", *arguments]
    try:
        main()
    except SystemExit as end:
        print("exit", end.code or 0, flush=True)
"""
"""Runs one command after the other in one process, as most of the time of a process goes into its imports."""


async def one_line(*cases: tuple[str, dict[str, str], int, str], **environ: str) -> None:
    """Each command, with its settings, ends with its code, and says one line for people that begins so."""
    given = json.dumps([(arguments.split(), {**environ, **own}) for arguments, own, _, _ in cases])
    async with command("python", "-c", COMMANDS, given) as process:
        assert 0 == await process.end(seconds=120), process.output
    outcomes = re.findall(r"(.*?)^exit (\d+)$\n", process.output, re.DOTALL | re.MULTILINE)
    for (arguments, own, code, begin), (output, ended_with) in zip(cases, outcomes, strict=True):
        assert output.startswith(f"temporal-api: {begin}"), (arguments, own, output)
        assert (str(code), 1) == (ended_with, output.count("\n")), (arguments, own, output)
        assert not any(word in output for word in (*RUST, "hunter2")), output


async def until_ready(url: str) -> None:
    """Wait until the service at that address takes requests."""
    async with httpx.AsyncClient(base_url=url, verify=TLS) as client:

        async def ready() -> bool:
            try:
                return 200 == (await client.get("/health/ready")).status_code
            except httpx.TransportError:
                return False

        await eventually(ready)


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
    async with httpx.AsyncClient(timeout=30, verify=TLS) as client:
        return await client.request(method or ("POST" if data else "GET"), url, content=data, headers=headers)


class Shell:
    """One bash, into which the README's blocks are pasted one after the other."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def paste(self, text: str, seconds: float = 120) -> str:
        """What the text prints, errors included. Fails when its last command fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        end = uuid.uuid4().hex
        self._process.stdin.write(f"{text}\nprintf '%s %d\\n' {end} $?\n".encode())
        output = ""
        async with asyncio.timeout(seconds):
            while not (found := re.search(rf"{end} (\d+)\n", output)):
                line = await self._process.stdout.readline()
                assert line, f"the shell ended: {output}"
                output += line.decode()
        output = output[: found.start()]
        assert "0" == found[1], f"{text}\n{output}"
        return output

    async def follow(self, block: str) -> None:
        """Paste a block of the README; each command must print the answer that the block tells below it."""
        for commands, answer in told(block):
            printed = await self.paste(commands)
            assert answer.fullmatch("".join(printed.split())), f"{commands}\nprinted: {printed}"


def told(block: str) -> list[tuple[str, re.Pattern[str]]]:
    """The commands of a block, and the answer below each: lines that begin with #, with … for what is left out.

    White space does not count. Commands with no answer below them print nothing.
    """
    steps = re.findall(r"((?:^(?!#).*\n)+)((?:^#.*\n)*)", block, re.MULTILINE)
    answers = ("".join(re.sub("^#", "", answer, flags=re.MULTILINE).split()) for _, answer in steps)
    patterns = (".*".join(map(re.escape, answer.split("…"))) for answer in answers)
    return [(commands, re.compile(pattern)) for (commands, _), pattern in zip(steps, patterns, strict=True)]


@asynccontextmanager
async def bash(cwd: Path, **environ: str) -> AsyncIterator[Shell]:
    """A shell in a folder that has this environment as its `.venv`, with no setting of the service but these."""
    if not (cwd / ".venv").exists():
        (cwd / ".venv").symlink_to(sys.prefix)
    process = await asyncio.create_subprocess_exec(
        *("bash", "--norc", "--noprofile"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**inherited(), **environ},
        cwd=cwd,
        limit=2**20,
    )
    try:
        yield Shell(process)
    finally:
        process.kill()
        await process.communicate()


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
