"""The README keeps its word: its commands run, its settings are the service's."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml

from api import assert_problem, bearer, order, token
from commands import Process, curl, javascript, temporal_api
from temporal_api.settings import Settings, from_env

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BASH = [block for language, block in BLOCKS if language == "bash"]
CURL = re.compile(r"^curl (?:.*\\\n|[^\n]*'\{[^']*\n)*.*$", re.MULTILINE)
VARIABLE = re.compile(r'(?:^| )([A-Z])=(?:"([^"]*)"|(\S+))', re.MULTILINE)


def only_block(language: str) -> str:
    """The one block in that language."""
    (block,) = (block for name, block in BLOCKS if name == language)
    return block


def test_no_block_is_left_out() -> None:
    """Each block is in a language, and each shell line one of those, that the tests below run or check."""
    others = [line for block in BASH for line in VARIABLE.sub("", CURL.sub("", block)).splitlines() if line]
    known = (
        r"python3 -m venv |podman build |JWT_SECRET=\S+ (\.venv/bin/temporal-api token|podman-compose up) "
        r"|for file in |  sed |    > |done$"
    )

    assert {"bash", "js", "json", "yaml"} == {language for language, _ in BLOCKS}
    assert 2 * len(BLOCKS) == README.count("```")
    assert [] == [line for line in others if not re.match(known, line)]


async def test_every_curl_line_works_as_written(dev: Process) -> None:
    """Pasted one after the other into a shell with the token that `dev` printed, each does what the text says."""
    bearer = (await dev.until(r"export TOKEN=(\S+)"))[1]
    api = (await dev.until(r"API +(\S+)"))[1]
    text = "\n".join(BASH).replace("http://127.0.0.1:8000", api)
    variables = {"TOKEN": bearer, **{name: quoted or bare for name, quoted, bare in VARIABLE.findall(text)}}
    statuses = []

    for line in CURL.findall(text):
        response = await curl(line, **variables)
        statuses.append(response.status_code)
        if "ORDER_ID" not in variables:
            variables["ORDER_ID"] = response.json()["id"]
            assert "39.98" == response.json()["total_amount"]
            assert f"/api/v1/orders/{variables['ORDER_ID']}" == response.headers["location"]
        elif "/update" in line:
            assert_problem(response, 503, "no_worker")
        elif "$ETAG" in line:
            assert "wait=10" == response.headers["preference-applied"]
            assert variables["ETAG"] != response.headers["etag"]
        variables["ETAG"] = response.headers.get("etag", variables.get("ETAG", ""))

    orders = [201, 200, 204, 200, 200]
    running = [201, 200, 200, 202, 200, 200, 200, 200, 200, 200, 200]
    steering = [201, 200, 201, 503, 503, 202, 204, 204]
    assert [*orders, *running, *steering] == statuses


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
        [None, "done", {"run_id": run, "status": "TERMINATED"}],
    ] == shown
    async with javascript(reader(last=shown[1][0]), tmp_path) as process:
        assert 0 == await process.end(), process.output
    assert shown[2:] == shown_by(process)
    async with javascript(reader(signed="x"), tmp_path) as process:
        assert 1 == await process.end(), process.output
    assert (await alice.get(path, headers={"Authorization": "Bearer x"})).json()["message"] in process.output


async def test_the_token_command_works_as_written() -> None:
    """The line that signs a token prints one."""
    (line,) = re.findall(r"^(JWT_SECRET=\S+) \.venv/bin/temporal-api (token .*)$", README, re.MULTILINE)
    arguments = re.findall(r'"([^"]*)"|(\S+)', line[1])
    async with temporal_api(*(a or b for a, b in arguments), JWT_SECRET=line[0].partition("=")[2]) as process:
        assert 0 == await process.end(), process.output
    assert 3 == len(process.output.strip().split("."))


ADDED = """
import asyncio, httpx
from temporal_api.app import create_app
from temporal_api.settings import from_env

async def main():
    app = create_app(from_env({"JWT_SECRET": "s" * 32}))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        contract = (await http.get("/openapi.json")).json()
        print(*[path.removeprefix("/api/v1") for path in contract["paths"] if "refund" in path])
        print((await http.post("/api/v1/refunds", json={})).status_code)

asyncio.run(main())
"""


def test_a_resource_is_added_as_it_says(tmp_path: Path) -> None:
    """The commands make a resource, closed and in the contract; no file of before is edited but the line in app.py."""
    shutil.copytree(ROOT / "temporal_api", tmp_path / "temporal_api", ignore=shutil.ignore_patterns("__pycache__"))
    (commands,) = (block for block in BASH if block.startswith("for file in "))
    subprocess.run(["/bin/bash", "-ec", commands], cwd=tmp_path, check=True)
    controllers, app = tmp_path / "temporal_api/controllers", tmp_path / "temporal_api/app.py"
    refunds = (controllers / "refunds.py").read_text()
    for setting, value in (("task_queue", '"refunds"'), ("execution_timeout_seconds", "7200")):
        refunds = refunds.replace(f"state.settings.refunds_{setting}", value)
    (controllers / "refunds.py").write_text(refunds)
    imported = "from temporal_api.controllers.refunds import RefundController\n\nRESOURCES = [\n    RefundController,\n"
    app.write_text(app.read_text().replace("RESOURCES = [\n", imported))
    served = subprocess.run([sys.executable, "-c", ADDED], cwd=tmp_path, capture_output=True, text=True, check=True)

    paths = ("/refunds", "/refunds/{refund_id}", "/refunds/{refund_id}/cancel", "/refunds/{refund_id}/events")
    assert [" ".join(paths), "401"] == served.stdout.splitlines()
    assert "settings.refunds" not in refunds
    assert len(refunds.splitlines()) < 250


async def test_the_error_is_shown_as_it_is(http: httpx.AsyncClient) -> None:
    """The error body in the README is the one that the service gives for that mistake."""
    expected = msgspec.json.decode(only_block("json"))
    items = [{"id": "a", "quantity": "2", "unit_price": 1}]
    response = await http.post(
        "/api/v1/orders", json=order(items=items), headers={"Authorization": f"Bearer {token()}"}
    )

    body = assert_problem(response, 400, "validation_error")

    assert {**expected, "request_id": body["request_id"]} == body


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    """The settings table and the service's settings are the same, defaults included."""
    rows = re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|", README, re.MULTILINE)
    documented = {}
    for names, defaults in rows:
        values = defaults.split(", ")
        for position, name in enumerate(re.findall(r"`(\w+)`", names)):
            documented[name] = values[min(position, len(values) - 1)]
    real = {
        field.encode_name: "none"
        if field.default in (None, ())
        else ",".join(field.default)
        if isinstance(field.default, tuple)
        else str(field.default)
        for field in msgspec.structs.fields(Settings)
        if field.encode_name
    }
    words = {
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
    assert {name} == set(re.findall(r"\$\{(\w+)", compose))
    assert secret == from_env({name: secret}).jwt_secret


def test_the_manifest_probes_what_there_is() -> None:
    """The Kubernetes manifest parses, its probes are the service's, its variables the service's settings."""
    deployment, service = yaml.safe_load_all(only_block("yaml"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    settings = {field.encode_name for field in msgspec.structs.fields(Settings)}

    assert {"startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready"} == probes
    assert {variable["name"] for variable in container["env"]} <= settings | {"TEMPORAL_ADDRESS"}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
