"""The operations that every resource has, written once."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

import msgspec
from litestar import Controller, get, post
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec import Raw

from temporal_api import errors
from temporal_api.auth import APIRequest, CurrentUser
from temporal_api.errors import invalid
from temporal_api.owned.resource import EXAMPLE_ID, STATUS_MEMO, Resource, StatusMemo
from temporal_api.preconditions import NOT_MODIFIED, STATUS_HEADERS, IfMatch, IfNoneMatch, answer_status, check_match
from temporal_api.problems import responses
from temporal_api.requests import JSONResponse
from temporal_api.sealing import page_size, page_token
from temporal_api.services import CurrentServices
from temporal_api.temporal import feeds
from temporal_api.temporal.endings import Ending
from temporal_api.temporal.events import CLOSING, written_memo
from temporal_api.temporal.history import retry_while_away
from temporal_api.temporal.run import Run
from temporal_api.temporal.workflow import Workflow
from temporal_api.waiting import EventStream, LastEventId, Prefer, end_id, resume, sse

# Types in the shared handlers that differ from one resource to the next: `_types` gives each controller its own.
ResourceId = TypeVar("ResourceId", bound=str)
StatusFilter = TypeVar("StatusFilter", bound=str | None)
OwnerFilter = TypeVar("OwnerFilter", bound=str | None)
CancelRequest = TypeVar("CancelRequest")
StatusResponse = TypeVar("StatusResponse")
ListResponse = TypeVar("ListResponse")
StreamedEvent = TypeVar("StreamedEvent")


class ResourceController(Controller):
    """The operations that every resource has: get, list, events, cancel. A subclass adds the one that creates it."""

    resource: ClassVar[Resource[Any, Any]]

    def __init_subclass__(cls, *, resource: Resource[Any, Any]) -> None:
        """Give the shared handlers this resource's paths, scopes, names, types and descriptions."""
        cls.resource, cls.path, cls.tags = resource, resource.path, [resource.plural]
        title, one, a_name = resource.title, f"/{{{resource.name}_id:str}}", resource.a_name
        read, write = (resource.read_scope, resource.admin_scope), (resource.write_scope, resource.admin_scope)
        cls.signature_namespace = _types(resource)
        missing = resource.NotFound(f"There is no {resource.words} '{EXAMPLE_ID}'.")
        too_late = resource.not_cancellable(resource.id_prefix + EXAMPLE_ID, resource.completed)
        _check_create(cls)
        cls.get_one = get(  # type: ignore[assignment]
            one,
            scope=read,
            operation_id=f"get{title}",
            summary=f"{a_name.capitalize()} as it is now",
            headers=STATUS_HEADERS,
            responses={**NOT_MODIFIED, **responses(missing)},
        )(cls.get_one)
        cls.list_all = get(  # type: ignore[assignment]
            scope=read,
            operation_id=f"list{resource.plural_title}",
            summary=f"The caller's {resource.plural_words}",
            responses=responses(errors.InvalidPageToken, errors.UriTooLong, errors.SearchAttributesMissing),
        )(cls.list_all)
        cls.stream = get(  # type: ignore[assignment]
            f"{one}/events",
            scope=read,
            operation_id=f"stream{title}Events",
            summary=f"{a_name.capitalize()}'s status, live",
            media_type="text/event-stream",
            responses=responses(missing, errors.TooManyWaits, errors.ShuttingDown),
        )(cls.stream)
        cls.cancel = post(  # type: ignore[assignment]
            f"{one}/cancel",
            scope=write,
            status_code=204,
            operation_id=f"cancel{title}",
            summary=f"Cancel {a_name}",
            responses=responses(missing, too_late, errors.PreconditionFailed),
        )(cls.cancel)

    async def get_one(
        self,
        request: APIRequest,
        resource_id: ResourceId,
        services: CurrentServices,
        if_none_match: IfNoneMatch = None,
        prefer: Prefer = None,
    ) -> JSONResponse[StatusResponse]:
        """The status is the last one that the workflow wrote. It stays correct after the workflow has ended.

        With `If-None-Match`, the answer is 304 while nothing has changed. With `Prefer: wait` too, it comes as soon as
        something changes.
        """
        resource = self.resource

        async def body(answer: Any, run: Run, ending: Ending | None) -> Any:
            return resource.status_response(
                workflow_id=run.workflow_id,
                run_id=run.run_id,
                status=run.status,
                result=ending.result if ending else Raw(b"null"),
                history_length=run.history_length,
                execution_time_seconds=run.execution_time_seconds,
                **{resource.name: answer},
            )

        return await answer_status(
            services, request, if_none_match, lambda: resource.read(request, services, resource_id), body
        )

    async def list_all(
        self,
        services: CurrentServices,
        user: CurrentUser,
        status: StatusFilter = None,  # type: ignore[assignment]
        owner: OwnerFilter = None,  # type: ignore[assignment]
        page_size: Annotated[int, page_size("items")] = 100,
        page_token: Annotated[str, page_token()] = "",
    ) -> JSONResponse[ListResponse]:
        """First those whose workflow runs, newest first; then the others, last closed first. Eventually consistent.

        Callers with the admin scope get everyone's.
        """
        resource = self.resource
        whose = owner if resource.admin_scope in user.scopes else user.sub
        query = resource.query(whose, status)
        token = services.page_tokens.unseal(page_token, resource.plural, query)
        try:
            items, next_token = await resource.page(services.temporal, whose, status, page_size, token)
        except errors.InvalidQuery:
            raise errors.SearchAttributesMissing from None
        content = resource.list_response(items, services.page_tokens.seal(next_token, resource.plural, query))
        return JSONResponse(content)

    async def stream(
        self, request: APIRequest, resource_id: ResourceId, services: CurrentServices, last_event_id: LastEventId = None
    ) -> EventStream[StreamedEvent]:
        """Server-sent events: a `status` event for each status, from the first one on, then `done`."""
        run_id, seen = resume(last_event_id)
        _, run = await self.resource.read(request, services, resource_id)
        workflow = services.workflow(run.workflow_id)
        run = await _watched_run(workflow, run, run_id, seen)
        events = _status_events(self.resource, workflow, run, seen)
        is_over = seen > run.history_length and not _goes_on(run)
        return EventStream(services.waits, None if is_over else events)

    async def cancel(
        self,
        request: APIRequest,
        resource_id: ResourceId,
        services: CurrentServices,
        data: JSONBody[CancelRequest | None] = None,
        if_match: IfMatch = None,
    ) -> None:
        """Ask the workflow to stop, and to undo what it did. When it is too late, the answer is 409."""
        resource = self.resource
        answer, run = await resource.read(request, services, resource_id)
        workflow = services.workflow(run.workflow_id)
        if if_match is not None:
            check_match(request, run)
        if answer.status not in resource.too_late:
            try:
                return await workflow.run(run.run_id).signal("cancel", [data or resource.cancel_request()])
            except errors.WorkflowCompleted:  # it closed just now: read its last status
                answer, _ = await resource.read(request, services, resource_id)
        raise resource.not_cancellable(workflow.id, answer.status)


