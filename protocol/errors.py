"""What can go wrong on the channel, and whose fault it was.

The fault is in the type: `LocalProtocolError` means that our own code asked for something the protocol forbids (a bug
on this side), `RemoteProtocolError` that the peer sent something it must not. Any other exception out of this package
is a bug in the package.
"""

from enum import IntEnum


class ErrorCode(IntEnum):
    """The numeric codes of an ERROR record (docs/protocol.md, 6). A number, once given, keeps its meaning.

    A number that this version does not know reads as FAILED: a newer peer may word its failures more finely.
    """

    # The connection itself is at fault: request id 0, and the sender closes after it. BAD_RECORD with a request id
    # costs that request alone.
    BAD_FRAME = 1
    BAD_VERSION = 2
    BAD_RECORD = 3
    BAD_SEQUENCE = 4
    TOO_SLOW = 5
    # The request was judged and refused: repeating it unchanged is pointless.
    CSR_MALFORMED = 16
    CSR_TOO_LARGE = 17
    CSR_BAD_SIGNATURE = 18
    CSR_WEAK_KEY = 19
    CSR_POLICY = 20
    REQUEST_CONFLICT = 21
    UNSUPPORTED = 22
    NOT_FOUND = 23
    CSR_BLOCKED_KEY = 24
    # The request was not carried out, or nobody knows: it may be repeated.
    BUSY = 32
    DEADLINE = 33
    DRAINING = 34
    CANCELLED = 35
    FAILED = 36

    @classmethod
    def _missing_(cls, value: object) -> "ErrorCode | None":
        return cls.FAILED if isinstance(value, int) else None


class ChannelError(Exception):
    """Base of the two channel faults.

    Attributes:
        code: the numeric code that an ERROR record carries for this fault.
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class LocalProtocolError(ChannelError):
    """This side asked for something the protocol forbids. The connection is unharmed: nothing was sent."""


class RemoteProtocolError(ChannelError):
    """The peer broke the protocol. The connection is over: send what `data_to_send` holds, then close."""
