"""Record in, record out: what each request leads to, and the only map from exceptions to error codes."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from protocol.errors import ErrorCode
from protocol.records import (
    MAX_ERROR_TEXT,
    MAX_PART,
    Answer,
    Chain,
    Error,
    GetOcsp,
    GetPublished,
    OcspAnswer,
    PublicationKind,
    Published,
    SignCsr,
    Signed,
)
from runtime.clock import milliseconds
from vmi_agent.ca.authority import CaNotValid, Generations
from vmi_agent.errors import ClosedOff, LedgerUnavailable, NotWanted, Refused
from vmi_agent.issuance.issue import Issuing
from vmi_agent.issuance.scheduler import recorded
from vmi_agent.keys import CustodyError
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.revocation.ocsp import OcspResponder
from vmi_agent.revocation.publisher import Publishing

FAILED_RETRY_AFTER_MS = 5_000
_CA_NOT_VALID = "The CA has ended or is not valid yet. Nothing was issued. The agent's log says what to do."
_NO_LEDGER = "The agent's ledger cannot be written. Nothing was issued."


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, and the event word and fields that tell of it in the log."""

    answer: Answer
    event: str
    fields: dict[str, str]


class Dispatch:
    """Answers requests.

    Args:
        generations: the CA whose chain is told.
        issuing: signs.
        publishing: the CRLs and the CA's certificates.
        responder: answers OCSP requests.
        now: returns the aware UTC time.
        report: is told of each failure that is the agent's own, and of the CSR's hash; called from other threads. Of
            a ledger that cannot be written, the ledger itself tells.
    """

    def __init__(
        self,
        generations: Generations,
        issuing: Issuing,
        publishing: Publishing,
        responder: OcspResponder,
        now: Callable[[], datetime],
        report: Callable[[BaseException, bytes], None],
    ) -> None:
        self._generations = generations
        self._issuing = issuing
        self._publishing = publishing
        self._responder = responder
        self._now = now
        self._report = report

    def chain(self) -> Answer:
        """Return the CA's certificates, unless they are not valid yet: nobody is to trust those. Does not block."""
        authority = self._generations.current
        if self._now() < authority.valid_from:
            return failed(_CA_NOT_VALID)
        return Chain(authority.generation, authority.chain)

    def published(self, request: GetPublished) -> Answer:
        """Return a part of a CRL or of the CA's certificates. Does not block."""
        generation = request.root_generation
        if request.kind is PublicationKind.CRL:
            found = self._publishing.crl(generation)
        else:
            found = self._publishing.certificates(generation)
        if found is None:
            return Error(ErrorCode.NOT_FOUND, retryable=False, retry_after_ms=0, text="This is not published here.")
        whole = b"" if request.known_version == found.version else found.der
        # Past the end of this version is where another version went on: begin anew.
        offset = request.offset if request.offset < len(whole) else 0
        part = whole[offset : offset + MAX_PART]
        return Published(request.kind, generation, found.version, found.next_update_ms, len(whole), offset, part)

    def ocsp(self, request: GetOcsp) -> Answer:
        """Return the answer to an OCSP request. Blocks; never raises."""
        try:
            answer = self._responder.answer(request.request)
        except Exception as error:  # noqa: BLE001  # a bug of ours: reported in full here, told to nobody else
            self._report(error, b"")
            return failed("The agent failed. Its log says why.")
        return OcspAnswer(answer.expires_ms, answer.der)

    async def sign(self, request: SignCsr, csr_sha256: bytes, still_wanted: Callable[[], None]) -> Outcome:
        """Return the answer to a SIGN_CSR, and what to log of it; never raises.

        Args:
            request: as it came over the channel.
            csr_sha256: over its CSR.
            still_wanted: as for `Issuing.issue`.
        """
        try:
            still_wanted()  # it may have waited long for its turn
            issued = await self._issuing.issue(request, still_wanted)
        except Refused as refused:
            # A profile's patterns may make it long; the channel takes so much.
            text = refused.text.encode()[:MAX_ERROR_TEXT].decode(errors="ignore")
            error = Error(refused.code, retryable=False, retry_after_ms=0, text=text)
        except NotWanted as unwanted:
            error = cancelled(unwanted.code)
        except ClosedOff:
            error = failed("Signing took too long. Nothing was issued: ask again.")
        except LedgerUnavailable:  # the ledger has told of it, once for all requests; it holds the audit as well
            return _not_signed(failed(_NO_LEDGER))
        except CaNotValid as failure:
            self._report(failure, csr_sha256)
            error = failed(_CA_NOT_VALID)
        except CustodyError as failure:
            self._report(failure, csr_sha256)
            error = failed("The CA's key cannot be used now. Nothing was issued.")
        except Exception as failure:  # noqa: BLE001  # a bug of ours: reported in full here, told to nobody else
            self._report(failure, csr_sha256)
            error = failed("The agent failed. Its log says why.")
        else:
            signed = Signed(csr_sha256, issued.root_generation, issued.chain)
            return Outcome(signed, "signed" if issued.is_new else "signed before", {"serial": issued.serial.hex()})
        return _not_signed(await self._audited(error, request, csr_sha256))

    async def _audited(self, error: Error, request: SignCsr, csr_sha256: bytes) -> Error:
        """Tell the audit why a request was not signed; return what is answered: this error, or that it has no audit."""
        fields = {
            "code": error.code.name,
            "reason": error.text,
            "user": request.user,
            "method": request.method,
            "address": request.address,
            "csr_sha256": csr_sha256.hex(),
        }
        name = "failed" if error.code is ErrorCode.FAILED else "refused"
        try:
            await recorded(Event(name, milliseconds(self._now()), fields))
        except LedgerUnavailable:
            return failed(_NO_LEDGER)
        return error


def cancelled(code: ErrorCode = ErrorCode.CANCELLED) -> Error:
    """Return the answer to a request that nobody waits for any more; nothing was signed."""
    return Error(code, retryable=True, retry_after_ms=0, text="The asker gave up before a signature.")


def failed(text: str) -> Error:
    """Return the answer to a request that the agent could not carry out; it may be repeated."""
    return Error(ErrorCode.FAILED, True, FAILED_RETRY_AFTER_MS, text)


def _not_signed(error: Error) -> Outcome:
    return Outcome(error, "not signed", {"code": error.code.name})
