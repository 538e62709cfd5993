"""Logins: passwords checked one at a time, with what is known of failures before and after."""

from collections.abc import Callable

from twisted.cred.checkers import ICredentialsChecker
from twisted.logger import Logger

from bmc_proxy.accounts import NAME, Account, AccountStore
from bmc_proxy.checkers import is_let_in
from bmc_proxy.errors import AuthFailed, TooManyRequests
from bmc_proxy.lockout import Lockout, Target
from bmc_proxy.passwords import is_possible
from bmc_proxy.sources import source_of
from bmc_proxy.turns import Turns

_log = Logger()


class Logins:
    """Checks passwords.

    Args:
        accounts: who there is.
        checker: says whether a password is right.
        turns: where hashing takes its turn.
        now: seconds, of a clock that goes forward.
        are_apart: only logins of the same source and of the same user take turns, for a checker that is slow and
            takes little of this machine.
    """

    def __init__(
        self,
        accounts: AccountStore,
        checker: ICredentialsChecker,
        turns: Turns,
        now: Callable[[], float],
        *,
        are_apart: bool = False,
    ) -> None:
        self._are_apart = are_apart
        self._accounts = accounts
        self._checker = checker
        self._now = now
        self._turns = turns
        self._lockout = Lockout()

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
        return await self._turns.take(source, lambda: self._check_in_turn(user, password, source, address), *keys)

    async def _check_in_turn(self, user: str, password: str, source: str, address: str) -> Account:
        self._begin(source)
        target = self._lock_of(user)
        if self._lockout.is_closed(target, source, self._now()):
            raise AuthFailed
        is_right = await is_let_in(self._checker, user, password)
        account = self._accounts.get(user)
        # The password may have been changed while this one was checked, which then lets nobody in.
        if not is_right or account is None or not account.enabled or self._lock_of(user) != target:
            # The name only where it is one: people type passwords into the field for names.
            told = user if account is not None else "-"
            _log.warn("login failed", user=told, address=address)
            if self._lockout.failed(target, source, self._now()):
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
