"""Records over one frame: split for sending, joined on arrival (docs/protocol.md, 3).

Only the payload octets that came in are held, all unfinished records of a connection together within one limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.frames import MAX_PAYLOAD, Frame

MAX_UNFINISHED_RECORDS = 16


def split_record(type_code: int, request_id: int, payload: bytes) -> Iterator[Frame]:
    """Yield the frames that carry a record: full ones with MORE, then the rest without."""
    while len(payload) > MAX_PAYLOAD:
        yield Frame(type_code, request_id, payload[:MAX_PAYLOAD], more=True)
        payload = payload[MAX_PAYLOAD:]
    yield Frame(type_code, request_id, payload)


@dataclass(slots=True)
class _Unfinished:
    """A record of which some frames are here."""

    type: int
    payload: bytearray = field(default_factory=bytearray)


class RecordAssembly:
    """Join the frames of each request id; frames of other ids may come between.

    Args:
        max_record: octets that one record, or all unfinished records together, may hold.
    """

    def __init__(self, max_record: int) -> None:
        self._max_record = max_record
        self._unfinished: dict[int, _Unfinished] = {}
        self._held = 0

    @property
    def held_octets(self) -> int:
        """How much is held of records that are not whole."""
        return self._held

    def join(self, frame: Frame) -> bytes | None:
        """Take a frame; return its record's whole payload, or None while more frames are to come.

        Raises:
            RemoteProtocolError: too much, too many, or a frame that does not fit the ones before it.
        """
        unfinished = self._unfinished.get(frame.request_id)
        if unfinished is None and not frame.more:
            if len(frame.payload) > self._max_record:
                raise RemoteProtocolError(ErrorCode.BAD_RECORD, f"a record over {self._max_record} octets")
            return frame.payload
        if frame.request_id == 0:
            raise RemoteProtocolError(ErrorCode.BAD_FRAME, "a connection record in more than one frame")
        if not frame.payload:
            raise RemoteProtocolError(ErrorCode.BAD_FRAME, "an empty frame in a record of several")
        if unfinished is None:
            if len(self._unfinished) == MAX_UNFINISHED_RECORDS:
                text = f"more than {MAX_UNFINISHED_RECORDS} unfinished records"
                raise RemoteProtocolError(ErrorCode.BAD_SEQUENCE, text)
            unfinished = self._unfinished[frame.request_id] = _Unfinished(frame.type)
        elif unfinished.type != frame.type:
            raise RemoteProtocolError(ErrorCode.BAD_FRAME, "a record changes its type between frames")
        self._held += len(frame.payload)
        if self._held > self._max_record:
            text = f"unfinished records over {self._max_record} octets in all"
            raise RemoteProtocolError(ErrorCode.BAD_RECORD, text)
        unfinished.payload += frame.payload
        if frame.more:
            return None
        del self._unfinished[frame.request_id]
        self._held -= len(unfinished.payload)
        return bytes(unfinished.payload)
