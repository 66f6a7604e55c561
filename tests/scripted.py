"""A Temporal that answers as a test tells it: what a real one does only after long, or seldom."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from google.protobuf.message import Message
from temporalio.service import RPCError, RPCStatusCode

from temporal_api.memory import Memory
from temporal_api.temporal.client import Temporal
from temporal_api.temporal.payloads import DATA_CONVERTER
from temporal_api.temporal.workflow import Workflow

AWAY = RPCError("away", RPCStatusCode.UNAVAILABLE, b"")
REFUSED = RPCError("no", RPCStatusCode.PERMISSION_DENIED, b"")


class Scripted:
    """A workflow service that answers call by call. The last answer of a call stays; a call without one never answers.

    An answer may be a future. Reads of a history that wait for news are scripted as `wait_for_history`.
    """

    def __init__(self, **script: list[Any]) -> None:
        self.script = script
        self.asked: Counter[str] = Counter()
        self.open: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        """The call of that name."""

        async def call(request: Any, **_: Any) -> Message:
            waits = name == "get_workflow_execution_history" and request.wait_new_event
            called = "wait_for_history" if waits else name
            self.asked[called] += 1
            self.open[called] += 1
            try:
                answers = self.script.get(called) or [asyncio.Future()]
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(answer, asyncio.Future):
                    answer = await asyncio.shield(answer)
                if isinstance(answer, Exception):
                    raise answer
                return answer  # type: ignore[no-any-return]
            finally:
                self.open[called] -= 1

        return call

    def temporal(self, seconds: float = 5) -> Temporal:
        """A connection to it."""
        client: Any = SimpleNamespace(namespace="default", identity="test", data_converter=DATA_CONVERTER)
        service: Any = self
        return Temporal(client, service, service, seconds, Memory(2**28))

    def workflow(self, seconds: float = 5) -> Workflow:
        """A run that it knows."""
        return Workflow(self.temporal(seconds), "w", "r")
