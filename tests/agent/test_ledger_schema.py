"""The ledger's schema: nothing stands in it that could ignore or undo what is written, or nothing is written."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support.agents import START, Time, always, open_agent, request
from support.audits import complaint, ledger_of
from support.blocking import KEY, answer, block, release, revoke, serial_in, unblock
from support.csrs import make_csr
from support.old_intents import intent
from support.processes import run, start_agent
from support.sharing import events
from support.version_1 import VERSION_1

from runtime.clock import milliseconds
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import retention
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.audit.reconcile import AuditBroken
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.queries import prune
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import reading, writing


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


def edit(state_dir: Path, table: str, old: str, new: str) -> None:
    """Rewrite a table's or index's CREATE statement in the file, as somebody with an editor can."""
    with closing(sqlite3.connect(ledger_of(state_dir), isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        statement = "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ? AND instr(sql, ?)"
        assert connection.execute(statement, (old, new, table, old)).rowcount == 1
        connection.execute("PRAGMA writable_schema = RESET")


def smuggle(state_dir: Path, *statements: str) -> None:
    """Run statements on the ledger."""
    with closing(sqlite3.connect(ledger_of(state_dir), isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


IGNORE = "BEGIN SELECT RAISE(IGNORE); END"
RULES = {
    "trigger that ignores": ["CREATE TRIGGER t BEFORE UPDATE ON issuance " + IGNORE],
    "trigger that undoes": [
        "CREATE TRIGGER t AFTER UPDATE OF reason ON issuance WHEN new.reason IS NOT NULL"
        " BEGIN UPDATE issuance SET reason = NULL, revoked_ms = NULL WHERE id = new.id; END"
    ],
    "trigger on the block list": ["CREATE TRIGGER t BEFORE INSERT ON blocked_key " + IGNORE],
    "trigger on the audit": ["CREATE TRIGGER t BEFORE INSERT ON audit " + IGNORE],
    "view": ["CREATE VIEW seen AS SELECT 1"],
    "view in place of a table": [
        "ALTER TABLE blocked_key RENAME TO hidden",
        "CREATE VIEW blocked_key AS SELECT * FROM hidden WHERE 0",
    ],
    "another table": ["CREATE TABLE notes (text)"],
    "index of its own": ["CREATE UNIQUE INDEX one_reason ON issuance (reason) WHERE reason IS NOT NULL"],
    "index on fewer rows": [
        "DROP INDEX issuance_by_key",
        "CREATE INDEX issuance_by_key ON issuance (key_sha256) WHERE reason IS NULL",
    ],
    "index missing": ["DROP INDEX issuance_by_revocation"],
    "block list missing": ["DROP TABLE blocked_key"],
    "column more": ["ALTER TABLE issuance ADD COLUMN more INTEGER"],
    "column renamed": ["ALTER TABLE audit_head RENAME COLUMN one TO two"],
    "generated column": ["ALTER TABLE issuance ADD COLUMN twice INTEGER GENERATED ALWAYS AS (id * 2) VIRTUAL"],
}
EDITS = {
    "CHECK": ("issuance", "revoked_ms BIGINT", "revoked_ms BIGINT CHECK (revoked_ms IS NULL)"),
    "UNIQUE that ignores": ("issuance", "UNIQUE (serial)", "UNIQUE (serial) ON CONFLICT IGNORE"),
    "key that ignores": ("audit", "PRIMARY KEY (id)", "PRIMARY KEY (id) ON CONFLICT IGNORE"),
    "NOT NULL gone": ("blocked_key", "reason VARCHAR NOT NULL", "reason VARCHAR"),
    "DEFAULT": ("issuance", "signature BLOB", "signature BLOB DEFAULT x'00'"),
    "collation": ("blocked_key", "reason VARCHAR NOT NULL", "reason VARCHAR NOT NULL COLLATE NOCASE"),
    "comment": ("audit", "hash BLOB NOT NULL", "hash BLOB NOT NULL /* ours */"),
}


def assert_refused(state_dir: Path) -> None:
    """No agent starts, nothing is written, and `audit verify` names the place."""
    before = ledger_of(state_dir).read_bytes()
    with pytest.raises(LedgerUnavailable, match="schema") as caught:
        Ledger(state_dir, START)
    assert "Restore the ledger from a backup" in str(caught.value)
    with pytest.raises(LedgerUnavailable, match="schema"), writing(state_dir):
        pass
    with reading(state_dir) as look, pytest.raises(AuditBroken, match="schema"):
        verify(look)
    assert ledger_of(state_dir).read_bytes() == before


@pytest.mark.parametrize("rule", RULES)
def test_schema_with_a_rule_of_somebody_else(tmp_path: Path, time: Time, rule: str) -> None:
    """Whatever stands in the schema and is not ours, or is missing, is found before anything is written."""
    with open_agent(tmp_path, time) as agent:
        answer(agent)
    smuggle(tmp_path, *RULES[rule])
    assert_refused(tmp_path)


@pytest.mark.parametrize("rule", EDITS)
def test_schema_with_a_statement_rewritten(tmp_path: Path, time: Time, rule: str) -> None:
    """A constraint that was written into a table's own statement is found as well."""
    with open_agent(tmp_path, time) as agent:
        answer(agent)
    edit(tmp_path, *EDITS[rule])
    assert_refused(tmp_path)


