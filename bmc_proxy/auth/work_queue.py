"""The queue of password checks and account changes, which take a core and much memory each.

Theory of operation. Each task waits in one of four lanes (`lanes`), each with places of its own, so that no flood in
one of them takes places of another. KNOWN has every other turn, of the rest NEW_NETWORK has half and the other two a
quarter each; a lane without a task that can begin passes its turn on. A lane is a fair queue (`fair_queue`): where it
is full, its longest branch loses what it brought last. So a caller that logged in before waits for one task of each
account ahead of it, one from a network that was not seen for two or three tasks, any other for one of each network.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.auth.lanes import RETRY_AFTER_S, Lane, Place
from bmc_proxy.errors import ExchangeError, TooManyRequests
from runtime.limits.fair_queue import FairQueue, Path

CONNECTIONS = 512
# After which an asker is better told to come back than kept.
WAIT_LIMIT_S = 10.0

_Result = TypeVar("_Result")

_log = Logger()


# In which order lanes begin a task, over and over.
_ORDER = (Lane.KNOWN, Lane.NEW_NETWORK, Lane.KNOWN, Lane.NEW_SITE, Lane.KNOWN, Lane.NEW_NETWORK, Lane.KNOWN, Lane.SEEN)


@dataclass(slots=True, eq=False)
class _Task:
    place: Place
    work: Callable[[], Awaitable[Any]]
    done: Deferred[Any] = field(default_factory=Deferred)
    is_waiting: bool = True
    timer: IDelayedCall | None = None

    @property
    def is_known(self) -> bool:
        return self.place.lane is Lane.KNOWN

    def waits_no_more(self) -> None:
        self.is_waiting = False
        if self.timer is not None and self.timer.active():
            self.timer.cancel()

    def refuse(self) -> None:
        self.waits_no_more()
        self.done.errback(TooManyRequests(RETRY_AFTER_S))


class _Queue(Protocol):
    """What a lane needs of its queue; see `FairQueue`."""

    def __len__(self) -> int: ...

    def put(self, path: Path, item: _Task, octets: int) -> None: ...

    def take(self, is_ready: Callable[[_Task], bool] = ...) -> _Task | None: ...

    def shed(self, newest: Path) -> list[_Task]: ...

    def withdraw(self, path: Path, item: _Task) -> bool: ...


class _Stack:
    """The latest first; where there are too many the oldest goes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: deque[_Task] = deque()  # the oldest first

    def __len__(self) -> int:
        return len(self._tasks)

    def put(self, _path: Path, task: _Task, octets: int) -> None:
        self._tasks.append(task)

    def take(self, is_ready: Callable[[_Task], bool] = lambda _task: True) -> _Task | None:
        found = next((task for task in reversed(self._tasks) if is_ready(task)), None)
        if found is not None:
            self._tasks.remove(found)
        return found

    def shed(self, _newest: Path) -> list[_Task]:
        return [self._tasks.popleft() for _ in range(len(self._tasks) - self._limit)]

    def withdraw(self, _path: Path, task: _Task) -> bool:
        self._tasks.remove(task)
        return True


class WorkQueue:
    """Runs tasks in fair turns.

    Args:
        clock: the reactor, or a `Clock`.
        at_once: how many run at the same time; of more than one, a quarter is kept for the KNOWN lane.
        connections: how many clients may be connected, which bounds how many tasks wait.
    """

    def __init__(self, clock: IReactorTime, at_once: int = 1, connections: int = CONNECTIONS) -> None:
        self._clock = clock
        self._at_once = at_once
        self._strangers_at_once = at_once - at_once // 4
        self._lanes = {lane: _queue_of(lane, lane.places(connections)) for lane in Lane}
        self._at = 0
        self._running = 0
        self._strangers_running = 0
        self._held: Counter[str] = Counter()
        self._is_beginning = False
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return sum(map(len, self._lanes.values()))

    async def run(self, place: Place, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Do the work when its turn comes and return its result.

        A caller that gives up changes nothing for the work: it is done, and counted, all the same.

        Raises:
            TooManyRequests: the lane is full of tasks with shorter branches, the task waited for `WAIT_LIMIT_S`, or the
                queue is closed.
        """
        if self._is_closed:
            raise TooManyRequests(RETRY_AFTER_S)
        task, lane = _Task(place, work), self._lanes[place.lane]
        lane.put(place.path, task, octets=0)
        self._begin()
        for displaced in lane.shed(place.path):
            displaced.refuse()
        if task.is_waiting:
            task.timer = self._clock.callLater(WAIT_LIMIT_S, self._expire, task)
        result: _Result = await task.done
        return result

    def close(self) -> None:
        """Refuse the tasks that wait, and those that come from now on; running ones end."""
        self._is_closed = True
        for lane in self._lanes.values():
            while (task := lane.take()) is not None:
                task.refuse()

    def _expire(self, task: _Task) -> None:
        self._lanes[task.place.lane].withdraw(task.place.path, task)
        task.refuse()

    def _begin(self) -> None:
        """Begin as many tasks as may run. A task that ends at once begins the next one here: in a loop, not nested."""
        if self._is_beginning:
            return
        self._is_beginning = True
        try:
            while self._running < self._at_once and (task := self._next()) is not None:
                self._start(task)
        finally:
            self._is_beginning = False

    def _next(self) -> _Task | None:
        for ahead in range(len(_ORDER)):
            at = (self._at + ahead) % len(_ORDER)
            lane = _ORDER[at]
            if lane is not Lane.KNOWN and self._strangers_running >= self._strangers_at_once:
                continue
            task = self._lanes[lane].take(self._is_ready)
            if task is not None:
                self._at = at + 1
                return task
        return None

    def _is_ready(self, task: _Task) -> bool:
        return not any(self._held[key] for key in task.place.keys)

    def _start(self, task: _Task) -> None:
        task.waits_no_more()
        self._running += 1
        self._strangers_running += not task.is_known
        self._held.update(task.place.keys)
        work = Deferred.fromCoroutine(_awaited(task.work))
        work.addBoth(self._ended, task).addCallbacks(task.done.callback, _failed, errbackArgs=(task,))
        work.addBoth(lambda _result: self._begin())

    def _ended(self, result: _Result, task: _Task) -> _Result:
        self._running -= 1
        self._strangers_running -= not task.is_known
        self._held.subtract(task.place.keys)
        self._held = +self._held  # without those that nobody holds
        return result


def _queue_of(lane: Lane, limit: int) -> _Queue:
    return _Stack(limit) if lane is Lane.NEW_NETWORK else FairQueue(limit, limit_octets=0)


async def _awaited(work: Callable[[], Awaitable[_Result]]) -> _Result:
    return await work()


def _failed(failure: Failure, task: _Task) -> None:
    if task.done.called and not isinstance(failure.value, ExchangeError):
        _log.failure("work that nobody waits for failed", failure)
    task.done.errback(failure)
