"""Visibility: list and count workflows. Filters are compiled to a query in which values are never syntax.

Temporal's query is SQL to its own parser, which reads `''` as a quote and a backslash as an escape, in texts of either
quotes. But what it then looks for is not always what was written. It strips single quotes off both ends of a text, and
most of its stores (SQLite, PostgreSQL, Elasticsearch) look for a double quote, a backslash or a control character in an
escaped form that no workflow has; in a list of keywords a double quote even ends the text. So a text with one of these
is not sent: it matches nothing. What is sent matches exactly, but for one case: on SQLite, the dev server's store,
prefixes and lists of keywords ignore the case of ASCII letters.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from msgspec import Meta
from temporalio.api.enums.v1 import IndexedValueType, WorkflowExecutionStatus
from temporalio.api.workflowservice import v1 as api

from temporal_api.errors import FieldError, InvalidQuery, ValidationError, invalid, shown
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.failures import Subject
from temporal_api.temporal.run import DIVISION, RUN_STATUS, TEMPORALS_OWN, Run, Status, enum_name


async def compile_query(
    temporal: Temporal,
    *,
    without_prefixes: Iterable[str],
    workflow_type: str | None = None,
    status: Iterable[Status] | None = None,
    task_queue: str | None = None,
    workflow_id_prefix: str | None = None,
    started_from: datetime | None = None,
    started_to: datetime | None = None,
    closed_from: datetime | None = None,
    closed_to: datetime | None = None,
    search_attribute: Iterable[str] | None = None,
    query: str | None = None,
) -> str:
    """The visibility query for filters that must all match. Times are from (included) and to (excluded).

    A `search_attribute` is `Name=value`; of several with one name, one must match. `query` is the caller's own, which
    stays as it is. Left out are Temporal's own workflows, and those whose id begins with one of `without_prefixes`.
    Filters that mean the same compile to the same query. Raises InvalidQuery or ValidationError.
    """
    terms = []
    for column, value in (("WorkflowType", workflow_type), ("TaskQueue", task_queue)):
        if value is not None:
            terms.append(compare(column, value))
    if workflow_id_prefix is not None:
        terms.append(compare("WorkflowId", workflow_id_prefix, "STARTS_WITH"))
    if status:
        # Servers that cannot pause (1.29) know that status only by its number.
        wanted = {str(_PAUSED) if s == "PAUSED" else _quote(_QUERY_STATUS[s]) for s in status}
        # Some servers (1.30, 1.31) panic at `ExecutionStatus IN (...)`.
        terms.append(f"({' OR '.join(f'ExecutionStatus = {each}' for each in sorted(wanted))})")
    terms += _window("StartTime", started_from, started_to)
    closed = _window("CloseTime", closed_from, closed_to)
    # In Temporal's index an open run closes in the year 9999.
    terms += ["CloseTime IS NOT NULL", *closed] if closed else []
    if search_attribute:
        terms += await _attributes(temporal, search_attribute)
    terms += [_not_beginning("WorkflowId", prefix) for prefix in without_prefixes]
    # Leave out Temporal's own workflows. Most are in a namespace division, which a caller's query could name.
    terms.append(f"{DIVISION} IS NULL")
    terms += [
        _not_beginning(name, prefix) for name in ("WorkflowId", "WorkflowType", "TaskQueue") for prefix in TEMPORALS_OWN
    ]
    if query is not None:
        # A query with one `)` too many would end our parentheses and get round the other terms. Temporal refuses such a
        # query when it stands alone.
        if ")" in query:
            await list_runs(temporal, query, 1, b"")
        terms.append(f"({query})")  # the last: a quote that it leaves open then hides no other term
    return " AND ".join(terms)


def _not_beginning(column: str, prefix: str) -> str:
    # SQLite's prefixes ignore case: the second half brings back `Order-1`, which is less than `order-` there. In no
    # collation is a text less than its own beginning, so it brings back nothing that is to stay out.
    return f"({column} NOT STARTS_WITH {_quote(prefix)} OR {column} < {_quote(prefix)})"


_QUERY = Subject(invalid=InvalidQuery, invalid_intro="Temporal refuses this query: ")


async def list_runs(temporal: Temporal, query: str, size: int, token: bytes) -> tuple[list[Run], bytes]:
    """A page (newest open runs first, then last closed ones) and the token of the next. Raises InvalidQuery."""
    request = api.ListWorkflowExecutionsRequest(
        namespace=temporal.namespace, query=query, page_size=size, next_page_token=token
    )
    page = await temporal.call(temporal.service.list_workflow_executions, request, _QUERY)
    return [Run(info) for info in page.executions], page.next_page_token


async def count_by_status(temporal: Temporal, query: str) -> dict[str, int]:
    """The number of runs in each status; a status without runs is left out. Raises InvalidQuery."""
    request = api.CountWorkflowExecutionsRequest(
        namespace=temporal.namespace, query=f"{query} GROUP BY ExecutionStatus"
    )
    response = await temporal.call(temporal.service.count_workflow_executions, request, _QUERY)
    names = ((msgspec.json.decode(group.group_values[0].data, type=str), group.count) for group in response.groups)
    return {_STATUS_OF.get(name, name): count for name, count in names}


async def latest_runs(temporal: Temporal, workflow_ids: Iterable[str]) -> dict[str, str]:
    """The latest run's id of each of these workflows (1000 at most) that has had more than one run."""
    ids = sorted({each for each in workflow_ids if not _CANNOT_BE_FOUND.search(each)})
    latest: dict[str, Run] = {}
    # Temporal 1.30 does not take a list of one.
    one_of = ", ".join(map(_quote, ids))
    query = f"WorkflowId IN ({one_of})" if len(ids) > 1 else f"WorkflowId = {one_of}"
    # Counting costs a tenth of listing, and hardly any workflow has a second run.
    more = bool(ids) and sum((await count_by_status(temporal, query)).values()) > len(ids)
    token = b""
    while more:
        runs, token = await list_runs(temporal, query, 1000, token)
        for run in runs:
            known = latest.setdefault(run.workflow_id, run)
            if known.start_time < run.start_time:
                latest[run.workflow_id] = run
        more = bool(token)
    return {workflow_id: run.run_id for workflow_id, run in latest.items()}


