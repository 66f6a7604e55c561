"""`Resource`: what a resource declares, and how the service places, reads and lists its workflows."""

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from litestar import post
from litestar.handlers import HTTPRouteHandler
from msgspec import UNSET, Meta, Raw, UnsetType

from temporal_api import errors, idempotency
from temporal_api.auth import APIRequest
from temporal_api.errors import Problem, shown
from temporal_api.idempotency import REPLAYED, check_key, check_same, derived_id, fingerprint
from temporal_api.problems import responses
from temporal_api.record import record_of
from temporal_api.requests import JSONResponse
from temporal_api.sealing import NextPageToken
from temporal_api.services import Services
from temporal_api.settings import ResourceSettings, Settings
from temporal_api.temporal import starts
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.run import Run, Status
from temporal_api.temporal.visibility import compare, index_value, latest_runs, list_runs

STATUS_MEMO = "temporal_api.status"
EMPTY_PAGES = 10
EXAMPLE_ID = "0b9f3c1e-5d3c-4c56-9d0a-1f2f6b8f7a55"

Kept = TypeVar("Kept", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)

log = logging.getLogger(__name__)

_NOUN = re.compile(r"[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*")
# Names whose scopes, paths, memo keys or fields this service has itself.
_TAKEN = {"workflow", "workflows", "codec", "status", "idempotency", "result"}
_TAKEN |= {"workflow_id", "run_id", "history_length", "execution_time_seconds"}


class StatusMemo(msgspec.Struct):
    """Memo `temporal_api.status`."""

    status: str
    reason: str | None = None


