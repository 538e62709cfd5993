"""What time it is at least: clocks that are ahead, at one start or at many, and what they may not forget."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from support.agents import START, Agent, Time, open_agent
from support.audits import complaint, sign
from support.csrs import make_csr
from support.faketime import run_at, wrong_clock
from support.processes import Process, run, start_agent
from support.revoking import time_of_day

from runtime.clock import milliseconds
from vmi_agent.cli.groups import noting
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.audit.trusted_time import read_times
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.revocation import Reason, revoke
from vmi_agent.ledger.schema import reading
from vmi_agent.maintenance import NOTE_CLOCK_EVERY_S, AnchorTo, Upkeep
from vmi_agent.policy.profile import Profile

COUNT = "SELECT count(*) FROM issuance WHERE profile = 'hmc-client'"
AHEAD = "+1100d"
DAY_S = 86_400.0


class Passing:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@contextmanager
def run_of(state: Path, time: Time, passing: Passing) -> Iterator[tuple[Agent, Upkeep]]:
    """Open an agent's parts with its upkeep, and note start and stop as an agent does."""
    with open_agent(state, time, profile=Profile(validity=timedelta(days=30))) as agent:
        fields = agent.ledger.read(read_times).fields(agent.ledger.trusted_ms)
        agent.ledger.note(Event("started", milliseconds(time()), fields))
        parts = (agent.generations, agent.publishing, agent.responder, agent.ledger)
        upkeep = Upkeep(*parts, AnchorTo(None, None, timedelta(days=1)), timedelta(days=10), time, passing)
        yield agent, upkeep
        agent.ledger.note(Event("stopped", milliseconds(time()), upkeep.clock_fields()))


def count(state: Path) -> int:
    """Return how many leaves the ledger has."""
    with reading(state) as connection:
        return int(connection.exec_driver_sql(COUNT).scalar_one())


def test_many_starts_on_a_clock_that_is_ahead(tmp_path: Path) -> None:
    """However often it starts on a wrong clock, and with each round, nothing is pruned that has not ended."""
    time, passing = Time(), Passing()
    with run_of(tmp_path, time, passing) as (agent, _):
        sign(agent, make_csr())
    for start in range(1, 6):
        time.now = START + timedelta(days=1100 * start)
        with run_of(tmp_path, time, passing) as (_, upkeep):
            for _hour in range(3):
                time.advance(hours=2)
                passing.seconds += 7200
                upkeep.round()
        assert count(tmp_path) == 1, start


def test_what_has_ended_is_pruned_over_several_runs(tmp_path: Path) -> None:
    """The time of all runs counts, that of a run that was killed up to the last row that notes it, and no stop."""
    time, passing = Time(), Passing()
    with run_of(tmp_path, time, passing) as (agent, upkeep):
        sign(agent, make_csr())
        time.advance(days=20)
        passing.seconds += 20 * DAY_S
        upkeep.round()  # which notes it
    time.advance(days=100)  # nothing runs
    with run_of(tmp_path, time, passing) as (_, upkeep):
        for passed, left in ((19.9, 1), (0.2, 0)):
            time.advance(days=passed)
            passing.seconds += passed * DAY_S
            upkeep.round()
            assert (count(tmp_path), passed) == (left, passed)


def test_time_is_noted_now_and_then(tmp_path: Path) -> None:
    """After six hours that the agent ran, whatever the clock does, and not before."""
    time, passing = Time(), Passing()
    noted = []
    with run_of(tmp_path, time, passing) as (agent, upkeep):
        for seconds in (0.0, NOTE_CLOCK_EVERY_S - 1, NOTE_CLOCK_EVERY_S, 2 * NOTE_CLOCK_EVERY_S):
            passing.seconds = seconds
            time.now = START + timedelta(days=900, seconds=seconds)
            upkeep.round()
            rows = agent.ledger.read(lambda connection: list(audit_chain.rows(connection)))
            noted.append([json.loads(row.fields)["trusted_ms"] for row in rows if row.event == b"clock noted"])
        assert agent.ledger.read(complaint) == ""
    first, second = (milliseconds(START) + int(hours * 3_600_000) for hours in (6, 12))
    assert noted == [[], [], [first], [first, second]]


def test_accepted_clock_counts_from_then_on(tmp_path: Path) -> None:
    """Where the clock was ahead from the beginning, what was trusted then is not trusted beside the accepted clock."""
    time, passing = Time(), Passing()
    time.now = START + timedelta(days=1100)
    with run_of(tmp_path, time, passing):
        noting(tmp_path)(Event("clock accepted", milliseconds(START), {}))
        time.now = START
        passing.seconds = NOTE_CLOCK_EVERY_S
    with reading(tmp_path) as connection:
        assert read_times(connection).trusted_ms == milliseconds(START)
        assert read_times(connection).latest_ms == milliseconds(START)


