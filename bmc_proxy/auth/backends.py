"""Checkers of passwords, as `twisted.cred` has them: any `ICredentialsChecker` for user names and passwords will do.

A checker says that a password is right. Whether the user has an account here, and in which role, is `accounts`'.
"""

from collections.abc import Callable
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from zope.interface import implementer

from bmc_proxy.auth.accounts import AccountStore
from bmc_proxy.auth.passwords import is_password

InThread = Callable[..., Deferred[Any]]


@implementer(ICredentialsChecker)
class AccountChecker:
    """Checks passwords against the accounts' own hashes.

    Args:
        accounts: the accounts.
        in_thread: runs a blocking callable off the reactor thread.
    """

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, accounts: AccountStore, in_thread: InThread) -> None:
        self._accounts = accounts
        self._in_thread = in_thread

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        """Return the user's name; fails with UnauthorizedLogin."""
        account = self._accounts.get(credentials.username.decode())
        password_hash = account.password_hash if account is not None else None

        def judge(is_right: bool) -> bytes | tuple[()]:
            if not is_right:
                raise UnauthorizedLogin
            name: bytes = credentials.username
            return name

        return self._in_thread(is_password, credentials.password.decode(), password_hash).addCallback(judge)


@implementer(ICredentialsChecker)
class PamChecker:
    """Checks passwords with the machine's PAM (extra `pam`).

    Args:
        service: of /etc/pam.d.
        in_thread: runs a blocking callable off the reactor thread.

    Raises:
        ImportError: the extra is not installed.
    """

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, service: str, in_thread: InThread) -> None:
        from pam import PamAuthenticator

        self._new_authenticator = PamAuthenticator
        self._service = service
        self._in_thread = in_thread

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        """Return the user's name; fails with UnauthorizedLogin."""
        name, password = credentials.username, credentials.password

        def check() -> bytes | tuple[()]:
            # No credentials are set and no session is opened: nothing is done in the user's name.
            if b"\0" in name + password or not self._new_authenticator().authenticate(
                name, password, service=self._service, resetcreds=False
            ):
                raise UnauthorizedLogin
            found: bytes = name
            return found

        return self._in_thread(check)


async def is_let_in(checker: ICredentialsChecker, user: str, password: str) -> bool:
    """Return whether a checker lets this user in."""
    try:
        return bool(await checker.requestAvatarId(UsernamePassword(user.encode(), password.encode())) == user.encode())
    except UnauthorizedLogin:
        return False
