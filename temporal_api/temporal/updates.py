"""Updates: sent until a worker has accepted them, waited for, and found again by their id.

An update that Temporal has only admitted is kept nowhere and may be lost: until it is accepted, nobody is told it was.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import msgspec
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.update.v1 import Input, Meta, Request, UpdateRef, WaitPolicy
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    ExecuteMultiOperationResponse,
    PollWorkflowExecutionUpdateRequest,
    PollWorkflowExecutionUpdateResponse,
    StartWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)
from temporalio.service import RPCError

from temporal_api.errors import Problem
from temporal_api.temporal.client import Started, Temporal
from temporal_api.temporal.failures import multi_operation_problem
from temporal_api.temporal.history import LONG_POLL_SECONDS, patient
from temporal_api.temporal.workflow import Workflow

ACCEPTED = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
COMPLETED = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED

Answer = TypeVar("Answer", UpdateWorkflowExecutionResponse, PollWorkflowExecutionUpdateResponse)


class Update(msgspec.Struct, frozen=True):
    """An update that was accepted by that run; `result` is None while its handler is at work."""

    workflow_id: str
    run_id: str
    update_id: str
    result: msgspec.Raw | None


async def start(workflow: Workflow, update_id: str, name: str, args: Iterable[object]) -> Update:
    """Send an update until it is accepted; one of the same id is sent once, and answered with its first outcome.

    Raises Problem: `workflow_not_found`, `workflow_completed`, `update_rejected`, `no_worker`,
    `workflow_task_failing`, `temporal_timeout`, ...; each with the update's id, to send it again.
    """
    temporal, workflow_id, run_id = workflow.temporal, workflow.id, workflow.run_id
    request = await _request(temporal, workflow_id, run_id, update_id, name, args)
    rpc = temporal.workers.attended(_until_accepted(temporal.service.update_workflow_execution), workflow_id, run_id)
    try:
        return await _update(temporal, workflow_id, update_id, await temporal.call(rpc, request, workflow_id, run_id))
    except Problem as refused:
        problem = await temporal.told_apart(refused, workflow_id, run_id)
        problem.details["update_id"] = update_id
        if problem.status in (503, 504):
            problem.message += " The update may still happen: sent again with the same update_id, it happens once."
        raise problem from refused.__cause__


async def with_start(
    temporal: Temporal, start_request: StartWorkflowExecutionRequest, update_id: str, name: str, args: Iterable[object]
) -> tuple[Started, Update]:
    """Start the workflow unless it runs, and send it the update, in one call (Temporal's update-with-start).

    Raises Problem as the two do; a refused update leaves the workflow started.
    """
    workflow_id = start_request.workflow_id
    operation = ExecuteMultiOperationRequest.Operation
    both = ExecuteMultiOperationRequest(
        namespace=temporal.namespace,
        operations=[
            operation(start_workflow=start_request),
            operation(update_workflow=await _request(temporal, workflow_id, "", update_id, name, args)),
        ],
    )

    async def accepted(request: ExecuteMultiOperationRequest, **options: Any) -> ExecuteMultiOperationResponse:
        while True:
            response = await temporal.service.execute_multi_operation(request, **options)
            if response.responses[1].update_workflow.stage >= ACCEPTED:
                return response
            await asyncio.sleep(0.1)

    try:
        response = await temporal.call(temporal.workers.attended(accepted, workflow_id, ""), both, workflow_id)
    except Problem as problem:
        cause = problem.__cause__
        raise (multi_operation_problem(cause, workflow_id) if isinstance(cause, RPCError) else problem) from cause
    first, second = response.responses
    started = Started(first.start_workflow.run_id, first.start_workflow.started)
    return started, await _update(temporal, workflow_id, update_id, second.update_workflow)


async def _request(
    temporal: Temporal, workflow_id: str, run_id: str, update_id: str, name: str, args: Iterable[object]
) -> UpdateWorkflowExecutionRequest:
    return UpdateWorkflowExecutionRequest(
        namespace=temporal.namespace,
        workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
        wait_policy=WaitPolicy(lifecycle_stage=ACCEPTED),
        request=Request(
            meta=Meta(update_id=update_id, identity=temporal.identity),
            input=Input(name=name, args=await temporal.payloads(args)),
        ),
    )


async def find(workflow: Workflow, update_id: str) -> Update:
    """The update as it is now, once it is accepted. Raises Problem: `update_not_found`, and as `start` does."""
    temporal, workflow_id, run_id = workflow.temporal, workflow.id, workflow.run_id
    rpc = temporal.workers.attended(
        _until_accepted(temporal.service.poll_workflow_execution_update), workflow_id, run_id
    )
    request = _poll(temporal, workflow_id, run_id, update_id, ACCEPTED)
    try:
        return await _update(temporal, workflow_id, update_id, await temporal.call(rpc, request, workflow_id, run_id))
    except Problem as problem:
        if problem.code != "workflow_not_found":
            raise
        await temporal.describe(workflow_id, run_id)
        message = f"The workflow {workflow_id!r} has no update {update_id!r}; one that was refused is not kept."
        raise Problem(
            "update_not_found", message, workflow_id=workflow_id, run_id=run_id, update_id=update_id
        ) from None


async def done(temporal: Temporal, update: Update) -> Update:
    """The update when its handler has ended, however long that takes. Raises Problem: `update_rejected`, ..."""
    poll = functools.partial(
        temporal.call,
        temporal.service.poll_workflow_execution_update,
        _poll(temporal, update.workflow_id, update.run_id, update.update_id, COMPLETED),
        update.workflow_id,
        update.run_id,
        seconds=LONG_POLL_SECONDS,
    )
    while update.result is None:
        response = await patient(poll)
        update = await _update(temporal, update.workflow_id, update.update_id, response)
    return update


def _poll(
    temporal: Temporal, workflow_id: str, run_id: str, update_id: str, stage: Stage.ValueType
) -> PollWorkflowExecutionUpdateRequest:
    return PollWorkflowExecutionUpdateRequest(
        namespace=temporal.namespace,
        update_ref=UpdateRef(
            workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id), update_id=update_id
        ),
        identity=temporal.identity,
        wait_policy=WaitPolicy(lifecycle_stage=stage),
    )


def _until_accepted(rpc: Callable[..., Awaitable[Answer]]) -> Callable[..., Awaitable[Answer]]:
    async def accepted(request: object, **options: Any) -> Answer:
        while True:
            response = await rpc(request, **options)
            if response.stage >= ACCEPTED:
                return response
            # Temporal has waited for a worker as long as it does (20 s), and may forget the update now.
            await asyncio.sleep(0.1)

    return accepted


async def _update(
    temporal: Temporal,
    workflow_id: str,
    update_id: str,
    response: UpdateWorkflowExecutionResponse | PollWorkflowExecutionUpdateResponse,
) -> Update:
    run_id = response.update_ref.workflow_execution.run_id
    if response.outcome.HasField("failure"):
        failure = await temporal.failure(response.outcome.failure)
        raise Problem(
            "update_rejected",
            failure.message or "The workflow refused the update, or failed at it.",
            source="workflow",
            workflow_id=workflow_id,
            run_id=run_id,
            update_id=update_id,
            failure=failure,
        )
    result = None
    if response.outcome.HasField("success"):
        result = await temporal.result(response.outcome.success.payloads)
    return Update(workflow_id, run_id, update_id, result)
