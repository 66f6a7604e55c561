"""Conditional requests (RFC 9110 13): ETag, If-None-Match with 304, If-Match with 412."""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from litestar.openapi.datastructures import ResponseSpec

from temporal_api.auth import APIRequest
from temporal_api.errors import PreconditionFailed
from temporal_api.requests import JSONResponse
from temporal_api.services import Services
from temporal_api.temporal import endings, feeds
from temporal_api.temporal.endings import Ending
from temporal_api.temporal.run import Run
from temporal_api.waiting import joined, long_header, preference_applied, preferred_wait

T = TypeVar("T")

STATUS_HEADERS = dict.fromkeys((200, 304), ("ETag", "Preference-Applied"))
NOT_MODIFIED = {304: ResponseSpec(None, description="Nothing has changed.", generate_examples=False)}
"""For the contract: the headers and the 304 of `answer_status`."""

_TAG = re.compile(r'"([^"]*)"')
# What a proxy appends to the tag of an answer that it compresses: `-gzip`, `--gzip`, `;br`, `:zstd`. A version ends in
# a number, so this is never a part of one.
_PROXY_SUFFIX = re.compile(r"(?:[-;:+./_]{1,2}[A-Za-z]\w{1,15})+")
_TAGS = r'^\s*(\*|(W/)?"[^"]*"(\s*,\s*(W/)?"[^"]*")*)\s*$'
IfNoneMatch = Annotated[str | None, long_header("If-None-Match", "The `ETag` of the answer that you have.", _TAGS)]
IfMatch = Annotated[
    str | None,
    long_header(
        "If-Match",
        "The `ETag` of the state to change, several, or `*`. If the state is another, the answer is 412. Of changes "
        "sent at the same moment, more than one may pass.",
        _TAGS,
    ),
]


async def answer_status(
    services: Services,
    request: APIRequest,
    if_none_match: str | None,
    read: Callable[[], Awaitable[tuple[T, Run]]],
    body: Callable[[T, Run, Ending | None], Awaitable[msgspec.Struct]],
) -> JSONResponse[Any]:
    """Read the state and answer with its `body`, or with 304 if `If-None-Match` names this state.

    With `Prefer: wait`, first wait until the state is another.
    """
    seconds = preferred_wait(request, services.settings.max_wait_seconds) if if_none_match else None
    found, run = await read()
    known = if_none_match and is_known(request, run)
    if seconds and known and run.is_open:
        workflow, sizes = services.workflow(run.workflow_id, run.run_id), (run.history_length, run.history_bytes)
        del found, run  # they may be large, and the wait long
        await services.waits.within(request, seconds, lambda: feeds.wait_for_change(workflow, *sizes))
        # Read again even if the wait was cut off: an activity's next attempt changes the run, but adds no event.
        found, run = await read()
        known = is_known(request, run)
    # Weak: two answers with the same tag need not have the same bytes (RFC 9110 8.8.1).
    headers = {"ETag": f'W/"{run.version}"', **preference_applied(request, seconds)}
    if known:
        return JSONResponse(None, status_code=304, headers=headers)
    ending = None if run.is_open else await endings.read(services.workflow(run.workflow_id, run.run_id))
    return JSONResponse(await body(found, run, ending), headers=headers)


def is_known(request: APIRequest, run: Run) -> bool:
    """Whether `If-None-Match` names the run's present state, by weak comparison (RFC 9110 13.1.2)."""
    return matches(joined(request, "If-None-Match"), run.version)


def check_match(request: APIRequest, run: Run) -> None:
    """Raise PreconditionFailed when `If-Match` names other states than the run's present one.

    RFC 9110 13.1.1 compares strongly, by which no weak ETag ever matches, and all of ours are weak: the comparison here
    is weak. Two answers with the same tag tell the same state, which is what a change depends on.
    """
    if not matches(joined(request, "If-Match"), run.version):
        raise PreconditionFailed(workflow_id=run.workflow_id, run_id=run.run_id)


def matches(tags: str, version: str) -> bool:
    """Whether one of the tags is this version, or this version with a proxy's suffix."""
    found = (tag.removeprefix(version) for tag in _TAG.findall(tags) if tag.startswith(version))
    return tags.strip() == "*" or any(not suffix or _PROXY_SUFFIX.fullmatch(suffix) for suffix in found)
