"""The ledger beside the audit: what is changed in a certificate's row is found, what was pruned is not missed."""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from support.agents import START, Agent, Time, open_agent
from support.audits import complaint, drop_constraints, flipped, ledger_of, sign, tampering
from support.csrs import make_csr
from support.intents import make_intent

from runtime.clock import milliseconds
from vmi_agent.ledger.queries import prune
from vmi_agent.ledger.revocation import Reason, release, revoke
from vmi_agent.ledger.schema import issuance, reading

NOW_MS = milliseconds(START)
COLUMNS = [column.name for column in issuance.columns if column.name != "id"]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a ledger with certificates in every state."""
    directory, time = tmp_path_factory.mktemp("ledger"), Time()
    with open_agent(directory, time) as agent:

        def mark(serial: bytes, reason: Reason | None) -> None:
            time.advance(seconds=1)
            now_ms = milliseconds(time())
            if reason is None:
                agent.ledger.change(lambda connection: release(connection, serial, now_ms, "tester"))
            else:
                agent.ledger.change(lambda connection: revoke(connection, serial, reason, now_ms, "tester"))

        for number in range(8):
            time.advance(seconds=1)
            serial = sign(agent, make_csr(key=f"p256/{number}"), f"hmc{number}", bytes(15) + bytes((number,)))
            if number in (2, 3, 4, 5):
                mark(serial, Reason.certificateHold)
            if number in (3, 4):
                mark(serial, None)
            if number in (4, 5):
                mark(serial, Reason.superseded)
        agent.ledger.record_intent(make_intent(1))
    with open_agent(directory, time) as agent:
        agent.ledger.record_intent(make_intent(2))
    drop_constraints(ledger_of(directory))
    return ledger_of(directory)


@pytest.fixture
def tampered(ledger: Path) -> Iterator[Connection]:
    """Yield a transaction on that ledger, undone at the end."""
    with tampering(ledger) as connection:
        assert complaint(connection) == ""
        yield connection


def rows(connection: Connection) -> list[Any]:
    """Return the certificates' rows."""
    return list(connection.exec_driver_sql("SELECT * FROM issuance ORDER BY id"))


@pytest.mark.parametrize("column", COLUMNS)
def test_ledger_column_changed(tampered: Connection, column: str) -> None:
    """Whatever is changed in any column of a certificate's row is found, and the certificate is named."""
    pick = random.Random(11)  # noqa: S311  # which bits are tried
    for row in rows(tampered):
        value = getattr(row, column)
        others: list[Any] = [None, b"", "", 5, 1.5, "1", b"1", -1]
        if isinstance(value, bytes):
            others += [flipped(value, pick.randrange(8 * len(value))), value.decode("latin-1"), value + b"\0"]
        elif isinstance(value, str) and value:
            others += [flipped(value.encode(), 0).decode(), value.encode(), value + "\0", value + " "]
        elif isinstance(value, int):
            others += [value ^ 1 << pick.randrange(60), str(value), str(value).encode(), float(value)]
        for other in others:
            with tampered.begin_nested() as undo:
                statement = f"UPDATE issuance SET {column} = ? WHERE id = ?"  # noqa: S608  # our columns
                tampered.exec_driver_sql(statement, (other, row.id))
                stored = getattr(rows(tampered)[row.id - 1], column)
                if type(stored) is type(value) and stored == value:  # SQLite keeps '1' as 1 where it wants a number
                    undo.rollback()
                    continue
                told = complaint(tampered)
                assert "certificate" in told, (row.id, value, other)
                assert column == "serial" or row.serial.hex() in told, told
                undo.rollback()


def test_ledger_text_that_is_no_text(tampered: Connection) -> None:
    """A text that is not UTF-8 is told of without showing it."""
    tampered.exec_driver_sql("UPDATE issuance SET user = CAST(x'ff70617373' AS TEXT) WHERE id = 3")
    assert complaint(tampered) == "a certificate in the ledger cannot be read: its row was changed"


def test_ledger_row_removed(tampered: Connection) -> None:
    """Each row that is removed is missed, abandoned ones too."""
    for row in rows(tampered):
        with tampered.begin_nested() as undo:
            tampered.exec_driver_sql("DELETE FROM issuance WHERE id = ?", (row.id,))
            told = complaint(tampered)
            assert told.startswith("the certificate of audit row "), told
            assert told.endswith(" is missing from the ledger")
            undo.rollback()