# --- values ---

_PAUSED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED
_QUERY_STATUS = {name: name.title().replace("_", "") for name in RUN_STATUS.values()}
_STATUS_OF = {query: name for name, query in _QUERY_STATUS.items()}
_CANNOT_BE_FOUND = re.compile(r"""\A'|'\Z|["\\\x00-\x1f]""")
_NOTHING = "RunId = ''"
_Time = Annotated[datetime, Meta(tz=True)]


def _quote(value: str) -> str:
    """Quote a text that the index can search for."""
    return "'" + value.replace("'", "''") + "'"


def compare(column: str, value: str, operator: str = "=") -> str:
    """A term that compares with the value, whatever characters it has."""
    return _NOTHING if _CANNOT_BE_FOUND.search(value) else f"{column} {operator} {_quote(value)}"


def index_value(value: str) -> str:
    """The value for the index: itself, or its hash if the index cannot search for it. Hashes may equal other values."""
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}" if _CANNOT_BE_FOUND.search(value) else value


def _window(column: str, begin: datetime | None, end: datetime | None) -> list[str]:
    bounds = ((">=", begin), ("<", end))
    return [f"{column} {operator} {_quote(time.isoformat())}" for operator, time in bounds if time]


def parse_time(key: str, text: str) -> datetime:
    """A moment, in UTC. Raises ValidationError."""
    try:
        return msgspec.convert(text, _Time).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):  # the year 10000 somewhere
        expected = "Expected a time with its zone, such as 2026-01-31T12:00:00Z (in a URL, + is written %2B)"
        raise invalid(key, expected) from None


