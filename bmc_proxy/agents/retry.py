"""One request at the agents: repeated elsewhere where one cannot answer, and asked of two where one is slow.

Every request may be repeated. Reading changes nothing, and the same requester and CSR, or the same Idempotency-Key, get
the same certificate however often they ask.

An agent that answered this request, with whatever it was, is not asked again. One whose connection broke may have done
everything or nothing, and may be asked again over its next connection.
"""

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from bmc_proxy.agents.balancer import Choice
from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.errors import AgentBusy, AgentFailed, AgentTimeout, AgentUnavailable, ExchangeError
from runtime.log_throttle import Sparse

# An agent that restarts is back in about one second, and is looked for four times in each.
RETURN_S = 2.0
# A request that brings down whatever reads it is not carried on to the next one for ever.
BREAKS_LIMIT = 3
# No answer for a third of the time that is left, or for so long: the agent may have stopped. Not sooner, because one
# with a slow key and a full window is no better for being asked twice.
SLOW_S = 5.0
SLOW_SHARE = 1 / 3
# With little time left nobody is called slow.
LEAST_SLOW_S = 0.25
# Where nobody can be asked instead: how long until the next look.
LOOK_AGAIN_S = 0.5

# The most telling first. That the deadline passed says that there may be a certificate, and that a retry gets it. An
# agent that is busy can be asked soon. That one failed says more than that another is away, which it may be for good.
_TELLING = (AgentTimeout, AgentBusy, AgentFailed, AgentUnavailable)

_Answer = TypeVar("_Answer")


class _NoneAnswered(Exception):
    """Of those that were asked; `last` is the last one."""

    def __init__(self, last: AgentLink) -> None:
        super().__init__()
        self.last = last


