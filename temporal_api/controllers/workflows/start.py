"""Start workflows: with every option of Temporal's start, a signal or an update, an idempotency key, a wait."""

import time
import uuid
from datetime import timedelta
from typing import Annotated, Any, Literal

import msgspec
import temporalio.common
from litestar import post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from msgspec import UNSET, Meta, Raw, UnsetType

from temporal_api import errors, idempotency
from temporal_api.auth import APIRequest, User
from temporal_api.controllers.workflows.addressing import (
    ADMIN,
    WRITE,
    NonEmpty,
    Result,
    RunId,
    StatusName,
    Time,
    WorkflowId,
    check_lengths,
    excludes,
    location,
)
from temporal_api.controllers.workflows.messages import (
    Argument,
    Arguments,
    SignalRequest,
    UpdateId,
    UpdateRequest,
    arguments,
    check_arguments,
    check_in_path,
    time_left,
    until_done,
)
from temporal_api.errors import Problem, invalid
from temporal_api.idempotency import REPLAYED, IdempotencyKey, check_key, check_same, derived_id, fingerprint
from temporal_api.problems import responses
from temporal_api.record import record_of
from temporal_api.requests import JSONResponse
from temporal_api.services import CurrentServices, Services
from temporal_api.settings import Settings
from temporal_api.temporal import endings, starts, updates
from temporal_api.temporal.caller import TRACE_HEADER
from temporal_api.temporal.failures import FailureInfo
from temporal_api.temporal.payloads import OWN_MEMO, typed_payload
from temporal_api.temporal.run import DIVISION, TEMPORALS_OWN, Run
from temporal_api.temporal.starts import Priority, Started, VersioningOverride
from temporal_api.waiting import RETRY_AFTER_SECONDS, Prefer, preference_applied, preferred_wait

Duration = Annotated[float, Meta(ge=0.001, le=315_360_000, description="Seconds.")]
ReusePolicy = Literal["ALLOW_DUPLICATE", "ALLOW_DUPLICATE_FAILED_ONLY", "REJECT_DUPLICATE"]
ConflictPolicy = Literal["FAIL", "USE_EXISTING", "TERMINATE_EXISTING"]
_HEADERS = ("Location", "Preference-Applied", "Retry-After.open")
# The sample worker runs it, so the documentation's example works.
SAMPLE = "order_processing"
SAMPLE_ORDER = {
    "id": "2041",
    "customer_id": "cust_123",
    "items": [{"id": "item_1", "quantity": 2, "unit_price": 19.99}],
    "shipping_address": {"city": "Springfield"},
    "payment_method": "card",
    "payment_details": {},
}


