"""What a worker asks of the first process: the entrance and the administration, as requests see them."""

from collections.abc import Callable

from bmc_proxy.auth.account_service import Administration, Versions
from bmc_proxy.auth.accounts import Account, AccountStore, Role
from bmc_proxy.auth.principal import Caller
from bmc_proxy.auth.sessions import Session
from bmc_proxy.errors import AuthFailed, AuthRequired
from bmc_proxy.workers.ipc import Pipe
from bmc_proxy.workers.messages import (
    AccountIs,
    AddAccount,
    Asker,
    ChangeAccount,
    CheckPassword,
    Done,
    EndSession,
    LetIn,
    Locked,
    LoggedIn,
    LogIn,
    LookAtLock,
    RemoveAccount,
)


class AskedEntrance:
    """The entrance in the first process.

    Args:
        pipe: leads there.
        accounts: who there is.
        find: returns the session of an id.
    """

    def __init__(self, pipe: Pipe, accounts: AccountStore, find: Callable[[str], Session | None]) -> None:
        self._pipe = pipe
        self._accounts = accounts
        self._find = find

    async def check(self, user: str, password: str, address: str) -> Account:
        """As `Entrance.check`."""
        answer = await self._pipe.ask_for(CheckPassword(user, password, address), LetIn)
        account = self._accounts.get(answer.name)
        # It may have changed on the way.
        if account is None or not account.enabled or account.password_id != answer.password_id:
            raise AuthFailed
        return account

    async def log_in(self, user: str, password: str, address: str) -> tuple[Session, str]:
        """As `Entrance.log_in`."""
        answer = await self._pipe.ask_for(LogIn(user, password, address), LoggedIn)
        session = self._find(answer.session_id)
        if session is None:
            raise AuthRequired  # it ended on the way
        return session, answer.token

    async def end(self, session: Session, by: Caller) -> None:
        """As `Entrance.end`."""
        await self._pipe.ask_for(EndSession(session.id, by.user, by.address), Done)


class AskedAdministration(Administration):
    """Changes of accounts in the first process.

    Args:
        pipe: leads there.
        accounts: who there is.
        has_passwords: as for `Administration`.
    """

    def __init__(self, pipe: Pipe, accounts: AccountStore, *, has_passwords: bool) -> None:
        super().__init__(accounts, has_passwords=has_passwords)
        self._pipe = pipe

    async def is_locked(self, name: str) -> bool:
        """As `Administration.is_locked`."""
        return (await self._pipe.ask_for(LookAtLock(name), Locked)).is_locked

    async def add_account(self, caller: Caller, name: str, password: str | None, role: Role, enabled: bool) -> Account:
        """As `Administration.add_account`."""
        question = AddAccount(_asker(caller), name, password, role.value, enabled)
        return self._account(await self._pipe.ask_for(question, AccountIs))

    async def remove_account(self, caller: Caller, name: str, versions: Versions = None) -> None:
        """As `Administration.remove_account`."""
        question = RemoveAccount(_asker(caller), name, versions is not None, tuple(versions or ()))
        await self._pipe.ask_for(question, Done)

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
        role_id = None if role is None else role.value
        given = versions is not None, tuple(versions or ())
        question = ChangeAccount(_asker(caller), name, password, role_id, enabled, unlock, *given)
        return self._account(await self._pipe.ask_for(question, AccountIs))

    def _account(self, told: AccountIs) -> Account:
        """Return the account as the file has it now; if it is gone again, the supervisor's copy without its hash."""
        return self._accounts.get(told.name) or Account(told.name, Role(told.role), None, told.enabled)


def _asker(caller: Caller) -> Asker:
    session_id = None if caller.session is None else caller.session.id
    return Asker(caller.user, caller.method, caller.address, caller.password_id, session_id)
