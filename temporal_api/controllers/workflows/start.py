"""Starting workflows: every option of Temporal's start, a signal in the same call, an idempotency key, a wait."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, post
from litestar.datastructures import ResponseHeader, State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from msgspec import UNSET, Meta, Raw
from temporalio.api.enums.v1 import WorkflowIdConflictPolicy, WorkflowIdReusePolicy
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest

from temporal_api import idempotency
from temporal_api.auth import CurrentUser, User
from temporal_api.controllers.workflows.addressing import (
    Argument,
    Arguments,
    NonEmpty,
    arguments,
    hidden_prefixes,
    location,
)
from temporal_api.controllers.workflows.history import RETRY_AFTER_SECONDS
from temporal_api.errors import Problem, invalid, responses
from temporal_api.idempotency import REPLAYED, IdempotencyKey, check_key, check_same, derived_id, fingerprint
from temporal_api.requests import JSONResponse
from temporal_api.temporal import FailureInfo, Started, TemporalClient, is_open, updates
from temporal_api.temporal.payloads import typed_payload
from temporal_api.waiting import Prefer, applied, preferred_wait

OWN_MEMO = "temporal_api."
Duration = Annotated[float, Meta(ge=0.001, le=315_360_000, description="Seconds.")]
ReusePolicy = Literal["ALLOW_DUPLICATE", "ALLOW_DUPLICATE_FAILED_ONLY", "REJECT_DUPLICATE"]
ConflictPolicy = Literal["FAIL", "USE_EXISTING", "TERMINATE_EXISTING"]


class RetryPolicy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How often a run that failed is tried again (Temporal's retry policy); `maximum_attempts` 0: without end."""

    initial_interval_seconds: Duration = 1
    backoff_coefficient: Annotated[float, Meta(ge=1, le=100)] = 2
    maximum_interval_seconds: Duration | None = None
    maximum_attempts: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    non_retryable_error_types: list[str] = []


class SearchAttribute(msgspec.Struct, forbid_unknown_fields=True):
    """A value to find the workflow by, with the type that the namespace has for it."""

    type: Literal["Bool", "Datetime", "Double", "Int", "Keyword", "KeywordList", "Text"]
    value: Raw

    def __post_init__(self) -> None:
        """The value is of the type."""
        try:
            msgspec.json.decode(self.value, type=_SEARCH_TYPES[self.type])
        except msgspec.ValidationError:
            raise ValueError(f"value: Expected a value of the type {self.type}") from None


_SEARCH_TYPES: dict[str, Any] = {
    "Bool": bool,
    "Datetime": Annotated[datetime, Meta(tz=True)],
    "Double": float,
    "Int": int,
    "Keyword": str,
    "KeywordList": list[str],
    "Text": str,
}


