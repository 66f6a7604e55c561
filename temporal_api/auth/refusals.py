"""Refused tokens: the caller gets a short reason, the log what was expected and what was found."""

import logging
import time

from temporal_api import errors

EVERY_SECONDS = 1.0
"""The log gets at most one line for each reason in this time."""

log = logging.getLogger(__name__)


class Refusals:
    """Logs and makes refusals. Reasons are fixed texts, so its memory does not grow with what callers send."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, int]] = {}
        """For each reason: when it was last logged, and how many were left out since."""

    def invalid(self, why: str, found: str) -> errors.InvalidToken:
        """Make the 401 for the caller. `found` may quote the token, and goes only to the log."""
        self.note(f"a token was refused: {why}", found)
        return errors.InvalidToken(f"The token is not accepted: {why}.")

    def note(self, what: str, found: str) -> None:
        """Log a reason, or only count it if it was logged a moment ago."""
        now = time.monotonic()
        told_at, untold = self._told.get(what, (float("-inf"), 0))
        if now - told_at < EVERY_SECONDS:
            self._told[what] = (told_at, untold + 1)
            return
        self._told[what] = (now, 0)
        log.warning("%s: %s%s", what, found, f" (and {untold} like it before)" if untold else "")


def shown(value: object) -> str:
    """A token's content for the log: on one line, shortened."""
    return errors.shown(ascii(value))
