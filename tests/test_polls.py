"""Long polls that are shared: who waits together, who leaves, and what all of them are told."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryResponse

from api import eventually
from scripted import AWAY, REFUSED, Scripted
from temporal_api.errors import TemporalError
from temporal_api.memory import Memory, Share
from temporal_api.temporal import endings, feeds, history
from temporal_api.temporal.polls import Polls
from temporal_api.temporal.workflow import Workflow

pytestmark = pytest.mark.anyio


def page(*ids: int, closed: bool = False) -> GetWorkflowExecutionHistoryResponse:
    """A page of a history; nothing follows the one whose last event closes the run."""
    events = [HistoryEvent(event_id=n) for n in ids]
    if closed:
        events[-1].event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED
    return GetWorkflowExecutionHistoryResponse(
        history=History(events=events), next_page_token=b"" if closed else b"more"
    )


def whole(*ids: int, closed: bool = False) -> GetWorkflowExecutionHistoryResponse:
    """A history that is read in one page, without a wait."""
    answer = page(*ids, closed=closed)
    answer.next_page_token = b""
    return answer


async def open_polls(server: Scripted, wanted: int) -> None:
    """Until so many long polls are open."""

    async def as_many() -> bool:
        return server.open["wait_for_history"] == wanted

    await eventually(as_many)


# --- the polls ---


class Asked:
    """Counts its polls, each of which waits for its answer."""

    def __init__(self) -> None:
        self.answers: list[asyncio.Future[str]] = []

    async def __call__(self, _: object) -> str:
        """Wait for the answer."""
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]


async def test_the_last_to_leave_ends_the_poll() -> None:
    """Those who wait for the same thing have one poll; it goes on while one of them is there, and no longer."""
    polls, ask = Polls(), Asked()
    with polls.join("w", object(), ask) as first:
        with polls.join("w", object(), ask) as second, polls.join("other", object(), ask) as other:
            await asyncio.sleep(0)
            assert (first, 2) == (second, len(ask.answers))
        await asyncio.wait({other}, timeout=10)
        assert other.cancelled()
        assert not first.done()
    await asyncio.wait({first}, timeout=10)

    assert first.cancelled()
    with polls.join("w", object(), ask) as again:
        assert again is not first


async def test_a_poll_that_has_ended_is_not_shared() -> None:
    """Who comes later gets a new one, which ends when they leave, whoever still holds the ended one."""
    polls, ask = Polls(), Asked()
    async with AsyncExitStack() as slow:
        ended = slow.enter_context(polls.join("w", object(), ask))
        await asyncio.sleep(0)
        ask.answers[0].set_result("done")
        assert "done" == await ended
        with polls.join("w", object(), ask) as new, polls.join("w", object(), ask) as shared:
            assert new is shared is not ended
        await asyncio.wait({new}, timeout=10)
        assert new.cancelled()
        with polls.join("w", object(), ask) as newest:
            await slow.aclose()  # leaving the ended one does not end another's
            await asyncio.sleep(0)
            assert not newest.done()
    assert "done" == ended.result()


async def test_who_holds_an_ended_poll_may_be_the_last_to_leave() -> None:
    """Also when those who came after them have left already."""
    polls, ask = Polls(), Asked()
    with polls.join("w", object(), ask) as ended:
        await asyncio.sleep(0)
        ask.answers[0].set_result("done")
        await ended
        with polls.join("w", object(), ask):
            pass


async def test_one_of_those_who_wait_for_an_end_may_leave() -> None:
    """The others are told how the run ended, by the same poll; when the last one leaves, there is no poll."""
    end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    server = Scripted(wait_for_history=[end])
    run = server.workflow()
    waiting = [asyncio.create_task(endings.wait(run, follow=False)) for _ in range(3)]
    await open_polls(server, 1)
    waiting[0].cancel()
    await asyncio.wait({waiting[0]})
    end.set_result(page(9, closed=True))

    assert ["TERMINATED"] * 2 == [(await one).status for one in waiting[1:]]
    assert waiting[0].cancelled()
    assert 1 == server.asked["wait_for_history"]

    server = Scripted()
    run = server.workflow()
    waiting = [asyncio.create_task(endings.wait(run, follow=False)) for _ in range(3)]
    await open_polls(server, 1)
    for one in waiting:
        one.cancel()
    await open_polls(server, 0)


async def test_what_goes_wrong_with_a_wait_for_an_end_is_told_to_all() -> None:
    """Each is told of the problem, and the next one begins anew."""
    run = Scripted(wait_for_history=[REFUSED, page(9, closed=True)]).workflow()
    waits = (endings.wait(run, follow=False) for _ in range(3))
    told = await asyncio.gather(*waits, return_exceptions=True)

    assert [TemporalError] * 3 == [type(problem) for problem in told]
    assert "TERMINATED" == (await endings.wait(run, follow=False)).status


# --- the feeds ---


async def test_a_watcher_that_falls_behind_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """More news than are held for one who does not read: the history is read again, and each event told once."""
    monkeypatch.setattr(feeds, "PAGES_HELD", 2)
    server = Scripted(
        get_workflow_execution_history=[whole(1, 2), whole(1, 2, 3, 4, 5, 6)],
        wait_for_history=[page(1, 2), *(page(n) for n in (3, 4, 5, 6, 7)), page(8, closed=True)],
    )
    server.script["wait_for_history"].insert(5, asyncio.get_running_loop().create_future())
    held = server.script["wait_for_history"][5]
    async with aclosing(feeds.events(server.workflow(), 0, 2)) as events:
        seen = [event.event_id for event in await anext(events)]

        async def behind() -> bool:
            return server.asked["wait_for_history"] == 6

        await eventually(behind)
        while seen[-1] < 6:
            seen += [event.event_id for event in await anext(events)]
        held.set_result(page(7))
        async for some in events:
            seen += [event.event_id for event in some]

    assert list(range(1, 9)) == seen
    assert 2 == server.asked["get_workflow_execution_history"]


async def test_news_without_memory_to_keep_them_are_not_lost() -> None:
    """A large event comes when there is no room to hold it: once there is, the history is read again."""
    large = page(3, closed=True)
    large.history.events[0].workflow_execution_terminated_event_attributes.reason = "x" * 100_000
    news: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    server = Scripted(
        get_workflow_execution_history=[whole(1, 2), whole(1, 2, 3, closed=True)], wait_for_history=[page(1, 2), news]
    )
    run = server.workflow()
    async with aclosing(feeds.events(run, 0, 2)) as events:
        seen = [event.event_id for event in await anext(events)]
        upcoming = asyncio.ensure_future(anext(events))
        with Share(run.temporal.memory) as others:
            others.size = run.temporal.memory.limit
            assert (set(), {upcoming}) == await asyncio.wait({upcoming}, timeout=0.1)  # it waits for news
            news.set_result(large)
            assert (set(), {upcoming}) == await asyncio.wait({upcoming}, timeout=0.1)  # it waits for memory
        async with asyncio.timeout(30):
            seen += [event.event_id for event in await upcoming]

    assert [1, 2, 3] == seen
    await eventually(lambda: not run.temporal.memory.held)


async def test_a_stream_waits_for_memory_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its first page nor its long poll is refused while others hold the memory."""
    monkeypatch.setattr(history, "WAIT_SECONDS", 0)
    monkeypatch.setattr(history, "ROOM_SECONDS", 0)
    server = Scripted(get_workflow_execution_history=[whole(1, 2)], wait_for_history=[page(1, 2), page(3, closed=True)])
    run = server.workflow()
    with Share(run.temporal.memory) as others:
        others.size = run.temporal.memory.limit
        told = asyncio.ensure_future(_ids(feeds.events(run, 0, 2, history_bytes=5_000_000)))
        assert (set(), {told}) == await asyncio.wait({told}, timeout=0.1)
        assert not server.asked
    async with asyncio.timeout(30):
        assert [1, 2, 3] == await told


