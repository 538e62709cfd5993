"""Lock-out: wrong passwords close an account, but not to those who did not send them.

Five failures, from wherever, lock an account for 300 seconds. A locked account is closed to every source that failed
against it, without a look at the password. A source that did not fail gets one try, so that whoever guesses at the
administrator's password does not shut the administrator out. Where too many sources failed, only those are let try from
which somebody logged in to this account before.

Beside that a source has an allowance of failures, over all accounts, which comes back with time.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from bmc_proxy.sources import Allowance

LOCK_AFTER = 5
LOCK_S = 300.0
FAILING_SOURCES_LIMIT = 16
GOOD_SOURCES_LIMIT = 8
TARGETS_LIMIT = 1024
FAILURES_AT_ONCE = 20
FAILURES_PER_S = 1 / 3


class Target(NamedTuple):
    """What passwords are tried at: an account with this password, or a name that is no account's."""

    name: str
    password_id: str = ""


@dataclass(slots=True)
class _Failures:
    """Against one account, since it was last without any."""

    by_source: dict[str, int] = field(default_factory=dict)
    latest: float = 0.0
    locked_until: float | None = None


class Lockout:
    """What is known of failures. Times are in seconds of any clock."""

    def __init__(self) -> None:
        self._failures: OrderedDict[Target, _Failures] = OrderedDict()
        self._good: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        self._allowance = Allowance(FAILURES_PER_S, FAILURES_AT_ONCE)

    def wait_s(self, source: str, now: float) -> float:
        """Return for how many seconds this source may not try at all; 0 where it may."""
        return self._allowance.wait_s(source, now)

    def begin(self, source: str, now: float) -> float:
        """Begin a try and return 0, or return for how many seconds this source may not.

        A try costs the source what a failure costs, from its beginning on; a success gives it back.
        """
        return self._allowance.take(source, now)

    def is_closed(self, target: Target, source: str, now: float) -> bool:
        """Return whether this source gets no try at this account."""
        failures = self._current(target, now)
        if failures is None or failures.locked_until is None:
            return False
        if len(failures.by_source) >= FAILING_SOURCES_LIMIT and source not in self._good.get(target.name, ()):
            return True
        return source in failures.by_source

    def is_locked(self, target: Target, now: float) -> bool:
        """Return whether the account is locked to those who failed."""
        failures = self._current(target, now)
        return failures is not None and failures.locked_until is not None

    def failed(self, target: Target, source: str, now: float) -> bool:
        """Note a wrong password; return whether it locked the account. The target need not be an account."""
        failures = self._current(target, now) or _Failures()
        failures.by_source[source] = failures.by_source.get(source, 0) + 1
        failures.latest = now
        self._failures[target] = failures
        self._failures.move_to_end(target)
        self._forget_strangers()
        if failures.locked_until is None and sum(failures.by_source.values()) >= LOCK_AFTER:
            failures.locked_until = now + LOCK_S
            return True
        return False

    def succeeded(self, target: Target, source: str) -> None:
        """Note a right password: this source's failures are forgotten, and it is known as a good one."""
        self._allowance.give_back(source)
        failures = self._failures.get(target)
        if failures is not None:
            failures.by_source.pop(source, None)
            if not failures.by_source:
                del self._failures[target]
        good = self._good.setdefault(target.name, OrderedDict())
        good[source] = None
        good.move_to_end(source)
        if len(good) > GOOD_SOURCES_LIMIT:
            good.popitem(last=False)
        self._good.move_to_end(target.name)
        if len(self._good) > TARGETS_LIMIT:
            self._good.popitem(last=False)

    def clear(self, target: Target) -> None:
        """Forget all failures against an account: an administrator unlocked it."""
        self._failures.pop(target, None)

    def _current(self, target: Target, now: float) -> _Failures | None:
        """Return the failures that still count; those of a lock that ended, or that are old, do not."""
        failures = self._failures.get(target)
        if failures is None:
            return None
        ends_at = failures.locked_until if failures.locked_until is not None else failures.latest + LOCK_S
        if now < ends_at:
            return failures
        del self._failures[target]
        return None

    def _forget_strangers(self) -> None:
        """Keep the table bounded; names that are no account's go first, so that nobody can flush a lock out of it."""
        while len(self._failures) > TARGETS_LIMIT:
            strangers = (target for target in self._failures if not target.password_id)
            del self._failures[next(strangers, next(iter(self._failures)))]