@dataclass(eq=False)
class Resource(Generic[Kept, Answer]):
    """A business resource, declared once; everything else follows from it.

    `name` is a singular noun ("order", "gift_card"); give `plural` and `article` if they are irregular. `kept` is the
    data that never changes, kept in the workflow's memo. `answer` is what callers see: the fields of `kept`, and `id`,
    `status`, `created_at`, `workflow_id` and `reason`. Its `status` is a Literal that begins with the status of a new
    one.

    `completed`, `cancelled` and `other_ends` are the end statuses. A run that completes without writing one of them
    gets `completed`; a run that fails, times out or is terminated gets `cancelled`. `too_late_to_cancel` names the
    statuses in which a running workflow can no longer be cancelled.

    The workflow gets one argument: the request's fields and the new `id`. It writes its status into the memo
    `temporal_api.status` as `{"status": ..., "reason": ...}`, and into the search attribute, such as `OrderStatus`, if
    the run was started with it. The signal `cancel` with `{"reason": ...}` asks it to stop. Its task queue is the
    setting `ORDERS_TASK_QUEUE` (named after the plural), else `task_queue`, else the plural.

    Raises TypeError for a wrong declaration.
    """

    name: str
    _: KW_ONLY
    description: str
    workflow_type: str
    kept: type[Kept]
    answer: type[Answer]
    completed: str
    cancelled: str = "cancelled"
    other_ends: Sequence[str] = ()
    too_late_to_cancel: Sequence[str] = ()
    task_queue: str = ""
    plural: str = ""
    article: str = ""

    def __post_init__(self) -> None:
        name, answer = self.name, self.answer.__name__
        self.plural = self.plural or _plural(name)
        for noun in (name, self.plural):
            if not _NOUN.fullmatch(noun):
                raise TypeError(f"a resource cannot be called {noun!r}: expected lower case, such as gift_card")
            if noun in _TAKEN:
                raise TypeError(f"a resource cannot be called {noun!r}: the API uses that name itself")
        self.words, self.plural_words = name.replace("_", " "), self.plural.replace("_", " ")
        self.title, self.plural_title = (words.title().replace(" ", "") for words in (self.words, self.plural_words))
        self.a_name = f"{self.article or ('an' if name[0] in 'aeiou' else 'a')} {self.words}"
        self.status_type = self._checked_status_type()
        self.statuses: tuple[str, ...] = get_args(self.status_type)
        self.ends = {self.completed, self.cancelled, *self.other_ends}
        self.too_late = {*self.too_late_to_cancel, *self.ends}
        if unknown := self.too_late.difference(self.statuses):
            raise TypeError(
                f"{answer}.status has no {', '.join(sorted(unknown))}: add it to the Literal, or change "
                "`completed`, `cancelled` (by default 'cancelled'), `other_ends` or `too_late_to_cancel`"
            )
        if self.statuses[0] in self.ends:
            raise TypeError(
                f"{answer}.status begins with {self.statuses[0]}, an end status: put a new one's status first"
            )

        self.path = f"/{self.plural.replace('_', '-')}"
        self.id_prefix = f"{name}-"
        self.scopes = [f"{self.plural}:{may}" for may in ("read", "write", "admin")]
        self.read_scope, self.write_scope, self.admin_scope = self.scopes
        self.memo_key = f"temporal_api.{name}"
        self.owner_attribute, self.status_attribute = f"{self.title}Owner", f"{self.title}Status"
        self.search_attributes = (self.owner_attribute, self.status_attribute)
        no_such = f"There is no such {self.words}, or it is not yours. Check its id."
        too_late = f"The {self.words} can no longer be cancelled. Read `details.status`, which says why."
        self.NotFound = _problem(errors.NotFound, f"{name}_not_found", no_such)
        self.NotCancellable = _problem(errors.Conflict, f"{name}_not_cancellable", too_late)
        # The owner and the time come from us, never from the handler.
        self.memo_type: Any = msgspec.defstruct(
            f"{self.title}Memo", [("owner", str), ("created_at", datetime)], bases=(self.kept,), kw_only=True
        )
        self.cancel_request, self.status_response, self.list_response, self.event = _structs(self)

    def _checked_status_type(self) -> Any:
        """The Literal of the statuses. Raises TypeError unless the answer has just the fields that `_answer` fills."""
        kept, found = get_type_hints(self.kept), get_type_hints(self.answer)
        ours: dict[str, Any] = {"id": str, "workflow_id": str, "created_at": datetime, "reason": str | None}
        if own := kept.keys() & {*ours, "status", "owner"}:
            raise TypeError(f"{self.kept.__name__} cannot have {', '.join(sorted(own))}: the service adds it")
        needed = {**ours, **kept, "status": found.get("status", "a Literal")}
        for name in sorted({*found, *needed}):
            if found.get(name) != needed.get(name):
                expected, has = (
                    kind.__name__ if isinstance(kind, type) else kind
                    for kind in (needed.get(name, "nothing"), found.get(name, "nothing"))
                )
                raise TypeError(
                    f"{self.answer.__name__}.{name}: expected {expected}, found {has}. An answer has the fields of "
                    f"{self.kept.__name__}, and id, status, created_at, workflow_id and reason"
                )
        if get_origin(needed["status"]) is not Literal:
            raise TypeError(f"{self.answer.__name__}.status: expected a Literal of its statuses")
        return needed["status"]

    def create(
        self, verb: str = "Place"
    ) -> Callable[[Callable[..., Awaitable[JSONResponse[Answer]]]], HTTPRouteHandler]:
        """Mark the handler that creates one and returns `place(...)`. `verb` begins its summary: "Place an order"."""
        return post(
            scope=(self.write_scope, self.admin_scope),
            operation_id=f"create{self.title}",
            summary=f"{verb} {self.a_name}",
            headers={201: ("Location", "Idempotent-Replayed")},
            responses=responses(errors.WorkflowStartError, errors.IdempotencyKeyReused),
        )

    def not_cancellable(self, workflow_id: str, status: str) -> Problem:
        """The 409 for a cancel in this status."""
        message = f"The {self.words} can no longer be cancelled: it is {status}."
        return self.NotCancellable(message, workflow_id=workflow_id, status=status)

    def settings(self, settings: Settings) -> ResourceSettings:
        """Its settings from the environment, with the declaration's task queue as default."""
        return settings.resource(self.plural, self.task_queue)

    async def place(
        self, request: APIRequest, services: Services, data: msgspec.Struct, kept: Kept, idempotency_key: str | None
    ) -> JSONResponse[Answer]:
        """Start the workflow with `data` and the new `id` as its argument. A repeated key starts nothing new."""
        user, key = request.user, check_key(request, idempotency_key)
        new_id = derived_id(self.plural, user, key) if key else str(uuid.uuid4())
        workflow_id = record_of(request.scope).workflow_id = self.id_prefix + new_id
        own = self.settings(services.settings)
        memo = self.memo_type(owner=user.sub, created_at=datetime.now(UTC), **msgspec.structs.asdict(kept))
        status = StatusMemo(self.statuses[0])
        memos = {self.memo_key: memo, STATUS_MEMO: status}
        start = await starts.request(
            services.temporal,
            self.workflow_type,
            workflow_id=workflow_id,
            task_queue=own.task_queue,
            args=[{"id": new_id, **msgspec.structs.asdict(data)}],
            memo={**memos, idempotency.MEMO: fingerprint(key, data)} if key else memos,
            execution_timeout_seconds=own.execution_timeout_seconds,
            id_reuse_policy="REJECT_DUPLICATE",
        )
        headers = {"Location": f"/api/v1{self.path}/{new_id}"}
        attributes = {self.owner_attribute: index_value(user.sub), self.status_attribute: status.status}
        try:
            await starts.start(services.temporal, start, attributes)
        except errors.WorkflowAlreadyExists:
            if key is None:
                raise
            placed, run = await self.read(request, services, new_id)
            check_same(key, data, await services.temporal.memo(run.memo, idempotency.MEMO, str))
            return JSONResponse(placed, headers=headers | REPLAYED)
        return JSONResponse(self._answer(workflow_id, memo, status), headers=headers)

    async def read(self, request: APIRequest, services: Services, resource_id: str) -> tuple[Answer, Run]:
        """The resource and its run, if the caller may see it; else raise its NotFound."""
        user = request.user
        workflow_id = record_of(request.scope).workflow_id = self.id_prefix + resource_id
        # No resource has an id that Temporal refuses.
        with suppress(errors.ValidationError, errors.NotFound):
            run = await services.workflow(workflow_id).describe()
            match await self.from_run(services.temporal, run):
                case (answer, owner) if owner == user.sub or self.admin_scope in user.scopes:
                    return answer, run
        raise self.NotFound(f"There is no {self.words} {shown(resource_id)!r}.")

    async def from_run(self, temporal: Temporal, run: Run) -> tuple[Answer, str] | None:
        """The answer and its owner, from the run's memo; None if the run is not one of this resource."""
        memo = await temporal.memo(run.memo, self.memo_key, self.memo_type)
        if memo is None:
            return None
        status, _ = await self.status(temporal, run)
        return self._answer(run.workflow_id, memo, status), memo.owner

    def _answer(self, workflow_id: str, memo: Any, status: StatusMemo) -> Answer:
        return self.answer(
            id=workflow_id.removeprefix(self.id_prefix),
            workflow_id=workflow_id,
            created_at=memo.created_at,
            status=status.status,
            reason=status.reason,
            **{name: getattr(memo, name) for name in self.kept.__struct_fields__},
        )

    async def status(self, temporal: Temporal, run: Run) -> tuple[StatusMemo, bool]:
        """The status, and whether the workflow wrote it. If not, it follows from how the run ended."""
        written = await temporal.memo(run.memo, STATUS_MEMO, StatusMemo) or StatusMemo(self.statuses[0])
        if run.is_open or written.status in self.ends:
            return written, True
        ended = StatusMemo(self.completed) if run.status == "COMPLETED" else StatusMemo(self.cancelled, run.status)
        return ended, False

    def query(self, owner: str | None, status: str | None) -> str:
        """The visibility query for those of an owner (None: of everyone) with a status (None: any)."""
        # The id's prefix and the type are checked too: operators may write any search attribute, but cannot start a
        # workflow with a reserved id. Of runs that continued as new, only the last one is the resource.
        anyone = f"{self.owner_attribute} IS NOT NULL"
        of_owner = anyone if owner is None else compare(self.owner_attribute, index_value(owner))
        terms = [compare("WorkflowId", self.id_prefix, "STARTS_WITH"), compare("WorkflowType", self.workflow_type)]
        terms += ["ExecutionStatus != 'ContinuedAsNew'", of_owner]
        return " AND ".join(terms if status is None else [*terms, self._status_query(status)])

    def _status_query(self, status: str) -> str:
        # A run that closed before its workflow wrote an end has the status that `status` gives it: its search attribute
        # is out of date.
        written = f"{self.status_attribute} = '{status}'"
        if status not in self.ends:
            return f"{written} AND CloseTime IS NULL"
        closed = ["Completed"] if status == self.completed else []
        closed += ["Failed", "Canceled", "Terminated", "TimedOut"] if status == self.cancelled else []
        if not closed:
            return written
        # Not IN: some Temporal servers do not take a list of one.
        outcomes = " OR ".join(f"ExecutionStatus = '{outcome}'" for outcome in closed)
        no_other_end = (f" AND {self.status_attribute} != '{end}'" for end in sorted(self.ends - {status}))
        return f"({written} OR (({outcomes}){''.join(no_other_end)}))"

    async def page(
        self, temporal: Temporal, owner: str | None, status: str | None, size: int, token: bytes
    ) -> tuple[list[Answer], bytes]:
        """A page of what `query` finds, and Temporal's token of the next. Raises InvalidQuery.

        A page is empty only if it is the last one, or if ten of Temporal's pages held nothing of the owner's.
        """
        found: list[Answer] = []
        for _ in range(EMPTY_PAGES):
            is_first = not (token or status)
            runs, token = await list_runs(temporal, self.query(owner, status), size, token)
            # Lists show only the latest run of a workflow: a reset begins another. On the first page of an unfiltered
            # list the latest comes first; on any other page it may be missing.
            latest = {run.workflow_id: run.run_id for run in reversed(runs)}
            if not is_first:
                latest |= await latest_runs(temporal, (run.workflow_id for run in runs if not run.is_open))
            for run in runs:
                if latest[run.workflow_id] == run.run_id:
                    try:
                        match await self.from_run(temporal, run):
                            case (answer, owned_by) if owner in (None, owned_by):
                                found.append(answer)
                    except errors.PayloadUndecodable as problem:  # it must not hide all the others
                        log.warning("left %s out of a list: %s", run.workflow_id, problem.message)
            if found or not token:
                break
        return found, token


