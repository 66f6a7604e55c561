"""A resource is one file, one line and a worker: the README's own `refunds` is served and driven as it is written."""

import asyncio
import re
import shlex
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from api import SECRET, assert_problem, bearer, eventually, resolved
from commands import bash, command, temporal_api, until_ready
from temporal_api.dev.server import DevServer, free_port

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CHAPTER = README[README.index("## Add your own resource") : README.index("## How it compares")]
FILES = dict(re.findall(r"`(temporal_api/\S+\.py)`:\n\n```python\n(.*?)^```$", CHAPTER, re.MULTILINE | re.DOTALL))
DIFFS = [diff.splitlines() for diff in re.findall(r"^```diff\n(.*?)^```$", CHAPTER, re.MULTILINE | re.DOTALL)]
(WORKER,) = re.findall(r"^\.venv/bin/(python -m .*)$", CHAPTER, re.MULTILINE)

REFUND = {"order_id": "order_1", "amount": 19.99}
REFUNDS = "refunds:read refunds:write workflows:read workflows:write"


@dataclass
class Refunds:
    """The package with refunds in it, and the settings it runs with."""

    folder: Path
    environ: dict[str, str]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the README's files and lines, and nothing else."""
    folder = tmp_path_factory.mktemp("refunds")
    shutil.copytree(ROOT / "temporal_api", folder / "temporal_api", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    if (known := ROOT / ".mypy_cache").exists():  # spares most of the minute that mypy takes
        shutil.copytree(known, folder / ".mypy_cache")
    for name, text in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    app, refunds = folder / "temporal_api/app.py", folder / "temporal_api/controllers/refunds.py"
    for file, diff in zip((app, app, refunds, refunds), DIFFS, strict=True):
        text = file.read_text()
        old, new = ("".join(f"{line[1:]}\n" for line in diff if line[:1] != sign) for sign in "+-")
        assert 1 == text.count(old), old
        file.write_text(text.replace(old, new))
    return folder


@pytest.fixture(scope="module")
async def running(package: Path, dev_server: DevServer) -> AsyncIterator[Refunds]:
    """The namespace set up, the API and the README's worker, each a process of its own."""
    environ = {
        "PYTHONPATH": str(package),
        "COVERAGE_PROCESS_CONFIG": "",  # what is measured is the package itself, not this copy
        "JWT_SECRET": SECRET,
        "TEMPORAL_ADDRESS": dev_server.address,
        "LOG_LEVEL": "warning",
        "PORT": str(free_port()),
    }
    worker, *arguments = shlex.split(WORKER)
    async with (
        temporal_api("setup", cwd=package, **environ) as setup,
        temporal_api("serve", cwd=package, **environ),
        command(worker, *arguments, cwd=package, **environ),
    ):
        assert 0 == await setup.end(), setup.output
        assert ["added RefundOwner", "added RefundStatus"] == setup.output.splitlines()
        await until_ready(f"http://127.0.0.1:{environ['PORT']}")
        yield Refunds(package, environ)


@pytest.fixture(scope="module")
async def carol(running: Refunds) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the service with refunds; Carol reads and writes refunds and workflows."""
    url = f"http://127.0.0.1:{running.environ['PORT']}"
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=bearer("carol", REFUNDS)) as client:
        yield client


async def place(carol: httpx.AsyncClient, **changes: Any) -> str:
    """The path of a new refund."""
    response = await carol.post("/api/v1/refunds", json={**REFUND, **changes})
    assert 201 == response.status_code, response.text
    return response.headers["location"]


def as_workflow(path: str) -> str:
    """The same refund's path under /workflows."""
    return f"/api/v1/workflows/refund-{path.rpartition('/')[2]}"


async def approve(carol: httpx.AsyncClient, path: str) -> None:
    """Let it be paid, as somebody may who has the scope `refunds:admin`."""
    boss = bearer("boss", "workflows:write refunds:admin")
    response = await carol.post(f"{as_workflow(path)}/signal", json={"signal_name": "approve"}, headers=boss)
    assert 202 == response.status_code, response.text


async def until_it_is(carol: httpx.AsyncClient, path: str, status: str) -> None:
    """Wait for that status."""

    async def reached() -> bool:
        return status == (await carol.get(path)).json()["refund"]["status"]

    await eventually(reached)


def test_it_is_one_file_and_one_line() -> None:
    """The resource is a file of less than 90 lines, an import, and a line in RESOURCES; its worker is another file."""
    assert ["temporal_api/controllers/refunds.py", "temporal_api/worker/refund_processing.py"] == list(FILES)
    assert len(FILES["temporal_api/controllers/refunds.py"].splitlines()) < 90
    assert [
        "+from temporal_api.controllers.refunds import RefundController",
        "+    RefundController,",
    ] == [line for diff in DIFFS[:2] for line in diff if not line.startswith(" ")]


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy comes with the extra `dev`")
async def test_it_is_typed(package: Path) -> None:
    """mypy --strict has nothing to say of it."""
    async with command("mypy", "--strict", cwd=package) as process:
        assert 0 == await process.end(seconds=300), process.output


@pytest.mark.skipif(find_spec("ruff") is None, reason="ruff comes with the extra `dev`")
async def test_it_is_formatted(package: Path) -> None:
    """It reads as the rest of the package does."""
    for arguments in (["check"], ["format", "--check"]):
        async with command("ruff", *arguments, cwd=package) as process:
            assert 0 == await process.end(), process.output


async def test_it_works_as_the_readme_shows(running: Refunds, tmp_path: Path) -> None:
    """The README's calls answer what it tells, with a token that `temporal-api token` signs."""
    async with temporal_api("token", cwd=running.folder, **running.environ) as process:
        assert 0 == await process.end(), process.output
    token = process.output.strip()
    (call,) = re.findall(r"^```bash\n(API=.*?)^```$", README, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```bash\n(REFUND_ID=.*?)^```$", CHAPTER, re.MULTILINE | re.DOTALL)
    assert 2 == len(blocks)
    async with bash(tmp_path, TOKEN=token, ORDER_ID="order_1") as shell:
        await shell.follow(call.replace(":8000", f":{running.environ['PORT']}"))
        for block in blocks:
            await shell.follow(block)

    scopes = set(jwt.decode(token, SECRET, algorithms=["HS256"])["scope"].split())
    assert {"refunds:read", "refunds:write", "refunds:admin", "orders:admin", "workflows:admin"} <= scopes


async def test_it_is_placed_once(carol: httpx.AsyncClient) -> None:
    """201 with Location; the same key again is the same refund, another body 422."""
    key = {"Idempotency-Key": "refund-of-order-1"}
    first = await carol.post("/api/v1/refunds", json=REFUND, headers=key)
    again = await carol.post("/api/v1/refunds", json=REFUND, headers=key)
    other = await carol.post("/api/v1/refunds", json={**REFUND, "amount": 20}, headers=key)

    placed = first.json()
    assert (201, f"/api/v1/refunds/{placed['id']}") == (first.status_code, first.headers["location"])
    assert {**placed, "order_id": "order_1", "amount": "19.99", "status": "requested"} == placed
    assert placed["workflow_id"] == f"refund-{placed['id']}"
    assert "idempotent-replayed" not in first.headers
    assert (201, "true", placed) == (again.status_code, again.headers["idempotent-replayed"], again.json())
    assert_problem(other, 422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("body", "key"),
    [({**REFUND, "amount": -1}, "amount"), ({"amount": 1}, "order_id"), ({**REFUND, "other": 1}, "other")],
)
async def test_a_wrong_body_is_refused(carol: httpx.AsyncClient, body: dict[str, Any], key: str) -> None:
    """400, and the message names the field."""
    problem = assert_problem(await carol.post("/api/v1/refunds", json=body), 400, "validation_error")

    assert key in problem["message"]


async def test_it_is_listed_by_status(carol: httpx.AsyncClient) -> None:
    """The caller's own are found, by the status that the workflow keeps."""
    requested, paid = await place(carol), await place(carol)
    await approve(carol, paid)

    async def found(status: str, path: str) -> bool:
        page = (await carol.get("/api/v1/refunds", params={"status": status})).json()
        assert {status} >= {item["status"] for item in page["items"]}
        return path.rpartition("/")[2] in [item["id"] for item in page["items"]]

    await eventually(lambda: found("requested", requested))
    await eventually(lambda: found("paid", paid))
    assert_problem(await carol.get("/api/v1/refunds", params={"status": "shipped"}), 400, "validation_error")


async def test_its_status_can_be_watched(carol: httpx.AsyncClient) -> None:
    """Each status is an event, to `done`; what came after `Last-Event-ID` is told again."""
    path = await place(carol)
    await approve(carol, path)
    events = (await carol.get(f"{path}/events")).text
    ids = re.findall(r"^id: (\S+)$", events, re.MULTILINE)
    rest = (await carol.get(f"{path}/events", headers={"Last-Event-ID": ids[1]})).text

    def statuses(text: str) -> list[str]:
        return re.findall(r'^data: {"status":"(\w+)"', text, re.MULTILINE)

    assert ["requested", "approved", "paid"] == statuses(events)
    assert ["paid"] == statuses(rest)
    assert "event: done\n" in rest


async def test_a_change_can_be_waited_for(carol: httpx.AsyncClient) -> None:
    """With If-None-Match and Prefer, the answer comes with the change: 304 before, 200 after."""
    path = await place(carol)
    asked = {"If-None-Match": "", "Prefer": "wait=30"}

    async def waiting() -> bool:
        # Its first workflow task changes the run too.
        asked["If-None-Match"] = (await carol.get(path)).headers["etag"]
        same = await carol.get(path, headers={**asked, "Prefer": "wait=1"})
        return 304 == same.status_code

    await eventually(waiting)
    answer = asyncio.create_task(carol.get(path, headers=asked))
    await approve(carol, path)

    assert 200 == (await answer).status_code
    await until_it_is(carol, path, "paid")


async def test_it_is_cancelled_until_it_is_too_late(carol: httpx.AsyncClient) -> None:
    """204 and the workflow's `cancelled` with the reason; 409 once it is cancelled or paid."""
    cancelled, paid = await place(carol), await place(carol)

    assert 204 == (await carol.post(f"{cancelled}/cancel", json={"reason": "found it"})).status_code
    await until_it_is(carol, cancelled, "cancelled")
    assert "found it" == (await carol.get(cancelled)).json()["refund"]["reason"]
    await approve(carol, paid)
    await until_it_is(carol, paid, "paid")
    for path, now in ((cancelled, "cancelled"), (paid, "paid")):
        problem = assert_problem(await carol.post(f"{path}/cancel"), 409, "refund_not_cancellable")
        assert {"workflow_id": as_workflow(path).rpartition("/")[2], "status": now} == problem["details"]
        assert f"The refund can no longer be cancelled: it is {now}." == problem["message"]


async def test_it_is_approved_by_an_operation_of_its_own(carol: httpx.AsyncClient) -> None:
    """204 with `refunds:admin`, 403 without; 404 for a refund that is not there, 409 for one that is paid."""
    path, boss = await place(carol), bearer("boss", "refunds:admin")
    nothing = f"{path[:-1]}{'0' if path[-1] != '0' else '1'}/approve"

    assert_problem(await carol.post(f"{path}/approve"), 403, "insufficient_scope")
    assert_problem(await carol.post(nothing, headers=boss), 404, "refund_not_found")
    assert 204 == (await carol.post(f"{path}/approve", headers=boss)).status_code
    await until_it_is(carol, path, "paid")
    assert_problem(await carol.post(f"{path}/approve", headers=boss), 409, "workflow_completed")


async def test_another_callers_does_not_exist(carol: httpx.AsyncClient) -> None:
    """404 in every call and in no list, unless with `refunds:admin`; nothing at all without a scope of refunds."""
    path = await place(carol)
    dave, orders = bearer("dave", REFUNDS), bearer("carol", "orders:admin workflows:admin")
    for method, each in (("GET", path), ("GET", f"{path}/events"), ("POST", f"{path}/cancel")):
        assert_problem(await carol.request(method, each, headers=dave), 404, "refund_not_found")
        assert_problem(await carol.request(method, each, headers=orders), 403, "insufficient_scope")
        assert_problem(await carol.request(method, each, headers={"Authorization": ""}), 401, "missing_token")
    boss = bearer("boss", "refunds:admin")

    async def listed() -> bool:
        items = (await carol.get("/api/v1/refunds", headers=boss)).json()["items"]
        return path.rpartition("/")[2] in [item["id"] for item in items]

    await eventually(listed)
    assert [] == (await carol.get("/api/v1/refunds", headers=dave)).json()["items"]
    assert 200 == (await carol.get(path, headers=boss)).status_code


async def test_it_is_hidden_under_workflows(carol: httpx.AsyncClient) -> None:
    """404 there, in no list and no count, and its ids cannot be taken; with `refunds:admin` it is seen."""
    path = await place(carol)
    workflow, boss = as_workflow(path), bearer("boss", "workflows:read refunds:admin")
    everything = bearer("root", "workflows:admin orders:admin")
    query = {"workflow_type": "refund_processing"}

    async def listed() -> bool:
        items = (await carol.get("/api/v1/workflows", params=query, headers=boss)).json()["items"]
        return workflow.rpartition("/")[2] in [item["workflow_id"] for item in items]

    await eventually(listed)
    for headers in (bearer("carol", REFUNDS), everything):
        assert_problem(await carol.get(workflow, headers=headers), 404, "workflow_not_found")
        signalled = await carol.post(f"{workflow}/signal", json={"signal_name": "approve"}, headers=headers)
        assert_problem(signalled, 404, "workflow_not_found")
        start = {"workflow_type": "refund_processing", "workflow_id": "refund-1"}
        assert_problem(await carol.post("/api/v1/workflows", json=start, headers=headers), 409, "reserved_id")
        assert [] == (await carol.get("/api/v1/workflows", params=query, headers=headers)).json()["items"]
        assert 0 == (await carol.get("/api/v1/workflow-count", params=query, headers=headers)).json()["count"]
    assert 200 == (await carol.get(workflow, headers=boss)).status_code


async def test_it_is_in_the_contract(carol: httpx.AsyncClient) -> None:
    """A tag with its description, operations in correct English with their scopes, its own errors and examples."""
    contract = (await carol.get("/openapi.json")).json()
    operations = {
        operation["operationId"]: operation
        for path, methods in contract["paths"].items()
        if path.startswith("/api/v1/refunds")
        for operation in methods.values()
    }
    read, write = ([{"bearer": [f"refunds:{may}"]}, {"bearer": ["refunds:admin"]}] for may in ("read", "write"))
    expected = {
        "createRefund": ("Place a refund", write),
        "getRefund": ("A refund as it is now", read),
        "listRefunds": ("The caller's refunds", read),
        "streamRefundEvents": ("A refund's status, live", read),
        "cancelRefund": ("Cancel a refund", write),
        "approveRefund": ("Approve a refund", [{"bearer": ["refunds:admin"]}]),
    }
    text = str([operations, {k: v for k, v in contract["components"]["schemas"].items() if "Refund" in k}])

    assert {"name": "refunds", "description": "Refunds: money back for an order."} in contract["tags"]
    assert expected == {name: (each["summary"], each["security"]) for name, each in operations.items()}
    assert {"refunds"} == {tag for each in operations.values() for tag in each["tags"]}
    for name, status, code in (("getRefund", "404", "not_found"), ("cancelRefund", "409", "not_cancellable")):
        answer = resolved(contract, operations[name]["responses"][status])
        assert f"`refund_{code}`" in answer["description"]
    example = operations["createRefund"]["requestBody"]["content"]["application/json"]["example"]
    assert {"order_id", "amount"} == example.keys()
    assert 201 == (await carol.post("/api/v1/refunds", json=example)).status_code
    assert [] == re.findall(r"\ban refund\b|\border\w*_|orders:", text.replace("order_id", ""), re.IGNORECASE)


async def test_its_health_is_told(carol: httpx.AsyncClient) -> None:
    """Health says whether a worker polls its queue."""

    async def polled() -> bool:
        return "polling" == (await carol.get("/health")).json()["services"]["refunds_workers"]

    await eventually(polled)
