"""Frames: the outermost layer, a 16-octet header and an opaque payload (docs/protocol.md, 2).

    uint32 length | uint8 version | uint8 type | uint16 flags | uint64 request_id | payload[length - 12]

The decoder judges a header as soon as it stands in the buffer and before it keeps any of the payload, so the most that
a peer can make it hold is one frame and one read.
"""

import struct
from dataclasses import dataclass

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError

VERSION = 1
FLAG_MORE = 0x0001
MAX_PAYLOAD = 65_536

_LENGTH = struct.Struct(">I")
_HEADER = struct.Struct(">IBBHQ")
HEADER_OCTETS = _HEADER.size
_COUNTED_HEADER_OCTETS = HEADER_OCTETS - _LENGTH.size  # the part of the header that `length` counts
MIN_LENGTH = _COUNTED_HEADER_OCTETS
MAX_LENGTH = _COUNTED_HEADER_OCTETS + MAX_PAYLOAD


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        type: the record's type code, 0 … 255.
        request_id: 0 for connection records, else the asker's number, 1 … 2**64 - 1.
        payload: 0 … 65,536 octets.
        more: the next frame of this request id continues the payload.
    """

    type: int
    request_id: int
    payload: bytes
    more: bool = False


def encode_frame(frame: Frame) -> bytes:
    """Return the frame's octets.

    Raises:
        LocalProtocolError: the payload is over 65,536 octets, or a number does not fit its field.
    """
    if len(frame.payload) > MAX_PAYLOAD:
        raise LocalProtocolError(ErrorCode.BAD_FRAME, f"payload of {len(frame.payload)} octets, at most {MAX_PAYLOAD}")
    return encode_header(frame.type, frame.request_id, len(frame.payload), more=frame.more) + frame.payload


def encode_header(type_code: int, request_id: int, octets: int, *, more: bool = False) -> bytes:
    """Return the header of a frame with so many octets of payload. Raises LocalProtocolError as `encode_frame` does."""
    flags = FLAG_MORE if more else 0
    try:
        return _HEADER.pack(_COUNTED_HEADER_OCTETS + octets, VERSION, type_code, flags, request_id)
    except struct.error as error:
        raise LocalProtocolError(ErrorCode.BAD_FRAME, f"a header field is out of range: {error}") from error


class FrameDecoder:
    """Turn octets, however they were split in transit, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> None:
        """Take octets from the peer. Call `next_frame` until it returns None before the next call."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None where more octets are needed.

        Raises:
            RemoteProtocolError: the header is refused (length outside 12 … 65,548, version not 1, a flag other than
                MORE). Whatever was buffered is dropped.
        """
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if not MIN_LENGTH <= length <= MAX_LENGTH:
            self._refuse(ErrorCode.BAD_FRAME, f"frame length {length}, accepted {MIN_LENGTH} to {MAX_LENGTH}")
        if len(buffer) < HEADER_OCTETS:
            return None
        _, version, type_code, flags, request_id = _HEADER.unpack_from(buffer)
        if version != VERSION:
            self._refuse(ErrorCode.BAD_VERSION, f"frame version {version}, accepted {VERSION}")
        if flags & ~FLAG_MORE:
            self._refuse(ErrorCode.BAD_FRAME, f"flags {flags:#06x}, accepted 0x0000 and 0x0001")
        end = _LENGTH.size + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[HEADER_OCTETS:end])
        del buffer[:end]
        return Frame(type_code, request_id, payload, bool(flags & FLAG_MORE))

    @property
    def mid_frame(self) -> bool:
        """True while the first octets of a frame are here and its last are not."""
        return bool(self._buffer)

    @property
    def buffered_octets(self) -> int:
        """How much is held at the moment."""
        return len(self._buffer)

    def _refuse(self, code: ErrorCode, text: str) -> None:
        self._buffer.clear()
        raise RemoteProtocolError(code, text)
