"""Which workflows there are: listed in pages, and counted.

Both ask Temporal's index, which is eventually consistent.
"""

from typing import Annotated, Literal

import msgspec
from litestar import get
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter, SkipValidation
from msgspec import Meta, Raw

from temporal_api import errors
from temporal_api.auth import APIRequest
from temporal_api.controllers.workflows.addressing import READ
from temporal_api.controllers.workflows.status import RunFields
from temporal_api.errors import FieldError, invalid_fields
from temporal_api.problems import responses
from temporal_api.requests import JSONResponse
from temporal_api.sealing import NextPageToken, page_size, page_token
from temporal_api.services import CurrentServices
from temporal_api.temporal.payloads import raw_json
from temporal_api.temporal.run import Status
from temporal_api.temporal.visibility import compile_query, count_by_status, list_runs, parse_time

_EXACT = (
    "exactly. Temporal's index cannot search for a double quote, a backslash, a control character, or a single quote "
    "at either end: a text with one matches nothing."
)


def _text(description: str) -> QueryParameter:
    return QueryParameter(description=description, min_length=1, max_length=1000)


def _moment(description: str) -> QueryParameter:
    return QueryParameter(description=f"{description} RFC 3339, with a time zone.", format="date-time", max_length=100)


async def provide_query(
    request: APIRequest,
    services: CurrentServices,
    workflow_type: Annotated[str | None, _text(f"Workflows of this type, {_EXACT}")] = None,
    status: Annotated[
        list[Status] | None,
        QueryParameter(description="Workflows of this status. Repeat it for several.", max_items=50),
    ] = None,
    task_queue: Annotated[str | None, _text(f"Workflows on this task queue, {_EXACT}")] = None,
    workflow_id_prefix: Annotated[
        str | None,
        _text(f"Workflows whose id begins with this, {_EXACT} SQLite, the dev server's store, ignores case."),
    ] = None,
    started_from: Annotated[str | None, _moment("Started at this time or later.")] = None,
    started_to: Annotated[str | None, _moment("Started before this time.")] = None,
    closed_from: Annotated[str | None, _moment("Closed at this time or later. Leaves out running workflows.")] = None,
    closed_to: Annotated[str | None, _moment("Closed before this time. Leaves out running workflows.")] = None,
    search_attribute: Annotated[
        list[Annotated[str, Meta(max_length=1000)]] | None,
        QueryParameter(
            description=(
                "`Name=value`, such as `OrderStatus=delivered`, of the attribute's type in the namespace: a number, "
                "`true` or `false`, a time (to the millisecond), one keyword of a list, any word of a text. "
                "Repeat it: different names must all match, one name any of its values."
            ),
            max_items=50,
            schema_extra={"items": {"type": "string", "maxLength": 1000, "pattern": "^[^=]+="}},
        ),
    ] = None,
    where: Annotated[
        str | None,
        QueryParameter(
            name="query",
            description=(
                "A condition in Temporal's visibility query language, such as `ExecutionDuration > '1h'`. The other "
                "filters apply too. It may find any workflow, so the token also needs the admin scope of every "
                "resource, such as `orders:admin`."
            ),
            max_length=4_000,  # a request line has 8 KiB, and a query in it is percent-encoded
        ),
    ] = None,
) -> str:
    """The visibility query of the filters that list and count share. It leaves out what the user may not see.

    Raises ValidationError, InvalidQuery or InsufficientScope.
    """
    sent = {"started_from": started_from, "started_to": started_to, "closed_from": closed_from, "closed_to": closed_to}
    times, mistakes = {}, []
    for key, text in sent.items():
        try:
            if text is not None:
                times[key] = parse_time(key, text)
        except errors.ValidationError as error:
            mistakes += error.details["errors"]
    for begin, end in (("started_from", "started_to"), ("closed_from", "closed_to")):
        if begin in times and end in times and times[end] <= times[begin]:
            mistakes.append(FieldError(end, f"Expected a time after {begin}"))
    if mistakes:
        raise invalid_fields(mistakes)
    hidden = services.hidden_from(request.user)
    if where is not None and hidden:
        scopes = [services.hidden[prefix] for prefix in hidden]
        message = f"A query of your own may find any workflow: the token needs the scope {' and '.join(scopes)}."
        raise errors.InsufficientScope(message, " ".join(scopes))
    return await compile_query(
        services.temporal,
        without_prefixes=hidden,
        workflow_type=workflow_type,
        status=status,
        task_queue=task_queue,
        workflow_id_prefix=workflow_id_prefix,
        search_attribute=search_attribute,
        query=where,
        **times,
    )