@pytest.mark.parametrize("rule", ["trigger that undoes", "CHECK"])
def test_command_on_a_schema_with_a_rule(tmp_path: Path, time: Time, rule: str) -> None:
    """`certs revoke` says that it did nothing, and why, instead of "revoked"; `audit verify` finds the same."""
    with open_agent(tmp_path, time) as agent:
        serial = serial_in(answer(agent))
    if rule in EDITS:
        edit(tmp_path, *EDITS[rule])
    else:
        smuggle(tmp_path, *RULES[rule])
    for words in (["certs", "revoke", serial.hex()], ["keys", "block", KEY.hex()], ["audit", "verify"]):
        done = run("vmi-agent", *words, "--state-dir", str(tmp_path))
        assert (done.returncode, done.stdout) == (1, "")
        assert "in the ledger's schema" in done.stderr


def test_schema_as_agents_made_it(tmp_path: Path, time: Time) -> None:
    """A ledger of any version, one after ANALYZE and VACUUM, and one whose statements are spaced otherwise, is fine."""
    smuggle(tmp_path, *VERSION_1.split(";"))
    with open_agent(tmp_path, time) as agent:
        serial = serial_in(answer(agent))
    smuggle(tmp_path, "ANALYZE", "VACUUM")
    edit(tmp_path, "issuance", "serial BLOB NOT NULL,", "serial   BLOB\n NOT NULL ,")
    with reading(tmp_path) as look:
        verify(look)
    with open_agent(tmp_path, time) as agent:
        revoke(agent, time, serial, Reason.keyCompromise)
    assert events(tmp_path)[-2:] == ["revoked", "keys blocked"]


def test_schema_of_a_version_that_lies(tmp_path: Path, time: Time) -> None:
    """A ledger that says it begins, and does not, is refused: its block list could be made anew, empty."""
    with open_agent(tmp_path, time) as agent:
        block(agent, time)
    smuggle(tmp_path, "PRAGMA user_version = 0", "DROP TABLE blocked_key")
    with pytest.raises(LedgerUnavailable, match="was not made by an agent"):
        Ledger(tmp_path, START)


def test_schema_of_version_2_with_a_rule(tmp_path: Path, time: Time) -> None:
    """What was smuggled into a ledger of an earlier version is found before it is brought up to date."""
    with open_agent(tmp_path, time):
        pass
    smuggle(tmp_path, "DROP TABLE blocked_key", "PRAGMA user_version = 2", *RULES["trigger on the audit"])
    with pytest.raises(LedgerUnavailable, match="trigger 't'"):
        Ledger(tmp_path, START)


