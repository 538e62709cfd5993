"""The agent's state on disk: CA, key file, ledger and lock, and what is refused of it."""

import os
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection
from support.agents import START, Time, always, create_ca, issuing, load_ca, request
from support.csrs import make_csr
from support.intents import make_intent
from support.processes import start_agent

from runtime import state_dir
from runtime.clock import milliseconds
from runtime.errors import StartError
from vmi_agent.ca import authority
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.keys import CustodyError
from vmi_agent.ledger import issuances
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.queries import Filter, list_certificates
from vmi_agent.ledger.schema import FILE_NAME, open_ledger, reading


def mode(path: Path) -> int:
    """Return a file's permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_create_authority_is_private(tmp_path: Path) -> None:
    """Key 0600, directories 0700, and nothing left of the making."""
    create_ca(tmp_path)

    assert mode(tmp_path / "ca" / "1" / "key.pem") == 0o600
    assert {mode(tmp_path / "ca"), mode(tmp_path / "ca" / "1")} == {0o700}
    assert [entry.name for entry in (tmp_path / "ca").iterdir()] == ["1"]


def test_create_authority_again_is_the_next_generation(tmp_path: Path) -> None:
    """A second CA gets a number, a name and a key of its own; the first stays where it is."""
    first = create_ca(tmp_path)
    second = create_ca(tmp_path)

    assert (first.generation, second.generation) == (1, 2)
    assert first.root.subject != second.root.subject
    assert load_ca(tmp_path).root == second.root
    assert (tmp_path / "ca" / "1" / "key.pem").exists()


def test_create_authority_over_a_killed_creation(tmp_path: Path) -> None:
    """What a killed creation left is neither taken for a CA nor in the way."""
    (tmp_path / "ca" / ".1.new").mkdir(parents=True)
    (tmp_path / "ca" / ".1.new" / "key.pem").write_text("half a key")
    assert not authority.exists(tmp_path)

    assert create_ca(tmp_path).generation == 1


@pytest.mark.parametrize("open_to", [stat.S_IRGRP, stat.S_IROTH, stat.S_IWGRP, stat.S_IXOTH])
def test_load_authority_with_a_key_open_to_others(tmp_path: Path, open_to: int) -> None:
    """Any right of group or others on the key file is refused, with the command that mends it."""
    create_ca(tmp_path)
    key = tmp_path / "ca" / "1" / "key.pem"
    key.chmod(0o600 | open_to)
    with pytest.raises(CustodyError, match="chmod 600"):
        load_ca(tmp_path)

    key.chmod(0o400)
    assert load_ca(tmp_path).generation == 1


def test_load_authority_with_a_key_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key file that belongs to somebody else is refused."""
    create_ca(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(CustodyError, match="this process runs as 12345"):
        load_ca(tmp_path)


@pytest.mark.parametrize("key", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_load_authority_with_a_broken_key(tmp_path: Path, key: bytes) -> None:
    """A file that holds no key is told as that, without its contents."""
    create_ca(tmp_path)
    (tmp_path / "ca" / "1" / "key.pem").write_bytes(key)
    with pytest.raises(CustodyError, match="not a private key in PEM"):
        load_ca(tmp_path)


def test_load_authority_with_another_cas_key(tmp_path: Path) -> None:
    """Key and root must belong together."""
    create_ca(tmp_path)
    create_ca(tmp_path)
    (tmp_path / "ca" / "1" / "key.pem").replace(tmp_path / "ca" / "2" / "key.pem")
    with pytest.raises(CustodyError, match="do not belong together"):
        load_ca(tmp_path)


@pytest.mark.parametrize("missing", ["key.pem", "root.pem"])
def test_load_authority_with_a_file_missing(tmp_path: Path, missing: str) -> None:
    """A missing file is named."""
    create_ca(tmp_path)
    (tmp_path / "ca" / "1" / missing).unlink()
    with pytest.raises(CustodyError, match=missing):
        load_ca(tmp_path)


def test_load_authority_where_there_is_none(tmp_path: Path) -> None:
    """Without a CA the advice is how to make one."""
    with pytest.raises(CustodyError, match="vmi-agent ca init"):
        load_ca(tmp_path)


def test_ledger_of_another_version(tmp_path: Path) -> None:
    """A ledger of a version that this agent does not know is not touched."""
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerUnavailable, match="99"):
        Ledger(tmp_path, START)


def test_ledger_that_is_no_database(tmp_path: Path) -> None:
    """A file that is not SQLite's is refused."""
    (tmp_path / FILE_NAME).write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerUnavailable, match="not a database"):
        Ledger(tmp_path, START)


def test_ledger_that_cannot_be_written(tmp_path: Path) -> None:
    """While another process holds the ledger, nothing is issued; once it lets go, issuing resumes by itself."""
    with issuing(tmp_path, Time()) as (opened, _):
        opened.issue(request(make_csr()), always)
        other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        csr = make_csr()
        with pytest.raises(LedgerUnavailable, match="locked"):
            opened.issue(request(csr), always)
        other.execute("ROLLBACK")
        other.close()

        assert len(opened.issue(request(csr), always).chain) == 2
    assert len(list(list_certificates(tmp_path, Filter(), START))) == 2


