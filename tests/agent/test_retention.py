"""Closing off intents that nobody completes: what the audit says of it, and how it is held against the ledger."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, update
from support.agents import START, Agent, Time, open_agent
from support.audits import complaint, ledger_of, sign, tampering
from support.csrs import make_csr
from support.old_intents import NOW_MS, intent
from support.sharing import statuses

from vmi_agent.ledger import retention
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.issuances import Intent
from vmi_agent.ledger.queries import prune
from vmi_agent.ledger.schema import ABANDONED, PENDING, issuance, reading, writing
from vmi_agent.ledger.sql import driver_of
from vmi_agent.maintenance import AnchorTo, Upkeep


def closings(state_dir: Path) -> list[list[str]]:
    """Return the serials that each closing names."""
    with reading(state_dir) as connection:
        assert complaint(connection) == ""
        rows = [row for row in audit_chain.rows(connection) if row.event == b"intents abandoned"]
    named = [json.loads(row.fields) for row in rows]
    assert all(each["count"] == len(each["serials"]) for each in named)
    assert all(len(row.fields) < 3072 for row in rows)
    return [each["serials"] for each in named]


def test_closing_off_names_each_intent(tmp_path: Path) -> None:
    """However many there are, each is named, in rows of the audit that stay small."""
    intents = [intent(number) for number in range(1, 151)]
    with open_agent(tmp_path, Time()) as agent:
        for each in intents:
            agent.ledger.record_intent(each)
    with open_agent(tmp_path, Time()) as agent:
        assert agent.ledger.abandoned_at_start == 150
    named = closings(tmp_path)
    assert [len(each) for each in named] == [64, 64, 22]
    assert [serial for each in named for serial in each] == [each.serial.hex() for each in intents]


@pytest.mark.parametrize("close_off", [retention.close_off_all, retention.close_off_old])
def test_closing_off_looks_at_what_is_pending_alone(
    tmp_path: Path, close_off: Callable[[Connection, int], int]
) -> None:
    """However many certificates there are, none of them is read: an agent's start does not grow with them."""
    with open_agent(tmp_path, Time()) as agent:
        agent.ledger.record_intent(intent(1, recorded_ms=0))
    with writing(tmp_path) as connection:
        statements: list[str] = []
        driver = driver_of(connection.connection)
        driver.set_trace_callback(statements.append)
        assert close_off(connection, NOW_MS) == 1
        driver.set_trace_callback(None)
        steps = [step for text in statements for *_, step in driver.execute(f"EXPLAIN QUERY PLAN {text}")]
    assert steps[0].startswith(("SCAN issuance USING INDEX issuance_pending", "SEARCH issuance USING INDEX"))


def test_upkeep_closes_off_what_is_pending_for_too_long(tmp_path: Path) -> None:
    """A running agent closes off what has been pending for fifteen minutes, whoever recorded it; nothing younger."""
    time = Time()
    with open_agent(tmp_path, time) as agent, open_agent(tmp_path, time, alone=False) as other:
        upkeep = upkeep_of(agent, time)
        old, young = intent(1), intent(2, NOW_MS + 1)
        other.ledger.record_intent(old)
        other.ledger.record_intent(young)
        time.advance(minutes=15)
        upkeep.round()
        assert statuses(tmp_path) == ["pending", "pending"]
        time.advance(milliseconds=1)
        upkeep.round()
        upkeep.round()
        assert statuses(tmp_path) == ["abandoned", "pending"]
    assert closings(tmp_path) == [[old.serial.hex()]]


def upkeep_of(agent: Agent, time: Time) -> Upkeep:
    """Return what looks after an agent made of parts."""
    nowhere = AnchorTo(None, None, timedelta(minutes=5))
    return Upkeep(agent.generations, agent.publishing, agent.responder, agent.ledger, nowhere, None, time)


def test_closing_off_goes_on_where_there_is_much(tmp_path: Path) -> None:
    """Each round closes off a bounded number, so that signing gets its turns."""
    with open_agent(tmp_path, Time()) as agent:

        def record(connection: Connection) -> None:
            for number in range(1, retention.AT_ONCE + 3):
                connection.execute(issuance.insert().values(row_of(intent(number, 0))))

        agent.ledger.change(record)
        counts = [agent.ledger.change(lambda connection: retention.close_off_old(connection, NOW_MS)) for _ in "abc"]
    assert counts == [retention.AT_ONCE, 2, 0]


def row_of(each: Intent) -> dict[str, object]:
    """Return the row of an intent that is pending."""
    names = [column.name for column in issuance.columns if column.name != "id"]
    return {name: getattr(each, name, None) for name in names} | {"status": PENDING}


