"""The block list in the ledger: held against the audit, brought up to date, carried to others, and killed."""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from support.agents import Agent, Time, open_agent
from support.audits import complaint, drop_constraints, flipped, ledger_of, tampering
from support.blocking import CSR, KEY, REFUSED, SIGNED, answer, block, code, release, revoke, serial_in, unblock
from support.crashes import crash_command, kept, state_with_ca
from support.csrs import make_csr
from support.processes import run, start_agent

from runtime.clock import milliseconds, utc_now
from vmi_agent.backup.backup import back_up
from vmi_agent.backup.later_revocations import Later
from vmi_agent.backup.restore import Check, restore
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import blocked_keys
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.blocked_keys import BlockListRefused, export_blocked, import_blocked
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import reading, writing

HASHES = [number.to_bytes(32) for number in range(1, 101)]


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


@pytest.fixture
def agent(tmp_path: Path, time: Time) -> Iterator[Agent]:
    """Open an agent."""
    with open_agent(tmp_path, time) as opened:
        yield opened


# Held against the audit


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a ledger whose block list has every kind of row, and has had others."""
    directory, time = tmp_path_factory.mktemp("ledger"), Time()
    with open_agent(directory, time) as agent:
        serials = [serial_in(answer(agent, make_csr(key=f"p256/{number}"))) for number in range(4)]
        for serial, reason in zip(serials, ["certificateHold", "certificateHold", "keyCompromise"], strict=False):
            time.advance(seconds=1)
            revoke(agent, time, serial, Reason[reason])
        release(agent, time, serials[0])
        block(agent, time, HASHES[0])
        block(agent, time, HASHES[1])
        unblock(agent, time, HASHES[0])
        lines = list(agent.ledger.read(lambda it: list(export_blocked(it))))
        lines.append(lines[0].replace(json.loads(lines[0])["key_sha256"], HASHES[2].hex()))
        agent.ledger.change(lambda it: import_blocked(it, lines, milliseconds(time()) + 1, "tester"))
    drop_constraints(ledger_of(directory))
    return ledger_of(directory)


@pytest.fixture
def tampered(ledger: Path) -> Iterator[Connection]:
    """Yield a transaction on that ledger, undone at the end."""
    with tampering(ledger) as connection:
        assert complaint(connection) == ""
        yield connection


def rows(connection: Connection) -> list[Any]:
    """Return the list's rows."""
    return list(connection.exec_driver_sql("SELECT * FROM blocked_key ORDER BY key_sha256, serial"))


@pytest.mark.parametrize("column", ["key_sha256", "serial", "reason", "blocked_ms"])
def test_block_changed(tampered: Connection, column: str) -> None:
    """Whatever is changed in any column of the list is found."""
    pick = random.Random(13)  # noqa: S311  # which bits are tried
    assert len(rows(tampered)) == 4
    for row in rows(tampered):
        value = getattr(row, column)
        others: list[Any] = [b"", "", 5, 1.5, "1", b"1", -1]
        if isinstance(value, bytes):
            others += [flipped(value or b"0", pick.randrange(8)), value.decode("latin-1"), value + b"\0"]
        elif isinstance(value, str):
            others += [flipped(value.encode(), 0).decode(), value.encode(), value + " "]
        else:
            others += [value + 1, str(value), float(value)]
        for other in others:
            if type(other) is type(value) and other == value:
                continue
            with tampered.begin_nested() as undo:
                statement = f"UPDATE blocked_key SET {column} = ? WHERE key_sha256 = ? AND serial = ?"  # noqa: S608
                tampered.exec_driver_sql(statement, (other, row.key_sha256, row.serial))
                assert "block of " in complaint(tampered), (row, other)
                undo.rollback()


def test_block_removed_or_added(tampered: Connection) -> None:
    """Each row that is removed is missed and named, and one that nobody blocked is named as well."""
    for row in rows(tampered):
        with tampered.begin_nested() as undo:
            statement = "DELETE FROM blocked_key WHERE key_sha256 = ? AND serial = ?"
            tampered.exec_driver_sql(statement, (row.key_sha256, row.serial))
            told = complaint(tampered)
            assert told.startswith(f"the block of key {row.key_sha256.hex()} of audit row "), told
            assert told.endswith(" is missing from the ledger")
            undo.rollback()
    tampered.exec_driver_sql("INSERT INTO blocked_key VALUES (?, ?, 'x', 1)", (bytes(32), b""))
    expected = f"the audit does not tell of the block of key {bytes(32).hex()}, which is in the ledger"
    assert complaint(tampered) == expected


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("key unblocked", {"key": "00" * 32, "reason": "x"}),
        ("key unblocked", {}),
        ("keys blocked", {"count": 2, "keys": ["00" * 32], "reason": "x"}),
        ("keys blocked", {"count": 1, "keys": ["no hash"], "reason": "x"}),
        ("keys blocked", {"count": 1, "keys": 5}),
    ],
)
def test_block_in_an_audit_that_was_made(tampered: Connection, event: str, fields: dict[str, object]) -> None:
    """A chain that somebody made whole, and that tells of blocks that never were, is found."""
    audit_chain.append(tampered, [Event(event, 1, fields)])
    told = complaint(tampered)
    assert told.startswith("audit row "), told
    assert "Traceback" not in told


