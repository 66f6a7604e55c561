"""What developers rely on: a resource is closed by default, and any ASGI server can run the app."""

import asyncio
import json
import signal
import uuid
from pkgutil import iter_modules

import httpx
import pytest
from litestar import Controller, get

import temporal_api
from api import SECRET, assert_problem, bearer, eventually, service
from commands import command
from temporal_api import app
from temporal_api.auth import CurrentUser
from temporal_api.dev.server import DevServer, free_port

FACTORY = "temporal_api.app:create_app"
SERVERS = [("uvicorn", "--factory", FACTORY), ("litestar", "--app", FACTORY, "run")]


def test_the_map_names_every_module() -> None:
    """The package's docstring tells of each module in it."""
    names = {module.name for module in iter_modules(temporal_api.__path__)} - {"__main__"}

    assert [] == [name for name in sorted(names) if name not in str(temporal_api.__doc__)]


class Refunds(Controller):
    """A resource as somebody adds it."""

    path = "/refunds"

    @get("/mine", scope="refunds:read", operation_id="getRefund", summary="A refund")
    async def read(self, user: CurrentUser) -> str:
        """Whose it is."""
        return user.sub

    @get("/forgotten", operation_id="getForgotten", summary="A handler that names no scope")
    async def forgotten(self) -> str:
        """Nobody may have it."""
        return "open"


@pytest.mark.anyio
async def test_an_added_resource_is_served_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller in RESOURCES is under /api/v1, needs a token and its scope, and is in the contract."""
    monkeypatch.setattr(app, "RESOURCES", [*app.RESOURCES, Refunds])
    async with service(TEMPORAL_ADDRESS="127.0.0.1:1") as client:
        path = "/api/v1/refunds/mine"
        assert_problem(await client.get(path, headers={"Authorization": ""}), 401, "missing_token")
        assert_problem(await client.get(path), 403, "insufficient_scope")
        mine = await client.get(path, headers=bearer("carol", "refunds:read"))
        assert (200, "carol") == (mine.status_code, mine.json())
        forgotten = await client.get("/api/v1/refunds/forgotten", headers=bearer(scope="refunds:read orders:admin"))
        assert_problem(forgotten, 403, "insufficient_scope")


@pytest.mark.anyio
@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server[0])
async def test_any_server_that_takes_a_factory_runs_it(server: tuple[str, ...], dev_server: DevServer) -> None:
    """`create_app` reads the environment by itself; told to end, the server is not held up by waits and streams."""
    port = str(free_port())
    environ = {"JWT_SECRET": SECRET, "TEMPORAL_ADDRESS": dev_server.address}
    async with (
        command(*server, "--port", port, **environ) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, headers=bearer()) as alice,
    ):
        await process.until("Uvicorn running")
        assert 200 == (await alice.get("/health/ready")).status_code
        body = {"workflow_type": "nobody_runs_this", "task_queue": str(uuid.uuid4())}
        path = (await alice.post("/api/v1/workflows", json=body)).headers["location"]
        wait = asyncio.create_task(alice.get(f"{path}/result", headers={"Prefer": "wait=30"}))
        async with alice.stream("GET", f"{path}/events") as stream:
            text = stream.aiter_text()
            first = await anext(text)

            async def both_under_way() -> bool:
                return "http_requests_in_progress 3.0" in (await alice.get("/metrics")).text

            await eventually(both_under_way)
            process.process.send_signal(signal.SIGTERM)

            async with asyncio.timeout(20):
                assert (first + "".join([more async for more in text])).endswith("retry: 1000\n\n")
        assert 202 == (await wait).status_code
        await process.end(seconds=20)
    logged = [json.loads(line).get("path") for line in process.output.splitlines() if line.startswith("{")]
    assert {"/api/v1/workflows", f"{path}/result", f"{path}/events"} <= set(logged)
    assert "Traceback" not in process.output


@pytest.mark.anyio
@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server[0])
async def test_a_wrong_setting_stops_any_server_in_one_clear_line(server: tuple[str, ...]) -> None:
    """It names the variable and what is wrong with it."""
    async with command(*server, JWT_SECRET="short") as process:
        assert 0 != await process.end()
    last = process.output.strip().splitlines()[-1]
    assert "temporal_api.settings.SettingsError: JWT_SECRET: too short, expected 32 random bytes or more" == last
