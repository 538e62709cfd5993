"""Blocked RSA keys: a modulus is blocked with every exponent, and the list, its export and the audit agree on that."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from support.agents import Agent, Time, open_agent
from support.audits import complaint
from support.blocking import REFUSED, SIGNED, answer, block, code, release, revoke, serial_in, unblock
from support.csrs import make_csr, private_key

from runtime.asn1 import der
from runtime.clock import milliseconds
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import blocked_keys
from vmi_agent.ledger.blocked_keys import BY_HAND, COMPROMISED, export_blocked, import_blocked, list_blocks
from vmi_agent.ledger.key_forms import key_forms, listed_form
from vmi_agent.ledger.revocation import Reason

USUAL, ODD, THIRD = (make_csr(key=kind) for kind in ("rsa2048", "rsa2048 e=65539", "rsa2048 e=70001"))
OF_EXPONENT = {"65537": USUAL, "65539": ODD, "70001": THIRD}
OTHER_MODULUS = make_csr(key="rsa2048/other")


def hash_of(csr: bytes) -> bytes:
    """Return the SHA-256 of a CSR's SubjectPublicKeyInfo."""
    return sha256(der.csr_subject_and_key(csr)[1]).digest()


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


@pytest.fixture
def agent(tmp_path: Path, time: Time) -> Iterator[Agent]:
    """Open an agent whose audit verifies at the end."""
    with open_agent(tmp_path, time) as opened:
        yield opened
        assert opened.ledger.read(complaint) == ""


def listed(agent: Agent) -> list[tuple[bytes, bytes, str]]:
    """Return the block list without times."""
    return [each[:3] for each in agent.ledger.read(lambda it: list_blocks(it))]


def test_csrs_have_one_modulus() -> None:
    """The CSRs of these tests have the same modulus and three exponents, one of them the usual."""
    keys = [private_key(kind).public_key() for kind in ("rsa2048", "rsa2048 e=65539", "rsa2048 e=70001")]
    numbers = [key.public_numbers() for key in keys if isinstance(key, rsa.RSAPublicKey)]
    assert len({each.n for each in numbers}) == 1
    assert len({each.e for each in numbers}) == 3
    assert {listed_form(der.csr_subject_and_key(csr)[1]) for csr in OF_EXPONENT.values()} == {hash_of(USUAL)}
    assert key_forms(der.csr_subject_and_key(USUAL)[1]) == (hash_of(USUAL),)
    assert key_forms(der.csr_subject_and_key(ODD)[1]) == (hash_of(ODD), hash_of(USUAL))


@pytest.mark.parametrize("exponent", OF_EXPONENT)
def test_compromise_blocks_every_exponent(agent: Agent, time: Time, exponent: str) -> None:
    """A modulus whose key was compromised is never certified again, whatever exponent a CSR gives it."""
    serial = serial_in(answer(agent, OF_EXPONENT[exponent]))
    revoke(agent, time, serial, Reason.keyCompromise)

    assert [code(agent, csr) for csr in OF_EXPONENT.values()] == [REFUSED] * 3
    assert code(agent, OTHER_MODULUS) == SIGNED
    assert listed(agent) == [(hash_of(USUAL), serial, COMPROMISED)]
    with pytest.raises(LedgerUnavailable, match="is for good"):
        unblock(agent, time, hash_of(OF_EXPONENT[exponent]))


@pytest.mark.parametrize("exponent", OF_EXPONENT)
def test_hold_blocks_every_exponent_until_the_release(agent: Agent, time: Time, exponent: str) -> None:
    """A hold blocks the modulus; its release, or its end for another reason, frees it."""
    serial = serial_in(answer(agent, OF_EXPONENT[exponent]))
    revoke(agent, time, serial, Reason.certificateHold)
    assert [code(agent, csr) for csr in OF_EXPONENT.values()] == [REFUSED] * 3
    release(agent, time, serial)
    assert [code(agent, csr) for csr in OF_EXPONENT.values()] == [SIGNED] * 3

    revoke(agent, time, serial, Reason.certificateHold)
    revoke(agent, time, serial, Reason.superseded)
    assert (listed(agent), code(agent, ODD)) == ([], SIGNED)