def _plural(noun: str) -> str:
    if re.search("(s|x|z|ch|sh)$", noun):
        return f"{noun}es"
    return re.sub("(?<![aeiou])y$", "ie", noun) + "s"


def _problem(kind: type[Problem], code: str, meaning: str) -> type[Problem]:
    return type(code, (kind,), {"code": code, "__doc__": meaning})


_EVENT = "The data of an event: `status` and `reason` in a `status` event, `workflow_id` in a `done` event."


def _described(kind: Any, description: str, *examples: object, **bounds: Any) -> Any:
    return Annotated[kind, Meta(description=description, examples=list(examples) or None, **bounds)]


def _structs(resource: Resource[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """The request and answers that differ between resources only in names."""
    words, plural_words, title = resource.words, resource.plural_words, resource.title
    cancel = msgspec.defstruct(
        f"Cancel{title}Request",
        [("reason", _described(str, "The reason.", "ordered twice", min_length=1, max_length=500), "customer_request")],
        namespace={"__doc__": f"Why {resource.a_name} is cancelled."},
        forbid_unknown_fields=True,
    )
    status = msgspec.defstruct(
        f"{title}StatusResponse",
        [
            ("workflow_id", _described(str, "The workflow's id.", resource.id_prefix + EXAMPLE_ID)),
            ("run_id", _described(str, "The run's id.", "019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10")),
            ("status", _described(Status, "The run's status, as Temporal names it.", "RUNNING")),
            ("result", _described(Raw, "What the workflow returned: any JSON. Null while it runs.", None)),
            ("history_length", _described(int, "The number of events in its history.", 11)),
            ("execution_time_seconds", _described(float | None, "How long the run took. Null while it runs.", None)),
            (resource.name, _described(resource.answer, f"The {words}.")),
        ],
        namespace={"__doc__": f"{resource.a_name.capitalize()} and its run."},
    )
    items = _described(list[resource.answer], f"The {plural_words} of this page.")  # type: ignore[name-defined]
    page = msgspec.defstruct(
        f"{title}ListResponse",
        [("items", items), ("next_page_token", NextPageToken)],
        namespace={"__doc__": f"A page of {plural_words}, eventually consistent."},
    )
    now = _described(resource.status_type | UnsetType, f"The {words}'s status.", resource.statuses[0])
    event = msgspec.defstruct(
        f"{title}Event",
        [
            ("status", now, UNSET),
            ("reason", _described(str | UnsetType | None, "Why it was cancelled.", None), UNSET),
            ("workflow_id", _described(str | UnsetType, "The workflow's id."), UNSET),
        ],
        namespace={"__doc__": _EVENT},
        omit_defaults=True,
    )
    return cancel, status, page, event
