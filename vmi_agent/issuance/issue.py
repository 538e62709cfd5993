"""The one path that issues a certificate. Read `Issuing.issue` from top to bottom: that is the order of things.

Where it awaits, the disk or the key is at work, and its thread with other requests (`walks`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256

from protocol.errors import ErrorCode
from protocol.records import SignCsr
from runtime.clock import milliseconds
from vmi_agent.ca.authority import Authority
from vmi_agent.certificate import assemble, certificate_tbs, new_serial
from vmi_agent.errors import ClosedOff, Refused
from vmi_agent.issuance.scheduler import made, recorded
from vmi_agent.ledger.issuances import AlreadyIssued, Conflict, Intent, KeyBlocked, KeyQuestion, Resumed, Signature
from vmi_agent.policy import key_policy
from vmi_agent.policy.csr import check_possession, parse
from vmi_agent.policy.profile import Approved, Profile, approve, choose


@dataclass(frozen=True, slots=True)
class Issued:
    """What a request led to.

    Attributes:
        serial: of the leaf.
        root_generation: that the chain ends in.
        chain: in DER, leaf first, root last.
        is_new: it was signed for this request, and nobody had signed it before.
    """

    serial: bytes
    root_generation: int
    chain: tuple[bytes, ...]
    is_new: bool


class Issuing:
    """Issues under the CA's newest generation.

    Args:
        current: returns the CA as it is now.
        profiles: what leaves are; a requester gets the first that is for it.
        now: returns the aware UTC time.
    """

    def __init__(
        self,
        current: Callable[[], Authority],
        profiles: Sequence[Profile],
        now: Callable[[], datetime],
    ) -> None:
        self._current = current
        self._profiles = profiles
        self._now = now

    async def issue(self, request: SignCsr, still_wanted: Callable[[], None]) -> Issued:
        """Return the certificate for a request: a new one, or the one that the same request got before.

        Args:
            request: as it came over the channel.
            still_wanted: raises NotWanted where the asker gave up; asked once, right before the intent is recorded.

        Raises:
            Refused: the request was judged and refused.
            NotWanted: from `still_wanted`; nothing was recorded.
            ClosedOff: signing took so long that the intent was closed off.
            LedgerUnavailable: nothing may be answered.
            CustodyError: the key cannot be reached now, or the CA is not valid (CaNotValid); nothing was signed.
            SelfCheckFailed: as its docstring says.
        """
        authority = self._current()  # one and the same from here on, whatever happens to the CA meanwhile
        csr = parse(request.csr)
        key = key_policy.check(csr)
        try:
            check_possession(csr)
            approved = approve(csr, key, choose(self._profiles, request.user), authority.reserved)
        except Refused:
            # A key that is blocked is refused as such, whatever else there is to say. Recording looks that up anyway.
            if await recorded(KeyQuestion(csr.public_key_info)):
                raise _blocked() from None
            raise

        now = self._now()
        authority.check_valid(now)
        intent = self._intent(request, approved, authority, new_serial(), now)
        still_wanted()
        outcome = await recorded(intent)
        if isinstance(outcome, Resumed):
            # Only the very TBS that this agent would have recorded then: nobody gets to choose what is signed by
            # writing into the ledger, and agents with different profiles do not sign each other's.
            recorded_at = datetime.fromtimestamp(outcome.recorded_ms / 1000, UTC)
            then = self._intent(request, approved, authority, outcome.serial, recorded_at)
            if then.tbs == outcome.tbs:
                intent = then
            else:
                intent = replace(intent, instead_of=outcome.serial)
                outcome = await recorded(intent)
        match outcome:
            case AlreadyIssued(serial, tbs, signature):
                leaf = assemble(tbs, signature)
                return Issued(serial, authority.generation, (leaf, *authority.chain), is_new=False)
            case Conflict():
                text = "This Idempotency-Key was used for another CSR. Use a new key for a new CSR."
                raise Refused(ErrorCode.REQUEST_CONFLICT, text)
            case KeyBlocked():
                raise _blocked()
            case Resumed(serial) if serial != intent.serial:
                raise ClosedOff("another agent, which stamps other certificates, is asked the same at the same time")

        leaf, is_new = await sign_recorded(intent, authority, self._now, csr.subject, csr.public_key_info)
        return Issued(intent.serial, authority.generation, (leaf, *authority.chain), is_new)

    def _intent(
        self, request: SignCsr, approved: Approved, authority: Authority, serial: bytes, now: datetime
    ) -> Intent:
        issuer = authority.issuer
        not_before, not_after = approved.profile.period(now, issuer.not_after)
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
            root_generation=authority.generation,
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
            recorded_ms=milliseconds(now),
            public_key_info=approved.csr.public_key_info,
        )


async def sign_recorded(
    intent: Intent,
    authority: Authority,
    now: Callable[[], datetime],
    subject: bytes,
    public_key_info: bytes,
) -> tuple[bytes, bool]:
    """Sign an intent that is on disk, check what came out, record the signature.

    Args:
        authority: whose key signs.
        now: returns the aware UTC time.
        subject, public_key_info: whom the certificate is to be for, in DER.

    Returns:
        The certificate in DER, and whether its signature is this one: where another agent signed the same TBS, and its
        signature was recorded first, it is that one's.

    Raises:
        Refused: CSR_BLOCKED_KEY; the key was blocked since the intent was recorded.
        ClosedOff: it took so long that the intent was closed off, or the certificate is not valid now, as the clock was
            set meanwhile.
        LedgerUnavailable: the certificate may not be given to anybody.
        CustodyError: the key cannot be reached now; nothing was signed.
        SelfCheckFailed: as its docstring says.
    """

    def sign() -> tuple[bytes, bytes]:
        signature = authority.custody.sign(intent.tbs)
        certificate = assemble(intent.tbs, signature)
        authority.self_check.check(certificate, subject, public_key_info)
        return signature, certificate

    signature, certificate = await made(authority.custody, sign)
    signed_ms, digest = milliseconds(now()), sha256(certificate).digest()
    if not intent.not_before <= signed_ms // 1000 <= intent.not_after:
        raise ClosedOff("the clock was set while the certificate was signed, which is not valid now")
    kept = await recorded(Signature(intent.serial, signature, signed_ms, digest, intent.not_after, public_key_info))
    if isinstance(kept, KeyBlocked):
        raise _blocked()
    if not kept.is_first:
        certificate = assemble(intent.tbs, kept.value)
        authority.self_check.check(certificate, subject, public_key_info)
    return certificate, kept.is_first


def _blocked() -> Refused:
    text = "The CSR's key is blocked: it was compromised, put on hold, or blocked by the operator. Make a new key."
    return Refused(ErrorCode.CSR_BLOCKED_KEY, text)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
