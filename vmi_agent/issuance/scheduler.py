"""Requests on their way, each as if it were alone, in one thread and with few syncs of the disk.

Theory of operation. What a request leads to is a coroutine that reads from top to bottom. Where it needs the disk or
the key it awaits `recorded` or `made`, and the thread goes on with the others that are there. What these want recorded
at the end of a turn is one transaction of the ledger, so that requests that come together share the sync of the disk.
Each has its own outcome: an error is thrown where that one awaits, and into no other.

A turn goes on with whatever can go on, and begins no more than half of what is under way: where all came together, one
half's answers are on their way, and read, while the other half is judged. It ends after so much time, and what it has
is on its way to the disk: nobody waits long behind neighbours whose keys are slow to judge.

Signatures that cost less than handing them to another thread are made in this one; others have threads of their own
(`signers`), as many as there are cores, or as many as may wait for a token.
"""

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar, overload

from vmi_agent.issuance.signer_threads import Signers, attempt
from vmi_agent.keys import Custody, Pace
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.issuances import Intent, Kept, KeyBlocked, KeyQuestion, Outcome, Signature
from vmi_agent.ledger.ledger import Ledger, Work

TURN_S = 0.004

T = TypeVar("T")


class Recording(Generic[T]):
    """Awaited for what a work led to, once it is on disk; raises as `Ledger.record_intent` and its like do."""

    __slots__ = ("work",)

    def __init__(self, work: Work) -> None:
        self.work = work

    def __await__(self) -> Generator["Wish", Any, T]:
        result: T = yield self
        return result


class Making(Generic[T]):
    """Awaited for what a call returns that signs with a key; raises what the call raises."""

    __slots__ = ("call", "pace")

    def __init__(self, pace: Pace, call: Callable[[], T]) -> None:
        self.pace = pace
        self.call = call

    def __await__(self) -> Generator["Wish", Any, T]:
        result: T = yield self
        return result


Wish = Recording[Any] | Making[Any]
# Walks that can go on, and with what news: the result of what they await.
Ready = Sequence[tuple["_UnderWay", Any]]
# What a request leads to. It catches what it can answer; whatever else it raises ends it alone.
Walk = Coroutine[Wish, Any, T]


@overload
def recorded(work: Intent) -> Recording[Outcome]: ...
@overload
def recorded(work: Signature) -> Recording[Kept | KeyBlocked]: ...
@overload
def recorded(work: KeyQuestion) -> Recording[bool]: ...
@overload
def recorded(work: Event) -> Recording[None]: ...
def recorded(work: Work) -> Recording[Any]:
    """Return what is awaited until a work is on disk: an `Intent`, a `Signature` or an `Event` of the audit.

    A `KeyQuestion` puts nothing there, and is answered in the same transaction as its neighbours.
    """
    return Recording(work)


def made(custody: Custody, call: Callable[[], T]) -> Making[T]:
    """Return what is awaited for a call that signs with this key, and does what else of it takes time."""
    return Making(custody.pace, call)


def alone(walk: Walk[T], ledger: Ledger) -> T:
    """Go a walk to its end in the thread of the caller, and return what it returns."""
    news: Any = None
    while True:
        try:
            wish = walk.throw(news) if isinstance(news, BaseException) else walk.send(news)
        except StopIteration as end:
            result: T = end.value
            return result
        try:
            news = wish.call() if isinstance(wish, Making) else ledger.record(wish.work)
        except Exception as error:  # noqa: BLE001  # it is raised where the walk awaits
            news = error


