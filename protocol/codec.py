"""The codec: record <-> payload octets, and the one table of type codes (docs/protocol.md, 4 and 5).

Every payload is laid out alike: the record's fields in order, numbers big-endian and octets of fixed size packed first,
then the fields of variable size, then any number of extension fields that this version does not know. An extension
field is a uint16 tag, a uint16 length and its value; bit 15 of the tag marks it critical. Unknown optional fields are
passed over, an unknown critical one is refused.
"""

import struct
from dataclasses import dataclass
from typing import Any

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.records import (
    Cancel,
    Chain,
    Drain,
    Error,
    GetChain,
    GetOcsp,
    GetPublished,
    Hello,
    OcspAnswer,
    Ping,
    Pong,
    Published,
    Record,
    Request,
    SignCsr,
    Signed,
    Status,
)

CRITICAL = 0x8000
FIRST_REQUEST_TYPE = 0x10
_EXTENSION = struct.Struct(">HH")
_U8 = struct.Struct(">B")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


class _Truncated(Exception):
    """A field reaches past the end of its payload."""


class _Text:
    """uint16 length, then UTF-8."""

    @staticmethod
    def write(value: str) -> bytes:
        octets = value.encode()
        return _U16.pack(len(octets)) + octets

    @staticmethod
    def read(payload: bytes, at: int) -> tuple[str, int]:
        octets, end = _take(payload, at, _U16)
        return octets.decode(), end


class _Octets:
    """uint32 length, then octets."""

    @staticmethod
    def write(value: bytes) -> bytes:
        return _U32.pack(len(value)) + value

    @staticmethod
    def read(payload: bytes, at: int) -> tuple[bytes, int]:
        return _take(payload, at, _U32)


