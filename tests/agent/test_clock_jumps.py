"""What an agent made while its clock was wrong, once the clock is right (its clock is the test's own)."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import LogWatch
from cryptography import x509
from support.agents import START, Agent, Time, always, create_ca, open_agent, request
from support.csrs import make_csr
from support.revoking import ask, issue, question, revoke

from protocol.errors import ErrorCode
from protocol.records import Chain, Error
from runtime.clock import BACK_DATE, milliseconds
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import CaNotValid
from vmi_agent.cli.groups import noting
from vmi_agent.errors import ClosedOff
from vmi_agent.issuance.issue import Issued
from vmi_agent.keys.open import Access
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.issuances import Recorded
from vmi_agent.ledger.retention import close_off_old, has_old
from vmi_agent.ledger.revocation import Reason
from vmi_agent.maintenance import AnchorTo, Upkeep
from vmi_agent.policy.profile import Profile

KEY = bytes(range(16))
COUNT = "SELECT count(*) FROM issuance WHERE profile = 'hmc-client'"


@pytest.fixture
def time() -> Time:
    """Return a clock."""
    return Time()


@pytest.fixture
def agent(tmp_path: Path, time: Time) -> Iterator[Agent]:
    """Return an agent whose CA was made at START."""
    with open_agent(tmp_path, time) as agent:
        yield agent


def leaf_of(issued: Issued) -> x509.Certificate:
    """Return the leaf of what was issued."""
    return x509.load_der_x509_certificate(issued.chain[0])


def is_valid(certificate: x509.Certificate, time: Time) -> bool:
    """Return whether a certificate is valid by the test's clock."""
    return certificate.not_valid_before_utc <= time() <= certificate.not_valid_after_utc


# A retry after the clock was mended


@pytest.mark.parametrize("key", [bytes(16), KEY], ids=["by CSR", "by Idempotency-Key"])
@pytest.mark.parametrize("ahead", [timedelta(minutes=6), timedelta(minutes=20), timedelta(days=40)])
def test_retry_of_a_request_from_a_clock_that_was_ahead(agent: Agent, time: Time, ahead: timedelta, key: bytes) -> None:
    """The certificate of the future is not given again: the retry gets one that is valid, and keeps it."""
    csr = make_csr()
    time.now = START + ahead
    future = agent.issuing.issue(request(csr, key=key), always)
    time.now = START
    again = agent.issuing.issue(request(csr, key=key), always)
    third = agent.issuing.issue(request(csr, key=key), always)

    assert again.is_new
    assert not is_valid(leaf_of(future), time)
    assert is_valid(leaf_of(again), time)
    assert third.serial == again.serial


@pytest.mark.parametrize("key", [bytes(16), KEY], ids=["by CSR", "by Idempotency-Key"])
def test_retry_where_the_clock_was_ahead_within_the_back_dating(agent: Agent, time: Time, key: bytes) -> None:
    """Up to five minutes the certificate is valid all the same, and a retry makes no second one."""
    csr = make_csr()
    time.now = START + BACK_DATE
    first = agent.issuing.issue(request(csr, key=key), always)
    time.now = START
    again = agent.issuing.issue(request(csr, key=key), always)

    assert is_valid(leaf_of(again), time)
    assert again.serial == first.serial


def test_retry_of_a_certificate_that_is_valid_but_was_made_ahead(tmp_path: Path, time: Time) -> None:
    """Where the profile dates back further than the clock was ahead, the certificate is of the future all the same."""
    csr, profile = make_csr(), Profile(back_date=timedelta(hours=23))
    with open_agent(tmp_path, time, profile=profile) as agent:
        time.now = START + timedelta(hours=12)
        future = agent.issuing.issue(request(csr), always)
        time.now = START
        again = agent.issuing.issue(request(csr), always)

    assert is_valid(leaf_of(future), time)
    assert again.serial != future.serial


def test_certificate_of_the_future_hides_no_older_one(agent: Agent, time: Time) -> None:
    """A retry gets what was signed before the clock jumped ahead and back."""
    csr = make_csr()
    first = agent.issuing.issue(request(csr), always)
    time.now = START + timedelta(days=40)
    agent.issuing.issue(request(csr), always)
    time.now = START + timedelta(minutes=5)

    assert agent.issuing.issue(request(csr), always).serial == first.serial


