"""Histories as they grow: one long poll a run, shared by all who watch it in this process."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from temporalio.api.history.v1 import HistoryEvent

from temporal_api.errors import Problem
from temporal_api.temporal.events import CLOSING, in_parts
from temporal_api.temporal.history import FIRST_BATCHES, fitting, read_page, read_pages, retry_while_away
from temporal_api.temporal.polls import Polls
from temporal_api.temporal.workflow import Workflow

PAGES_HELD = 32
BYTES_HELD = 256 * 1024
"""A watcher that is further behind reads the history again instead."""


class _Watcher:
    """What one subscriber has yet to read; a Problem is the end of the feed."""

    def __init__(self) -> None:
        self.pages: asyncio.Queue[list[HistoryEvent] | Problem] = asyncio.Queue()
        self.behind = False
        self._bytes = 0

    def put(self, news: list[HistoryEvent] | Problem) -> None:
        if self.pages.empty():
            self._bytes = 0
        if isinstance(news, Problem):
            self.pages.put_nowait(news)
        elif self.pages.qsize() < PAGES_HELD and self._bytes < BYTES_HELD:
            self._bytes += sum(event.ByteSize() for event in news)
            self.pages.put_nowait(news)
        else:
            self.behind = True


class Feeds:
    """The runs that are watched here."""

    def __init__(self) -> None:
        self._polls: Polls[None] = Polls()
        self._watchers: dict[tuple[str, str], set[_Watcher]] = {}

    def __len__(self) -> int:
        """The long polls that are open now."""
        return len(self._polls)

    @contextmanager
    def _watch(self, run: Workflow, after: int) -> Iterator[_Watcher]:
        key = (run.id, run.run_id)
        watchers = self._watchers.setdefault(key, set())
        watcher = _Watcher()
        watchers.add(watcher)
        try:
            with self._polls.join(key, lambda: self._poll(run, after, watchers)):
                yield watcher
        finally:
            watchers.remove(watcher)
            if not watchers:
                del self._watchers[key]

    async def _poll(self, run: Workflow, after: int, watchers: set[_Watcher]) -> None:
        # There is no way to begin a long poll at an event: read from the start, and tell only what is new.
        token, batches = b"", FIRST_BATCHES
        try:
            while True:
                read = functools.partial(read_page, run, token=token, batches=batches, wait=True)
                found = await retry_while_away(read)
                batches = fitting(batches, found)
                fresh = [event for event in found.events if event.event_id > after]
                if fresh:
                    after = fresh[-1].event_id
                    for watcher in watchers:
                        watcher.put(fresh)
                token = found.token
                if not token:
                    return
        except Problem as problem:
            for watcher in watchers:
                watcher.put(problem)

    async def events(self, run: Workflow, seen: int, length: int) -> AsyncGenerator[list[HistoryEvent], None]:
        """The run's events after `seen`, some at a time, up to the one that closes it.

        `length` is that of its history now.
        """
        with self._watch(run, length) as watcher:
            while True:
                # What was there before the feed told us of news: read it ourselves.
                watcher.behind = False
                async with aclosing(read_pages(run, while_away=True)) as pages:
                    async for found in pages:
                        fresh = [event for event in found.events if event.event_id > seen]
                        for some in in_parts(fresh):
                            seen = some[-1].event_id
                            yield some
                        if found.events and found.events[-1].event_type in CLOSING:
                            return
                while not (watcher.behind and watcher.pages.empty()):
                    news = await watcher.pages.get()
                    if isinstance(news, Problem):
                        raise news
                    fresh = [event for event in news if event.event_id > seen]
                    if fresh and fresh[0].event_id == seen + 1:
                        for some in in_parts(fresh):
                            seen = some[-1].event_id
                            yield some
                        if fresh[-1].event_type in CLOSING:
                            return

    async def wait_for_change(self, run: Workflow, length: int) -> bool:
        """Come back when the run's history is longer than `length`."""
        async with aclosing(self.events(run, length, length)) as events:
            await anext(events, None)
        return True