async def test_news_that_many_watch_are_held_once() -> None:
    """Fifty watchers of one run share a large event: nobody reads the history again for it."""
    large, news = page(3, closed=True), asyncio.get_running_loop().create_future()
    large.history.events[0].workflow_execution_terminated_event_attributes.reason = "x" * 1_000_000
    server = Scripted(get_workflow_execution_history=[whole(1, 2)], wait_for_history=[page(1, 2), news])
    run = server.workflow()
    watching = [asyncio.ensure_future(_ids(feeds.events(run, 0, 2))) for _ in range(50)]
    await eventually(lambda: server.asked["get_workflow_execution_history"] == 50)
    await open_polls(server, 1)
    news.set_result(large)
    async with asyncio.timeout(30):
        assert [[1, 2, 3]] * 50 == await asyncio.gather(*watching)

    assert 50 == server.asked["get_workflow_execution_history"]
    assert run.temporal.memory.most < 15_000_000  # the poll's page, and what the watchers keep of it


async def test_a_history_that_is_read_again_may_have_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one is asked for in one page; when a watcher falls behind, it begins with few events again."""
    monkeypatch.setattr(feeds, "PAGES_HELD", 0)
    sizes: list[int] = []

    class Asked(Scripted):
        def __getattr__(self, name: str) -> Any:
            call = super().__getattr__(name)

            async def noted(request: Any, **options: Any) -> Any:
                if not request.wait_new_event:
                    sizes.append(request.maximum_page_size)
                return await call(request, **options)

            return noted

    server = Asked(
        get_workflow_execution_history=[whole(1, 2), whole(1, 2, 3, closed=True)],
        wait_for_history=[page(1, 2), page(3, closed=True)],
    )
    assert [1, 2, 3] == await _ids(feeds.events(server.workflow(), 0, 2, history_bytes=1000))
    assert [history.PAGE_BATCHES, history.FIRST_BATCHES] == sizes


async def _ids(events: AsyncGenerator[list[HistoryEvent], None]) -> list[int]:
    return [event.event_id async for some in events for event in some]


async def test_readers_of_large_pages_do_not_wait_for_each_other() -> None:
    """Together five hold more than there is for pages: each goes on with what it has."""
    pages = [page(1), page(2), page(3, closed=True)]
    for each in pages:
        each.history.events[0].workflow_execution_terminated_event_attributes.reason = "x" * 4_000_000
    memory = Memory(128 * 2**20)

    async def reader() -> list[int]:
        run = Scripted(get_workflow_execution_history=pages[:]).workflow()
        run.temporal.memory = memory
        seen = []
        async for each in history.read_pages(run):
            seen.append(each.events[0].event_id)
            await asyncio.sleep(0)  # until all have a page
        return seen

    async with asyncio.timeout(10):
        told = await asyncio.gather(*(reader() for _ in range(5)))

    assert [[1, 2, 3]] * 5 == told
    assert 0 == memory.held


async def test_a_watcher_that_begins_while_temporal_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before is read through Temporal's absence too, not only what comes."""
    monkeypatch.setattr(history, "RETRY_SECONDS", 0)
    server = Scripted(get_workflow_execution_history=[AWAY, AWAY, whole(1, closed=True)])
    told = [[event.event_id for event in some] async for some in feeds.events(server.workflow(), 0, 1)]

    assert [[1]] == told
    await open_polls(server, 0)


