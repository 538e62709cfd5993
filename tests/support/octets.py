"""Octets and records that the protocol's tests are made of."""

import json
import struct
from pathlib import Path
from typing import Any

from protocol.assembly import RecordAssembly, split_record
from protocol.codec import decode_record, encode_record
from protocol.connection import Connection
from protocol.errors import RemoteProtocolError
from protocol.events import Event
from protocol.frames import FrameDecoder, encode_frame
from protocol.records import Hello, Record, Role, SignCsr

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docs" / "protocol-vectors.json").read_text(encoding="utf-8")
)
AGENT_HELLO = Hello(Role.AGENT, window=2, max_record=200_000, boot_id=b"a" * 16, clock_ms=1, root_generation=1)
ASKER_HELLO = Hello(Role.ASKER, window=0, max_record=200_000, boot_id=b"p" * 16, clock_ms=1, root_generation=0)
SIGN = SignCsr(30_000, bytes(16), "anonymous", "anonymous-loopback", "127.0.0.1", b"csr")


def frame(
    type_code: int,
    request_id: int,
    payload: bytes = b"",
    *,
    flags: int = 0,
    version: int = 1,
    length: int | None = None,
) -> bytes:
    """Return a frame written without the package under test, so that it may also be a wrong one."""
    counted = 12 + len(payload) if length is None else length
    return struct.pack(">IBBHQ", counted, version, type_code, flags, request_id) + payload


def encode(record: Record, request_id: int = 0) -> bytes:
    """Return all frames of a record."""
    code, payload = encode_record(record)
    return b"".join(encode_frame(each) for each in split_record(code, request_id, payload))


def hello_for(role: Role) -> Hello:
    """Return the HELLO of this role."""
    return AGENT_HELLO if role is Role.AGENT else ASKER_HELLO


def connection(role: Role) -> Connection:
    """Return a connection of this role at time 0, its own HELLO already taken out."""
    made = Connection(hello_for(role), now=0.0)
    made.data_to_send()
    return made


def ready(role: Role) -> Connection:
    """Return a connection of this role that has heard its peer's HELLO."""
    made = connection(role)
    made.receive_data(encode(hello_for(Role.ASKER if role is Role.AGENT else Role.AGENT)), now=0.0)
    events_of(made)
    return made


def events_of(receiver: Connection) -> list[Event]:
    """Return all events that are there."""
    found = []
    while (event := receiver.next_event()) is not None:
        found.append(event)
    return found


def feed(receiver: Connection, octets: bytes, *, one_by_one: bool) -> list[Event | RemoteProtocolError]:
    """Give octets to a connection, whole or octet by octet; return its events, and its fault as the last of them."""
    found: list[Event | RemoteProtocolError] = []
    parts = [octets[at : at + 1] for at in range(len(octets))] if one_by_one else [octets]
    for part in parts:
        receiver.receive_data(part, now=0.0)
        try:
            found += events_of(receiver)
        except RemoteProtocolError as fault:
            found.append(fault)
    return found


def sent_records(octets: bytes) -> list[tuple[int, Record]]:
    """Return the request ids and records in what a connection wants to send."""

    decoder, assembly, found = FrameDecoder(), RecordAssembly(1 << 20), []
    decoder.receive_data(octets)
    while (each := decoder.next_frame()) is not None:
        payload = assembly.join(each)
        if payload is not None:
            found.append((each.request_id, decode_record(each.type, payload)))
    assert not decoder.mid_frame
    return found
