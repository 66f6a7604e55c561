"""How a run ended: its result or failure, and the run that followed it. Also waits for the end."""

import asyncio
import functools
from typing import Annotated

import msgspec
from msgspec import Meta, Raw
from temporalio.api.history.v1 import HistoryEvent

from temporal_api.temporal.events import CLOSING
from temporal_api.temporal.failures import FailureInfo
from temporal_api.temporal.history import retry_while_away, until_unpaused
from temporal_api.temporal.run import Status
from temporal_api.temporal.workflow import Workflow


class Ending(msgspec.Struct):
    """How a run ended."""

    workflow_id: Annotated[str, Meta(description="The workflow's id.", examples=["invoice-2041"])]
    run_id: Annotated[str, Meta(description="The run's id.", examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
    status: Annotated[Status, Meta(description="How it ended, as Temporal names it.", examples=["COMPLETED"])]
    result: Annotated[Raw, Meta(description="What the workflow returned: any JSON.", examples=[{"sent": True}])]
    failure: Annotated[FailureInfo | None, Meta(description="Why it failed.", examples=[None])]
    new_run_id: Annotated[
        str | None, Meta(description="The run that followed it (continue-as-new, retry, cron).", examples=[None])
    ]


async def read(run: Workflow) -> Ending:
    """How a closed run ended."""
    return await _ending(run, (await run.read_page(closing_only=True)).events[-1])


async def wait(run: Workflow, *, follow: bool) -> Ending:
    """Wait until the run ends, however long; with `follow`, until the last run of its chain ends.

    All who wait for one run share one long poll.
    """
    while True:
        key, ask = ("ending", run.id, run.run_id), functools.partial(_closing_event, run)
        with run.temporal.polls.join(key, object(), ask) as poll:
            event = await asyncio.shield(poll)
        ending = await _ending(run, event)
        if not (follow and ending.new_run_id):
            return ending
        run = run.run(ending.new_run_id)


async def _closing_event(run: Workflow, _: object) -> HistoryEvent:
    token = b""
    while True:
        page = await retry_while_away(run.read_page, token=token, wait=True, closing_only=True)
        if page.events and page.events[-1].event_type in CLOSING:
            return page.events[-1]
        token = page.token
        if not token:  # it has not ended, it is paused
            await until_unpaused(run)


async def _ending(run: Workflow, event: HistoryEvent) -> Ending:
    completed = event.workflow_execution_completed_event_attributes
    failed = event.workflow_execution_failed_event_attributes
    attributes = getattr(event, event.WhichOneof("attributes") or "", None)
    return Ending(
        workflow_id=run.id,
        run_id=run.run_id,
        status=CLOSING[event.event_type],
        result=await run.temporal.result(completed.result.payloads),
        failure=await run.temporal.failure(failed.failure) if failed.HasField("failure") else None,
        new_run_id=str(getattr(attributes, "new_execution_run_id", "")) or None,
    )
