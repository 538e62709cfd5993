"""Blocked keys: what blocks one and for how long, and that no way to a certificate leads around the list."""

from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.agents import Agent, Time, create_ca, open_agent
from support.blocking import (
    CSR,
    OTHER_CSR,
    REFUSED,
    SIGNED,
    TOKEN,
    answer,
    block,
    code,
    release,
    revoke,
    serial_in,
    unblock,
)
from support.csrs import make_csr, private_key
from support.sharing import events, leaf_of, statuses, two_agents
from support.signing_pause import while_signing

from protocol.errors import ErrorCode
from protocol.records import Error, Signed
from runtime.asn1 import der
from runtime.clock import milliseconds
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import blocked_keys
from vmi_agent.ledger.key_forms import key_forms
from vmi_agent.ledger.queries import prune
from vmi_agent.ledger.revocation import Reason
from vmi_agent.policy.profile import Profile


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


@pytest.fixture
def agent(tmp_path: Path, time: Time) -> Iterator[Agent]:
    """Open an agent."""
    with open_agent(tmp_path, time) as opened:
        yield opened


# How long a key is blocked


def test_key_that_was_compromised_is_blocked_for_good(agent: Agent, time: Time, tmp_path: Path) -> None:
    """Neither time nor the end of the certificate nor an operator gives a compromised key another certificate."""
    serial = serial_in(answer(agent))
    revoke(agent, time, serial, Reason.keyCompromise)

    assert code(agent) == REFUSED
    time.advance(days=2000)
    assert code(agent) == REFUSED
    with pytest.raises(LedgerUnavailable, match="is for good"):
        unblock(agent, time)
    assert code(agent) == REFUSED
    assert statuses(tmp_path) == ["issued"]
    assert "keys blocked" in events(tmp_path)


def test_key_on_hold_is_blocked_until_the_release(agent: Agent, time: Time, tmp_path: Path) -> None:
    """A hold keeps the key from being signed, by any user and for any CSR, until the certificate is released."""
    serial = serial_in(answer(agent))
    revoke(agent, time, serial, Reason.certificateHold)
    assert {code(agent), code(agent, OTHER_CSR), code(agent, user="other")} == {REFUSED}
    with pytest.raises(LedgerUnavailable, match=f"certs release {serial.hex()} --state-dir"):
        unblock(agent, time)

    release(agent, time, serial)
    assert serial_in(answer(agent)) == serial
    assert events(tmp_path)[-3:-1] == ["released", "key unblocked"]


@pytest.mark.parametrize("reason", [each for each in Reason if each is not Reason.certificateHold], ids=str)
def test_key_after_a_hold_that_ends_in_a_revocation(agent: Agent, time: Time, reason: Reason) -> None:
    """Revoked after a hold, the key is free again, but for keyCompromise."""
    serial = serial_in(answer(agent))
    revoke(agent, time, serial, Reason.certificateHold)
    revoke(agent, time, serial, reason)
    assert code(agent) == (REFUSED if reason is Reason.keyCompromise else SIGNED)


@pytest.mark.parametrize("reason", [each for each in Reason if each.name not in blocked_keys.BLOCKING], ids=str)
def test_key_revoked_for_another_reason_is_free(agent: Agent, time: Time, reason: Reason) -> None:
    """A key whose certificate was superseded, say, gets a new certificate, never the revoked one."""
    serial = serial_in(answer(agent, key=TOKEN))
    revoke(agent, time, serial, reason)
    assert serial_in(answer(agent, key=TOKEN)) != serial


def test_key_stays_blocked_while_any_reason_is_left(agent: Agent, time: Time) -> None:
    """Of two holds and a block by hand, each ends alone, and the key is free after the last one."""
    one, other = (serial_in(answer(agent, user=user)) for user in ("one", "other"))
    for serial in (one, other):
        revoke(agent, time, serial, Reason.certificateHold)
    assert (block(agent, time), block(agent, time)) == (1, 0)

    release(agent, time, one)
    assert code(agent) == REFUSED
    release(agent, time, other)
    assert code(agent) == REFUSED
    unblock(agent, time)
    assert code(agent) == SIGNED
    with pytest.raises(LedgerUnavailable, match="is not blocked"):
        unblock(agent, time)


def test_release_does_not_lift_the_compromise_of_another_certificate(agent: Agent, time: Time) -> None:
    """A key of which one certificate was on hold and another one compromised stays blocked."""
    one, other = (serial_in(answer(agent, user=user)) for user in ("one", "other"))
    revoke(agent, time, one, Reason.certificateHold)
    revoke(agent, time, other, Reason.keyCompromise)
    release(agent, time, one)
    assert code(agent) == REFUSED


def test_hold_of_a_certificate_that_was_pruned(agent: Agent, time: Time) -> None:
    """A hold outlives its certificate; as nobody can release that any more, it is lifted by hand."""
    revoke(agent, time, serial_in(answer(agent)), Reason.certificateHold)
    time.advance(days=1000)
    ended_before, now_ms = time() - timedelta(days=1), milliseconds(time())
    assert agent.ledger.change(lambda it: prune(it, ended_before, now_ms)) == 1
    assert code(agent) == REFUSED
    unblock(agent, time)
    assert code(agent) == SIGNED


# No way around


def test_blocked_key_gets_nothing_by_a_retry(agent: Agent, time: Time) -> None:
    """Neither within ten minutes nor by an Idempotency-Key, nor as a conflict of one."""
    serial = serial_in(answer(agent, key=TOKEN))
    assert serial_in(answer(agent)) == serial
    block(agent, time)
    assert {code(agent), code(agent, key=TOKEN), code(agent, OTHER_CSR, key=TOKEN)} == {REFUSED}