# A ledger of version 2


def as_version_2(state_dir: Path) -> None:
    """Make the ledger one of version 2: without a block list."""
    with closing(sqlite3.connect(ledger_of(state_dir))) as connection:
        connection.execute("DROP TABLE blocked_key")
        connection.execute("PRAGMA user_version = 2")


def revoke_as_version_2(connection: Connection, serial: bytes, reason: Reason, now_ms: int) -> None:
    """Revoke as an agent of version 2 did."""
    audit_chain.append(
        connection, [Event("revoked", now_ms, {"serial": serial.hex(), "reason": int(reason), "by": "x"})]
    )
    number = audit_chain.read_head(connection).last_id
    statement = "UPDATE issuance SET reason = ?, revoked_ms = ?, revocation = ? WHERE serial = ?"
    connection.exec_driver_sql(statement, (int(reason), now_ms, number, serial))


def test_ledger_of_version_2_is_taken_over(tmp_path: Path, time: Time) -> None:
    """What was compromised or on hold before the update is blocked after it, since then, and the audit verifies."""
    csrs = {reason: make_csr(key=f"p256/{reason.name}") for reason in Reason}
    with open_agent(tmp_path, time) as agent:
        serials = {reason: serial_in(answer(agent, csr)) for reason, csr in csrs.items()}
        for reason, serial in serials.items():
            time.advance(seconds=1)
            now_ms = milliseconds(time())
            agent.ledger.change(lambda it, s=serial, r=reason, at=now_ms: revoke_as_version_2(it, s, r, at))  # type: ignore[misc]  # bound now
    as_version_2(tmp_path)
    with reading(tmp_path) as connection:
        assert complaint(connection) == ""

    time.advance(minutes=1)
    with open_agent(tmp_path, time) as agent:
        blocking = {Reason.keyCompromise, Reason.certificateHold}
        assert {reason for reason, csr in csrs.items() if code(agent, csr) == REFUSED} == blocking
        found = agent.ledger.read(lambda it: blocked_keys.list_blocks(it))
        assert {each.serial for each in found} == {serials[reason] for reason in blocking}
        assert {each.blocked_ms for each in found} < {milliseconds(time()) - n * 1000 for n in range(60, 70)}
        release(agent, time, serials[Reason.certificateHold])
        assert code(agent, csrs[Reason.certificateHold]) == SIGNED
    with reading(tmp_path) as connection:
        assert complaint(connection) == ""


def test_backup_of_version_2_is_restored(tmp_path: Path, time: Time) -> None:
    """A backup from before is brought up to date when it is restored, so that a block list can be imported."""
    state, restored = tmp_path / "state", tmp_path / "restored"
    with open_agent(state, time) as agent:
        serial, now_ms = serial_in(answer(agent)), milliseconds(time())
        agent.ledger.change(lambda it: revoke_as_version_2(it, serial, Reason.keyCompromise, now_ms))
    as_version_2(state)
    back_up(state, tmp_path / "backup.tar", time())
    restore(tmp_path / "backup.tar", restored, time(), Check(), Later(forget=True))

    with writing(restored) as connection:
        assert import_blocked(connection, [json.dumps(GOOD)], milliseconds(time()), "restore") == 1
    with open_agent(restored, time) as agent:
        assert code(agent) == REFUSED
        assert len(agent.ledger.read(lambda it: blocked_keys.list_blocks(it))) == 2
        assert agent.ledger.read(complaint) == ""


def test_ledger_of_version_2_that_others_use(tmp_path: Path, time: Time) -> None:
    """It is not brought up to date while other agents, which know no block list, serve from it."""
    with open_agent(tmp_path, time):
        pass
    as_version_2(tmp_path)
    with pytest.raises(LedgerUnavailable, match="Stop the other agents first"), open_agent(tmp_path, time, alone=False):
        pass


def test_ledger_of_version_2_under_commands(tmp_path: Path, time: Time) -> None:
    """Before an agent updates it, it is read and its clock accepted; what needs the list says who updates it."""
    time.now = utc_now()
    with open_agent(tmp_path, time) as agent:
        serial = serial_in(answer(agent))
        event = Event("stopped", milliseconds(utc_now()) + 86_400_000, {})
        agent.ledger.note(event)
    as_version_2(tmp_path)

    def done(*words: str) -> tuple[int, str]:
        process = run("vmi-agent", *words, "--state-dir", str(tmp_path))
        return process.returncode, process.stdout + process.stderr

    assert done("certs", "show", serial.hex())[0] == 0
    assert done("audit", "verify")[0] == 0
    for words in (["certs", "revoke", serial.hex()], ["keys", "list"], ["keys", "block", KEY.hex()]):
        status, told = done(*words)
        assert status == 1
        assert "an agent of this version updates it" in told
    with start_agent(tmp_path) as process:
        assert "audit accept-clock" in process.wait_for("cannot start")["reason"]
    assert done("audit", "accept-clock")[0] == 0
    with start_agent(tmp_path) as process:
        process.wait_for("ready")
        assert process.stop() == 0
    assert done("keys", "block", KEY.hex())[0] == 0


