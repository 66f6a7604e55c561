"""Workflows that take updates, and what tests say to them over HTTP."""

import threading
from collections.abc import Sequence
from typing import Any

import httpx
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import WORKFLOWS, bearer

JSON = {"Content-Type": "application/json"}
ADMIN = bearer("operator", f"{WORKFLOWS} workflows:admin")
REASON = {"reason": "the test says so"}
ABANDON = workflow.HandlerUnfinishedPolicy.ABANDON

resume = threading.Event()
"""What the worker's thread waits for in `stuck`."""


# --- the workflows of the tests ---


@workflow.defn(name="till")
class Till:
    """Takes updates, of all kinds, until it is told to close."""

    def __init__(self) -> None:
        self.released = False
        self.end = ""
        self.seen: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        """Wait for the end."""
        await workflow.wait_condition(lambda: bool(self.end))
        if self.end == "again":
            workflow.continue_as_new()
        return self.seen

    @workflow.signal
    def close(self, how: str) -> None:
        """End like that."""
        self.end = how

    @workflow.signal
    def release(self) -> None:
        """Let the slow ones go on."""
        self.released = True

    @workflow.signal
    def note(self, what: str) -> None:
        """Remember it."""
        self.seen.append(what)

    @workflow.update
    def echo(self, value: RawValue) -> RawValue:
        """Give it back as it is."""
        self.seen.append(value.payload.data.decode())
        return value

    @workflow.update(unfinished_policy=ABANDON)
    async def slow(self, value: RawValue) -> RawValue:
        """Give it back after the signal `release`."""
        await workflow.wait_condition(lambda: self.released)
        return value

    @workflow.update
    def nothing(self) -> None:
        """Give nothing back."""

    @workflow.update
    def picky(self, value: int) -> int:
        """Take nothing over a limit."""
        return value

    @picky.validator
    def _picky(self, value: int) -> None:
        raise ApplicationError("too much", {"most": "1.10"}, type="TooMuch")

    @workflow.update
    def unlucky(self) -> None:
        """Fail on purpose."""
        try:
            raise KeyError("deep down")
        except KeyError as error:
            raise ApplicationError("out of stock", {"left": 0}, type="Stock") from error

    @workflow.update
    def broken(self) -> None:
        """Fail by a mistake in the code."""
        raise KeyError("a bug")

    @workflow.update
    def stuck(self) -> None:
        """Hold up the worker."""
        resume.wait(5)

    @workflow.query(name="stuck")
    def stuck_query(self) -> None:
        """Hold up the worker."""
        resume.wait(5)

    @workflow.query(description="What came.")
    def seen_so_far(self) -> list[str]:
        """What came."""
        return self.seen


@workflow.defn(name="parrot")
class Parrot:
    """Answers any update with its arguments' bytes."""

    @workflow.run
    async def run(self) -> None:
        """Wait for ever."""
        workflow.set_current_details("waits for *you*")
        await workflow.wait_condition(lambda: False)

    @workflow.update(dynamic=True)
    def any(self, name: str, args: Sequence[RawValue]) -> list[str]:
        """Say them."""
        return [value.payload.data.decode() for value in args]


def worker(client: Client, task_queue: str) -> Worker:
    """A worker for these workflows."""
    return Worker(client, task_queue=task_queue, workflows=[Till, Parrot], workflow_runner=UnsandboxedWorkflowRunner())


async def start(alice: httpx.AsyncClient, task_queue: str, kind: str = "till") -> str:
    """The path of a new workflow."""
    response = await alice.post("/api/v1/workflows", json={"workflow_type": kind, "task_queue": task_queue})
    assert 201 == response.status_code, response.text
    return str(response.headers["location"])


async def update(
    alice: httpx.AsyncClient, path: str, name: str, prefer: str | None = None, **body: Any
) -> httpx.Response:
    """Send an update."""
    headers = {"Prefer": prefer} if prefer else {}
    return await alice.post(f"{path}/updates", json={"update_name": name, **body}, headers=headers)


async def signal(alice: httpx.AsyncClient, path: str, name: str, *args: str) -> None:
    """Send a signal."""
    response = await alice.post(f"{path}/signal", json={"signal_name": name, "signal_args": args})
    assert 202 == response.status_code, response.text


async def close(alice: httpx.AsyncClient, path: str) -> Any:
    """End the workflow, and see its result."""
    await signal(alice, path, "close", "now")
    return (await alice.get(f"{path}/result", headers={"Prefer": "wait=20"})).json()["result"]


async def events(client: Client, path: str, kind: EventType.ValueType, run_id: str | None = None) -> list[HistoryEvent]:
    """Events of the workflow as Temporal has them."""
    history = await client.get_workflow_handle(path.rpartition("/")[2], run_id=run_id).fetch_history()
    return [event for event in history.events if event.event_type == kind]