class Walks:
    """The thread, and those that sign for it.

    Args:
        ledger: records.
        deliver: told of walks that are over, in the thread: what was given to `begin` for it, and what the walk
            returned, or the exception that ended it.
        at_once: how many may wait for a key elsewhere.
        failed: told of a bug in here, or in `deliver`, that ended the thread: nothing is gone on with any more.
    """

    def __init__(
        self,
        ledger: Ledger,
        deliver: Callable[[Sequence[tuple[Any, Any]]], None],
        at_once: int,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._ledger = ledger
        self._deliver = deliver
        self._failed = failed
        # For the thread: walks that begin, others that can go on, and None for its end.
        self._arrived: queue.SimpleQueue[_UnderWay | Ready | None] = queue.SimpleQueue()
        self._under_way = 0
        self._none_under_way = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="walks")
        self._signers = {
            Pace.SLOW: Signers(self._arrived.put, len(os.sched_getaffinity(0)), TURN_S),
            Pace.ELSEWHERE: Signers(self._arrived.put, at_once, 0.0),
        }
        # The thread's own.
        self._new: deque[_UnderWay] = deque()
        self._ready: deque[tuple[_UnderWay, Any]] = deque()

    def start(self) -> None:
        """Take walks from now on."""
        self._thread.start()

    def begin(self, walk: Walk[Any], token: object) -> None:
        """Begin a walk; `deliver` gets the token with its result. Does not block."""
        with self._none_under_way:
            self._under_way += 1
        self._arrived.put(_UnderWay(walk, token))

    def stop(self) -> None:
        """Wait until all that began is over, then end the threads. Nothing may begin afterwards."""
        with self._none_under_way:
            self._none_under_way.wait_for(lambda: self._under_way == 0)
        self._arrived.put(None)
        self._thread.join()
        for signers in self._signers.values():
            signers.stop()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  # nobody else would hear of it
            self._failed(error)

    def _work(self) -> None:
        turn = _Turn()
        while turn.to_record or self._wait():
            self._take_turn(turn)
            self._end(turn)
            outcomes = self._ledger.record_all([wish.work for _, wish in turn.to_record]) if turn.to_record else []
            recorded, turn = turn.to_record, _Turn()
            for (walk, wish), outcome in zip(recorded, outcomes, strict=True):
                if isinstance(wish.work, Intent):
                    self._ready.append((walk, outcome))
                else:  # it was waited for before the answer
                    self._go_on(turn, walk, outcome)
            self._end(turn)

    def _wait(self) -> bool:
        """Wait until a walk can go on or begin; return False at the end."""
        return bool(self._ready or self._new) or self._take(self._arrived.get())

    def _look(self) -> None:
        """Take what has arrived."""
        with suppress(queue.Empty):
            while self._take(self._arrived.get_nowait()):
                pass

    def _take(self, arrived: "_UnderWay | Ready | None") -> bool:
        if isinstance(arrived, _UnderWay):
            self._new.append(arrived)
        elif arrived is not None:
            self._ready.extend(arrived)
        return arrived is not None

    def _take_turn(self, turn: "_Turn") -> None:
        """Go on with what can, then begin others."""
        self._look()
        ends_at = time.monotonic() + TURN_S
        may_begin = (self._under_way + 1) // 2
        while (self._ready or (self._new and may_begin)) and time.monotonic() < ends_at:
            if self._ready:
                self._go_on(turn, *self._ready.popleft())
            else:
                may_begin -= 1
                self._go_on(turn, self._new.popleft(), None)
            if not self._ready and not self._new:
                self._look()

    def _go_on(self, turn: "_Turn", walk: "_UnderWay", news: Any) -> None:
        """Go on with a walk until it needs others, or is over."""
        while True:
            try:
                wish = walk.steps.throw(news) if isinstance(news, BaseException) else walk.steps.send(news)
            except StopIteration as end:
                turn.over.append((walk.token, end.value))
                return
            except BaseException as error:  # noqa: BLE001  # such as a library's panic: it ends this walk alone
                turn.over.append((walk.token, error))
                return
            if isinstance(wish, Recording):
                turn.to_record.append((walk, wish))
                return
            if wish.pace is not Pace.QUICK:
                self._signers[wish.pace].put(walk, wish.call)
                return
            news = attempt(wish.call)

    def _end(self, turn: "_Turn") -> None:
        """Tell of the walks that are over."""
        over, turn.over = turn.over, []
        if not over:
            return
        self._deliver(over)
        with self._none_under_way:
            self._under_way -= len(over)
            if self._under_way == 0:
                self._none_under_way.notify_all()


class _UnderWay:
    """A walk, and what it is known by to whoever began it."""

    __slots__ = ("steps", "token")

    def __init__(self, steps: Walk[Any], token: object) -> None:
        self.steps = steps
        self.token = token


class _Turn:
    """What came of a turn: what is to be recorded, and what is over."""

    __slots__ = ("over", "to_record")

    def __init__(self) -> None:
        self.to_record: list[tuple[_UnderWay, Recording[Any]]] = []
        self.over: list[tuple[Any, Any]] = []
