"""Which workflows there are: every filter, pages, and texts that look like syntax, on a real index."""

import asyncio
import os
import re
import string
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceResponse,
    GetSearchAttributesResponse,
    GetSystemInfoResponse,
)
from temporalio.client import Client, WorkflowHandle
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import WORKFLOWS, assert_problem, bearer, eventually, service
from scripted import Scripted
from temporal_api.dev.server import DevServer
from temporal_api.temporal.run import DIVISION
from temporal_api.temporal.visibility import compile_query

pytestmark = pytest.mark.anyio

LIST = "/api/v1/workflows"
COUNT = "/api/v1/workflow-count"
CLERK = bearer("clerk", f"{WORKFLOWS} orders:admin")
Params = dict[str, Any]

# Each would change the query, or break it, if it were syntax somewhere.
ATTACKS = [
    "' OR 1=1 --",
    "x' OR '1'='1",
    "x') OR (WorkflowId != 'y",
    "x'' OR ''1''=''1",
    "\\' OR 1=1 --",
    "x\\",
    '" OR "1"="1',
    "x' /*",
    "*/ OR 1=1 /*",
    "x' -- ",
    "x'#",
    "x'; DROP TABLE executions_visibility; --",
    "x' ORDER BY StartTime",
    "x' GROUP BY ExecutionStatus",
    "x' UNION SELECT * FROM executions_visibility --",
    "\u2019 OR \u20191\u2019=\u20191",
    "\uff07 OR 1=1",
    "x\0' OR 1=1",
    "x\n' OR 1=1",
    "`WorkflowId` != 'x'",
    "%",
    "_",
    "%' ESCAPE '!",
    "!%",
    "*",
    '") OR ("',
    "$1 ? :v1 ::v2 @@version",
    "\ufffd\U0001f600'",
]


# --- what there is to be found ---


@workflow.defn(name="end")
class End:
    """Ends in one way or another."""

    @workflow.run
    async def run(self, how: str) -> None:
        """End like that."""
        match how:
            case "fail":
                raise ApplicationError("failed")
            case "continue":
                workflow.continue_as_new("return")
            case "parent":
                await workflow.execute_child_workflow("end", "return", id=f"{workflow.info().workflow_id}-child")
            case "wait":
                await workflow.wait_condition(lambda: False)


async def found(http: httpx.AsyncClient, **params: Any) -> list[str]:
    """The ids that the list gives, sorted; the count must say the same number."""
    response = await http.get(LIST, params=params)
    assert 200 == response.status_code, response.text
    counted = await http.get(COUNT, params=params)
    ids = sorted(item["workflow_id"] for item in response.json()["items"])
    assert len(ids) == counted.json()["count"], counted.text
    return ids


async def indexed(http: httpx.AsyncClient, expected: list[str], **params: Any) -> None:
    """Wait until the list gives exactly these."""

    async def there() -> bool:
        response = await http.get(LIST, params=params)
        return sorted(expected) == sorted(item["workflow_id"] for item in response.json()["items"])

    await eventually(there)


