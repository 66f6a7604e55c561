"""Shared long polls: all who wait for the same thing share one, and the last to leave ends it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from temporal_api.record import outside_request

Answer = TypeVar("Answer")


class Polls(Generic[Answer]):
    """The current polls, by what they wait for."""

    def __init__(self) -> None:
        self._polls: dict[Hashable, asyncio.Task[Answer]] = {}
        self._users: Counter[asyncio.Task[Answer]] = Counter()

    @contextmanager
    def join(self, key: Hashable, ask: Callable[[], Coroutine[None, None, Answer]]) -> Iterator[asyncio.Task[Answer]]:
        """Share the poll of that key. After a poll has ended, the next to join begins a new one."""
        poll = self._polls.get(key)
        if poll is None or poll.done():
            poll = self._polls[key] = asyncio.create_task(ask(), context=outside_request())
        self._users[poll] += 1
        try:
            yield poll
        finally:
            self._users[poll] -= 1
            if not self._users[poll]:
                del self._users[poll]
                poll.cancel()
                if self._polls.get(key) is poll:
                    del self._polls[key]
