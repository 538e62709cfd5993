"""Agents that share a ledger: one certificate for one question, whoever is asked, and whoever is stopped meanwhile."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import update
from support.agents import Agent, Time, always, open_agent, request
from support.csrs import make_csr
from support.intents import make_intent
from support.revoking import KeyAway, revoke
from support.sharing import WaitingKey, events, leaf_of, statuses, two_agents, with_key
from support.signing_pause import CSR, while_signing

from protocol.errors import ErrorCode
from protocol.records import Answer, Error
from runtime.clock import milliseconds
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.errors import ClosedOff, LedgerUnavailable
from vmi_agent.keys.open import Access
from vmi_agent.ledger.issuances import Kept, Recorded, Resumed, Signature
from vmi_agent.ledger.schema import issuance
from vmi_agent.policy.profile import Profile

KEY = b"k" * 16
TOO_LONG = Error(ErrorCode.FAILED, True, 5_000, "Signing took too long. Nothing was issued: ask again.")


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


def tbs_of(leaf: bytes) -> bytes:
    """Return what of a certificate was signed."""
    return x509.load_der_x509_certificate(leaf).tbs_certificate_bytes


def leaf_in(answer: Answer) -> bytes:
    """Return the leaf that was answered."""
    leaf: bytes = answer.chain[0]  # type: ignore[union-attr]  # anything but a SIGNED fails the test
    return leaf


def failed_once(agent: Agent, **options: Any) -> None:
    """Have an intent recorded whose signing fails: the key is away, and comes back."""
    key: KeyAway = with_key(agent, KeyAway)
    answer = agent.sign(request(CSR, **options), sha256(CSR).digest(), always).answer
    assert isinstance(answer, Error)
    assert answer.retryable
    key.is_away = False


def test_retry_at_the_other_agent_completes_the_intent(tmp_path: Path, time: Time) -> None:
    """What one agent recorded and did not sign, the other one signs: one intent, one certificate, its TBS."""
    with two_agents(tmp_path, time) as (one, other):
        failed_once(one)
        assert statuses(tmp_path) == ["pending"]
        time.advance(minutes=9, seconds=59)
        leaf = leaf_of(other, CSR)
        assert leaf_of(one, CSR) == leaf
    assert statuses(tmp_path) == ["issued"]
    assert events(tmp_path)[1:] == ["signing", "failed", "signing resumed", "signed", "signed before"]


def test_retry_at_the_same_agent_completes_the_intent(tmp_path: Path, time: Time) -> None:
    """A retry after the key came back gets the certificate whose intent was recorded first."""
    with open_agent(tmp_path, time) as agent:
        failed_once(agent, key=KEY)
        leaf = leaf_of(agent, CSR, key=KEY)
        assert leaf_of(agent, CSR) == leaf
    assert statuses(tmp_path) == ["issued"]


def test_both_agents_sign(tmp_path: Path, time: Time) -> None:
    """Whose signature comes second answers with the one that came first."""
    with two_agents(tmp_path, time) as (one, other):
        with while_signing(one) as (key, asked):
            leaf = leaf_of(other, CSR)
            assert key.signed == [tbs_of(leaf)]
        assert leaf_in(asked.result()) == leaf
        assert (one.failures, other.failures) == ([], [])
    assert statuses(tmp_path) == ["issued"]
    assert events(tmp_path)[1:] == ["signing", "signing resumed", "signed"]


def test_signature_that_comes_second_is_told_as_that(tmp_path: Path, time: Time) -> None:
    """The log says "signed" once of a certificate, as the audit does."""
    with two_agents(tmp_path, time) as (one, other):
        key: WaitingKey = with_key(one, WaitingKey)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(one.sign, request(CSR), sha256(CSR).digest(), always)
            assert key.asked.wait(60)
            first = other.sign(request(CSR), sha256(CSR).digest(), always)
            key.may_sign.set()
        assert (first.event, asked.result().event) == ("signed", "signed before")


def test_signature_after_the_replay_window(tmp_path: Path, time: Time) -> None:
    """What has been pending for ten minutes is closed off by whoever asks again, and its late signature refused."""
    with two_agents(tmp_path, time) as (one, other):
        with while_signing(one) as (_, asked):
            time.advance(minutes=10)
            leaf = leaf_of(other, CSR)
        assert asked.result() == TOO_LONG
        assert leaf_of(one, CSR) == leaf
    assert statuses(tmp_path) == ["abandoned", "issued"]
    assert events(tmp_path)[1:] == ["signing", "intents abandoned", "signing", "signed", "failed", "signed before"]


def test_signature_after_a_revocation(tmp_path: Path, time: Time) -> None:
    """Who signs what the other agent signed, and what was then revoked, does not give it to anybody."""
    with two_agents(tmp_path, time) as (one, other):
        with while_signing(one) as (_, asked):
            first = x509.load_der_x509_certificate(leaf_of(other, CSR))
            revoke(other, first, time)
        assert asked.result() == TOO_LONG
        assert x509.load_der_x509_certificate(leaf_of(one, CSR)) != first
    assert statuses(tmp_path) == ["issued", "issued"]


def test_intent_under_another_root(tmp_path: Path, time: Time) -> None:
    """What is pending under the old root is left to whoever signs it; under the new one there is another one."""
    with two_agents(tmp_path, time) as (one, other):
        with while_signing(one) as (_, asked):
            ca_lifecycle.rotate(tmp_path, None, Access(), time(), other.ledger.note)
            other.generations.look_for_newer()
            new = leaf_of(other, CSR)
        assert leaf_in(asked.result()) != new
    assert statuses(tmp_path) == ["issued", "issued"]
    assert "signing resumed" not in events(tmp_path)


def test_intent_of_an_agent_with_another_profile(tmp_path: Path, time: Time) -> None:
    """An agent signs only what it would have recorded itself: another one's intent is closed off, and refused later."""
    with two_agents(tmp_path, time, profile=Profile(validity=timedelta(days=7))) as (one, other):
        with while_signing(one) as (_, asked):
            leaf = leaf_of(other, CSR)
        assert asked.result() == TOO_LONG
        assert leaf_of(one, CSR) == leaf
    assert statuses(tmp_path) == ["abandoned", "issued"]
    assert events(tmp_path).count("signed") == 1