@pytest.mark.parametrize("new_id", [-1, 0, 99])
def test_ledger_row_inserted_or_moved(tampered: Connection, new_id: int) -> None:
    """A row that nobody recorded, or one that has another place, is told of."""
    with tampered.begin_nested() as undo:
        others = ", ".join(COLUMNS[1:])
        tampered.exec_driver_sql(
            f"INSERT INTO issuance (id, serial, {others}) SELECT ?, zeroblob(17), {others} FROM issuance WHERE id = 2",  # noqa: S608
            (new_id,),
        )
        assert f"certificate {bytes(17).hex()}" in complaint(tampered)
        undo.rollback()
    tampered.exec_driver_sql("UPDATE issuance SET id = ? WHERE id = 4", (new_id,))
    assert "is not in its place in the ledger" in complaint(tampered)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE idempotency SET serial = (SELECT serial FROM issuance WHERE id = 1)",
        "UPDATE idempotency SET serial = zeroblob(17)",
        "UPDATE idempotency SET csr_sha256 = zeroblob(32)",
        "UPDATE idempotency SET csr_sha256 = NULL",
    ],
)
def test_ledger_idempotency_key_that_leads_elsewhere(tmp_path: Path, statement: str) -> None:
    """An idempotency key that leads to another CSR's certificate is told of."""
    with open_agent(tmp_path, Time()) as agent:
        sign(agent, make_csr())
        sign(agent, make_csr(key="p384"), key=bytes(15) + b"1")
    drop_constraints(ledger_of(tmp_path))
    with tampering(ledger_of(tmp_path)) as connection:
        assert complaint(connection) == ""
        connection.exec_driver_sql(statement)
        assert complaint(connection) == "1 idempotency keys in the ledger do not lead to the certificate of their CSR"


def test_ledger_index_that_lies(tmp_path: Path) -> None:
    """An index that hides a row from whoever looks one up is told of."""
    with open_agent(tmp_path, Time()) as agent:
        sign(agent, make_csr())
    with closing(sqlite3.connect(ledger_of(tmp_path), isolation_level=None)) as connection:
        [(digest,)] = connection.execute("SELECT request_digest FROM issuance")
        connection.execute("UPDATE issuance SET request_digest = zeroblob(32)")
        index = "FROM sqlite_master WHERE name = 'issuance_by_request'"
        kept = connection.execute("SELECT * " + index).fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE " + index)
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute("UPDATE issuance SET request_digest = ?", (digest,))
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", kept)
        connection.execute("PRAGMA writable_schema = RESET")
    with reading(tmp_path) as connection:
        assert complaint(connection).startswith("the ledger's file is damaged: ")


def test_ledger_after_pruning(tmp_path: Path) -> None:
    """What was pruned is not missed, revoked or not; what was removed beside it is, expired or not."""
    time = Time()
    with open_agent(tmp_path, time) as agent:
        serials = [sign(agent, make_csr(), f"hmc{number}") for number in range(4)]
        agent.ledger.change(lambda connection: revoke(connection, serials[0], Reason.superseded, NOW_MS, "me"))
        assert pruned_later(agent, time) == 4
        kept = sign(agent, make_csr(), "another")
        assert agent.ledger.read(complaint) == ""
        sign(agent, make_csr(key="p384"))
        agent.ledger.change(lambda connection: revoke(connection, kept, Reason.superseded, NOW_MS, "me"))
        assert agent.ledger.read(complaint) == ""
        agent.ledger.change(lambda connection: remove(connection, kept))
        assert agent.ledger.read(complaint).endswith("is missing from the ledger")
        assert pruned_later(agent, time) == 1
        assert agent.ledger.read(complaint) == "6 certificates are gone, the audit tells of 5 that were pruned"


def pruned_later(agent: Agent, time: Time) -> int:
    """Let all certificates end, then prune them; return how many they were."""
    time.advance(days=2000)
    ended_before, now_ms = time() - timedelta(days=1), milliseconds(time())
    return agent.ledger.change(lambda connection: prune(connection, ended_before, now_ms))


def remove(connection: Connection, serial: bytes) -> None:
    """Remove a certificate without telling anybody."""
    connection.exec_driver_sql("DELETE FROM issuance WHERE serial = ?", (serial,))
