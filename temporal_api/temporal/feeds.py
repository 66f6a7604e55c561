"""Histories as they grow: one long poll a run, shared by all who watch it in this process."""

import asyncio
import functools
from collections.abc import AsyncGenerator
from contextlib import aclosing

from temporalio.api.history.v1 import HistoryEvent

from temporal_api.temporal.events import CLOSING, in_parts
from temporal_api.temporal.history import FIRST_BATCHES, fitting, read_pages, retry_while_away, until_unpaused
from temporal_api.temporal.workflow import Workflow

PAGES_HELD = 32
BYTES_HELD = 256 * 1024
"""A subscriber that is further behind reads the history again."""


class _Watcher:
    """The pages that a subscriber has not read yet. An exception ends the feed."""

    def __init__(self) -> None:
        self._pages: asyncio.Queue[list[HistoryEvent] | Exception] = asyncio.Queue()
        self._behind = False
        self._bytes = 0

    def put(self, news: list[HistoryEvent] | Exception) -> None:
        if self._pages.empty():
            self._bytes = 0
        if isinstance(news, Exception):
            self._pages.put_nowait(news)
        elif self._pages.qsize() < PAGES_HELD and self._bytes < BYTES_HELD and not self._behind:
            self._bytes += sum(event.ByteSize() for event in news)
            self._pages.put_nowait(news)
        else:
            self._behind = True  # the history, read again, contains this page and later ones

    async def read(self, run: Workflow) -> AsyncGenerator[list[HistoryEvent], None]:
        """The whole history, then new events. Some events come twice."""
        while True:
            self._behind = False
            async with aclosing(read_pages(run, while_away=True)) as pages:
                async for page in pages:
                    yield page.events
            while not (self._behind and self._pages.empty()):
                news = await self._pages.get()
                if isinstance(news, Exception):
                    raise news
                yield news


async def events(run: Workflow, seen: int, length: int) -> AsyncGenerator[list[HistoryEvent], None]:
    """The run's events after `seen`, in batches, until it is closed. `length` is its history's current length."""
    key, watcher = ("feed", run.id, run.run_id), _Watcher()
    with run.temporal.polls.join(key, watcher, functools.partial(_poll, run, length)):
        async for page in watcher.read(run):
            for some in in_parts([event for event in page if event.event_id > seen]):
                seen = some[-1].event_id
                yield some
            if page and page[-1].event_type in CLOSING:
                return


async def wait_for_change(run: Workflow, length: int) -> None:
    """Wait until the run's history is longer than `length`."""
    async with aclosing(events(run, length, length)) as news:
        await anext(news, None)


async def _poll(run: Workflow, after: int, watchers: set[_Watcher]) -> None:
    # A long poll cannot begin at an event: read from the start, and pass on only new events.
    token, batches, closed = b"", FIRST_BATCHES, False
    try:
        while True:
            page = await retry_while_away(run.read_page, token=token, batches=batches, wait=True)
            batches = fitting(batches, page)
            fresh = [event for event in page.events if event.event_id > after]
            if fresh:
                after = fresh[-1].event_id
                for watcher in watchers:
                    watcher.put(fresh)
            token = page.token
            closed = page.events[-1].event_type in CLOSING if page.events else closed
            if closed and not token:
                return
            if not token:  # it has not ended, it is paused
                await until_unpaused(run, after)
    except Exception as error:  # also for a defect: no subscriber may wait for ever
        for watcher in watchers:
            watcher.put(error)
