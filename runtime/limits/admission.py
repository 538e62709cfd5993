"""Admission: what may begin now, what waits, and what is refused at once because it would wait too long.

The same rules hold on both sides of the channel. Whoever floods fills its own share of the places and is refused;
whoever asks now and then is let in whatever the others do (see `fair_queue`). Nothing waits that has, by the pace of
the last answers, no chance to be answered within its deadline.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from runtime.limits.fair_queue import FairQueue, Path

# What waits may hold so many octets for each place there is, and as many in all whatever the places.
OCTETS_PER_PLACE = 4 * 1024
LEAST_OCTETS = 64 * 1024
# So many of the last answers tell the pace.
_REMEMBERED = 64


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """One request at the door.

    Attributes:
        path: whose turn it takes, from the outermost name on.
        octets: that it holds while it waits.
        deadline: when its answer is of no use any more, in seconds of the admission's clock.
        start: begins it. `Admission.leave` is to be called when it is answered.
        refuse: answers that there is no room, and after how many seconds there may be some.
        question: no two of the same are under way at once; None where that does not matter.
    """

    path: Path
    octets: int
    deadline: float
    start: Callable[[], None]
    refuse: Callable[[float], None]
    question: Hashable = None


class Admission:
    """The door.

    Args:
        now: seconds, of a clock that goes forward.
        has_room: whether one more can begin at this moment.
        limit: how many may wait.
    """

    def __init__(self, now: Callable[[], float], has_room: Callable[[], bool], limit: int) -> None:
        self._now = now
        self._has_room = has_room
        self._queue: FairQueue[Entrant] = FairQueue(limit, max(LEAST_OCTETS, limit * OCTETS_PER_PLACE))
        self._questions: set[Hashable] = set()
        self._left_at: deque[float] = deque(maxlen=_REMEMBERED)  # since somebody has been waiting
        self._is_letting_in = False
        self.under_way = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def held_octets(self) -> int:
        """How many octets they hold."""
        return self._queue.octets

    def enter(self, entrant: Entrant) -> None:
        """Start the request now or in its turn, or refuse it; another one may be refused in its stead."""
        now = self._now()
        if len(self._queue) == 0:
            self._left_at.clear()
            self._left_at.append(now)
            if self._is_ready(entrant) and self._has_room():
                self._begin(entrant)
                return
        elif self._wait_s(self._queue.ahead_of(entrant.path), now) > entrant.deadline - now:
            entrant.refuse(self._wait_s(len(self._queue), now))
            return
        self._queue.put(entrant.path, entrant, entrant.octets)
        self.let_in()
        for each in self._queue.shed(entrant.path):
            each.refuse(self._wait_s(len(self._queue), now))

    def withdraw(self, entrant: Entrant) -> bool:
        """Forget a request that waits; return False where it does not, as it began or was refused."""
        return self._queue.withdraw(entrant.path, entrant)

    def leave(self, entrant: Entrant) -> None:
        """A request that was started is answered: start the next one."""
        self.under_way -= 1
        self._questions.discard(entrant.question)
        if len(self._queue) > 0:
            self._left_at.append(self._now())
        self.let_in()

    def let_in(self) -> None:
        """Start as many as there is room for: it may have grown."""
        if self._is_letting_in:
            return  # what was started is answered already: the loop below goes on with the next one
        self._is_letting_in = True
        try:
            while len(self._queue) > 0 and self._has_room():
                entrant = self._queue.take(self._is_ready)
                if entrant is None:
                    break
                self._begin(entrant)
        finally:
            self._is_letting_in = False

    def refuse_all(self) -> list[Entrant]:
        """Empty the queue and return who waited: whoever could have answered is gone."""
        waited = []
        while (entrant := self._queue.take()) is not None:
            waited.append(entrant)
        return waited

    def _is_ready(self, entrant: Entrant) -> bool:
        return entrant.question is None or entrant.question not in self._questions

    def _begin(self, entrant: Entrant) -> None:
        self.under_way += 1
        if entrant.question is not None:
            self._questions.add(entrant.question)
        entrant.start()

    def _wait_s(self, ahead: int, now: float) -> float:
        """Return how long so many take, by the pace of the last answers; what is under way counts as half done."""
        answered = len(self._left_at) - 1 + max(1, self.under_way)
        return ahead * (now - self._left_at[0]) / answered