@pytest.mark.parametrize(("fault", "told"), [(REFUSED, TemporalError), (ValueError("a defect"), ValueError)])
async def test_what_goes_wrong_with_a_feed_ends_it_for_all(fault: Exception, told: type[Exception]) -> None:
    """Each watcher reads what came before, and is told of the problem; the next one begins anew."""

    async def watch(run: Workflow) -> tuple[list[int], type[Exception] | None]:
        seen: list[int] = []
        try:
            async for some in feeds.events(run, 0, 2):
                seen += [event.event_id for event in some]
        except Exception as error:
            return seen, type(error)
        return seen, None

    for _ in range(2):
        server = Scripted(get_workflow_execution_history=[whole(1, 2)], wait_for_history=[page(1, 2, 3), fault])
        run = server.workflow()
        async with asyncio.timeout(30):
            assert [([1, 2, 3], told)] * 3 == await asyncio.gather(*(watch(run) for _ in range(3)))
        assert 2 == server.asked["wait_for_history"]


async def test_the_last_watcher_to_leave_ends_the_poll() -> None:
    """A run that somebody watches has one long poll; when nobody does any more, it has none."""
    server = Scripted(get_workflow_execution_history=[whole(1, 2)])
    run = server.workflow()
    watchers = [feeds.events(run, 0, 2) for _ in range(3)]
    for watcher in watchers:
        await anext(watcher)
    await open_polls(server, 1)
    for watcher in watchers[:2]:
        await watcher.aclose()
    assert 1 == server.open["wait_for_history"]
    await watchers[2].aclose()
    await open_polls(server, 0)

    assert 1 == server.asked["wait_for_history"]
