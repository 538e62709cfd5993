"""The audit's chain: whatever is changed in it, `audit verify` says where."""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from support.agents import START
from support.audits import EVENTS, complaint, drop_constraints, flipped, ledger_of, make_full_audit, tampering
from support.processes import run

from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.audit.reconcile import AuditBroken
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.schema import reading

COLUMNS = ("id", "at_ms", "event", "fields", "hash")
FAR = 1 << 40
TABLES = ("audit", "audit_head", "issuance", "idempotency")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a state directory whose audit has every kind of event; its ledger is closed."""
    return make_full_audit(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def loose(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of its ledger without constraints."""
    copy = tmp_path_factory.mktemp("loose") / "ledger.sqlite"
    copy.write_bytes(ledger_of(state).read_bytes())
    drop_constraints(copy)
    return copy


@pytest.fixture
def tampered(loose: Path) -> Iterator[Connection]:
    """Yield a transaction on that copy, undone at the end."""
    with tampering(loose) as connection:
        assert complaint(connection) == ""
        yield connection


def cells(connection: Connection) -> list[tuple[Any, ...]]:
    """Return the audit's rows."""
    return [tuple(row) for row in connection.exec_driver_sql("SELECT * FROM audit ORDER BY id")]


def test_audit_tells_of_everything(state: Path) -> None:
    """Every kind of event is in the audit of a life, with who and why; it verifies, from the command line too."""
    with reading(state) as connection:
        rows = list(audit_chain.rows(connection))
        assert verify(connection).last_id == len(rows)
    events = {row.event.decode(): json.loads(row.fields) for row in rows}

    assert set(events) == EVENTS
    assert events["refused"] == {
        "code": "CSR_BAD_SIGNATURE",
        "reason": events["refused"]["reason"],
        "user": "mallory",
        "method": "test",
        "address": "192.0.2.1",
        "csr_sha256": events["refused"]["csr_sha256"],
    }
    assert events["refused"]["reason"]
    assert events["channel peer refused"]["peer"].startswith("tcp:127.0.0.1:")
    assert events["channel peer refused"]["reason"]
    assert events["revoked"]["by"] == "tester"
    done = run("vmi-agent", "audit", "verify", "--state-dir", str(state))
    assert (done.returncode, done.stdout.split(",")[0]) == (0, f"audit verified: {len(rows)} rows")


def test_audit_holds_no_secret(state: Path) -> None:
    """No row has a CSR, a certificate, a key or a passphrase in it."""
    with reading(state) as connection:
        text = b"".join(row.fields for row in audit_chain.rows(connection))
        octets = connection.exec_driver_sql("SELECT tbs, signature FROM issuance").all()

    assert octets
    for secret in (
        b"-----",
        b"MII",
        b"secret phrase",
        *(value.hex().encode() for row in octets for value in row if value),
    ):
        assert secret not in text
    assert max(len(word) for word in text.split(b'"')) <= 160


def test_audit_one_bit_flipped(tampered: Connection) -> None:
    """A flipped bit in any column of any row is found, and the row is named."""
    pick = random.Random(4)  # noqa: S311  # which bits are tried
    for row in cells(tampered):
        number = row[0]
        for name, value in zip(COLUMNS, row, strict=True):
            octets = value if isinstance(value, bytes) else None
            for _ in range(4):
                if name == "id":
                    other: Any = value ^ FAR << pick.randrange(20)
                    expected = f"audit row {number} is missing"
                elif octets is not None:
                    other, expected = (
                        flipped(octets, pick.randrange(8 * len(octets))),
                        f"audit row {number} was changed",
                    )
                elif isinstance(value, int):
                    other, expected = value ^ 1 << pick.randrange(63), f"audit row {number} was changed"
                else:
                    other = flipped(value.encode(), pick.randrange(8 * len(value.encode())))
                    expected = f"audit row {number} was changed"
                with tampered.begin_nested() as undo:
                    as_text = "CAST(? AS TEXT)" if isinstance(value, str) else "?"
                    statement = f"UPDATE audit SET {name} = {as_text} WHERE id = ?"  # noqa: S608  # our columns
                    tampered.exec_driver_sql(statement, (other, number))
                    assert complaint(tampered).startswith(expected), (name, value, other)
                    undo.rollback()


