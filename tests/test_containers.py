"""The container files keep their word; none of this needs a container engine."""

import asyncio
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from api import eventually, service, token
from temporal_api.dev.server import DevServer, free_port
from temporal_api.settings import Settings, from_env

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / ".ci/requirements.lock").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
SETTINGS = {field.encode_name for field in msgspec.structs.fields(Settings) if field.encode_name}


def final_stage() -> dict[str, str]:
    """The instructions of the image itself, not of what builds it; none of those read here occurs twice."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = text.rpartition("\nFROM ")[2].splitlines()[1:]
    return dict(line.split(maxsplit=1) for line in lines if line)


def test_compose_brings_up_the_whole_system() -> None:
    """Temporal, the sample worker, the API and Prometheus; the API and the worker are one image."""
    assert {"temporal", "worker", "api", "prometheus"} == {n for n, each in SERVICES.items() if "profiles" not in each}
    assert SERVICES["worker"]["image"] == SERVICES["api"]["image"]


def test_temporal_keeps_its_state_in_a_file() -> None:
    """In memory it loses that with a connection; the image has no folder of its own to write to."""
    temporal = SERVICES["temporal"]

    (file,) = (each.partition("=")[2] for each in temporal["command"] if each.startswith("--db-filename="))
    assert [str(Path(file).parent)] == temporal["tmpfs"]


@pytest.mark.parametrize("name", ["api", "worker", "codec"])
def test_compose_hardens_what_is_ours(name: str) -> None:
    """A read-only root, no capability, and no way to gain one."""
    service = SERVICES[name]

    assert service["read_only"] is True
    assert ["ALL"] == service["cap_drop"]
    assert ["no-new-privileges:true"] == service["security_opt"]
    assert not {"privileged", "cap_add"} & service.keys()


def test_compose_is_reached_from_this_machine_only() -> None:
    """A development stack without TLS publishes its ports on loopback."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]

    assert ports
    assert [] == [port for port in ports if not port.startswith("127.0.0.1:")]


@pytest.mark.parametrize("name", ["api", "worker"])
def test_compose_sets_only_what_the_service_reads(name: str) -> None:
    """Every variable is a setting of the service or of the SDK, and the service accepts the values."""
    given = {key: str(value) for key, value in SERVICES[name]["environment"].items()}
    environ = {key: "" if value.endswith(":-}") else value for key, value in given.items()}

    assert set() == {key for key in environ if not key.startswith("TEMPORAL_")} - SETTINGS
    assert "temporal:7233" == from_env(environ, keys_needed=name == "api").temporal["target_host"]


def test_compose_holds_no_secret() -> None:
    """The key comes from whoever starts it; without one, compose says so and starts nothing."""
    assert SERVICES["api"]["environment"]["JWT_SECRET"].startswith("${JWT_SECRET:?")


def test_images_name_no_registry() -> None:
    """Whoever builds it decides where images come from; those of others have a version."""
    images = [service["image"] for service in SERVICES.values()]
    images += re.findall(r"^ARG PYTHON_IMAGE=(.*)", (ROOT / "Containerfile").read_text(), re.MULTILINE)

    assert 6 == len(images)
    for image in images:
        assert re.fullmatch(r"temporal-api|([a-z]+/)?[a-z]+:v?\d[\w.-]*", image)


def test_prometheus_scrapes_the_api_and_the_worker() -> None:
    """The targets in Prometheus' configuration are where the two listen in the compose network; it knows our alerts."""
    (config,) = SERVICES["prometheus"]["command"]
    (rules,) = SERVICES["prometheus"]["volumes"]
    source, target, _ = rules.split(":")

    assert f'["api:{Settings().port}"]' in config
    assert str(Settings().port) == final_stage()["EXPOSE"]
    assert f'["worker:{SERVICES["worker"]["environment"]["METRICS_PORT"]}"]' in config
    assert f"rule_files: [{target}]" in config
    assert (ROOT / source).is_file()