class Shelf:
    """Workflows of every status on one queue; their ids begin with `prefix`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.queue = f"shelf-{uuid.uuid4()}"
        self.prefix = f"shelf-{uuid.uuid4()}-"

    async def start(self, name: str, how: str, **options: Any) -> WorkflowHandle[Any, Any]:
        """A run of `end`."""
        return await self.client.start_workflow("end", how, id=self.prefix + name, task_queue=self.queue, **options)


STATUSES = {
    "running": "RUNNING",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "canceled": "CANCELED",
    "terminated": "TERMINATED",
    "continued": "CONTINUED_AS_NEW",
    "late": "TIMED_OUT",
}


@pytest.fixture(scope="module")
async def shelf(client: Client, alice: httpx.AsyncClient) -> Shelf:
    """One run of each status (`continued` has a completed one too), all in the index."""
    shelf = Shelf(client)
    await shelf.start("late", "wait", execution_timeout=timedelta(milliseconds=1))
    async with Worker(client, task_queue=shelf.queue, workflows=[End], workflow_runner=UnsandboxedWorkflowRunner()):
        handles = {
            name: await shelf.start(name, how)
            for name, how in {
                "running": "wait",
                "completed": "return",
                "failed": "fail",
                "canceled": "wait",
                "terminated": "wait",
                "continued": "continue",
            }.items()
        }
        await handles["canceled"].cancel()
        await handles["terminated"].terminate()

        async def all_ended() -> bool:
            groups = (await alice.get(COUNT, params={"task_queue": shelf.queue})).json()["groups"]
            return bool(groups == {**dict.fromkeys(STATUSES.values(), 1), "COMPLETED": 2})

        await eventually(all_ended, seconds=20)
    return shelf


KEYS = {
    "VisibleText": IndexedValueType.INDEXED_VALUE_TYPE_TEXT,
    "VisibleKeyword": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "Visible odd-näme": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "VisibleInt": IndexedValueType.INDEXED_VALUE_TYPE_INT,
    "VisibleDouble": IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE,
    "VisibleBool": IndexedValueType.INDEXED_VALUE_TYPE_BOOL,
    "VisibleTime": IndexedValueType.INDEXED_VALUE_TYPE_DATETIME,
    "VisibleList": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
}
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
Key = SearchAttributeKey
LABELS: dict[str, SearchAttributePair[Any]] = {
    "text": SearchAttributePair(Key.for_text("VisibleText"), "heather on the hills"),
    "keyword": SearchAttributePair(Key.for_keyword("VisibleKeyword"), "it's = here"),
    "empty": SearchAttributePair(Key.for_keyword("VisibleKeyword"), ""),
    "odd": SearchAttributePair(Key.for_keyword("Visible odd-näme"), "odd"),
    "minus": SearchAttributePair(Key.for_int("VisibleInt"), -5),
    "large": SearchAttributePair(Key.for_int("VisibleInt"), 2**53 + 1),
    "largest": SearchAttributePair(Key.for_int("VisibleInt"), 2**63 - 1),
    "least": SearchAttributePair(Key.for_int("VisibleInt"), -(2**63)),
    "whole": SearchAttributePair(Key.for_float("VisibleDouble"), -3.0),
    "half": SearchAttributePair(Key.for_float("VisibleDouble"), -1.5),
    "tenth": SearchAttributePair(Key.for_float("VisibleDouble"), 0.1),
    "huge": SearchAttributePair(Key.for_float("VisibleDouble"), 1e300),
    "true": SearchAttributePair(Key.for_bool("VisibleBool"), True),
    "false": SearchAttributePair(Key.for_bool("VisibleBool"), False),
    "noon": SearchAttributePair(Key.for_datetime("VisibleTime"), NOON),
    "later": SearchAttributePair(Key.for_datetime("VisibleTime"), NOON.replace(microsecond=123456)),
    "up": SearchAttributePair(Key.for_datetime("VisibleTime"), NOON.replace(microsecond=567890)),
    "list": SearchAttributePair(Key.for_keyword_list("VisibleList"), ["red", "dark blue"]),
    "other": SearchAttributePair(Key.for_keyword_list("VisibleList"), ["green", "dark"]),
}


@pytest.fixture(scope="module")
async def labels(client: Client, alice: httpx.AsyncClient) -> str:
    """A queue with one run for each of LABELS, named after it; gives their prefix."""
    prefix = f"labels-{uuid.uuid4()}-"
    request = AddSearchAttributesRequest(namespace="default", search_attributes=KEYS)
    await client.operator_service.add_search_attributes(request)

    async def start(name: str) -> bool:
        try:
            await client.start_workflow(
                "labelled", id=prefix + name, task_queue=prefix, search_attributes=TypedSearchAttributes([LABELS[name]])
            )
        except RPCError:
            return False  # the server has not heard of its own new attribute yet
        return True

    for name in LABELS:
        await eventually(lambda name=name: start(name))  # type: ignore[misc]
    await indexed(alice, [prefix + name for name in LABELS], workflow_id_prefix=prefix)
    return prefix


@pytest.fixture(scope="module")
async def clerk(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """One from whom no workflow is hidden."""
    async with httpx.AsyncClient(base_url=base_url, timeout=30, headers=CLERK) as client:
        yield client


# --- what is told of each ---


async def test_a_running_workflow_in_the_list(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """A summary is complete; what only an end can tell is null until then."""
    name = f"running-{uuid.uuid4()}"
    handle = await client.start_workflow("any", id=name, task_queue=task_queue)
    await indexed(alice, [name], task_queue=task_queue)
    start = (await handle.describe()).start_time
    response = await alice.get(LIST, params={"task_queue": task_queue})
    (item,) = response.json()["items"]

    assert start == datetime.fromisoformat(item.pop("start_time"))
    assert {
        "workflow_id": name,
        "run_id": handle.first_execution_run_id,
        "workflow_type": "any",
        "task_queue": task_queue,
        "status": "RUNNING",
        "parent_workflow_id": None,
        "search_attributes": {},
        "close_time": None,
        "execution_time_seconds": None,
        "history_length": None,
    } == item
    assert {"next_page_token": None, "consistency": "eventual"} == {
        key: value for key, value in response.json().items() if key != "items"
    }


async def test_a_closed_workflow_in_the_list(alice: httpx.AsyncClient, shelf: Shelf) -> None:
    """A closed run tells when it closed, how long it took, and how long its history is; as its own page does."""
    (item,) = (await alice.get(LIST, params={"workflow_id_prefix": shelf.prefix + "failed"})).json()["items"]
    own = (await alice.get(f"{LIST}/{shelf.prefix}failed")).json()
    same = ("workflow_id", "run_id", "workflow_type", "task_queue", "status", "start_time", "close_time")

    assert {key: own[key] for key in same} == {key: item[key] for key in same}
    assert own["execution_time_seconds"] == item["execution_time_seconds"]
    assert own["history_length"] == item["history_length"] > 0


async def test_a_child_names_its_parent(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """A child's summary has its parent's id."""
    name = f"parent-{uuid.uuid4()}"
    async with Worker(client, task_queue=task_queue, workflows=[End], workflow_runner=UnsandboxedWorkflowRunner()):
        await client.execute_workflow("end", "parent", id=name, task_queue=task_queue)
    await indexed(alice, [name, f"{name}-child"], task_queue=task_queue, status="COMPLETED")
    items = (await alice.get(LIST, params={"task_queue": task_queue})).json()["items"]

    assert {name: None, f"{name}-child": name} == {item["workflow_id"]: item["parent_workflow_id"] for item in items}


async def test_search_attributes_are_told_as_they_are(alice: httpx.AsyncClient, labels: str) -> None:
    """Values come as JSON of their type."""
    response = await alice.get(LIST, params={"workflow_id_prefix": labels})
    told = {item["workflow_id"].removeprefix(labels): item["search_attributes"] for item in response.json()["items"]}

    assert {"VisibleInt": -5} == told["minus"]
    assert {"VisibleDouble": -1.5} == told["half"]
    assert {"VisibleBool": False} == told["false"]
    assert {"VisibleList": ["red", "dark blue"]} == told["list"]
    assert {"VisibleKeyword": "it's = here"} == told["keyword"]
    assert {"Visible odd-näme": "odd"} == told["odd"]
    assert {"VisibleTime": "2026-01-31T12:00:00.123456Z"} == told["later"]


# --- filters ---


@pytest.mark.parametrize(("name", "status"), STATUSES.items())
async def test_by_status(alice: httpx.AsyncClient, shelf: Shelf, name: str, status: str) -> None:
    """A status gives the runs of that status."""
    expected = [shelf.prefix + name] + ([shelf.prefix + "continued"] if status == "COMPLETED" else [])

    assert sorted(expected) == await found(alice, task_queue=shelf.queue, status=status)


async def test_a_status_that_no_run_has(alice: httpx.AsyncClient, shelf: Shelf) -> None:
    """A Temporal that cannot pause workflows has no paused ones: that is no mistake of the caller's."""
    assert [] == await found(alice, task_queue=shelf.queue, status="PAUSED")
    both = await found(alice, task_queue=shelf.queue, status=["PAUSED", "TERMINATED"])
    assert await found(alice, task_queue=shelf.queue, status="TERMINATED") == both != []


