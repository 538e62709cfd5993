"""The crowd: how many HTTP connections there are, over all listeners, and from where."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

# The worth of a connection that is served.
SERVED = 2


@dataclass(slots=True)
class Member:
    """One connection.

    Attributes:
        worth: below 0 where its client does not take what it is sent, by the seconds for which that has lasted; 0 where
            it idles or a stranger has not sent a whole request, 1 where a known caller has not, 2 while it is served.
            What is worth least ends first, what is served never.
        end: ends it.
    """

    source: str
    worth: Callable[[], float]
    end: Callable[[], None]


class Crowd:
    """Keeps the number of connections within its limit, and lets no source take all of it.

    Args:
        limit: connections at once; one source may have half of them, rounded up.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.limit_per_source = (limit + 1) // 2
        self._members = 0
        self._sources: dict[str, dict[int, Member]] = {}  # of each source the oldest first

    def has_room_for(self, source: str) -> bool:
        """Return whether one more connection from there may be; where all places are taken, make one if it can be.

        The place is one of the source that has the most: of the least worth, and of these the oldest. A source that has
        all that it may have makes room only by a connection whose client takes nothing.
        """
        own = len(self._sources.get(source, ()))
        if own >= self.limit_per_source:
            return self._end_one_of(self._sources[source], 0)
        if self._members < self._limit:
            return True
        for members in sorted(self._sources.values(), key=len, reverse=True):
            if len(members) < own:
                break  # a source with more takes nothing from one with less
            if self._end_one_of(members, SERVED):
                return True
        return False

    def _end_one_of(self, members: dict[int, Member], below: float) -> bool:
        """End the one that is worth least, if that is less than this."""
        worth, key = min(((member.worth(), key) for key, member in members.items()), key=itemgetter(0))
        if worth >= below:
            return False
        member = members[key]
        self._remove(member)
        member.end()
        return True

    def enter(self, member: Member) -> Callable[[], None]:
        """Count a connection; return what to call when it is gone."""
        self._members += 1
        self._sources.setdefault(member.source, {})[id(member)] = member

        def leave() -> None:
            if self._sources.get(member.source, {}).get(id(member)) is member:
                self._remove(member)

        return leave

    def _remove(self, member: Member) -> None:
        self._members -= 1
        members = self._sources[member.source]
        del members[id(member)]
        if not members:
            del self._sources[member.source]
