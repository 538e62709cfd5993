"""The door to the agents: requests to be signed go through in fair turns, or are refused in milliseconds.

The queue is here and not at the agents, because here it is known who asks: an address, an account, a connection. Each
agent has only so much of it in its hands as keeps it busy, so that whoever comes next waits a few turns and no more.
"""

from types import TracebackType
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.errors import AgentBusy, AgentUnavailable, ExchangeError
from runtime.limits.admission import Admission, Entrant
from runtime.limits.fair_queue import Path

# What an agent with sixteen signers and a group commit needs to be busy, and as much again for the way.
AT_ONE_AGENT = 64
FIRST_RETRY_AFTER_MS = 1_000
LONGEST_RETRY_AFTER_MS = 60_000


class Agents(Protocol):
    """What is seen from here of those who are asked."""

    @property
    def connected(self) -> int:
        """How many there are."""

    @property
    def room(self) -> int:
        """How many more requests they take at this moment."""


class Door:
    """The one queue of a proxy.

    Args:
        clock: the reactor, or a `Clock`.
        agents: who are asked.
        limit: how many may wait; see `runtime.limits.admission` for their octets.
    """

    def __init__(self, clock: IReactorTime, agents: Agents, limit: int) -> None:
        self._agents = agents
        self._admission = Admission(clock.seconds, self._has_room, limit)
        self._turns: dict[Entrant, Turn] = {}  # of who waits

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._admission.waiting

    def look(self) -> None:
        """Let in as many as there is room for, or refuse all where nobody is left who could answer.

        To be called when an agent has room, is ready, or is lost.
        """
        if self._agents.connected:
            self._admission.let_in()
            return
        for entrant in self._admission.refuse_all():
            self._turns.pop(entrant).refuse(AgentUnavailable())

    def turn(self, path: Path, octets: int, deadline: Deadline) -> "Turn":
        """Return a turn, which is held from its beginning to the end of the `async with`.

        Whoever hangs up, or whose deadline passes, is to be cancelled, and is forgotten at once.

        Args:
            path: whose turn it takes: network, site, source, account, connection.
            octets: that the request holds while it waits.
            deadline: before which a turn is of use.

        Raises:
            AgentUnavailable: no agent is connected, or none any more.
            AgentBusy: there is no room, or not before the deadline.
        """
        if not self._agents.connected:
            raise AgentUnavailable

        def start() -> None:
            self._turns.pop(entrant).begin()

        def refuse(wait_s: float) -> None:
            self._turns.pop(entrant).refuse(busy(wait_s))

        entrant = Entrant(path, octets, deadline.ends_at, start, refuse)
        return Turn(self, entrant)

    def enter(self, entrant: Entrant, turn: "Turn") -> None:
        """Let it begin, wait or be refused, and tell the turn."""
        self._turns[entrant] = turn
        self._admission.enter(entrant)

    def leave(self, entrant: Entrant) -> None:
        """A turn is over."""
        self._admission.leave(entrant)

    def forget(self, entrant: Entrant) -> None:
        """Nobody waits for this turn any more."""
        del self._turns[entrant]
        self._admission.withdraw(entrant)

    def _has_room(self) -> bool:
        agents = self._agents
        return agents.room > 0 and self._admission.under_way < agents.connected * AT_ONE_AGENT


class Turn:
    """One turn, for one `async with`. What begins at once waits for nothing."""

    __slots__ = ("_door", "_entrant", "_error", "_has_begun", "_waiting")

    def __init__(self, door: Door, entrant: Entrant) -> None:
        self._door = door
        self._entrant = entrant
        self._has_begun = False
        self._error: ExchangeError | None = None
        self._waiting: Deferred[None] | None = None

    def begin(self) -> None:
        """It is its turn."""
        self._has_begun = True
        if self._waiting is not None:
            self._waiting.callback(None)

    def refuse(self, error: ExchangeError) -> None:
        """It never will be."""
        self._error = error
        if self._waiting is not None:
            self._waiting.callback(None)

    async def __aenter__(self) -> None:
        self._door.enter(self._entrant, self)
        if not self._has_begun and self._error is None:
            self._waiting = Deferred(lambda _: self._door.forget(self._entrant))
            await self._waiting
        if self._error is not None:
            raise self._error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._door.leave(self._entrant)


def busy(wait_s: float) -> AgentBusy:
    """Return the refusal of a request for which there may be room after so many seconds."""
    return AgentBusy(min(LONGEST_RETRY_AFTER_MS, FIRST_RETRY_AFTER_MS + round(wait_s * 1000)))