async def test_by_several_statuses(alice: httpx.AsyncClient, shelf: Shelf) -> None:
    """A status that is repeated gives the runs of any of them."""
    expected = [shelf.prefix + "canceled", shelf.prefix + "terminated"]

    assert expected == await found(alice, task_queue=shelf.queue, status=["TERMINATED", "CANCELED", "TERMINATED"])


async def test_by_task_queue_type_and_prefix(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """Each gives exactly those, alone and together; `%` and `_` in a prefix are characters."""
    kind, prefix = f"kind-{uuid.uuid4()}", f"pre%_!-{uuid.uuid4()}"
    for name, workflow_type, queue in (
        (f"{prefix}-1", kind, task_queue),
        (f"{prefix}-2", kind, f"{task_queue}-b"),
        (f"{prefix}-3", f"{kind}-b", task_queue),
        (f"x{prefix}-4", kind, task_queue),
    ):
        await client.start_workflow(workflow_type, id=name, task_queue=queue)
    one, two, three, four = f"{prefix}-1", f"{prefix}-2", f"{prefix}-3", f"x{prefix}-4"
    await indexed(alice, [one, two, four], workflow_type=kind)
    await indexed(alice, [three], workflow_type=f"{kind}-b")

    assert [one, two, four] == await found(alice, workflow_type=kind)
    assert [one, three, four] == await found(alice, task_queue=task_queue)
    assert [one, two, three] == await found(alice, workflow_id_prefix=prefix)
    assert [one] == await found(alice, workflow_type=kind, task_queue=task_queue, workflow_id_prefix=prefix)
    assert [two] == await found(alice, workflow_id_prefix=two)
    assert [] == await found(alice, workflow_type=kind[:-1])
    assert [] == await found(alice, workflow_id_prefix=prefix.replace("%", "x"))


async def test_by_start(alice: httpx.AsyncClient, shelf: Shelf) -> None:
    """From is included, to is not: windows side by side give every run once."""
    name = shelf.prefix + "failed"
    only = {"workflow_id_prefix": name}
    (item,) = (await alice.get(LIST, params=only)).json()["items"]
    start = datetime.fromisoformat(item["start_time"])
    tick = timedelta(microseconds=1)

    assert [name] == await found(alice, **only, started_from=start.isoformat())
    assert [] == await found(alice, **only, started_from=(start + tick).isoformat())
    assert [] == await found(alice, **only, started_to=start.isoformat())
    assert [name] == await found(alice, **only, started_to=(start + tick).isoformat())
    assert [name] == await found(
        alice, **only, started_from=start.isoformat(), started_to=(start + timedelta(hours=1)).isoformat()
    )


async def test_by_end(alice: httpx.AsyncClient, shelf: Shelf) -> None:
    """What still runs has no end: no such filter gives it."""
    name = shelf.prefix + "failed"
    (item,) = (await alice.get(LIST, params={"workflow_id_prefix": name})).json()["items"]
    close = datetime.fromisoformat(item["close_time"])
    tick = timedelta(microseconds=1)
    long_ago, far_away = "2001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"

    assert [name] == await found(alice, workflow_id_prefix=name, closed_from=close.isoformat())
    assert [] == await found(alice, workflow_id_prefix=name, closed_to=close.isoformat())
    assert [name] == await found(alice, workflow_id_prefix=name, closed_to=(close + tick).isoformat())
    for window in ({"closed_from": long_ago}, {"closed_to": far_away}):
        ids = await found(alice, task_queue=shelf.queue, **window)
        assert {shelf.prefix + n for n in STATUSES.keys() - {"running"}} == set(ids)


async def test_a_time_in_any_zone(alice: httpx.AsyncClient, shelf: Shelf) -> None:
    """The same moment in another zone is the same filter, and its page token too."""
    pages = [
        await alice.get(LIST, params={"task_queue": shelf.queue, "started_from": time, "page_size": 2})
        for time in ("2026-01-31T12:00:00Z", "2026-01-31T14:30:00.000+02:30")
    ]
    token = pages[0].json()["next_page_token"]
    again = {"task_queue": shelf.queue, "started_from": "2026-01-31T00:00:00-12:00", "page_token": token}

    assert pages[0].json()["items"] == pages[1].json()["items"]
    assert 200 == (await alice.get(LIST, params=again)).status_code


TIMES = ["", "yesterday", "2026-01-31", "2026-01-31T12:00:00", "2026-02-30T12:00:00Z", "2026-01-31T12:00:00 02:00"]
TIMES += ["1769860800", "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00", "2026-01-31T12:00:00Z'", "\0"]


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("key", ["started_from", "started_to", "closed_from", "closed_to"])
async def test_what_is_no_time_is_refused(alice: httpx.AsyncClient, key: str, time: str) -> None:
    """A time without a zone, or no time at all: 400 that names the parameter."""
    body = assert_problem(await alice.get(LIST, params={key: time}), 400, "validation_error")

    assert [key] == [error["key"] for error in body["details"]["errors"]]


@pytest.mark.parametrize("what", ["started", "closed"])
async def test_a_window_that_ends_before_it_begins(alice: httpx.AsyncClient, what: str) -> None:
    """It could hold nothing: 400."""
    window = {f"{what}_from": "2026-01-02T00:00:00Z", f"{what}_to": "2026-01-02T01:00:00+01:00"}
    body = assert_problem(await alice.get(COUNT, params=window), 400, "validation_error")

    assert f"{what}_to" == body["details"]["errors"][0]["key"]


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("VisibleText=heather", ["text"]),
        ("VisibleText=nowhere HILLS!", ["text"]),
        ("VisibleText=heath", []),
        ("VisibleKeyword=it's = here", ["keyword"]),
        ("VisibleKeyword=it's", []),
        ("VisibleKeyword=", ["empty"]),
        ("Visible odd-näme=odd", ["odd"]),
        ("VisibleInt=-5", ["minus"]),
        ("VisibleInt=-05", ["minus"]),
        ("VisibleInt=5", []),
        (f"VisibleInt={2**53 + 1}", ["large"]),
        (f"VisibleInt={2**53}", []),
        (f"VisibleInt={2**63 - 1}", ["largest"]),
        (f"VisibleInt={-(2**63)}", ["least"]),
        ("VisibleDouble=-3", ["whole"]),
        ("VisibleDouble=-1.50", ["half"]),
        ("VisibleDouble=0.1", ["tenth"]),
        ("VisibleDouble=1e-1", ["tenth"]),
        ("VisibleDouble=1e300", ["huge"]),
        ("VisibleBool=true", ["true"]),
        ("VisibleBool=false", ["false"]),
        ("VisibleTime=2026-01-31T12:00:00Z", ["noon"]),
        ("VisibleTime=2026-01-31T13:00:00.123+01:00", ["later"]),
        ("VisibleTime=2026-01-31T12:00:00.123456Z", ["later"]),
        ("VisibleTime=2026-01-31T12:00:00.56789Z", ["up"]),
        ("VisibleTime=2026-01-31T12:00:01Z", []),
        ("VisibleTime=9999-12-31T23:59:59.999999Z", []),
        ("VisibleList=red", ["list"]),
        ("VisibleList=dark blue", ["list"]),
        ("VisibleList=dark", ["other"]),
        ("VisibleList=blue", []),
    ],
)
async def test_by_search_attribute(alice: httpx.AsyncClient, labels: str, attribute: str, expected: list[str]) -> None:
    """A value is of the type that the namespace has for the attribute."""
    assert [labels + name for name in expected] == await found(alice, search_attribute=attribute)


