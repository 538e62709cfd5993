"""Record in, record out: what each request leads to, and the only map from exceptions to error codes."""

from collections.abc import Callable

from protocol.errors import ErrorCode
from protocol.records import Answer, Chain, Error, SignCsr, Signed
from vmi_agent.authority import Authority
from vmi_agent.errors import LedgerUnavailable, NotWanted, Refused
from vmi_agent.issuing import Issuing

FAILED_RETRY_AFTER_MS = 5_000


class Dispatch:
    """Answers requests.

    Args:
        authority: the CA whose chain is told.
        issuing: signs.
        report: is told of each failure that is the agent's own, for the log; called from worker threads.
    """

    def __init__(self, authority: Authority, issuing: Issuing, report: Callable[[BaseException], None]) -> None:
        self._authority = authority
        self._issuing = issuing
        self._report = report

    def chain(self) -> Chain:
        """Return the CA's certificates. Does not block."""
        return Chain(self._authority.generation, self._authority.chain)

    def sign(self, request: SignCsr, csr_sha256: bytes, still_wanted: Callable[[], None]) -> Answer:
        """Return the answer to a SIGN_CSR. Blocks; never raises.

        Args:
            request: as it came over the channel.
            csr_sha256: over its CSR.
            still_wanted: as for `Issuing.issue`.
        """
        try:
            chain = self._issuing.issue(request, still_wanted)
        except Refused as refused:
            return Error(refused.code, retryable=False, retry_after_ms=0, text=refused.text)
        except NotWanted as unwanted:
            return Error(unwanted.code, retryable=True, retry_after_ms=0, text="The asker gave up before a signature.")
        except LedgerUnavailable as error:
            self._report(error)
            text = "The agent's ledger cannot be written. Nothing was issued."
            return Error(ErrorCode.FAILED, retryable=True, retry_after_ms=FAILED_RETRY_AFTER_MS, text=text)
        except Exception as error:  # noqa: BLE001  # a bug of ours: reported in full here, told to nobody else
            self._report(error)
            text = "The agent failed. Its log says why."
            return Error(ErrorCode.FAILED, retryable=True, retry_after_ms=FAILED_RETRY_AFTER_MS, text=text)
        return Signed(csr_sha256, self._authority.generation, chain)
