"""The table of contents.

To add a resource: copy `controllers/orders.py` and `order_runs.py` to `refunds.py` and `refund_runs.py`, add its
controller to `RESOURCES`, and copy its test file (README, "Add your own resource"). Everything in `RESOURCES` is served
under `/api/v1`, where no handler runs without a verified token and a scope that the handler names.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.middleware import DefineMiddleware
from litestar.routes import HTTPRoute

from temporal_api import __version__, temporal
from temporal_api.auth import USER, Authenticate, Verifier
from temporal_api.controllers import docs
from temporal_api.controllers.codec import CodecController
from temporal_api.controllers.health import HealthCheck, HealthController
from temporal_api.controllers.order_list import OrderListController
from temporal_api.controllers.orders import OrderController
from temporal_api.controllers.workflows.history import WorkflowHistoryController
from temporal_api.controllers.workflows.lifecycle import WorkflowControlController
from temporal_api.controllers.workflows.listing import WorkflowListController
from temporal_api.controllers.workflows.messages import WorkflowController
from temporal_api.controllers.workflows.start import WorkflowStartController
from temporal_api.errors import EXCEPTION_HANDLERS, allow
from temporal_api.observe import Metrics, Observe
from temporal_api.requests import JSONRequest, JSONResponse
from temporal_api.sealing import PageTokens
from temporal_api.settings import Settings
from temporal_api.temporal.endings import Endings
from temporal_api.temporal.history import Feeds
from temporal_api.waiting import Waits

RESOURCES = [
    OrderController,
    OrderListController,
    WorkflowStartController,
    WorkflowListController,
    WorkflowController,
    WorkflowHistoryController,
    WorkflowControlController,
    CodecController,
]

EXPOSED_HEADERS = ["Location", "ETag", "Retry-After", "X-Request-ID", "Idempotent-Replayed", "Preference-Applied"]


def create_app(settings: Settings) -> Litestar:
    """The service, ready to be served. Raises SettingsError when a key in the settings is unfit."""
    metrics = Metrics(__version__)
    verifier = Verifier(settings)
    api = Router(
        "/api/v1",
        route_handlers=RESOURCES,
        middleware=[DefineMiddleware(Authenticate, verifier=verifier)],
        dependencies={"user": USER, "temporal": temporal.TEMPORAL},
        security=[{"bearer": []}],
    )
    app = Litestar(
        [*docs.HANDLERS, HealthController, api],
        lifespan=[_connected(settings, metrics, verifier)],
        request_class=JSONRequest,
        response_class=JSONResponse,
        request_max_body_size=settings.max_body_bytes,
        exception_handlers=EXCEPTION_HANDLERS,
        cors_config=_cors(settings),
        openapi_config=docs.OPENAPI,
        logging_config=None,  # observe.py logs requests, errors.py logs defects
        state=State({"settings": settings, "metrics": metrics, "page_tokens": PageTokens(settings)}),
    )
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            _list_all_methods(route)
    app.asgi_handler = Observe(app.asgi_handler, metrics)
    return app


def _connected(
    settings: Settings, metrics: Metrics, verifier: Verifier
) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        client = await temporal.connect(settings, metrics.runtime())
        app.state.temporal = temporal.Temporal(client, settings.rpc_timeout_seconds)
        app.state.waits = Waits(settings.max_open_waits)
        app.state.feeds = Feeds(app.state.temporal)
        app.state.endings = Endings(app.state.temporal)
        app.state.health = HealthCheck(app.state.temporal, settings.orders_task_queue, verifier)
        verifier.start()
        draining = asyncio.create_task(metrics.drain_forever())
        try:
            yield
        finally:
            verifier.close()
            draining.cancel()
            # The SDK's runtime aborts the process when it is torn down right after a call.
            await asyncio.sleep(0.1)

    return lifespan


def _list_all_methods(route: HTTPRoute) -> None:
    """Answer OPTIONS: where controllers share a path, Litestar 2 lists those of the first only (its issue 4169)."""

    async def options(_: object) -> JSONResponse[None]:
        return JSONResponse(None, status_code=204, headers=allow(route.methods))

    route.route_handler_map["OPTIONS"][0].before_request = options


def _cors(settings: Settings) -> CORSConfig | None:
    if not settings.allowed_origins:
        return None
    return CORSConfig(
        allow_origins=list(settings.allowed_origins), allow_credentials=True, expose_headers=EXPOSED_HEADERS
    )