class Attempts(Generic[_Answer]):
    """One request.

    Memory: as many entries of each kind as there are agents, and of errors `BREAKS_LIMIT` more.

    Args:
        choice: among which agents.
        work: asks one agent and returns what it answers; cancelled where nobody waits for that any more.
        deadline: by when; `work` keeps to it as well.
        tell: logs that a request was repeated.
        patience_s: where a connection broke and nobody else can be asked: how long to wait for somebody.
        may_hedge: `work` may go on at two agents at once.
    """

    def __init__(
        self,
        choice: Choice,
        work: Callable[[AgentLink], Coroutine[Any, Any, _Answer]],
        deadline: Deadline,
        tell: Sparse,
        *,
        patience_s: float = 0.0,
        may_hedge: bool = True,
    ) -> None:
        self._choice = choice
        self._work = work
        self._deadline = deadline
        self._tell = tell
        self._patience_s = patience_s
        self._may_hedge = may_hedge and len(choice.links) > 1
        self._is_hedged = False
        self._look_at = 0.0
        self._asked: dict[AgentLink, Deferred[_Answer]] = {}
        self._ended: list[tuple[AgentLink, _Answer | Failure]] = []
        self._an_end: Deferred[None] | None = None
        self._answered: set[AgentLink] = set()
        self._connections: dict[AgentLink, int] = {}  # the last one over which each was asked
        self._errors: list[ExchangeError] = []
        self._breaks = 0

    async def run(self) -> _Answer:
        """Return the first answer.

        Raises:
            ExchangeError: the request was refused; or none of the agents could answer, and this says most of why.
        """
        link = self._choice.first()
        self._choice.under_way += 1
        try:
            while True:
                try:
                    return await (self._of_several(link) if self._may_hedge else self._of_one(link))
                except _NoneAnswered as none:
                    link = await self._another(none.last)
        finally:
            self._choice.under_way -= 1
            self._give_up()

    async def _of_one(self, link: AgentLink) -> _Answer:
        """Return the agent's answer. Raises _NoneAnswered where another one may be asked."""
        self._connections[link] = link.connections
        try:
            return await self._work(link)
        except ExchangeError as error:
            self._failed(link, error)
            raise _NoneAnswered(link) from error

    async def _of_several(self, link: AgentLink) -> _Answer:
        """Return the agent's answer, or that of another one where it is slow. Raises as `_of_one` does."""
        self._look_at = self._when_slow()
        self._ask(link)
        while self._asked or self._ended:
            link, result = await self._next_end()
            if not isinstance(result, Failure):
                return result
            self._failed(link, result.value)
        raise _NoneAnswered(link)

    def _when_slow(self) -> float:
        after_s = min(SLOW_S, self._deadline.left_s * SLOW_SHARE)
        return self._deadline.clock.seconds() + max(LEAST_SLOW_S, after_s)

    def _ask(self, link: AgentLink) -> None:
        work = Deferred.fromCoroutine(self._work(link))
        self._asked[link] = work
        self._connections[link] = link.connections
        work.addBoth(partial(self._end, link))

    def _end(self, link: AgentLink, result: _Answer | Failure) -> None:
        """An agent answered, or could not; of one that was given up nothing is wanted any more."""
        if self._asked.pop(link, None) is None:
            return
        self._ended.append((link, result))
        if self._an_end is not None:
            an_end, self._an_end = self._an_end, None
            an_end.callback(None)

    async def _next_end(self) -> tuple[AgentLink, _Answer | Failure]:
        """Wait for the end of an attempt; where it takes long, begin another one beside it."""
        clock = self._deadline.clock
        while not self._ended:
            waiting: Deferred[None] = Deferred()
            self._an_end = waiting
            if self._may_hedge and len(self._asked) == 1:
                waiting.addTimeout(max(0.0, self._look_at - clock.seconds()), clock)
            try:
                await waiting
            except TimeoutError:
                self._an_end = None
                self._hedge()
        return self._ended.pop(0)

    def _hedge(self) -> None:
        """Ask a second agent as well, or look again a little later."""
        [slow] = self._asked
        slow.failed()
        other = self._choice.spare(self._may_ask)
        if other is None:
            self._look_at = self._deadline.clock.seconds() + LOOK_AGAIN_S
            return
        self._tell("request asked of a second agent as well", slow=slow.name, agent=other.name)
        self._choice.hedged += 1
        self._is_hedged = True
        self._ask(other)

    def _failed(self, link: AgentLink, error: BaseException | None) -> None:
        """Take down why an agent did not answer; raise what no other agent would answer otherwise."""
        self._no_longer_hedged()
        assert error is not None  # Twisted's word for it; a failure has one
        if not isinstance(error, ExchangeError) or not error.repeatable:
            raise error
        self._errors.append(error)
        if isinstance(error, AgentUnavailable):
            self._breaks += 1
        else:
            self._answered.add(link)

    async def _another(self, before: AgentLink) -> AgentLink:
        """Return who is asked next. Raises what says most of why nobody is."""
        found = None
        if self._breaks < BREAKS_LIMIT:
            found = self._choice.best(self._may_ask)
            if found is None and self._breaks:
                found = await self._wait()
        if self._deadline.left_s <= 0:
            raise AgentTimeout
        if found is None:
            raise most_telling(self._errors)
        why = type(self._errors[-1]).__name__
        self._tell("request repeated at another agent", before=before.name, agent=found.name, reason=why)
        return found

    async def _wait(self) -> AgentLink | None:
        """Wait for an agent that is back, or has room; in all not longer than the patience lasts."""
        if self._answered.issuperset(self._choice.links):
            return None
        clock = self._deadline.clock
        begun_at = clock.seconds()
        found = await self._choice.wait(self._may_ask, min(self._patience_s, self._deadline.left_s))
        self._patience_s -= clock.seconds() - begun_at
        return found

    def _may_ask(self, link: AgentLink) -> bool:
        if link in self._asked or link in self._answered:
            return False
        return self._connections.get(link) != link.connections

    def _give_up(self) -> None:
        """Nobody waits for the other answers."""
        self._no_longer_hedged()
        asked, self._asked = self._asked, {}
        for work in asked.values():
            work.cancel()

    def _no_longer_hedged(self) -> None:
        if self._is_hedged:
            self._is_hedged = False
            self._choice.hedged -= 1


def most_telling(errors: Sequence[ExchangeError]) -> ExchangeError:
    """Return the error that says most to the client; of several of one kind, that of the agent to be asked soonest."""

    def rank(error: ExchangeError) -> tuple[int, int]:
        place = next(at for at, kind in enumerate(_TELLING) if isinstance(error, kind))
        return place, error.retry_after_ms

    return min(errors, key=rank)
