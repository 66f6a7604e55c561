"""A refused token: the caller is told what to do, the operator's log what was expected and what was found."""

import logging
import time

from temporal_api import errors

EVERY_SECONDS = 1.0
"""However many tokens are refused, the log has one line for each reason in this time."""

log = logging.getLogger(__name__)


class Refusals:
    """What is refused, and why. Reasons are fixed texts: nothing here grows with what callers send."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, int]] = {}
        """When a line was written, and how many like it were not since then."""

    def invalid(self, why: str, found: str) -> errors.InvalidToken:
        """A 401 for the caller. `found` may hold what the token says, and goes to the log alone."""
        self.note(f"a token was refused: {why}", found)
        return errors.InvalidToken(f"The token is not accepted: {why}.")

    def note(self, what: str, found: str) -> None:
        """Write a line, unless that one was written a moment ago; then count it."""
        now = time.monotonic()
        told_at, untold = self._told.get(what, (float("-inf"), 0))
        if now - told_at < EVERY_SECONDS:
            self._told[what] = (told_at, untold + 1)
            return
        self._told[what] = (now, 0)
        log.warning("%s: %s%s", what, found, f" (and {untold} like it before)" if untold else "")


def shown(value: object) -> str:
    """What a token says, fit for a log: in one line, and not for ever."""
    return errors.shown(ascii(value))
