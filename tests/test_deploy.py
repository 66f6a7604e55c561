"""What `temporal-api print` prints: Prometheus, Grafana and Kubernetes can work with it."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner

from api import eventually, order, service
from commands import one_line
from temporal_api import __version__
from temporal_api.cli import cli
from temporal_api.dev.server import DevServer, free_port
from temporal_api.settings import SettingsError, from_env

TESTS = Path(__file__).parent
DEPLOY = TESTS.parent / "temporal_api/deploy"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")), reason="Prometheus is not installed"
)


def printed(what: str, **environ: str) -> str:
    """What the command prints."""
    result = CliRunner(env={"JWT_SECRET": None, **environ}).invoke(cli, ["print", what])
    assert 0 == result.exit_code, result.output
    return result.output


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(command, capture_output=True, text=True)


def manifests(**environ: str) -> list[dict[str, Any]]:
    """The objects for Kubernetes."""
    return list(yaml.safe_load_all(printed("kubernetes", **environ)))


# --- Prometheus ---


@needs_prometheus
def test_the_rules_are_prometheus_rules(tmp_path: Path) -> None:
    """`promtool check rules` finds nothing wrong."""
    path = tmp_path / "alerts.yaml"
    path.write_text(printed("alerts"))
    found = run("promtool", "check", "rules", path)
    assert 0 == found.returncode, found.stdout + found.stderr


@needs_prometheus
def test_each_alert_fires_when_it_must() -> None:
    """`promtool test rules`: on a healthy service none does, and on each kind of trouble its own."""
    tests = TESTS / "alerts_test.yaml"
    found = run("promtool", "test", "rules", tests)
    named = set(re.findall(r"alert: (\w+)", printed("alerts")))

    assert 0 == found.returncode, found.stdout + found.stderr
    assert named == set(re.findall(r"TemporalAPI\w+", tests.read_text()))


@asynccontextmanager
async def prometheus(folder: Path, jobs: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus with our rules that scrapes each job's target every second."""
    (folder / "alerts.yaml").write_text(printed("alerts"))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [at]}]} for job, at in jobs.items()],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    listen = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={listen}",
        "--log.level=warn",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{listen}/api/v1", timeout=30) as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


@needs_prometheus
@pytest.mark.anyio
async def test_the_dashboard_is_full(dev_server: DevServer, task_queue: str, tmp_path: Path) -> None:
    """Each query of the dashboard finds data in a Prometheus that scrapes a service in use, and no rule fails there."""
    panels = json.loads(printed("dashboard"))["panels"]
    queries = {target["expr"] for panel in panels for target in panel.get("targets", ())}
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as alice,
        prometheus(tmp_path, {"temporal-api": alice.base_url.netloc.decode()}) as ask,
    ):

        async def is_up() -> bool:
            try:
                return (await ask.get("/rules")).is_success
            except httpx.TransportError:
                return False

        async def full() -> bool:
            await asyncio.sleep(0.5)  # nothing is new before the next scrape
            await alice.post("/api/v1/orders", json=order())
            for query in tuple(queries):
                expression = {"query": query.replace("$__rate_interval", "20s")}
                answer = (await ask.get("/query", params=expression)).json()
                assert "success" == answer["status"], f"{query}: {answer}"
                if answer["data"]["result"]:
                    queries.remove(query)
            return not queries

        await eventually(is_up)
        await eventually(full)
        groups = (await ask.get("/rules")).json()["data"]["groups"]
        assert {"ok"} == {rule["health"] for group in groups for rule in group["rules"]}


# --- Grafana ---