class _OctetsList:
    """uint8 count, then that many `_Octets`."""

    @staticmethod
    def write(value: tuple[bytes, ...]) -> bytes:
        return _U8.pack(len(value)) + b"".join(_Octets.write(item) for item in value)

    @staticmethod
    def read(payload: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
        if at >= len(payload):
            raise _Truncated
        items = []
        count, at = payload[at], at + 1
        for _ in range(count):
            item, at = _take(payload, at, _U32)
            items.append(item)
        return tuple(items), at


_Variable = type[_Text] | type[_Octets] | type[_OctetsList]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one record type lies in its payload: `fixed` names go through `head`, then `variable` ones in order."""

    code: int
    record: type[Any]
    head: struct.Struct
    fixed: tuple[str, ...]
    variable: tuple[tuple[str, _Variable], ...] = ()


_LAYOUTS = (
    _Layout(
        0x01,
        Hello,
        struct.Struct(">8sBBBHI16sQQ"),
        (
            "magic",
            "version_min",
            "version_max",
            "role",
            "window",
            "max_record",
            "boot_id",
            "clock_ms",
            "root_generation",
        ),
    ),
    _Layout(0x02, Ping, struct.Struct(">Q"), ("token",)),
    _Layout(0x03, Pong, struct.Struct(">Q"), ("token",)),
    _Layout(0x04, Drain, struct.Struct(">"), ()),
    _Layout(0x05, Status, struct.Struct(">QQ"), ("root_generation", "crl_number")),
    _Layout(0x0F, Error, struct.Struct(">HBI"), ("code", "retryable", "retry_after_ms"), (("text", _Text),)),
    _Layout(
        0x10,
        SignCsr,
        struct.Struct(">I16s"),
        ("deadline_ms", "idempotency_key"),
        (("user", _Text), ("method", _Text), ("address", _Text), ("csr", _Octets)),
    ),
    _Layout(0x11, Signed, struct.Struct(">32sQ"), ("csr_sha256", "root_generation"), (("chain", _OctetsList),)),
    _Layout(0x12, GetChain, struct.Struct(">I"), ("deadline_ms",)),
    _Layout(0x13, Chain, struct.Struct(">Q"), ("root_generation",), (("chain", _OctetsList),)),
    _Layout(0x14, Cancel, struct.Struct(">"), ()),
    _Layout(
        0x15,
        GetPublished,
        struct.Struct(">IBQQI"),
        ("deadline_ms", "kind", "root_generation", "known_version", "offset"),
    ),
    _Layout(
        0x16,
        Published,
        struct.Struct(">BQQQII"),
        ("kind", "root_generation", "version", "next_update_ms", "total", "offset"),
        (("part", _Octets),),
    ),
    _Layout(0x17, GetOcsp, struct.Struct(">I"), ("deadline_ms",), (("request", _Octets),)),
    _Layout(0x18, OcspAnswer, struct.Struct(">Q"), ("expires_ms",), (("response", _Octets),)),
)
_BY_CODE = {layout.code: layout for layout in _LAYOUTS}
_BY_RECORD = {layout.record: layout for layout in _LAYOUTS}


def encode_record(record: Record) -> tuple[int, bytes]:
    """Return the record's type code and payload.

    Raises:
        LocalProtocolError: a value does not fit its field.
    """
    layout = _BY_RECORD[type(record)]
    try:
        payload = layout.head.pack(*(getattr(record, name) for name in layout.fixed))
        for name, kind in layout.variable:
            payload += kind.write(getattr(record, name))
    except struct.error as error:
        text = f"a field of {type(record).__name__} is out of range: {error}"
        raise LocalProtocolError(ErrorCode.BAD_RECORD, text) from error
    return layout.code, payload


def may_be_request(type_code: int) -> bool:
    """Return whether a type code is a request's: a known one, or one that a later version may have made."""
    layout = _BY_CODE.get(type_code)
    return type_code >= FIRST_REQUEST_TYPE if layout is None else issubclass(layout.record, Request)


def decode_record(type_code: int, payload: bytes) -> Record:
    """Return the record that a payload holds.

    Raises:
        RemoteProtocolError: with UNSUPPORTED for an unknown type or an unknown critical extension field, with
            BAD_RECORD for a payload that is cut short, runs on, or holds a value that its field forbids.
    """
    layout = _BY_CODE.get(type_code)
    if layout is None:
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"record type {type_code:#04x} is not known")
    name = layout.record.__name__
    try:
        if len(payload) < layout.head.size:
            raise _Truncated
        values: dict[str, Any] = dict(zip(layout.fixed, layout.head.unpack_from(payload), strict=True))
        at = layout.head.size
        for field, kind in layout.variable:
            values[field], at = kind.read(payload, at)
        if at < len(payload):
            _pass_over_extensions(name, payload, at)
        return layout.record(**values)  # type: ignore[no-any-return]  # one of Record's classes, by the table
    except _Truncated:
        raise RemoteProtocolError(ErrorCode.BAD_RECORD, f"{name} is cut short") from None
    except UnicodeDecodeError:
        raise RemoteProtocolError(ErrorCode.BAD_RECORD, f"{name} holds text that is not UTF-8") from None
    except ValueError as error:
        raise RemoteProtocolError(ErrorCode.BAD_RECORD, f"{name}: {error}") from error


def _take(payload: bytes, at: int, size: struct.Struct) -> tuple[bytes, int]:
    """Read a length of the given size at `at`, then that many octets; return them and where they end."""
    start = at + size.size
    if start > len(payload):
        raise _Truncated
    (length,) = size.unpack_from(payload, at)
    end = start + length
    if end > len(payload):
        raise _Truncated
    return payload[start:end], end


def _pass_over_extensions(name: str, payload: bytes, at: int) -> None:
    while at < len(payload):
        start = at + _EXTENSION.size
        if start > len(payload):
            raise _Truncated
        tag, length = _EXTENSION.unpack_from(payload, at)
        at = start + length
        if at > len(payload):
            raise _Truncated
        if tag & CRITICAL:
            raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"{name} has the unknown critical field {tag:#06x}")
