"""Pages that only `dev` serves, for browsers on this machine: the docs with a token, a codec for Temporal's UI."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from litestar import Request, Response, Router, get
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.handlers import BaseRouteHandler
from litestar.types import ControllerRouterHandler

from temporal_api.controllers import pages
from temporal_api.controllers.codec import CodecController
from temporal_api.errors import NotAllowed
from temporal_api.services import services_of

CODEC_PATH = "/dev/codec"

# The token comes in the fragment, which a browser sends to no server. It moves into Swagger UI's own store at once, so
# that neither the address nor the browser's history keeps it; Swagger UI takes any fragment for a link of its own.
_AUTHORIZE = b"""
<script>
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname);
    addEventListener("DOMContentLoaded", () => {
      const schema = ui.specSelectors.securityDefinitions().get("bearer");
      ui.authActions.authorizeWithPersistOption({bearer: {name: "bearer", schema, value: token}});
    });
  }
</script>
"""


def public_handlers(ui_origins: Sequence[str]) -> list[ControllerRouterHandler]:
    """The public pages, and those of `dev`. `ui_origins` are the origins of Temporal's UI, if it may decrypt."""
    handlers = [docs if each is pages.swagger else each for each in pages.HANDLERS]
    return [*handlers, _codec(ui_origins)] if ui_origins else handlers


@get("/docs", include_in_schema=False, sync_to_thread=True)
def docs(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Swagger UI, authorised with the token in the address's fragment."""
    return pages.swagger_page(request, _AUTHORIZE)


def _codec(ui_origins: Sequence[str]) -> Router:
    """The codec without a token: Temporal's UI has none without a login, and sends one only to https."""

    def only_for_the_ui(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        # Every browser tells the page's origin with a POST. The host is checked too, for a name that any site may point
        # at this machine (DNS rebinding), and the peer, for a `HOST` that the network reaches.
        if (
            connection.headers.get("origin") not in ui_origins
            or connection.url.hostname not in ("127.0.0.1", "localhost", "::1")
            or not (connection.client and ip_address(connection.client.host).is_loopback)
        ):
            raise NotAllowed("This is for Temporal's UI on the same machine: others use /api/v1/codec with a token.")

    return Router(
        CODEC_PATH.removesuffix(CodecController.path),
        route_handlers=[CodecController],
        guards=[only_for_the_ui],
        dependencies={"services": Provide(services_of, sync_to_thread=False)},
        include_in_schema=False,
    )
