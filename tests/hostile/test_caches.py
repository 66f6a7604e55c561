"""No cache is keyed by what a caller may make long or many."""

import asyncio
import functools
import gc
import tracemalloc
import uuid
from typing import Any

import httpx
import pytest
from test_limits import MIB, served

from api import SECRET, bearer, service
from temporal_api.app import create_app
from temporal_api.auth import Verifier
from temporal_api.auth import verifier as verifier_module
from temporal_api.dev.server import DevServer
from temporal_api.settings import from_env

pytestmark = pytest.mark.anyio

LONG = "x" * 7_900
CACHE = type(functools.lru_cache(bool))


def sizes() -> dict[str, int]:
    """Every cache of the process's functions, and how much it has."""
    caches = [found for found in gc.get_objects() if isinstance(found, CACHE)]
    return {f"{cache.__module__}.{cache.__qualname__}-{id(cache)}": cache.cache_info().currsize for cache in caches}


async def ask(api: httpx.AsyncClient, times: int) -> None:
    """So many requests, no two of them alike in anything that a caller may choose."""

    async def one(number: int) -> None:
        name = f"{number}-{uuid.uuid4()}-{LONG}"
        await api.get(f"/{name}")
        await api.get(f"/api/v1/orders/{name}", headers={"Authorization": f"Bearer {name}"})
        await api.get(f"/api/v1/workflows/{name[:900]}", headers={"Accept-Encoding": name, "Accept": name})
        await api.get("/api/v1/workflows", params={"page_size": "many", "page_token": name})
        await api.get("/api/v1/orders", params={name: "1"}, headers={"If-None-Match": name, "Prefer": name})
        await api.get("/docs", params={name: name[:20]}, headers={"X-Forwarded-For": name, "Cookie": name})
        await api.post("/api/v1/orders", content=b"{}", headers={"Content-Type": name, "Idempotency-Key": name})

    for begin in range(0, times, 20):
        await asyncio.gather(*(one(number) for number in range(begin, begin + 20)))


async def test_no_cache_grows_with_requests(dev_server: DevServer) -> None:
    """Whatever of the process remembers answers of functions, it remembers no more after hundreds of other requests."""
    async with service(TEMPORAL_ADDRESS=dev_server.address) as api:
        await ask(api, 20)
        before = sizes()
        await ask(api, 40)
        after = sizes()

    assert {} == {name: size for name, size in after.items() if size > before.get(name, 0) + 20}


async def test_memory_is_given_back(dev_server: DevServer) -> None:
    """Over a thousand long paths, queries and headers leave nothing behind."""
    async with served(dev_server) as api:
        await ask(api.alice, 40)
        before = api.memory()
        await ask(api.alice, 120)
        assert api.memory() < before + 10 * MIB


async def test_paths_longer_than_a_server_lets_through() -> None:
    """Behind a server with no limits of its own too: 1,050 paths and queries of 60 kB are forgotten."""
    app = create_app(from_env({"JWT_SECRET": SECRET}))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def get(path: str, query: bytes) -> None:
        headers = [(b"host", b"x"), (b"authorization", bearer()["Authorization"].encode())]
        scope: Any = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query}
        await app({**scope, "headers": headers, "root_path": "", "scheme": "http", "server": ("x", 80)}, receive, send)

    for times in (50, 1050):
        tracemalloc.start()
        for number in range(times):
            text = f"{number}-{uuid.uuid4()}" + "x" * 60_000
            await asyncio.create_task(get(f"/{text}", text.encode()))  # in a context of its own, as a request has
            await asyncio.create_task(get(f"/docs/assets/redoc/{text}", text.encode()))
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert held < 5 * MIB


async def test_tokens_are_remembered_within_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither long tokens nor tokens of many scopes are kept; of the others only so many."""
    monkeypatch.setattr(verifier_module, "REMEMBERED_TOKENS", 20)
    verifier = Verifier(from_env({"JWT_SECRET": SECRET}))
    for number in range(60):
        for scopes in (range(1 + number % 9), range(100), ["s" * 5000]):
            scope = " ".join(f"s{each}" for each in scopes)
            await verifier.user(bearer(f"user-{number}", scope)["Authorization"].removeprefix("Bearer "))

    assert 20 == len(verifier._verified)
    assert 20 * verifier_module.REMEMBERED_BYTES > sum(map(len, verifier._verified))
    assert 10 > max(len(user.scopes) for user, _ in verifier._verified.values())
