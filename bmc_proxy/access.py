"""Access: who asks, by whichever way in, and who is logged in; without a word of HTTP."""

from hmac import compare_digest

from bmc_proxy.accounts import Account, AccountStore, Privilege
from bmc_proxy.callers import Caller, Credentials
from bmc_proxy.entrance import Entrance
from bmc_proxy.errors import AuthRequired, Forbidden, NothingThere
from bmc_proxy.sessions import Session, SessionTable


class Access:
    """The use cases around who asks.

    Args:
        accounts: who there is.
        sessions: who is logged in.
        entrance: where passwords are checked, and sessions begin and end.
    """

    def __init__(self, accounts: AccountStore, sessions: SessionTable, entrance: Entrance) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._entrance = entrance

    # Who asks

    def known(self, credentials: Credentials, address: str) -> Caller | None:
        """Return who asks as far as that can be told at once: by certificate, token or cookie, in this order."""
        user = credentials.certificate_user
        account = self._accounts.get(user) if user is not None else None
        if account is not None and account.enabled:
            return Caller(account.name, "certificate", address, account.role.privileges)
        if credentials.token is not None and (caller := self._by_token(credentials.token, "token", address)):
            return caller
        for token in credentials.cookie_tokens:
            caller = self._by_token(token, "cookie", address)
            if caller is not None and (not credentials.writes or _shows_xsrf_token(caller, credentials.xsrf_token)):
                return caller
        return None

    async def caller(self, credentials: Credentials, address: str) -> Caller:
        """Return who asks, where it must be known by password, which is checked.

        Raises:
            AuthRequired, AuthFailed, TooManyRequests: it is not known.
        """
        if credentials.basic is None:
            raise AuthRequired
        account = await self._entrance.check(*credentials.basic, address)
        return Caller(account.name, "basic", address, account.role.privileges, account.password_id)

    def still(self, caller: Caller) -> Caller:
        """Return who asks as it is known now, after a wait. Raises AuthRequired where it is not known any more."""
        return caller.as_of(self._accounts.all())

    async def log_in(self, user: str, password: str, address: str) -> tuple[Session, str]:
        """Open a session; return it and its token. Raises AuthFailed or TooManyRequests."""
        return await self._entrance.log_in(user, password, address)

    async def log_out(self, caller: Caller) -> None:
        """End the caller's session, if it has one."""
        if caller.session is not None:
            await self._entrance.end(caller.session, caller)

    def _by_token(self, token: str, method: str, address: str) -> Caller | None:
        """Return whom a session's token names; a session ends whose account does not let it in any more."""
        session = self._sessions.use(token)
        if session is None:
            return None
        account = self._owner(session)
        if account is None:
            self._sessions.close(session)
            return None
        return Caller(account.name, method, address, account.role.privileges, session=session)

    def _owner(self, session: Session) -> Account | None:
        """Return a session's account, as long as it may be used and has the password of the login."""
        account = self._accounts.get(session.user)
        if account is None or not account.enabled:
            return None
        return account if account.password_id in (session.password_id, session.next_password_id) else None

    # Sessions

    @property
    def session_idle_s(self) -> float:
        """How long a session lives unused."""
        return self._sessions.idle_s

    def sessions_for(self, caller: Caller) -> list[Session]:
        """Return the sessions that the caller may see: all, or its own."""
        return [each for each in self._sessions.all() if self._owner(each) and _may_see(caller, each)]

    def session_for(self, caller: Caller, session_id: str) -> Session:
        """Return one of these. Raises NothingThere or Forbidden."""
        session = self._sessions.find(session_id)
        if session is None or self._owner(session) is None:
            raise NothingThere
        if not _may_see(caller, session):
            raise Forbidden
        return session

    async def end_session(self, caller: Caller, session_id: str) -> None:
        """End one of these. Raises NothingThere or Forbidden."""
        await self._entrance.end(self.session_for(caller, session_id), caller)


def _shows_xsrf_token(caller: Caller, shown: str | None) -> bool:
    session = caller.session
    if session is None or shown is None:
        return False
    return compare_digest(session.xsrf_token.encode(), shown.encode())


def _may_see(caller: Caller, session: Session) -> bool:
    return session.user == caller.user or Privilege.CONFIGURE_MANAGER in caller.privileges
