"""The audit through an agent's life: clocks, ledgers of before, and many who write at the same time."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from support.agents import START, Time, open_agent, request
from support.audits import complaint, ledger_of, sign
from support.csrs import make_csr
from support.processes import port_of, run, start_agent
from support.raw_asker import RawAsker
from support.version_1 import VERSION_1

from protocol.records import Signed
from runtime.clock import milliseconds, utc_now
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.issuances import digest_of
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.schema import reading, writing

CSR = make_csr()
WRITERS = 3
ROWS_EACH = 700
REVOKED = 8


def test_ledger_of_version_1_is_taken_over(tmp_path: Path) -> None:
    """A ledger without an audit gets one that tells of what is in it; it verifies, answers again, and serves on."""
    time, key = Time(), bytes(15) + b"1"
    with open_agent(tmp_path, time) as agent:
        serials = [sign(agent, CSR, "hmc1", key), sign(agent, make_csr(key="p384"))]
    with closing(sqlite3.connect(ledger_of(tmp_path))) as new, closing(sqlite3.connect(tmp_path / "old")) as old:
        old.executescript("PRAGMA journal_mode = WAL;" + VERSION_1)
        for table in ("issuance", "idempotency"):
            names = ", ".join(row[1] for row in old.execute(f"PRAGMA table_info({table})"))
            rows = new.execute(f"SELECT {names} FROM {table}").fetchall()  # noqa: S608  # ours
            marks = ", ".join("?" * len(names.split(",")))
            old.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608  # ours
        pending = "SELECT 3, zeroblob(17), 'pending', 1, 'p', 'u', 'm', 'a', ?, zeroblob(32), zeroblob(32)"
        old.execute(f"INSERT INTO issuance {pending}, 's', 0, 1, 2, NULL, x'00', NULL", (digest_of("u", bytes(32)),))
        old.commit()
    ledger_of(tmp_path).unlink()
    (tmp_path / "old").rename(ledger_of(tmp_path))

    time.advance(minutes=1)
    with open_agent(tmp_path, time) as agent:
        events = [row.event for row in agent.ledger.read(lambda connection: list(audit_chain.rows(connection)))]
        assert events == [b"signing", b"signed", b"signing", b"signed", b"signing", b"intents abandoned"]
        assert sign(agent, CSR) == serials[0]
        assert sign(agent, CSR, "hmc1", key) == serials[0]
        assert sign(agent, CSR, "another") not in serials
        assert agent.failures == []
    with writing(tmp_path) as connection:
        told = complaint(connection)
        assert told == ""
        connection.exec_driver_sql("UPDATE issuance SET issued_ms = issued_ms + 1 WHERE id = 1")
        assert serials[0].hex() in complaint(connection)


def test_ledger_of_version_1_under_a_command(tmp_path: Path) -> None:
    """A command does not touch a ledger of version 1, and says who does."""
    with closing(sqlite3.connect(ledger_of(tmp_path))) as old:
        old.executescript(VERSION_1)
    done = run("vmi-agent", "audit", "verify", "--state-dir", str(tmp_path))

    assert (done.returncode, "an agent of this version updates it" in done.stderr) == (1, True)


def test_clock_before_the_last_row(tmp_path: Path) -> None:
    """An agent starts at the time of the last row, and not a millisecond before it."""
    Ledger(tmp_path, START).close()
    with writing(tmp_path) as connection:
        audit_chain.append(connection, [Event("stopped", milliseconds(START), {})])

    with pytest.raises(LedgerUnavailable, match="audit accept-clock"):
        Ledger(tmp_path, START - timedelta(milliseconds=1))
    Ledger(tmp_path, START).close()
    Ledger(tmp_path, START + timedelta(milliseconds=1)).close()


def test_clock_is_accepted(tmp_path: Path) -> None:
    """An agent does not start on a clock before the last row; after `accept-clock` it does, and the audit tells."""
    with start_agent(tmp_path, 0, "--key-type", "p256") as agent:
        agent.wait_for("ready")
        assert agent.stop() == 0
    with writing(tmp_path) as connection:
        audit_chain.append(connection, [Event("stopped", milliseconds(utc_now() + timedelta(days=3650)), {})])
    with start_agent(tmp_path) as agent:
        assert "audit accept-clock" in agent.wait_for("cannot start")["reason"]
        assert agent.wait() == 1
    assert "Traceback" not in "".join(agent.lines)

    assert run("vmi-agent", "audit", "accept-clock", "--state-dir", str(tmp_path)).returncode == 0
    with start_agent(tmp_path) as agent:
        agent.wait_for("ready")
        assert agent.stop() == 0
    with reading(tmp_path) as connection:
        assert complaint(connection) == ""
        events = [row.event for row in audit_chain.rows(connection)]
    assert b"clock accepted" in events


WRITER = """
import sys
from pathlib import Path
from vmi_agent.ledger.audit.chain import Event, append
from vmi_agent.ledger.schema import writing
for number in range(int(sys.argv[2])):
    with writing(Path(sys.argv[1])) as connection:
        append(connection, [Event("tested", number, {"by": sys.argv[3]})])
"""


def test_audit_of_many_writers(tmp_path: Path) -> None:
    """Several processes and a serving agent write thousands of rows at once; each is there, and the chain holds."""
    with start_agent(tmp_path, 0, "--key-type", "p256") as agent:
        port = port_of(agent.wait_for("ready")["listen"][0])
        with RawAsker(port) as asker:
            asker.ask(*(request(CSR, user=f"early{number}") for number in range(REVOKED)))
            assert all(isinstance(each, Signed) for each in asker.answers(REVOKED).values())
            command = [sys.executable, "-c", WRITER, str(tmp_path), str(ROWS_EACH)]
            writers = [subprocess.Popen([*command, str(number)]) for number in range(WRITERS)]
            asker.ask(*(request(CSR, user=f"late{number}") for number in range(200)))
            revoked = revoke_all(tmp_path)
            answers = asker.answers(REVOKED + 200)
            assert [writer.wait(100) for writer in writers] == [0] * WRITERS
        assert agent.stop() == 0
    assert revoked == [0] * REVOKED
    assert sum(isinstance(each, Signed) for each in answers.values()) == REVOKED + 200
    with reading(tmp_path) as connection:
        assert complaint(connection) == ""
        rows = [(row.event, json.loads(row.fields)) for row in audit_chain.rows(connection)]
    assert sum(event == b"tested" for event, _ in rows) == WRITERS * ROWS_EACH
    assert sum(event == b"revoked" for event, _ in rows) == REVOKED
    assert sum(event == b"signed" for event, _ in rows) == REVOKED + 200


def revoke_all(state: Path) -> list[int]:
    """Revoke the first certificates, one command each; return their statuses."""
    listed = json.loads(
        run("vmi-agent", "certs", "list", "--json", "--limit", str(REVOKED), "--state-dir", str(state)).stdout
    )
    return [
        run("vmi-agent", "certs", "revoke", each["serial"], "--state-dir", str(state)).returncode for each in listed
    ]