def test_compromise_takes_the_place_of_the_hold(agent: Agent, time: Time) -> None:
    """A hold of a key with an odd exponent that ends in keyCompromise leaves one row, for good."""
    serial = serial_in(answer(agent, ODD))
    revoke(agent, time, serial, Reason.certificateHold)
    revoke(agent, time, serial, Reason.keyCompromise)
    assert listed(agent) == [(hash_of(USUAL), serial, COMPROMISED)]


def test_hash_of_a_public_list_blocks_every_exponent(agent: Agent, time: Time) -> None:
    """The hash of a key with the usual exponent, all that a public list tells, blocks its modulus with every one."""
    block(agent, time, hash_of(USUAL))
    assert [code(agent, csr) for csr in OF_EXPONENT.values()] == [REFUSED] * 3
    unblock(agent, time, hash_of(USUAL))
    assert [code(agent, csr) for csr in OF_EXPONENT.values()] == [SIGNED] * 3


def test_hash_of_a_key_of_this_ledger_blocks_every_exponent(agent: Agent, time: Time) -> None:
    """By the hash that `certs list` shows of a key with an odd exponent its modulus is blocked, and freed again."""
    answer(agent, ODD)
    assert (block(agent, time, hash_of(ODD)), block(agent, time, hash_of(ODD))) == (1, 0)
    assert listed(agent) == [(hash_of(USUAL), BY_HAND, "leaked")]
    assert block(agent, time, hash_of(USUAL)) == 0
    assert [code(agent, csr) for csr in OF_EXPONENT.values()] == [REFUSED] * 3
    unblock(agent, time, hash_of(ODD))
    assert (listed(agent), code(agent, THIRD)) == ([], SIGNED)


def test_hash_of_an_unknown_key_blocks_that_key(agent: Agent, time: Time) -> None:
    """Nothing but the hash is known of a key with an odd exponent: this very key is blocked, and freed by its hash."""
    block(agent, time, hash_of(ODD))
    assert [code(agent, csr) for csr in OF_EXPONENT.values()] == [SIGNED, REFUSED, SIGNED]
    unblock(agent, time, hash_of(ODD))
    assert (listed(agent), code(agent, ODD)) == ([], SIGNED)


def test_exported_modulus_blocks_in_another_ledger(agent: Agent, time: Time, tmp_path: Path) -> None:
    """An exported block of an odd exponent blocks the modulus in a ledger that never saw the key; twice adds none."""
    revoke(agent, time, serial_in(answer(agent, ODD)), Reason.keyCompromise)
    lines = agent.ledger.read(lambda it: list(export_blocked(it)))
    with open_agent(tmp_path / "other", time) as other:
        for expected in (1, 0):
            now_ms = milliseconds(time())
            assert other.ledger.change(lambda it, at=now_ms: import_blocked(it, lines, at, "tester")) == expected  # type: ignore[misc]  # bound now
        assert [code(other, csr) for csr in OF_EXPONENT.values()] == [REFUSED] * 3
        assert other.ledger.read(complaint) == ""


def test_imported_hash_of_a_key_of_this_ledger_is_freed_by_it(agent: Agent, time: Time) -> None:
    """A row that names an odd exponent's own hash, as a ledger without the key has it, is found by that hash."""
    answer(agent, ODD)
    lines = [blocked_keys.line_of(blocked_keys.Block(hash_of(ODD), BY_HAND, "leaked", milliseconds(time())))]
    agent.ledger.change(lambda it: import_blocked(it, lines, milliseconds(time()), "tester"))
    assert code(agent, ODD) == REFUSED
    unblock(agent, time, hash_of(ODD))
    assert (listed(agent), code(agent, ODD)) == ([], SIGNED)


def test_blocks_of_a_ledger_without_a_list(agent: Agent, time: Time) -> None:
    """What the revocations of an older ledger put on the list is what revoking puts there today."""
    for csr, reason in ((ODD, Reason.keyCompromise), (make_csr(), Reason.certificateHold)):
        revoke(agent, time, serial_in(answer(agent, csr)), reason)
    today = agent.ledger.read(lambda it: list_blocks(it))
    assert sorted(agent.ledger.read(lambda it: list(blocked_keys.blocks_of_revocations(it)))) == sorted(today)
