"""Long polls that are shared: those who wait for the same thing have one, and the last to leave ends it."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class _Poll(Generic[Answer]):
    def __init__(self, task: asyncio.Task[Answer]) -> None:
        self.task = task
        self.users = 0


class Polls(Generic[Answer]):
    """The polls that are under way, by what they wait for."""

    def __init__(self) -> None:
        self._polls: dict[Hashable, _Poll[Answer]] = {}

    @contextmanager
    def join(self, key: Hashable, ask: Callable[[], Coroutine[None, None, Answer]]) -> Iterator[asyncio.Task[Answer]]:
        """Share the poll of that key. One that has ended is no longer shared: the next to join begins a new one."""
        poll = self._polls.get(key)
        if poll is None or poll.task.done():
            poll = self._polls[key] = _Poll(asyncio.create_task(ask()))
        poll.users += 1
        try:
            yield poll.task
        finally:
            poll.users -= 1
            if not poll.users:
                poll.task.cancel()
                if self._polls[key] is poll:
                    del self._polls[key]