def test_rows_at_the_right_time_do_not_hide_a_later_one(tmp_path: Path) -> None:
    """An agent starts at the time of the latest row since the clock was accepted, and not a millisecond before it."""
    later = START + timedelta(days=900)
    with open_agent(tmp_path, Time()):
        pass
    noting(tmp_path)(Event("crl issued", milliseconds(later), {}))
    noting(tmp_path)(Event("stopped", milliseconds(START), {}))
    with pytest.raises(LedgerUnavailable, match="accept-clock"):
        Ledger(tmp_path, later - timedelta(milliseconds=1))
    Ledger(tmp_path, later).close()
    fields: dict[str, object] = {"trusted_ms": milliseconds(START), "latest_ms": milliseconds(later)}
    noting(tmp_path)(Event("clock noted", milliseconds(START), fields))
    with pytest.raises(LedgerUnavailable, match="accept-clock"):
        Ledger(tmp_path, START + timedelta(days=1))
    noting(tmp_path)(Event("clock accepted", milliseconds(START), {}))
    Ledger(tmp_path, START).close()


def test_row_that_notes_the_time_and_cannot_be_read(tmp_path: Path) -> None:
    """One line says which row it is and how to look at it."""
    with open_agent(tmp_path, Time()):
        pass
    noting(tmp_path)(Event("started", milliseconds(START), {"trusted_ms": "soon"}))
    with pytest.raises(LedgerUnavailable, match="of the audit cannot be read: `vmi-agent audit verify"):
        Ledger(tmp_path, START)


# The commands, under Debian's faketime


def prune(state: Path) -> str:
    """Prune under a clock that is ahead; return what is printed."""
    done = run_at(AHEAD, "vmi-agent", "certs", "prune", "--state-dir", str(state), "--ended-days", "1")
    assert done.returncode == 0, done.stderr
    assert "Counted from" in done.stderr
    return done.stdout


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a state directory with a certificate that is valid and one that is revoked."""
    time = time_of_day()
    with open_agent(tmp_path, time) as agent:
        sign(agent, make_csr())
        serial, now_ms = sign(agent, make_csr(), user="hmc2"), milliseconds(time())
        agent.ledger.change(lambda it: revoke(it, serial, Reason.superseded, now_ms, "tester"))
    return tmp_path


def test_prune_by_hand_on_a_clock_that_is_ahead(state: Path) -> None:
    """It forgets nothing that has not ended, however often it is run, beside an agent or not."""
    assert [prune(state) for _ in range(2)] == ["pruned: 0\n", "pruned: 0\n"]
    done = run("vmi-agent", "audit", "accept-clock", "--state-dir", str(state))
    assert done.returncode == 0, done.stderr
    with start_agent(state) as agent:
        agent.wait_for("ready")
        assert [prune(state) for _ in range(2)] == ["pruned: 0\n", "pruned: 0\n"]
        assert agent.stop() == 0
    assert count(state) == 2


def test_serving_twice_on_a_clock_that_is_ahead(state: Path) -> None:
    """`--keep-expired-days` forgets nothing that has not ended, at the second start neither."""
    command = ["serve", "--state-dir", str(state), "--listen", "tcp:0:interface=127.0.0.1"]
    for _ in range(3):
        with Process("vmi-agent", *command, "--keep-expired-days", "30", **wrong_clock(AHEAD)) as agent:
            agent.wait_for("ready")
            assert agent.stop() == 0
        assert count(state) == 2


def test_nothing_to_accept(state: Path) -> None:
    """`audit accept-clock` with a right clock says that there is nothing to accept, and writes no row."""
    with reading(state) as connection:
        before = audit_chain.read_head(connection)
    done = run("vmi-agent", "audit", "accept-clock", "--state-dir", str(state))
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing to accept" in done.stderr
    with reading(state) as connection:
        assert audit_chain.read_head(connection) == before


def test_all_of_key_on_a_clock_that_is_ahead(tmp_path: Path) -> None:
    """`certs revoke --all-of-key` revokes what by the wrong clock has ended; without it, it is named."""
    csr = make_csr()
    with open_agent(tmp_path, time_of_day(), profile=Profile(validity=timedelta(days=30))) as agent:
        one, two, three = (sign(agent, csr, user=user).hex() for user in ("one", "two", "three"))
    words = ["vmi-agent", "certs", "revoke", one, "--reason", "superseded", "--state-dir", str(tmp_path)]
    named = run_at("+400d", *words)
    assert [each.split()[-3] for each in named.stdout.splitlines()[1:]] == [two, three], named.stdout
    done = run_at("+400d", *words, "--all-of-key")
    assert done.stdout.splitlines() == [f"revoked: {each} (superseded)" for each in (two, three)], done.stderr
