"""The README keeps its word: its commands run, its settings are the service's."""

import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml

from api import SECRET, assert_problem, bearer, order, resolved, token
from commands import Process, bash, inherited, javascript, until_ready
from temporal_api import errors
from temporal_api.app import RESOURCES
from temporal_api.controllers.orders import ORDERS
from temporal_api.dev import processes
from temporal_api.dev.server import DevServer, free_port
from temporal_api.settings import ResourceSettings, Settings, from_env
from test_app import SERVERS

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BASH = [block for language, block in BLOCKS if language == "bash"]
ADDRESS = "http://127.0.0.1:8000"

# What is not pasted into the shell, by how the block begins, and why.
ELSEWHERE = {
    "python3 -m venv": "the first is the `dev` that the others are pasted against, the second is this test run itself",
    ".venv/bin/pip install openapi-python-client": "downloads packages",
    "npx openapi-typescript": "downloads packages",
    ".venv/bin/uvicorn": "serves until it is told to end: see test_other_servers_run_as_written",
    "podman build": "downloads images: see test_the_image_commands_name_what_there_is",
    "temporal workflow show": "`dev` there does not encrypt: see test_the_codec_endpoint_serves_temporal_s_cli",
    "export JWT_SECRET=change-me-to-32-random-bytes-or-more\nexport CODEC_TOKEN": "containers: test_containers.py",
    "temporal-api print kubernetes": "needs a cluster: see test_deploy.py",
    ".venv/bin/temporal-api dev\n": "the same `dev`, with the README's own resource: see test_refunds.py",
    ".venv/bin/python -m temporal_api.worker.refund_processing": "likewise",
    "REFUND_ID=": "likewise",
}
OPERATION = re.compile(r"^\| `(GET|POST|DELETE) (/\S+)` \| `([\w:]+)` \| (.*) \|$", re.MULTILINE)
ERROR = re.compile(r"^\| `(\w+)` \| (\d{3}) \| .+ \| .+ \|$", re.MULTILINE)


def only_block(language: str) -> str:
    """The one block in that language."""
    (block,) = (block for name, block in BLOCKS if name == language)
    return block


def test_no_block_is_left_out() -> None:
    """Each block is in a language that a test here or in test_refunds.py runs or checks."""
    known = {"bash", "diff", "ini", "js", "json", "nginx", "python", "text"}
    assert known == {language for language, _ in BLOCKS}
    assert 2 * len(BLOCKS) == len(re.findall("^```", README, re.MULTILINE))
    assert [] == [start for start in ELSEWHERE if not any(block.startswith(start) for block in BASH)]


def test_every_block_is_correct_bash() -> None:
    """Also those that are not run here: bash parses each of them."""
    for block in BASH:
        subprocess.run(["/bin/bash", "-n"], input=block.encode(), check=True)


async def test_pasting_works(dev: Process, tmp_path: Path) -> None:
    """Pasted in order into one shell after the lines that `dev` prints, each call answers what the README tells."""
    await dev.until("Running until Ctrl-C")
    api = re.search(r"^API +(\S+)$", dev.output, re.MULTILINE)[1]
    blocks = [block.replace(ADDRESS, api) for block in BASH if not block.startswith(tuple(ELSEWHERE))]

    async with bash(tmp_path) as shell:
        await shell.paste("\n".join(re.findall(r"^export .*$", dev.output, re.MULTILINE)))
        for block in blocks:
            await shell.follow(block)


async def test_other_servers_run_as_written(dev_server: DevServer) -> None:
    """Litestar's line serves the API; only the port is added. uvicorn's is run in test_app.py, with more to do."""
    lines = re.findall(r"^\.venv/bin/(\S+ .*temporal_api\.app:create_app.*)$", README, re.MULTILINE)
    uvicorn, (server, *arguments) = map(shlex.split, lines)
    port = str(free_port())
    words = [Path(sys.executable).with_name(server), *arguments, "--port", port]
    environ = {**inherited(), "JWT_SECRET": SECRET, "TEMPORAL_ADDRESS": dev_server.address}
    with tempfile.TemporaryFile() as output:
        # `--reload` makes children of its own, which end with this context too.
        async with processes.process(words, output, environ):
            await until_ready(f"http://127.0.0.1:{port}")
    assert SERVERS[0] == tuple(uvicorn)


