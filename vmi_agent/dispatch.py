"""Record in, record out: what each request leads to, and the only map from exceptions to error codes."""

from collections.abc import Callable
from dataclasses import dataclass

from protocol.errors import ErrorCode
from protocol.records import Answer, Chain, Error, GetOcsp, GetPublished, SignCsr, Signed
from vmi_agent.authority import Authority
from vmi_agent.errors import LedgerUnavailable, NotWanted, Refused
from vmi_agent.issuing import Issuing

FAILED_RETRY_AFTER_MS = 5_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, and the event word and fields that tell of it in the log."""

    answer: Answer
    event: str
    fields: dict[str, str]


class Dispatch:
    """Answers requests.

    Args:
        authority: the CA whose chain is told.
        issuing: signs.
        report: is told of each failure that is the agent's own, and of the CSR's hash; called from worker threads.
    """

    def __init__(self, authority: Authority, issuing: Issuing, report: Callable[[BaseException, bytes], None]) -> None:
        self._authority = authority
        self._issuing = issuing
        self._report = report

    def chain(self) -> Chain:
        """Return the CA's certificates. Does not block."""
        return Chain(self._authority.generation, self._authority.chain)

    def published(self, _request: GetPublished) -> Answer:
        """Return the answer to a GET_PUBLISHED. Does not block."""
        return Error(ErrorCode.NOT_FOUND, retryable=False, retry_after_ms=0, text="Nothing is published here.")

    def ocsp(self, _request: GetOcsp) -> Answer:
        """Return the answer to a GET_OCSP. Blocks; never raises."""
        return Error(ErrorCode.NOT_FOUND, retryable=False, retry_after_ms=0, text="There is no OCSP responder here.")

    def sign(self, request: SignCsr, csr_sha256: bytes, still_wanted: Callable[[], None]) -> Outcome:
        """Return the answer to a SIGN_CSR, and what to log of it. Blocks; never raises.

        Args:
            request: as it came over the channel.
            csr_sha256: over its CSR.
            still_wanted: as for `Issuing.issue`.
        """
        try:
            issued = self._issuing.issue(request, still_wanted)
        except Refused as refused:
            return _not_signed(Error(refused.code, retryable=False, retry_after_ms=0, text=refused.text))
        except NotWanted as unwanted:
            text = "The asker gave up before a signature."
            return _not_signed(Error(unwanted.code, retryable=True, retry_after_ms=0, text=text))
        except LedgerUnavailable as error:
            self._report(error, csr_sha256)
            text = "The agent's ledger cannot be written. Nothing was issued."
            return _not_signed(Error(ErrorCode.FAILED, True, FAILED_RETRY_AFTER_MS, text))
        except Exception as error:  # noqa: BLE001  # a bug of ours: reported in full here, told to nobody else
            self._report(error, csr_sha256)
            text = "The agent failed. Its log says why."
            return _not_signed(Error(ErrorCode.FAILED, True, FAILED_RETRY_AFTER_MS, text))
        signed = Signed(csr_sha256, self._authority.generation, issued.chain)
        return Outcome(signed, "signed" if issued.is_new else "signed before", {"serial": issued.serial.hex()})


def _not_signed(error: Error) -> Outcome:
    return Outcome(error, "not signed", {"code": error.code.name})
