"""Which workflows there are: listed in pages, and counted.

Both ask Temporal's index, which is eventually consistent. A parameter that is not known here is refused: a filter that
is ignored gives the wrong workflows.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter, SkipValidation
from msgspec import Meta, Raw

from temporal_api.auth import APIRequest, User
from temporal_api.errors import FieldError, InsufficientScope, InvalidPageToken, InvalidQuery, ValidationError, invalid
from temporal_api.problems import responses
from temporal_api.requests import JSONResponse
from temporal_api.services import CurrentServices, Services
from temporal_api.temporal.payloads import raw_json
from temporal_api.temporal.run import Run
from temporal_api.temporal.visibility import Filters, Status, compile_query, count_by_status, list_runs, parse_time

_Time = Annotated[datetime, Meta(tz=True)]
_Consistency = Annotated[
    Literal["eventual"],
    Meta(
        description="What just happened may be missing for a moment; a single workflow's status is always right.",
        examples=["eventual"],
    ),
]
_Attributes = Annotated[
    dict[str, Raw], Meta(description="Values as the index has them.", examples=[{"CustomerId": "cust_123"}])
]


class WorkflowSummary(msgspec.Struct):
    """A run as the index has it. `close_time` and the fields after it are null while it runs."""

    workflow_id: Annotated[str, Meta(examples=["invoice-2041"])]
    run_id: Annotated[str, Meta(examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
    workflow_type: Annotated[str, Meta(examples=["send_invoice"])]
    task_queue: Annotated[str, Meta(examples=["invoices"])]
    status: Annotated[str, Meta(description="Temporal's name of it.", examples=["RUNNING"])]
    parent_workflow_id: Annotated[str | None, Meta(description="Whose child it is.", examples=[None])]
    search_attributes: _Attributes
    start_time: Annotated[_Time, Meta(examples=["2026-01-31T12:00:00.123456Z"])]
    close_time: Annotated[_Time | None, Meta(examples=[None])]
    execution_time_seconds: Annotated[float | None, Meta(examples=[None])]
    history_length: Annotated[int | None, Meta(examples=[None])]


class WorkflowListResponse(msgspec.Struct):
    """A page of runs; `next_page_token` is null on the last one, which may be empty."""

    items: list[WorkflowSummary]
    next_page_token: Annotated[str | None, Meta(examples=[None])]
    consistency: _Consistency


class WorkflowCountResponse(msgspec.Struct):
    """How many runs, and how many of each status; one that no run has is left out."""

    count: Annotated[int, Meta(examples=[3])]
    groups: Annotated[dict[str, int], Meta(examples=[{"RUNNING": 2, "COMPLETED": 1}])]
    consistency: _Consistency


# --- filters ---

_EXACT = (
    "exactly. Temporal's index cannot look for a text with a double quote, a backslash or a control character in it, "
    "or a single quote at an end: such a one matches nothing."
)
_QUERY_LENGTH = 10_000


def _text(description: str) -> QueryParameter:
    return QueryParameter(description=description, min_length=1, max_length=1000)


def _moment(description: str) -> QueryParameter:
    return QueryParameter(description=f"{description} RFC 3339, with its zone.", format="date-time")


def provide_filters(
    workflow_type: Annotated[str | None, _text(f"Of this type, {_EXACT}")] = None,
    status: Annotated[
        list[Status] | None, QueryParameter(description="Of this status; repeated: of any of them.", max_items=50)
    ] = None,
    task_queue: Annotated[str | None, _text(f"On this task queue, {_EXACT}")] = None,
    workflow_id_prefix: Annotated[
        str | None, _text(f"Whose id starts so, {_EXACT} On SQLite, the dev server's store, case is ignored.")
    ] = None,
    started_from: Annotated[str | None, _moment("Started at that time or later.")] = None,
    started_to: Annotated[str | None, _moment("Started before that time.")] = None,
    closed_from: Annotated[str | None, _moment("Closed at that time or later; what runs is left out.")] = None,
    closed_to: Annotated[str | None, _moment("Closed before that time; what runs is left out.")] = None,
    search_attribute: Annotated[
        list[str] | None,
        QueryParameter(
            description=(
                "`Name=value`, such as `OrderStatus=delivered`, with the type that the namespace has for it: a number, "
                "`true` or `false`, a time (to the millisecond), one keyword of a list, any word of a text. "
                "Repeated: all of them; with the same name: any of those."
            ),
            max_items=50,
        ),
    ] = None,
    where: Annotated[
        str | None,
        QueryParameter(
            name="query",
            description=(
                "A condition in Temporal's visibility query language, such as `ExecutionDuration > '1h'`; "
                "the other filters hold beside it. No ORDER BY, no GROUP BY, no comments."
            ),
            schema_extra={"maxLength": _QUERY_LENGTH},
        ),
    ] = None,
) -> Filters:
    """The filters that the list and the count share."""
    if where is not None and len(where) > _QUERY_LENGTH:  # Litestar itself would blame `where`
        raise invalid("query", f"Expected at most {_QUERY_LENGTH} characters")
    filters = Filters(
        workflow_type=workflow_type,
        status=status or (),
        task_queue=task_queue,
        workflow_id_prefix=workflow_id_prefix,
        started_from=_time("started_from", started_from),
        started_to=_time("started_to", started_to),
        closed_from=_time("closed_from", closed_from),
        closed_to=_time("closed_to", closed_to),
        search_attribute=search_attribute or (),
        query=where,
    )
    for begin, end in (("started_from", "started_to"), ("closed_from", "closed_to")):
        first, last = getattr(filters, begin), getattr(filters, end)
        if first and last and last <= first:
            raise invalid(end, f"Expected a time after {begin}")
    return filters


def _time(key: str, text: str | None) -> datetime | None:
    return None if text is None else parse_time(key, text)


_FILTERS = frozenset(Filters.__struct_fields__)
_REPEATABLE = ("status", "search_attribute")
_PAGING = ("page_size", "page_token")


def _check_parameters(request: APIRequest, known: Iterable[str]) -> None:
    sent = [name for name, _ in request.query_params.multi_items()]
    if unknown := sorted(set(sent).difference(known))[:10]:
        message = f"There is no such parameter; there are {', '.join(sorted(known))}"
        errors = [FieldError(name, message) for name in unknown]
        raise ValidationError(f"{', '.join(unknown)}: {message}", errors=errors)
    for name in set(sent).difference(_REPEATABLE):
        if sent.count(name) > 1:
            raise invalid(name, "Expected it once")


async def _compile(services: Services, user: User, filters: Filters) -> str:
    hidden = services.hidden_from(user)
    if filters.query is not None and hidden:
        scopes = sorted(services.hidden[prefix] for prefix in hidden)
        message = f"A query of your own may find any workflow: the token needs the scope {' and '.join(scopes)}."
        raise InsufficientScope(message, " ".join(scopes))
    return await compile_query(services.temporal, filters, without_prefixes=hidden)


def _summary(run: Run) -> WorkflowSummary:
    return WorkflowSummary(
        workflow_id=run.workflow_id,
        run_id=run.run_id,
        workflow_type=run.workflow_type,
        task_queue=run.task_queue,
        status=run.status,
        parent_workflow_id=run.parent_workflow_id,
        search_attributes={name: raw_json(payload) for name, payload in sorted(run.search_attributes.items())},
        start_time=run.start_time,
        close_time=run.close_time,
        execution_time_seconds=run.execution_time_seconds,
        history_length=run.history_length if run.close_time else None,
    )


class WorkflowListController(Controller):
    """Find workflows."""

    tags = ["workflows"]  # noqa: RUF012 - Litestar's way
    dependencies = {"filters": Provide(provide_filters, sync_to_thread=False)}  # noqa: RUF012 - likewise

    @get(
        "/workflows",
        scope=("workflows:read", "workflows:admin"),
        operation_id="listWorkflows",
        summary="List workflows",
        responses=responses(InvalidQuery, InvalidPageToken),
    )
    async def list_workflows(
        self,
        request: APIRequest,
        services: CurrentServices,
        filters: NamedDependency[SkipValidation[Filters]],
        page_size: Annotated[int, QueryParameter(ge=1, le=1000, description="Runs a page, at most.")] = 100,
        page_token: Annotated[
            str, QueryParameter(description="`next_page_token` of the page before; send the same filters with it.")
        ] = "",
    ) -> JSONResponse[WorkflowListResponse]:
        """Running ones first, newest first, then closed ones, last closed first.

        Eventually consistent: a workflow that was started, or has ended, just now may be missing or be shown as it was.
        Without the scope `orders:admin` the workflows of orders are left out.
        """
        _check_parameters(request, {*_FILTERS, *_PAGING})
        query = await _compile(services, request.user, filters)
        bound = ("workflows", query)
        token = services.page_tokens.unseal(page_token, *bound)
        runs, next_token = await list_runs(services.temporal, query, page_size, token)
        items = [_summary(run) for run in runs]
        return JSONResponse(WorkflowListResponse(items, services.page_tokens.seal(next_token, *bound), "eventual"))

    @get(
        "/workflow-count",
        scope=("workflows:read", "workflows:admin"),
        operation_id="countWorkflows",
        summary="Count workflows by status",
        responses=responses(InvalidQuery),
    )
    async def count_workflows(
        self,
        request: APIRequest,
        services: CurrentServices,
        filters: NamedDependency[SkipValidation[Filters]],
    ) -> JSONResponse[WorkflowCountResponse]:
        """How many workflows meet the filters.

        Eventually consistent: what started or ended just now may be counted as it was. Without the scope
        `orders:admin` the workflows of orders are not counted.
        """
        _check_parameters(request, _FILTERS)
        groups = await count_by_status(services.temporal, await _compile(services, request.user, filters))
        return JSONResponse(WorkflowCountResponse(sum(groups.values()), groups, "eventual"))
