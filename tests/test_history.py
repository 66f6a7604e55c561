"""Histories that are listed in pages of ours, over Temporal's, which are of other lengths."""

from typing import Any

import pytest
from temporalio.api.history.v1 import History, HistoryEvent, WorkflowTaskFailedEventAttributes
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryResponse,
)

from scripted import Scripted
from temporal_api.temporal.events import event_json
from temporal_api.temporal.history import list_events
from temporal_api.temporal.run import Run

pytestmark = pytest.mark.anyio


def page(*event_ids: int, token: bytes = b"") -> GetWorkflowExecutionHistoryResponse:
    """A page of Temporal's, with its token for what follows."""
    events = [HistoryEvent(event_id=event_id) for event_id in event_ids]
    return GetWorkflowExecutionHistoryResponse(history=History(events=events), next_page_token=token)


async def three(server: Scripted, cursor: bytes) -> tuple[list[int], bytes]:
    """The ids of the next three events, and the cursor after them."""
    found: list[int] = []
    async for events, after in list_events(server.workflow(), cursor=cursor, size=3, reverse=False):
        found += [event.event_id for event in events]
        cursor = after
    return found, cursor


async def test_a_page_goes_on_where_the_last_one_ended() -> None:
    """Also when what Temporal gives the second time is shorter than what was told of it the first time."""
    server = Scripted(
        describe_workflow_execution=[DescribeWorkflowExecutionResponse()],
        get_workflow_execution_history=[
            page(1, 2, 3, 4, 5, token=b"a"),
            *(page(1, 2, token=b"b"), page(3, 4, 5, 6, 7)),
            *(page(3, token=b"c"), page(4, 5, 6, token=b"d"), page(7)),
        ],
    )
    first, cursor = await three(server, b"")
    second, cursor = await three(server, cursor)
    third, cursor = await three(server, cursor)

    assert ([1, 2, 3], [4, 5, 6], [7]) == (first, second, third)
    assert not cursor


async def test_what_only_newer_servers_know_is_shown_by_its_number() -> None:
    """A type of event, a cause or a status that the SDK here has no name for is no reason to fail."""
    new: Any = 999
    failed = WorkflowTaskFailedEventAttributes(cause=new)
    event = HistoryEvent(event_type=new, workflow_task_failed_event_attributes=failed)
    told = await event_json(Scripted().temporal(), event)

    assert ("999", "999", "999") == (
        told.event_type,
        told.attributes["cause"],
        Run(WorkflowExecutionInfo(status=new)).status,
    )
