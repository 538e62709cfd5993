"""The OCSP responder (RFC 6960, with the nonce of RFC 9654): certificates of one issuer, answered for by its delegate.

The CA's own key signs the delegate's certificate and nothing else, so what it answers costs the CA's token nothing.
Answers about one certificate and without a nonce are kept and given again until half of their time is over, or the
certificate's status changes.
Of a certificate that is not known nothing is kept: whoever counts serial numbers would push out what others ask for.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from sqlalchemy import Connection, select

from runtime.asn1 import der
from runtime.clock import BACK_DATE, milliseconds
from vmi_agent.ca.authority import Authority, Generations
from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.errors import LedgerUnavailable, SelfCheckFailed
from vmi_agent.keys import CustodyError
from vmi_agent.keys.algorithms import parameters_of, signature_algorithm
from vmi_agent.ledger import carried_revocations
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.schema import ISSUED, issuance
from vmi_agent.revocation import ocsp_der
from vmi_agent.revocation.ocsp_signer import Delegate, Responders

VALIDITY = timedelta(hours=1)
KEPT_ANSWERS = 4096
_NONCE_OCTETS = range(1, 129)  # RFC 9654, 2.1

_HASHES: tuple[hashes.HashAlgorithm, ...] = (hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512())  # noqa: S303  # names a certificate here, and is what clients send


@dataclass(frozen=True, slots=True)
class _Status:
    """What is known of a certificate; `revoked_at` and `reason` where it is revoked or on hold."""

    is_known: bool
    revoked_at: datetime | None = None
    reason: int = 0


@dataclass(frozen=True, slots=True)
class OcspAnswer:
    """An OCSPResponse in DER, and until when it may be given again (ms since 1970-01-01 UTC; 0: not at all)."""

    der: bytes
    expires_ms: int


class OcspResponder:
    """Answers OCSP requests.

    Args:
        generations: whose leaves are asked about.
        responders: the delegates.
        ledger: knows every certificate.
        now: returns the aware UTC time.
        report: is told of each failure that is the agent's own.
    """

    def __init__(
        self,
        generations: Generations,
        responders: Responders,
        ledger: Ledger,
        now: Callable[[], datetime],
        report: Callable[[BaseException], None],
    ) -> None:
        self._generations = generations
        self._responders = responders
        self._ledger = ledger
        self._now = now
        self._report = report
        self._issuers: tuple[int, dict[tuple[str, bytes, bytes], Authority]] = (0, {})
        self._kept: OrderedDict[tuple[str, int, int], OcspAnswer] = OrderedDict()
        self._times_forgotten = 0
        self._lock = threading.Lock()

    def answer(self, request_der: bytes) -> OcspAnswer:
        """Return the answer to a request, whatever it is. Blocks; any thread may call this."""
        try:
            asked = ocsp_der.take_apart(request_der)
            requests = [ocsp.load_der_ocsp_request(each.request) for each in asked]
            nonce = _nonce_of(requests[0])  # each has the extensions of the whole
            names = [each.hash_algorithm.name for each in requests]
        except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
            return _unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
        serials = [each.serial_number for each in requests]
        if min(serials) < 0:  # nobody has such a one (RFC 5280, 4.1.2.2), and no answer could name it
            return _unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
        authorities = [
            self._issuer(name, each.issuer_name_hash, each.issuer_key_hash)
            for name, each in zip(names, requests, strict=True)
        ]
        authority = authorities[0]
        if authority is None or not authority.is_valid_at(self._now()):
            return _unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)
        if any(each is not authority for each in authorities):  # whose delegates are others (RFC 6960, 4.2.2.2)
            return _unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)
        key = (names[0], authority.generation, serials[0])
        may_keep = nonce is None and len(asked) == 1
        if may_keep:
            kept = self._kept_answer(key)
            if kept is not None:
                return kept
        times_forgotten = self._times_forgotten  # before the ledger is looked at
        try:
            delegate = self._responders.get(authority)
            if delegate is None:
                return _unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
            statuses = self._ledger.read(lambda connection: [_status_of(connection, authority, n) for n in serials])
            named = [(each.cert_id, status) for each, status in zip(asked, statuses, strict=True)]
            answer = self._sign(named, delegate, nonce, may_keep=may_keep and statuses[0].is_known)
        except (LedgerUnavailable, CustodyError, SelfCheckFailed) as error:
            self._report(error)
            return _unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
        if answer.expires_ms:
            self._keep(key, answer, times_forgotten)
        return answer

    def forget(self, serials: frozenset[bytes]) -> None:
        """These certificates were revoked or released: their answers are signed anew."""
        all_of_them = self._responders.forget(serials)
        numbers = {int.from_bytes(serial) for serial in serials}
        with self._lock:
            self._times_forgotten += 1
            for key in [key for key in self._kept if all_of_them or key[2] in numbers]:
                del self._kept[key]

    def _issuer(self, hash_name: str, name_hash: bytes, key_hash: bytes) -> Authority | None:
        count, issuers = self._issuers
        authorities = self._generations.all()
        if count != len(authorities):
            issuers = {key: authority for authority in authorities for key in _names_of(authority.certificate)}
            self._issuers = len(authorities), issuers
        return issuers.get((hash_name, name_hash, key_hash))

    def _kept_answer(self, key: tuple[str, int, int]) -> OcspAnswer | None:
        now = self._now()
        earliest, latest = milliseconds(now + VALIDITY / 2), milliseconds(now + VALIDITY)
        with self._lock:
            kept = self._kept.get(key)
            # One that expires later than any made now is from before the clock was set back.
            if kept is None or not earliest <= kept.expires_ms <= latest:
                return None
            self._kept.move_to_end(key)
            return kept

    def _keep(self, key: tuple[str, int, int], answer: OcspAnswer, times_forgotten: int) -> None:
        with self._lock:
            if self._times_forgotten != times_forgotten:
                return  # the status may have changed while it was being signed
            self._kept[key] = answer
            while len(self._kept) > KEPT_ANSWERS:
                self._kept.popitem(last=False)

    def _sign(
        self,
        named: Sequence[tuple[bytes, _Status]],
        delegate: Delegate,
        nonce: x509.OCSPNonce | None,
        *,
        may_keep: bool,
    ) -> OcspAnswer:
        """Return the answer that says this of each CertID."""
        now = self._now().replace(microsecond=0)
        responses = [_single_response(cert_id, status, now) for cert_id, status in named]
        data = ocsp_der.response_data(delegate.certificate, now, responses, nonce)
        public_key = delegate.certificate.public_key()
        # Of the classes of keys each takes its own parameters, which the type checker cannot know.
        sign: Callable[..., bytes] = delegate.key.sign
        signature = sign(data, *parameters_of(public_key))
        der = ocsp_der.response(data, signature_algorithm(public_key), signature, delegate.certificate)
        return OcspAnswer(der, milliseconds(now + VALIDITY) if may_keep else 0)


def _single_response(cert_id: bytes, status: _Status, now: datetime) -> bytes:
    """Return a SingleResponse, dated back as leaves are: not to before the revocation, nor is that in the future."""
    this_update, cert_status = now - BACK_DATE, ocsp_der.GOOD if status.is_known else ocsp_der.UNKNOWN
    if status.revoked_at is not None:
        revoked_at = min(status.revoked_at, now)
        this_update = max(this_update, revoked_at)
        cert_status = ocsp_der.revoked(revoked_at, status.reason)
    return ocsp_der.single_response(cert_id, cert_status, this_update, now + VALIDITY)


def _status_of(connection: Connection, authority: Authority, serial: int) -> _Status:
    """Return what the ledger holds of a certificate of this issuer."""
    if not 0 < serial < 1 << 8 * SERIAL_OCTETS:
        return _Status(is_known=False)
    row = connection.execute(
        select(issuance.c.reason, issuance.c.revoked_ms).where(
            issuance.c.serial == serial.to_bytes(SERIAL_OCTETS),
            issuance.c.status == ISSUED,
            issuance.c.root_generation == authority.generation,
        )
    ).first()
    if row is None:
        row = carried_revocations.find(connection, serial.to_bytes(SERIAL_OCTETS), authority.generation)
    if row is None:
        return _Status(is_known=False)
    if row.reason is None:
        return _Status(is_known=True)
    return _Status(is_known=True, revoked_at=datetime.fromtimestamp(row.revoked_ms // 1000, UTC), reason=row.reason)


def _nonce_of(request: ocsp.OCSPRequest) -> x509.OCSPNonce | None:
    found = None
    for extension in request.extensions:
        if isinstance(extension.value, x509.OCSPNonce):
            found = extension.value
            if len(found.nonce) not in _NONCE_OCTETS:
                raise ValueError("a nonce that is too long or empty")
        elif extension.critical:
            raise ValueError("a critical extension that is not known")
    return found


def _names_of(issuer: x509.Certificate) -> list[tuple[str, bytes, bytes]]:
    """Return what requests may name an issuer by: hashes over its name and its key (RFC 6960, 4.1.1)."""
    name = issuer.subject.public_bytes()
    key_info = issuer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    # The bits of the key, without their tag, length and count of unused bits.
    _, start, end = der.read(der.children(key_info)[1])
    key = der.children(key_info)[1][start + 1 : end]
    return [(each.name, _hash(each, name), _hash(each, key)) for each in _HASHES]


def _hash(algorithm: hashes.HashAlgorithm, octets: bytes) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(octets)
    return digest.finalize()


def _unsuccessful(status: ocsp.OCSPResponseStatus) -> OcspAnswer:
    return OcspAnswer(ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER), 0)
