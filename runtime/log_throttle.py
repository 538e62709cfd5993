"""Log lines that a stranger can cause, so few that they fill no disk."""

from collections.abc import Callable
from typing import Any

LINES_AT_ONCE = 50
LINES_PER_S = 1.0


class Sparse:
    """Lets fifty lines of each event through at once and then one a second; a line says how many were left out.

    Args:
        write: a method of a `Logger`.
        now: seconds, of any clock.
    """

    def __init__(self, write: Callable[..., None], now: Callable[[], float]) -> None:
        self._write = write
        self._now = now
        # By event, of which there are few: for how many lines there is room, since when, and how many were left out.
        self._events: dict[str, tuple[float, float, int]] = {}

    def __call__(self, event: str, **fields: Any) -> None:
        """Log an event, or count it."""
        now = self._now()
        room, seen, left_out = self._events.get(event, (float(LINES_AT_ONCE), now, 0))
        room = min(LINES_AT_ONCE, room + max(0.0, now - seen) * LINES_PER_S)
        if room < 1:
            self._events[event] = (room, now, left_out + 1)
            return
        self._events[event] = (room - 1, now, 0)
        if left_out:
            fields["left_out_before"] = left_out
        self._write(event, **fields)
