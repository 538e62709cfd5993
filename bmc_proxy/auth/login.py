"""Logins: passwords checked in fair order, with what is known of failures before and after."""

from collections.abc import Callable

from twisted.cred.checkers import ICredentialsChecker
from twisted.logger import Logger

from bmc_proxy.auth.accounts import NAME, Account, AccountStore
from bmc_proxy.auth.backends import is_let_in
from bmc_proxy.auth.known_sources import KnownSources
from bmc_proxy.auth.lanes import Place, Strangers
from bmc_proxy.auth.lockout import LOCK_S, Lockout, Target
from bmc_proxy.auth.passwords import is_possible
from bmc_proxy.auth.work_queue import WorkQueue
from bmc_proxy.errors import AuthFailed, TooManyRequests
from runtime.limits.networks import source_of

_log = Logger()


class Logins:
    """Checks passwords.

    Args:
        accounts: the accounts.
        checker: says whether a password is right.
        queue: runs the checks.
        now: seconds, of a clock that goes forward.
        known: from where somebody logged in before.
        are_apart: several checks may run at once, of different sources and users: for a checker that is slow and takes
            little of this machine.
    """

    def __init__(
        self,
        accounts: AccountStore,
        checker: ICredentialsChecker,
        queue: WorkQueue,
        now: Callable[[], float],
        known: KnownSources | None = None,
        *,
        are_apart: bool = False,
    ) -> None:
        self._are_apart = are_apart
        self._accounts = accounts
        self._checker = checker
        self._now = now
        self._queue = queue
        self._lockout = Lockout(known)
        self._strangers = Strangers(LOCK_S)
        accounts.on_change = self._lockout.keep

    async def check(self, user: str, password: str, address: str) -> Account:
        """Return the account that a name and a password let in. Raises AuthFailed or TooManyRequests."""
        source = source_of(address)
        wait_s = self._lockout.wait_s(source, self._now())
        if wait_s > 0:
            raise TooManyRequests(wait_s)
        if not NAME.fullmatch(user) or not is_possible(password):
            self._begin(source)
            raise AuthFailed
        # One at a time, so that no try starts before the failures of those before it are counted.
        keys = (f"source {source}", f"user {user}") if self._are_apart else ()
        if self._lockout.known.has(user, source):
            # Many requests at once, each with Basic credentials, have paid for the ones before when their turn comes.
            place = Place.of_known(user, source, keys)
            return await self._queue.run(place, lambda: self._check(user, password, source, address, is_paid=False))
        # A stranger pays when it comes: it takes no more places than it may try passwords.
        self._begin(source)
        return await self._check_of_stranger(user, password, source, address, keys)

    async def _check_of_stranger(
        self, user: str, password: str, source: str, address: str, keys: tuple[str, ...]
    ) -> Account:
        lane = self._strangers.lane_of(source, self._now())
        place = Place.of_stranger(lane, user, source, keys)
        try:
            return await self._queue.run(place, lambda: self._check(user, password, source, address, is_paid=True))
        except TooManyRequests:
            self._strangers.was_displaced(source, lane, self._now())
            raise

    async def _check(self, user: str, password: str, source: str, address: str, *, is_paid: bool) -> Account:
        """Check a password, in its turn."""
        if not is_paid:
            self._begin(source)
        target = self._lock_of(user)
        if self._lockout.is_closed(target, source, self._now()):
            raise AuthFailed
        is_right = await is_let_in(self._checker, user, password)
        account = self._accounts.get(user)
        # The password may have been changed while this one was checked, which then lets nobody in.
        target_now = self._lock_of(user)
        if not is_right or account is None or not account.enabled or target_now != target:
            # The name only where it is one: people type passwords into the field for names.
            told = user if account is not None else "-"
            _log.warn("login failed", user=told, address=address)
            if self._lockout.failed(target_now, source, self._now()):
                _log.warn("account locked", user=told, address=address)
            raise AuthFailed
        self._lockout.succeeded(target, source)
        return account

    def _lock_of(self, user: str) -> Target:
        """Return under what failures are counted: another password, set by whatever process, opens an account again."""
        account = self._accounts.get(user)
        return Target(user, "" if account is None else account.password_id)

    def _begin(self, source: str) -> None:
        wait_s = self._lockout.begin(source, self._now())
        if wait_s > 0:
            raise TooManyRequests(wait_s)

    def is_locked(self, name: str) -> bool:
        """Return whether wrong passwords locked this account."""
        return self._lockout.is_locked(self._lock_of(name), self._now())

    def unlock(self, name: str) -> None:
        """Forget the failures against an account."""
        self._lockout.clear(self._lock_of(name))

    def forget(self, name: str) -> None:
        """Forget the failures against an account that is no more, and from where somebody logged in to it."""
        self._lockout.forget(name)
