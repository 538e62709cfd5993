"""The one path that issues a certificate. Read `Issuing.issue` from top to bottom: that is the order of things."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from protocol.errors import ErrorCode
from protocol.records import SignCsr
from vmi_agent import key_policy
from vmi_agent.authority import Authority
from vmi_agent.certificate import assemble, certificate_tbs, new_serial
from vmi_agent.csr import check_possession, parse
from vmi_agent.errors import Refused, SelfCheckFailed
from vmi_agent.ledger import Ledger
from vmi_agent.ledger_rows import AlreadyIssued, Conflict, Intent, Signature
from vmi_agent.profile import Approved, Profile, approve, choose


@dataclass(frozen=True, slots=True)
class Issued:
    """What a request led to.

    Attributes:
        serial: of the leaf.
        chain: in DER, leaf first, root last.
        is_new: it was signed for this request.
    """

    serial: bytes
    chain: tuple[bytes, ...]
    is_new: bool


class Issuing:
    """Issues under one CA into one ledger. `issue` blocks on the disk and on the key: call it from a worker thread.

    Args:
        authority: the CA.
        ledger: where intents and signatures are recorded.
        profiles: what leaves are; a requester gets the first that is for it.
        now: returns the aware UTC time.
    """

    def __init__(
        self, authority: Authority, ledger: Ledger, profiles: Sequence[Profile], now: Callable[[], datetime]
    ) -> None:
        self._authority = authority
        self._ledger = ledger
        self._profiles = profiles
        self._now = now

    def issue(self, request: SignCsr, still_wanted: Callable[[], None]) -> Issued:
        """Return the certificate for a request: a new one, or the one that the same request got before.

        Args:
            request: as it came over the channel.
            still_wanted: raises NotWanted where the asker gave up; asked once, right before the intent is recorded.

        Raises:
            Refused: the request was judged and refused.
            NotWanted: from `still_wanted`; nothing was recorded.
            LedgerUnavailable: nothing may be answered.
            SelfCheckFailed: as its docstring says.
        """
        csr = parse(request.csr)
        key_policy.check(csr)
        check_possession(csr)
        approved = approve(csr, choose(self._profiles, request.user), self._authority.issuer.name)

        intent = self._intent(request, approved)
        still_wanted()
        match self._ledger.record_intent(intent):
            case AlreadyIssued(serial, tbs, signature):
                return Issued(serial, (assemble(tbs, signature), *self._authority.chain), is_new=False)
            case Conflict():
                text = "This Idempotency-Key was used for another CSR. Use a new key for a new CSR."
                raise Refused(ErrorCode.REQUEST_CONFLICT, text)

        signature = self._authority.custody.sign(intent.tbs)
        leaf = assemble(intent.tbs, signature)
        self._check(leaf, approved)
        self._ledger.record_signature(Signature(intent.serial, signature, _milliseconds(self._now())))
        return Issued(intent.serial, (leaf, *self._authority.chain), is_new=True)

    def _intent(self, request: SignCsr, approved: Approved) -> Intent:
        issuer = self._authority.issuer
        now = self._now()
        not_before, not_after = approved.profile.period(now, issuer.not_after)
        serial = new_serial()
        return Intent(
            serial=serial,
            tbs=certificate_tbs(
                issuer,
                serial,
                not_before,
                not_after,
                approved.csr.subject,
                approved.csr.public_key_info,
                (*approved.extensions, *issuer.pointers),
            ),
            root_generation=self._authority.generation,
            profile=approved.profile.name,
            user=request.user,
            method=request.method,
            address=request.address,
            idempotency_key=request.idempotency_key,
            csr_sha256=approved.csr.sha256,
            key_sha256=sha256(approved.csr.public_key_info).digest(),
            subject=approved.subject_text,
            not_before=_seconds(not_before),
            not_after=_seconds(not_after),
            recorded_ms=_milliseconds(now),
        )

    def _check(self, leaf: bytes, approved: Approved) -> None:
        """Read the leaf back with eyes that did not write it: signature, issuer, public key, validity."""
        root = self._authority.root
        try:
            certificate = x509.load_der_x509_certificate(leaf)
            certificate.verify_directly_issued_by(root)
            same_key = certificate.public_key() == approved.csr.request.public_key()
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise SelfCheckFailed(f"the leaf does not verify under the CA: {error!r}") from error
        if not same_key or certificate.subject != approved.csr.request.subject:
            raise SelfCheckFailed("the leaf's subject or public key is not the CSR's")
        if certificate.not_valid_after_utc > root.not_valid_after_utc:
            raise SelfCheckFailed("the leaf outlives its issuer")


def utc_now() -> datetime:
    """Return the time of day, aware, in UTC."""
    return datetime.now(UTC)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
