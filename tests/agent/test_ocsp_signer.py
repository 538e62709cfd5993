"""The OCSP responder's delegates, and which of its answers are kept for how long."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy import Connection, func, insert, select
from support.agents import START, Agent, Time, create_ca, open_agent
from support.revoking import (
    HASHES,
    KeyAway,
    ask,
    by_serial,
    issue,
    question,
    read_crl,
    release,
    revoke,
    serial_of,
)

from runtime.clock import BACK_DATE, milliseconds
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import Generations
from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.keys import CustodyError
from vmi_agent.keys.open import Access
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import issuance
from vmi_agent.revocation import ocsp_signer
from vmi_agent.revocation.ocsp import KEPT_ANSWERS, VALIDITY, OcspResponder
from vmi_agent.revocation.ocsp_signer import Responders

TRY_LATER = ocsp.OCSPResponseStatus.TRY_LATER
GOOD, REVOKED = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


def request_for(agent: Agent, leaf: x509.Certificate, hash_name: str = "sha1") -> bytes:
    """Return a request without a nonce."""
    return question(leaf, agent.generations.current.root, hash_name=hash_name)


def delegate_in(agent: Agent, leaf: x509.Certificate) -> x509.Certificate:
    """Return whose certificate an answer carries; each has a nonce, so that none is kept."""
    return ask(agent, question(leaf, agent.generations.current.root, b"n")).certificates[0]


# Delegates


def test_delegate_certificate(tmp_path: Path, time: Time) -> None:
    """It may sign OCSP answers and nothing else, nobody asks about it, and the ledger has it."""
    with open_agent(tmp_path, time) as agent:
        certificate = delegate_in(agent, issue(agent))
        serials = agent.ledger.read(_serials)

    found = {each.value.__class__: each for each in certificate.extensions}
    usage = found[x509.KeyUsage].value
    assert usage == x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    assert found[x509.KeyUsage].critical
    assert list(found[x509.ExtendedKeyUsage].value) == [ExtendedKeyUsageOID.OCSP_SIGNING]
    assert x509.OCSPNoCheck in found
    assert found[x509.BasicConstraints].value == x509.BasicConstraints(ca=False, path_length=None)
    assert certificate.not_valid_before_utc == START - BACK_DATE
    assert certificate.not_valid_after_utc == START - BACK_DATE + ocsp_signer.VALIDITY
    assert serial_of(certificate) in serials


def _serials(connection: Connection) -> list[bytes]:
    return list(connection.execute(select(issuance.c.serial)).scalars())


def test_delegate_over_restarts(tmp_path: Path, time: Time) -> None:
    """Its key and certificate are on disk, 0600, and used again."""
    found = []
    for name in ("a", "b"):
        with open_agent(tmp_path, time) as agent:
            found.append(delegate_in(agent, issue(agent, name)))

    path = ca_store.directory_of(tmp_path, 1) / ca_store.OCSP_FILE
    assert found[0] == found[1]
    assert path.stat().st_mode & 0o777 == 0o600


def test_delegate_is_renewed_before_its_end(tmp_path: Path, time: Time) -> None:
    """With thirty days left another takes its place, also in the file."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        first = delegate_in(agent, leaf)
        time.now = first.not_valid_after_utc - ocsp_signer.RENEW_BEFORE_END
        unchanged = delegate_in(agent, leaf)
        time.advance(seconds=1)
        second = delegate_in(agent, leaf)
    with open_agent(tmp_path, time) as agent:
        after_restart = delegate_in(agent, leaf)

    assert unchanged == first
    assert second.not_valid_after_utc == time() - BACK_DATE + ocsp_signer.VALIDITY
    assert second.public_key() != first.public_key()
    assert after_restart == second


def test_delegate_ends_with_its_ca(tmp_path: Path, time: Time) -> None:
    """It never outlives the CA, and is not made anew again and again because of it."""
    with open_agent(tmp_path, time) as agent:
        leaf, root = issue(agent), agent.generations.current.root
        time.now = root.not_valid_after_utc - timedelta(days=10)
        first = delegate_in(agent, leaf)

        assert first.not_valid_after_utc == root.not_valid_after_utc
        assert delegate_in(agent, leaf) == first


def test_delegate_key_is_encrypted(tmp_path: Path, time: Time) -> None:
    """Where there is a passphrase, it encrypts the delegate's key, and opens it after a restart."""
    access = Access(b"correct horse")
    with open_agent(tmp_path, time, access=access) as agent:
        first = delegate_in(agent, issue(agent))
    pem = (ca_store.directory_of(tmp_path, 1) / ca_store.OCSP_FILE).read_bytes()
    with open_agent(tmp_path, time, access=access) as agent:
        second = delegate_in(agent, issue(agent, "b"))

    assert b"BEGIN ENCRYPTED PRIVATE KEY" in pem
    serialization.load_pem_private_key(pem, b"correct horse")
    assert second == first


