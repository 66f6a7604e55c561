"""The abuse and fault suite: what hostile callers and a failing network may not do, each with its bound.

It takes minutes, so the default run leaves it out; `.ci/run` runs it.
"""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.hostile)
