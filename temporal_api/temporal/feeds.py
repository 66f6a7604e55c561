"""Histories as they grow: one long poll a run, shared by all who watch it in this process."""

import asyncio
import functools
from collections.abc import AsyncGenerator
from contextlib import aclosing

from temporalio.api.history.v1 import HistoryEvent

from temporal_api.memory import PIECE_BYTES, Memory, Share
from temporal_api.temporal.events import CLOSING
from temporal_api.temporal.history import FIRST_BYTES, HELD, READING, read_pages, until_unpaused
from temporal_api.temporal.workflow import Workflow

PAGES_HELD = 32
BYTES_HELD = 256 * 1024
"""A subscriber that is further behind reads the history again; also when memory is short and the news is large."""


class _Watcher:
    """The pages that a subscriber has not read yet. An exception ends the feed."""

    def __init__(self, memory: Memory) -> None:
        self.share = Share(memory)
        self._memory = memory
        self._pages: asyncio.Queue[list[HistoryEvent] | Exception] = asyncio.Queue()
        self._bytes = 0
        self._behind = False

    def put(self, news: list[HistoryEvent] | Exception, size: int = 0, watchers: int = 1) -> None:
        """Keep the news until the subscriber reads them. `watchers` is the number of those who share them."""
        held = HELD * size // watchers
        full = self._pages.qsize() >= PAGES_HELD or self._bytes >= BYTES_HELD
        short = held > PIECE_BYTES and self._memory.held + held > READING * self._memory.limit
        if isinstance(news, Exception):
            self._pages.put_nowait(news)
        elif not self._behind and (full or short):
            self._behind = True  # the history, read again, contains this page and later ones
            self._pages.put_nowait([])  # the subscriber may be waiting
        elif not self._behind:
            self._bytes += size
            self.share.size += held
            self._pages.put_nowait(news)

    async def read(self, run: Workflow, history_bytes: int) -> AsyncGenerator[list[HistoryEvent], None]:
        """The whole history, then new events. Some events come twice."""
        while True:
            self._behind = False
            async with aclosing(read_pages(run, while_away=True, history_bytes=history_bytes)) as pages:
                async for page in pages:
                    yield page.events
                    del page
            history_bytes = FIRST_BYTES  # when it is read again, it may have grown
            while not (self._behind and self._pages.empty()):
                news = await self._pages.get()
                if isinstance(news, Exception):
                    raise news
                yield news
                del news
                if self._pages.empty():
                    self._bytes = self.share.size = 0


async def events(
    run: Workflow, seen: int, length: int, history_bytes: int = 0
) -> AsyncGenerator[list[HistoryEvent], None]:
    """The run's events after `seen`, in batches, until it is closed. Its history has `length` events so far."""
    watcher = _Watcher(run.temporal.memory)
    poll = functools.partial(_poll, run, length, history_bytes)
    with watcher.share, run.temporal.polls.join(("feed", run.id, run.run_id), watcher, poll):
        async for page in watcher.read(run, history_bytes):
            closed = bool(page) and page[-1].event_type in CLOSING
            if fresh := [event for event in page if event.event_id > seen]:
                seen = fresh[-1].event_id
                yield fresh
            if closed:
                return
            del page, fresh  # the next may come in hours


async def wait_for_change(run: Workflow, length: int, history_bytes: int) -> None:
    """Wait until the run's history is longer than `length`."""
    async with aclosing(events(run, length, length, history_bytes)) as news:
        await anext(news, None)


async def _poll(run: Workflow, after: int, history_bytes: int, watchers: set[_Watcher]) -> None:
    # A long poll cannot begin at an event: read from the start, and pass on only new events.
    closed = False
    try:
        while not closed:
            async with aclosing(read_pages(run, while_away=True, live=True, history_bytes=history_bytes)) as pages:
                async for page in pages:
                    fresh = [event for event in page.events if event.event_id > after]
                    if fresh:
                        after = fresh[-1].event_id
                        for watcher in watchers:
                            watcher.put(fresh, page.size, len(watchers))
                    closed = page.events[-1].event_type in CLOSING if page.events else closed
                    del page, fresh
            if not closed:  # it is paused
                await until_unpaused(run, after)
                history_bytes = 0  # it may have grown: begin with few batches
    except Exception as error:  # also for a defect: no subscriber may wait for ever
        for watcher in watchers:
            watcher.put(error)
