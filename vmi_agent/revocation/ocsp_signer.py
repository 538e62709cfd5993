"""The OCSP responder's delegates: for each generation a key of its own and a certificate (RFC 6960, 4.2.2.2).

The certificate is issued on the first request, and anew before it ends, through the ledger as every other is. Key and
certificate stand in `STATE/ca/N/ocsp.pem`, where agents that share the directory find each other's; those of an
ephemeral CA are in memory only, as its own key is.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from protocol.records import AGENT_ITSELF, NO_IDEMPOTENCY_KEY
from runtime.clock import BACK_DATE, milliseconds
from runtime.files import FileRefused, read_secret, replace_file
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import Authority
from vmi_agent.ca.certificates import ocsp_responder_name
from vmi_agent.certificate import SERIAL_OCTETS, certificate_tbs, extension, new_serial
from vmi_agent.errors import LedgerUnavailable, SelfCheckFailed
from vmi_agent.issuance.issue import sign_recorded
from vmi_agent.issuance.scheduler import alone
from vmi_agent.keys import CustodyError, file_key
from vmi_agent.keys.algorithms import key_type_of
from vmi_agent.ledger.issuances import Intent
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.revocation import is_revoked

VALIDITY = timedelta(days=90)
RENEW_BEFORE_END = timedelta(days=30)
# Each try leaves rows in the ledger, and anybody at all may ask.
RETRY_AFTER = timedelta(seconds=30)
# For another agent that makes one at the same time.
LOCK_WAIT_S = 2.0
_PROFILE = "ocsp-responder"
_ITSELF = AGENT_ITSELF

_EXTENSIONS = (
    extension(x509.BasicConstraints(ca=False, path_length=None), critical=True),
    extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True),
    extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])),
    # Nobody is to ask the responder about itself (RFC 6960, 4.2.2.2.1).
    extension(x509.OCSPNoCheck()),
)


@dataclass(frozen=True, slots=True)
class Delegate:
    """A key that signs OCSP answers, and its certificate."""

    key: CertificateIssuerPrivateKeyTypes
    certificate: x509.Certificate


class Responders:
    """The delegates of all generations.

    Args:
        state_dir: where the CA is.
        passphrase: encrypts their keys, as it does the CA's; None leaves them in the clear.
        ledger: records their certificates.
        now: returns the aware UTC time.
    """

    def __init__(self, state_dir: Path, passphrase: bytes | None, ledger: Ledger, now: Callable[[], datetime]) -> None:
        self._state_dir = state_dir
        self._passphrase = passphrase
        self._ledger = ledger
        self._now = now
        self._delegates: dict[int, Delegate] = {}
        self._failed_at: dict[int, datetime] = {}
        self._lock = threading.Lock()

    def get(self, authority: Authority) -> Delegate | None:
        """Return a generation's delegate, which is made where it is missing, about to end, or not valid yet.

        A revoked one is not used any more, once `forget` was told.

        Returns:
            None where it could not be made a moment ago, which was told then.

        Raises:
            CustodyError, LedgerUnavailable, SelfCheckFailed: it cannot be made now.
        """
        delegate = self._delegates.get(authority.generation)
        if delegate is not None and not self._is_due(delegate, authority):
            return delegate
        with self._lock:
            delegate = self._delegates.get(authority.generation) or self._load(authority)
            if delegate is None or self._is_due(delegate, authority):
                delegate = self._renew(authority, delegate)
            if delegate is not None:
                self._delegates[authority.generation] = delegate
            return delegate

    def forget(self, serials: frozenset[bytes]) -> bool:
        """These certificates were revoked or released: return whether a delegate was among them.

        It is not used any more, nor should what it has signed be.
        """
        with self._lock:
            gone = [each for each, it in self._delegates.items() if _serial_of(it.certificate) in serials]
            for generation in gone:
                del self._delegates[generation]
        return bool(gone)

    def _renew(self, authority: Authority, old: Delegate | None) -> Delegate | None:
        now = self._now()
        if old is not None and not _is_valid(old, now):
            old = None
        failed_at = self._failed_at.get(authority.generation)
        if failed_at is not None and failed_at <= now < failed_at + RETRY_AFTER:
            return old
        try:
            delegate = self._find_or_make(authority)
        except (CustodyError, LedgerUnavailable, SelfCheckFailed):
            self._failed_at[authority.generation] = now
            if old is None:
                raise
            return old  # whose days are counted; what keeps the CA's key from signing is told with its CRLs
        self._failed_at.pop(authority.generation, None)
        return delegate

    def _find_or_make(self, authority: Authority) -> Delegate:
        path = self._path(authority)
        if ca_store.is_ephemeral(path.parent):
            return self._make(authority)
        try:
            with ca_store.locked_within(self._state_dir, LOCK_WAIT_S):
                found = self._load(authority)  # which another agent may have made meanwhile
                if found is not None and not self._is_due(found, authority):
                    return found
                made = self._make(authority)
                pem = file_key.to_pem(made.key, self._passphrase) + made.certificate.public_bytes(
                    serialization.Encoding.PEM
                )
                replace_file(path, pem)
                return made
        except OSError as error:
            raise CustodyError(f"OCSP responder {path}: {error.strerror}") from error

    def _is_due(self, delegate: Delegate, authority: Authority) -> bool:
        """Return whether another one is to be made: its certificate ends soon, or is not valid yet."""
        now, end = self._now(), delegate.certificate.not_valid_after_utc
        return end < min(now + RENEW_BEFORE_END, authority.issuer.not_after) or not _is_valid(delegate, now)

    def _path(self, authority: Authority) -> Path:
        return ca_store.directory_of(self._state_dir, authority.generation) / ca_store.OCSP_FILE

    def _load(self, authority: Authority) -> Delegate | None:
        path = self._path(authority)
        try:
            pem = read_secret(path)
        except FileNotFoundError:
            return None
        except (OSError, FileRefused) as error:
            raise CustodyError(f"OCSP responder: {error}") from error
        try:
            key = file_key.parse(pem, self._passphrase, f"key of the OCSP responder {path}").private_key
        except CustodyError:
            # Written by an agent that still had another passphrase than the CA's keys have now: it is replaced.
            return None
        certificate = ca_store.read_certificates(path)[0]
        # Who asks is told not to ask about the delegate, so that a revoked one must not answer.
        if self._ledger.read(lambda connection: is_revoked(connection, _serial_of(certificate))):
            return None
        return Delegate(key, certificate)

    def _make(self, authority: Authority) -> Delegate:
        key = file_key.make_key(_key_type_for(authority))
        return Delegate(key, self._issue(key, authority))

    def _issue(self, key: CertificateIssuerPrivateKeyTypes, authority: Authority) -> x509.Certificate:
        key_info = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        name = ocsp_responder_name(authority.generation)
        now = self._now()
        not_before = now.replace(microsecond=0) - BACK_DATE
        not_after = min(not_before + VALIDITY, authority.issuer.not_after)
        serial = new_serial()
        issuer = authority.issuer
        tbs = certificate_tbs(issuer, serial, not_before, not_after, name.public_bytes(), key_info, _EXTENSIONS)
        key_sha256 = sha256(key_info).digest()
        intent = Intent(
            serial=serial,
            tbs=tbs,
            root_generation=authority.generation,
            profile=_PROFILE,
            user=_ITSELF,
            method=_ITSELF,
            address="",
            idempotency_key=NO_IDEMPOTENCY_KEY,
            csr_sha256=key_sha256,  # there is no CSR: the key stands for it
            key_sha256=key_sha256,
            subject=name.rfc4514_string(),
            not_before=int(not_before.timestamp()),
            not_after=int(not_after.timestamp()),
            recorded_ms=milliseconds(now),
            public_key_info=key_info,
        )
        self._ledger.record_intent(intent)
        der, _ = alone(sign_recorded(intent, authority, self._now, name.public_bytes(), key_info), self._ledger)
        return x509.load_der_x509_certificate(der)


def _is_valid(delegate: Delegate, now: datetime) -> bool:
    certificate = delegate.certificate
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def _serial_of(certificate: x509.Certificate) -> bytes:
    return certificate.serial_number.to_bytes(SERIAL_OCTETS)


def _key_type_for(authority: Authority) -> str:
    """Return a kind of key that is no weaker than the CA's, and quick: only a post-quantum CA needs its own kind."""
    ca_key = key_type_of(authority.certificate.public_key())
    if ca_key.startswith("mldsa"):
        return ca_key
    return "p384" if ca_key == "p384" else "p256"
