"""Long polls that are shared: those who wait for the same thing have one, and the last to leave ends it."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Polls(Generic[Answer]):
    """The polls that are under way, by what they wait for."""

    def __init__(self) -> None:
        self._polls: dict[Hashable, tuple[asyncio.Task[Answer], int]] = {}

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._polls)

    @contextmanager
    def join(self, key: Hashable, poll: Callable[[], Coroutine[None, None, Answer]]) -> Iterator[asyncio.Task[Answer]]:
        """Share the poll of that key; one that has ended already is begun anew."""
        task, users = self._polls.get(key, (None, 0))
        if task is None or task.done():
            task = asyncio.create_task(poll())
        self._polls[key] = (task, users + 1)
        try:
            yield task
        finally:
            task, users = self._polls[key]
            if users > 1:
                self._polls[key] = (task, users - 1)
            else:
                del self._polls[key]
                task.cancel()
