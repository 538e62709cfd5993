"""The entrance: where passwords are checked, and sessions begin and end; once, however many processes serve."""

from typing import Protocol

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from bmc_proxy.auth.accounts import Account
from bmc_proxy.auth.login import Logins
from bmc_proxy.auth.principal import Caller
from bmc_proxy.auth.sessions import Session, Sessions

_log = Logger()


class Entrance(Protocol):
    """What requests see of it, wherever it is."""

    async def check(self, user: str, password: str, address: str) -> Account:
        """Return the account that a name and a password let in. Raises AuthFailed or TooManyRequests."""

    async def log_in(self, user: str, password: str, address: str) -> tuple[Session, str]:
        """Open a session; return it and its token once it counts everywhere. Raises as `check` does."""

    async def end(self, session: Session, by: Caller) -> None:
        """End a session; return once it counts nowhere any more."""


class OwnEntrance:
    """The entrance in this process.

    Args:
        logins: checks passwords.
        sessions: who is logged in.
    """

    def __init__(self, logins: Logins, sessions: Sessions) -> None:
        self._logins = logins
        self._sessions = sessions

    async def check(self, user: str, password: str, address: str) -> Account:
        """As `Entrance.check`."""
        return await self._logins.check(user, password, address)

    async def log_in(self, user: str, password: str, address: str) -> tuple[Session, str]:
        """As `Entrance.log_in`."""
        account = await self._logins.check(user, password, address)
        session, token = self._sessions.open(account.name, account.password_id, address)
        _log.info("logged in", user=account.name, address=address, session=session.id)
        try:
            await self._sessions.settled()
        except CancelledError:
            self._sessions.close(session)  # whose token nobody gets
            raise
        return session, token

    async def end(self, session: Session, by: Caller) -> None:
        """As `Entrance.end`."""
        self._sessions.close(session)
        _log.info("logged out", user=session.user, session=session.id, by=by.user, address=by.address)
        await self._sessions.settled()
