"""Turns: work that takes a core and much memory is done one at a time, for a bounded number of those who wait."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.errors import ExchangeError, TooManyRequests

LIMIT = 256
LIMIT_PER_SOURCE = 128
RETRY_AFTER_S = 5

_Result = TypeVar("_Result")

_log = Logger()


class Turns:
    """Gives turns in the order of asking.

    Args:
        limit: how many may wait, the one whose turn it is among them.
        limit_per_source: how many of one source.
    """

    def __init__(self, limit: int = LIMIT, limit_per_source: int = LIMIT_PER_SOURCE) -> None:
        self._limit = limit
        self._limit_per_source = limit_per_source
        self._waiting: Counter[str] = Counter()
        self._turn = DeferredLock()

    async def take(self, source: str, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Do the work in its turn and return its result.

        Whoever hangs up meanwhile changes nothing for the work: it is done, and counted, all the same.

        Raises:
            TooManyRequests: as many wait as may.
        """
        if self._waiting.total() >= self._limit or self._waiting[source] >= self._limit_per_source:
            raise TooManyRequests(RETRY_AFTER_S)
        self._waiting[source] += 1
        done: Deferred[_Result] = Deferred()
        Deferred.fromCoroutine(self._in_turn(source, work)).addCallbacks(done.callback, _teller(done))
        return await done

    async def _in_turn(self, source: str, work: Callable[[], Awaitable[_Result]]) -> _Result:
        try:
            await self._turn.acquire()
            try:
                return await work()
            finally:
                self._turn.release()
        finally:
            self._waiting[source] -= 1
            if not self._waiting[source]:
                del self._waiting[source]


def _teller(done: Deferred[_Result]) -> Callable[[Failure], None]:
    """Return what hands a failure on; where nobody waits any more a bug is logged."""

    def tell(failure: Failure) -> None:
        if done.called and not isinstance(failure.value, ExchangeError):
            _log.failure("work that nobody waits for failed", failure)
        done.errback(failure)

    return cast(Callable[[Failure], None], tell)
