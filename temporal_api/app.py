"""The table of contents: the resources, controllers, scopes and search attributes of the service, and `create_app`.

To add a resource, write one file like `controllers/orders.py` and name its controller in `RESOURCES` (README, "Add your
own resource"). Under `/api/v1` no handler runs without a verified token and a scope that the handler names.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from litestar import Controller, Litestar, Router
from litestar._kwargs import KwargsModel
from litestar.config.app import AppConfig
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import ControllerRouterHandler

from temporal_api import errors
from temporal_api.auth import USER, Authenticate, Verifier
from temporal_api.checks import HealthCheck
from temporal_api.controllers import pages
from temporal_api.controllers.codec import CodecController
from temporal_api.controllers.health import HealthController, live
from temporal_api.controllers.orders import OrderController
from temporal_api.controllers.workflows import WORKFLOWS
from temporal_api.cors import Cors
from temporal_api.errors import Problem
from temporal_api.logs import configure_logging
from temporal_api.memory import Memory, limits, return_memory_at_once, turn_off_caches
from temporal_api.metrics import Metrics, metrics_route
from temporal_api.mistakes import HEADERS, PARAMETERS, Parameter
from temporal_api.observe import Observe
from temporal_api.openapi import openapi_config
from temporal_api.owned import ResourceController
from temporal_api.prefix import Prefix
from temporal_api.problems import EXCEPTION_HANDLERS, DeclaredProblems, allow, declare_common
from temporal_api.requests import JSONRequest, JSONResponse, check_parameters
from temporal_api.sealing import PageTokens
from temporal_api.services import SERVICES, Services
from temporal_api.serving import check_metrics_port, drain_on_signal, measuring
from temporal_api.settings import Settings, from_env
from temporal_api.temporal.client import Temporal, connected
from temporal_api.tracing import spans_of
from temporal_api.waiting import Waits

if TYPE_CHECKING:
    from temporal_api.spans import Spans

RESOURCES: list[type[ResourceController]] = [
    OrderController,
]

CONTROLLERS: list[type[Controller] | Router] = [WORKFLOWS, CodecController]

SCOPES = [
    *(scope for each in RESOURCES for scope in each.resource.scopes),
    *("workflows:read", "workflows:write", "workflows:admin"),
]
"""The scopes of the tokens that `temporal-api dev` and `temporal-api token` make."""

SEARCH_ATTRIBUTES = [name for each in RESOURCES for name in each.resource.search_attributes]
"""The search attributes that `temporal-api setup` adds to a namespace."""


def create_app(
    settings: Settings | None = None, public_handlers: Sequence[ControllerRouterHandler] = pages.HANDLERS
) -> Litestar:
    """Make the ASGI application. Raises SettingsError, or TypeError for a wrong resource or a handler without scope.

    Without settings it reads them from the environment, configures the log and handles the process's signals, so that
    any ASGI server can call it: `uvicorn --factory temporal_api.app:create_app`, `litestar --app ... run --reload`.
    It then also raises what `check_metrics_port` raises.
    """
    own_signals = [drain_on_signal] if settings is None else []
    if settings is None:
        settings = from_env(os.environ)
        configure_logging(settings.log_level, settings.log_format)
        check_metrics_port(settings)
    resources = [controller.resource for controller in RESOURCES]
    nouns = [noun for each in resources for noun in {each.name, each.plural}]  # a set: both may be "sheep"
    if twice := {noun for noun in nouns if nouns.count(noun) > 1}:
        raise TypeError(f"two resources are called {' and '.join(sorted(twice))}")
    for each in CONTROLLERS:
        if isinstance(each, type) and issubclass(each, ResourceController):
            raise TypeError(f"{each.__name__} belongs in RESOURCES: elsewhere, its workflows would not be hidden")
    metrics = Metrics(without=frozenset({"task_queue"}))  # callers choose it: it has any number of values
    most_requests = "The most requests that may be under way, not counting waits and streams."
    metrics.limit("temporal_api_requests", most_requests, settings.max_requests)
    verifier = Verifier(settings)
    spans = spans_of(settings)
    # Pages need no token. They have a memory limit of their own, so that they cannot hold up the API.
    memory, pages_memory = Memory(settings.max_memory_bytes), Memory(settings.max_memory_bytes // 8)
    public = Router("/", route_handlers=public_handlers, middleware=[limits(settings.max_requests, pages_memory)])
    api = Router(
        "/api/v1",
        route_handlers=[*RESOURCES, *CONTROLLERS],
        before_request=check_parameters,
        middleware=[limits(settings.max_requests, memory), lambda app: Authenticate(app, verifier)],
        dependencies={"user": USER, "services": SERVICES},
        security=[{"bearer": []}],
    )
    app = _Litestar(
        [public, *([] if settings.metrics_port else [metrics_route(metrics)]), HealthController, live, api],
        lifespan=[partial(_connected, settings, metrics, verifier, memory, spans), *own_signals],
        request_class=JSONRequest,
        response_class=JSONResponse,
        request_max_body_size=settings.max_body_bytes,
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=openapi_config(resources, settings.root_path),
        state=State({"settings": settings, "metrics": metrics}),  # for the server
        logging_config=None,  # observe.py logs requests, problems.py logs defects
    )
    problems = {kind.code: kind for kind in errors.EVERY}
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            _list_all_methods(route)
            for handler, parameters in route.route_handler_map.values():
                _list_parameters(handler, parameters)
                if route.path.startswith(api.path) and handler.http_methods != {"OPTIONS"}:  # those are Litestar's own
                    _check(handler, parameters, route)
                    declare_common(handler)
                _add_problems(problems, handler)
    app.state.problems = list(problems.values())  # for `/problems`
    turn_off_caches(app)
    return_memory_at_once()
    app.asgi_handler = Observe(
        app.asgi_handler,
        metrics,
        lambda path: memory if path.startswith(api.path) else pages_memory,
        Cors(settings.allowed_origins),
        Prefix(settings.root_path, (route.path for route in app.routes)),
    )
    if spans is not None:
        app.asgi_handler = spans.of_requests(app.asgi_handler)
    return app


class _Litestar(Litestar):
    """A Litestar that does not look for its OpenTelemetry plugin, which would load OpenTelemetry if installed."""

    @staticmethod
    def _patch_opentelemetry_middleware(config: AppConfig) -> AppConfig:
        return config


@asynccontextmanager
async def _connected(
    settings: Settings, metrics: Metrics, verifier: Verifier, memory: Memory, spans: "Spans | None", app: Litestar
) -> AsyncIterator[None]:
    async with connected(settings, metrics.runtime(), memory, spans.temporal if spans else None) as temporal:
        services = app.state.services = _services(settings, temporal, verifier)
        metrics.check_health = services.health.check
        waits = services.waits
        metrics.watch("temporal_api_open_waits", "Open waits and streams.", lambda: waits.open, settings.max_open_waits)
        verifier.keys.start()
        try:
            async with measuring(settings, metrics):
                yield
        finally:
            verifier.keys.close()
            if spans is not None:
                await spans.close()
    # The SDK's runtime aborts the process when it is torn down right after a call.
    await asyncio.sleep(0.1)


def _services(settings: Settings, temporal: Temporal, verifier: Verifier) -> Services:
    resources = [controller.resource for controller in RESOURCES]
    queues = {f"{each.plural}_workers": each.settings(settings).task_queue for each in resources}
    return Services(
        settings=settings,
        temporal=temporal,
        waits=Waits(settings.max_open_waits, settings.max_open_waits_per_user),
        page_tokens=PageTokens(settings),
        health=HealthCheck(temporal, queues, verifier),
        hidden={each.id_prefix: each.admin_scope for each in resources},
    )


def _check(handler: HTTPRouteHandler, expected: KwargsModel, route: HTTPRoute) -> None:
    """Raise TypeError for a handler that nobody could call."""
    if not handler.opt.get("scope"):
        raise TypeError(f"{handler} needs a scope: such as @get(..., scope='orders:read')")
    needed = {each.field_alias for each in expected.expected_path_params if each.is_required}
    if unknown := needed.difference(route.path_parameters):
        raise TypeError(f"{handler} expects {', '.join(sorted(unknown))} in its path: {route.path}")


def _list_parameters(handler: HTTPRouteHandler, expected: KwargsModel) -> None:
    """Note a handler's and its dependencies' parameters and types: Litestar itself reports only the first mistake."""
    provided = [each.provide for batch in expected.dependency_batches for each in batch]
    models = [handler.signature_model, *(each.signature_model for each in provided)]
    types = {name: kind for model in models for name, kind in model.__annotations__.items()}
    for opt, found in ((PARAMETERS, expected.expected_query_params), (HEADERS, expected.expected_header_params)):
        handler.opt[opt] = {
            each.field_alias: Parameter(types[each.field_name], each.is_sequence)
            for each in sorted(found, key=lambda each: each.field_alias)
        }


def _add_problems(problems: dict[str, type[Problem]], handler: HTTPRouteHandler) -> None:
    """Add the errors that a handler declares with `responses`. Raises TypeError for two errors of one code."""
    for spec in (handler.responses or {}).values():
        for each in spec.problems if isinstance(spec, DeclaredProblems) else ():
            kind = each if isinstance(each, type) else type(each)
            if problems.setdefault(kind.code, kind) is not kind:
                raise TypeError(f"{kind.__name__}: another error has the code {kind.code!r}")


def _list_all_methods(route: HTTPRoute) -> None:
    """Answer OPTIONS. Where controllers share a path, Litestar 2 lists the first one's methods (its issue 4169)."""

    async def options(_: object) -> JSONResponse[None]:
        return JSONResponse(None, status_code=204, headers=allow(route.methods))

    route.route_handler_map["OPTIONS"][0].before_request = options