def test_agent_names_the_rule_at_its_start(tmp_path: Path) -> None:
    """An agent that finds one says which, and does not start."""
    with start_agent(tmp_path, 0, "--key-type", "p256") as agent:
        agent.wait_for("ready")
        assert agent.stop() == 0
    smuggle(tmp_path, *RULES["trigger that ignores"])
    with start_agent(tmp_path) as agent:
        assert "the trigger 't' in the ledger's schema was not made" in agent.wait_for("cannot start")["reason"]
        assert agent.wait() == 1


# A rule that comes while the agent has the ledger open

NOTHING = "the ledger ignored what was written to it"


def ignoring(event: str) -> str:
    """Return the statement that makes SQLite ignore something, without an error."""
    return f"CREATE TRIGGER t BEFORE {event} {IGNORE}"


@pytest.mark.parametrize(
    "event",
    [
        "INSERT ON issuance",
        "UPDATE ON issuance",
        "INSERT ON idempotency",
        "INSERT ON audit",
        "UPDATE ON audit_head",
    ],
)
def test_issuing_that_the_ledger_ignores(tmp_path: Path, time: Time, event: str) -> None:
    """A certificate is not answered where any row of what must be kept of it was not."""
    with open_agent(tmp_path, time) as agent:
        answer(agent)
        smuggle(tmp_path, ignoring(event))
        with pytest.raises(LedgerUnavailable, match=NOTHING):
            agent.issuing.issue(request(make_csr(key="p384"), key=b"t" * 16), always)
        smuggle(tmp_path, "DROP TRIGGER t")
        assert agent.ledger.read(complaint) == ""


@pytest.mark.parametrize(
    ("event", "change"),
    [
        ("UPDATE ON issuance", "revoke"),
        ("INSERT ON blocked_key", "revoke"),
        ("INSERT ON audit", "revoke"),
        ("UPDATE ON audit_head", "revoke"),
        ("UPDATE ON issuance", "release"),
        ("DELETE ON blocked_key", "release"),
        ("INSERT ON blocked_key", "block"),
        ("DELETE ON blocked_key", "unblock"),
        ("DELETE ON issuance", "prune"),
        ("DELETE ON idempotency", "prune"),
        ("UPDATE ON issuance", "abandon"),
    ],
)
def test_change_that_the_ledger_ignores(tmp_path: Path, time: Time, event: str, change: str) -> None:
    """Nobody is told that something happened which the ledger ignored; nothing of it stays."""
    with open_agent(tmp_path, time) as agent:
        serial = serial_in(answer(agent, key=b"t" * 16))
        held = serial_in(answer(agent, make_csr(key="p384")))
        revoke(agent, time, held, Reason.certificateHold)
        block(agent, time, bytes(32))
        agent.ledger.record_intent(intent(1))
        time.advance(days=1000)
        now_ms = milliseconds(time())
        changes: dict[str, Callable[[], object]] = {
            "revoke": lambda: revoke(agent, time, serial, Reason.keyCompromise),
            "release": lambda: release(agent, time, held),
            "block": lambda: block(agent, time, KEY),
            "unblock": lambda: unblock(agent, time, bytes(32)),
            "prune": lambda: agent.ledger.change(lambda it: prune(it, time(), now_ms)),
            "abandon": lambda: agent.ledger.change(lambda it: retention.close_off_old(it, now_ms)),
        }
        smuggle(tmp_path, ignoring(event))
        before = agent.ledger.read(audit_chain.read_head)
        with pytest.raises(LedgerUnavailable, match=NOTHING):
            changes[change]()
        assert agent.ledger.read(audit_chain.read_head) == before
        smuggle(tmp_path, "DROP TRIGGER t")
        changes[change]()
        assert agent.ledger.read(complaint) == ""
        agent.ledger.note(Event("noted", now_ms, {}))
