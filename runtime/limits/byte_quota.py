"""Room for request bodies: how many octets of them are in memory, over all connections, and from where."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Holding:
    """What one request holds of its body.

    Attributes:
        give_up: ends the request, which releases this; None where the body is whole and is served.
    """

    source: str
    give_up: Callable[[], None] | None
    octets: int = 0


class BodyRoom:
    """Keeps the octets of bodies within their limit, and lets no source take another one's share.

    Where more comes than there is room for, the source that holds the most gives up: the one that just asks, if there
    is none that holds more, else the largest body that is not whole yet. So whoever holds less than an equal share is
    never refused for what others send.

    Args:
        limit: in octets.

    Attributes:
        held_octets: how many are held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._holdings: dict[str, set[Holding]] = {}
        self._sources: Counter[str] = Counter()
        self.held_octets = 0

    def take(self, holding: Holding, octets: int) -> bool:
        """Hold more of a body; return False, and hold nothing of it any more, where there is no room."""
        self._holdings.setdefault(holding.source, set()).add(holding)
        holding.octets += octets
        self._sources[holding.source] += octets
        self.held_octets += octets
        while self.held_octets > self.limit:
            give_up = self._who_gives_up(holding)
            if give_up is None:
                self.release(holding)
                return False
            give_up()
        return True

    def release(self, holding: Holding) -> None:
        """Forget what a request held; may be called again."""
        holdings = self._holdings.get(holding.source, set())
        if holding in holdings:
            holdings.remove(holding)
            self._sources[holding.source] -= holding.octets
            self.held_octets -= holding.octets
            if not holdings:
                del self._holdings[holding.source], self._sources[holding.source]
        holding.octets = 0

    def _who_gives_up(self, asking: Holding) -> Callable[[], None] | None:
        """Return what makes room, None where whoever asks is to go without."""
        most = self._sources[asking.source]
        for source, held in self._sources.most_common():
            if held <= most:
                return None
            unfinished = [each for each in self._holdings[source] if each.give_up is not None]
            if unfinished:
                return max(unfinished, key=lambda each: each.octets).give_up
        return None
