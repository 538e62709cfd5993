"""Client certificates after the handshake: which account one names, and whether it still lets in.

OpenSSL judges a certificate once, when a connection begins. Here it is judged again with each request, as connections
live for hours: validity, revocation of every certificate of its path, and whether its CA still lets anybody in. Nothing
in here reads X.509: `https` reads the certificate, `client_crls` and `own_crls` the lists of what is revoked.

A certificate is refused where its status cannot be known although it should be: the CA is an agent's own and its CRL is
missing or has ended, or `--client-crl` covers its CA and has ended, or covers only a part of its path. Other CAs have
no CRL here, and their certificates cannot be revoked; the log says so at start.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

# SHA-256 over name and key: two certificates of one CA are one authority.
AuthorityId = bytes

# The clock of a CA may be ahead of ours by so much, as it is where CRLs are verified elsewhere.
SKEW_S = 300.0

ENDED = "it has ended"
NOT_YET_VALID = "it is not valid yet: compare the clocks"
REVOKED = "it is revoked"
NO_ACCOUNT = "it names no account that may log in"
CA_GONE = "its CA is no longer in --client-ca"
NO_CRL = "no CRL of its CA was received from an agent yet"
CRL_ENDED = "the CRL of its CA has ended"
CRL_NOT_YET_VALID = "the CRL of its CA is not valid yet: compare the clocks"
PATH_NOT_COVERED = "an issuer in its path has no CRL: add its certificate to --client-ca and its CRL to --client-crl"
CRL_UNREAD = "a file of --client-crl, which may be the CRL of its CA, cannot be read"
NOT_KNOWN_YET = "no agent has said yet whether its CA is one of its own"


@dataclass(slots=True, eq=False)
class ClientCertificate:
    """The certificate of one connection, which OpenSSL accepted.

    Attributes:
        user: the account that it names; None where it names none.
        subject: for the log, printable.
        serial: for the log and for CRLs.
        not_before, not_after: of its whole path, in seconds since 1970-01-01 UTC.
        path: issuer and serial of each certificate but the trust anchor's, the client's own first.
        anchor: the CA of --client-ca that the path ends in.
        reported: the cause that the log already has for this connection.
    """

    user: str | None
    subject: str
    serial: int
    not_before: float
    not_after: float
    path: tuple[tuple[AuthorityId, int], ...]
    anchor: AuthorityId
    reported: str | None = None


@dataclass(frozen=True, slots=True)
class Crl:
    """What a CRL says, as far as it matters here; verified already.

    Attributes:
        serials: of the certificates that are revoked or on hold.
        this_update, next_update: in seconds since 1970-01-01 UTC.
        number: rises with each CRL of its issuer; None where it has none.
    """

    serials: frozenset[int]
    this_update: float
    next_update: float
    number: int | None

    def is_earlier_than(self, other: "Crl") -> bool:
        """Return whether its issuer made the other one after it: by cRLNumber (RFC 5280, 5.2.3), then thisUpdate."""
        if self.number is not None and other.number is not None and self.number != other.number:
            return self.number < other.number
        return self.this_update < other.this_update


class Judge(Protocol):
    """What logins by certificate need of `ClientCertificates`."""

    def refusal_of(self, certificate: ClientCertificate) -> str | None:
        """Return why a certificate lets nobody in; None where it does, as far as its account is not concerned."""

    def report(self, certificate: ClientCertificate, cause: str, address: str) -> None:
        """Log why a certificate lets nobody in, once for each connection and cause."""


class ClientCertificates:
    """Judges client certificates by what is known of their CAs at this moment.

    Args:
        now: seconds since 1970-01-01 UTC.
        grace_s: how long a CRL is relied on after its nextUpdate.
        log: a thinned log of what strangers can cause.

    Attributes:
        authorities: the CAs of --client-ca, with their names.
        given: the CRLs of --client-crl, by issuer.
        is_crl_unread: a file of --client-crl could not be read when this process started.
        own: the CAs that the agents issue with, current and earlier ones.
        own_roots: the CAs above these.
        own_crls: CRLs from the agents, by issuer.
        others: the CAs of --client-ca that were none of these when an agent last said which are.
        is_settled: an agent said so to this process, so `own` is complete.
    """

    def __init__(self, now: Callable[[], float], grace_s: float, log: Callable[..., None]) -> None:
        self._now = now
        self._grace_s = grace_s
        self._log = log
        self.authorities: Mapping[AuthorityId, str] = {}
        self.given: Mapping[AuthorityId, Crl] = {}
        self.is_crl_unread = False
        self.own: frozenset[AuthorityId] = frozenset()
        self.own_roots: frozenset[AuthorityId] = frozenset()
        self.own_crls: dict[AuthorityId, Crl] = {}
        self.others: frozenset[AuthorityId] = frozenset()
        self.is_settled = False

    def refusal_of(self, certificate: ClientCertificate) -> str | None:
        """As `Judge.refusal_of`."""
        now = self._now()
        if now > certificate.not_after:
            return ENDED
        if now < certificate.not_before:
            return NOT_YET_VALID
        if certificate.anchor not in self.authorities:
            return CA_GONE
        # First of all what is revoked: a list that has ended still says so.
        for issuer, serial in certificate.path:
            if any(serial in crl.serials for crl in self._crls_of(issuer)):
                return REVOKED
        return self._lack_of(certificate, now)

    def report(self, certificate: ClientCertificate, cause: str, address: str) -> None:
        """As `Judge.report`."""
        if certificate.reported != cause:
            certificate.reported = cause
            self._log(
                "client certificate lets nobody in",
                subject=certificate.subject,
                serial=f"{certificate.serial:x}",
                reason=cause,
                address=address,
            )

    def take_given(self, loaded: Mapping[AuthorityId, Crl]) -> list[AuthorityId]:
        """Rely on the CRLs of --client-crl from now on; return the issuers of which a later one is here, which stays.

        A file that goes back to an earlier CRL must not take back what the later one revoked. A later one of the
        future, which a wrong clock made, is replaced.
        """
        latest = self._now() + SKEW_S
        kept = {
            issuer: held
            for issuer, held in self.given.items()
            if issuer in loaded and held.this_update <= latest and loaded[issuer].is_earlier_than(held)
        }
        self.given = {**loaded, **kept}
        self.is_crl_unread = False
        return list(kept)

    def settle(self) -> None:
        """Note that `own` and `own_roots` are complete: what else lets in are other CAs."""
        self.is_settled = True
        self.others = frozenset(self.authorities) - self.own - self.own_roots

    def uncovered(self) -> list[tuple[str, bool]]:
        """Return the names of the CAs without CRL, and whether each is known to be none of the agents' own."""
        covered = self.own | self.own_roots | self.given.keys()
        return [(name, each in self.others) for each, name in self.authorities.items() if each not in covered]

    @property
    def lets_in_own(self) -> bool:
        """Whether certificates that the agents issued let in."""
        return not self.authorities.keys().isdisjoint(self.own | self.own_roots)

    def take_own_crl(self, issuer: AuthorityId, crl: Crl) -> bool:
        """Rely on an agent's CRL from now on; return False where a later one is here that is valid now.

        Agents that share a ledger notice a revocation one after the other: the list of an agent that lags behind has a
        lower number and was made no later, and must not take back what another agent said. A lower number in a CRL
        that was made later comes from an agent whose numbers start lower, such as one restored from a backup after its
        clock was ahead: it is relied on, and what was revoked before stays so until that agent's next CRL.
        """
        held, now = self.own_crls.get(issuer), self._now()
        is_valid = held is not None and held.this_update <= now + SKEW_S and now < held.next_update
        if held is not None and is_valid and (held.number or 0) > (crl.number or 0):
            if held.this_update >= crl.this_update:
                return False
            crl = replace(crl, serials=crl.serials | held.serials)
        self.own_crls[issuer] = crl
        return True

    def _crls_of(self, issuer: AuthorityId) -> Iterable[Crl]:
        own, given = self.own_crls.get(issuer), self.given.get(issuer)
        return [crl for crl in (own, given) if crl is not None]

    def _lack_of(self, certificate: ClientCertificate, now: float) -> str | None:
        """Return why the status of a certificate cannot be known although it should be."""
        issuers = [issuer for issuer, _ in certificate.path]
        if issuers and issuers[0] in self.own:
            # The agents publish a CRL for what they issue, and none for an offline root above them.
            return self._lack_at(issuers[0], now, NO_CRL)
        if certificate.anchor in self.given or any(issuer in self.given for issuer in issuers):
            lacks = (self._lack_at(issuer, now, PATH_NOT_COVERED) for issuer in issuers)
            return next((lack for lack in lacks if lack is not None), None)
        if self.is_crl_unread:
            return CRL_UNREAD
        # An agent may have had a new CA since it last said which are its own.
        is_known = certificate.anchor in self.others or (self.is_settled and certificate.anchor in self.own_roots)
        return None if is_known else NOT_KNOWN_YET

    def _lack_at(self, issuer: AuthorityId, now: float, without: str) -> str | None:
        """Return why the CRLs of an issuer are not to be relied on."""
        cause: str | None = without
        for crl in self._crls_of(issuer):
            if crl.next_update + self._grace_s < now:
                cause = CRL_ENDED
            elif crl.this_update > now + SKEW_S:
                cause = CRL_NOT_YET_VALID
            else:
                return None
        return cause
