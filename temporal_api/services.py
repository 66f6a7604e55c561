"""`Services`: what handlers use, in one typed struct that Litestar injects."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import SkipValidation

from temporal_api.auth import APIRequest, CurrentUser, User
from temporal_api.checks import HealthCheck
from temporal_api.requests import JSONResponse
from temporal_api.sealing import PageTokens
from temporal_api.settings import Settings
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.endings import Ending, Endings
from temporal_api.temporal.feeds import Feeds
from temporal_api.temporal.run import Run
from temporal_api.temporal.starts import Starts
from temporal_api.temporal.workers import Workers
from temporal_api.temporal.workflow import Workflow
from temporal_api.waiting import Waits, is_known, preference_applied, preferred_wait

T = TypeVar("T")


class Services(msgspec.Struct, frozen=True):
    """The parts of the running service, once for each process."""

    settings: Settings
    temporal: Temporal
    workers: Workers
    starts: Starts
    feeds: Feeds
    endings: Endings
    waits: Waits
    page_tokens: PageTokens
    health: HealthCheck
    hidden: Mapping[str, str]
    """The prefix of each resource's workflow ids, and the scope that may see them under /workflows."""

    def workflow(self, workflow_id: str, run_id: str = "") -> Workflow:
        """A handle of any workflow. It checks no permission: in `/workflows`, use `PathWorkflow` or `Target`."""
        return Workflow(self.temporal, self.workers, workflow_id, run_id)

    def hidden_from(self, user: User) -> tuple[str, ...]:
        """The prefixes of the ids that this user may not see under /workflows."""
        return tuple(prefix for prefix, scope in self.hidden.items() if scope not in user.scopes)

    async def answer_status(
        self,
        request: APIRequest,
        if_none_match: str | None,
        read: Callable[[], Awaitable[tuple[T, Run]]],
        tell: Callable[[T, Run, Ending | None], Awaitable[msgspec.Struct]],
    ) -> JSONResponse[Any]:
        """Answer with what `tell` makes of what `read` returns and of how the run ended.

        For the state that `If-None-Match` names, answer 304. With `Prefer: wait`, first wait until the state changes.
        """
        seconds = preferred_wait(request, self.settings.max_wait_seconds) if if_none_match else None
        found, run = await read()
        known = if_none_match and is_known(request, run)
        if seconds and known and run.is_open:
            workflow, length = self.workflow(run.workflow_id, run.run_id), run.history_length
            await self.waits.within(request, seconds, lambda: self.feeds.wait_for_change(workflow, length))
            # Read again even if the wait was cut off: an activity's next attempt changes the run, but adds no event.
            found, run = await read()
            known = is_known(request, run)
        # Weak: two answers with the same tag need not have the same bytes (RFC 9110 8.8.1).
        headers = {"ETag": f'W/"{run.version}"', **preference_applied(request, seconds)}
        if known:
            return JSONResponse(None, status_code=304, headers=headers)
        ending = None if run.is_open else await self.endings.read(self.workflow(run.workflow_id, run.run_id))
        return JSONResponse(await tell(found, run, ending), headers=headers)


STATUS_HEADERS = dict.fromkeys((200, 304), ("ETag", "Preference-Applied"))
NOT_MODIFIED = {304: ResponseSpec(None, description="Nothing has changed.", generate_examples=False)}
"""For the contract: the headers and the 304 of `answer_status`."""


def services_of(request: Request[Any, Any, Any]) -> Services:
    """The services, for public handlers, which have no user."""
    services: Services = request.app.state.services
    return services


def provide_services(request: APIRequest, user: CurrentUser) -> Services:
    """Takes the user, so that no handler reaches Temporal without a verified token."""
    return services_of(request)


CurrentServices = NamedDependency[SkipValidation[Services]]
SERVICES = Provide(provide_services, sync_to_thread=False)
