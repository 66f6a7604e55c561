"""Updates: sent until a worker has accepted them, waited for, and found again by their id.

Temporal may lose an update that no worker has accepted yet: so callers get an answer only after that.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.update.v1 import Input, Meta, Request, UpdateRef, WaitPolicy
from temporalio.api.workflowservice import v1 as api

from temporal_api import errors
from temporal_api.errors import Problem, UpdateNotFound
from temporal_api.temporal.client import RPC
from temporal_api.temporal.failures import start_subject
from temporal_api.temporal.history import retry_while_away
from temporal_api.temporal.starts import Started
from temporal_api.temporal.workflow import LONG_POLL_SECONDS, Workflow, is_too_long

ACCEPTED = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
DONE = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED

Sent = api.UpdateWorkflowExecutionResponse
Polled = api.PollWorkflowExecutionUpdateResponse
SentWithStart = api.ExecuteMultiOperationResponse
Answer = TypeVar("Answer", Sent, Polled, SentWithStart)


class Update(msgspec.Struct, frozen=True):
    """An update that a run has accepted. `result` is None until its handler has completed."""

    workflow_id: str
    run_id: str
    update_id: str
    result: msgspec.Raw | None


async def send(workflow: Workflow, update_id: str, name: str, args: Iterable[object]) -> Update:
    """Send an update until a worker has accepted it. The same id runs once. Its Problems have the update's id."""
    rpc = workflow.fail_without_worker(_until_accepted(workflow.temporal.waits.update_workflow_execution))
    try:
        response = await workflow.call_open(rpc, await _request(workflow, update_id, name, args))
    except Problem as problem:
        if isinstance(problem, errors.WorkflowPaused):
            with suppress(UpdateNotFound):  # it was accepted before the pause
                return await find(workflow, update_id)
        raise _with_id(problem, update_id) from problem.__cause__
    return await _update(workflow, update_id, response)


def _with_id(problem: Problem, update_id: str) -> Problem:
    """The Problem with the update's id, and with a hint if the update may still happen."""
    is_open = isinstance(problem, errors.Unavailable | errors.TemporalTimeout)
    hint = "The update may still happen: sent again with the same update_id, it happens once." if is_open else ""
    return problem.adding(hint, update_id=update_id)


async def send_with_start(
    workflow: Workflow, start: api.StartWorkflowExecutionRequest, update_id: str, name: str, args: Iterable[object]
) -> tuple[Started, Update]:
    """Start the workflow unless it runs, and send the update, in one call. A rejected update does not stop it.

    Its Problems have the update's id.
    """
    temporal = workflow.temporal
    operation = api.ExecuteMultiOperationRequest.Operation
    update = operation(update_workflow=await _request(workflow, update_id, name, args))
    operations = [operation(start_workflow=start), update]
    both = api.ExecuteMultiOperationRequest(namespace=temporal.namespace, operations=operations)
    rpc = workflow.fail_without_worker(_until_accepted(temporal.waits.execute_multi_operation))
    try:
        response = await temporal.call(rpc, both, start_subject(workflow.id))
    except Problem as problem:
        raise _with_id(problem, update_id) from problem.__cause__
    first, second = response.responses
    started = Started(first.start_workflow.run_id, first.start_workflow.started)
    return started, await _update(workflow, update_id, second.update_workflow)


async def _request(
    workflow: Workflow, update_id: str, name: str, args: Iterable[object]
) -> api.UpdateWorkflowExecutionRequest:
    temporal = workflow.temporal
    return api.UpdateWorkflowExecutionRequest(
        namespace=temporal.namespace,
        workflow_execution=workflow.execution,
        wait_policy=WaitPolicy(lifecycle_stage=ACCEPTED),
        request=Request(meta=Meta(update_id=update_id), input=Input(name=name, args=await temporal.encode(args))),
    )


async def find(workflow: Workflow, update_id: str) -> Update:
    """The update's current state, once it is accepted. Raises UpdateNotFound, and what `send` raises."""
    rpc = workflow.fail_without_worker(_until_accepted(workflow.temporal.waits.poll_workflow_execution_update))
    with suppress(errors.WorkflowNotFound):
        if not is_too_long(update_id):
            return await _update(workflow, update_id, await workflow.call(rpc, _poll(workflow, update_id, ACCEPTED)))
    await workflow.describe()
    message = f"The workflow {workflow.id!r} has no update {update_id!r}; one that was rejected is not kept."
    raise UpdateNotFound(message, **workflow.subject.details, update_id=update_id)


async def wait(workflow: Workflow, update: Update) -> Update:
    """Wait until the update's handler has completed, however long. Raises UpdateRejected, ..."""
    run = workflow.run(update.run_id)
    rpc, request = run.temporal.waits.poll_workflow_execution_update, _poll(run, update.update_id, DONE)
    while update.result is None:
        response = await retry_while_away(run.call, rpc, request, LONG_POLL_SECONDS)
        update = await _update(run, update.update_id, response)
    return update


def _poll(workflow: Workflow, update_id: str, stage: Stage.ValueType) -> api.PollWorkflowExecutionUpdateRequest:
    return api.PollWorkflowExecutionUpdateRequest(
        namespace=workflow.temporal.namespace,
        update_ref=UpdateRef(workflow_execution=workflow.execution, update_id=update_id),
        wait_policy=WaitPolicy(lifecycle_stage=stage),
    )


def _until_accepted(rpc: RPC[Answer]) -> RPC[Answer]:
    async def accepted(request: object, **options: Any) -> Answer:
        while True:
            answer = await rpc(request, **options)
            update = answer.responses[1].update_workflow if isinstance(answer, SentWithStart) else answer
            if update.stage >= ACCEPTED:
                return answer
            # Temporal waits 20 s for a worker, and may then forget the update: send it again.
            await asyncio.sleep(0.1)

    return accepted


async def _update(workflow: Workflow, update_id: str, response: Sent | Polled) -> Update:
    run_id, outcome = response.update_ref.workflow_execution.run_id, response.outcome
    if outcome.HasField("failure"):
        failure = await workflow.temporal.failure(outcome.failure)
        details: dict[str, Any] = {"workflow_id": workflow.id, "run_id": run_id, "update_id": update_id}
        raise errors.UpdateRejected(failure.message or None, source="workflow", failure=failure, **details)
    result = await workflow.temporal.result(outcome.success.payloads) if outcome.HasField("success") else None
    return Update(workflow.id, run_id, update_id, result)