class RetryPolicy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How a failed run is retried (Temporal's retry policy)."""

    initial_interval_seconds: Annotated[Duration, Meta(description="The interval before the second attempt.")] = 1
    backoff_coefficient: Annotated[
        float, Meta(ge=1, le=100, description="How many times longer each interval is than the previous one.")
    ] = 2
    maximum_interval_seconds: Annotated[
        Duration | None, Meta(description="The longest interval. Without it: 100 times the first.")
    ] = None
    maximum_attempts: Annotated[int, Meta(ge=0, le=1_000_000, description="0 means no limit.")] = 0
    non_retryable_error_types: Annotated[
        list[Annotated[str, Meta(max_length=1000)]],
        Meta(max_length=100, description="Types of failures that are not retried."),
    ] = []

    def for_temporal(self) -> temporalio.common.RetryPolicy:
        """As the SDK's type."""
        longest = self.maximum_interval_seconds
        return temporalio.common.RetryPolicy(
            initial_interval=timedelta(seconds=self.initial_interval_seconds),
            backoff_coefficient=self.backoff_coefficient,
            maximum_interval=None if longest is None else timedelta(seconds=longest),
            maximum_attempts=self.maximum_attempts,
            non_retryable_error_types=self.non_retryable_error_types,
        )


class SearchAttribute(msgspec.Struct, forbid_unknown_fields=True):
    """A search attribute, by which lists find the workflow.

    A text or keyword has at most 10,000 characters, a KeywordList at most 1000 keywords.
    """

    type: Annotated[
        Literal["Bool", "Datetime", "Double", "Int", "Keyword", "KeywordList", "Text"],
        Meta(description="The attribute's type in the namespace."),
    ]
    value: Annotated[Raw, Meta(description="A value of this type.")]

    def __post_init__(self) -> None:
        try:
            msgspec.json.decode(self.value, type=_SEARCH_TYPES[self.type])
        except msgspec.ValidationError as error:
            if " of length <= " in str(error):
                raise ValueError("value: Expected at most 10000 characters, and in a list 1000 keywords") from None
            raise ValueError(f"value: Expected a value of the type {self.type}") from None


_SearchText = Annotated[str, Meta(max_length=10_000)]
_SEARCH_TYPES: dict[str, Any] = {
    "Bool": bool,
    "Datetime": Time,
    "Double": float,
    "Int": int,
    "Keyword": _SearchText,
    "KeywordList": Annotated[list[_SearchText], Meta(max_length=1000)],
    "Text": _SearchText,
}


class StartSignal(SignalRequest, forbid_unknown_fields=True, kw_only=True):
    """A signal in the same call (signal-with-start). A workflow that runs already only gets the signal."""


class StartUpdate(UpdateRequest, forbid_unknown_fields=True, kw_only=True):
    """An update in the same call (update-with-start). A workflow that runs already only gets the update."""


class StartedUpdate(msgspec.Struct):
    """The update that was sent with the start: completed with its result, or accepted."""

    update_id: UpdateId
    status: Annotated[Literal["ACCEPTED", "COMPLETED"], Meta(description="The update's stage.")]
    result: Annotated[
        Raw, Meta(description="What it returned: any JSON. Null until it has completed.", examples=[None])
    ]


# The fingerprint of an idempotent start covers every field but those that are UNSET. So a field that is added later
# must default to UNSET: the fingerprints of earlier starts stay the same.
class WorkflowExecutionRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A start. Send one argument in `input_data`, several in `args`, or neither."""

    workflow_type: Annotated[
        NonEmpty, Meta(description="The workflow type: its name in the worker.", examples=[SAMPLE])
    ]
    task_queue: Annotated[NonEmpty, Meta(description="The task queue that the worker polls.")] = (
        "temporal-product-queue"
    )
    input_data: Annotated[Argument, Meta(description="The argument: any JSON.", examples=[SAMPLE_ORDER])] = UNSET
    args: Annotated[Arguments, Meta(extra_json_schema=excludes("input_data"))] = UNSET
    workflow_id: Annotated[NonEmpty | None, Meta(description="An id of your choice. Without it: a new id.")] = None
    execution_timeout_seconds: Annotated[
        Duration | None, Meta(description="How long all its runs together may take. Null: no limit.")
    ] = 3600
    run_timeout_seconds: Annotated[Duration | None, Meta(description="How long one run may take.")] = None
    task_timeout_seconds: Annotated[
        Annotated[float, Meta(ge=0.001, le=120)] | None,
        Meta(description="How long a worker may take for one workflow task. Without it: 10."),
    ] = None
    start_delay_seconds: Annotated[
        Duration | None,
        Meta(
            description="How long to delay its begin. Not with `signal` or `update`.",
            extra_json_schema=excludes("signal", "update"),
        ),
    ] = None
    retry_policy: Annotated[RetryPolicy | None, Meta(description="Without it a failed run is not retried.")] = None
    id_reuse_policy: Annotated[
        ReusePolicy | None, Meta(description="Whether a closed workflow's id may be used again. Without it: always.")
    ] = None
    id_conflict_policy: Annotated[
        ConflictPolicy | None,
        Meta(
            description="What to do when a running workflow has this id. Without it: `FAIL`. With `signal` or `update` "
            "it is always `USE_EXISTING`."
        ),
    ] = None
    memo: Annotated[dict[NonEmpty, Raw], Meta(max_length=100, description="The memo: names and any JSON.")] = {}
    search_attributes: Annotated[
        dict[NonEmpty, SearchAttribute],
        Meta(max_length=100, description="The search attributes, by which lists find it."),
    ] = {}
    priority: Annotated[Priority | UnsetType | None, Meta(description="The priority of its tasks.")] = UNSET
    summary: Annotated[
        Annotated[str, Meta(max_length=400)] | UnsetType,
        Meta(description="One line for people, shown by Temporal's UI.", examples=["Invoice 2041"]),
    ] = UNSET
    details: Annotated[
        Annotated[str, Meta(max_length=20_000)] | UnsetType, Meta(description="More lines for people, in Markdown.")
    ] = UNSET
    headers: Annotated[
        Annotated[dict[NonEmpty, Raw], Meta(max_length=100)] | UnsetType,
        Meta(description="Headers for the workers' interceptors: any JSON, never encrypted."),
    ] = UNSET
    versioning_override: Annotated[
        VersioningOverride | UnsetType | None, Meta(description="The worker version that runs it.")
    ] = UNSET
    signal: Annotated[StartSignal | None, Meta(description="A signal in the same call.")] = None
    update: Annotated[
        StartUpdate | None,
        Meta(description="An update in the same call. Not with `signal`.", extra_json_schema=excludes("signal")),
    ] = None

    def __post_init__(self) -> None:
        check_lengths(self, "workflow_type", "task_queue", "workflow_id")
        check_in_path(self, "workflow_id")
        check_arguments(self, "input_data", "args")
        for key in self.memo:
            if key.startswith(OWN_MEMO):
                raise ValueError(f"memo: Expected keys that do not begin with {OWN_MEMO}, which are the service's own")
        if self.headers and TRACE_HEADER in self.headers:
            raise ValueError(
                f"headers: Expected other names than {TRACE_HEADER}, which carries the request's traceparent"
            )
        if self.signal and self.update:
            raise ValueError("update: Expected a signal or an update, not both")
        message = self.signal or self.update
        if message and self.id_conflict_policy not in (None, "USE_EXISTING"):
            raise ValueError("id_conflict_policy: Expected USE_EXISTING or none, with a signal or an update")
        if message and self.start_delay_seconds:
            raise ValueError("start_delay_seconds: Expected none with a signal or an update, which end the delay")


class WorkflowExecutionResponse(msgspec.Struct, omit_defaults=True):
    """The run: a new one (201), or one that ran already (200)."""

    workflow_id: WorkflowId
    run_id: RunId
    status: StatusName
    result: Result
    failure: Annotated[FailureInfo | None, Meta(description="Why it failed.")] = None
    update: Annotated[StartedUpdate | None, Meta(description="The update that was sent with the start.")] = None


@post(
    "/workflows",
    scope=WRITE,
    summary="Start a workflow",
    headers={200: _HEADERS, 201: (*_HEADERS, "Idempotent-Replayed")},
    responses={
        200: ResponseSpec(WorkflowExecutionResponse, description="It ran already.", generate_examples=False),
        **responses(
            errors.WorkflowStartError,
            errors.NotAllowed,
            errors.WorkflowAlreadyExists,
            errors.ReservedId,
            errors.IdempotencyKeyReused,
            errors.WorkflowPaused,
            errors.UpdateRejected,
            errors.NotSupported,
            errors.NoWorker,
            errors.WorkflowTaskFailing,
        ),
    },
)
async def start_workflow(
    request: APIRequest,
    data: JSONBody[WorkflowExecutionRequest],
    services: CurrentServices,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> JSONResponse[WorkflowExecutionResponse]:
    """Start the workflow. The answer comes at once, or with `Prefer: wait` when the workflow has ended.

    An `Idempotency-Key` sets the id: send no `workflow_id`, id policy, `signal` or `update` with it.
    """
    key = check_key(request, idempotency_key)
    workflow_id = record_of(request.scope).workflow_id = _workflow_id(request.user, services, data, key)
    _check_allowed(request.user, data, workflow_id, services.settings)
    preferred = preferred_wait(request, services.settings.max_wait_seconds)
    headers = {"Location": location(workflow_id)}
    found: Run | None = None
    try:
        run, update = await _start(request, services, workflow_id, data, key, preferred)
    except errors.WorkflowAlreadyExists:
        if key is None:
            raise
        found = await services.workflow(workflow_id).describe()
        check_same(key, data, await services.temporal.memo(found.memo, idempotency.MEMO, str))
        run, update = Started(found.run_id, new=True), None
        headers |= REPLAYED
    ending = None
    started = services.workflow(workflow_id, run.run_id)
    try:
        if not run.new:  # it may be paused, or has closed meanwhile
            found = await started.describe()
        if found and not found.is_open:
            ending = await endings.read(started)
        elif update is None:
            ending = await services.waits.within(request, preferred, lambda: endings.wait(started, follow=True))
    except Problem as problem:  # the workflow was started all the same: tell its id
        raise problem.adding(headers=headers, workflow_id=workflow_id, run_id=run.run_id) from problem.__cause__
    headers |= preference_applied(request, preferred)
    if ending is None:
        if preferred is not None or (update and update.status == "ACCEPTED"):
            headers["Retry-After"] = RETRY_AFTER_SECONDS
        status = found.status if found else "RUNNING"
        answer = WorkflowExecutionResponse(workflow_id, run.run_id, status, Raw(b"null"), update=update)
    else:
        answer = WorkflowExecutionResponse(
            workflow_id, ending.run_id, ending.status, ending.result, ending.failure, update
        )
    return JSONResponse(answer, status_code=201 if run.new else 200, headers=headers)


def _workflow_id(user: User, services: Services, data: WorkflowExecutionRequest, key: str | None) -> str:
    if key:
        if data.workflow_id or data.id_reuse_policy or data.id_conflict_policy or data.signal or data.update:
            raise invalid(
                "Idempotency-Key",
                "Expected none with workflow_id, id policies, a signal or an update: the key sets the workflow id",
            )
        return derived_id("workflows", user, key)
    workflow_id = data.workflow_id or str(uuid.uuid4())
    for prefix in services.hidden_from(user):
        if workflow_id.startswith(prefix):
            raise errors.ReservedId(
                f"Ids that begin with {prefix} are reserved for a resource of the API. Choose another id."
            )
    return workflow_id


def _check_allowed(user: User, data: WorkflowExecutionRequest, workflow_id: str, settings: Settings) -> None:
    for what, value, allowed in (
        ("workflow id", workflow_id, ()),
        ("workflow type", data.workflow_type, settings.allowed_workflow_types),
        ("task queue", data.task_queue, settings.allowed_task_queues),
    ):
        if value.startswith(TEMPORALS_OWN) or (allowed and value not in allowed):
            raise errors.NotAllowed(f"This service may not start the {what} {value!r}.")
    if DIVISION in data.search_attributes:
        raise errors.NotAllowed(f"{DIVISION} is for Temporal's own workflows: it hides a workflow from every list.")
    if data.id_conflict_policy == "TERMINATE_EXISTING" and ADMIN not in user.scopes:
        raise errors.NotAllowed("TERMINATE_EXISTING terminates a workflow: that needs the scope workflows:admin.")


async def _start(
    request: APIRequest,
    services: Services,
    workflow_id: str,
    data: WorkflowExecutionRequest,
    key: str | None,
    preferred: float | None,
) -> tuple[Started, StartedUpdate | None]:
    """Start the workflow, with its signal or its update in the same call."""
    temporal = services.temporal
    start = await starts.request(
        temporal,
        data.workflow_type,
        workflow_id=workflow_id,
        task_queue=data.task_queue,
        args=arguments(data.input_data, data.args),
        memo={**data.memo, idempotency.MEMO: fingerprint(key, data)} if key else data.memo,
        execution_timeout_seconds=data.execution_timeout_seconds,
        run_timeout_seconds=data.run_timeout_seconds,
        task_timeout_seconds=data.task_timeout_seconds,
        start_delay_seconds=data.start_delay_seconds,
        retry_policy=data.retry_policy.for_temporal() if data.retry_policy else None,
        # The id of an idempotency key starts one run only. With an update, Temporal requires a conflict policy.
        id_reuse_policy="REJECT_DUPLICATE" if key else data.id_reuse_policy,
        id_conflict_policy="USE_EXISTING" if data.update else data.id_conflict_policy,
        search_attributes={
            name: typed_payload(attribute.type, attribute.value) for name, attribute in data.search_attributes.items()
        },
        priority=data.priority or None,
        summary=data.summary or "",
        details=data.details or "",
        headers=data.headers or {},
        versioning_override=data.versioning_override or None,
    )
    if data.signal is not None:
        args = arguments(data.signal.signal_input, data.signal.signal_args)
        return await starts.signal_with_start(temporal, start, data.signal.signal_name, args), None
    if data.update is None:
        return await starts.start(temporal, start), None

    workflow, update_id = services.workflow(workflow_id), data.update.update_id or str(uuid.uuid4())
    args = arguments(data.update.update_input, data.update.update_args)
    record_of(request.scope).waited = bool(preferred)  # sending waits for a worker too
    began = time.monotonic()
    run, update = await updates.send_with_start(workflow, start, update_id, data.update.update_name, args)
    update = await until_done(request, services, workflow, update, time_left(services, preferred, began))
    if update.result is None:
        return run, StartedUpdate(update_id, "ACCEPTED", Raw(b"null"))
    return run, StartedUpdate(update_id, "COMPLETED", update.result)
