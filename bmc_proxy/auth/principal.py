"""Callers: what a request brings to be known by, and who is known by it."""

from dataclasses import dataclass, replace

from bmc_proxy.auth.accounts import ANONYMOUS, Accounts, Privilege
from bmc_proxy.auth.client_certificates import ClientCertificate
from bmc_proxy.auth.sessions import Session
from bmc_proxy.errors import AuthRequired, Forbidden

SIGNING = frozenset({Privilege.CONFIGURE_MANAGER, Privilege.CONFIGURE_COMPONENTS})


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request brings to be known by, all of it untrusted but the certificate.

    Attributes:
        certificate: the client's, which TLS accepted when the connection began.
        token: of X-Auth-Token.
        cookie_tokens: of the session cookies.
        xsrf_token: of X-XSRF-TOKEN.
        basic: user and password.
        writes: the request's method may change something, so a cookie alone is not enough.
    """

    certificate: ClientCertificate | None = None
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
        password_id: of the password that came with the request; None where none did.
        session: that it belongs to.
        certificate: that it is known by.
    """

    user: str
    method: str
    address: str
    privileges: frozenset[Privilege]
    password_id: str | None = None
    session: Session | None = None
    certificate: ClientCertificate | None = None

    def as_of(self, accounts: Accounts) -> "Caller":
        """Return the caller with the privileges that it has by these accounts.

        Raises:
            AuthRequired: it is not let in any more: without account, disabled, with another password, logged out.
        """
        if self.user == ANONYMOUS:
            return self
        account, session = accounts.get(self.user), self.session
        if account is None or not account.enabled:
            raise AuthRequired
        if session is not None:
            if session.is_closed or account.password_id not in (session.password_id, session.next_password_id):
                raise AuthRequired
        elif self.password_id not in (None, account.password_id):
            raise AuthRequired
        return replace(self, privileges=account.role.privileges)

    def must_have(self, privileges: frozenset[Privilege]) -> None:
        """Raise Forbidden where one is lacking, AuthRequired where a login may help."""
        if not privileges <= self.privileges:
            raise Forbidden if Privilege.LOGIN in self.privileges else AuthRequired


def anonymous(address: str) -> Caller:
    """Return who asks without login on the listener that allows it: it may have CSRs signed, and nothing else."""
    return Caller(ANONYMOUS, "anonymous-loopback", address, SIGNING)
