"""ROOT_PATH: the path prefix below which a proxy serves this service. Addresses in answers have it; requests may."""

from collections.abc import Iterable, Iterator
from typing import Any

_Header = tuple[bytes, bytes]


class Prefix:
    """The prefix, empty when there is none."""

    def __init__(self, root_path: str, routes: Iterable[str]) -> None:
        """`routes` are the service's own paths."""
        self.root_path = root_path
        self._bytes = root_path.encode()
        self._routes = frozenset(routes)
        self._first = {route.split("/")[1] for route in self._routes} - {""}

    def remove(self, scope: Any) -> None:
        """Remove the prefix from a request's path, if the rest is a path of the service.

        So with the prefix `/api`, `/api/v1/orders` stays as it is.
        """
        servers_own = scope.get("root_path")  # another server's --root-path
        if servers_own:
            scope["path"], scope["root_path"] = scope["path"].removeprefix(servers_own), ""
        path = scope["path"]
        if not self.root_path or not path.startswith(self.root_path):
            return
        rest = path[len(self.root_path) :] or "/"
        first = rest.split("/", 2)[1] if rest[0] == "/" else None
        if first in self._first or (first == "" and path.rstrip("/") not in self._routes):
            scope["path"] = rest

    def add(self, headers: Iterable[_Header]) -> Iterator[_Header]:
        """Put the prefix before the service's own paths in `Location`."""
        for name, value in headers:
            yield name, self._bytes + value if name == b"location" and value.startswith(b"/") else value