# Carried over


def test_export_and_import(tmp_path: Path, time: Time) -> None:
    """An exported list blocks in another ledger what it blocked in the first one, since the same times, and once."""
    with open_agent(tmp_path / "one", time) as one:
        serials = [serial_in(answer(one, make_csr(key=f"p256/{number}"))) for number in range(2)]
        revoke(one, time, serials[0], Reason.keyCompromise)
        revoke(one, time, serials[1], Reason.certificateHold)
        one.ledger.change(lambda it: blocked_keys.block_by_hand(it, HASHES, "leaked", milliseconds(time()), "x"))
        lines = one.ledger.read(lambda it: list(export_blocked(it)))
        expected = one.ledger.read(lambda it: blocked_keys.list_blocks(it))
    assert len(lines) == len(HASHES) + 2
    time.advance(days=1)
    with open_agent(tmp_path / "other", time) as other:
        block(other, time, HASHES[5])

        def take() -> int:
            return other.ledger.change(lambda it: import_blocked(it, lines, milliseconds(time()), "restore"))

        assert (take(), take()) == (len(lines) - 1, 0)
        found = other.ledger.read(lambda it: blocked_keys.list_blocks(it))
        assert [each for each in found if each.key_sha256 != HASHES[5]] == [
            each for each in expected if each.key_sha256 != HASHES[5]
        ]
        assert {code(other, make_csr(key=f"p256/{number}")) for number in range(2)} == {REFUSED}
        # Its certificate is not on hold here: nobody could release it.
        on_hold = next(each.key_sha256 for each in found if each.reason == "certificateHold")
        unblock(other, time, on_hold)
        assert code(other, make_csr(key="p256/1")) == SIGNED
        assert other.ledger.read(complaint) == ""


def test_import_replaces_a_hold_by_a_compromise(agent: Agent, time: Time) -> None:
    """A certificate that is on hold here and was compromised there is blocked for good; the other way round as well."""
    serial = serial_in(answer(agent))
    revoke(agent, time, serial, Reason.certificateHold)
    [line] = agent.ledger.read(lambda it: list(export_blocked(it)))
    compromised = line.replace("certificateHold", "keyCompromise")

    for lines, changed in (([compromised], 1), ([line], 0)):
        assert agent.ledger.change(lambda it, some=lines: import_blocked(it, some, 5, "x")) == changed  # type: ignore[misc]  # bound now
    release(agent, time, serial)
    assert code(agent) == REFUSED
    assert agent.ledger.read(complaint) == ""


GOOD = {"key_sha256": "00" * 32, "serial": "", "reason": "x", "blocked_ms": 1}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "5",
        "{",
        *(json.dumps({name: value for name, value in GOOD.items() if name != left}) for left in GOOD),
        *(
            json.dumps(GOOD | changed)
            for changed in (
                {"key_sha256": "00" * 31},
                {"key_sha256": "zz" * 32},
                {"serial": "00"},
                {"serial": "01" * 17},  # which has only the reasons of a revocation
                {"reason": ""},
                {"reason": "x" * 201},
                {"reason": "a\nb"},
                {"reason": None},
                {"blocked_ms": -1},
                {"blocked_ms": 1.5},
                {"blocked_ms": 1 << 62},
            )
        ),
    ],
)
def test_import_of_what_is_no_block(agent: Agent, line: str) -> None:
    """A line that is not one of an exported list is refused by its number, and nothing is imported."""

    def take(connection: Connection) -> None:
        with pytest.raises(BlockListRefused, match="line 2 of the block list is not a block"):
            import_blocked(connection, [json.dumps(GOOD), line], 5, "x")

    agent.ledger.change(take)
    assert agent.ledger.read(lambda it: blocked_keys.list_blocks(it)) == []


# Killed


def test_revocation_and_block_are_one(tmp_path: Path) -> None:
    """However `certs revoke` is killed, a compromised certificate is revoked and its key blocked, or neither is."""
    state = state_with_ca(tmp_path / "agent")
    time = Time()
    time.now = utc_now()
    with open_agent(state, time) as agent:
        serial = serial_in(answer(agent, CSR))

    def check(state: Path) -> None:
        with writing(state) as connection:
            is_revoked = "SELECT count(*) FROM issuance WHERE reason = 1"
            revoked = connection.exec_driver_sql(is_revoked).scalar_one()
            assert len(blocked_keys.list_blocks(connection)) == revoked
        kept(state)

    command = ("vmi-agent", "certs", "revoke", serial.hex(), "--reason", "keyCompromise")
    crash_command(tmp_path, state, command, check, 4)
