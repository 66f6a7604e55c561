"""The workflow that a request names, and what the handlers of `/workflows` share: scopes, paths, body fields."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

from litestar.di import NamedDependency, Provide
from litestar.params import PathParameter, QueryParameter, SkipValidation
from msgspec import Meta, Raw, Struct

from temporal_api.auth import APIRequest
from temporal_api.errors import PreconditionFailed, WorkflowCompleted, WorkflowNotFound, shown
from temporal_api.mistakes import RUN_ID
from temporal_api.preconditions import IfMatch, check_match
from temporal_api.problems import responses
from temporal_api.record import record_of
from temporal_api.requests import JSONResponse
from temporal_api.services import CurrentServices
from temporal_api.temporal.run import Status
from temporal_api.temporal.workflow import MAX_ID_BYTES, Workflow, is_too_long
from temporal_api.waiting import RETRY_AFTER_SECONDS

ADMIN = "workflows:admin"
READ = ("workflows:read", ADMIN)
WRITE = ("workflows:write", ADMIN)
CHANGES = responses(WorkflowNotFound, PreconditionFailed, WorkflowCompleted)
"""The errors of an operation that changes a workflow."""

# Fields of bodies, with the examples that the documentation shows.
NonEmpty = Annotated[str, Meta(min_length=1, max_length=1000)]
"""An id or a name. Temporal counts its bytes: `check_lengths` does too."""
WorkflowId = Annotated[str, Meta(description="The workflow's id.", examples=["invoice-2041"])]
RunId = Annotated[str, Meta(description="The run's id.", examples=["019ab3c4-7d1e-7f3a-8b55-0c2d4e6f8a10"])]
StatusName = Annotated[Status, Meta(description="The run's status, as Temporal names it.", examples=["RUNNING"])]
Result = Annotated[Raw, Meta(description="What the workflow returned: any JSON. Null while it runs.", examples=[None])]
Time = Annotated[datetime, Meta(tz=True)]


def in_path(what: str) -> PathParameter:
    """A path parameter that is an id."""
    return PathParameter(description=f"The {what}'s id. In the URL it is percent-encoded: a slash is %2F.")


def location(workflow_id: str, *below: str) -> str:
    """The path of a workflow, or of something below it: absolute, percent-encoded."""
    return "/".join(("/api/v1/workflows", *(quote(part, safe="") for part in (workflow_id, *below))))


ASK_AGAIN = {200: ("Preference-Applied",), 202: ("Location", "Preference-Applied", "Retry-After")}
"""The headers of an operation that answers `ask_again`."""


def ask_again(
    pending: Any, headers: Mapping[str, str], run_id: str, workflow_id: str, *below: str
) -> JSONResponse[Any]:
    """Answer 202: there is no result yet. `Location` is where to ask again."""
    where = location(workflow_id, *below) + (f"?run_id={run_id}" if run_id else "")
    headers = {**headers, "Location": where, "Retry-After": RETRY_AFTER_SECONDS}
    return JSONResponse(pending, status_code=202, headers=headers)


def excludes(*others: str) -> dict[str, Any]:
    """For the contract: no body has this field and one of the others (`openapi.py` writes it as `not`)."""
    return {"excludes": others}


def check_lengths(body: Struct, *fields: str) -> None:
    """Raises ValueError, as a struct's `__post_init__` does, for an id or a name that is longer than Temporal takes."""
    for field in fields:
        if is_too_long(getattr(body, field, None) or ""):  # absent fields too: `mistakes.py` passes only valid ones
            raise ValueError(f"{field}: Expected at most {MAX_ID_BYTES} bytes of UTF-8")


def provide_workflow(
    request: APIRequest,
    services: CurrentServices,
    workflow_id: Annotated[str, in_path("workflow")],
    run_id: Annotated[str, QueryParameter(description="Pins one run. Without it: the latest.", pattern=RUN_ID)] = "",
) -> Workflow:
    """The workflow that the path names. Raises WorkflowNotFound for one that the caller may not see."""
    record_of(request.scope).workflow_id = workflow_id
    if workflow_id.startswith(services.hidden_from(request.user)):
        raise WorkflowNotFound(f"There is no workflow {shown(workflow_id)!r}.", workflow_id=workflow_id)
    # Temporal finds a run in any case, but answers queries and updates only in lower case.
    return services.workflow(workflow_id, run_id.lower())


PathWorkflow = NamedDependency[SkipValidation[Workflow]]


async def provide_target(request: APIRequest, workflow: PathWorkflow, if_match: IfMatch = None) -> Workflow:
    """The workflow that the request changes. Raises PreconditionFailed when `If-Match` names another state.

    With `If-Match` it is pinned to the run that was compared.
    """
    if if_match is None:
        return workflow
    run = await workflow.describe()
    check_match(request, run)
    return workflow.run(run.run_id)


WORKFLOW = Provide(provide_workflow, sync_to_thread=False)
Target = NamedDependency[SkipValidation[Workflow]]
TARGET = Provide(provide_target)
