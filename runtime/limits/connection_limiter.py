"""The doorway: connections that have not said HELLO yet, so that strangers take no proxy's place."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

LIMIT = 64
LIMIT_PER_SOURCE = 32
# How long a connection that is setting up TLS is left alone, whoever else comes from the same address.
GRACE_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Stranger:
    """One such connection; `cut` ends it."""

    source: str
    since: float
    cut: Callable[[], None]


class Doorway:
    """Keeps the number of strangers within its limit, and lets no source take another one's place."""

    def __init__(self) -> None:
        self._strangers: dict[Stranger, None] = {}  # oldest first

    def has_room_for(self, source: str, now: float) -> bool:
        """Return whether one more from there may be; where all places are taken, make one if it can be.

        A source that has half of the places loses its own oldest, once that had its time. Where all are taken, the
        source that has the most loses its oldest.
        """
        own = [stranger for stranger in self._strangers if stranger.source == source]
        if len(own) >= LIMIT_PER_SOURCE:
            if now - own[0].since < GRACE_S:
                return False
            self._cut(own[0])
        elif len(self._strangers) >= LIMIT:
            crowded, _ = Counter(stranger.source for stranger in self._strangers).most_common(1)[0]
            self._cut(next(stranger for stranger in self._strangers if stranger.source == crowded))
        return True

    def enter(self, stranger: Stranger) -> Callable[[], None]:
        """Count a connection; return what to call once it has said HELLO, or is gone."""
        self._strangers[stranger] = None
        return lambda: self._strangers.pop(stranger, None)

    def _cut(self, stranger: Stranger) -> None:
        del self._strangers[stranger]
        stranger.cut()