def test_blocked_key_at_every_agent_and_in_every_generation(tmp_path: Path, time: Time) -> None:
    """Another agent of the ledger refuses at once; so does one that starts later, under another root."""
    with two_agents(tmp_path, time) as (one, other):
        serial = serial_in(answer(one))
        assert serial_in(answer(other)) == serial
        revoke(one, time, serial, Reason.keyCompromise)
        assert (code(one), code(other)) == (REFUSED, REFUSED)
    create_ca(tmp_path, now=time())
    with open_agent(tmp_path, time) as agent:
        assert agent.generations.current.generation == 2
        assert code(agent) == REFUSED


def test_blocked_key_comes_before_all_that_is_judged_later(tmp_path: Path, time: Time) -> None:
    """A CSR with a blocked key is refused for it also where its signature is wrong or the profile refuses it."""
    broken = CSR[:-1] + bytes((CSR[-1] ^ 1,))
    with open_agent(tmp_path, time, profile=Profile(key_kinds=("ed25519",))) as agent:
        assert (code(agent, broken), code(agent)) == ("CSR_BAD_SIGNATURE", "CSR_WEAK_KEY")
        block(agent, time)
        assert (code(agent, broken), code(agent)) == (REFUSED, REFUSED)


@pytest.mark.parametrize("blocked_as", ["uncompressed", "compressed"])
@pytest.mark.parametrize("kind", ["p256", "p384", "p521"])
def test_blocked_key_in_the_other_form_of_its_point(agent: Agent, time: Time, kind: str, blocked_as: str) -> None:
    """An EC key is blocked however its point is written in the list; a CSR may write it in one form only."""
    public_key = private_key(kind).public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    whole = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    algorithm, bit_string = der.children(whole)
    point = public_key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    short = der.wrap(der.SEQUENCE, algorithm, der.wrap(der.BIT_STRING, b"\0", point))
    assert bit_string.endswith(public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))

    assert set(key_forms(whole)) == set(key_forms(short)) == {sha256(whole).digest(), sha256(short).digest()}
    block(agent, time, sha256(whole if blocked_as == "uncompressed" else short).digest())
    assert code(agent, make_csr(key=kind)) == REFUSED


@pytest.mark.parametrize(
    "key_info",
    [
        b"",
        b"\x30\x00",
        bytes.fromhex("300906072a8648ce3d0201"),
        bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107"),
    ],
)
def test_key_forms_of_what_is_no_key(key_info: bytes) -> None:
    """Octets that are no SubjectPublicKeyInfo have one hash, and break nothing."""
    assert key_forms(key_info) == (sha256(key_info).digest(),)


@pytest.mark.parametrize("how", ["by hand", "by another certificate"])
def test_key_that_is_blocked_while_the_signature_is_made(tmp_path: Path, time: Time, how: str) -> None:
    """A block that is committed before the signature wins: nothing is answered, and the intent is closed off."""
    with two_agents(tmp_path, time) as (one, other):
        serial = serial_in(answer(other, user="another"))
        with while_signing(one) as (_, asked):
            if how == "by hand":
                block(other, time)
            else:
                revoke(other, time, serial, Reason.keyCompromise)
        refused = asked.result()
        assert isinstance(refused, Error)
        assert refused.code is ErrorCode.CSR_BLOCKED_KEY
        assert not refused.retryable
    assert statuses(tmp_path) == ["issued", "abandoned"]
    assert events(tmp_path)[-2:] == ["intents abandoned", "refused"]


def test_pending_intent_of_a_key_that_is_blocked(tmp_path: Path, time: Time) -> None:
    """A retry does not take up what another agent began to sign before the key was blocked."""
    with two_agents(tmp_path, time) as (one, other), while_signing(one) as (_, asked):
        block(other, time)
        assert code(other) == REFUSED
    assert isinstance(asked.result(), Error)


# Idempotency-Keys


@pytest.mark.parametrize("seconds", [-1, 0, 1])
def test_idempotency_key_never_gives_back_what_has_ended(agent: Agent, time: Time, seconds: int) -> None:
    """Up to the certificate's last second it is given again, and from then on a new one for the same CSR."""
    first = answer(agent, key=TOKEN)
    row = agent.ledger.read(lambda it: it.exec_driver_sql("SELECT not_after FROM issuance").one())
    time.advance(seconds=row.not_after - time().timestamp() + seconds)

    second = answer(agent, key=TOKEN)
    assert (serial_in(second) == serial_in(first)) is (seconds <= 0)
    if seconds > 0:
        assert serial_in(answer(agent, key=TOKEN)) == serial_in(second)
        assert code(agent, OTHER_CSR, key=TOKEN) == "REQUEST_CONFLICT"


@pytest.mark.parametrize("state", [Reason.superseded, Reason.certificateHold, Reason.keyCompromise], ids=str)
def test_idempotency_key_never_gives_back_what_is_revoked(agent: Agent, time: Time, state: Reason) -> None:
    """A key whose certificate was revoked gets a new one, or none where the public key is blocked."""
    serial = serial_in(answer(agent, key=TOKEN))
    revoke(agent, time, serial, state)
    found = answer(agent, key=TOKEN)
    assert isinstance(found, Error if state.name in blocked_keys.BLOCKING else Signed)
    assert isinstance(found, Error) or serial_in(found) != serial


def test_replay_never_gives_back_what_has_ended(tmp_path: Path, time: Time) -> None:
    """A certificate that lives shorter than the ten minutes of the replay is not given again after its end."""
    with open_agent(tmp_path, time, profile=Profile(validity=timedelta(minutes=8))) as agent:
        first = leaf_of(agent, CSR)
        time.advance(minutes=2, seconds=59)
        assert leaf_of(agent, CSR) == first
        time.advance(seconds=1)
        assert leaf_of(agent, CSR) != first
