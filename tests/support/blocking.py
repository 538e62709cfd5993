"""What tests of blocked keys share: a CSR and its key, and what is done to the key beside the agent."""

from hashlib import sha256

from cryptography.hazmat.primitives import hashes

from protocol.records import Answer, Error, Signed
from runtime.asn1 import der
from runtime.clock import milliseconds
from support.agents import Agent, Time, always, request
from support.csrs import make_csr
from vmi_agent.ledger import blocked_keys, revocation
from vmi_agent.ledger.revocation import Reason

CSR = make_csr()
OTHER_CSR = make_csr(hash_algorithm=hashes.SHA384())
KEY = sha256(der.csr_subject_and_key(CSR)[1]).digest()
TOKEN = b"k" * 16
REFUSED, SIGNED = "CSR_BLOCKED_KEY", "SIGNED"


def answer(agent: Agent, csr: bytes = CSR, **options: str | bytes) -> Answer:
    """Return what an agent answers to a CSR."""
    return agent.sign(request(csr, **options), sha256(csr).digest(), always).answer  # type: ignore[arg-type]


def code(agent: Agent, csr: bytes = CSR, **options: str | bytes) -> str:
    """Return SIGNED, or the name of the code of the refusal."""
    found = answer(agent, csr, **options)
    return found.code.name if isinstance(found, Error) else SIGNED


def serial_in(signed: Answer) -> bytes:
    """Return the leaf's serial."""
    assert isinstance(signed, Signed), signed
    return der.children(der.children(signed.chain[0])[0])[1][2:]


def revoke(agent: Agent, time: Time, serial: bytes, reason: Reason) -> None:
    """Revoke a certificate, or put it on hold."""
    agent.ledger.change(lambda it: revocation.revoke(it, serial, reason, milliseconds(time()), "tester"))


def release(agent: Agent, time: Time, serial: bytes) -> None:
    """Take a certificate off hold."""
    agent.ledger.change(lambda it: revocation.release(it, serial, milliseconds(time()), "tester"))


def block(agent: Agent, time: Time, key: bytes = KEY) -> int:
    """Block a key by hand; return how many were not blocked by hand already."""
    new = agent.ledger.change(
        lambda it: blocked_keys.block_by_hand(it, [key], "leaked", milliseconds(time()), "tester")
    )
    return len(new)


def unblock(agent: Agent, time: Time, key: bytes = KEY) -> None:
    """Take a key off the list by hand."""
    agent.ledger.change(lambda it: blocked_keys.unblock(it, key, milliseconds(time()), "tester"))
