"""Which workflow a request means, and the arguments it sends along: what all workflow controllers share."""

from typing import Annotated
from urllib.parse import quote

from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import PathParameter, QueryParameter, SkipValidation
from msgspec import Meta, Raw, UnsetType

from temporal_api.auth import CurrentUser, User
from temporal_api.errors import Problem, invalid
from temporal_api.temporal.workflow import Workflow

RESERVED: dict[str, str] = {}
"""What the ids of a resource's workflows begin with, and the scope that sees them under /workflows too."""

NonEmpty = Annotated[str, Meta(min_length=1, max_length=1000)]
PathId = Annotated[
    str, PathParameter(description="The workflow's id. In the URL it is percent-encoded: a slash is %2F.")
]
RunId = Annotated[
    str,
    QueryParameter(
        name="run_id",
        description="Pins one run; without it, the latest.",
        pattern="^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$",
    ),
]
Argument = Raw | UnsetType
Arguments = list[Raw] | UnsetType


def location(workflow_id: str, *below: str) -> str:
    """The path of a workflow, or of something below it: absolute, percent-encoded."""
    return "/".join(("/api/v1/workflows", *(quote(part, safe="") for part in (workflow_id, *below))))


def arguments(names: tuple[str, str], one: Argument, many: Arguments) -> list[Raw]:
    """One argument, an argument list, or none; both at once are refused."""
    if not isinstance(one, UnsetType) and not isinstance(many, UnsetType):
        raise invalid(names[1], f"Send {names[0]} or {names[1]}, not both")
    if not isinstance(many, UnsetType):
        return many
    return [] if isinstance(one, UnsetType) else [one]


def hidden_prefixes(user: User) -> tuple[str, ...]:
    """What a resource's workflows begin with is not for everyone who may read workflows."""
    return tuple(prefix for prefix, scope in RESERVED.items() if scope not in user.scopes)


def provide_workflow(user: CurrentUser, state: State, workflow_id: PathId, run_id: RunId = "") -> Workflow:
    """The workflow that the path names; for who may not see it, it does not exist."""
    if workflow_id.startswith(hidden_prefixes(user)):
        raise Problem("workflow_not_found", f"There is no workflow {workflow_id!r}.", workflow_id=workflow_id)
    return Workflow(state.temporal, workflow_id, run_id)


NamedWorkflow = NamedDependency[SkipValidation[Workflow]]
WORKFLOW = Provide(provide_workflow, sync_to_thread=False)
