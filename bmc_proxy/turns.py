"""Turns: work that takes a core and much memory is done one at a time, for a bounded number of those who wait."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.errors import ExchangeError, TooManyRequests

LIMIT = 256
LIMIT_PER_SOURCE = 128
RETRY_AFTER_S = 5
_COMMON = ""

_Result = TypeVar("_Result")

_log = Logger()


class Turns:
    """Gives turns in the order of asking.

    Args:
        limit: how many there may be, those whose turn it is among them.
        limit_per_source: how many of one source.
    """

    def __init__(self, limit: int = LIMIT, limit_per_source: int = LIMIT_PER_SOURCE) -> None:
        self._limit = limit
        self._limit_per_source = limit_per_source
        self._sources: Counter[str] = Counter()
        self._asking: Counter[str] = Counter()
        self._turns: dict[str, DeferredLock] = {}
        self._waiting: set[Deferred[DeferredLock]] = set()
        self._to_release: list[DeferredLock] = []
        self._is_releasing = False
        self._is_closed = False

    async def take(self, source: str, work: Callable[[], Awaitable[_Result]], *keys: str) -> _Result:
        """Do the work in its turn and return its result.

        Whoever hangs up meanwhile changes nothing for the work: it is done, and counted, all the same.

        Args:
            keys: only what has one of them in common takes turns; what has several gives them in the same order.

        Raises:
            TooManyRequests: there are as many as may be, or no more turns.
        """
        if self._is_closed or self._sources.total() >= self._limit or self._sources[source] >= self._limit_per_source:
            raise TooManyRequests(RETRY_AFTER_S)
        self._sources[source] += 1
        done: Deferred[_Result] = Deferred()

        def failed(failure: Failure) -> None:
            if done.called and not isinstance(failure.value, ExchangeError):
                _log.failure("work that nobody waits for failed", failure)
            done.errback(failure)

        Deferred.fromCoroutine(self._in_turn(source, work, keys or (_COMMON,))).addCallbacks(done.callback, failed)
        return await done

    def close(self) -> None:
        """Refuse whoever waits for a turn, or asks for one from now on."""
        self._is_closed = True
        for waiting in list(self._waiting):
            waiting.cancel()

    async def _in_turn(self, source: str, work: Callable[[], Awaitable[_Result]], keys: Sequence[str]) -> _Result:
        held: list[DeferredLock] = []
        self._asking.update(keys)
        try:
            for key in keys:
                turn = self._turns.setdefault(key, DeferredLock())
                await self._acquire(turn)
                held.append(turn)
            return await work()
        finally:
            for key in keys:
                self._asking[key] -= 1
                if not self._asking[key]:
                    del self._asking[key]
                    self._turns.pop(key, None)
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]
            self._release(held)

    def _release(self, turns: list[DeferredLock]) -> None:
        """Let the next ones have their turn. Who is refused at once releases again: one after the other, not nested."""
        self._to_release += turns
        if self._is_releasing:
            return
        self._is_releasing = True
        try:
            while self._to_release:
                self._to_release.pop().release()
        finally:
            self._is_releasing = False

    async def _acquire(self, turn: DeferredLock) -> None:
        waiting = turn.acquire()
        self._waiting.add(waiting)
        try:
            await waiting
        except CancelledError as error:
            raise TooManyRequests(RETRY_AFTER_S) from error
        finally:
            self._waiting.discard(waiting)
