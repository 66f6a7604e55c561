"""Shared long polls: all who wait for the same thing share one, and the last to leave ends it."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from temporal_api.record import outside_request

Answer = TypeVar("Answer")
User = TypeVar("User", bound=Hashable)


class Polls:
    """The current polls and their users, by what they wait for."""

    def __init__(self) -> None:
        self._polls: dict[Hashable, tuple[asyncio.Task[Any], set[Any]]] = {}

    @contextmanager
    def join(
        self, key: Hashable, user: User, ask: Callable[[set[User]], Coroutine[None, None, Answer]]
    ) -> Iterator[asyncio.Task[Answer]]:
        """Share the poll of that key, which knows its users. After it has ended, the next to join begins a new one."""
        found = self._polls.get(key)
        if found is None or found[0].done():
            users: set[User] = set()
            found = self._polls[key] = asyncio.create_task(ask(users), context=outside_request()), users
        poll, users = found
        users.add(user)
        try:
            yield poll
        finally:
            users.remove(user)
            if not users:
                poll.cancel()
                if self._polls.get(key) is found:
                    del self._polls[key]
