"""Visibility: which workflows there are, by filters compiled to a query in which a value is never syntax.

Temporal's query is SQL to its own parser, which reads `''` as a quote and a backslash as an escape, in texts of either
quotes. But what it then looks for is not always what was written. It strips single quotes off both ends of a text, and
most of its stores (SQLite, PostgreSQL, Elasticsearch) look for a double quote, a backslash or a control character in an
escaped form that no workflow has; in a list of keywords a double quote even ends the text. So a text with one of these
is not sent: it matches nothing. What is sent matches exactly, but that on SQLite, the dev server's store, prefixes and
lists of keywords take ASCII letters of either case.
"""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, TypeVar

import msgspec
from google.protobuf.message import Message
from msgspec import Meta
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    DescribeNamespaceRequest,
    GetSearchAttributesRequest,
    ListWorkflowExecutionsRequest,
    ListWorkflowExecutionsResponse,
)

from temporal_api.errors import FieldError, Problem, invalid
from temporal_api.temporal.client import STATUS, Temporal

Response = TypeVar("Response", bound=Message)
Status = Literal["RUNNING", "COMPLETED", "FAILED", "CANCELED", "TERMINATED", "CONTINUED_AS_NEW", "TIMED_OUT", "PAUSED"]


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Which workflows are meant: those that meet every filter. Times are from (included) and to (excluded)."""

    workflow_type: str | None = None
    status: Sequence[Status] = ()
    task_queue: str | None = None
    workflow_id_prefix: str | None = None
    started_from: datetime | None = None
    started_to: datetime | None = None
    closed_from: datetime | None = None
    closed_to: datetime | None = None
    search_attribute: Sequence[str] = ()
    """`Name=value`; of those with one name, any."""
    query: str | None = None
    """A visibility query of the caller's own."""


async def compiled(temporal: Temporal, filters: Filters, *, without_prefixes: Iterable[str]) -> str:
    """The visibility query; `without_prefixes`: workflows whose id starts so are left out, whatever the filters say.

    Filters that mean the same compile to the same query. Raises Problem: `invalid_query`, `validation_error`, ...
    """
    terms = [f"({_checked(filters.query)})"] if filters.query is not None else []
    for column, value in (("WorkflowType", filters.workflow_type), ("TaskQueue", filters.task_queue)):
        if value is not None:
            terms.append(equal(column, value))
    if filters.workflow_id_prefix is not None:
        terms.append(equal("WorkflowId", filters.workflow_id_prefix, "STARTS_WITH"))
    if filters.status:
        terms.append(f"ExecutionStatus IN ({', '.join(sorted({_text(_QUERY_STATUS[s]) for s in filters.status}))})")
    terms += _window("StartTime", filters.started_from, filters.started_to)
    closed = _window("CloseTime", filters.closed_from, filters.closed_to)
    # Temporal takes the close time of what still runs for a day in the year 9999.
    terms += ["CloseTime IS NOT NULL", *closed] if closed else []
    if filters.search_attribute:
        terms += _attributes(filters.search_attribute, await _attribute_types(temporal))
    for hidden in without_prefixes:
        # SQLite's prefixes ignore case: the second half brings back `Order-1`, which is less than `order-` there. In no
        # collation is a text less than its own beginning, so it brings back nothing that is to stay out.
        prefix = _text(hidden)
        terms.append(f"(WorkflowId NOT STARTS_WITH {prefix} OR WorkflowId < {prefix})")
    return " AND ".join(terms)


async def listed(temporal: Temporal, query: str, size: int, token: bytes) -> ListWorkflowExecutionsResponse:
    """A page, in Temporal's order: running, newest first, then closed, last closed first. Raises `invalid_query`."""
    request = ListWorkflowExecutionsRequest(
        namespace=temporal.namespace, query=query, page_size=size, next_page_token=token
    )
    return await _asked(temporal, temporal.service.list_workflow_executions, request)


async def counted(temporal: Temporal, query: str) -> dict[str, int]:
    """How many there are of each status that there are any of. Raises Problem: `invalid_query`, ..."""
    request = CountWorkflowExecutionsRequest(
        namespace=temporal.namespace, query=f"{query} GROUP BY ExecutionStatus".lstrip()
    )
    response = await _asked(temporal, temporal.service.count_workflow_executions, request)
    names = ((msgspec.json.decode(group.group_values[0].data, type=str), group.count) for group in response.groups)
    return {_STATUS_OF.get(name, name): count for name, count in names}


async def _asked(temporal: Temporal, rpc: Callable[..., Awaitable[Response]], request: Message) -> Response:
    try:
        return await temporal.call(rpc, request)
    except Problem as problem:
        if problem.code != "validation_error":
            raise
        reason = problem.message.removeprefix("invalid query: ").replace("*sqlparser.", "").replace("sqlparser.", "")
        raise Problem("invalid_query", f"Temporal refuses this query: {reason}", source="temporal") from None


# --- values ---

_QUERY_STATUS = {name: name.title().replace("_", "") for name in STATUS.values()}
_STATUS_OF = {query: name for name, query in _QUERY_STATUS.items()}
_UNFINDABLE = re.compile(r"""\A'|'\Z|["\\\x00-\x1f]""")
_NOTHING = "RunId = ''"
_Time = Annotated[datetime, Meta(tz=True)]


def _text(value: str) -> str:
    """A text of the query; of one that is unfindable, none may be made."""
    return "'" + value.replace("'", "''") + "'"


def equal(column: str, value: str, operator: str = "=") -> str:
    """A term in which the value is data, whatever it holds."""
    return _NOTHING if _UNFINDABLE.search(value) else f"{column} {operator} {_text(value)}"


