"""Log lines that a stranger can cause, so few that they fill no disk."""

from collections.abc import Callable
from typing import Any

LINES_AT_ONCE = 50
LINES_PER_S = 1.0


class Sparse:
    """Lets fifty lines through at once and then one a second; a line says how many before it were left out.

    Args:
        write: a method of a `Logger`.
        now: seconds, of any clock.
    """

    def __init__(self, write: Callable[..., None], now: Callable[[], float]) -> None:
        self._write = write
        self._now = now
        self._room = float(LINES_AT_ONCE)
        self._seen = now()
        self._left_out = 0

    def __call__(self, event: str, **fields: Any) -> None:
        """Log an event, or count it."""
        now = self._now()
        self._room = min(LINES_AT_ONCE, self._room + max(0.0, now - self._seen) * LINES_PER_S)
        self._seen = now
        if self._room < 1:
            self._left_out += 1
            return
        self._room -= 1
        if self._left_out:
            fields["left_out_before"], self._left_out = self._left_out, 0
        self._write(event, **fields)