async def test_temporal_s_own_workflows_are_left_out(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """By id, type, task queue and division: in no list and no count, whatever a caller's own query says."""
    prefix = f"own-{uuid.uuid4()}-"
    division = SearchAttributePair(SearchAttributeKey.for_keyword("TemporalNamespaceDivision"), "TemporalScheduler")
    for name, kind, queue, attributes in (
        (prefix + "shown", "end", task_queue, []),
        (prefix + "Upper", "Temporal-sys-x", task_queue, []),
        (prefix + "type", "temporal-sys-x", task_queue, []),
        (prefix + "queue", "end", f"temporal-sys-{task_queue}", []),
        (f"temporal-sys-{prefix}", "end", task_queue, []),
        (f"/_sys/{prefix}", "end", task_queue, []),
        (prefix + "division", "end", task_queue, [division]),
    ):
        await client.start_workflow(
            kind, "wait", id=name, task_queue=queue, search_attributes=TypedSearchAttributes(attributes)
        )
    shown = [prefix + "Upper", prefix + "shown"]
    every = f"WorkflowId STARTS_WITH '{prefix}' OR TaskQueue = '{task_queue}'"

    async def there() -> bool:
        counts = [await client.count_workflows(f"({every}) AND {DIVISION} IS {null}") for null in ("NULL", "NOT NULL")]
        return [6, 1] == [count.count for count in counts]

    await eventually(there)
    assert shown == await found(alice, workflow_id_prefix=prefix)
    assert shown == await found(alice, task_queue=task_queue)
    assert [] == await found(alice, workflow_id_prefix="temporal-sys-")
    assert [] == await found(alice, search_attribute=f"{DIVISION}=TemporalScheduler")
    for query in (every, f"({every}) AND {DIVISION} = 'TemporalScheduler'", f"{every} OR {DIVISION} IS NOT NULL"):
        items = (await alice.get(LIST, params={"query": query}, headers=CLERK)).json()["items"]
        assert not [item for item in items if item["workflow_id"] not in shown], query
    for loose in (f"{every}) OR ({every}", f"{DIVISION} IS NOT NULL) OR ({every}", f"{every}) -- ", f"{every}) #"):
        for path in (LIST, COUNT):
            refused = await alice.get(path, params={"query": loose}, headers=CLERK)
            assert_problem(refused, 400, "invalid_query")
    open_quote = {"query": "WorkflowId = '", "workflow_type": f" OR {DIVISION} IS NOT NULL) -- "}
    assert_problem(await alice.get(LIST, params=open_quote, headers=CLERK), 400, "invalid_query")


async def test_by_several_search_attributes(alice: httpx.AsyncClient, labels: str) -> None:
    """Of one attribute any of the values, of several attributes all."""
    either = ["VisibleList=red", "VisibleList=green"]

    assert [labels + "list", labels + "other"] == await found(alice, search_attribute=either)
    assert [] == await found(alice, search_attribute=[*either, "VisibleBool=true"])
    assert [labels + "list"] == await found(alice, search_attribute=either, workflow_id_prefix=labels + "list")
    assert [labels + "true"] == await found(alice, search_attribute=["VisibleBool=true", f"TaskQueue={labels}"])


@pytest.mark.parametrize(
    ("version", "fraction"),
    [("1.29.1", "'-1.5'"), ("1.31.0", "'-1.5'"), ("1.32.1", "-1.5"), ("1.40.0-rc.1", "-1.5"), ("2.0.0", "-1.5")],
)
async def test_a_query_that_each_server_reads(version: str, fraction: str) -> None:
    """Negative fractions are numbers from 1.32 on, and texts before; lists of statuses make some servers panic."""
    temporal = Scripted(
        get_search_attributes=[
            GetSearchAttributesResponse(keys={"Weight": IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE})
        ],
        describe_namespace=[DescribeNamespaceResponse()],
        get_system_info=[GetSystemInfoResponse(server_version=version)],
    ).temporal()
    query = await compile_query(
        temporal, without_prefixes=(), search_attribute=["Weight=-1.50"], status=["RUNNING", "FAILED"]
    )

    assert f"`Weight` = {fraction})" in query
    assert "(ExecutionStatus = 'Failed' OR ExecutionStatus = 'Running')" in query


def open_files(pid: int) -> int:
    """How many files and connections the process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
async def test_asking_for_attributes_costs_temporal_nothing(
    alice: httpx.AsyncClient, labels: str, dev_server: DevServer
) -> None:
    """Looking up the types of attributes leaves no connection behind in Temporal, which would use it up."""
    before = open_files(dev_server.pid)
    for _ in range(30):
        await alice.get(COUNT, params={"search_attribute": "VisibleInt=-5"})

    assert open_files(dev_server.pid) < before + 15


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("VisibleInt=1.5", "a whole number"),
        ("VisibleInt=", "a whole number"),
        ("VisibleInt=٣", "a whole number"),
        (f"VisibleInt={2**63}", "64 bits"),
        ("VisibleInt=1 OR 1=1", "a whole number"),
        ("VisibleDouble=nan", "a number"),
        ("VisibleDouble=1_0", "a number"),
        ("VisibleDouble=1e999", "64 bits"),
        ("VisibleDouble=" + "1" * 900, "a number"),
        ("VisibleBool=True", "true or false"),
        ("VisibleBool=1", "true or false"),
        ("VisibleTime=2026-01-31", "a time with its zone"),
        ("VisibleText", "Name=value"),
        ("=x", "Name=value"),
        ("", "Name=value"),
    ],
)
async def test_a_value_of_another_type_is_refused(
    alice: httpx.AsyncClient, labels: str, attribute: str, reason: str
) -> None:
    """400 that says what is expected."""
    body = assert_problem(await alice.get(LIST, params={"search_attribute": attribute}), 400, "validation_error")

    assert "search_attribute" == body["details"]["errors"][0]["key"]
    assert reason in body["message"]


@pytest.mark.parametrize("name", ["Nowhere", "visibleint", "`", "VisibleInt` != 1 OR `VisibleInt", "1=1 OR WorkflowId"])
async def test_an_unknown_search_attribute(alice: httpx.AsyncClient, labels: str, name: str) -> None:
    """It is named, never put into the query."""
    for path in (LIST, COUNT):
        response = await alice.get(path, params={"search_attribute": f"{name}=1"})
        body = assert_problem(response, 400, "invalid_query")
        assert repr(name.partition("=")[0]) in body["message"]


@pytest.mark.parametrize("path", [LIST, COUNT])
@pytest.mark.parametrize("name", ["statuss", "Status", "workflow_id", "limit", "user", "filters", "where", "a b", ""])
async def test_an_unknown_parameter_is_refused(alice: httpx.AsyncClient, path: str, name: str) -> None:
    """A filter that nobody applies would give the wrong workflows: 400 that names it."""
    response = await alice.get(path, params={"status": "RUNNING", name: "x"})
    body = assert_problem(response, 400, "validation_error")

    assert [name] == [error["key"] for error in body["details"]["errors"]]


@pytest.mark.parametrize(
    "params",
    [
        {"page_size": 0},
        {"page_size": 1001},
        {"page_size": "ten"},
        {"page_size": ["1", "2"]},
        {"workflow_type": ["a", "b"]},
        {"workflow_type": ""},
        {"workflow_type": "x" * 1001},
        {"task_queue": ""},
        {"workflow_id_prefix": ""},
        {"status": "Running"},
        {"status": ["RUNNING", "GONE"]},
        {"status": ""},
        {"query": "x" * 4_001},
    ],
)
async def test_a_parameter_that_is_none_is_refused(alice: httpx.AsyncClient, params: Params) -> None:
    """Wrong, empty, too long, or twice what can only be once: 400 that names it."""
    body = assert_problem(await alice.get(LIST, params=params), 400, "validation_error")

    assert params.keys() == {error["key"] for error in body["details"]["errors"]}


async def test_the_count_has_no_pages(alice: httpx.AsyncClient) -> None:
    """Paging a number means nothing: 400."""
    assert_problem(await alice.get(COUNT, params={"page_size": 10}), 400, "validation_error")


# --- data, never syntax ---


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_injection_finds_nothing_and_breaks_nothing(
    alice: httpx.AsyncClient, shelf: Shelf, labels: str, attack: str
) -> None:
    """In every filter that takes a text it is looked for as it is; whatever is there stays there."""
    for params in (
        {"workflow_type": attack},
        {"task_queue": attack},
        {"workflow_id_prefix": attack},
        {"search_attribute": f"VisibleKeyword={attack}"},
        {"search_attribute": f"VisibleList={attack}"},
        {"search_attribute": f"VisibleText={attack}"},
        {"search_attribute": f"WorkflowId={attack}"},
    ):
        # Other tests' workflows have odd ids, some of which do begin so.
        begins_so = attack if "workflow_id_prefix" in params else "\0"
        assert [] == [name for name in await found(alice, **params) if not name.startswith(begins_so)], params
    assert len(STATUSES) + 1 == len(await found(alice, task_queue=shelf.queue))


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_injection_beside_a_filter_widens_nothing(alice: httpx.AsyncClient, shelf: Shelf, attack: str) -> None:
    """With what would be found, it finds nothing more."""
    either = [f"WorkflowId={shelf.prefix}running", f"WorkflowId={attack}"]

    assert [shelf.prefix + "running"] == await found(alice, search_attribute=either)


LIKE_SYNTAX = [
    "it's",
    "x' OR '1'='1",
    "100%",
    "a_b",
    "a!b",
    "-- none",
    "/* none */",
    "# none",
    "\u2019x\u2019",
    " spaces ",
]
LIKE_SYNTAX += ["x'); --", "tschüß", "工作", "😀", "a;b", "`a`", "null", "NOT", "é", "(a"]


async def test_names_that_look_like_syntax_are_found(alice: httpx.AsyncClient, client: Client, task_queue: str) -> None:
    """A type, an id and a value with quotes, comments or wildcards in them give exactly that workflow."""
    prefix = f"names-{uuid.uuid4()}-"
    for name in LIKE_SYNTAX:
        await client.start_workflow(name, id=prefix + name + "-", task_queue=task_queue)
    await indexed(alice, [f"{prefix}{name}-" for name in LIKE_SYNTAX], task_queue=task_queue)

    for name in LIKE_SYNTAX:
        expected = [f"{prefix}{name}-"]
        assert expected == await found(alice, workflow_type=name, task_queue=task_queue)
        assert expected == await found(alice, workflow_id_prefix=prefix + name)
        assert expected == await found(alice, search_attribute=f"WorkflowType={name}", task_queue=task_queue)


@pytest.mark.parametrize("name", ["{}'", "'{}", "'{}'", "''{}", '"{}"', "{}\0", "{}\n", "{}\\", "\\{}"])
async def test_what_the_index_cannot_look_for_is_not_mistaken(
    alice: httpx.AsyncClient, client: Client, task_queue: str, name: str
) -> None:
    """Temporal strips quotes at the ends, and escapes other characters twice: neither finds a name that is alike."""
    kind = f"kind-{uuid.uuid4()}"
    await client.start_workflow(kind, id=kind, task_queue=task_queue)
    await client.start_workflow(name.format(kind).replace("\\", "\\\\"), id=f"{kind}-2", task_queue=task_queue)
    await indexed(alice, [kind, f"{kind}-2"], task_queue=task_queue)

    assert [] == await found(alice, workflow_type=name.format(kind))
    assert [] == await found(alice, workflow_id_prefix=name.format(kind))


# --- a query of one's own ---


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("WorkflowType = 'end'", ["running", "terminated"]),
        ("ExecutionStatus = 'Running' OR ExecutionStatus = 'Terminated'", ["running", "terminated"]),
        ("ExecutionStatus='Running'\n\tOR(ExecutionStatus='Failed')", ["running"]),
        ("NOT ExecutionStatus = 'Running'", ["terminated"]),
        ("HistoryLength BETWEEN 1 AND 1e3 AND ExecutionDuration >= -1", ["terminated"]),
        ("StartTime > '2026-01-31T12:00:00+02:00'", ["running", "terminated"]),
        ("WorkflowId = 'é😀'", []),
    ],
)
async def test_a_query_beside_the_filters(
    clerk: httpx.AsyncClient, shelf: Shelf, query: str, expected: list[str]
) -> None:
    """Both hold; an OR in the query does not undo the filters."""
    only = {"task_queue": shelf.queue, "status": ["RUNNING", "TERMINATED"]}

    assert [shelf.prefix + name for name in expected] == await found(clerk, query=query, **only)


@pytest.mark.parametrize("path", [LIST, COUNT])
async def test_a_query_needs_to_see_everything(alice: httpx.AsyncClient, path: str) -> None:
    """Nothing of ours reads it, so it is for those alone from whom no workflow is hidden: 403 that names the scope."""
    for query in ("WorkflowId = 'x'", "WorkflowId = 'x') OR (WorkflowId != 'y'", "", "(((", "x" * 4_000):
        response = await alice.get(path, params={"query": query})
        assert "orders:admin" in assert_problem(response, 403, "insufficient_scope")["message"]
        assert 'scope="orders:admin"' in response.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("Nowhere = 'x'", "column name 'Nowhere' is not a valid search attribute|invalid search attribute: Nowhere"),
        ("WorkflowId = 'x' OR", "syntax error"),
        ("WorkflowId LIKE 'x%'", "invalid operator 'like'|operator 'LIKE' not supported"),
        ("WorkflowId = x", r"did you forget to quote ['\"]x['\"]\?"),
        ("StartTime > 'noon'", "unable to parse datetime 'noon'"),
        ("ExecutionStatus = 'Gone'", "invalid ExecutionStatus value 'Gone'"),
        ("WorkflowId = (SELECT 1)", "unexpected value type Subquery"),
        ("WorkflowId = 'x' UNION SELECT 1", "syntax error"),
        ("1 = 1", "must be a column name"),
        ("true", "operation is not supported"),
        ("(((", "syntax error"),
        ("", "syntax error"),
    ],
)
async def test_what_temporal_refuses(clerk: httpx.AsyncClient, query: str, reason: str) -> None:
    """400 with Temporal's reason in words, and none of its type names."""
    for path in (LIST, COUNT):
        body = assert_problem(await clerk.get(path, params={"query": query}), 400, "invalid_query")
        assert re.search(reason, body["message"])  # 1.32 says some things in other words
        assert "sqlparser" not in body["message"]
        assert "temporal" == body["details"]["source"]


# --- orders are not everyone's ---


async def test_orders_are_left_out(
    alice: httpx.AsyncClient, clerk: httpx.AsyncClient, client: Client, task_queue: str
) -> None:
    """Without `orders:admin` reserved ids are neither listed nor counted, whatever is asked; others' ids are."""
    own, reserved = f"Order-{uuid.uuid4()}", f"order-{uuid.uuid4()}"
    others = [own, own.upper(), own.replace("-", "", 1).lower(), f"x{reserved}"]
    for name in (*others, reserved):
        await client.start_workflow("any", id=name, task_queue=task_queue)
    scoped = {"task_queue": task_queue}
    await indexed(clerk, [*others, reserved], **scoped)

    assert sorted(others) == await found(alice, **scoped)
    assert sorted([*others, reserved]) == await found(clerk, **scoped)
    assert [reserved] == await found(clerk, workflow_id_prefix=reserved)
    assert [reserved] == await found(clerk, query=f"WorkflowId = '{reserved}'", **scoped)
    for params in (
        {"workflow_id_prefix": reserved},
        {"search_attribute": f"WorkflowId={reserved}"},
    ):
        assert [] == await found(alice, **params), params


async def test_a_token_does_not_pass_on_what_it_shows(
    alice: httpx.AsyncClient, client: Client, task_queue: str
) -> None:
    """A page token of one who sees orders is refused from one who does not."""
    for _ in range(2):
        await client.start_workflow("any", id=f"order-{uuid.uuid4()}", task_queue=task_queue)
    params: Params = {"task_queue": task_queue, "page_size": 1}

    async def page() -> str | None:
        token: str | None = (await alice.get(LIST, params=params, headers=CLERK)).json()["next_page_token"]
        return token

    token = await eventually(page)

    assert 200 == (await alice.get(LIST, params={**params, "page_token": token}, headers=CLERK)).status_code
    assert_problem(await alice.get(LIST, params={**params, "page_token": token}), 400, "invalid_page_token")


@pytest.mark.parametrize("path", [LIST, COUNT])
async def test_scopes(http: httpx.AsyncClient, path: str) -> None:
    """Reading workflows needs `workflows:read` or `workflows:admin`; nothing else will do."""
    for scope in ("workflows:read", "workflows:admin"):
        assert 200 == (await http.get(path, headers=bearer(scope=scope))).status_code
    for scope in ("workflows:write", "orders:admin", "orders:read", ""):
        assert_problem(await http.get(path, headers=bearer(scope=scope)), 403, "insufficient_scope")
    assert_problem(await http.get(path), 401, "missing_token")


# --- pages ---


class Books:
    """Fifty workflows on one queue."""

    def __init__(self, queue: str, ids: list[str]) -> None:
        self.queue = queue
        self.ids = ids


@pytest.fixture(scope="module")
async def books(client: Client, alice: httpx.AsyncClient) -> Books:
    """Half of them closed, all in the index."""
    queue = f"books-{uuid.uuid4()}"
    books = Books(queue, [f"{queue}-{n}" for n in range(50)])
    handles = await asyncio.gather(*(client.start_workflow("book", id=name, task_queue=queue) for name in books.ids))
    await asyncio.gather(*(handle.terminate() for handle in handles[::2]))

    async def there() -> bool:
        groups = (await alice.get(COUNT, params={"task_queue": queue})).json()["groups"]
        return bool(groups == {"RUNNING": 25, "TERMINATED": 25})

    await eventually(there)
    return books


async def pages(http: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    """Every page, from the first to the one without a token."""
    answers = [(await http.get(LIST, params=params)).json()]
    while token := answers[-1]["next_page_token"]:
        answers.append((await http.get(LIST, params={**params, "page_token": token})).json())
    return answers


async def test_paging_gives_each_once(alice: httpx.AsyncClient, books: Books) -> None:
    """Fifty in pages of seven: each workflow once, running before closed, newest first."""
    answers = await pages(alice, task_queue=books.queue, page_size=7)
    items = [item for answer in answers for item in answer["items"]]
    running = [item["start_time"] for item in items if item["status"] == "RUNNING"]
    closed = [item["close_time"] for item in items if item["status"] != "RUNNING"]

    assert [7] * 7 + [1] == [len(answer["items"]) for answer in answers]
    assert sorted(books.ids) == sorted(item["workflow_id"] for item in items)
    assert ["RUNNING"] * 25 + ["TERMINATED"] * 25 == [item["status"] for item in items]
    assert sorted(running, reverse=True) == running
    assert sorted(closed, reverse=True) == closed


async def test_paging_with_every_filter(clerk: httpx.AsyncClient, books: Books) -> None:
    """A token goes on with the filters that it was given for, in whatever order they are sent."""
    params: Params = {
        "workflow_type": "book",
        "task_queue": books.queue,
        "workflow_id_prefix": books.queue,
        "status": ["TERMINATED", "RUNNING"],
        "started_from": "2001-01-01T00:00:00Z",
        "search_attribute": ["WorkflowType=book", f"TaskQueue={books.queue}"],
        "query": "WorkflowId != 'x'",
        "page_size": 30,
    }
    first = (await clerk.get(LIST, params=params)).json()
    turned = {**params, "status": params["status"][::-1], "search_attribute": params["search_attribute"][::-1]}
    second = (await clerk.get(LIST, params={"page_token": first["next_page_token"], **turned})).json()

    assert (30, 20, None) == (len(first["items"]), len(second["items"]), second["next_page_token"])


async def test_the_page_size_may_change(alice: httpx.AsyncClient, books: Books) -> None:
    """A hundred is the usual size; a token may be used with another one."""
    params: Params = {"task_queue": books.queue}
    first = (await alice.get(LIST, params={**params, "page_size": 1})).json()
    rest = (await alice.get(LIST, params={**params, "page_token": first["next_page_token"]})).json()

    assert (1, 49, None) == (len(first["items"]), len(rest["items"]), rest["next_page_token"])


@pytest.fixture
async def page_token(alice: httpx.AsyncClient, books: Books) -> str:
    """A token for the second page of the books."""
    response = await alice.get(LIST, params={"task_queue": books.queue, "page_size": 7})
    token: str = response.json()["next_page_token"]
    return token


@pytest.mark.parametrize(
    "other",
    [
        {"task_queue": "another"},
        {"status": "RUNNING"},
        {"workflow_type": "book"},
        {"workflow_id_prefix": "b"},
        {"started_to": "2099-01-01T00:00:00Z"},
        {"closed_from": "2001-01-01T00:00:00Z"},
        {"search_attribute": "WorkflowType=book"},
    ],
)
async def test_a_token_is_bound_to_its_filters(
    alice: httpx.AsyncClient, books: Books, page_token: str, other: Params
) -> None:
    """With one filter more, or another value, it is refused."""
    params = {"task_queue": books.queue, **other, "page_token": page_token}

    assert_problem(await alice.get(LIST, params=params), 400, "invalid_page_token")


async def test_a_token_is_bound_to_its_kind(alice: httpx.AsyncClient, books: Books, page_token: str) -> None:
    """A token of the list opens no history."""
    response = await alice.get(f"{LIST}/{books.ids[0]}/history", params={"page_token": page_token})

    assert_problem(response, 400, "invalid_page_token")


async def test_a_tampered_token_is_refused(alice: httpx.AsyncClient, books: Books, page_token: str) -> None:
    """Any one character changed, some more or some less: 400."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    changed = {char: alphabet[index ^ 32] for index, char in enumerate(alphabet)} | {"=": "A"}
    tampered = [page_token[:at] + changed[char] + page_token[at + 1 :] for at, char in enumerate(page_token)]
    tampered += [page_token[:cut] for cut in (1, 16, 40, -1, -4)] + [page_token + "AAAA", page_token * 2]
    tampered += ["x", "é", "\0", "%", "null", "=", "AAAA", "' OR 1=1", "A" * 5000]

    for token in tampered:
        response = await alice.get(LIST, params={"task_queue": books.queue, "page_token": token})
        assert_problem(response, 400, "invalid_page_token")


async def test_a_token_is_good_on_every_replica(dev_server: DevServer, books: Books, page_token: str) -> None:
    """A service with the same settings goes on where another one was; one with another secret or namespace does not."""
    params: Params = {"task_queue": books.queue, "page_size": 7, "page_token": page_token}
    async with service(TEMPORAL_ADDRESS=dev_server.address) as replica:
        assert 7 == len((await replica.get(LIST, params=params)).json()["items"])
    async with service(TEMPORAL_ADDRESS=dev_server.address, TEMPORAL_NAMESPACE="another") as elsewhere:
        assert_problem(await elsewhere.get(LIST, params=params), 400, "invalid_page_token")
    secret = "another-secret-that-is-long-enough-for-it"
    claims = {"sub": "alice", "scope": WORKFLOWS, "exp": datetime.now(UTC) + timedelta(minutes=1)}
    headers = {"Authorization": f"Bearer {jwt.encode(claims, secret, algorithm='HS256')}"}
    async with service(TEMPORAL_ADDRESS=dev_server.address, JWT_SECRET=secret) as stranger:
        assert_problem(await stranger.get(LIST, params=params, headers=headers), 400, "invalid_page_token")


# --- counting ---


async def test_count_by_status(alice: httpx.AsyncClient, shelf: Shelf) -> None:
    """The count has a number for each status that there is one of, in Temporal's capitals, and their sum."""
    response = await alice.get(COUNT, params={"task_queue": shelf.queue})

    assert {
        "count": 8,
        "groups": {**dict.fromkeys(STATUSES.values(), 1), "COMPLETED": 2},
        "consistency": "eventual",
    } == response.json()


async def test_count_of_none(alice: httpx.AsyncClient, task_queue: str) -> None:
    """Nothing there is a 200 with no groups."""
    response = await alice.get(COUNT, params={"task_queue": task_queue})

    assert {"count": 0, "groups": {}, "consistency": "eventual"} == response.json()
    assert {"items": [], "next_page_token": None, "consistency": "eventual"} == (
        await alice.get(LIST, params={"task_queue": task_queue})
    ).json()


async def test_without_a_filter(alice: httpx.AsyncClient, shelf: Shelf) -> None:
    """All there is: with `orders:admin` no condition is left, and both still answer."""
    for headers in (None, CLERK):
        listed = await alice.get(LIST, params={"page_size": 1}, headers=headers)
        counted = await alice.get(COUNT, headers=headers)
        assert (1, True) == (len(listed.json()["items"]), counted.json()["count"] >= 8)


# --- the contract ---


@pytest.mark.parametrize("path", [LIST, COUNT])
async def test_every_parameter_is_described(http: httpx.AsyncClient, path: str) -> None:
    """The contract tells what each parameter means, and that the answer is eventually consistent."""
    operation = (await http.get("/openapi.json")).json()["paths"][path]["get"]
    names = {parameter["name"] for parameter in operation["parameters"]}

    assert all(parameter["description"] for parameter in operation["parameters"])
    assert "Eventually consistent" in operation["description"]
    assert {"workflow_type", "status", "search_attribute", "query", "closed_to"} <= names
    assert (path == LIST) == ("page_token" in names)