@pytest.mark.parametrize("value", [None, b"", b"\0", "", "1", 1.5, -1, 3, 1 << 62], ids=repr)
def test_audit_value_of_another_type(tampered: Connection, value: object) -> None:
    """A value of any other type in any column of any row is found, and the row is named."""
    for row in cells(tampered):
        for name in COLUMNS[1:]:
            with tampered.begin_nested() as undo:
                statement = f"UPDATE audit SET {name} = ? WHERE id = ?"  # noqa: S608  # our columns
                tampered.exec_driver_sql(statement, (value, row[0]))
                assert complaint(tampered) == f"audit row {row[0]} was changed"
                undo.rollback()


def test_audit_same_octets_of_another_type(tampered: Connection) -> None:
    """The same octets as a text or as a BLOB, or a number as a text, are found: a reader would stumble over them."""
    for row in cells(tampered):
        for name, kind in (("at_ms", "TEXT"), ("event", "BLOB"), ("fields", "BLOB"), ("hash", "TEXT")):
            with tampered.begin_nested() as undo:
                statement = f"UPDATE audit SET {name} = CAST({name} AS {kind}) WHERE id = ?"  # noqa: S608  # ours
                tampered.exec_driver_sql(statement, (row[0],))
                assert complaint(tampered) == f"audit row {row[0]} was changed", name
                undo.rollback()


def test_audit_row_removed(tampered: Connection) -> None:
    """Each single row that is removed is named, the last one too."""
    rows = cells(tampered)
    for number, *_ in rows:
        with tampered.begin_nested() as undo:
            tampered.exec_driver_sql("DELETE FROM audit WHERE id = ?", (number,))
            at_the_end = f": the chain went on to row {number}" if number == len(rows) else ""
            assert complaint(tampered) == f"audit row {number} is missing{at_the_end}"
            undo.rollback()


