"""Run the published vectors (docs/protocol.md, 9) against the `protocol` package that is first on sys.path.

Stands on the standard library and the codec under test, so that it also runs beside a copy of the codec with a fault in
it: `python vector_runner.py VECTORS.json` prints the first vector that does not hold, and exits 1.
"""

import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol.assembly import RecordAssembly, split_record
from protocol.codec import decode_record, encode_record
from protocol.connection import Connection
from protocol.errors import RemoteProtocolError
from protocol.events import (
    AnswerReceived,
    Event,
    LateAnswer,
    PeerDraining,
    PeerFailed,
    PeerReady,
    RequestCancelled,
    RequestReceived,
    StatusReceived,
)
from protocol.frames import FrameDecoder, encode_frame
from protocol.records import (
    Answer,
    Cancel,
    Hello,
    Record,
    Request,
    Status,
)

Vector = dict[str, Any]
Vectors = dict[str, Any]

ERROR, HELLO, DRAIN, STATUS, CANCEL = 0x0F, 0x01, 0x04, 0x05, 0x14
# How the octets of a vector arrive: as a whole, in parts of this size. One by one takes too long for the long ones.
SHORT = 2_000
PART = 997
# What may come behind a fault and is not looked at.
TRAILING = bytes(40)

_HEADER = struct.Struct(">IBBHQ")
_ERROR = struct.Struct(">HBIH")
_REPEATED = re.compile(r"\{([0-9a-f]{2})\*([0-9]+)\}")


def octets_of(text: str) -> bytes:
    """Return the octets that a vector writes: hexadecimal, where {XX*N} stands for N times the octet XX."""
    return bytes.fromhex(_REPEATED.sub(lambda found: found[1] * int(found[2]), text))


