"""The queue of fetches: each publication is fetched once for all that wait for it, in fair turns between those.

Theory of operation. Each asker waits in a branch of its own, also where another one waits for the same publication; the
first of them whose turn comes begins the fetch, and the others leave the queue and get its result. So no asker waits
behind the many publications that another one asked for, not even for one of those.
"""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.queue import busy
from bmc_proxy.errors import ExchangeError
from runtime.limits.admission import Admission, Entrant
from runtime.limits.fair_queue import Path

_Key = TypeVar("_Key", bound=Hashable)
_Found = TypeVar("_Found")

_log = Logger()


@dataclass(slots=True, eq=False)
class _Fetch(Generic[_Found]):
    """One fetch, with those that wait for it, and where they stand in the queue until it runs."""

    askers: list[Deferred[_Found]] = field(default_factory=list)
    entrants: list[Entrant] = field(default_factory=list)
    is_running: bool = False


class FetchQueue(Generic[_Key, _Found]):
    """Fetches publications.

    Args:
        now: seconds, of the clock of the askers' deadlines.
        fetch: fetches one; called once at a time for each key.
        at_once: how many are fetched at the same time.
        waiting: how many askers wait for a fetch that has not begun.
    """

    def __init__(
        self, now: Callable[[], float], fetch: Callable[[_Key], Awaitable[_Found]], at_once: int, waiting: int
    ) -> None:
        self._fetch = fetch
        self._at_once = at_once
        self._admission = Admission(now, self._has_room, waiting)
        self._fetches: dict[_Key, _Fetch[_Found]] = {}

    def get(self, key: _Key, path: Path, deadline: Deadline) -> Deferred[_Found]:
        """Return what fires with the result of a fetch that begins from now on, or runs already.

        It fails with AgentBusy where there is no room for one more asker. An asker that gives up, which it does by
        cancelling, changes nothing for the others, nor for a fetch that runs.
        """
        fetch = self._fetches.setdefault(key, _Fetch())
        entrant = Entrant(path, 0, deadline.ends_at, lambda: self._begin(key, entrant), lambda wait_s: refuse(wait_s))

        def leave(asker: Deferred[_Found]) -> None:
            fetch.askers.remove(asker)
            if entrant in fetch.entrants:
                fetch.entrants.remove(entrant)
                self._admission.withdraw(entrant)
                self._forget_unwanted(key)

        def refuse(wait_s: float) -> None:
            fetch.askers.remove(asker)
            fetch.entrants.remove(entrant)
            self._forget_unwanted(key)
            asker.errback(busy(wait_s))

        asker: Deferred[_Found] = Deferred(leave)
        fetch.askers.append(asker)
        if not fetch.is_running:
            fetch.entrants.append(entrant)
            self._admission.enter(entrant)
        return asker

    def _has_room(self) -> bool:
        return self._admission.under_way < self._at_once

    def _forget_unwanted(self, key: _Key) -> None:
        fetch = self._fetches[key]
        if not fetch.is_running and not fetch.entrants:
            del self._fetches[key]

    def _begin(self, key: _Key, entrant: Entrant) -> None:
        fetch = self._fetches[key]
        fetch.is_running = True
        entrants, fetch.entrants = fetch.entrants, []
        for each in entrants:
            if each is not entrant:
                self._admission.withdraw(each)
        running = Deferred.fromCoroutine(_awaited(self._fetch(key)))
        running.addBoth(self._ended, key, entrant)
        running.addCallbacks(partial(_tell, fetch), partial(_tell_failure, fetch))

    def _ended(self, result: _Found, key: _Key, entrant: Entrant) -> _Found:
        del self._fetches[key]
        self._admission.leave(entrant)
        return result


async def _awaited(fetching: Awaitable[_Found]) -> _Found:
    return await fetching


def _tell(fetch: _Fetch[_Found], found: _Found) -> None:
    while fetch.askers:  # one that is told may make another give up
        fetch.askers.pop(0).callback(found)


def _tell_failure(fetch: _Fetch[_Found], failure: Failure) -> None:
    if not fetch.askers and not failure.check(ExchangeError):
        _log.failure("a fetch that nobody waits for failed", failure)
    while fetch.askers:
        fetch.askers.pop(0).errback(failure)