def test_audit_cut_off_with_its_head(tampered: Connection) -> None:
    """Last rows that are removed together with the record of the end are missed by whoever has an anchor."""
    rows = cells(tampered)
    for last in (len(rows) - 1, 0):
        tampered.exec_driver_sql("DELETE FROM audit WHERE id > ?", (last,))
        tampered.exec_driver_sql("DELETE FROM audit_head")
        if last:
            tampered.exec_driver_sql("INSERT INTO audit_head VALUES (1, ?, ?)", (last, rows[last - 1][4]))
            assert complaint(tampered) == ""
        expected = f"audit row {last + 1} is missing: the chain went on to row {len(rows)}"
        assert complaint(tampered, {len(rows): rows[-1][4]}) == expected


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (["UPDATE audit SET id = -1 WHERE id = 3", "UPDATE audit SET id = 3 WHERE id = 4",
          "UPDATE audit SET id = 4 WHERE id = -1"], "row 3 was changed"),
        (["UPDATE audit SET id = id + 1000 WHERE id >= 5", "UPDATE audit SET id = id - 999 WHERE id >= 1005",
          "INSERT INTO audit SELECT 5, at_ms, event, fields, hash FROM audit WHERE id = 4"], "row 5 was changed"),
        (["INSERT INTO audit SELECT 0, at_ms, event, fields, hash FROM audit WHERE id = 1"], "row 1 was changed"),
        (["INSERT INTO audit SELECT -5, at_ms, event, fields, hash FROM audit WHERE id = 1"], "row 1 was changed"),
        (["INSERT INTO audit SELECT 47, at_ms, event, fields, hash FROM audit WHERE id = 46"], "row 47 was changed"),
        (["INSERT INTO audit SELECT 99, at_ms, event, fields, hash FROM audit WHERE id = 46"], "row 47 is missing"),
        (["UPDATE audit SET id = id + 1000", "UPDATE audit SET id = id - 999"], "row 1 is missing"),
        (["DELETE FROM audit WHERE id = 9", "UPDATE audit SET id = id - 1 WHERE id > 9"], "row 9 was changed"),
        (["DELETE FROM audit"], "row 1 is missing: the chain went on to row 46"),
        (["DELETE FROM audit_head"], "the audit ends with row 46, and the record of its end says something else"),
        (["INSERT INTO audit_head SELECT 2, last_id, hash FROM audit_head"], "the record of its end"),
        (["UPDATE audit_head SET last_id = 42"], "the record of its end says something else"),
        (["UPDATE audit_head SET last_id = 47"], "row 47 is missing: the chain went on to row 47"),
        (["UPDATE audit_head SET last_id = NULL"], "the record of its end says something else"),
        (["UPDATE audit_head SET last_id = CAST(last_id AS BLOB)"], "the record of its end says something else"),
        (["UPDATE audit_head SET hash = NULL"], "the record of its end says something else"),
        (["UPDATE audit_head SET hash = CAST(hash AS TEXT)"], "the record of its end says something else"),
        (["UPDATE audit_head SET hash = zeroblob(32)"], "the record of its end says something else"),
        (["UPDATE audit_head SET hash = 7"], "the record of its end says something else"),
        (["DROP TABLE audit_head"], "the ledger cannot be read: no such table: audit_head"),
        (["DROP TABLE audit"], "audit row 1 cannot be read: no such table: audit"),
        (["ALTER TABLE audit RENAME hash TO hashes"], "audit row 1 cannot be read: no such column: hash"),
        (["ALTER TABLE issuance RENAME reason TO cause"], "cannot be read"),
        (["DROP TABLE issuance"], "cannot be read"),
    ],
)  # fmt: skip
def test_audit_rearranged(tampered: Connection, statements: list[str], told: str) -> None:
    """Rows swapped, repeated, inserted, renumbered, and a head that was changed: the first bad place is named."""
    assert len(cells(tampered)) == 46  # as the statements count
    for statement in statements:
        tampered.exec_driver_sql(statement)
    assert told in complaint(tampered)


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("signed", "{}"),
        ("signed", "[]"),
        ("signing", '{"serial": 7}'),
        ("signing", '{"serial": "zz", "not_after": 0}'),
        ("revoked", '"text"'),
        ("pruned", '{"count": "many", "not_after_before": null}'),
        ("released", "not JSON"),
        ("started", "[" * 100_000),
        ("signed", '{"serial": [1]}'),
    ],
)
def test_audit_made_anew_with_nonsense(tampered: Connection, event: str, fields: str) -> None:
    """A row whose hash is right and that no agent wrote is named, whatever it holds."""
    head = audit_chain.read_head(tampered)
    number = head.last_id + 1
    digest = audit_chain.link_of(audit_chain.Row(number, 1, event.encode(), fields.encode(), b""), head.hash)
    tampered.exec_driver_sql("INSERT INTO audit VALUES (?, 1, ?, ?, ?)", (number, event, fields, digest))
    tampered.exec_driver_sql("UPDATE audit_head SET last_id = ?, hash = ?", (number, digest))

    assert complaint(tampered).startswith(f"audit row {number} does not hold what its event tells")


def content(ledger: Path) -> list[list[tuple[Any, ...]]]:
    """Return what is in a ledger's tables."""
    with closing(sqlite3.connect(ledger)) as connection:
        return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES]  # noqa: S608  # ours