class StartSignal(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A signal in the same call (signal-with-start): the workflow is started unless it runs, and gets the signal."""

    signal_name: NonEmpty
    signal_input: Argument = UNSET
    signal_args: Arguments = UNSET


class StartUpdate(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An update in the same call (update-with-start): the workflow is started unless it runs, and gets the update."""

    update_name: NonEmpty
    update_input: Argument = UNSET
    update_args: Arguments = UNSET
    update_id: NonEmpty | None = None


class StartedUpdate(msgspec.Struct):
    """The update that came with the start: done with its result, or accepted and found under its id."""

    update_id: str
    status: Literal["ACCEPTED", "COMPLETED"]
    result: Annotated[Raw, Meta(description="Any JSON; null while it is at work.", examples=[None])]


class WorkflowExecutionRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A start. `input_data` is one argument; `args` is the argument list; neither: no argument."""

    workflow_type: Annotated[NonEmpty, Meta(examples=["send_invoice"])]
    task_queue: Annotated[NonEmpty, Meta(examples=["invoices"])] = "temporal-product-queue"
    input_data: Annotated[Argument, Meta(description="Any JSON.", examples=[{"invoice": 2041}])] = UNSET
    args: Arguments = UNSET
    workflow_id: Annotated[NonEmpty | None, Meta(examples=["invoice-2041"])] = None
    execution_timeout_seconds: Duration | None = 3600
    run_timeout_seconds: Duration | None = None
    task_timeout_seconds: Annotated[float, Meta(ge=0.001, le=120, description="Seconds.")] | None = None
    start_delay_seconds: Duration | None = None
    retry_policy: RetryPolicy | None = None
    id_reuse_policy: ReusePolicy | None = None
    id_conflict_policy: ConflictPolicy | None = None
    memo: dict[NonEmpty, Raw] = {}
    search_attributes: dict[NonEmpty, SearchAttribute] = {}
    signal: StartSignal | None = None
    update: StartUpdate | None = None

    def __post_init__(self) -> None:
        """What does not go together."""
        for key in self.memo:
            if key.startswith(OWN_MEMO):
                raise ValueError(f"memo: Expected keys of your own: {OWN_MEMO}* is this service's")
        if self.signal and self.update:
            raise ValueError("update: Expected a signal or an update, not both")
        message = self.signal or self.update
        if message and self.id_conflict_policy not in (None, "USE_EXISTING"):
            raise ValueError("id_conflict_policy: Expected USE_EXISTING or none: the message goes to the running one")
        if message and self.start_delay_seconds:
            raise ValueError("start_delay_seconds: Expected none with a signal or an update, which end the delay")


class WorkflowExecutionResponse(msgspec.Struct, omit_defaults=True):
    """The run: started now (201), or there before and attached to (200)."""

    workflow_id: Annotated[str, Meta(examples=["invoice-2041"])]
    run_id: Annotated[str, Meta(examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
    status: Annotated[str, Meta(description="Temporal's name of it, such as RUNNING.", examples=["RUNNING"])]
    result: Annotated[Raw, Meta(description="What it gave back: any JSON; null while it runs.", examples=[None])]
    failure: FailureInfo | None = None
    update: StartedUpdate | None = None


class WorkflowStartController(Controller):
    """Start workflows."""

    path = "/workflows"
    tags = ["workflows"]  # noqa: RUF012 - Litestar's way

    @post(
        scope=("workflows:write", "workflows:admin"),
        operation_id="startWorkflow",
        summary="Start a workflow",
        response_headers=[ResponseHeader("Location", description="Where it is.", documentation_only=True)],
        responses={
            200: ResponseSpec(WorkflowExecutionResponse, description="It ran already.", generate_examples=False),
            **responses(
                "workflow_start_error",
                "not_allowed",
                "workflow_already_exists",
                "reserved_id",
                "idempotency_key_reused",
                "update_rejected",
                "no_worker",
                "workflow_task_failing",
                body=True,
            ),
        },
    )
    async def start_workflow(
        self,
        request: Request[User, Any, Any],
        data: JSONBody[WorkflowExecutionRequest],
        state: State,
        user: CurrentUser,
        temporal: TemporalClient,
        idempotency_key: IdempotencyKey = None,
        prefer: Prefer = None,
    ) -> JSONResponse[WorkflowExecutionResponse]:
        """Start it and return at once, or with `Prefer: wait` when it has ended; `Location` is where to look."""
        key = check_key(idempotency_key)
        workflow_id = _workflow_id(user, data, key)
        _check_allowed(user, data, state.settings.allowed_workflow_types, state.settings.allowed_task_queues)
        request.scope["workflow_id"] = workflow_id  # type: ignore[typeddict-unknown-key] # for the access log
        seconds = preferred_wait(request, state.settings.max_wait_seconds)
        start = await temporal.start_request(
            data.workflow_type,
            workflow_id=workflow_id,
            task_queue=data.task_queue,
            args=arguments(("input_data", "args"), data.input_data, data.args),
            memo={**data.memo, idempotency.MEMO: fingerprint(key, data)} if key else data.memo,
            execution_timeout_seconds=data.execution_timeout_seconds,
        )
        _add_options(start, data)
        headers = {"Location": location(workflow_id)}
        update = end = None
        closed = False
        try:
            if data.signal is not None:
                names = ("signal.signal_input", "signal.signal_args")
                signal_args = arguments(names, data.signal.signal_input, data.signal.signal_args)
                run = await temporal.signal_with_start(start, data.signal.signal_name, signal_args)
            elif data.update is not None:
                run, update = await _update_with_start(request, temporal, start, data.update, seconds)
            else:
                run = await temporal.start(start)
        except Problem as problem:
            if key is None or problem.code != "workflow_already_exists":
                problem.details.setdefault("workflow_id", workflow_id)  # it may be started all the same
                raise
            run, closed = await _replayed(temporal, workflow_id, key, data)
            headers |= REPLAYED

        seconds = 0 if state.waits.full else seconds
        try:
            if closed:
                end = await state.endings.end(workflow_id, run.run_id)
            elif update is None:
                end = await state.waits.within(
                    request,
                    seconds,
                    lambda: state.endings.wait(workflow_id, run.run_id, follow=True),
                    already_done=True,
                )
        except Problem as problem:  # it is started all the same: here is its id
            problem.details = {"workflow_id": workflow_id, "run_id": run.run_id, **problem.details}
            problem.headers |= headers
            raise
        headers |= applied(seconds)
        if end is None:
            answer = WorkflowExecutionResponse(workflow_id, run.run_id, "RUNNING", Raw(b"null"), update=update)
            unfinished = "waits" in request.scope or (update and update.status == "ACCEPTED")
            headers |= {"Retry-After": RETRY_AFTER_SECONDS} if unfinished else {}
        else:
            answer = WorkflowExecutionResponse(workflow_id, end.run_id, end.status, end.result, end.failure)
        return JSONResponse(answer, status_code=201 if run.new else 200, headers=headers)


def _workflow_id(user: User, data: WorkflowExecutionRequest, key: str | None) -> str:
    if key:
        if data.workflow_id or data.id_reuse_policy or data.id_conflict_policy or data.signal or data.update:
            raise invalid(
                "Idempotency-Key", "Expected none with workflow_id, id policies, a signal or an update: it is an id too"
            )
        return derived_id("workflows", user, key)
    workflow_id = data.workflow_id or str(uuid.uuid4())
    for prefix in hidden_prefixes(user):
        if workflow_id.startswith(prefix):
            raise Problem("reserved_id", f"Ids that start with {prefix} are for a resource of its own; take another.")
    if workflow_id in (".", ".."):
        raise invalid("workflow_id", "Expected an id that a URL can carry: not . or ..")
    return workflow_id


def _check_allowed(user: User, data: WorkflowExecutionRequest, types: tuple[str, ...], queues: tuple[str, ...]) -> None:
    for what, value, allowed in (
        ("workflow type", data.workflow_type, types),
        ("task queue", data.task_queue, queues),
    ):
        if allowed and value not in allowed:
            raise Problem("not_allowed", f"This service may not start the {what} {value!r}.")
    if data.id_conflict_policy == "TERMINATE_EXISTING" and "workflows:admin" not in user.scopes:
        raise Problem("not_allowed", "TERMINATE_EXISTING terminates a workflow: that needs the scope workflows:admin.")


def _add_options(start: StartWorkflowExecutionRequest, data: WorkflowExecutionRequest) -> None:
    for duration, seconds in (
        (start.workflow_run_timeout, data.run_timeout_seconds),
        (start.workflow_task_timeout, data.task_timeout_seconds),
        (start.workflow_start_delay, data.start_delay_seconds),
    ):
        if seconds is not None:
            duration.FromNanoseconds(round(seconds * 1e9))
    if policy := data.retry_policy:
        start.retry_policy.initial_interval.FromNanoseconds(round(policy.initial_interval_seconds * 1e9))
        start.retry_policy.backoff_coefficient = policy.backoff_coefficient
        if policy.maximum_interval_seconds is not None:
            start.retry_policy.maximum_interval.FromNanoseconds(round(policy.maximum_interval_seconds * 1e9))
        start.retry_policy.maximum_attempts = policy.maximum_attempts
        start.retry_policy.non_retryable_error_types.extend(policy.non_retryable_error_types)
    for name, attribute in data.search_attributes.items():
        start.search_attributes.indexed_fields[name].CopyFrom(typed_payload(attribute.type, attribute.value))
    # An idempotency key's id is used once, for ever.
    reuse = "REJECT_DUPLICATE" if idempotency.MEMO in start.memo.fields else data.id_reuse_policy
    if reuse:
        start.workflow_id_reuse_policy = WorkflowIdReusePolicy.Value(f"WORKFLOW_ID_REUSE_POLICY_{reuse}")
    if data.update:  # Temporal wants it said
        start.workflow_id_conflict_policy = WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
    if data.id_conflict_policy:
        start.workflow_id_conflict_policy = WorkflowIdConflictPolicy.Value(
            f"WORKFLOW_ID_CONFLICT_POLICY_{data.id_conflict_policy}"
        )


async def _update_with_start(
    request: Request[User, Any, Any],
    temporal: TemporalClient,
    start: StartWorkflowExecutionRequest,
    asked: StartUpdate,
    seconds: float,
) -> tuple[Started, StartedUpdate]:
    """The run, and the update when it is done, at the latest after the wait (without `Prefer`, that of any call)."""
    args = arguments(("update.update_input", "update.update_args"), asked.update_input, asked.update_args)
    update_id = asked.update_id or str(uuid.uuid4())
    run, update = await updates.with_start(temporal, start, update_id, asked.update_name, args)
    if update.result is None:
        state = request.app.state
        wait, accepted = seconds if "waits" in request.scope else state.settings.rpc_timeout_seconds, update
        done = await state.waits.within(request, wait, lambda: updates.done(temporal, accepted), already_done=True)
        update = done or update
    if update.result is None:
        return run, StartedUpdate(update_id, "ACCEPTED", Raw(b"null"))
    return run, StartedUpdate(update_id, "COMPLETED", update.result)


async def _replayed(
    temporal: TemporalClient, workflow_id: str, key: str, data: WorkflowExecutionRequest
) -> tuple[Started, bool]:
    """The run that this key has started, and whether it is closed."""
    run = (await temporal.describe(workflow_id)).workflow_execution_info
    check_same(key, data, await temporal.memo(run.memo, idempotency.MEMO, str))
    return Started(run.execution.run_id, new=True), not is_open(run)
