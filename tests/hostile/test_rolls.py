"""Replicas that are replaced one after the other behind a real proxy, while callers keep coming."""

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from api import SECRET, bearer, eventually, order
from commands import temporal_api, until_ready
from temporal_api.dev.server import DevServer, free_port

pytestmark = pytest.mark.anyio

# Both try the next replica when one refuses the connection: nginx by itself, haproxy when it is told to. nginx would
# hold one that did for dead for 10 s, longer than this roll waits before it replaces the other.
NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream api {{ server 127.0.0.1:{first} max_fails=0; server 127.0.0.1:{second} max_fails=0; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option redispatch 1
frontend front
  bind 127.0.0.1:{port}
  default_backend api
backend api
  option httpchk GET /health/ready
  server first 127.0.0.1:{first} check inter 500ms
  server second 127.0.0.1:{second} check inter 500ms
"""


@asynccontextmanager
async def balanced(program: str, config: str, folder: Path, first: int, second: int) -> AsyncIterator[str]:
    """The proxy before two replicas; gives its address."""
    port, path = free_port(), folder / "proxy.conf"
    path.write_text(config.format(folder=folder, port=port, first=first, second=second))
    flags = ["-c", str(path)] if program == "nginx" else ["-db", "-f", str(path)]
    process = await asyncio.create_subprocess_exec(program, *flags)
    try:
        await until_ready(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def replica(temporal: DevServer, port: int) -> AsyncIterator[None]:
    """A process that is ready; ended by SIGTERM, with 0."""
    environ = {"TEMPORAL_ADDRESS": temporal.address, "PORT": str(port), "LOG_LEVEL": "warning"}
    async with temporal_api("serve", JWT_SECRET=SECRET, SHUTDOWN_DELAY_SECONDS="2", **environ) as serve:
        await until_ready(f"http://127.0.0.1:{port}")
        yield
        assert 0 == await serve.end(signal.SIGTERM), serve.output


@pytest.mark.full
@pytest.mark.parametrize(("program", "config"), [("nginx", NGINX), ("haproxy", HAPROXY)])
async def test_a_roll(dev_server: DevServer, tmp_path: Path, program: str, config: str) -> None:
    """Each of eight callers gets a 201 for every order that it places while both replicas are replaced."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    ports, answers, over = (free_port(), free_port()), Counter[int](), asyncio.Event()

    async def place_orders(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, headers=bearer(), timeout=60) as alice:
            while not over.is_set():
                answers[(await alice.post("/api/v1/orders", json=order())).status_code] += 1

    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(AsyncExitStack()) for _ in ports]
        for each, port in zip(replicas, ports, strict=True):
            await each.enter_async_context(replica(dev_server, port))
        url = await stack.enter_async_context(balanced(program, config, tmp_path, *ports))
        async with asyncio.TaskGroup() as callers:
            for _ in range(8):
                callers.create_task(place_orders(url))
            for each, port in zip(replicas, ports, strict=True):
                placed = answers.total()
                await eventually(lambda: more_than(answers, placed + 50))  # noqa: B023
                await each.aclose()
                await each.enter_async_context(replica(dev_server, port))
            over.set()

    assert {201} == set(answers), answers
    assert answers[201] > 100


async def more_than(answers: Counter[int], number: int) -> bool:
    """Whether there were more."""
    return answers.total() > number
