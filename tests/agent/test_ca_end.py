"""A CA near its end, past it, and a clock that cannot be right."""

from datetime import timedelta
from pathlib import Path

import pytest
from conftest import LogWatch
from cryptography import x509
from support.agents import START, Time, always, create_ca, open_agent, request
from support.ca_life_parts import audit_events, now
from support.csrs import make_csr
from support.processes import run, start_agent

from protocol.errors import ErrorCode
from protocol.records import Error
from runtime.clock import milliseconds
from vmi_agent.ca.certificates import ROOT_VALIDITY
from vmi_agent.cli.groups import noting
from vmi_agent.keys import CustodyError
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.maintenance import AnchorTo, Upkeep

NO_ANCHOR = AnchorTo(None, None, timedelta(minutes=5))


def test_leaf_near_the_end_of_its_ca(tmp_path: Path) -> None:
    """A leaf ends with its issuer at the latest, also on the issuer's last day and in its last second."""
    time = Time()
    end = create_ca(tmp_path, "p256", START).root.not_valid_after_utc
    for before in (timedelta(days=1), timedelta(seconds=1)):
        time.now = end - before
        with open_agent(tmp_path, time) as agent:
            issued = agent.issuing.issue(request(make_csr()), always)
        leaf, root = (x509.load_der_x509_certificate(each) for each in issued.chain)
        assert leaf.not_valid_after_utc == root.not_valid_after_utc == end
        assert leaf.not_valid_before_utc < leaf.not_valid_after_utc


@pytest.mark.parametrize("after", [timedelta(0), timedelta(days=1000)])
def test_ca_that_has_ended(tmp_path: Path, after: timedelta) -> None:
    """Nothing is signed any more; the asker is told that the agent cannot, its log what to do, and rows are none."""
    time = Time()
    time.now = create_ca(tmp_path, "p256", START).root.not_valid_after_utc + after
    with open_agent(tmp_path, time) as agent:
        with pytest.raises(CustodyError, match="vmi-agent ca rotate"):
            agent.issuing.issue(request(make_csr()), always)
        outcome = agent.sign(request(make_csr()), bytes(32), always)
        counted = agent.ledger.read(lambda connection: connection.exec_driver_sql("SELECT * FROM issuance").all())

    assert isinstance(outcome.answer, Error)
    assert (outcome.answer.code, outcome.answer.retryable) == (ErrorCode.FAILED, True)
    assert "ca rotate" not in outcome.answer.text  # that is for whoever reads the agent's log
    (failure,) = agent.failures
    assert "vmi-agent ca rotate" in str(failure)
    assert counted == []


def test_ca_that_ends_soon_is_told_of_daily(tmp_path: Path, log_watch: LogWatch) -> None:
    """Ninety days before its end the log begins to say so, once a day."""
    time = Time()
    create_ca(tmp_path, "p256", START)
    time.now = START + ROOT_VALIDITY - timedelta(days=92)
    with open_agent(tmp_path, time) as agent:
        upkeep = Upkeep(agent.generations, agent.publishing, agent.responder, agent.ledger, NO_ANCHOR, None, time)
        told = []
        for _ in range(5):
            for _ in range(3):
                upkeep.round()
                time.advance(hours=8)
            told.append(sum("CA ends soon" in each for each in log_watch.texts()))

    assert told == [0, 0, 1, 2, 3]


def test_rotation_of_a_ca_that_has_ended(tmp_path: Path) -> None:
    """The next generation issues at once; the old one makes no CRL any more."""
    time = Time()
    time.now = create_ca(tmp_path, "p256", START).root.not_valid_after_utc + timedelta(days=1)
    with open_agent(tmp_path, time):
        create_ca(tmp_path, "p256", time())
    with open_agent(tmp_path, time) as agent:
        agent.publishing.refresh()
        assert [each.generation for each in agent.generations.all()] == [2]
        assert agent.publishing.crl(1) is None
        assert agent.issuing.issue(request(make_csr()), always).root_generation == 2


def test_start_on_a_clock_before_the_last_audit_row(tmp_path: Path) -> None:
    """The agent does not start, and says what to do; once the clock is accepted, it does, and the audit verifies."""
    create_ca(tmp_path, "p256", now())
    ahead = now() + timedelta(days=3650)
    noting(tmp_path)(Event("started", milliseconds(ahead), {}))
    with start_agent(tmp_path) as agent:
        assert agent.wait() == 1
    assert f"the audit was last written at {ahead.isoformat(timespec='seconds')}" in "".join(agent.lines)
    assert "vmi-agent audit accept-clock" in "".join(agent.lines)

    accepted = run("vmi-agent", "audit", "accept-clock", "--state-dir", str(tmp_path))
    assert (accepted.returncode, accepted.stderr) == (0, "")
    with start_agent(tmp_path) as agent:
        agent.wait_for("ready")
        assert agent.stop() == 0
    assert audit_events(tmp_path)[-4:] == ["clock accepted", "started", "crl issued", "stopped"]