def test_idempotency_key_of_a_certificate_that_has_ended(tmp_path: Path, time: Time) -> None:
    """In its last second a certificate is given again; then there is a new one."""
    csr, profile = make_csr(), Profile(validity=timedelta(hours=1))
    with open_agent(tmp_path, time, profile=profile) as agent:
        first = agent.issuing.issue(request(csr, key=KEY), always)
        time.now = leaf_of(first).not_valid_after_utc + timedelta(milliseconds=999)
        assert agent.issuing.issue(request(csr, key=KEY), always).serial == first.serial
        time.advance(milliseconds=1)
        again = agent.issuing.issue(request(csr, key=KEY), always)

    assert again.serial != first.serial
    assert is_valid(leaf_of(again), time)


# Intents without a signature


def pending(agent: Agent, time: Time, csr: bytes) -> bytes:
    """Leave an intent without a signature, as a process does that is killed then; return its serial."""
    walk = agent.issuing.issuing.issue(request(csr), always)
    intent = walk.send(None).work  # what it wants recorded first
    assert isinstance(agent.ledger.record_intent(intent), Recorded)
    walk.close()
    return bytes(intent.serial)


@pytest.mark.parametrize(("ahead", "is_resumed"), [(timedelta(minutes=5), True), (timedelta(minutes=6), False)])
def test_pending_intent_of_the_future(agent: Agent, time: Time, ahead: timedelta, is_resumed: bool) -> None:
    """It is closed off, and the retry gets a certificate of its own."""
    csr = make_csr()
    time.now = START + ahead
    serial = pending(agent, time, csr)
    time.now = START
    issued = agent.issuing.issue(request(csr), always)

    assert (issued.serial == serial) is is_resumed
    assert is_valid(leaf_of(issued), time)


@pytest.mark.parametrize(("ahead_s", "is_old"), [(300, False), (301, True)])
def test_upkeep_closes_off_intents_of_the_future(agent: Agent, time: Time, ahead_s: int, is_old: bool) -> None:
    """Nobody asked again: they are closed off as those are that have been pending for too long."""
    time.now = START + timedelta(seconds=ahead_s)
    pending(agent, time, make_csr())
    now_ms = milliseconds(START)

    assert agent.ledger.read(lambda connection: has_old(connection, now_ms)) is is_old
    assert agent.ledger.change(lambda connection: close_off_old(connection, now_ms)) == is_old


def test_clock_set_back_while_a_certificate_is_signed(agent: Agent, time: Time) -> None:
    """It is not given out: it is not valid now."""
    csr = make_csr()
    time.now = START + timedelta(days=40)
    walk = agent.issuing.issuing.issue(request(csr), always)
    intent = walk.send(None).work  # what it wants recorded first
    outcome = agent.ledger.record_intent(intent)
    making = walk.send(outcome)
    time.now = START
    with pytest.raises(ClosedOff, match="the clock was set"):
        walk.send(making.call())


# The CA


def accept_clock(state_dir: Path) -> None:
    """Have the audit accept START as the right time, as `audit accept-clock` does."""
    noting(state_dir)(Event("clock accepted", milliseconds(START), {}))


def create_future_ca(state_dir: Path, ahead: timedelta) -> x509.Certificate:
    """Make a CA while the clock is ahead of START, which is then accepted; return its root."""
    root = create_ca(state_dir, now=START + ahead).root
    accept_clock(state_dir)
    return root


def test_ca_that_is_not_valid_yet(tmp_path: Path, time: Time) -> None:
    """It signs nothing, gives no chain, no CRL and no OCSP answer, and names `ca rotate`; then it does."""
    root = create_future_ca(tmp_path, timedelta(days=40))
    with open_agent(tmp_path, time) as agent:
        with pytest.raises(CaNotValid, match=r"not valid before 2027.*vmi-agent ca rotate"):
            agent.issuing.issue(request(make_csr()), always)
        outcome = agent.sign(request(make_csr()), bytes(32), always)
        chain = agent.dispatch.chain()
        agent.publishing.refresh()
        no_crl = agent.publishing.crl(1)
        time.now = root.not_valid_before_utc
        assert isinstance(agent.dispatch.chain(), Chain)
        agent.publishing.refresh()
        leaf = issue(agent)
        ask(agent, question(leaf, root))
        assert is_valid(leaf, time)
        assert agent.publishing.crl(1) is not None

    assert isinstance(outcome.answer, Error)
    assert (outcome.answer.code, outcome.answer.retryable) == (ErrorCode.FAILED, True)
    assert "not valid yet" in outcome.answer.text
    assert isinstance(chain, Error)
    assert "vmi-agent ca rotate" in str(agent.failures[0])
    assert no_crl is None