def test_pending_is_not_pruned(tmp_path: Path) -> None:
    """What is pending is closed off before it can be forgotten: whoever signs it late finds it refused."""
    with open_agent(tmp_path, Time()) as agent:
        agent.ledger.record_intent(intent(1))
        assert agent.ledger.change(lambda connection: prune(connection, START, NOW_MS)) == 0
        agent.ledger.change(lambda connection: retention.close_off_all(connection, NOW_MS))
        assert agent.ledger.change(lambda connection: prune(connection, START, NOW_MS)) == 1
    assert closings(tmp_path) == [[intent(1).serial.hex()]]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Return a ledger with a certificate, an intent that was closed off, and one that is pending, in this order."""
    with open_agent(tmp_path, Time()) as agent:
        sign(agent, make_csr())
        agent.ledger.record_intent(intent(1))
    with open_agent(tmp_path, Time()) as agent:
        agent.ledger.record_intent(intent(2))
    return ledger_of(tmp_path)


def mark(connection: Connection, row_id: int, status: str) -> None:
    """Change what the ledger says of a row."""
    connection.execute(update(issuance).where(issuance.c.id == row_id).values(status=status))


def test_verify_closed_off_without_a_word(ledger: Path) -> None:
    """A pending intent that is made an abandoned one, of which the audit does not tell, is found, and the other way."""
    serials = [intent(number).serial.hex() for number in (1, 2)]
    with tampering(ledger) as connection:
        assert complaint(connection) == ""
        mark(connection, 3, ABANDONED)
        assert (
            complaint(connection)
            == f"the audit does not tell that certificate {serials[1]} was closed off, the ledger does"
        )
        mark(connection, 3, PENDING)
        mark(connection, 2, PENDING)
        assert serials[0] in complaint(connection)
        assert "was changed in the ledger" in complaint(connection)


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("intents abandoned", {"count": 1, "serials": ["{0}"]}, "certificate {0}, for which no intent was open"),
        ("intents abandoned", {"count": 1, "serials": ["{1}"]}, "certificate {1} of audit row {row} was changed"),
        ("intents abandoned", {"count": 2, "serials": ["{1}"]}, "names another number"),
        ("intents abandoned", {"count": 2}, "and others were open"),
        ("intents abandoned", {"count": 0}, "and others were open"),
        ("intents abandoned", {"count": 1}, "certificate {1} of audit row {row} was changed"),
        ("intents abandoned", {"count": 1, "serials": [7]}, "does not hold what its event tells"),
        ("signing resumed", {"serial": "{0}", "user": "hmc", "csr_sha256": "{csr}"}, "that nobody recorded"),
        ("signing resumed", {"serial": "{1}", "user": "eve", "csr_sha256": "{csr}"}, "or not of this request"),
        ("signing resumed", {"serial": "{1}", "user": "hmc", "csr_sha256": "{csr}"}, ""),
        ("signing resumed", {"serial": "{1}", "user": "hmc"}, "does not hold what its event tells"),
        ("signed", {"serial": "{0}", "certificate_sha256": "", "not_after": 0}, "for which no intent was open"),
    ],
)  # fmt: skip
def test_verify_rows_that_do_not_fit(ledger: Path, name: str, fields: dict[str, object], told: str) -> None:
    """What a row tells of an intent that was not open then, or of another request's, is found."""
    words = {"{0}": intent(1).serial.hex(), "{1}": intent(2).serial.hex(), "{csr}": intent(2).csr_sha256.hex()}

    def filled(text: str) -> str:
        for word, value in words.items():
            text = text.replace(word, value)
        return text

    with tampering(ledger) as connection:
        words["{row}"] = str(audit_chain.read_head(connection).last_id + 1)
        audit_chain.append(connection, [Event(name, NOW_MS, json.loads(filled(json.dumps(fields))))])
        expected, found = filled(told), complaint(connection)
        assert expected in found
        assert bool(expected) == bool(found)


def older_ledger(directory: Path, count: int) -> Path:
    """Return a ledger in which an older agent closed off three intents, of which its audit tells a number."""
    with open_agent(directory, Time()) as agent:
        sign(agent, make_csr())
        for number in range(1, 4):
            agent.ledger.record_intent(intent(number))
        event = Event("intents abandoned", NOW_MS, {"count": count})

        def close_off(connection: Connection) -> None:
            connection.execute(update(issuance).where(issuance.c.status == PENDING).values(status=ABANDONED))
            audit_chain.append(connection, [event])

        agent.ledger.change(close_off)
        agent.ledger.record_intent(intent(4))
    with open_agent(directory, Time()) as agent:
        sign(agent, make_csr(key="p384"))
    return ledger_of(directory)


def test_verify_an_older_agents_count(tmp_path: Path) -> None:
    """An audit that tells numbers alone still verifies, and the intents that it counts are held against the ledger."""
    with tampering(older_ledger(tmp_path, 3)) as connection:
        assert complaint(connection) == ""
        mark(connection, 3, PENDING)
        assert intent(2).serial.hex() in complaint(connection)


@pytest.mark.parametrize("count", [2, 4])
def test_verify_an_older_agents_wrong_count(tmp_path: Path, count: int) -> None:
    """A number that is not that of the intents which were open is found."""
    with tampering(older_ledger(tmp_path, count)) as connection:
        assert "and others were open" in complaint(connection)


def test_ledger_of_an_agent_from_before_the_index(tmp_path: Path) -> None:
    """A ledger without the index of what is pending gets it when an agent opens it."""
    with open_agent(tmp_path, Time()) as agent:
        sign(agent, make_csr())
    with closing(sqlite3.connect(ledger_of(tmp_path))) as connection:
        connection.execute("DROP INDEX issuance_pending")
        connection.execute("DROP TABLE blocked_key")
        connection.execute("PRAGMA user_version = 2")
    with open_agent(tmp_path, Time()) as agent:
        sign(agent, make_csr(key="p384"))
    assert statuses(tmp_path) == ["issued", "issued"]
