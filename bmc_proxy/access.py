"""Who asks, and what they may: logins, sessions and accounts, without a word of HTTP."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hmac import compare_digest
from typing import TypeVar

from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from bmc_proxy.accounts import ANONYMOUS, NAME, Account, AccountRefused, AccountStore, Privilege, Role
from bmc_proxy.checkers import InThread, is_let_in
from bmc_proxy.errors import (
    AuthFailed,
    AuthRequired,
    Forbidden,
    NothingThere,
    PropertyRefused,
    TooManyRequests,
)
from bmc_proxy.lockout import Lockout
from bmc_proxy.passwords import hash_password, is_possible
from bmc_proxy.sessions import Session, Sessions
from bmc_proxy.sources import source_of

# Logins that wait for their turn at the one thread that hashes.
QUEUE_LIMIT = 256
QUEUE_LIMIT_PER_SOURCE = 128
QUEUE_RETRY_AFTER_S = 5

SIGNING = frozenset({Privilege.CONFIGURE_MANAGER, Privilege.CONFIGURE_COMPONENTS})

_Result = TypeVar("_Result")

_log = Logger()


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request brings to be known by, all of it untrusted but the certificate.

    Attributes:
        certificate_user: whom the client certificate names, which TLS accepted.
        token: of X-Auth-Token.
        cookie_tokens: of the session cookies.
        xsrf_token: of X-XSRF-TOKEN.
        basic: user and password.
        writes: the request's method may change something, so a cookie alone is not enough.
    """

    certificate_user: str | None = None
    token: str | None = None
    cookie_tokens: tuple[str, ...] = ()
    xsrf_token: str | None = None
    basic: tuple[str, str] | None = None
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who is known.

    Attributes:
        user: the account's name.
        method: how it is known: "certificate", "token", "cookie", "basic", "anonymous-loopback".
        address: where the request came from.
        session: that it belongs to.
    """

    user: str
    method: str
    address: str
    privileges: frozenset[Privilege]
    session: Session | None = None

    def must_have(self, privileges: frozenset[Privilege]) -> None:
        """Raise Forbidden where one is lacking, AuthRequired where a login may help."""
        if not privileges <= self.privileges:
            raise Forbidden if Privilege.LOGIN in self.privileges else AuthRequired


def anonymous(address: str) -> Caller:
    """Return who asks without login on the listener that allows it: it may have CSRs signed, and nothing else."""
    return Caller(ANONYMOUS, "anonymous-loopback", address, SIGNING)


class Access:
    """The use cases around who asks.

    Args:
        accounts: who there is.
        sessions: who is logged in.
        checker: says whether a password is right.
        in_thread: runs a blocking callable off the reactor thread.
        now: seconds, of a clock that goes forward.
    """

    def __init__(
        self,
        accounts: AccountStore,
        sessions: Sessions,
        checker: ICredentialsChecker,
        in_thread: InThread,
        now: Callable[[], float],
    ) -> None:
        self.accounts = accounts
        self._sessions = sessions
        self._checker = checker
        self._in_thread = in_thread
        self._now = now
        self._lockout = Lockout()
        self._turn = DeferredLock()
        self._waiting: dict[str, int] = {}

    # Who asks

    def known(self, credentials: Credentials, address: str) -> Caller | None:
        """Return who asks as far as that can be told at once: by certificate, token or cookie, in this order."""
        user = credentials.certificate_user
        account = self.accounts.get(user) if user is not None else None
        if account is not None and account.enabled:
            return Caller(account.name, "certificate", address, account.role.privileges)
        if credentials.token is not None and (session := self._sessions.use(credentials.token)):
            return self._by_session(session, "token", address)
        for token in credentials.cookie_tokens:
            session = self._sessions.use(token)
            if session is not None and (not credentials.writes or _shows_xsrf_token(session, credentials.xsrf_token)):
                return self._by_session(session, "cookie", address)
        return None

    async def caller(self, credentials: Credentials, address: str) -> Caller:
        """Return who asks, where it must be known by password, which is checked.

        Raises:
            AuthRequired, AuthFailed, TooManyRequests: it is not known.
        """
        if credentials.basic is None:
            raise AuthRequired
        account = await self._check(*credentials.basic, address)
        return Caller(account.name, "basic", address, account.role.privileges)

    async def log_in(self, user: str, password: str, address: str) -> tuple[Session, str]:
        """Open a session; return it and its token. Raises AuthFailed or TooManyRequests."""
        account = await self._check(user, password, address)
        session, token = self._sessions.open(account.name, account.password_id, address)
        _log.info("logged in", user=account.name, address=address, session=session.id)
        return session, token

    def log_out(self, caller: Caller) -> None:
        """End the caller's session, if it has one."""
        if caller.session is not None:
            self._end(caller.session, caller)

    def _by_session(self, session: Session, method: str, address: str) -> Caller | None:
        account = self._owner(session)
        if account is None:
            self._sessions.close(session)
            return None
        return Caller(account.name, method, address, account.role.privileges, session)

    def _owner(self, session: Session) -> Account | None:
        """Return a session's account, as long as it may be used and has the password of the login."""
        account = self.accounts.get(session.user)
        is_good = account is not None and account.enabled and account.password_id == session.password_id
        return account if is_good else None

    async def _check(self, user: str, password: str, address: str) -> Account:
        source = source_of(address)
        self._refuse_while_waiting(source)
        if not NAME.fullmatch(user) or not is_possible(password):
            self._lockout.refused(source, self._now())
            raise AuthFailed
        if sum(self._waiting.values()) >= QUEUE_LIMIT or self._waiting.get(source, 0) >= QUEUE_LIMIT_PER_SOURCE:
            raise TooManyRequests(QUEUE_RETRY_AFTER_S)
        self._waiting[source] = self._waiting.get(source, 0) + 1
        try:
            # One at a time, so that no try starts before the failures of those before it are counted.
            await self._turn.acquire()
            try:
                return await self._check_in_turn(user, password, source, address)
            finally:
                self._turn.release()
        finally:
            self._waiting[source] -= 1
            if not self._waiting[source]:
                del self._waiting[source]

    async def _check_in_turn(self, user: str, password: str, source: str, address: str) -> Account:
        self._refuse_while_waiting(source)
        if self._lockout.is_closed(self._lock_of(user), source, self._now()):
            self._lockout.refused(source, self._now())
            raise AuthFailed
        is_right = await is_let_in(self._checker, user, password)
        account = self.accounts.get(user)
        if not is_right or account is None or not account.enabled:
            # The name only where it is one: people type passwords into the field for names.
            told = user if account is not None else "-"
            _log.warn("login failed", user=told, address=address)
            if self._lockout.failed(self._lock_of(user), source, self._now()):
                _log.warn("account locked", user=told, address=address)
            raise AuthFailed
        self._lockout.succeeded(self._lock_of(user), source)
        return account

    def _lock_of(self, user: str) -> str:
        """Return under what failures are counted: another password, set by whatever process, opens an account again."""
        account = self.accounts.get(user)
        return user if account is None else f"{user} {account.password_id}"

    def _refuse_while_waiting(self, source: str) -> None:
        wait_s = self._lockout.wait_s(source, self._now())
        if wait_s > 0:
            raise TooManyRequests(wait_s)

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

    def end_session(self, caller: Caller, session_id: str) -> None:
        """End one of these. Raises NothingThere or Forbidden."""
        self._end(self.session_for(caller, session_id), caller)

    def _end(self, session: Session, caller: Caller) -> None:
        self._sessions.close(session)
        _log.info("logged out", user=session.user, session=session.id, by=caller.user, address=caller.address)

    # Accounts

    def accounts_for(self, caller: Caller) -> list[Account]:
        """Return the accounts that the caller may see: all, or its own."""
        return [account for account in self.accounts.all().values() if _may_see_account(caller, account.name)]

    def account_for(self, caller: Caller, name: str) -> Account:
        """Return one of these. Raises NothingThere or Forbidden."""
        if not _may_see_account(caller, name):
            raise Forbidden
        account = self.accounts.get(name)
        if account is None:
            raise NothingThere
        return account

    def is_locked(self, name: str) -> bool:
        """Return whether wrong passwords locked this account."""
        return self._lockout.is_locked(self._lock_of(name), self._now())

    async def add_account(self, caller: Caller, name: str, password: str, role: Role, enabled: bool) -> Account:
        """Make an account. Raises Forbidden, or PropertyRefused with a name of `Account`'s."""
        caller.must_have(frozenset({Privilege.CONFIGURE_USERS}))

        def add() -> Account:
            account = Account(name, role, hash_password(password), enabled)
            self.accounts.add(account)
            return account

        account = await self._changing(add)
        _log.info("account added", user=account.name, role=role.value, by=caller.user, address=caller.address)
        return account

    async def remove_account(self, caller: Caller, name: str) -> None:
        """Remove an account; its sessions end with it. Raises Forbidden, NothingThere or PropertyRefused."""
        caller.must_have(frozenset({Privilege.CONFIGURE_USERS}))
        await self._changing(lambda: self.accounts.remove(name, keep_administrator=True))
        _log.info("account removed", user=name, by=caller.user, address=caller.address)

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
            Forbidden, NothingThere, PropertyRefused: nothing was changed.
        """
        only_password = role is None and enabled is None and not unlock
        own = caller.user == name and only_password
        caller.must_have(frozenset({Privilege.CONFIGURE_SELF if own else Privilege.CONFIGURE_USERS}))

        def change() -> Account:
            password_hash = hash_password(password) if password is not None else None

            def changed(account: Account) -> Account:
                return replace(
                    account,
                    role=role or account.role,
                    enabled=account.enabled if enabled is None else enabled,
                    password_hash=password_hash or account.password_hash,
                )

            return self.accounts.change(name, changed, keep_administrator=True)

        account = await self._changing(change)
        if password is not None and caller.session is not None and caller.user == name:
            caller.session.password_id = account.password_id
        if unlock:
            self._lockout.clear(self._lock_of(name))
        _log.info(
            "account changed",
            user=name,
            by=caller.user,
            address=caller.address,
            new_password=password is not None,
            role=account.role.value,
            enabled=account.enabled,
        )
        return account

    async def _changing(self, change: Callable[[], _Result]) -> _Result:
        try:
            result: _Result = await self._in_thread(change)
        except AccountRefused as error:
            if error.about == "missing":
                raise NothingThere from error
            raise PropertyRefused(error.about, error.text, error.about == "exists") from error
        return result


def _shows_xsrf_token(session: Session, shown: str | None) -> bool:
    return shown is not None and compare_digest(session.xsrf_token.encode(), shown.encode())


def _may_see(caller: Caller, session: Session) -> bool:
    return session.user == caller.user or Privilege.CONFIGURE_MANAGER in caller.privileges


def _may_see_account(caller: Caller, name: str) -> bool:
    return name == caller.user or Privilege.CONFIGURE_USERS in caller.privileges
