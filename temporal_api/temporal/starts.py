"""Start workflows, alone or with a signal or an update."""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Raw
from temporalio.api.common import v1 as common
from temporalio.api.common.v1 import Payload
from temporalio.api.deployment.v1 import WorkerDeploymentVersion
from temporalio.api.enums.v1 import WorkflowIdConflictPolicy, WorkflowIdReusePolicy
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import VersioningOverride as Override
from temporalio.api.workflowservice import v1 as api
from temporalio.common import RetryPolicy

from temporal_api.errors import SearchAttributeUnknown, WorkflowStartError
from temporal_api.record import new_request_id
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.failures import start_subject
from temporal_api.temporal.payloads import JSON_METADATA, typed_payload

log = logging.getLogger(__name__)

UNINDEXED_SECONDS = 300
"""How long starts leave out search attributes that the namespace lacks, before they try again."""

PINNED = Override.PinnedOverrideBehavior.PINNED_OVERRIDE_BEHAVIOR_PINNED


class Started(msgspec.Struct, frozen=True):
    """A run. `new` is false if it ran already before the request."""

    run_id: str
    new: bool


class Priority(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which tasks are dispatched first: by `priority_key`, and within one key by `fairness_key` and weight."""

    priority_key: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None, Meta(description="A lower one goes first.", examples=[1])
    ] = None
    fairness_key: Annotated[
        str, Meta(description="Tasks of different keys take turns.", examples=["tenant-7"], max_length=64)
    ] = ""
    fairness_weight: Annotated[
        Annotated[float, Meta(ge=0.001, le=1000)] | None, Meta(description="The key's share of the turns.")
    ] = None


class WorkerVersion(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A version of a worker deployment."""

    deployment_name: Annotated[
        str, Meta(description="The deployment's name.", examples=["invoices"], min_length=1, max_length=1000)
    ]
    build_id: Annotated[
        str, Meta(description="The version's build id.", examples=["2.1"], min_length=1, max_length=1000)
    ]


class VersioningOverride(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Overrides which worker version runs it: one `pinned` version, or always the current one."""

    pinned: Annotated[WorkerVersion | None, Meta(description="Always this version.")] = None
    auto_upgrade: Annotated[bool, Meta(description="Always the current version.")] = False

    def __post_init__(self) -> None:
        """Check that exactly one of the two is given."""
        if (self.pinned is None) != self.auto_upgrade:
            raise ValueError("pinned: Expected either pinned or auto_upgrade")

    def for_temporal(self) -> Override:
        """As Temporal's message."""
        if self.pinned is None:
            return Override(auto_upgrade=True)
        version = WorkerDeploymentVersion(**msgspec.structs.asdict(self.pinned))
        return Override(pinned=Override.PinnedOverride(behavior=PINNED, version=version))


async def request(
    temporal: Temporal,
    workflow_type: str,
    *,
    workflow_id: str,
    task_queue: str,
    args: Iterable[object],
    memo: Mapping[str, object],
    execution_timeout_seconds: float | None = None,
    run_timeout_seconds: float | None = None,
    task_timeout_seconds: float | None = None,
    start_delay_seconds: float | None = None,
    retry_policy: RetryPolicy | None = None,
    id_reuse_policy: str | None = None,
    id_conflict_policy: str | None = None,
    search_attributes: Mapping[str, Payload] = {},
    priority: Priority | None = None,
    summary: str = "",
    details: str = "",
    headers: Mapping[str, Raw] = {},
    versioning_override: VersioningOverride | None = None,
) -> api.StartWorkflowExecutionRequest:
    """Build a start. The id policies are Temporal's names without their prefix. Raises WorkflowStartError."""
    reuse = f"WORKFLOW_ID_REUSE_POLICY_{id_reuse_policy or 'UNSPECIFIED'}"
    conflict = f"WORKFLOW_ID_CONFLICT_POLICY_{id_conflict_policy or 'UNSPECIFIED'}"
    request = api.StartWorkflowExecutionRequest(
        namespace=temporal.namespace,
        workflow_id=workflow_id,
        workflow_type=common.WorkflowType(name=workflow_type),
        task_queue=TaskQueue(name=task_queue),
        input=await temporal.encode(args),
        # With the same id, Temporal answers a retry with the run that the first try started.
        request_id=new_request_id(),
        memo=await temporal.encode_memo(memo) if memo else None,
        workflow_id_reuse_policy=WorkflowIdReusePolicy.Value(reuse),
        workflow_id_conflict_policy=WorkflowIdConflictPolicy.Value(conflict),
        search_attributes=common.SearchAttributes(indexed_fields=search_attributes) if search_attributes else None,
        priority=common.Priority(**msgspec.structs.asdict(priority)) if priority else None,
    )
    for duration, seconds in (
        (request.workflow_execution_timeout, execution_timeout_seconds),
        (request.workflow_run_timeout, run_timeout_seconds),
        (request.workflow_task_timeout, task_timeout_seconds),
        (request.workflow_start_delay, start_delay_seconds),
    ):
        if seconds is not None:
            duration.FromNanoseconds(round(seconds * 1e9))
    if retry_policy is not None:
        retry_policy.apply_to_proto(request.retry_policy)
    for field, text in (("summary", summary), ("details", details)):
        if text:
            (payload,) = (await temporal.encode([text])).payloads
            getattr(request.user_metadata, field).CopyFrom(payload)
    for name, value in headers.items():  # not encrypted: the SDKs' interceptors do not decrypt headers
        request.header.fields[name].CopyFrom(Payload(metadata=JSON_METADATA, data=bytes(value)))
    if versioning_override is not None:
        request.versioning_override.CopyFrom(versioning_override.for_temporal())
        if versioning_override.pinned is not None:
            await _check(temporal, request.versioning_override.pinned.version, workflow_id)
    return request


async def _check(temporal: Temporal, version: WorkerDeploymentVersion, workflow_id: str) -> None:
    """Refuse an unknown worker version. Temporal (1.29) would start the workflow, and no worker would run it."""
    name = f"version {version.build_id!r} of a worker deployment {version.deployment_name!r}"
    subject = msgspec.structs.replace(start_subject(workflow_id), name=name, missing=WorkflowStartError)
    request = api.DescribeWorkerDeploymentVersionRequest(namespace=temporal.namespace, deployment_version=version)
    await temporal.call(temporal.service.describe_worker_deployment_version, request, subject)


async def start(
    temporal: Temporal, request: api.StartWorkflowExecutionRequest, search_attributes: Mapping[str, str] = {}
) -> Started:
    """Start it, without keywords that the namespace lacks. Raises WorkflowAlreadyExists, WorkflowStartError, ..."""
    names = tuple(search_attributes)
    if names and time.monotonic() >= temporal.unindexed_until.get(names, 0):
        for name, value in search_attributes.items():
            keyword = typed_payload("Keyword", msgspec.json.encode(value))
            request.search_attributes.indexed_fields[name].CopyFrom(keyword)
        try:
            return await _start(temporal, request)
        except SearchAttributeUnknown:
            # `temporal-api setup` was not run: start the workflow anyway, although lists will not find it.
            log.warning("The namespace lacks a search attribute of %s: run temporal-api setup.", ", ".join(names))
            temporal.unindexed_until[names] = time.monotonic() + UNINDEXED_SECONDS
            request.ClearField("search_attributes")
    return await _start(temporal, request)


async def _start(temporal: Temporal, request: api.StartWorkflowExecutionRequest) -> Started:
    subject = start_subject(request.workflow_id)
    response = await temporal.call(temporal.service.start_workflow_execution, request, subject)
    return Started(response.run_id, response.started)


async def signal_with_start(
    temporal: Temporal, request: api.StartWorkflowExecutionRequest, signal_name: str, args: Iterable[object]
) -> Started:
    """Signal the workflow with that id; first start it unless it runs. Raises WorkflowStartError, ..."""
    both = api.SignalWithStartWorkflowExecutionRequest(
        **{field.name: value for field, value in request.ListFields()},
        signal_name=signal_name,
        signal_input=await temporal.encode(args),
    )
    rpc = temporal.service.signal_with_start_workflow_execution
    response = await temporal.call(rpc, both, start_subject(request.workflow_id))
    return Started(response.run_id, response.started)
