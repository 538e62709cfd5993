"""Administration: accounts, as far as whoever asks may see and change them."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from functools import partial
from typing import TypeVar

from twisted.logger import Logger

from bmc_proxy.auth.accounts import (
    Account,
    AccountRefused,
    Accounts,
    AccountStore,
    AccountsUnusable,
    Guard,
    Privilege,
    Role,
    check_name,
    password_id_of,
)
from bmc_proxy.auth.backends import InThread
from bmc_proxy.auth.lanes import Place
from bmc_proxy.auth.login import Logins
from bmc_proxy.auth.passwords import hash_password
from bmc_proxy.auth.principal import Caller
from bmc_proxy.auth.sessions import Sessions
from bmc_proxy.auth.work_queue import WorkQueue
from bmc_proxy.errors import (
    AccountsFailed,
    ExchangeError,
    Forbidden,
    NothingThere,
    PropertyReadOnly,
    PropertyRefused,
    VersionGone,
)
from runtime.limits.networks import source_of

_USERS = frozenset({Privilege.CONFIGURE_USERS})
_SELF = frozenset({Privilege.CONFIGURE_SELF})

# Of an account, any of which will do; None where it does not matter.
Versions = Collection[str] | None

_Result = TypeVar("_Result")

_log = Logger()


class Administration(ABC):
    """The use cases around accounts: seen in whatever process, changed in one.

    Args:
        accounts: who there is.
        has_passwords: passwords are those of the accounts, not another checker's.
    """

    def __init__(self, accounts: AccountStore, *, has_passwords: bool = True) -> None:
        self._accounts = accounts
        self.has_passwords = has_passwords

    def accounts_for(self, caller: Caller) -> list[Account]:
        """Return the accounts that the caller may see: all, or its own."""
        return [account for account in self._accounts.all().values() if _may_see_account(caller, account.name)]

    def account_for(self, caller: Caller, name: str) -> Account:
        """Return one of these. Raises NothingThere or Forbidden."""
        if not _may_see_account(caller, name):
            raise Forbidden
        account = self._accounts.get(name)
        if account is None:
            raise NothingThere
        return account

    @abstractmethod
    async def is_locked(self, name: str) -> bool:
        """Return whether wrong passwords locked this account."""

    @abstractmethod
    async def add_account(self, caller: Caller, name: str, password: str | None, role: Role, enabled: bool) -> Account:
        """Make an account.

        Args:
            password: None where another checker has it.

        Raises:
            ExchangeError: Forbidden, PropertyRefused with a name of `Account`'s, or PropertyReadOnly for a password
                that would count for nothing.
        """

    @abstractmethod
    async def remove_account(self, caller: Caller, name: str, versions: Versions = None) -> None:
        """Remove an account; its sessions end with it.

        Args:
            versions: as for `change_account`.

        Raises:
            ExchangeError: Forbidden, NothingThere, PropertyRefused or VersionGone.
        """

    @abstractmethod
    async def change_account(
        self,
        caller: Caller,
        name: str,
        *,
        password: str | None = None,
        role: Role | None = None,
        enabled: bool | None = None,
        unlock: bool = False,
        versions: Versions = None,
    ) -> Account:
        """Change what is given. One's own password needs ConfigureSelf, all else ConfigureUsers.

        A new password ends the account's sessions but the caller's own, and unlocks it.

        Args:
            versions: of `Account.version`, one of which the account must still have; None where any will do.

        Raises:
            ExchangeError: Forbidden, AuthRequired, NothingThere, PropertyRefused, PropertyReadOnly, VersionGone,
                TooManyRequests or AccountsFailed; nothing was changed.
        """


class OwnAdministration(Administration):
    """Changes of accounts in this process.

    Args:
        accounts: who there is.
        sessions: learns of the new password of whoever changes its own.
        logins: knows which of them are locked.
        queue: runs the changes, which hash passwords.
        in_thread: runs a blocking callable off the reactor thread.
        has_passwords: as for `Administration`.
    """

    def __init__(
        self,
        accounts: AccountStore,
        sessions: Sessions,
        logins: Logins,
        queue: WorkQueue,
        in_thread: InThread,
        *,
        has_passwords: bool = True,
    ) -> None:
        super().__init__(accounts, has_passwords=has_passwords)
        self._sessions = sessions
        self._logins = logins
        self._queue = queue
        self._in_thread = in_thread

    async def is_locked(self, name: str) -> bool:
        """As `Administration.is_locked`."""
        return self._logins.is_locked(name)

    async def add_account(self, caller: Caller, name: str, password: str | None, role: Role, enabled: bool) -> Account:
        """As `Administration.add_account`."""
        guard = _guard(caller, _USERS)
        self._judge_password(password)
        try:
            check_name(name)
        except AccountRefused as error:
            raise _as_exchange_error(error) from error

        def add() -> Account:
            account = Account(name, role, None if password is None else hash_password(password), enabled)
            self._accounts.add(account, guard)
            return account

        def added(account: Account) -> None:
            self._logins.forget(account.name)  # of an earlier account of this name
            told = {"user": account.name, "role": role.value}
            _log.info("account added", **told, by=caller.user, address=caller.address)

        return await self._changing(caller, partial(self._in_thread, add), added)

    async def remove_account(self, caller: Caller, name: str, versions: Versions = None) -> None:
        """As `Administration.remove_account`."""
        may_change = _guard(caller, _USERS)

        async def remove() -> None:
            guard = self._with_version(may_change, name, versions)
            await self._in_thread(partial(self._accounts.remove, name, guard, keep_administrator=True))

        def removed(_result: None) -> None:
            self._logins.forget(name)
            _log.info("account removed", user=name, by=caller.user, address=caller.address)

        await self._changing(caller, remove, removed)

    async def change_account(
        self,
        caller: Caller,
        name: str,
        *,
        password: str | None = None,
        role: Role | None = None,
        enabled: bool | None = None,
        unlock: bool = False,
        versions: Versions = None,
    ) -> Account:
        """As `Administration.change_account`."""
        only_password = role is None and enabled is None and not unlock
        own = caller.user == name and only_password
        may_change = _guard(caller, _SELF if own else _USERS)
        self._judge_password(password)

        session = caller.session if caller.user == name else None

        async def change() -> Account:
            password_hash = None if password is None else await self._in_thread(hash_password, password)
            if password_hash is not None and session is not None:
                # Before the password counts: wherever the session is known, it is not to end by it.
                self._sessions.expect_password(session, password_id_of(password_hash))
                await self._sessions.settled()

            def new(account: Account) -> Account:
                return replace(
                    account,
                    role=role or account.role,
                    enabled=account.enabled if enabled is None else enabled,
                    password_hash=password_hash or account.password_hash,
                )

            guard = self._with_version(may_change, name, versions)
            store = partial(self._accounts.change, name, new, guard, keep_administrator=True)
            account: Account = await self._in_thread(store)
            return account

        def changed(account: Account) -> None:
            if password is not None and session is not None:
                self._sessions.password_set(session, account.password_id)
            if unlock:
                self._logins.unlock(name)
            told = {"role": account.role.value, "enabled": account.enabled, "new_password": password is not None}
            _log.info("account changed", user=name, **told, by=caller.user, address=caller.address)

        return await self._changing(caller, change, changed)

    def _judge_password(self, password: str | None) -> None:
        """Refuse a password that would be kept and never asked for."""
        if password is not None and not self.has_passwords:
            text = "Passwords are checked by PAM on this machine. Leave it out here, and set it there."
            raise PropertyReadOnly("password", text)

    def _with_version(self, guard: Guard, name: str, versions: Versions) -> Guard:
        """Return a guard that also refuses a change of what is another version by the time that it is made."""
        if versions is None:
            return guard
        is_locked = self._logins.is_locked(name)  # now: guards are asked in a thread

        def guard_version(accounts: Accounts) -> None:
            guard(accounts)
            account = accounts.get(name)
            if account is not None and account.version(is_locked=is_locked) not in versions:
                raise VersionGone

        return guard_version

    async def _changing(
        self, caller: Caller, change: Callable[[], Awaitable[_Result]], then: Callable[[_Result], None]
    ) -> _Result:
        """Make a change when the queue runs it, and then what belongs to it, though its client hung up."""

        async def make() -> _Result:
            try:
                result = await change()
            except (AccountsUnusable, OSError) as error:
                _log.error("accounts cannot be changed", reason=str(error))
                raise AccountsFailed from error
            except AccountRefused as error:
                raise _as_exchange_error(error) from error
            then(result)
            return result

        return await self._queue.run(Place.of_known(caller.user, source_of(caller.address)), make)


def _as_exchange_error(error: AccountRefused) -> ExchangeError:
    if error.about == "missing":
        return NothingThere()
    return PropertyRefused(error.about, error.text, error.about == "exists")


def _guard(caller: Caller, needed: frozenset[Privilege]) -> Guard:
    """Return what refuses a change where the caller may not make it, or not any more when it is made."""
    caller.must_have(needed)

    def guard(accounts: Accounts) -> None:
        caller.as_of(accounts).must_have(needed)

    return guard


def _may_see_account(caller: Caller, name: str) -> bool:
    return name == caller.user or Privilege.CONFIGURE_USERS in caller.privileges
