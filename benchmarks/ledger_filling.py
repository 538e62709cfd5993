"""Many certificates in a ledger, without signing them: copies of one that was issued, each with a number of its own.

Written with SQL, as schema version 2 has it, because a million signatures would take most of an hour. A copy differs in
serial, subject, and the hashes of CSR and key; its signature is the first one's and does not verify. All that the
ledger and its audit look at is as the agent would have written it: `vmi-agent audit verify` passes.

    python benchmarks/ledger_filling.py STATE_DIR COUNT
"""

import hashlib
import json
import re
import sqlite3
import struct
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmi_agent.certificate import assemble, new_serial

AT_ONCE = 10_000
_SCHEMA_VERSION = 3
_NUMBERS = struct.Struct(">QQH")
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _First:
    """A certificate that was issued: the ledger's row, and what the audit tells of it."""

    row: _Row
    signing: _Row
    signed: _Row
    at_ms: int


def fill(state_dir: Path, count: int) -> None:
    """Add so many certificates to the ledger of an agent that does not run and has issued one at least.

    The subject of the first one must hold letters and a number of seven digits, such as hmc0000000.example.
    """
    with closing(sqlite3.connect(state_dir / "ledger.sqlite", isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        assert version == _SCHEMA_VERSION, f"the ledger has schema version {version}"
        for pragma in ("journal_mode=MEMORY", "synchronous=OFF", "cache_size=-500000"):
            connection.execute(f"PRAGMA {pragma}")
        # Made anew at the end: much faster than row by row.
        indexes = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        definitions = dict(map(tuple, indexes.fetchall()))
        for name in definitions:
            connection.execute(f"DROP INDEX {name}")
        first = _first(connection)
        for numbers in (range(begin, min(begin + AT_ONCE, count)) for begin in range(0, count, AT_ONCE)):
            connection.execute("BEGIN")
            _add(connection, first, numbers)
            connection.execute("COMMIT")
        for definition in definitions.values():
            connection.execute(definition)
        connection.execute("PRAGMA journal_mode=WAL")


def _first(connection: sqlite3.Connection) -> _First:
    row = dict(connection.execute("SELECT * FROM issuance WHERE status = 'issued' ORDER BY id LIMIT 1").fetchone())
    told = {}
    for event in ("signing", "signed"):
        rows = connection.execute("SELECT fields FROM audit WHERE event = ?", (event,))
        every = (json.loads(fields) for (fields,) in rows)
        told[event] = next(fields for fields in every if fields["serial"] == row["serial"].hex())
    at_ms = connection.execute("SELECT at_ms FROM audit ORDER BY id DESC").fetchone()[0]
    return _First({name: row[name] for name in row if name != "id"}, told["signing"], told["signed"], at_ms)


def _add(connection: sqlite3.Connection, first: _First, numbers: range) -> None:
    last_id, last_hash = connection.execute("SELECT last_id, hash FROM audit_head").fetchone()
    rows, audit = [], []
    for row, signing, signed in _copies(first, numbers):
        rows.append(row)
        for event, fields in (("signing", signing), ("signed", signed)):
            last_id += 1
            text = json.dumps(fields, separators=(",", ":"))
            numbered = _NUMBERS.pack(last_id, first.at_ms, len(event))
            last_hash = hashlib.sha256(last_hash + numbered + event.encode() + text.encode()).digest()
            audit.append((last_id, first.at_ms, event, text, last_hash))
    places = ", ".join(f":{name}" for name in first.row)
    names = ", ".join(f'"{name}"' for name in first.row)
    connection.executemany(f"INSERT INTO issuance ({names}) VALUES ({places})", rows)  # noqa: S608  # its own columns
    connection.executemany("INSERT INTO audit (id, at_ms, event, fields, hash) VALUES (?, ?, ?, ?, ?)", audit)
    connection.execute("UPDATE audit_head SET last_id = ?, hash = ?", (last_id, last_hash))


def _copies(first: _First, numbers: range) -> Iterator[tuple[_Row, _Row, _Row]]:
    """Yield the ledger's row of each copy, and what the audit tells of it."""
    found = re.search(r"([a-z]+)\d{7}", first.row["subject"])
    assert found is not None, first.row["subject"]
    old_name = found.group()
    for number in numbers:
        new_name = f"{found.group(1)}{number:07}"
        serial = new_serial()
        tbs = first.row["tbs"].replace(first.row["serial"], serial).replace(old_name.encode(), new_name.encode())
        csr, key = hashlib.sha256(serial + b"csr").digest(), hashlib.sha256(serial + b"key").digest()
        row = first.row | {
            "serial": serial,
            "subject": first.row["subject"].replace(old_name, new_name),
            "tbs": tbs,
            "csr_sha256": csr,
            "key_sha256": key,
            "request_digest": hashlib.sha256(csr + first.row["user"].encode()).digest(),
            "recorded_ms": first.at_ms,
            "issued_ms": first.at_ms,
        }
        changed = {"serial": serial.hex(), "subject": row["subject"], "tbs_sha256": hashlib.sha256(tbs).hexdigest()}
        changed |= {"csr_sha256": csr.hex(), "key_sha256": key.hex()}
        certificate = assemble(tbs, first.row["signature"])
        done = {"serial": serial.hex(), "certificate_sha256": hashlib.sha256(certificate).hexdigest()}
        yield row, first.signing | changed, first.signed | done


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]))