@pytest.mark.anyio
async def test_the_ui_of_compose_decrypts_without_a_token(dev_server: DevServer, tmp_path: Path) -> None:
    """The proxy adds one: for the pages of that UI, under the names of this machine, and for the codec alone."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    codec, api = SERVICES["codec"], SERVICES["api"]["environment"]
    port = free_port()
    (command,) = codec["command"]
    (endpoint,) = re.findall(r"--ui-codec-endpoint=\$\{PAYLOAD_ENCRYPTION_KEYS:\+([^}]*)}", str(SERVICES["temporal"]))
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "PAYLOAD_ENCRYPTION_KEYS": f"id:{'A' * 43}="}
    async with service(**environ, ALLOWED_ORIGINS=api["ALLOWED_ORIGINS"]) as alice:
        for old, new in {
            "${CODEC_TOKEN:-}": token(scope="codec:decode"),
            "$$": "$",
            "http://api:8000": str(alice.base_url).rstrip("/"),
            "8234": str(port),
            "/tmp": str(tmp_path),  # noqa: S108 - the container's
        }.items():
            assert old in command
            command = command.replace(old, new)
        process = await asyncio.create_subprocess_exec(*codec["entrypoint"], command)
        try:
            async with httpx.AsyncClient(base_url=endpoint.replace("8234", str(port))) as browser:

                async def listens() -> bool:
                    try:
                        return bool(await browser.get("/"))
                    except httpx.ConnectError:
                        return process.returncode is not None

                await eventually(listens)

                async def decode(origin: str, host: str, path: str = "/decode") -> httpx.Response:
                    headers = {"Origin": origin, "Host": host, "X-Namespace": "default"}
                    return await browser.post(path, json={"payloads": []}, headers=headers)

                ui, here = "http://127.0.0.1:8233", f"127.0.0.1:{port}"
                asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-namespace"}
                preflight = await browser.options("/decode", headers={"Origin": ui, **asks})
                answer = await decode(ui, here)

                assert (204, ui) == (preflight.status_code, preflight.headers["access-control-allow-origin"])
                assert (200, ui) == (answer.status_code, answer.headers["access-control-allow-origin"])
                assert {"payloads": []} == answer.json()
                assert 200 == (await decode("http://localhost:8233", f"localhost:{port}")).status_code
                assert 403 == (await decode("http://evil.example", here)).status_code
                assert 403 == (await decode(ui, "evil.example")).status_code
                assert 404 == (await decode(ui, here, "/../orders")).status_code
        finally:
            process.terminate()  # its workers too
            await process.wait()


def test_the_image_is_not_run_by_root() -> None:
    """The user is a number, so that Kubernetes' `runAsNonRoot` can see that it is not 0."""
    user, group = final_stage()["USER"].split(":")

    assert int(user) > 0
    assert int(group) > 0


def test_the_image_listens_to_the_outside() -> None:
    """The default of loopback would make it unreachable in a container."""
    assert "HOST=0.0.0.0" in final_stage()["ENV"].split()


@pytest.mark.anyio
async def test_the_health_check_asks_whether_the_process_lives(base_url: str) -> None:
    """Run as the image runs it: 0 for a 200 on PORT, not 0 for another answer or none; no curl, no proxy."""
    command = json.loads(final_stage()["HEALTHCHECK"].partition("CMD ")[2])
    assert ["python3", "-c"] == command[:2]
    assert "'/health/live'" in command[2]

    async def exit_code(port: str, path: str = "/health/live", name: str = "PORT") -> int:
        environ = {name: port, "http_proxy": f"http://127.0.0.1:{free_port()}"}
        check = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            command[2].replace("/health/live", path),
            env=environ,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await check.wait()

    port = base_url.rpartition(":")[2]
    assert 0 == await exit_code(port)
    assert 0 == await exit_code(port, name="METRICS_PORT")  # a worker has no other
    assert 0 != await exit_code(port, "/nothing/here")
    assert 0 != await exit_code(str(free_port()))


def test_the_lock_pins_every_dependency() -> None:
    """What the package and the image's traces need, and what builds it, has one version that fits, with its hashes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = dict(re.findall(r"^(\S+)==(\S+) \\\n    --hash", LOCK, re.MULTILINE))

    otel = project["project"]["optional-dependencies"]["otel"]
    for line in project["project"]["dependencies"] + otel + project["build-system"]["requires"]:
        wanted = Requirement(line)
        assert pinned[canonicalize_name(wanted.name)] in wanted.specifier


def test_the_lock_is_pins_and_hashes_only() -> None:
    """No address, no index and no option: packages come from wherever pip is told, and are the same everywhere."""
    pin = r"[a-z0-9-]+==[\w.]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"

    assert re.fullmatch(f"(?:{pin})+", LOCK)