def test_delegate_of_an_ephemeral_ca(tmp_path: Path, time: Time) -> None:
    """Its key is in memory only, as the CA's own is: nobody answers for that CA once it is gone."""
    with open_agent(tmp_path, time) as agent:
        ephemeral = ca_lifecycle.create_ephemeral(tmp_path, "p256", time(), agent.ledger.note)
        responders = Responders(tmp_path, None, agent.ledger, time)

        assert responders.get(ephemeral) is responders.get(ephemeral)
    files = {path.name for path in ca_store.directory_of(tmp_path, 2).iterdir()}
    assert files == {ca_store.EPHEMERAL_FILE, ca_store.ROOT_FILE}


@contextmanager
def key_away(agent: Agent, directory: Path, time: Time) -> Iterator[tuple[Agent, KeyAway]]:
    """Give the same agent's responder with a CA key that is away."""
    away = KeyAway(agent.generations.current.custody)
    authority = replace(agent.generations.current, custody=away)
    generations = Generations(directory, Access(), None, time(), lambda *_: None, authority)
    responders = Responders(directory, None, agent.ledger, time)
    answering = OcspResponder(generations, responders, agent.ledger, time, agent.failures.append)
    yield replace(agent, generations=generations, responder=answering), away


def test_delegate_while_the_key_is_away(tmp_path: Path, time: Time) -> None:
    """tryLater, told once, and strangers who ask again and again cost the ledger no row; then it is made."""
    with open_agent(tmp_path, time) as opened, key_away(opened, tmp_path, time) as (agent, away):
        request = request_for(agent, issue(opened))
        assert [ask(agent, request).response_status for _ in range(5)] == [TRY_LATER] * 5
        rows = agent.ledger.read(_rows)
        away.is_away = False
        assert ask(agent, request).response_status is TRY_LATER
        time.now += ocsp_signer.RETRY_AFTER
        answer = ask(agent, request)

        assert rows == 2  # the leaf's and one try
        assert [type(each) for each in agent.failures] == [CustodyError]
        assert answer.certificate_status is GOOD
    agent.failures.clear()


def _rows(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(issuance)).scalar_one()


def test_delegate_that_cannot_be_renewed(tmp_path: Path, time: Time) -> None:
    """While the CA's key is away the old one answers to its last day, and not beyond it."""
    with open_agent(tmp_path, time) as opened, key_away(opened, tmp_path, time) as (agent, away):
        leaf = issue(opened)
        away.is_away = False
        first = delegate_in(agent, leaf)
        away.is_away = True
        time.now = first.not_valid_after_utc - timedelta(days=1)
        assert delegate_in(agent, leaf) == first
        time.now = first.not_valid_after_utc
        beyond = ask(agent, request_for(agent, leaf)).response_status
        time.now += ocsp_signer.RETRY_AFTER
        away.is_away = False
        second = delegate_in(agent, leaf)

    assert beyond is TRY_LATER
    assert second.not_valid_after_utc > first.not_valid_after_utc


@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
def test_delegate_that_was_revoked(restarts: bool, tmp_path: Path, time: Time) -> None:
    """It answers no more, nor is what it signed given again: another takes its place, also after a restart."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        (first,) = ask(agent, request_for(agent, leaf)).certificates
        revoke(agent, first, time)
        if not restarts:
            agent.publishing.refresh(agent.responder.forget)
            (second,) = ask(agent, request_for(agent, leaf)).certificates
    if restarts:
        with open_agent(tmp_path, time) as agent:
            second = delegate_in(agent, leaf)

    assert second.public_key() != first.public_key()


# Kept answers


def test_kept_answer(tmp_path: Path, time: Time) -> None:
    """The same octets until half of the time is over, then new ones; with another hash it is another answer."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        request, other = (request_for(agent, leaf, name) for name in HASHES)
        first = agent.responder.answer(request)
        time.now += VALIDITY / 2
        kept = agent.responder.answer(request)
        different = agent.responder.answer(other)
        time.advance(milliseconds=1)
        second = agent.responder.answer(request)

    assert kept == first
    assert first.expires_ms == milliseconds(START + VALIDITY)
    assert different.der != first.der
    assert second.expires_ms == milliseconds(START + VALIDITY * 1.5)


def test_kept_answer_where_the_clock_was_set_back(tmp_path: Path, time: Time) -> None:
    """What is dated in the future is not given again: whoever gets it would refuse it."""
    with open_agent(tmp_path, time) as agent:
        request = request_for(agent, issue(agent))
        time.advance(days=1)
        agent.responder.answer(request)
        time.advance(days=-1)
        answer = ask(agent, request)

    assert answer.this_update_utc == time() - BACK_DATE