def test_the_dashboard_is_one_of_grafana() -> None:
    """The last schema of its kind; each panel has a title, a unit and a place of its own; its data source is chosen.

    A number without a colour of its own would turn red at 80.
    """
    dashboard = json.loads(printed("dashboard"))
    panels = dashboard["panels"]

    assert 42 == dashboard["schemaVersion"]
    assert ["datasource"] == [each["type"] for each in dashboard["templating"]["list"]]
    assert len(panels) == len({panel["id"] for panel in panels})
    assert all(panel["title"] for panel in panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells
        if panel["type"] != "row":
            assert {"type": "prometheus", "uid": "${datasource}"} == panel["datasource"]
            assert panel["targets"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert "timeseries" == panel["type"] or panel["fieldConfig"]["defaults"]["color"]


def test_each_alert_names_its_panel() -> None:
    """Whoever is woken by an alert finds the panel that shows it."""
    titles = {panel["title"] for panel in json.loads(printed("dashboard"))["panels"] if panel["type"] != "row"}
    rules = [rule for group in yaml.safe_load(printed("alerts"))["groups"] for rule in group["rules"]]
    named = {rule["annotations"]["panel"] for rule in rules if "alert" in rule}

    assert named
    assert named <= titles


# --- Kubernetes ---


def test_kubernetes_takes_the_manifests(tmp_path: Path) -> None:
    """`kubernetes-validate --strict` passes each, but for the ServiceMonitor, which is not Kubernetes' own."""
    validate = Path(sys.executable).with_name("kubernetes-validate")
    if not validate.exists():
        pytest.skip("kubernetes-validate is not installed (it is among the extra `dev`)")
    path = tmp_path / "kubernetes.yaml"
    path.write_text(printed("kubernetes"))
    found = run(validate, "--strict", path)
    output = found.stdout + found.stderr

    assert 0 == found.returncode, output
    assert len(manifests()) - 1 == len(re.findall("^INFO .* passed", output, re.MULTILINE)), output
    assert ["ServiceMonitor"] == re.findall("^WARN .* kind (\\w+)", output, re.MULTILINE)


def test_the_manifests_hold_what_a_cluster_needs() -> None:
    """Every kind is there, each labelled as Kubernetes recommends, and each selector finds what it is for."""
    objects = manifests()
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in objects if each["kind"] == "Deployment"]
    services = [each["metadata"]["labels"] for each in objects if each["kind"] == "Service"]

    kinds = {"Secret", "ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    assert kinds | {"NetworkPolicy", "ServiceMonitor"} == {each["kind"] for each in objects}
    assert {"api", "worker"} == {labels["app.kubernetes.io/component"] for labels in pods}
    assert {__version__} == {labels["app.kubernetes.io/version"] for labels in pods}
    for each in objects:
        labels, spec = each["metadata"]["labels"], each.get("spec", {})
        assert {"app.kubernetes.io/name", "app.kubernetes.io/part-of"} <= labels.keys()
        selector = spec.get("podSelector") or spec.get("selector") or {}
        wanted = selector.get("matchLabels", selector).items()
        found = [one for one in (services if each["kind"] == "ServiceMonitor" else pods) if wanted <= one.items()]
        assert len(found) == (2 if not wanted or each["kind"] == "ServiceMonitor" else 1)


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_pods_are_hardened_and_configured(name: str) -> None:
    """The service accepts the environment, its probes are there, and nothing in the pod can gain a right."""
    objects = manifests()
    (pod,) = (
        each["spec"]["template"]["spec"]
        for each in objects
        if each["kind"] == "Deployment" and each["metadata"]["labels"]["app.kubernetes.io/component"] == name
    )
    (container,) = pod["containers"]
    kept = {each["kind"]: each.get("data") or each.get("stringData") or each.get("spec") for each in objects}
    environ = {each["name"]: each["value"] for each in container.get("env", ())} | kept["ConfigMap"]
    assert [{"configMapRef": {"name": "temporal-api"}}] == container["envFrom"][:1]
    if name == "api":
        assert [{"secretRef": {"name": "temporal-api"}}] == container["envFrom"][1:]
        environ |= kept["Secret"]
    settings = from_env(environ, keys_needed=name == "api")
    probes = {kind: container[kind]["httpGet"] for kind in container if kind.endswith("Probe")}
    port = settings.port if name == "api" else settings.metrics_port

    ready = {"readinessProbe": "/health/ready"} if name == "api" else {}
    live = {"startupProbe": "/health/live", "livenessProbe": "/health/live"}
    assert live | ready == {kind: probe["path"] for kind, probe in probes.items()}
    assert {port} == {probe["port"] for probe in probes.values()}
    scraped = [port["targetPort"] for port in kept["Service"]["ports"] if port["name"] == "metrics"]
    assert [settings.metrics_port] == scraped
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert ["ALL"] == container["securityContext"]["capabilities"]["drop"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["resources"].keys() == {"requests", "limits"}


def test_the_secret_is_nobodys_but_yours() -> None:
    """JWT_SECRET from the environment, or a new one; the file itself has one with which the service does not start."""
    secrets = [
        manifests(**environ)[0]["stringData"]["JWT_SECRET"] for environ in ({}, {}, {"JWT_SECRET": 'a"b: c' * 9})
    ]

    assert 3 == len(set(secrets))
    assert 'a"b: c' * 9 == secrets[-1]
    raw = next(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))["stringData"]
    with pytest.raises(SettingsError, match="too short"):
        from_env(raw)


@pytest.mark.anyio
async def test_a_secret_of_yours_that_is_none_is_told() -> None:
    """No manifest is made with which the service would not start."""
    await one_line(
        ("print kubernetes", {"JWT_SECRET": "short"}, 2, "JWT_SECRET: too short"),
        ("print kubernetes", {"JWT_SECRET": '"' + "x" * 40 + '"'}, 2, "JWT_SECRET: is in quotes"),
    )