def test_the_table_of_operations_is_the_contract(contract: dict[str, Any]) -> None:
    """Every operation is in it with its scope, and with every answer but those that every operation can give."""
    operations = {
        (method.upper(), path.removeprefix("/api/v1")): operation
        for path, methods in contract["paths"].items()
        for method, operation in methods.items()
        if operation["security"]
    }
    told = {(method, path): (scope, answers) for method, path, scope, answers in OPERATION.findall(README)}
    codes = {key: set(_codes(contract, operation)) for key, operation in operations.items()}
    common = set.intersection(*codes.values()) | {
        ("400", "malformed_json"),
        ("413", "payload_too_large"),
        ("415", "unsupported_media_type"),
    }

    assert operations.keys() == told.keys()
    for key, operation in operations.items():
        scope, answers = told[key]
        real = {(status, "") for status in operation["responses"] if status < "400"} | (codes[key] - common)
        assert {scope, f"{scope.partition(':')[0]}:admin"} >= {each["bearer"][0] for each in operation["security"]}
        assert {"bearer": [scope]} in operation["security"]
        assert real == set(_answers(answers)), key


def _codes(contract: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The errors of an operation in the contract: status and code."""
    for status, response in operation["responses"].items():
        if status >= "400":
            yield from ((status, code) for code in re.findall(r"`(\w+)`", resolved(contract, response)["description"]))


def _answers(cell: str) -> Iterator[tuple[str, str]]:
    """The answers in the table: `200; 404 `a`, `b``."""
    for answer in cell.split("; "):
        status = answer[:3]
        yield from (
            ((status, code) for code in re.findall(r"`([a-z_]+)`", answer)) if status >= "400" else [(status, "")]
        )


def test_every_error_is_explained(contract: dict[str, Any]) -> None:
    """The table of errors has every code of the service with its status, and no other."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Problem)]
    classes += [kind for each in RESOURCES for kind in (each.resource.NotFound, each.resource.NotCancellable)]
    real = {(kind.code, str(kind.status)) for kind in classes if hasattr(kind, "code")}
    in_contract = {
        (code, status)
        for methods in contract["paths"].values()
        for operation in methods.values()
        for status, code in _codes(contract, operation)
    }
    told = ERROR.findall(README)

    assert real | in_contract == set(told)
    assert len(told) == len(set(told))


def test_the_picture_names_what_there_is() -> None:
    """The files and folders in the picture of a request's way are those of the package."""
    names = re.findall(r"^(\w+\.py|\w+/)", only_block("text"), re.MULTILINE)

    assert 5 == len(names)
    assert [] == [name for name in names if not (ROOT / "temporal_api" / name).exists()]


async def test_the_stream_reader_works_as_written(alice: httpx.AsyncClient, task_queue: str, tmp_path: Path) -> None:
    """Each event is shown once, whole and as it happens, to `done`; with `last`, what came after it."""
    # In more than one chunk, and with what ends a line for JavaScript but not in a stream.
    long = {"text": "\u2028id: 7\u2028data: \U0001f600: " + "\u00e9\u2029" * 100_000}
    start = {"workflow_type": "nobody", "task_queue": task_queue, "input_data": long}
    path = (await alice.post("/api/v1/workflows", json=start)).headers["location"]

    def reader(last: str = "", signed: str = token()) -> str:
        values = {"url": f"{alice.base_url}{path}/events", "token": signed, "last": last}
        given = [f"const {name} = {json.dumps(value)};" for name, value in values.items()]
        show = "const show = (...shown) => console.log(JSON.stringify(shown));"
        return "\n".join([*given, show, only_block("js")])

    def shown_by(process: Process) -> list[Any]:
        return [json.loads(line) for line in process.output.removesuffix("\n").split("\n")]

    async with javascript(reader(), tmp_path) as process:
        await process.until("WORKFLOW_TASK_SCHEDULED")
        await alice.post(f"{path}/signal", json={"signal_name": "hello"})
        await process.until("WORKFLOW_EXECUTION_SIGNALED")
        await alice.post(f"{path}/terminate", json={"reason": "seen"}, headers=bearer(scope="workflows:admin"))
        assert 0 == await process.end(), process.output
    shown = shown_by(process)
    history = (await alice.get(f"{path}/history")).json()["items"]
    run = shown[-1][2]["run_id"]

    assert long == history[0]["attributes"]["input"][0]
    assert [
        *([f"{run}:{event['event_id']}", "history", event] for event in history),
        [f"{run}:{len(history) + 1}", "done", {"run_id": run, "status": "TERMINATED"}],
    ] == shown
    async with javascript(reader(last=shown[1][0]), tmp_path) as process:
        assert 0 == await process.end(), process.output
    assert shown[2:] == shown_by(process)
    async with javascript(reader(signed="x"), tmp_path) as process:
        assert 1 == await process.end(), process.output
    assert (await alice.get(path, headers={"Authorization": "Bearer x"})).json()["message"] in process.output


async def test_the_error_is_shown_as_it_is(http: httpx.AsyncClient) -> None:
    """The error body in the README is the one that the service gives for that mistake."""
    expected = msgspec.json.decode(only_block("json"))
    items = [{"id": "a", "quantity": "2", "unit_price": 1}]
    address = {"province": None}
    response = await http.post(
        "/api/v1/orders",
        json=order(items=items, shipping_address=address),
        headers={"Authorization": f"Bearer {token()}"},
    )

    body = assert_problem(response, 400, "validation_error")

    assert {**expected, "request_id": body["request_id"]} == body


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    """The settings table and the service's settings are the same, defaults included."""
    rows = re.findall(r"^\| (`[A-Z]+_?[A-Z].*?) \| (.*?) \|", README, re.MULTILINE)
    documented = {}
    for names, defaults in rows:
        values = defaults.split(", ")
        for position, name in enumerate(re.findall(r"`(\w+)`", names)):
            documented[name] = values[min(position, len(values) - 1)]
    fields = [field for field in msgspec.structs.fields(Settings) if field.encode_name.strip()]
    for field in msgspec.structs.fields(ResourceSettings):
        fields.append(msgspec.structs.replace(field, encode_name=f"ORDERS_{field.encode_name}"))
    real = {
        field.encode_name: "none"
        if field.default in (None, ())
        else ",".join(field.default)
        if isinstance(field.default, tuple)
        else str(field.default)
        for field in fields
    }
    words = {
        "ORDERS_TASK_QUEUE": ORDERS.task_queue,
        "ROOT_PATH": "none",
        "JWT_ALGORITHMS": "by key kind",
        "SECRET_KEY": "from `JWT_SECRET`",
        "ALLOWED_WORKFLOW_TYPES": "none: all",
        "ALLOWED_TASK_QUEUES": "none: all",
    }

    assert {**real, **words} == documented


def test_the_two_commands_are_the_ones_that_the_gate_runs() -> None:
    """Set-up is two commands: one runs the main job, one the tests; the gate runs the second as it stands here."""
    commands = [block.strip() for block in BASH if "python3 -m venv" in block]

    assert [
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/temporal-api dev",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
    ] == commands
    assert "'python3 -m venv .venv && .*pytest' README.md" in (ROOT / ".ci/run").read_text()


def test_the_image_commands_name_what_there_is() -> None:
    """What is built is the image that compose runs, from a file that is there; the secret is all that compose asks."""
    build = shlex.split(re.search(r"^podman build .*$", README, re.MULTILINE)[0])
    name, secret = re.search(r"^(\w+)=(\S+) podman-compose up -d$", README, re.MULTILINE).groups()
    options = dict(zip(build[2:-1:2], build[3:-1:2], strict=True))
    compose = (ROOT / "compose.yaml").read_text()

    assert {"--format": "docker", "-t": "temporal-api", "-f": "Containerfile"} == options
    assert (ROOT / build[-1] / options["-f"]).is_file()
    assert yaml.safe_load(compose)["services"]["api"]["image"] == options["-t"]
    assert {name} == set(re.findall(r"\$\{(\w+):\?", compose))
    assert secret == from_env({name: secret}).jwt_secret


def test_temporal_s_ui_is_told_where_the_codec_is(contract: dict[str, Any]) -> None:
    """The address that it gets leads to the operation, by https: to no other does it send a token."""
    told = dict(line.split("=") for line in only_block("ini").splitlines())
    host, _, path = told["TEMPORAL_CODEC_ENDPOINT"].removeprefix("https://").partition("/")

    assert "/" not in host
    assert [{"bearer": [told["TEMPORAL_AUTH_SCOPES"].split(",")[-1]]}] == contract["paths"][f"/{path}/decode"]["post"][
        "security"
    ]
