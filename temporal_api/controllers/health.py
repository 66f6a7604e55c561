"""Health: `GET /health` for people, `/health/ready` and `/health/live` for probes. Public."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from msgspec import Meta

from temporal_api import __version__
from temporal_api.requests import JSONResponse
from temporal_api.services import services_of

_SILENT = "unhealthy: no answer in time"


class HealthStatus(msgspec.Struct):
    """The health of this service and of what it needs."""

    status: Annotated[Literal["healthy", "unhealthy"], Meta(description="`healthy` with 200, `unhealthy` with 503.")]
    timestamp: Annotated[
        datetime, Meta(tz=True, description="When it was checked.", examples=["2026-01-31T12:00:00.123456Z"])
    ]
    services: Annotated[
        dict[str, str],
        Meta(
            description="The state of each part.",
            examples=[{"temporal": "healthy", "orders_workers": "polling", "auth": "healthy"}],
        ),
    ]
    version: Annotated[str, Meta(description="This service's version.", examples=["1.0.0"])]


class ReadyStatus(msgspec.Struct, omit_defaults=True):
    """Whether this process takes requests."""

    status: Annotated[
        Literal["ready", "not_ready"], Meta(description="`ready` with 200, `not_ready` with 503.", examples=["ready"])
    ]
    reason: Annotated[str | None, Meta(description="Why it is not ready.")] = None


class LiveStatus(msgspec.Struct):
    """The process answers."""

    status: Annotated[Literal["alive"], Meta(description="Always `alive`.")]


_NEEDED = ("temporal", "auth")


def _unavailable(answer: msgspec.Struct) -> dict[int, ResponseSpec]:
    """For OpenAPI: what a probe answers with 503."""
    return {
        503: ResponseSpec(
            type(answer),
            description="Temporal does not answer, the namespace does not exist, or keys to verify tokens are missing.",
            generate_examples=False,
            examples=[Example(id="unavailable", value=msgspec.to_builtins(answer))],
        )
    }


_THEN = datetime(2026, 1, 31, 12, tzinfo=UTC)


class HealthController(Controller):
    """Health of the service and of what it needs."""

    path = "/health"
    tags = ["health"]  # noqa: RUF012 - Litestar's way
    security: Any = []  # noqa: RUF012

    @get(
        summary="Health in detail",
        responses=_unavailable(HealthStatus("unhealthy", _THEN, {"temporal": _SILENT, "auth": "healthy"}, __version__)),
    )
    async def get_health(self, request: Request[Any, Any, Any]) -> JSONResponse[HealthStatus]:
        """Ask whether Temporal answers, and whether a worker polls each resource's task queue (`orders_workers`).

        `auth` says whether the keys that verify tokens have been fetched.
        """
        found = await services_of(request).health.check()
        healthy = all(found[name] == "healthy" for name in _NEEDED)
        status = HealthStatus("healthy" if healthy else "unhealthy", datetime.now(UTC), found, __version__)
        return JSONResponse(status, status_code=200 if healthy else 503)

    @get("/ready", summary="Readiness probe", responses=_unavailable(ReadyStatus("not_ready", f"temporal {_SILENT}")))
    async def get_ready(self, request: Request[Any, Any, Any]) -> JSONResponse[ReadyStatus]:
        """200 when Temporal answers, the namespace exists, the keys that verify tokens have been fetched, and the
        process is not shutting down.
        """
        if services_of(request).waits.draining.is_set():
            return JSONResponse(ReadyStatus("not_ready", "shutting down"), status_code=503)
        services = await services_of(request).health.check()
        for name in _NEEDED:
            if services[name] != "healthy":
                return JSONResponse(ReadyStatus("not_ready", f"{name} {services[name]}"), status_code=503)
        return JSONResponse(ReadyStatus("ready"))


_ALIVE = LiveStatus("alive")


@get("/health/live", operation_id="getLive", summary="Liveness probe", tags=["health"], security=[])
async def live() -> LiveStatus:
    """200 whenever the process answers. It does not depend on Temporal."""
    return _ALIVE
