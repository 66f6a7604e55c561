"""The README keeps its word: its commands run, its settings are the service's."""

import re
from pathlib import Path

import httpx
import msgspec
import pytest
import yaml

from api import assert_problem, order, token
from commands import Process, curl, temporal_api
from temporal_api.settings import Settings

pytestmark = pytest.mark.anyio

README = (Path(__file__).parent.parent / "README.md").read_text()
BASH = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


async def test_every_curl_line_works_as_written(dev: Process) -> None:
    """Pasted one after the other into a shell with the token that `dev` printed, each does what the text says."""
    bearer = (await dev.until(r"export TOKEN=(\S+)"))[1]
    api = (await dev.until(r"API +(\S+)"))[1]
    lines = re.findall(r"^curl (?:.*\\\n|[^\n]*'\{[^']*\n)*.*$", "\n".join(BASH), re.MULTILINE)
    order_id, statuses = "", []

    for line in lines:
        response = await curl(
            line.replace("http://127.0.0.1:8000", api), TOKEN=bearer, ORDER_ID=order_id, W=f"{api}/api/v1/workflows"
        )
        statuses.append(response.status_code)
        if not order_id:
            order_id = response.json()["id"]
            assert "39.98" == response.json()["total_amount"]
            assert f"/api/v1/orders/{order_id}" == response.headers["location"]
        elif line.partition(" -d")[0].endswith("/update"):
            assert_problem(response, 503, "no_worker")

    orders = [201, 200, 204, 200, 200]
    steering = [201, 503, 202, 204, 204]
    assert [*orders, 201, 200, 200, 202, 200, 200, 200, 200, 200, *steering] == statuses


async def test_the_token_command_works_as_written() -> None:
    """The line that signs a token prints one."""
    (line,) = re.findall(r"^(JWT_SECRET=\S+) \.venv/bin/temporal-api (token .*)$", README, re.MULTILINE)
    arguments = re.findall(r'"([^"]*)"|(\S+)', line[1])
    async with temporal_api(*(a or b for a, b in arguments), JWT_SECRET=line[0].partition("=")[2]) as process:
        assert 0 == await process.end(), process.output
    assert 3 == len(process.output.strip().split("."))


async def test_the_error_is_shown_as_it_is(http: httpx.AsyncClient) -> None:
    """The error body in the README is the one that the service gives for that mistake."""
    (shown,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    expected = msgspec.json.decode(shown)
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
        field.encode_name: "none" if field.default in (None, ()) else str(field.default)
        for field in msgspec.structs.fields(Settings)
        if field.encode_name
    }
    words = {"JWT_ALGORITHMS": "by key kind", "ALLOWED_WORKFLOW_TYPES": "none: all", "ALLOWED_TASK_QUEUES": "none: all"}

    assert {**real, **words} == documented


def test_the_two_commands_are_the_ones_that_the_gate_runs() -> None:
    """Set-up is two commands: one runs the main job, one the tests; the gate runs the second as it stands here."""
    commands = [block.strip() for block in BASH if "python3 -m venv" in block]

    assert [
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/temporal-api dev",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
    ] == commands
    assert "'python3 -m venv .venv && .*pytest' README.md" in (Path(__file__).parent.parent / ".ci/run").read_text()


def test_the_manifest_probes_what_there_is() -> None:
    """The Kubernetes manifest parses, its probes are the service's, its variables the service's settings."""
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    deployment, service = yaml.safe_load_all(text)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    settings = {field.encode_name for field in msgspec.structs.fields(Settings)}

    assert {"startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready"} == probes
    assert {variable["name"] for variable in container["env"]} <= settings | {"TEMPORAL_ADDRESS"}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
