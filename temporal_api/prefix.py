"""ROOT_PATH: the path prefix under which a proxy serves this service. Answers name it, and requests may carry it."""

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
        """Route a request that carries the prefix as one that does not.

        With the prefix `/api`, `/api/v1/orders` carries none: it goes only from what then is a path of the service.
        """
        scope["path"] = path = scope["path"].removeprefix(scope.get("root_path", ""))  # another server's --root-path
        scope["root_path"] = ""
        if not (self.root_path and path.startswith(self.root_path)):
            return
        slash, first, *_ = (path[len(self.root_path) :] or "/").split("/", 2)
        if not slash and (first in self._first or (not first and path.rstrip("/") not in self._routes)):
            scope["path"] = path[len(self.root_path) :] or "/"

    def add(self, headers: Iterable[_Header]) -> Iterator[_Header]:
        """Put the prefix before the service's own paths in `Location` and `Link`."""
        for name, value in headers:
            if name == b"location" and value.startswith(b"/"):
                yield name, self._bytes + value
            elif name == b"link":
                yield name, value.replace(b"</", b"<%b/" % self._bytes)
            else:
                yield name, value
