"""`Services`: what handlers use, in one typed struct that Litestar injects."""

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation

from temporal_api.auth import APIRequest, CurrentUser, User
from temporal_api.checks import HealthCheck
from temporal_api.sealing import PageTokens
from temporal_api.settings import Settings
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.workflow import Workflow
from temporal_api.waiting import Waits


class Services(msgspec.Struct, frozen=True):
    """The parts of the running service, once for each process."""

    settings: Settings
    temporal: Temporal
    waits: Waits
    page_tokens: PageTokens
    health: HealthCheck
    hidden: Mapping[str, str]
    """The prefix of each resource's workflow ids, and the scope that may see them under /workflows."""

    def workflow(self, workflow_id: str, run_id: str = "") -> Workflow:
        """A handle of any workflow. It checks no permission: in `/workflows`, use `PathWorkflow` or `Target`."""
        return Workflow(self.temporal, workflow_id, run_id)

    def hidden_from(self, user: User) -> tuple[str, ...]:
        """The prefixes of the ids that this user may not see under /workflows."""
        return tuple(prefix for prefix, scope in self.hidden.items() if scope not in user.scopes)


def services_of(request: Request[Any, Any, Any]) -> Services:
    """The services, for public handlers, which have no user."""
    services: Services = request.app.state.services
    return services


def provide_services(request: APIRequest, user: CurrentUser) -> Services:
    """Takes the user, so that no handler reaches Temporal without a verified token."""
    return services_of(request)


CurrentServices = NamedDependency[SkipValidation[Services]]
SERVICES = Provide(provide_services, sync_to_thread=False)