def test_ca_one_second_before_it_is_valid(tmp_path: Path, time: Time) -> None:
    """The limit is its notBefore."""
    time.now = create_future_ca(tmp_path, timedelta(days=1)).not_valid_before_utc - timedelta(seconds=1)
    with open_agent(tmp_path, time) as agent, pytest.raises(CaNotValid):
        agent.issuing.issue(request(make_csr()), always)


def test_rotation_of_a_ca_that_is_not_valid_yet(tmp_path: Path, time: Time) -> None:
    """The new root signs at once; there are no cross-certificates with one that nobody may trust."""
    create_future_ca(tmp_path, timedelta(days=40))
    ca_lifecycle.rotate(tmp_path, None, Access(), START, noting(tmp_path))
    with open_agent(tmp_path, time) as agent:
        agent.publishing.refresh()
        leaf = issue(agent)

        assert agent.generations.current.crosses == ()
        assert agent.publishing.crl(1) is None
        assert agent.publishing.crl(2) is not None
        assert is_valid(leaf, time)
    directory = ca_store.directory_of(tmp_path, 2)
    assert not (directory / ca_store.NEW_WITH_OLD_FILE).exists()
    assert not (directory / ca_store.OLD_WITH_NEW_FILE).exists()


def test_log_tells_of_a_ca_that_is_not_valid_yet(tmp_path: Path, time: Time, log_watch: LogWatch) -> None:
    """At the start and daily, until it is valid; the clock may have been ahead meanwhile."""
    log_watch.expect_error("CA is not valid")
    create_future_ca(tmp_path, timedelta(days=3))
    texts = []
    with open_agent(tmp_path, time) as agent:
        no_anchor = AnchorTo(None, None, timedelta(minutes=5))
        upkeep = Upkeep(agent.generations, agent.publishing, agent.responder, agent.ledger, no_anchor, None, time)
        for days in (0, 0.5, 1, 5, 1.5, 3):
            time.now = START + timedelta(days=days)
            upkeep.round()
            texts.append(sum("vmi-agent ca rotate" in each for each in log_watch.lines()))

    assert texts == [1, 1, 2, 2, 3, 3]


# CRLs, OCSP


def entries(agent: Agent) -> dict[int, x509.RevokedCertificate]:
    """Return the entries of the CRL, by serial number."""
    found = agent.publishing.crl(1)
    assert found is not None
    return {each.serial_number: each for each in x509.load_der_x509_crl(found.der)}


def updated(agent: Agent) -> x509.CertificateRevocationList:
    """Return the CRL, made again where it is due."""
    agent.publishing.refresh()
    found = agent.publishing.crl(1)
    assert found is not None
    return x509.load_der_x509_crl(found.der)


def test_crl_is_dated_back_and_its_entries_are_not(agent: Agent, time: Time) -> None:
    """A verifier whose clock is five minutes slow takes it; the entry tells when the certificate was revoked."""
    time.advance(days=1)
    leaf = issue(agent)
    revoke(agent, leaf, time)
    crl = updated(agent)

    assert crl.last_update_utc == time() - BACK_DATE
    assert entries(agent)[leaf.serial_number].revocation_date_utc == time()


def test_crl_is_not_dated_before_its_issuer(tmp_path: Path, time: Time) -> None:
    """The first one begins with the CA, where the CA was valid for less than the back-dating."""
    time.now = create_future_ca(tmp_path, timedelta(days=1)).not_valid_before_utc + timedelta(seconds=10)
    with open_agent(tmp_path, time) as agent:
        assert updated(agent).last_update_utc == agent.generations.current.valid_from


def test_crl_of_the_future_is_replaced(agent: Agent, time: Time) -> None:
    """Once the clock is right it is made again, with a higher number."""
    time.now = START + timedelta(days=40)
    future = updated(agent)
    time.now = START + timedelta(days=1)
    crl = updated(agent)

    numbers = [each.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for each in (future, crl)]
    assert numbers[0] < numbers[1]
    assert crl.last_update_utc == time() - BACK_DATE


def test_crl_lists_again_what_a_clock_ahead_left_out(tmp_path: Path, time: Time) -> None:
    """By the wrong clock the revoked certificate had ended long ago; it has not."""
    with open_agent(tmp_path, time, profile=Profile(validity=timedelta(days=30))) as agent:
        leaf = issue(agent)
        revoke(agent, leaf, time)
        for days, is_listed in ((0, True), (60, True), (62, False), (1, True)):
            time.now = START + timedelta(days=days)
            agent.publishing.refresh()
            assert (leaf.serial_number in entries(agent)) is is_listed, days


