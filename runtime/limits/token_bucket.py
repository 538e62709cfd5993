"""Sources: where requests come from, and how much each may ask for, in bounded memory."""

from collections import OrderedDict

from runtime.limits.networks import source_of as source_of

SOURCES_LIMIT = 4096


class Allowance:
    """A token bucket per source: `burst` at once, then `per_s` a second.

    Args:
        per_s: tokens that come back in a second.
        burst: tokens at most, which a source has that was not seen before.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, source: str, now: float) -> float:
        """Return in how many seconds a token is there; 0 for now. Takes none."""
        return max(0.0, (1 - self._level(source, now)) / self._per_s)

    def take(self, source: str, now: float) -> float:
        """Take a token and return 0, or take none and return in how many seconds there is one."""
        level = self._level(source, now)
        if level < 1:
            return (1 - level) / self._per_s
        self._levels[source] = (level - 1, now)
        self._levels.move_to_end(source)
        if len(self._levels) > SOURCES_LIMIT:
            self._levels.popitem(last=False)
        return 0.0

    def give_back(self, source: str) -> None:
        """Give a token back that was taken."""
        if source in self._levels:
            level, seen = self._levels[source]
            self._levels[source] = (min(self._burst, level + 1), seen)

    def _level(self, source: str, now: float) -> float:
        level, seen = self._levels.get(source, (self._burst, now))
        # A clock that was set back gives nothing, and takes nothing.
        return min(self._burst, level + max(0.0, now - seen) * self._per_s)
