"""A run's state as Temporal tells it, in plain Python values."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import Meta
from temporalio.api.common.v1 import Memo, Payload
from temporalio.api.enums.v1 import ParentClosePolicy, PendingActivityState, WorkflowExecutionStatus
from temporalio.api.workflow.v1 import PendingActivityInfo, PendingChildExecutionInfo, WorkflowExecutionInfo
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
RUN_STATUS: dict[int, Any] = {
    value: name.removeprefix("WORKFLOW_EXECUTION_STATUS_") for name, value in WorkflowExecutionStatus.items()
}


class PendingActivity(msgspec.Struct):
    """An activity that is scheduled, running or waiting for its next attempt."""

    activity_id: Annotated[str, Meta(description="Its id in the workflow.", examples=["1"])]
    activity_type: Annotated[str, Meta(description="Its name in its worker.", examples=["render_pdf"])]
    state: Annotated[str, Meta(description="Its state, in Temporal's words.", examples=["STARTED"])]
    attempt: Annotated[int, Meta(description="Which attempt it is.", examples=[1])]
    maximum_attempts: Annotated[int, Meta(description="0 means without end.", examples=[0])]
    next_attempt_time: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(description="Null unless it waits for its next attempt.", examples=[None]),
    ]
    heartbeat_details: Annotated[
        list[msgspec.Raw], Meta(description="What its last heartbeat told.", examples=[[{"page": 7}]])
    ]
    last_worker_identity: Annotated[
        str | None, Meta(description="The worker that had its last attempt.", examples=["4711@worker-1"])
    ]
    last_failure: Annotated[FailureInfo | None, Meta(description="Why its last attempt failed.", examples=[None])]


class PendingWorkflowTask(msgspec.Struct):
    """A workflow task that the workflow's code fails again and again, until the code is fixed."""

    attempt: Annotated[int, Meta(description="Which attempt it is.", examples=[7])]
    failure: Annotated[
        FailureInfo | None,
        Meta(description="Why the last one failed.", examples=[{"type": "KeyError", "message": "'invoice'"}]),
    ]


class PendingChild(msgspec.Struct):
    """A child workflow that is open."""

    workflow_id: Annotated[str, Meta(description="The child's id.", examples=["invoice-2041-reminder"])]
    run_id: Annotated[str, Meta(description="The run's id.", examples=["019ab3c4-9c11-7e0b-9f3e-5d0c1b2a3f4e"])]
    workflow_type: Annotated[str, Meta(description="Its name in its worker.", examples=["remind"])]
    parent_close_policy: Annotated[
        str, Meta(description="What happens to it when its parent closes.", examples=["TERMINATE"])
    ]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Memo and search attributes are as Temporal keeps them."""

    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    status: Status
    is_open: bool
    """Whether it may still change; a paused one (newer servers) may."""
    version: str
    """What changes whenever the run does."""
    history_length: int
    history_bytes: int
    parent_workflow_id: str | None
    memo: Memo
    search_attributes: Mapping[str, Payload]
    started: Timestamp
    closed: Timestamp | None
    """None while it is open; a list may know that it has ended, and not when."""

    # What only describing a run tells.
    reset_run_id: str
    """The run that a reset has begun in its place; empty when there is none."""
    task_attempt: int
    """How often its pending workflow task was tried."""
    activities: Iterable[PendingActivityInfo]
    children: Iterable[PendingChildExecutionInfo]

    @property
    def is_temporals_own(self) -> bool:
        """Whether it is one of Temporal's own workflows."""
        return (
            self.workflow_id.startswith(TEMPORALS_OWN)
            or self.workflow_type.startswith(TEMPORALS_OWN)
            or self.task_queue.startswith(TEMPORALS_OWN)
        )

    @property
    def is_completed(self) -> bool:
        """Whether it ended well."""
        return self.status == "COMPLETED"

    @property
    def start_time(self) -> datetime:
        """When it was started, in UTC."""
        return self.started.ToDatetime(tzinfo=UTC)

    @property
    def close_time(self) -> datetime | None:
        """When it closed, in UTC."""
        return self.closed.ToDatetime(tzinfo=UTC) if self.closed else None

    @property
    def execution_time_seconds(self) -> float | None:
        """How long it took, to the microsecond."""
        return (self.closed.ToMicroseconds() - self.started.ToMicroseconds()) / 1e6 if self.closed else None

    async def pending_activities(self, temporal: Temporal) -> list[PendingActivity]:
        """The activities that it waits for."""
        return [
            PendingActivity(
                activity.activity_id,
                activity.activity_type.name,
                PendingActivityState.Name(activity.state).removeprefix("PENDING_ACTIVITY_STATE_"),
                activity.attempt,
                activity.maximum_attempts,
                activity.next_attempt_schedule_time.ToDatetime(tzinfo=UTC)
                if activity.HasField("next_attempt_schedule_time")
                else None,
                [raw_json(payload) for payload in await temporal.decode(activity.heartbeat_details.payloads)],
                activity.last_worker_identity or None,
                await temporal.failure(activity.last_failure) if activity.HasField("last_failure") else None,
            )
            for activity in self.activities
        ]

    def pending_children(self) -> list[PendingChild]:
        """Its children that are open."""
        return [
            PendingChild(
                child.workflow_id,
                child.run_id,
                child.workflow_type_name,
                ParentClosePolicy.Name(child.parent_close_policy).removeprefix("PARENT_CLOSE_POLICY_"),
            )
            for child in self.children
            if child.run_id  # else it is only asked for
        ]


def read_run(info: WorkflowExecutionInfo, described: DescribeWorkflowExecutionResponse | None = None) -> Run:
    """A run of a list, or one that was described."""
    status: Status = RUN_STATUS[info.status]
    is_open = status in ("RUNNING", "PAUSED")
    return Run(
        workflow_id=info.execution.workflow_id,
        run_id=info.execution.run_id,
        workflow_type=info.type.name,
        task_queue=info.task_queue,
        status=status,
        is_open=is_open,
        version=f"{info.execution.run_id}-{info.state_transition_count}",
        history_length=info.history_length,
        history_bytes=info.history_size_bytes,
        parent_workflow_id=info.parent_execution.workflow_id or None,
        memo=info.memo,
        search_attributes=info.search_attributes.indexed_fields,
        started=info.start_time,
        closed=info.close_time if not is_open and info.HasField("close_time") else None,
        reset_run_id=described.workflow_extended_info.reset_run_id if described else "",
        task_attempt=described.pending_workflow_task.attempt if described else 0,
        activities=described.pending_activities if described else (),
        children=described.pending_children if described else (),
    )
