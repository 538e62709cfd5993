"""Why the agent did not issue."""

from protocol.errors import ErrorCode


class Refused(Exception):
    """The request was judged and refused.

    Attributes:
        code: one of the CSR_* codes or REQUEST_CONFLICT.
        text: what to change, in words that may be shown to whoever asked: nothing of the input is echoed.
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class NotWanted(Exception):
    """The asker's deadline passed, or it cancelled, before anything was recorded.

    Attributes:
        code: DEADLINE or CANCELLED.
    """

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.name)
        self.code = code


class LedgerUnavailable(Exception):
    """The ledger could not be read or written; nothing may be issued."""


class ClosedOff(LedgerUnavailable):
    """What was to be signed is worth nothing any more: a retry gets another one.

    It was closed off as it was pending for too long, or the clock was set meanwhile.
    """


class CheckpointFailed(LedgerUnavailable):
    """What the ledger's log of writes holds could not be brought into its file."""


class SelfCheckFailed(Exception):
    """A certificate did not come out as it was meant to. It is not recorded and does not leave the agent."""
