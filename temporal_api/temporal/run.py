"""A run's state as Temporal tells it, in plain Python values."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import Meta
from temporalio.api.common.v1 import Memo, Payload
from temporalio.api.enums.v1 import PendingActivityState, WorkflowExecutionStatus
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionResponse

from temporal_api.temporal.client import Temporal
from temporal_api.temporal.failures import FailureInfo

RUN_STATUS = {value: name.removeprefix("WORKFLOW_EXECUTION_STATUS_") for name, value in WorkflowExecutionStatus.items()}
"""Temporal's names of the states of a run."""
_OPEN = ("RUNNING", "PAUSED")


class PendingActivity(msgspec.Struct):
    """An activity that is scheduled, running or waiting for its next attempt. `state` in Temporal's words."""

    activity_id: Annotated[str, Meta(examples=["1"])]
    activity_type: Annotated[str, Meta(examples=["render_pdf"])]
    state: Annotated[str, Meta(examples=["STARTED"])]
    attempt: Annotated[int, Meta(examples=[1])]
    last_failure: Annotated[FailureInfo | None, Meta(examples=[None])]


class Run:
    """One run: as a list has it, or with more when it was described."""

    __slots__ = ("_described", "_info")

    def __init__(self, info: WorkflowExecutionInfo, described: DescribeWorkflowExecutionResponse | None = None) -> None:
        self._info = info
        self._described = described

    @property
    def workflow_id(self) -> str:
        """The workflow's id."""
        return self._info.execution.workflow_id

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._info.execution.run_id

    @property
    def workflow_type(self) -> str:
        """The workflow's type."""
        return self._info.type.name

    @property
    def task_queue(self) -> str:
        """The task queue whose workers run it."""
        return self._info.task_queue

    @property
    def status(self) -> str:
        """Temporal's name of its state, such as RUNNING."""
        return RUN_STATUS[self._info.status]

    @property
    def is_open(self) -> bool:
        """Whether it may still change; a paused one (newer servers) may."""
        return self.status in _OPEN

    @property
    def is_completed(self) -> bool:
        """Whether it ended well."""
        return self.status == "COMPLETED"

    @property
    def version(self) -> str:
        """What changes whenever the run does."""
        return f"{self.run_id}-{self._info.state_transition_count}"

    @property
    def history_length(self) -> int:
        """How many events its history has."""
        return self._info.history_length

    @property
    def history_bytes(self) -> int:
        """What its history takes in Temporal."""
        return self._info.history_size_bytes

    @property
    def parent_workflow_id(self) -> str | None:
        """The workflow whose child it is."""
        return self._info.parent_execution.workflow_id or None

    @property
    def start_time(self) -> datetime:
        """When it was started, in UTC."""
        return self._info.start_time.ToDatetime(tzinfo=UTC)

    @property
    def close_time(self) -> datetime | None:
        """When it closed; None while it is open."""
        return self._info.close_time.ToDatetime(tzinfo=UTC) if self._is_closed else None

    @property
    def execution_time_seconds(self) -> float | None:
        """How long it took, to the microsecond; None while it is open."""
        return _seconds_between(self._info.start_time, self._info.close_time) if self._is_closed else None

    @property
    def _is_closed(self) -> bool:
        # A list may know that a run has ended, and not when.
        return not self.is_open and self._info.HasField("close_time")

    @property
    def memo(self) -> Memo:
        """Its memo, as Temporal keeps it."""
        return self._info.memo

    @property
    def search_attributes(self) -> dict[str, Payload]:
        """Its search attributes, as Temporal keeps them."""
        return dict(self._info.search_attributes.indexed_fields)

    @property
    def reset_run_id(self) -> str:
        """The run that a reset has begun in its place; empty when there is none. Of a described run only."""
        return self._described.workflow_extended_info.reset_run_id if self._described else ""

    @property
    def task_attempt(self) -> int:
        """How often its pending workflow task was tried. Of a described run only."""
        return self._described.pending_workflow_task.attempt if self._described else 0

    async def pending_activities(self, temporal: Temporal) -> list[PendingActivity]:
        """What it waits for. Of a described run only."""
        return [
            PendingActivity(
                activity.activity_id,
                activity.activity_type.name,
                PendingActivityState.Name(activity.state).removeprefix("PENDING_ACTIVITY_STATE_"),
                activity.attempt,
                await temporal.failure(activity.last_failure) if activity.HasField("last_failure") else None,
            )
            for activity in (self._described.pending_activities if self._described else ())
        ]


def _seconds_between(start: Timestamp, end: Timestamp) -> float:
    return (end.ToMicroseconds() - start.ToMicroseconds()) / 1e6