def test_answer_with_a_nonce_is_not_kept(tmp_path: Path, time: Time) -> None:
    """It is for one request alone, and says so."""
    with open_agent(tmp_path, time) as agent:
        request = question(issue(agent), agent.generations.current.root, b"nonce")
        first, second = agent.responder.answer(request), agent.responder.answer(request)

    assert first.expires_ms == second.expires_ms == 0
    assert first.der != second.der  # an ECDSA signature is another one each time


def test_kept_answer_is_forgotten(tmp_path: Path, time: Time) -> None:
    """After a revocation and a release the next answer is another one; a neighbour's stays."""
    with open_agent(tmp_path, time) as agent:
        leaf, neighbour = issue(agent), issue(agent, "neighbour")
        before = agent.responder.answer(request_for(agent, neighbour))
        told = [ask(agent, request_for(agent, leaf)).certificate_status]
        revoke(agent, leaf, time, Reason.certificateHold)
        agent.publishing.refresh(agent.responder.forget)
        told.append(ask(agent, request_for(agent, leaf)).certificate_status)
        release(agent, leaf, time)
        agent.publishing.refresh(agent.responder.forget)
        told.append(ask(agent, request_for(agent, leaf)).certificate_status)

        assert told == [GOOD, REVOKED, GOOD]
        assert agent.responder.answer(request_for(agent, neighbour)) == before


class Looks:
    """A clock that has something happen at one of the looks at it.

    Args:
        time: what it shows.
        at: which look, from 1.
        then: what happens.
    """

    def __init__(self, time: Time, at: int, then: Callable[[], None]) -> None:
        self._time = time
        self._left = at
        self._then = then

    def __call__(self) -> datetime:
        self._left -= 1
        if self._left == 0:
            self._then()
        return self._time()


@pytest.mark.parametrize("look", range(1, 6))
def test_kept_answer_of_one_revoked_while_it_was_signed(look: int, tmp_path: Path, time: Time) -> None:
    """At whatever moment of an answer the certificate is revoked, and that taken in: the next answer says so."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        responders = Responders(tmp_path, None, agent.ledger, time)

        def revoke_now() -> None:
            revoke(agent, leaf, time)
            agent.publishing.refresh(answering.forget)

        clock = Looks(time, look, revoke_now)
        answering = OcspResponder(agent.generations, responders, agent.ledger, clock, agent.failures.append)
        request = request_for(agent, leaf)
        while not list(read_crl_or_none(agent)):
            answering.answer(request)
        answer = ocsp.load_der_ocsp_response(answering.answer(request).der)

    assert answer.certificate_status is REVOKED


def read_crl_or_none(agent: Agent) -> Iterable[x509.RevokedCertificate]:
    """Return whom the CRL lists; nobody where there is none yet."""
    return read_crl(agent) if agent.publishing.crl(1) else ()


def test_kept_answers_are_bounded(tmp_path: Path, time: Time) -> None:
    """Who was not asked for the longest goes; asking for what is not there pushes nobody out."""
    with open_agent(tmp_path, time) as agent:
        leaf, root = issue(agent), agent.generations.current.root
        agent.ledger.change(partial(_add_serials, serial_of(leaf)))
        requests = [by_serial(serial, root) for serial in range(1, KEPT_ANSWERS + 2)]
        first, second = (agent.responder.answer(request) for request in requests[:2])
        for request in requests[2:KEPT_ANSWERS]:
            agent.responder.answer(request)
        for serial in range(KEPT_ANSWERS + 2, KEPT_ANSWERS + 12):
            agent.responder.answer(by_serial(serial, root))

        assert agent.responder.answer(requests[0]) == first
        agent.responder.answer(requests[KEPT_ANSWERS])
        assert agent.responder.answer(requests[0]) == first
        assert agent.responder.answer(requests[1]) != second


def _add_serials(like: bytes, connection: Connection) -> None:
    """Add certificates with the serials from 1 to one more than are kept."""
    row = dict(connection.execute(select(issuance).where(issuance.c.serial == like)).one()._mapping)
    del row["id"]
    serials = [serial.to_bytes(SERIAL_OCTETS) for serial in range(1, KEPT_ANSWERS + 2)]
    connection.execute(insert(issuance), [row | {"serial": serial} for serial in serials])


def test_answers_in_many_threads(tmp_path: Path, time: Time) -> None:
    """All who ask at once get the one delegate's answer, before and after a rotation."""
    with open_agent(tmp_path, time) as agent, ThreadPoolExecutor(16) as threads:
        for generation in (1, 2):
            if generation == 2:
                create_ca(tmp_path, now=time())
                agent.generations.look_for_newer()
            leaf = issue(agent, str(generation))
            request = request_for(agent, leaf)
            answers = list(threads.map(lambda _, request=request: ask(agent, request), range(64)))
            assert {each.certificate_status for each in answers} == {GOOD}
            assert len({each.certificates[0] for each in answers}) == 1
        assert agent.failures == []
