"""Requests on their way, each as if it were alone, by few threads and with few syncs of the disk.

Theory of operation. What a request leads to is a coroutine that reads from top to bottom. Where it needs the disk or
the key it awaits `recorded` or `signed`, and its thread goes on with the others that are there. What these want
recorded goes to the ledger as one job, so that requests that come together share the sync of the disk, and the switch
to another thread and back; meanwhile another thread judges and signs. Each has its own outcome: an error is thrown
where that one awaits, and into no other.

A thread takes what is there in one turn, up to so many and so long: nobody waits long behind neighbours whose keys are
slow to judge. The keys of this process sign in the same thread, which is quick or takes a core; for a key elsewhere
(a token) there are threads that wait.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar, overload

from vmi_agent.custody import Custody
from vmi_agent.ledger.audit import Event
from vmi_agent.ledger.ledger_rows import Intent, Kept, Outcome, Signature
from vmi_agent.ledger.writer import Ledger, Work

# A thread's turn ends after so many steps of walks, or with the one that this time is over in.
MOST_STEPS = 64
TURN_S = 0.004
# More wait for a token than have a place in it (`pkcs11_keys.SESSIONS`).
TOKEN_THREADS = 16

T = TypeVar("T")


class Recording(Generic[T]):
    """Awaited for what a work led to, once it is on disk; raises as `Ledger.record_intent` and its like do."""

    __slots__ = ("work",)

    def __init__(self, work: Work) -> None:
        self.work = work

    def __await__(self) -> Generator["Wish", Any, T]:
        result: T = yield self
        return result


class Signing:
    """Awaited for the signature over a TBS; raises as `Custody.sign` does."""

    __slots__ = ("custody", "tbs")

    def __init__(self, custody: Custody, tbs: bytes) -> None:
        self.custody = custody
        self.tbs = tbs

    def __await__(self) -> Generator["Wish", Any, bytes]:
        signature: bytes = yield self
        return signature


Wish = Recording[Any] | Signing
# What a request leads to. It catches what it can answer; whatever else it raises ends it alone.
Walk = Coroutine[Wish, Any, T]


@overload
def recorded(work: Intent) -> Recording[Outcome]: ...
@overload
def recorded(work: Signature) -> Recording[Kept]: ...
@overload
def recorded(work: Event) -> Recording[None]: ...
def recorded(work: Work) -> Recording[Any]:
    """Return what is awaited until a work is on disk: an `Intent`, a `Signature` or an `Event` of the audit."""
    return Recording(work)


def signed(custody: Custody, tbs: bytes) -> Signing:
    """Return what is awaited for the signature over a TBS."""
    return Signing(custody, tbs)


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
            news = _sign(wish) if isinstance(wish, Signing) else ledger.record(wish.work)
        except Exception as error:  # noqa: BLE001  # it is raised where the walk awaits
            news = error


class Walks:
    """The threads.

    Args:
        ledger: records.
        deliver: told of walks that are over, in one of the threads: what was given to `begin` for it, and what the walk
            returned, or the exception that ended it.
        threads: how many go on with walks at once.
    """

    def __init__(
        self, ledger: Ledger, deliver: Callable[[Sequence[tuple[Any, Any]]], None], threads: int | None = None
    ) -> None:
        self._ledger = ledger
        self._deliver = deliver
        # Walks that can go on, and with what news: the result of what they await.
        self._ready: queue.SimpleQueue[tuple[_UnderWay, Any] | None] = queue.SimpleQueue()
        self._under_way = 0
        self._changed = threading.Condition()
        cores = len(os.sched_getaffinity(0))
        self._threads = [threading.Thread(target=self._work, name=f"walks-{n}") for n in range(threads or cores)]
        self._token_threads = ThreadPoolExecutor(TOKEN_THREADS, thread_name_prefix="token")  # made as they are needed

    def start(self) -> None:
        """Take walks from now on."""
        for thread in self._threads:
            thread.start()

    def begin(self, walk: Walk[Any], token: object) -> None:
        """Begin a walk; `deliver` gets the token with its result. Does not block."""
        with self._changed:
            self._under_way += 1
        self._ready.put((_UnderWay(walk, token), None))

    def stop(self) -> None:
        """Wait until all that began is over, then end the threads. Nothing may begin afterwards."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0)
        self._ready.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._token_threads.shutdown()

    def _work(self) -> None:
        while (first := self._ready.get()) is not None:
            turn = _Turn()
            self._take_turn(turn, *first)
            if turn.to_record:
                self._ledger.record_later([wish.work for _, wish in turn.to_record], partial(self._recorded, turn))
            if turn.over:
                self._end(turn.over)
        self._ready.put(None)  # for the next thread

    def _take_turn(self, turn: "_Turn", walk: "_UnderWay", news: Any) -> None:
        """Go on with a walk and with others that are ready."""
        ends_at = time.monotonic() + TURN_S
        for step in range(1, MOST_STEPS + 1):
            self._go_on(turn, walk, news)
            if step == MOST_STEPS or time.monotonic() >= ends_at:
                return
            try:
                ready = self._ready.get_nowait()
            except queue.Empty:
                return
            if ready is None:
                self._ready.put(None)
                return
            walk, news = ready

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
            if wish.custody.is_elsewhere:
                self._token_threads.submit(self._sign_elsewhere, walk, wish)
                return
            news = _attempt(wish)

    def _sign_elsewhere(self, walk: "_UnderWay", wish: Signing) -> None:
        self._ready.put((walk, _attempt(wish)))

    def _recorded(self, turn: "_Turn", outcomes: Sequence[Any]) -> None:
        for (walk, _), outcome in zip(turn.to_record, outcomes, strict=True):
            self._ready.put((walk, outcome))

    def _end(self, over: Sequence[tuple[Any, Any]]) -> None:
        self._deliver(over)
        with self._changed:
            self._under_way -= len(over)
            if self._under_way == 0:
                self._changed.notify_all()


class _UnderWay:
    """A walk, and what it is known by to whoever began it."""

    __slots__ = ("steps", "token")

    def __init__(self, steps: Walk[Any], token: object) -> None:
        self.steps = steps
        self.token = token


class _Turn:
    """What came of one thread's turn: what is to be recorded, and what is over."""

    __slots__ = ("over", "to_record")

    def __init__(self) -> None:
        self.to_record: list[tuple[_UnderWay, Recording[Any]]] = []
        self.over: list[tuple[Any, Any]] = []


def _sign(wish: Signing) -> bytes:
    return wish.custody.sign(wish.tbs)


def _attempt(wish: Signing) -> bytes | BaseException:
    try:
        return wish.custody.sign(wish.tbs)
    except BaseException as error:  # noqa: BLE001  # it is raised where the walk awaits
        return error
