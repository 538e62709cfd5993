"""Access: who asks, by whichever way in, and who is logged in; without a word of HTTP."""

from hmac import compare_digest

from bmc_proxy.auth.accounts import Account, AccountStore, Privilege
from bmc_proxy.auth.client_certificates import NO_ACCOUNT, REVOKED, ClientCertificate, Judge
from bmc_proxy.auth.login_service import Entrance
from bmc_proxy.auth.principal import Caller, Credentials
from bmc_proxy.auth.sessions import Session, SessionTable
from bmc_proxy.errors import AuthRequired, CertificateRevoked, ExchangeError, Forbidden, NothingThere


class Access:
    """The use cases around who asks.

    Args:
        accounts: who there is.
        sessions: who is logged in.
        entrance: where passwords are checked, and sessions begin and end.
        certificates: judges client certificates; None where they let nobody in.
    """

    def __init__(
        self,
        accounts: AccountStore,
        sessions: SessionTable,
        entrance: Entrance,
        certificates: Judge | None = None,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._entrance = entrance
        self._certificates = certificates

    # Who asks

    def known(self, credentials: Credentials, address: str) -> Caller | None:
        """Return who asks as far as that can be told at once: by certificate, token or cookie, in this order."""
        if credentials.certificate is not None:
            account = self._owner_of(credentials.certificate, address)
            if isinstance(account, Account):
                name, privileges = account.name, account.role.privileges
                return Caller(name, "certificate", address, privileges, certificate=credentials.certificate)
        if credentials.token is not None and (caller := self._by_token(credentials.token, "token", address)):
            return caller
        for token in credentials.cookie_tokens:
            caller = self._by_token(token, "cookie", address)
            if caller is not None and (not credentials.writes or _shows_xsrf_token(caller, credentials.xsrf_token)):
                return caller
        return None

    async def caller(self, credentials: Credentials, address: str) -> Caller:
        """Return who asks, where it must be known by password, which is checked.

        A client certificate that lets nobody in does not stand in the way of a password: a client whose certificate was
        revoked asks for its next one in this way.

        Raises:
            AuthRequired, CertificateRevoked, AuthFailed, TooManyRequests: it is not known.
        """
        if credentials.basic is None:
            raise self._no_caller(credentials.certificate, address)
        account = await self._entrance.check(*credentials.basic, address)
        return Caller(account.name, "basic", address, account.role.privileges, account.password_id)

    def still(self, caller: Caller) -> Caller:
        """Return who asks as it is known now, after a wait.

        Raises:
            AuthRequired, CertificateRevoked: it is not known any more.
        """
        if caller.certificate is not None and not isinstance(
            self._owner_of(caller.certificate, caller.address), Account
        ):
            raise self._no_caller(caller.certificate, caller.address)
        return caller.as_of(self._accounts.all())

    async def log_in(self, user: str, password: str, address: str) -> tuple[Session, str]:
        """Open a session; return it and its token. Raises AuthFailed or TooManyRequests."""
        return await self._entrance.log_in(user, password, address)

    async def log_out(self, caller: Caller) -> None:
        """End the caller's session, if it has one."""
        if caller.session is not None:
            await self._entrance.end(caller.session, caller)

    def _owner_of(self, certificate: ClientCertificate, address: str) -> Account | str:
        """Return the account that a client certificate lets in, or why it lets nobody in, which the log has then."""
        assert self._certificates is not None  # or no certificate is asked for
        cause = self._certificates.refusal_of(certificate)
        account = self._accounts.get(certificate.user) if certificate.user is not None else None
        if cause is None and account is not None and account.enabled:
            return account
        cause = cause or NO_ACCOUNT
        self._certificates.report(certificate, cause, address)
        return cause

    def _no_caller(self, certificate: ClientCertificate | None, address: str) -> ExchangeError:
        """Return what somebody is answered who brings no other credential than this one."""
        cause = None if certificate is None else self._owner_of(certificate, address)
        if cause == REVOKED:
            return CertificateRevoked()
        if not isinstance(cause, str) or cause == NO_ACCOUNT:
            return AuthRequired()
        return AuthRequired(f"The client certificate is not accepted: {cause}. Log in with a password or token.")

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