class InterruptedProfile(Profile):
    """A profile of which something else happens when it is applied for the second time."""

    def period(self, now: datetime, limit: datetime) -> tuple[datetime, datetime]:
        """Return the period, after what happens."""
        HAPPENS.pop()()
        return super().period(now, limit)


HAPPENS: list[Callable[[], object]] = []


def test_intent_of_a_third_agent_comes_in_between(tmp_path: Path, time: Time) -> None:
    """Nothing is signed where another intent was recorded while this agent looked at the one before it."""
    week = Profile(validity=timedelta(days=7))
    with (
        two_agents(tmp_path, time, profile=week) as (one, other),
        open_agent(tmp_path, time, alone=False, profile=InterruptedProfile()) as third,
    ):
        failed_once(other)
        key: WaitingKey = with_key(third, WaitingKey)
        HAPPENS[:] = [lambda: failed_once(one), lambda: None]
        assert third.sign(request(CSR), sha256(CSR).digest(), always).answer == TOO_LONG
        assert key.signed == []
        leaf = leaf_of(one, CSR)
        assert leaf_of(other, CSR) == leaf
    assert statuses(tmp_path) == ["abandoned", "issued"]


@pytest.mark.parametrize("column", ["tbs", "recorded_ms"])
def test_intent_that_somebody_wrote_into_the_ledger(tmp_path: Path, time: Time, column: str) -> None:
    """A TBS, or a time, that was put in the place of the recorded one is never signed."""
    with open_agent(tmp_path, time) as agent:
        failed_once(agent)
        other = {"tbs": b"\x30\x03\x02\x01\x07", "recorded_ms": milliseconds(time() - timedelta(minutes=5))}[column]
        agent.ledger.change(lambda connection: connection.execute(update(issuance).values({column: other})))
        key: WaitingKey = with_key(agent, WaitingKey)
        key.may_sign.set()
        leaf = leaf_of(agent, CSR)
        assert key.signed == [tbs_of(leaf)]
    assert statuses(tmp_path) == ["abandoned", "issued"]


def test_key_of_a_pending_intent(tmp_path: Path, time: Time) -> None:
    """The same idempotency key leads to the pending intent of its CSR, and to a conflict with any other."""
    with two_agents(tmp_path, time) as (one, other):
        failed_once(one, key=KEY)
        csr = make_csr(key="p384")
        answer = other.sign(request(csr, key=KEY), sha256(csr).digest(), always).answer
        assert isinstance(answer, Error)
        assert answer.code is ErrorCode.REQUEST_CONFLICT
        leaf = leaf_of(other, CSR, key=KEY)
        assert leaf_of(one, CSR, key=KEY) == leaf
    assert statuses(tmp_path) == ["issued"]


def test_start_of_a_second_agent(tmp_path: Path, time: Time) -> None:
    """It leaves alone what the first one has pending; an agent that is alone closes it off."""
    with open_agent(tmp_path, time) as one:
        failed_once(one)
        with open_agent(tmp_path, time, alone=False) as other:
            assert (other.ledger.abandoned_at_start, statuses(tmp_path)) == (0, ["pending"])
    with open_agent(tmp_path, time) as alone:
        assert (alone.ledger.abandoned_at_start, statuses(tmp_path)) == (1, ["abandoned"])
        leaf_of(alone, CSR)
    assert statuses(tmp_path) == ["abandoned", "issued"]
    assert events(tmp_path)[-3:] == ["intents abandoned", "signing", "signed"]


def test_clock_of_a_second_agent(tmp_path: Path, time: Time) -> None:
    """It starts although the first one wrote after it looked at the clock, and not on a clock that is set back."""
    with open_agent(tmp_path, time) as one:
        leaf_of(one, CSR)
        time.advance(seconds=-10)
        with open_agent(tmp_path, time, alone=False):
            pass
        time.advance(seconds=-1)
        with pytest.raises(LedgerUnavailable, match="accept-clock"), open_agent(tmp_path, time, alone=False):
            pass


def test_same_question_twice_in_one_commit(tmp_path: Path, time: Time) -> None:
    """Of two intents for the same question the second is the first one's; of two signatures the first one stays."""
    with open_agent(tmp_path, time) as agent:
        first = make_intent(1)
        second = replace(first, serial=b"s" * 17)
        outcomes = agent.ledger.record_all([first, second])
        assert outcomes == [Recorded(), Resumed(first.serial, b"tbs", 0)]
        one, other = (Signature(first.serial, value, 1, bytes(32), 0, b"") for value in (b"one", b"other"))
        unknown = replace(one, serial=b"u" * 17)
        outcomes = agent.ledger.record_all([unknown, one, other, one])
        assert isinstance(outcomes[0], ClosedOff)
        assert outcomes[1:] == [Kept(b"one", True), Kept(b"one", False), Kept(b"one", False)]