def test_crl_is_withdrawn_where_its_ca_is_not_valid_any_more(agent: Agent, time: Time) -> None:
    """The clock was ahead from before the CA was made: with the right time there is no CRL of it."""
    agent.publishing.refresh()
    assert agent.publishing.crl(1) is not None
    time.advance(days=-40)
    agent.publishing.refresh()
    assert agent.publishing.crl(1) is None
    time.now = START
    agent.publishing.refresh()
    assert agent.publishing.crl(1) is not None


def test_revocation_of_the_future_counts_at_once(agent: Agent, time: Time) -> None:
    """Neither the CRL nor OCSP dates it in the future, where some verifiers would not believe it yet."""
    leaf, root = issue(agent), agent.generations.current.root
    time.now = START + timedelta(days=40)
    revoke(agent, leaf, time, Reason.superseded)
    agent.publishing.refresh()
    time.now = START + timedelta(days=1)
    crl = updated(agent)
    answer = ask(agent, question(leaf, root))

    entry = entries(agent)[leaf.serial_number]
    assert entry.revocation_date_utc == crl.last_update_utc
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.superseded
    assert answer.revocation_time_utc == time()
    assert answer.this_update_utc == time()


def test_ocsp_answer_is_dated_back_but_not_before_the_revocation(agent: Agent, time: Time) -> None:
    """A slow verifier takes a good one; a revoked one tells when the certificate was revoked."""
    leaf, root = issue(agent), agent.generations.current.root
    assert ask(agent, question(leaf, root)).this_update_utc == time() - BACK_DATE
    time.advance(seconds=60)
    revoke(agent, leaf, time)
    agent.publishing.refresh(lambda serials: agent.responder.forget(serials))
    revoked_at = time()
    for minutes, this_update in ((1, revoked_at), (6, revoked_at + timedelta(minutes=1))):
        time.now = revoked_at + timedelta(minutes=minutes)
        answer = ask(agent, question(leaf, root, b"nonce"))
        assert (answer.this_update_utc, answer.revocation_time_utc) == (this_update, revoked_at)


def test_ocsp_delegate_of_the_future_is_replaced(agent: Agent, time: Time) -> None:
    """In the running agent; its key signs nothing more, and neither the agent's memory nor its file keep it."""
    root = agent.generations.current.root
    time.now = START + timedelta(days=40)
    future = ask(agent, question(issue(agent), agent.generations.current.root)).certificates[0]
    time.now = START + timedelta(days=1)
    answer = ask(agent, question(issue(agent), root))

    assert not is_valid(future, time)
    assert is_valid(answer.certificates[0], time)


def test_ocsp_delegate_of_the_future_in_its_file(tmp_path: Path, time: Time) -> None:
    """After a restart as well."""
    with open_agent(tmp_path, time) as agent:
        time.now = START + timedelta(days=40)
        ask(agent, question(issue(agent), agent.generations.current.root))
    accept_clock(tmp_path)
    time.now = START + timedelta(days=1)
    with open_agent(tmp_path, time) as agent:
        answer = ask(agent, question(issue(agent), agent.generations.current.root))

    assert is_valid(answer.certificates[0], time)


# Pruning


def test_pruning_does_not_believe_a_clock_that_is_ahead(tmp_path: Path, time: Time) -> None:
    """What has not ended is never forgotten: the time is what passed since the audit was last written."""
    passed_s = 0.0
    with open_agent(tmp_path, time, profile=Profile(validity=timedelta(days=30))) as agent:
        issue(agent)
    time.now = START + timedelta(days=4000)
    with open_agent(tmp_path, time) as agent:
        no_anchor, keep = AnchorTo(None, None, timedelta(minutes=5)), timedelta(days=10)
        parts = (agent.generations, agent.publishing, agent.responder, agent.ledger)
        upkeep = Upkeep(*parts, no_anchor, keep, time, lambda: passed_s)
        kept = []
        for passed in (timedelta(0), timedelta(days=39), timedelta(days=41)):
            passed_s = passed.total_seconds()
            time.now = START + timedelta(days=4000) + passed
            upkeep.round()
            kept.append(agent.ledger.read(lambda connection: connection.exec_driver_sql(COUNT).scalar()))

    assert kept == [1, 1, 0]
