"""The choice among the agents: which one is asked next, and who waits until one can be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred, TimeoutError

from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.errors import AgentBusy, AgentUnavailable

# Half of the connections that the HTTP side takes by default; who waits holds its CSR, at most 16 KiB.
WAITING_LIMIT = 256
# Of the requests under way so many may be at two agents at once, and one always: what is slow because there is too much
# to do is not to become more.
HEDGED_SHARE = 1 / 8

MayAsk = Callable[[AgentLink], bool]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    may_ask: MayAsk
    found: Deferred[AgentLink]


class Choice:
    """All agents of this proxy, and the requests that have none at the moment.

    Attributes:
        under_way: requests that are at an agent, or between two; bounded by the HTTP side's connections.
        hedged: those of them that are at two agents.
        on_room: called when there is room at an agent that had none, after those who waited for it here, and when an
            agent takes no more.
    """

    def __init__(self, links: Sequence[AgentLink]) -> None:
        self.links = links
        self.under_way = 0
        self.hedged = 0
        self.on_room: Callable[[], None] = lambda: None
        self._waiting: list[_Waiter] = []  # at most WAITING_LIMIT
        for link in links:
            link.on_room = self._room_changed

    @property
    def connected(self) -> int:
        """How many agents are connected."""
        return len([link for link in self.links if link.connected])

    @property
    def room(self) -> int:
        """How many more requests the connected agents take at this moment."""
        return sum([link.room for link in self.links])

    def first(self) -> AgentLink:
        """Return the agent that a new request is asked of, at once.

        Raises:
            AgentUnavailable, AgentBusy: none is connected, or none of these has room.
        """
        found = self.best(lambda _link: True)
        if found is not None:
            return found
        raise AgentBusy if any(link.connected for link in self.links) else AgentUnavailable

    def best(self, may_ask: MayAsk) -> AgentLink | None:
        """Return the connected agent with room that does well and has the fewest answers to give."""
        able = [link for link in self.links if link.room > 0 and may_ask(link)]
        if len(able) < 2:
            return able[0] if able else None
        return min(able, key=lambda link: (link.is_ailing, link.unanswered))

    def spare(self, may_ask: MayAsk) -> AgentLink | None:
        """Return an agent that does well, for a request that is at another one already; None where too many are."""
        if self.hedged >= max(1, int(self.under_way * HEDGED_SHARE)):
            return None
        found = self.best(may_ask)
        return None if found is None or found.is_ailing else found

    async def wait(self, may_ask: MayAsk, limit_s: float) -> AgentLink | None:
        """Wait for an agent that has room; None where there is none in time, or too many wait."""
        if limit_s <= 0 or len(self._waiting) >= WAITING_LIMIT:
            return None
        waiter = _Waiter(may_ask, Deferred())
        self._waiting.append(waiter)
        try:
            return await waiter.found.addTimeout(limit_s, self.links[0].clock)
        except TimeoutError:
            return None
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _room_changed(self) -> None:
        # In the order in which they came. Whoever gets a place takes it before the next one is looked at.
        for waiter in list(self._waiting):
            link = self.best(waiter.may_ask)
            if link is not None and waiter in self._waiting:
                self._waiting.remove(waiter)
                waiter.found.callback(link)
        self.on_room()
