"""The crowd: how many HTTP connections there are, over all listeners, and from where."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Member:
    """One connection.

    Attributes:
        worth: 0 where it idles or a stranger has not sent a whole request, 1 where somebody who is known has not, 2
            while it is served. What is worth least ends first, what is served never.
        end: ends it.
    """

    source: str
    worth: Callable[[], int]
    end: Callable[[], None]


class Crowd:
    """Keeps the number of connections within its limit, and lets no source take all of it.

    Args:
        limit: connections at once; one source may have half of them, rounded up.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.limit_per_source = (limit + 1) // 2
        self._members: dict[int, Member] = {}  # oldest first
        self._sources: Counter[str] = Counter()

    def has_room_for(self, source: str) -> bool:
        """Return whether one more connection from there may be; where all places are taken, make one if it can be.

        The place is one of the source that has the most: of the least worth, and of these the oldest.
        """
        if self._sources[source] >= self.limit_per_source:
            return False
        if len(self._members) < self._limit:
            return True
        for crowded, count in self._sources.most_common():
            if count < self._sources[source]:
                break  # who has more takes nothing from who has less
            for worth in (0, 1):
                for key, member in self._members.items():
                    if member.source == crowded and member.worth() == worth:
                        self._remove(key)
                        member.end()
                        return True
        return False

    def enter(self, member: Member) -> Callable[[], None]:
        """Count a connection; return what to call when it is gone."""
        key = id(member)
        self._members[key] = member
        self._sources[member.source] += 1

        def leave() -> None:
            if self._members.get(key) is member:
                self._remove(key)

        return leave

    def _remove(self, key: int) -> None:
        source = self._members.pop(key).source
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]