def frames_in(octets: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, request id and payload of each frame, read without the codec under test."""
    at = 0
    while at < len(octets):
        length, version, type_code, flags, request_id = _HEADER.unpack_from(octets, at)
        assert (version, flags & ~1) == (1, 0), "a header that is not version 1's"
        end = at + 4 + length
        assert end <= len(octets), "a frame that was not sent whole"
        yield type_code, request_id, octets[at + _HEADER.size : end]
        at = end


def check(vectors: Vectors, kind: str, vector: Vector) -> None:
    """Raise AssertionError where a vector of this list does not hold, in whatever way it arrives."""
    match kind:
        case "records":
            _check_decoding(vector)
            _check_encoding(vector)
        case "tolerated":
            _check_decoding(vector)
        case "refused" | "accepted":
            octets = octets_of(vector["octets"])
            ways = [len(octets), PART] if len(octets) > SHORT else [len(octets), 1]
            for part in ways:
                _Side(vectors, vector).check_arrival(octets, part)
                if kind == "refused" and vector["about"] == "connection":
                    _Side(vectors, vector).check_arrival(octets + TRAILING, part)
        case "timed":
            _Side(vectors, vector).check_time()


def fields_of(record: Record) -> dict[str, object]:
    """Return a record's fields as the vectors write them, in plain hexadecimal."""

    def plain(value: object) -> object:
        match value:
            case bytes():
                return value.hex()
            case tuple():
                return [plain(item) for item in value]
            case int():
                return int(value)
        return value

    return {name: plain(getattr(record, name)) for name in type(record).__dataclass_fields__}


def _expanded(value: object) -> object:
    match value:
        case str() if _REPEATED.search(value):
            return octets_of(value).hex()
        case list():
            return [_expanded(item) for item in value]
    return value


def _record_in(octets: bytes) -> tuple[int, Record]:
    """Return the request id and the record in the octets of all its frames, read by the codec under test."""
    decoder, assembly = FrameDecoder(), RecordAssembly(1 << 20)
    decoder.receive_data(octets)
    while (frame := decoder.next_frame()) is not None:
        payload = assembly.join(frame)
        if payload is not None:
            assert decoder.next_frame() is None
            assert not decoder.mid_frame
            return frame.request_id, decode_record(frame.type, payload)
    raise AssertionError("no whole record")


def _check_decoding(vector: Vector) -> None:
    request_id, record = _record_in(octets_of(vector["octets"]))
    assert request_id == vector["request_id"], "request id"
    expected = {name: _expanded(value) for name, value in vector["fields"].items()}
    assert fields_of(record) == expected, "fields"


def _check_encoding(vector: Vector) -> None:
    octets = octets_of(vector["octets"])
    _, record = _record_in(octets)
    code, payload = encode_record(record)
    assert code == vector["type"], "type"
    sent = b"".join(encode_frame(each) for each in split_record(code, vector["request_id"], payload))
    assert sent == octets, "octets"


class _Side:
    """The side under test, taken through what a vector says came before."""

    def __init__(self, vectors: Vectors, vector: Vector) -> None:
        self._vector = vector
        own = octets_of(vector.get("hello", vectors["hellos"][vector["role"]]))
        _, hello = _record_in(own)
        assert isinstance(hello, Hello)
        self._now = 0.0
        self._side = Connection(hello, self._now)
        assert self._side.data_to_send() == own, "HELLO is sent at once"
        for step in vector["before"]:
            self._take(step)

    def _take(self, step: Vector) -> None:
        match step:
            case {"peer": octets}:
                _, fault = self._receive(octets_of(octets), 1 << 30)
                assert fault is None, f"refused what came before: {fault}"
                self._side.data_to_send()
            case {"self": octets}:
                self._say(octets_of(octets))
            case {"wait_ms": wait_ms}:
                self._now += wait_ms / 1000
                self._side.handle_timer(self._now)
            case _:
                raise AssertionError(f"a step that is not known: {step}")

    def _say(self, octets: bytes) -> None:
        """Have this side send a record; what a wait led to is there already."""
        type_code, request_id, _ = next(frames_in(octets))
        match type_code:
            case 0x04:
                self._side.drain(self._now)
            case 0x02:
                pass
            case _:
                _, record = _record_in(octets)
                match record:
                    case Status(root_generation, crl_number):
                        self._side.tell_status(root_generation, crl_number)
                    case Cancel():
                        self._side.cancel(request_id)
                    case _ if isinstance(record, Request):
                        self._side.ask(record)
                    case _:
                        assert isinstance(record, Answer)
                        self._side.answer(request_id, record)
        assert self._side.data_to_send() == octets, "this side does not send what it is to have sent"

    def _receive(self, octets: bytes, part: int) -> tuple[list[Event], RemoteProtocolError | None]:
        events: list[Event] = []
        fault = None
        for at in range(0, len(octets), part):
            self._side.receive_data(octets[at : at + part], self._now)
            try:
                while (event := self._side.next_event()) is not None:
                    events.append(event)
            except RemoteProtocolError as error:
                assert fault is None, "two faults"
                fault = error
        return events, fault

    def check_arrival(self, octets: bytes, part: int) -> None:
        """Check what the octets lead to."""
        events, fault = self._receive(octets, part)
        if "code" in self._vector:
            about_connection = self._vector["about"] == "connection"
            assert (fault is not None) == about_connection, f"fault: {fault}"
            request_id = 0 if about_connection else self._vector["request_id"]
            self._check_sent(
                [{"error": self._vector["code"], "request_id": request_id, "retryable": 0}], closed=about_connection
            )
            assert _delivered(events) == [], "a record was handed on"
        else:
            assert fault is None, f"refused: {fault}"
            assert _delivered(events) == self._vector["delivers"], "what is handed on"
            self._check_sent(self._vector["sends"], closed=self._vector.get("closed", False))

    def check_time(self) -> None:
        """Check what waiting leads to: nothing a moment before, and then what is to be sent."""
        wait_s = self._vector["wait_ms"] / 1000
        self._side.handle_timer(self._now + wait_s - 0.001)
        self._check_sent([], closed=False)
        due = self._side.next_timer()
        assert due is not None
        assert due <= self._now + wait_s + 1e-6, "the timer is set too late"
        try:
            self._side.handle_timer(self._now + wait_s)
        except RemoteProtocolError as fault:
            assert self._vector["closed"], f"gave the peer up: {fault}"
        self._check_sent(self._vector["sends"], closed=self._vector["closed"])

    def _check_sent(self, expected: list[Vector], *, closed: bool) -> None:
        sent = self._side.data_to_send()
        found = list(frames_in(sent))
        assert len(found) == len(expected), f"{len(found)} records were sent, not {len(expected)}"
        for (type_code, request_id, payload), each in zip(found, expected, strict=True):
            if "octets" in each:
                [(wanted_type, wanted_id, wanted)] = frames_in(octets_of(each["octets"]))
                assert (type_code, request_id, payload) == (wanted_type, wanted_id, wanted), "what is sent"
                continue
            assert type_code == ERROR, f"a record of type {type_code} was sent"
            code, retryable, _, size = _ERROR.unpack_from(payload)
            assert request_id == each["request_id"], "request id of the ERROR"
            assert code == each["error"], f"ERROR {code}, not {each['error']}"
            assert retryable == each["retryable"], "retryable"
            assert size <= 512, "the text is too long"
            assert len(payload) == _ERROR.size + size
        assert self._side.closed == closed, "closed" if self._side.closed else "still open"


def _delivered(events: list[Event]) -> list[Vector]:
    """Return what is handed on to the owner, as the vectors write it."""
    found = []
    for event in events:
        match event:
            case PeerReady():
                found.append((HELLO, 0))
            case PeerDraining():
                found.append((DRAIN, 0))
            case StatusReceived():
                found.append((STATUS, 0))
            case PeerFailed():
                found.append((ERROR, 0))
            case RequestCancelled(request_id):
                found.append((CANCEL, request_id))
            case RequestReceived(request_id, record) | AnswerReceived(request_id, record):
                found.append((encode_record(record)[0], request_id))
            case LateAnswer():
                pass  # dropped: handed on to nobody
    return [{"type": type_code, "request_id": request_id} for type_code, request_id in found]


def load(path: Path) -> Vectors:
    """Return what stands in a file of vectors."""
    vectors: Vectors = json.loads(path.read_text(encoding="utf-8"))
    return vectors


LISTS = ("records", "tolerated", "refused", "accepted", "timed")


def main(path: Path) -> int:
    """Run all vectors of a file; print the first one that does not hold."""
    vectors = load(path)
    for kind in LISTS:
        for vector in vectors[kind]:
            try:
                check(vectors, kind, vector)
            except Exception as error:  # noqa: BLE001  # a codec with a fault in it may raise anything
                print(f"{kind}: {vector['description']}: {type(error).__name__}: {error}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
