"""What the first process answers to its workers' questions."""

from bmc_proxy.auth.accounts import Account, Role
from bmc_proxy.auth.principal import Caller
from bmc_proxy.auth.services import Desk
from bmc_proxy.errors import AuthRequired
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
    Record,
    RecordRefused,
    RemoveAccount,
    Used,
)
from bmc_proxy.workers.session_table import SharedSessions


class Answers:
    """Answers questions of workers.

    Args:
        desk: decides.
        sessions: the desk's.
    """

    def __init__(self, desk: Desk, sessions: SharedSessions) -> None:
        self._desk = desk
        self._sessions = sessions

    async def answer(self, record: Record) -> Record:
        """Return the answer. Raises ExchangeError, or RecordRefused for what is no question of a worker."""
        entrance, administration = self._desk.entrance, self._desk.administration
        match record:
            case CheckPassword():
                account = await entrance.check(record.user, record.password, record.address)
                return LetIn(account.name, account.password_id)
            case LogIn():
                session, token = await entrance.log_in(record.user, record.password, record.address)
                return LoggedIn(session.id, token)
            case EndSession():
                await self._end(record)
                return Done()
            case Used():
                self._sessions.used(record)
                return Done()
            case LookAtLock():
                return Locked(await administration.is_locked(record.name))
            case AddAccount():
                role = _role(record.role)
                by = self._caller(record.by)
                return _told(await administration.add_account(by, record.name, record.password, role, record.enabled))
            case RemoveAccount():
                await administration.remove_account(self._caller(record.by), record.name, _versions(record))
                return Done()
            case ChangeAccount():
                return _told(
                    await administration.change_account(
                        self._caller(record.by),
                        record.name,
                        password=record.password,
                        role=None if record.role is None else _role(record.role),
                        enabled=record.enabled,
                        unlock=record.unlock,
                        versions=_versions(record),
                    )
                )
        raise RecordRefused(f"{type(record).__name__} is no question of a worker")

    async def _end(self, record: EndSession) -> None:
        session = self._sessions.find(record.id)
        if session is not None and record.by is not None:
            by = Caller(record.by, "-", record.address, frozenset())
            await self._desk.entrance.end(session, by)
            return
        if session is not None:
            self._sessions.close(session)
        # Where it has ended already, perhaps not every worker knows.
        await self._sessions.settled()

    def _caller(self, asker: Asker) -> Caller:
        """Return who asks, with the privileges that it has now. Raises AuthRequired where it is not let in any more."""
        session = None
        if asker.session_id is not None:
            session = self._sessions.find(asker.session_id)
            if session is None or session.user != asker.user:
                raise AuthRequired
        caller = Caller(asker.user, asker.method, asker.address, frozenset(), asker.password_id, session)
        return caller.as_of(self._desk.accounts.all())


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError as error:
        raise RecordRefused("a role that is none") from error


def _versions(record: RemoveAccount | ChangeAccount) -> tuple[str, ...] | None:
    return record.versions if record.has_versions else None


def _told(account: Account) -> AccountIs:
    return AccountIs(account.name, account.role.value, account.enabled)
