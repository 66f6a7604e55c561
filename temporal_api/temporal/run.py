"""A run's state, in plain Python values."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from google.protobuf.descriptor import EnumDescriptor
from msgspec import Meta
from temporalio.api.enums.v1 import ParentClosePolicy, PendingActivityState, WorkflowExecutionStatus
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionResponse

from temporal_api.temporal.client import Temporal
from temporal_api.temporal.failures import FailureInfo
from temporal_api.temporal.payloads import raw_json

TEMPORALS_OWN = ("temporal-sys-", "/_sys/")
"""What the ids, types and task queues of Temporal's own workflows begin with: schedules, batches, deployments."""
DIVISION = "TemporalNamespaceDivision"
"""The search attribute that most of them have."""
Status = Literal["RUNNING", "COMPLETED", "FAILED", "CANCELED", "TERMINATED", "CONTINUED_AS_NEW", "TIMED_OUT", "PAUSED"]
"""Temporal's names of the states of a run."""
_LISTED = DescribeWorkflowExecutionResponse()
RUN_STATUS: dict[int, Any] = {
    value: name.removeprefix("WORKFLOW_EXECUTION_STATUS_") for name, value in WorkflowExecutionStatus.items()
}


def enum_name(kind: EnumDescriptor, value: int, prefix: str = "") -> str:
    """The value's name without the kind's prefix; its number, if only newer servers know it."""
    known = kind.values_by_number.get(value)
    return known.name.removeprefix(prefix) if known else str(value)


class PendingActivity(msgspec.Struct):
    """An activity that is scheduled, running or waiting for its next attempt."""

    activity_id: Annotated[str, Meta(description="The activity's id in the workflow.", examples=["1"])]
    activity_type: Annotated[str, Meta(description="The activity type.", examples=["render_pdf"])]
    state: Annotated[str, Meta(description="The activity's state, as Temporal names it.", examples=["STARTED"])]
    attempt: Annotated[int, Meta(description="The number of the attempt, from 1 on.", examples=[1])]
    maximum_attempts: Annotated[int, Meta(description="The most attempts. 0 means no limit.", examples=[0])]
    next_attempt_time: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(description="When the next attempt begins. Null unless it waits for one.", examples=[None]),
    ]
    heartbeat_details: Annotated[
        list[msgspec.Raw], Meta(description="The details of its last heartbeat.", examples=[[{"page": 7}]])
    ]
    last_worker_identity: Annotated[
        str | None, Meta(description="The worker that ran its last attempt.", examples=["4711@worker-1"])
    ]
    last_failure: Annotated[FailureInfo | None, Meta(description="Why its last attempt failed.", examples=[None])]


class PendingWorkflowTask(msgspec.Struct):
    """A workflow task that fails again and again, until the workflow's code is fixed."""

    attempt: Annotated[int, Meta(description="The number of the attempt, from 1 on.", examples=[7])]
    failure: Annotated[
        FailureInfo | None,
        Meta(description="Why the last one failed.", examples=[{"type": "KeyError", "message": "'invoice'"}]),
    ]


class PendingChild(msgspec.Struct):
    """A child workflow that is open."""

    workflow_id: Annotated[str, Meta(description="The child's id.", examples=["invoice-2041-reminder"])]
    run_id: Annotated[str, Meta(description="The run's id.", examples=["019ab3c4-9c11-7e0b-9f3e-5d0c1b2a3f4e"])]
    workflow_type: Annotated[str, Meta(description="The workflow type.", examples=["remind"])]
    parent_close_policy: Annotated[
        str, Meta(description="What happens to it when its parent closes.", examples=["TERMINATE"])
    ]


class Run:
    """One run, from a list or from describing it. Memo and search attributes are not decoded."""

    def __init__(self, info: WorkflowExecutionInfo, described: DescribeWorkflowExecutionResponse = _LISTED) -> None:
        self.workflow_id = info.execution.workflow_id
        self.run_id = info.execution.run_id
        self.workflow_type = info.type.name
        self.task_queue = info.task_queue
        status: Any = RUN_STATUS.get(info.status) or str(info.status)
        self.status: Status = status
        self.is_open = self.status in ("RUNNING", "PAUSED")
        """Whether it may still change; a paused one (newer servers) may."""
        self.version = f"{self.run_id}-{info.state_transition_count}"
        """A value that changes whenever the run does."""
        self.history_length = info.history_length
        self.history_bytes = info.history_size_bytes
        self.parent_workflow_id = info.parent_execution.workflow_id or None
        self.memo = info.memo
        self.search_attributes = info.search_attributes.indexed_fields
        self._started = info.start_time
        # None while it is open. A list may show a closed run without this time.
        self._closed = info.close_time if not self.is_open and info.HasField("close_time") else None

        # Known only from describing a run, not from a list.
        self.reset_run_id = described.workflow_extended_info.reset_run_id
        """The run that a reset began from this one; empty if there is none."""
        self.task_attempt = described.pending_workflow_task.attempt
        """How often its pending workflow task was tried."""
        self._activities = described.pending_activities
        self._children = described.pending_children

    @property
    def start_time(self) -> datetime:
        """When it was started, in UTC."""
        return self._started.ToDatetime(tzinfo=UTC)

    @property
    def close_time(self) -> datetime | None:
        """When it closed, in UTC."""
        return self._closed.ToDatetime(tzinfo=UTC) if self._closed else None

    @property
    def execution_time_seconds(self) -> float | None:
        """How long it took, to the microsecond."""
        return (self._closed.ToMicroseconds() - self._started.ToMicroseconds()) / 1e6 if self._closed else None

    async def pending_activities(self, temporal: Temporal) -> list[PendingActivity]:
        """The activities that it waits for."""
        return [
            PendingActivity(
                activity.activity_id,
                activity.activity_type.name,
                enum_name(PendingActivityState.DESCRIPTOR, activity.state, "PENDING_ACTIVITY_STATE_"),
                activity.attempt,
                activity.maximum_attempts,
                activity.next_attempt_schedule_time.ToDatetime(tzinfo=UTC)
                if activity.HasField("next_attempt_schedule_time")
                else None,
                [raw_json(payload) for payload in await temporal.decode(activity.heartbeat_details.payloads)],
                activity.last_worker_identity or None,
                await temporal.failure(activity.last_failure) if activity.HasField("last_failure") else None,
            )
            for activity in self._activities
        ]

    def pending_children(self) -> list[PendingChild]:
        """Its children that are open."""
        return [
            PendingChild(
                child.workflow_id,
                child.run_id,
                child.workflow_type_name,
                enum_name(ParentClosePolicy.DESCRIPTOR, child.parent_close_policy, "PARENT_CLOSE_POLICY_"),
            )
            for child in self._children
            if child.run_id  # a child without one has not begun
        ]
