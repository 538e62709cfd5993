"""The audit: rows that are only ever added, each with a hash over itself and the one before.

    hash = SHA-256( hash of the row before | uint64 id | uint64 at_ms | uint16 length of event | event | fields )

The first row follows 32 zero octets. Rows count from 1 without a gap, and `audit_head` holds number and hash of the
last one. Rows are written in the transaction that does what they tell of, so neither is ever there without the other.

Whoever can write the file can make a whole new chain. So the head may be anchored elsewhere from time to time
(`vmi_agent.ledger.audit.anchors`), and `audit verify` takes such an anchor.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from vmi_agent.ledger.schema import audit
from vmi_agent.ledger.sql import AnyConnection, execute, execute_many

_NUMBERS = struct.Struct(">QQH")
_MOVE_HEAD = (
    "INSERT INTO audit_head (one, last_id, hash) VALUES (1, ?, ?)"
    " ON CONFLICT (one) DO UPDATE SET last_id = excluded.last_id, hash = excluded.hash"
)
_to_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the audit tells of.

    Attributes:
        name: one of few words, such as "signed".
        at_ms: when, in milliseconds since 1970-01-01 UTC.
        fields: who, what and why; values that JSON has. No secret, no CSR.
    """

    name: str
    at_ms: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """Where the chain ends: the last row's number (0 for none) and hash."""

    last_id: int
    hash: bytes


# Before the first row.
START = Head(0, bytes(32))


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it stands in the file, which may have been tampered with: nothing about it is certain."""

    id: Any
    at_ms: Any
    event: Any
    fields: Any
    hash: Any


def append(connection: AnyConnection, events: Sequence[Event]) -> None:
    """Add rows for these events, in the transaction of the connection."""
    if not events:
        return
    head = read_head(connection)
    last_id, last_hash = head.last_id, head.hash
    rows = []
    for event in events:
        last_id += 1
        # In ASCII: a name may hold what UTF-8 cannot, and no name keeps what happened out of the audit.
        fields = _to_json(event.fields)
        last_hash = _link(last_hash, last_id, event.at_ms, event.name.encode(), fields.encode())
        rows.append((last_id, event.at_ms, event.name, fields, last_hash))
    execute_many(connection, "INSERT INTO audit (id, at_ms, event, fields, hash) VALUES (?, ?, ?, ?, ?)", rows)
    execute_many(connection, _MOVE_HEAD, [(last_id, last_hash)])


def read_head(connection: AnyConnection) -> Head:
    """Return where the chain ends, as it is told beside the chain."""
    found = execute(connection, "SELECT last_id, hash FROM audit_head")
    return Head(*found[0]) if found else START


def last_time_ms(connection: Connection) -> int:
    """Return when the last row was written, in milliseconds since 1970-01-01 UTC; 0 where there is none."""
    return connection.execute(select(audit.c.at_ms).order_by(audit.c.id.desc()).limit(1)).scalar() or 0


def last_fields(connection: Connection, name: str, after: int = 0) -> Mapping[str, Any]:
    """Return the fields of the last event of this name behind a row; none where there was no such event."""
    found = select(audit.c.fields).where(audit.c.event == name, audit.c.id > after)
    newest = found.order_by(audit.c.id.desc()).limit(1)
    fields: Mapping[str, Any] = json.loads(connection.execute(newest).scalar() or "{}")
    return fields


def rows(
    connection: Connection, *, last: int | None = None, after: int | None = None, limit: int = -1
) -> Iterator[Row]:
    """Yield all rows, or so many of the last ones, or so many after one, in the order of their writing."""
    # As octets: a text that is not UTF-8 any more is to be told, not to end the reading. None for another type.
    columns = f"SELECT id, at_ms, {_octets('event', 'text')}, {_octets('fields', 'text')}, {_octets('hash', 'blob')}"
    columns += " FROM audit"
    if after is not None:
        found = connection.exec_driver_sql(f"{columns} WHERE id > ? ORDER BY id LIMIT ?", (after, limit)).all()
        yield from (Row(*row) for row in found)
    elif last is None:
        yield from (Row(*row) for row in connection.exec_driver_sql(f"{columns} ORDER BY id"))
    else:
        found = connection.exec_driver_sql(f"{columns} ORDER BY id DESC LIMIT ?", (last,)).all()
        yield from (Row(*row) for row in reversed(found))


def _octets(column: str, stored_as: str) -> str:
    return f"CASE typeof({column}) WHEN '{stored_as}' THEN CAST({column} AS BLOB) END"


def link_of(row: Row, before: bytes) -> bytes | None:
    """Return the hash that a row ought to have behind this one; None where its fields are not what they should be."""
    numbers_are_whole = type(row.id) is int and type(row.at_ms) is int and row.id >= 0 and row.at_ms >= 0
    if not numbers_are_whole or type(row.event) is not bytes or type(row.fields) is not bytes:
        return None
    if len(row.event) > 0xFFFF:
        return None
    return _link(before, row.id, row.at_ms, row.event, row.fields)


def _link(before: bytes, row_id: int, at_ms: int, event: bytes, fields: bytes) -> bytes:
    return hashlib.sha256(before + _NUMBERS.pack(row_id, at_ms, len(event)) + event + fields).digest()
