"""What agents that share a ledger publish: CRLs with numbers that rise over all, and one OCSP delegate for all."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from support.agents import Agent, Time
from support.revoking import ask, crl_der, issue, question, read_crl, release, revoke
from support.sharing import events, two_agents, with_key

from vmi_agent.ca import store as ca_store
from vmi_agent.keys import Custody, Pace
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import reading
from vmi_agent.revocation import ocsp_signer


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


def numbers(state_dir: Path) -> list[int]:
    """Return the numbers of all CRLs, in the order in which the audit tells of them."""
    with reading(state_dir) as connection:
        rows = [row for row in audit_chain.rows(connection) if row.event == b"crl issued"]
    return [json.loads(row.fields)["number"] for row in rows]


def serials(agent: Agent) -> set[int]:
    """Return whom an agent's CRL lists."""
    return {entry.serial_number for entry in read_crl(agent)}


def test_crl_numbers_rise_over_both_agents(tmp_path: Path, time: Time) -> None:
    """At one and the same time of day, and where the clock is set back, no number is used twice, and none is lower."""
    with two_agents(tmp_path, time) as both:
        for agent in (*both, *both):
            agent.publishing.refresh()
            time.advance(days=1)
        time.advance(days=-3)
        leaf = issue(both[0])
        revoke(both[0], leaf, time)
        for agent in both:
            agent.publishing.refresh()
            assert serials(agent) == {leaf.serial_number}
    found = numbers(tmp_path)
    assert len(found) == 6
    assert sorted(set(found)) == found


def _nothing() -> None:
    """Nothing happens meanwhile."""


class Meanwhile:
    """Custody of a key that is used while something else happens, once."""

    pace = Pace.ELSEWHERE

    def __init__(self, custody: Custody) -> None:
        self._custody = custody
        self.happens: Callable[[], object] = _nothing
        self.public_key = custody.public_key

    def sign(self, tbs: bytes) -> bytes:
        """Sign, after what happens meanwhile."""
        happens, self.happens = self.happens, _nothing
        happens()
        return self._custody.sign(tbs)

    def close(self) -> None:
        """Let go of the key."""
        self._custody.close()


def meanwhile(agent: Agent) -> Meanwhile:
    """Have an agent's CRLs signed with such a key."""
    key: Meanwhile = with_key(agent, Meanwhile)
    agent.generations._by_number = {1: agent.generations.current}
    return key


def test_crl_while_the_other_agent_makes_one(tmp_path: Path, time: Time) -> None:
    """A CRL that another one came before is made anew, with a higher number."""
    with two_agents(tmp_path, time) as (one, other):
        meanwhile(one).happens = other.publishing.refresh
        other.publishing._now = lambda: time() + timedelta(seconds=1)
        one.publishing.refresh()
        assert one.publishing.newest_number > other.publishing.newest_number
    assert numbers(tmp_path) == [other.publishing.newest_number, one.publishing.newest_number]


@pytest.mark.parametrize("released", [False, True])
def test_crl_while_a_certificate_is_revoked(tmp_path: Path, time: Time, released: bool) -> None:
    """A CRL never goes without what was revoked before the audit told of it, and its change is told of once."""
    told: list[frozenset[bytes]] = []
    with two_agents(tmp_path, time) as (one, other):
        leaf = issue(one)
        if released:
            revoke(one, leaf, time, Reason.certificateHold)
        meanwhile(one).happens = lambda: release(other, leaf, time) if released else revoke(other, leaf, time)
        changed = one.publishing.refresh(told.append)
        assert serials(one) == (set() if released else {leaf.serial_number})
        assert changed == {leaf.serial_number.to_bytes(17)}
        assert len(told) == (2 if released else 1)
        made = crl_der(one)
        assert one.publishing.refresh() == frozenset()
        assert crl_der(one) == made
    assert len(numbers(tmp_path)) == 1


def test_ocsp_delegate_of_both_agents(tmp_path: Path, time: Time) -> None:
    """The delegate that one agent makes, first or anew, is the other one's as well."""
    with two_agents(tmp_path, time) as (one, other):
        leaf, ca = issue(one), one.generations.current.certificate
        for agents in ((one, other), (other, one)):
            found = {ask(agent, question(leaf, ca)).certificates[0] for agent in agents}
            assert len(found) == 1
            time.advance(days=61)
    assert events(tmp_path).count("signed") == 3


def test_ocsp_delegate_that_both_agents_ask_for_at_once(tmp_path: Path, time: Time) -> None:
    """While one makes the delegate the other one waits, and takes it."""
    with two_agents(tmp_path, time) as both, ThreadPoolExecutor(2) as pool:
        leaf, ca = issue(both[0]), both[0].generations.current.certificate
        barrier = threading.Barrier(2)

        def asked(agent: Agent) -> x509.Certificate:
            barrier.wait()
            return ask(agent, question(leaf, ca)).certificates[0]

        assert len(set(pool.map(asked, both))) == 1
    assert events(tmp_path).count("signed") == 2


def test_ocsp_while_somebody_changes_the_ca_for_long(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delegate that cannot be made now is not waited for: the asker is told to try later, and then gets one."""
    monkeypatch.setattr(ocsp_signer, "LOCK_WAIT_S", 0.01)
    with two_agents(tmp_path, time) as (one, _):
        leaf, ca = issue(one), one.generations.current.certificate
        with ca_store.locked(tmp_path):
            assert ask(one, question(leaf, ca)).response_status.name == "TRY_LATER"
        time.advance(seconds=31)
        assert ask(one, question(leaf, ca)).response_status.name == "SUCCESSFUL"