def findable(value: str) -> str:
    """What stands in the index for the value: itself, or a hash of one that is unfindable.

    Another value may read like that hash: compare what is found with the value itself.
    """
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}" if _UNFINDABLE.search(value) else value


def _window(column: str, begin: datetime | None, end: datetime | None) -> list[str]:
    bounds = ((">=", begin), ("<", end))
    return [f"{column} {operator} {_text(time.isoformat())}" for operator, time in bounds if time]


def parse_time(key: str, text: str) -> datetime:
    """A moment, in UTC. Raises Problem: `validation_error`."""
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
        temporal.call(temporal.service.get_search_attributes, GetSearchAttributesRequest()),
        temporal.call(temporal.service.describe_namespace, DescribeNamespaceRequest(namespace=temporal.namespace)),
    )
    aliases = described.config.custom_search_attribute_aliases  # empty where the store has no numbered columns
    types = {aliases.get(field, field): kind for field, kind in fields.keys.items()}
    return {name: IndexedValueType.Name(kind).removeprefix("INDEXED_VALUE_TYPE_") for name, kind in types.items()}


def _attributes(pairs: Iterable[str], types: Mapping[str, str]) -> list[str]:
    wanted: dict[str, set[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise invalid("search_attribute", "Expected Name=value, such as OrderStatus=delivered")
        if name not in types or "`" in name:
            message = f"There is no search attribute {name!r} in this namespace."
            raise Problem("invalid_query", message, errors=[FieldError("search_attribute", message)])
        wanted.setdefault(name, set()).add(_attribute(name, types[name], value))
    return [f"({' OR '.join(sorted(terms))})" for _, terms in sorted(wanted.items())]


def _attribute(name: str, kind: str, value: str) -> str:
    column = f"`{name}`"
    match kind:
        case "INT":
            if not re.fullmatch(r"-?\d{1,19}", value, re.ASCII) or not -(2**63) <= int(value) < 2**63:
                raise _not_of(name, "a whole number of 64 bits")
            return f"{column} = {int(value)}"
        case "DOUBLE":
            return f"{column} = {_double(name, value)}"
        case "BOOL":
            if value not in ("true", "false"):
                raise _not_of(name, "true or false")
            return f"{column} = {value}"
        case "DATETIME":
            time = parse_time("search_attribute", value)
            # SQLite keeps milliseconds, and writes them differently from the query's: only a range finds them.
            time = time.replace(microsecond=time.microsecond // 1000 * 1000)
            if time.year == 9999:
                return _NOTHING
            return " AND ".join(_window(column, time, time + timedelta(milliseconds=1)))
        case "TEXT":
            # Any of the words, in every store; what is between them is syntax to some.
            words = re.sub(r"[^\w\u0080-\U0010ffff]+", " ", value).split()
            return f"{column} = {_text(' '.join(words))}" if words else _NOTHING
    return equal(column, value)


def _double(name: str, value: str) -> str:
    if not re.fullmatch(r"[+-]?\d{1,400}(\.\d{1,400})?([eE][+-]?\d{1,3})?", value, re.ASCII):
        raise _not_of(name, "a number")
    number = float(value)
    if number in (float("inf"), float("-inf")):
        raise _not_of(name, "a number of 64 bits")
    if number.is_integer() and abs(number) < 2**53:
        return str(int(number))
    # Temporal's parser has no negative fractions, but its stores read one from a text.
    return repr(number) if number >= 0 else _text(repr(number))


def _not_of(name: str, expected: str) -> Problem:
    return invalid("search_attribute", f"Expected {expected} after {name}=")


# --- the caller's own query ---

# As Temporal's parser sees them; what it may read in another way (comments, `x'41'`, `@@a'`) is no token here.
_TOKEN = re.compile(
    r"""
      [ \t\r\n]+
    | (?P<text>'(?:[^'\\]|\\.|'')*+'|"(?:[^"\\]|\\.|"")*+")
    | `[^`]++`(?!`)
    | (?P<word>(?![xXbB]')[A-Za-z_][A-Za-z0-9_]*+)
    | \d++(?:\.\d++)?(?:[eE][+-]?\d++)?(?![A-Za-z_])
    | (?P<parenthesis>[()])
    | -(?!-) | [=<>,+*%] | !=
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ESCAPES = {"0": "\0", "b": "\b", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a"}
_CLAUSES = {"order": "ORDER BY", "group": "GROUP BY", "limit": "LIMIT"}


def _checked(query: str) -> str:
    """A query that stays in the parentheses that it is put into. Raises Problem: `invalid_query`."""
    position, depth = 0, 0
    while position < len(query) and depth >= 0:
        token = _TOKEN.match(query, position)
        if token is None:
            raise _refused(
                f"Cannot read it from {query[position : position + 20]!r} on; comments are not possible here"
            )
        if clause := _CLAUSES.get((token["word"] or "").lower()):
            raise _refused(f"{clause} is not possible here (a search attribute of that name goes in backticks)")
        if token["text"] and _UNFINDABLE.search(text := _meant(token["text"])):
            raise _refused(f"Temporal's index cannot look for the text {text!r}")
        if token["parenthesis"]:
            depth += 1 if token[0] == "(" else -1
        position = token.end()
    if depth:
        raise _refused("The parentheses do not match")
    if not query.strip(" \t\r\n"):
        raise _refused("Expected a condition, such as ExecutionStatus = 'Running'")
    return query


def _meant(text: str) -> str:
    """The text between the quotes, as Temporal's parser reads it."""
    escaped = rf"\\(.)|{text[0]}{text[0]}"
    return re.sub(escaped, lambda e: _ESCAPES.get(e[1], e[1]) if e[1] else text[0], text[1:-1], flags=re.DOTALL)


def _refused(message: str) -> Problem:
    return Problem("invalid_query", f"query: {message}", errors=[FieldError("query", message)])
