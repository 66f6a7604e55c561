"""A refused token: the caller is told what to do, the operator's log what was expected and what was found."""

import logging
import time

from temporal_api.errors import ExpiredToken, InvalidToken

EVERY_SECONDS = 1.0
"""However many tokens are refused, the log has one line for each reason in this time."""

log = logging.getLogger(__name__)


class Refusals:
    """What is refused, and why. Reasons are fixed texts: nothing here grows with what callers send."""

    def __init__(self) -> None:
        self._told_at: dict[str, float] = {}
        self._untold: dict[str, int] = {}

    def invalid(self, why: str, found: str) -> InvalidToken:
        """A 401 for the caller. `found` may hold what the token says, and goes to the log alone."""
        self.note(f"a token was refused: {why}", found)
        return InvalidToken(f"The token is not accepted: {why}.")

    def expired(self, found: str) -> ExpiredToken:
        """A 401 for a token whose time is over."""
        self.note("a token was refused: it has expired", found)
        return ExpiredToken()

    def note(self, what: str, found: str) -> None:
        """Write a line, unless that one was written a moment ago; then count it."""
        now = time.monotonic()
        if now - self._told_at.get(what, float("-inf")) < EVERY_SECONDS:
            self._untold[what] = self._untold.get(what, 0) + 1
            return
        self._told_at[what] = now
        more = self._untold.pop(what, 0)
        log.warning("%s: %s%s", what, found, f" (and {more} like it before)" if more else "")


def shown(value: object) -> str:
    """What a token says, fit for a log: in one line of ASCII, and not for ever."""
    text = ascii(value)
    return text if len(text) <= 200 else text[:200] + "..."
