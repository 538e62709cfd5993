"""Lock-out: wrong passwords close an account, but not to those who did not send them.

Five failures, from wherever, lock an account for 300 seconds. A locked account is closed to every source that failed
against it, without a look at the password, and to its neighbours in one site (an IPv6 /56). A source that did not fail
gets one try, so that guessing at the administrator's password does not shut the administrator out. Guesses stay
bounded: a network (an IPv4 /24, an IPv6 /48) in which too many sites failed is closed as a whole, and where too many
networks or sites failed, only those sources get a try from which somebody logged in to this account before.

Beside that a source has an allowance of failures, over all accounts, which comes back with time.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from bmc_proxy.auth.known_sources import KnownSources
from runtime.limits.networks import networks_of
from runtime.limits.token_bucket import Allowance

LOCK_AFTER = 5
LOCK_S = 300.0
FAILING_SITES_PER_NETWORK = 16
FAILING_NETWORKS_LIMIT = 16
FAILING_SITES_LIMIT = 64
# Names that are no account's. Were one forgotten while it is locked, that would tell it from an account. At five
# checks a name and more than 8 ms a check, which are made one at a time, no flood locks as many within 300 seconds.
STRANGERS_LIMIT = 8192
FAILURES_AT_ONCE = 20
FAILURES_PER_S = 1 / 3


class Target(NamedTuple):
    """What passwords are tried at: an account with this password, or a name that is no account's."""

    name: str
    password_id: str = ""


@dataclass(slots=True)
class _Failures:
    """Against one account, since it was last without any."""

    password_id: str
    by_source: dict[str, int] = field(default_factory=dict)
    latest: float = 0.0
    locked_until: float | None = None

    @property
    def ends_at(self) -> float:
        return self.locked_until if self.locked_until is not None else self.latest + LOCK_S


class Lockout:
    """What is known of failures. Times are in seconds of any clock.

    Args:
        known: from where somebody logged in before.
    """

    def __init__(self, known: KnownSources | None = None) -> None:
        self.known = known or KnownSources()
        self._accounts: dict[str, _Failures] = {}  # one of a name, so no more than there are accounts
        self._strangers = _Strangers()
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
        if source in failures.by_source:
            return True
        return not self.known.has(target.name, source) and _are_too_many(failures.by_source, source)

    def is_locked(self, target: Target, now: float) -> bool:
        """Return whether the account is locked to those who failed."""
        failures = self._current(target, now)
        return failures is not None and failures.locked_until is not None

    def failed(self, target: Target, source: str, now: float) -> bool:
        """Note a wrong password; return whether it locked the account. The target need not be an account."""
        failures = self._current(target, now) or _Failures(target.password_id)
        failures.by_source[source] = failures.by_source.get(source, 0) + 1
        failures.latest = now
        if failures.locked_until is None and sum(failures.by_source.values()) >= LOCK_AFTER:
            failures.locked_until = now + LOCK_S
            has_locked = True
        else:
            has_locked = False
        if target.password_id:
            self._accounts[target.name] = failures
        else:
            self._strangers.put(target.name, failures, now)
        return has_locked

    def succeeded(self, target: Target, source: str) -> None:
        """Note a right password: this source's failures are forgotten, and it is known as a good one."""
        self._allowance.give_back(source)
        failures = self._accounts.get(target.name)
        if failures is not None:
            failures.by_source.pop(source, None)
            if not failures.by_source:
                del self._accounts[target.name]
        self.known.add(target.name, source)

    def clear(self, target: Target) -> None:
        """Forget all failures against an account: an administrator unlocked it."""
        self._accounts.pop(target.name, None)

    def keep(self, names: Collection[str]) -> None:
        """Forget all about accounts of other names: they were removed."""
        for name in self._accounts.keys() - set(names):
            del self._accounts[name]
        self.known.keep(names)

    def forget(self, name: str) -> None:
        """Forget all about one account."""
        self._accounts.pop(name, None)
        self.known.forget(name)

    def _current(self, target: Target, now: float) -> _Failures | None:
        """Return the failures that still count; those of a lock that ended, of another password, or old ones do not."""
        if not target.password_id:
            return self._strangers.get(target.name, now)
        failures = self._accounts.get(target.name)
        if failures is None or (failures.password_id == target.password_id and now < failures.ends_at):
            return failures
        del self._accounts[target.name]
        return None


class _Strangers:
    """The failures against names that are no account's, of at most `STRANGERS_LIMIT`."""

    def __init__(self) -> None:
        # The oldest first, in both.
        self._unlocked: OrderedDict[str, _Failures] = OrderedDict()
        self._locked: OrderedDict[str, _Failures] = OrderedDict()

    def get(self, name: str, now: float) -> _Failures | None:
        """Return those that still count."""
        failures = self._locked.get(name) or self._unlocked.get(name)
        return failures if failures is not None and now < failures.ends_at else None

    def put(self, name: str, failures: _Failures, now: float) -> None:
        """Note the latest; where there are too many, what has ended goes first, then the oldest that is not locked."""
        self._unlocked.pop(name, None)
        if failures.locked_until is None:
            self._locked.pop(name, None)
            self._unlocked[name] = failures
        else:
            self._locked[name] = failures
        if len(self._unlocked) + len(self._locked) > STRANGERS_LIMIT:
            oldest = next(iter(self._locked.values()), None)
            has_ended = oldest is not None and oldest.ends_at <= now
            (self._locked if has_ended or not self._unlocked else self._unlocked).popitem(last=False)


def _are_too_many(failing: dict[str, int], source: str) -> bool:
    """Return whether so many failed, or so near to this source, that it gets no try unless it is known."""
    site_of = {each: networks_of(each) for each in failing}
    sites, own = set(site_of.values()), networks_of(source)
    by_network = Counter(each.network for each in sites)
    return (
        own in sites
        or by_network[own.network] >= FAILING_SITES_PER_NETWORK
        or len(by_network) >= FAILING_NETWORKS_LIMIT
        or len(sites) >= FAILING_SITES_LIMIT
    )