def test_audit_bit_flipped_in_the_file(state: Path, tmp_path: Path) -> None:
    """A bit flipped in the file's pages that hold the audit is told of, or changes nothing of what is read back."""
    whole = ledger_of(state).read_bytes()
    expected = content(ledger_of(state))
    page_size = int.from_bytes(whole[16:18])
    with reading(state) as connection:
        marks = [mark for row in audit_chain.rows(connection) for mark in (row.hash, row.fields)]
    pages = sorted({whole.index(mark) // page_size for mark in marks} | {0})
    pick = random.Random(7)  # noqa: S311  # which bits are tried
    copy = ledger_of(tmp_path)
    told: list[str] = []
    for _ in range(400):
        bit = pick.choice(pages) * page_size * 8 + pick.randrange(page_size * 8)
        copy.write_bytes(flipped(whole, bit))
        try:
            with reading(tmp_path) as connection:
                verify(connection)
        except (AuditBroken, LedgerUnavailable) as broken:
            told.append(str(broken))
        else:
            assert content(copy) == expected, bit
        for path in tmp_path.iterdir():
            path.unlink()

    assert sum("audit row " in text for text in told) > 100


@pytest.mark.parametrize("at", ["hash", "header", "schema"])
def test_audit_verify_says_where_in_one_line(state: Path, tmp_path: Path, at: str) -> None:
    """The command ends with status 1 and one line that says what is wrong."""
    whole = ledger_of(state).read_bytes()
    with reading(state) as connection:
        place = {"hash": whole.index(list(audit_chain.rows(connection))[8].hash), "header": 0, "schema": 100}[at]
    ledger_of(tmp_path).write_bytes(flipped(whole, place * 8))

    done = run("vmi-agent", "audit", "verify", "--state-dir", str(tmp_path))

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("Error: audit row 9 was changed" if at == "hash" else "Error: ledger ")


# What `audit verify` holds against the ledger beside the events of a full audit: such a row needs one.
OTHER_EVENTS = frozenset({"signing resumed"})
# Anything that JSON holds, halves of surrogate pairs too.
TEXT = st.text(st.characters(), max_size=200) | st.integers(0, 20_000).map("ß".__mul__)
ROWS = st.lists(
    st.builds(
        Event,
        st.text(max_size=40).filter(lambda name: name not in EVENTS | OTHER_EVENTS),
        st.integers(0, (1 << 63) - 1),
        st.dictionaries(
            TEXT, st.none() | st.booleans() | st.integers() | TEXT | st.lists(TEXT, max_size=2), max_size=4
        ),
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a ledger without a row."""
    directory = tmp_path_factory.mktemp("empty")
    Ledger(directory, START).close()
    return ledger_of(directory)


@settings(max_examples=150, deadline=None)
@given(batches=st.lists(ROWS, min_size=1, max_size=3), data=st.data())
def test_audit_of_anything(empty: Path, batches: list[list[Event]], data: st.DataObject) -> None:
    """Whatever is told, in whatever words, verifies and is read back; after any one change it does not verify."""
    with tampering(empty) as connection:
        for batch in batches:
            audit_chain.append(connection, batch)
        assert complaint(connection) == ""
        events = [event for batch in batches for event in batch]
        rows = list(audit_chain.rows(connection))
        assert [(row.event.decode(), row.at_ms, json.loads(row.fields)) for row in rows] == [
            (event.name, event.at_ms, event.fields) for event in events
        ]

        number = data.draw(st.integers(1, len(events)))
        column = data.draw(st.sampled_from(COLUMNS[1:]))
        value = data.draw(st.integers(0, (1 << 63) - 1) if column == "at_ms" else st.binary(max_size=64))
        kind = "TEXT" if column in ("event", "fields") else "NUMERIC" if column == "at_ms" else "BLOB"
        changed = connection.exec_driver_sql(
            f"UPDATE audit SET {column} = CAST(? AS {kind}) WHERE id = ? AND {column} <> CAST(? AS {kind})",  # noqa: S608
            (value, number, value),
        )
        assert complaint(connection) == (f"audit row {number} was changed" if changed.rowcount else "")
