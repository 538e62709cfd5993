"""Leaves of an agent made of parts, their revocation, and what openssl needs to judge it."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from agents import Agent, Time, always, request
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from csrs import make_csr

from vmi_agent import revocation
from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.custody import Custody, CustodyError
from vmi_agent.issuing import milliseconds
from vmi_agent.revocation import Reason

# What the tests' revocations say of who did it.
OFFICER = "officer (uid 1000)"

# Under the names that readers give them.
FLAGS = {
    Reason.keyCompromise: x509.ReasonFlags.key_compromise,
    Reason.affiliationChanged: x509.ReasonFlags.affiliation_changed,
    Reason.superseded: x509.ReasonFlags.superseded,
    Reason.cessationOfOperation: x509.ReasonFlags.cessation_of_operation,
    Reason.certificateHold: x509.ReasonFlags.certificate_hold,
    Reason.privilegeWithdrawn: x509.ReasonFlags.privilege_withdrawn,
}


class KeyAway:
    """Custody of a key that is away until `is_away` is False, as a token that was pulled out.

    Args:
        custody: has the key.
    """

    def __init__(self, custody: Custody) -> None:
        self._custody = custody
        self.is_away = True

    @property
    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """The key's public half."""
        return self._custody.public_key

    def sign(self, tbs: bytes) -> bytes:
        """Sign where the key is there."""
        if self.is_away:
            raise CustodyError("the token is away")
        return self._custody.sign(tbs)

    def close(self) -> None:
        """Let go of the key."""
        self._custody.close()


def time_of_day() -> Time:
    """Return a clock that stands at the time of day, for those who judge with a clock of their own."""
    time = Time()
    time.now = datetime.now(UTC)
    return time


def issue(agent: Agent, name: str = "hmc1") -> x509.Certificate:
    """Have a leaf issued; another name is another certificate."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issued = agent.issuing.issue(request(make_csr(subject=subject)), always)
    return x509.load_der_x509_certificate(issued.chain[0])


def serial_of(certificate: x509.Certificate) -> bytes:
    """Return the serial number as the ledger has it."""
    return certificate.serial_number.to_bytes(SERIAL_OCTETS)


def revoke(agent: Agent, certificate: x509.Certificate, time: Time, reason: Reason = Reason.keyCompromise) -> None:
    """Revoke a certificate at the clock's time."""
    octets, now_ms = serial_of(certificate), milliseconds(time())
    agent.ledger.change(partial(revocation.revoke, serial=octets, reason=reason, now_ms=now_ms, by=OFFICER))


def release(agent: Agent, certificate: x509.Certificate, time: Time) -> None:
    """Take a certificate off hold."""
    octets, now_ms = serial_of(certificate), milliseconds(time())
    agent.ledger.change(partial(revocation.release, serial=octets, now_ms=now_ms, by=OFFICER))


def crl_der(agent: Agent, generation: int = 1) -> bytes:
    """Return a generation's CRL as it is published now."""
    found = agent.publishing.crl(generation)
    assert found is not None
    return found.der


def read_crl(agent: Agent, generation: int = 1) -> x509.CertificateRevocationList:
    """Return the same, read by the cryptography package."""
    return x509.load_der_x509_crl(crl_der(agent, generation))


def write_pem(path: Path, certificate: x509.Certificate) -> str:
    """Write a certificate for openssl; return the path."""
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return str(path)
