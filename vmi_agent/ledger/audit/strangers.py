"""What the audit records of peers that are not let in: so few rows a day that they fill no disk, whatever they do.

The audit is never pruned, and a stranger needs no more than a connection for a row. So all strangers together share a
quota: a burst, then a row every minute and a half. What is left out is counted, and the next row says how much that
was; the log has its own, wider limit.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

ROWS_A_DAY = 1_000
ROWS_AT_ONCE = 100

_DAY_S = 86_400.0
# In any 24 hours no more than a full bucket and what flows into it.
_ROWS_PER_S = (ROWS_A_DAY - ROWS_AT_ONCE) / _DAY_S


class StrangerAudit:
    """Records up to `ROWS_A_DAY` events in any 24 hours, `ROWS_AT_ONCE` of them at once, and counts the others.

    Args:
        note: writes an event to the audit, without waiting for it.
        now: seconds, of a clock that nobody sets.
    """

    def __init__(self, note: Callable[[str, Mapping[str, object]], None], now: Callable[[], float]) -> None:
        self._note = note
        self._now = now
        self._room = float(ROWS_AT_ONCE)
        self._seen = now()
        self._left_out: Counter[str] = Counter()

    def __call__(self, event: str, **fields: Any) -> None:
        """Record an event, or count it. A field `left_out_before` counts events of its name that were left out."""
        now = self._now()
        self._room = min(ROWS_AT_ONCE, self._room + (now - self._seen) * _ROWS_PER_S)
        self._seen = now
        self._left_out[event] += fields.pop("left_out_before", 0)
        if self._room < 1:
            self._left_out[event] += 1
            return
        self._room -= 1
        count = self._left_out.pop(event, 0)
        self._note(event, fields | ({"left_out_before": count} if count else {}))

    def finish(self) -> None:
        """Record how many events were left out since the last row of their name, if there are any."""
        left_out = {event: count for event, count in sorted(self._left_out.items()) if count}
        self._left_out.clear()
        if left_out:
            self._note("strangers left out", {"left_out": left_out})
