"""Leaves of an agent made of parts, their revocation, and what openssl needs to judge it."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection

from runtime.clock import milliseconds
from support.agents import Agent, Time, always, request
from support.csrs import make_csr
from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.keys import Custody, CustodyError, Pace
from vmi_agent.ledger import revocation
from vmi_agent.ledger.revocation import Reason

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

    pace = Pace.ELSEWHERE

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
    """Have a leaf issued; another name is another certificate, on another key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issued = agent.issuing.issue(request(make_csr(key=f"p256/{name}", subject=subject)), always)
    return x509.load_der_x509_certificate(issued.chain[0])


def serial_of(certificate: x509.Certificate) -> bytes:
    """Return the serial number as the ledger has it."""
    return certificate.serial_number.to_bytes(SERIAL_OCTETS)


def revocation_of(
    certificate: x509.Certificate, time: Time, reason: Reason = Reason.superseded
) -> Callable[[Connection], None]:
    """Return the change that revokes a certificate at the clock's time."""
    octets, now_ms = serial_of(certificate), milliseconds(time())
    return partial(revocation.revoke, serial=octets, reason=reason, now_ms=now_ms, by=OFFICER)


def release_of(certificate: x509.Certificate, time: Time) -> Callable[[Connection], None]:
    """Return the change that takes a certificate off hold."""
    return partial(revocation.release, serial=serial_of(certificate), now_ms=milliseconds(time()), by=OFFICER)


def revoke(agent: Agent, certificate: x509.Certificate, time: Time, reason: Reason = Reason.superseded) -> None:
    """Revoke a certificate in an agent's ledger."""
    agent.ledger.change(revocation_of(certificate, time, reason))


def release(agent: Agent, certificate: x509.Certificate, time: Time) -> None:
    """Take a certificate off hold there."""
    agent.ledger.change(release_of(certificate, time))


def crl_der(agent: Agent, generation: int = 1) -> bytes:
    """Return a generation's CRL as it is published now."""
    found = agent.publishing.crl(generation)
    assert found is not None
    return found.der


def read_crl(agent: Agent, generation: int = 1) -> x509.CertificateRevocationList:
    """Return the same, read by the cryptography package."""
    return x509.load_der_x509_crl(crl_der(agent, generation))


# What requests name a certificate's issuer with.
HASHES: dict[str, hashes.HashAlgorithm] = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256()}


def question(
    certificate: x509.Certificate, issuer: x509.Certificate, nonce: bytes | None = None, hash_name: str = "sha1"
) -> bytes:
    """Return an OCSP request in DER."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, HASHES[hash_name])
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def by_serial(serial: int, issuer: x509.Certificate) -> bytes:
    """Return an OCSP request for a serial number."""
    named = ocsp.load_der_ocsp_request(question(issuer, issuer))
    builder = ocsp.OCSPRequestBuilder()
    builder = builder.add_certificate_by_hash(named.issuer_name_hash, named.issuer_key_hash, serial, hashes.SHA1())
    return builder.build().public_bytes(Encoding.DER)


def ask(agent: Agent, request: bytes) -> ocsp.OCSPResponse:
    """Return the responder's answer, read."""
    return ocsp.load_der_ocsp_response(agent.responder.answer(request).der)


def write_pem(path: Path, certificate: x509.Certificate) -> str:
    """Write a certificate for openssl; return the path."""
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return str(path)
