"""`temporal-api serve | worker | dev | setup | token | print`.

Each command imports what it runs, so the API starts without the worker and without what finds or builds Temporal.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Coroutine
from importlib.resources import files
from typing import Any

import click
from temporalio.service import RPCError

from temporal_api.settings import SettingsError, TLSFilesError, from_env

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a command that a signal ended early."""

log = logging.getLogger(__name__)


def main() -> None:
    """Run the command line. A wrong setting ends with one line and exit code 2, any other error with 1."""
    try:
        cli()
    except (SettingsError, RPCError, OSError, RuntimeError) as error:
        told = str(error)
        if isinstance(error, RPCError):
            from temporal_api.temporal.access import cause

            told = str(cause(error))
        elif isinstance(error, OSError) and error.strerror:
            told = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        click.echo(f"temporal-api: {told.partition(chr(10))[0]}", err=True)
        wrong_setting = isinstance(error, SettingsError) and not isinstance(error, TLSFilesError)
        sys.exit(2 if wrong_setting else 1)


@click.group()
@click.version_option(package_name="temporal-api", prog_name="temporal-api")
def cli() -> None:
    """Temporal's workflows over a REST API. README.md lists the settings, which come from the environment."""


@cli.command()
def serve() -> None:
    """Serve the API."""
    from temporal_api import serving
    from temporal_api.app import create_app
    from temporal_api.logs import configure_logging

    settings = from_env(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    serving.serve(create_app(settings))


@cli.command()
@click.option("--pace", default=0.0, type=click.FloatRange(0, 9), help="Seconds that each step pretends to take.")
def worker(pace: float) -> None:
    """Run the sample worker: `order_processing` and its activities."""
    from temporalio.client import Client
    from temporalio.worker import Worker

    from temporal_api.logs import configure_logging
    from temporal_api.worker import TASK_QUEUE, StandIns, create_worker
    from temporal_api.worker.run import run_worker

    settings = from_env(os.environ, keys_needed=False)
    configure_logging(settings.log_level, settings.log_format)
    task_queue = settings.resource("orders", TASK_QUEUE).task_queue

    def create(client: Client) -> Worker:
        log.info("worker polls %s", task_queue)
        return create_worker(client, task_queue, StandIns(pace))

    _run(run_worker(settings, create))


@cli.command()
def setup() -> None:
    """Add the search attributes of the resources to the namespace. Safe to repeat."""
    from temporalio.runtime import Runtime, TelemetryConfig

    from temporal_api.app import SEARCH_ATTRIBUTES
    from temporal_api.temporal.access import add_search_attributes, connect

    settings = from_env(os.environ, keys_needed=False)
    # The command's last line says what is wrong: the SDK's own log lines are for programmers.
    runtime = Runtime(telemetry=TelemetryConfig(logging=None))

    async def add() -> bool:
        client = await connect(settings.temporal, runtime=runtime)
        for name in await add_search_attributes(client, SEARCH_ATTRIBUTES) or ("nothing: all are there",):
            click.echo(f"added {name}")
        return True

    if not _run(add()):
        sys.exit(INTERRUPTED)


@cli.command()
@click.option("--sub", default="dev", show_default=True, help="Who the token is for.")
@click.option("--scope", help="Its scopes, separated by spaces.  [default: all but codec:decode]")
@click.option("--expires", default=86_400, show_default=True, type=click.IntRange(1), help="Seconds it is valid for.")
def token(sub: str, scope: str | None, expires: int) -> None:
    """Sign a token with JWT_SECRET, to try things out."""
    from temporal_api.app import SCOPES
    from temporal_api.dev import sign

    click.echo(sign(from_env(os.environ), sub, " ".join(SCOPES) if scope is None else scope, expires))


@cli.command()
@click.option("--once", is_flag=True, help="Stop after the order: exit 0 if it was delivered, else 1.")
@click.option("--crash", is_flag=True, help="Kill the worker after the payment; another one goes on with the order.")
def dev(once: bool, crash: bool) -> None:
    """Run Temporal with its UI, the sample worker and the API on this machine, and place an order."""
    from temporal_api.dev import run_everything

    delivered = _run(run_everything(once=once, crash=crash))
    click.echo("Stopped.")
    if once and not delivered:
        sys.exit(INTERRUPTED if delivered is None else 1)


@cli.command("print")
@click.argument("what", type=click.Choice(["alerts", "dashboard", "kubernetes"]))
def print_(what: str) -> None:
    """Print Prometheus' alerts, a Grafana dashboard, or Kubernetes' manifests with JWT_SECRET or a new secret."""
    name = "dashboard.json" if what == "dashboard" else f"{what}.yaml"
    text = files("temporal_api").joinpath("deploy", name).read_text(encoding="utf-8")
    if what == "kubernetes":
        given = from_env({"JWT_SECRET": os.environ.get("JWT_SECRET") or secrets.token_urlsafe(32)})
        text = text.replace("JWT_SECRET: replace-me", f"JWT_SECRET: {json.dumps(given.jwt_secret)}")
    click.echo(text, nl=False)


def _run(work: Coroutine[Any, Any, bool | None]) -> bool | None:
    """Run to the end and return the result, or None after SIGINT or SIGTERM."""

    async def until_signalled() -> bool | None:
        task = asyncio.ensure_future(work)
        for number in handlers:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                return await task
            return None
        finally:
            # The SDK's runtime aborts the process when it is torn down right after a call.
            await asyncio.sleep(0.1)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return asyncio.run(until_signalled())
    finally:
        for number, handler in handlers.items():  # asyncio leaves Python's own, and click would say "Aborted!"
            signal.signal(number, handler)
