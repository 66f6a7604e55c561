"""Litestar's caches, turned off: their keys are paths and queries, so callers would say how much they hold."""

import functools
import sys
from types import ModuleType
from typing import Any

from litestar import Litestar
from litestar.datastructures import URL

_CACHE = type(functools.lru_cache(bool))


def turn_off(app: Litestar) -> None:
    """Let Litestar remember nothing of a request: nearly each names another id, so this is quicker, too."""
    router = app.asgi_router
    router.handle_routing = _uncached(router.handle_routing)
    # Each module that imports a function has a name of its own for it.
    places: list[ModuleType | type] = [module for name, module in sys.modules.items() if name.startswith("litestar.")]
    for place in (*places, URL):
        for name, value in list(vars(place).items()):
            if isinstance(value, _CACHE):
                setattr(place, name, _uncached(value))
            elif isinstance(value, classmethod) and isinstance(value.__func__, _CACHE):
                setattr(place, name, classmethod(_uncached(value.__func__)))


def _uncached(function: Any) -> Any:
    return function.__wrapped__
