"""Administration: accounts, as far as whoever asks may see and change them."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from twisted.logger import Logger

from bmc_proxy.accounts import (
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
from bmc_proxy.callers import Caller
from bmc_proxy.checkers import InThread
from bmc_proxy.errors import AccountsFailed, ExchangeError, Forbidden, NothingThere, PropertyRefused
from bmc_proxy.lanes import Place
from bmc_proxy.logins import Logins
from bmc_proxy.passwords import hash_password
from bmc_proxy.sessions import Sessions
from bmc_proxy.work_queue import WorkQueue
from runtime.networks import source_of

_USERS = frozenset({Privilege.CONFIGURE_USERS})
_SELF = frozenset({Privilege.CONFIGURE_SELF})

_Result = TypeVar("_Result")

_log = Logger()


class Administration(ABC):
    """The use cases around accounts: seen in whatever process, changed in one.

    Args:
        accounts: who there is.
    """

    def __init__(self, accounts: AccountStore) -> None:
        self._accounts = accounts

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
    async def add_account(self, caller: Caller, name: str, password: str, role: Role, enabled: bool) -> Account:
        """Make an account. Raises Forbidden, or PropertyRefused with a name of `Account`'s."""

    @abstractmethod
    async def remove_account(self, caller: Caller, name: str) -> None:
        """Remove an account; its sessions end with it. Raises Forbidden, NothingThere or PropertyRefused."""

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
    ) -> Account:
        """Change what is given. One's own password needs ConfigureSelf, all else ConfigureUsers.

        A new password ends the account's sessions but the caller's own, and unlocks it.

        Raises:
            ExchangeError: Forbidden, AuthRequired, NothingThere, PropertyRefused, TooManyRequests or AccountsFailed;
                nothing was changed.
        """


class OwnAdministration(Administration):
    """Changes of accounts in this process.

    Args:
        accounts: who there is.
        sessions: learns of the new password of whoever changes its own.
        logins: knows which of them are locked.
        queue: runs the changes, which hash passwords.
        in_thread: runs a blocking callable off the reactor thread.
    """

    def __init__(
        self, accounts: AccountStore, sessions: Sessions, logins: Logins, queue: WorkQueue, in_thread: InThread
    ) -> None:
        super().__init__(accounts)
        self._sessions = sessions
        self._logins = logins
        self._queue = queue
        self._in_thread = in_thread

    async def is_locked(self, name: str) -> bool:
        """As `Administration.is_locked`."""
        return self._logins.is_locked(name)

    async def add_account(self, caller: Caller, name: str, password: str, role: Role, enabled: bool) -> Account:
        """As `Administration.add_account`."""
        guard = _guard(caller, _USERS)
        try:
            check_name(name)
        except AccountRefused as error:
            raise _as_exchange_error(error) from error

        def add() -> Account:
            account = Account(name, role, hash_password(password), enabled)
            self._accounts.add(account, guard)
            return account

        def added(account: Account) -> None:
            self._logins.forget(account.name)  # of an earlier account of this name
            told = {"user": account.name, "role": role.value}
            _log.info("account added", **told, by=caller.user, address=caller.address)

        return await self._changing(caller, partial(self._in_thread, add), added)

    async def remove_account(self, caller: Caller, name: str) -> None:
        """As `Administration.remove_account`."""
        guard = _guard(caller, _USERS)

        def removed(_result: None) -> None:
            self._logins.forget(name)
            _log.info("account removed", user=name, by=caller.user, address=caller.address)

        remove = partial(self._accounts.remove, name, guard, keep_administrator=True)
        await self._changing(caller, partial(self._in_thread, remove), removed)

    async def change_account(
        self,
        caller: Caller,
        name: str,
        *,
        password: str | None = None,
        role: Role | None = None,
        enabled: bool | None = None,
        unlock: bool = False,
    ) -> Account:
        """As `Administration.change_account`."""
        only_password = role is None and enabled is None and not unlock
        own = caller.user == name and only_password
        guard = _guard(caller, _SELF if own else _USERS)

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