def _check_create(cls: type[ResourceController]) -> None:
    """Raise TypeError unless one handler creates the resource, from a body without unknown fields and without an id."""
    resource = cls.resource
    found = [each for each in vars(cls).values() if getattr(each, "operation_id", "") == f"create{resource.title}"]
    if len(found) != 1:
        raise TypeError(f"{cls.__name__} needs one handler marked with its resource's `create()`; it has {len(found)}")
    body = get_type_hints(found[0].fn).get("data", object)
    if not (issubclass(body, msgspec.Struct) and body.__struct_config__.forbid_unknown_fields):
        raise TypeError(f"{cls.__name__} needs `data: JSONBody[...]` of a struct with forbid_unknown_fields=True")
    if "id" in body.__struct_fields__:
        raise TypeError(f"{body.__name__} cannot have `id`: the workflow's argument has the new id there")


def _types(resource: Resource[Any, Any]) -> dict[Any, Any]:
    """One resource's types and descriptions, by the placeholders of the shared handlers."""
    status = resource.status_type | None
    of_one = f"Only those of the caller with this `sub`. Ignored without the scope `{resource.admin_scope}`."
    return {
        ResourceId: Annotated[
            str, PathParameter(name=f"{resource.name}_id", description=f"The {resource.words}'s `id`.")
        ],
        StatusFilter: Annotated[status, QueryParameter(description="Only those with this status.")],
        OwnerFilter: Annotated[str | None, QueryParameter(description=of_one, max_length=1000)],
        CancelRequest: resource.cancel_request,
        StatusResponse: resource.status_response,
        ListResponse: resource.list_response,
        StreamedEvent: resource.event,
    }


async def _watched_run(workflow: Workflow, run: Run, run_id: str, seen: int) -> Run:
    """The run of the caller's last event, which may be older than the latest one. Raises ValidationError."""
    forged = invalid("Last-Event-ID", "Expected the id of an event of this stream")
    if run_id not in ("", run.run_id):
        try:
            run = await workflow.run(run_id).describe()
        except (errors.ValidationError, errors.NotFound):
            raise forged from None
    if seen > run.history_length + (not run.is_open):  # `done` has the number after the last event's
        raise forged
    return run


def _goes_on(run: Run) -> bool:
    """Whether another run follows: an operator has reset this one, or it continued as new."""
    return bool(run.reset_run_id) or run.status == "CONTINUED_AS_NEW"


async def _status_events(
    resource: Resource[Any, Any], workflow: Workflow, run: Run, seen: int
) -> AsyncGenerator[bytes, None]:
    """Each status that the workflow has written into its memo, as its history shows, then `done`.

    It follows a reset and continue-as-new into the next run.
    """
    temporal, run_id = workflow.temporal, run.run_id
    length, history_bytes = run.history_length, run.history_bytes
    while True:
        del run  # its memo may be large, and the stream long
        closing = ""
        async for events in feeds.events(workflow.run(run_id), seen, length, history_bytes):
            for event in events:
                event_id = f"{run_id}:{event.event_id}"
                now = await temporal.memo(written_memo(event), STATUS_MEMO, StatusMemo)
                if now is not None:
                    yield sse(now, event="status", event_id=event_id)
            closing = event_id if event.event_type in CLOSING else ""
            del events, event  # the next may come in hours
        run = await retry_while_away(workflow.run(run_id).describe)
        if not _goes_on(run):
            break
        run_id, seen, length, history_bytes = run.reset_run_id, 0, 0, 0
        if run.status == "CONTINUED_AS_NEW":
            run_id = (await retry_while_away(workflow.describe)).run_id
    status, is_written = await resource.status(temporal, run)
    if closing and not is_written:
        yield sse(status, event="status", event_id=closing)
    yield sse({"workflow_id": workflow.id}, event="done", event_id=end_id(run_id, run.history_length))