# --- search attributes ---


async def _attribute_types(temporal: Temporal) -> dict[str, str]:
    """The namespace's search attributes and Temporal's own, each with the name of its type.

    Not by the operator service's ListSearchAttributes: over an SQL store each such call leaves Temporal's frontend
    with a connection to itself that it forgets to close (server 1.29).
    """
    fields, described = await asyncio.gather(
        temporal.call(temporal.service.get_search_attributes, api.GetSearchAttributesRequest()),
        temporal.call(temporal.service.describe_namespace, api.DescribeNamespaceRequest(namespace=temporal.namespace)),
    )
    aliases = described.config.custom_search_attribute_aliases  # empty if the store has no numbered columns
    types = {aliases.get(field, field): kind for field, kind in fields.keys.items()}
    return {name: enum_name(IndexedValueType.DESCRIPTOR, kind, "INDEXED_VALUE_TYPE_") for name, kind in types.items()}


async def _attributes(temporal: Temporal, pairs: Iterable[str]) -> list[str]:
    types = await _attribute_types(temporal)
    wanted: dict[str, set[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise invalid("search_attribute", "Expected Name=value, such as OrderStatus=delivered")
        if name not in types or "`" in name:
            message = f"There is no search attribute {shown(name)!r} in this namespace."
            raise InvalidQuery(message, errors=[FieldError("search_attribute", message)])
        wanted.setdefault(name, set()).add(await _attribute(temporal, name, types[name], value))
    return [f"({' OR '.join(sorted(terms))})" for _, terms in sorted(wanted.items())]


async def _attribute(temporal: Temporal, name: str, kind: str, value: str) -> str:
    column = f"`{name}`"
    match kind:
        case "INT":
            if not re.fullmatch(r"-?\d{1,19}", value, re.ASCII) or not -(2**63) <= int(value) < 2**63:
                raise _not_of(name, "a whole number of 64 bits")
            return f"{column} = {int(value)}"
        case "DOUBLE":
            return f"{column} = {await _double(temporal, name, value)}"
        case "BOOL":
            if value not in ("true", "false"):
                raise _not_of(name, "true or false")
            return f"{column} = {value}"
        case "DATETIME":
            time = parse_time("search_attribute", value)
            # SQLite rounds to milliseconds, and writes them differently from the query's: only a range finds them.
            begin = time.replace(microsecond=time.microsecond // 1000 * 1000)
            if time.year == 9999:
                return _NOTHING
            rounded_up = timedelta(microseconds=(time - begin) >= timedelta(microseconds=500))
            return " AND ".join(_window(column, begin, begin + timedelta(milliseconds=1) + rounded_up))
        case "TEXT":
            # Match any word, as every store does. Characters between words are syntax to some.
            words = re.sub(r"[^\w\u0080-\U0010ffff]+", " ", value).split()
            return f"{column} = {_quote(' '.join(words))}" if words else _NOTHING
    return compare(column, value)


async def _double(temporal: Temporal, name: str, value: str) -> str:
    if not re.fullmatch(r"[+-]?\d{1,400}(\.\d{1,400})?([eE][+-]?\d{1,3})?", value, re.ASCII):
        raise _not_of(name, "a number")
    number = float(value)
    if number in (float("inf"), float("-inf")):
        raise _not_of(name, "a number of 64 bits")
    if number.is_integer() and abs(number) < 2**53:
        return str(int(number))
    if number >= 0:
        return repr(number)
    # From 1.32 on a negative fraction is a number. Older servers know none, but their stores read one from a text,
    # which newer ones refuse.
    info = await temporal.call(temporal.service.get_system_info, api.GetSystemInfoRequest())
    version = [int(part) for part in re.findall(r"\d+", info.server_version)[:2]]
    return repr(number) if version >= [1, 32] else _quote(repr(number))


def _not_of(name: str, expected: str) -> ValidationError:
    return invalid("search_attribute", f"Expected {expected} after {name}=")