@pytest.mark.parametrize("instead", ["nothing", "another file"])
def test_ledger_that_is_replaced_under_the_agent(tmp_path: Path, instead: str) -> None:
    """Where the file is gone, or another one in its place, nothing is issued into what nobody can read."""
    path = tmp_path / FILE_NAME
    with issuing(tmp_path, Time()) as (opened, _):
        path.rename(tmp_path / "moved")
        if instead == "another file":
            path.touch()
        with pytest.raises(LedgerUnavailable, match=r"ledger\.sqlite"):
            opened.issue(request(make_csr()), always)
        path.unlink(missing_ok=True)
        (tmp_path / "moved").rename(path)
        assert len(opened.issue(request(make_csr()), always).chain) == 2


def test_ledger_error_says_nothing_of_its_rows(tmp_path: Path) -> None:
    """What a ledger error says holds neither the statement nor its parameters."""
    with issuing(tmp_path, Time()) as (opened, _):
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as other, other:
            other.execute("DROP TABLE idempotency")
            other.execute("ALTER TABLE issuance RENAME TO gone")
        with pytest.raises(LedgerUnavailable) as caught:
            opened.issue(request(make_csr(), user="somebody"), always)
    assert str(caught.value) == "no such table: issuance"


def test_ledger_is_for_its_user_alone(tmp_path: Path) -> None:
    """Also where somebody touched it with another mask; what SQLite puts beside it as well."""
    (tmp_path / FILE_NAME).touch(mode=0o644)
    ledger = Ledger(tmp_path, START)
    try:
        assert ledger.is_new
        assert {mode(path) for path in tmp_path.iterdir()} == {0o600}
    finally:
        ledger.close()


def test_agent_on_a_ledger_begun_anew(tmp_path: Path) -> None:
    """Who takes the way out that forgets all revocations is told so, and the audit tells it."""
    create_ca(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).touch()
    with start_agent(tmp_path) as agent:
        agent.wait_for("ledger begun anew: what was issued and revoked before is forgotten; rotate the CA")
        agent.wait_for("ready")
        assert agent.stop() == 0

    with reading(tmp_path) as connection:
        assert next(audit_chain.rows(connection)).event == b"ledger begun anew"


def test_threads_write_one_at_a_time(tmp_path: Path) -> None:
    """Who writes from several threads at once gets in, each in its turn; where the ledger is held, all are told so."""
    create_ca(tmp_path)
    ledger = Ledger(tmp_path, START)
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    try:
        with ThreadPoolExecutor(8) as pool:
            other.execute("BEGIN IMMEDIATE")
            recorded = [pool.submit(ledger.record_intent, make_intent(number)) for number in range(2)]
            assert all(isinstance(each.exception(), LedgerUnavailable) for each in recorded)
            other.execute("ROLLBACK")
            recorded = [pool.submit(ledger.record_intent, make_intent(number)) for number in range(40)]
            assert [each.result() for each in recorded] == [issuances.Recorded()] * 40
    finally:
        other.close()
        ledger.close()


def test_ledger_that_is_closed_under_a_write(tmp_path: Path) -> None:
    """What is being written then is on the disk, and whoever wrote it is told so; the ledger closes after it."""
    ledger = Ledger(tmp_path, START)
    begun, may_end, closed = threading.Event(), threading.Event(), threading.Event()

    def note(connection: Connection) -> str:
        audit_chain.append(connection, [audit_chain.Event("slow", milliseconds(START), {})])
        begun.set()
        assert may_end.wait(60)
        return "written"

    def close() -> None:
        ledger.close()
        closed.set()

    with ThreadPoolExecutor(2) as pool:
        written = pool.submit(ledger.change, note)
        assert begun.wait(60)
        closing_it = pool.submit(close)
        was_closed = closed.wait(0.2)
        may_end.set()
        assert written.result() == "written"
        closing_it.result()
    assert not was_closed
    with reading(tmp_path) as connection:
        assert [row.event for row in audit_chain.rows(connection)] == [b"slow"]


def test_ledger_is_durable(tmp_path: Path) -> None:
    """Write-ahead log, and a sync with every commit."""
    engine = open_ledger(tmp_path / FILE_NAME, for_writing=True)
    with engine.connect() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    engine.dispose()

    assert found == ["wal", 2]


def test_state_dir_is_claimed_by_one(tmp_path: Path) -> None:
    """A second claim is refused while the first holds, and granted afterwards."""
    lock = state_dir.claim(tmp_path / "state")
    assert mode(tmp_path / "state") == 0o700
    with pytest.raises(StartError, match="in use"):
        state_dir.claim(tmp_path / "state")

    lock.release()
    state_dir.claim(tmp_path / "state").release()


@pytest.mark.parametrize("writable_for", [stat.S_IWGRP, stat.S_IWOTH])
def test_state_dir_that_others_can_write(tmp_path: Path, writable_for: int) -> None:
    """Who can write the directory can put another CA there, so it is refused."""
    tmp_path.chmod(0o700 | writable_for)
    with pytest.raises(StartError, match="chmod 700"):
        state_dir.claim(tmp_path)


def test_state_dir_that_is_a_file(tmp_path: Path) -> None:
    """What cannot be a directory is named."""
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="file"):
        state_dir.claim(tmp_path / "file")


def test_state_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is another user's is refused, with what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)

    with pytest.raises(StartError, match="Run it as the directory's owner"):
        state_dir.claim(tmp_path)