_QUERY = {"visibility_query": Provide(provide_query)}
VisibilityQuery = NamedDependency[SkipValidation[str]]


class WorkflowSummary(RunFields, kw_only=True):
    """A run in Temporal's index. Fields of closed runs are null while it runs."""

    search_attributes: Annotated[
        dict[str, Raw], Meta(description="Its search attributes in the index.", examples=[{"CustomerId": "cust_123"}])
    ]
    history_length: Annotated[int | None, Meta(description="The number of events in its history.", examples=[None])]


_Consistency = Annotated[
    Literal["eventual"],
    Meta(
        description="Recent changes may be missing for a moment. A single workflow's status is always up to date.",
        examples=["eventual"],
    ),
]


class WorkflowListResponse(msgspec.Struct):
    """A page of runs. The last page may be empty."""

    items: Annotated[list[WorkflowSummary], Meta(description="The runs of this page.")]
    next_page_token: NextPageToken
    consistency: _Consistency


@get(
    "/workflows",
    scope=READ,
    summary="List workflows",
    responses=responses(errors.InvalidQuery, errors.InvalidPageToken, errors.UriTooLong),
    dependencies=_QUERY,
)
async def list_workflows(
    services: CurrentServices,
    visibility_query: VisibilityQuery,
    page_size: Annotated[int, page_size("runs")] = 100,
    page_token: Annotated[str, page_token("; send the same filters with it")] = "",
) -> JSONResponse[WorkflowListResponse]:
    """Running workflows first, newest first; then closed ones, last closed first.

    Eventually consistent: a recent start or end may not show yet. The workflows of a resource are left out unless the
    token has its admin scope, such as `orders:admin`.
    """
    bound = ("workflows", visibility_query)
    token = services.page_tokens.unseal(page_token, *bound)
    runs, next_token = await list_runs(services.temporal, visibility_query, page_size, token)
    items = [
        WorkflowSummary.of(
            run,
            search_attributes={name: raw_json(payload) for name, payload in sorted(run.search_attributes.items())},
            history_length=run.history_length if run.close_time else None,
        )
        for run in runs
    ]
    return JSONResponse(WorkflowListResponse(items, services.page_tokens.seal(next_token, *bound), "eventual"))


class WorkflowCountResponse(msgspec.Struct):
    """The number of runs, in all and by status. A status without runs is left out."""

    count: Annotated[int, Meta(description="The number of all runs.", examples=[3])]
    groups: Annotated[
        dict[str, int], Meta(description="The number of runs by status.", examples=[{"RUNNING": 2, "COMPLETED": 1}])
    ]
    consistency: _Consistency


@get(
    "/workflow-count",
    scope=READ,
    summary="Count workflows by status",
    responses=responses(errors.InvalidQuery, errors.UriTooLong),
    dependencies=_QUERY,
)
async def count_workflows(
    services: CurrentServices, visibility_query: VisibilityQuery
) -> JSONResponse[WorkflowCountResponse]:
    """How many workflows match the filters.

    Eventually consistent: a recent start or end may not be counted yet. The workflows of a resource are left out unless
    the token has its admin scope, such as `orders:admin`.
    """
    groups = await count_by_status(services.temporal, visibility_query)
    return JSONResponse(WorkflowCountResponse(sum(groups.values()), groups, "eventual"))
