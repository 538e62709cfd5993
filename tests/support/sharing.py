"""Two agents on one ledger, made of parts: keys that wait, and what ledger and audit say afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

from protocol.records import Signed
from support.agents import Agent, Time, always, open_agent, request
from vmi_agent.keys import Custody, Pace
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.schema import reading


class WaitingKey:
    """Custody of a key that takes its time.

    Args:
        custody: has the key.

    Attributes:
        asked: set once it was asked to sign.
        may_sign: what it waits for.
        signed: what it was asked to sign.
    """

    pace = Pace.ELSEWHERE

    def __init__(self, custody: Custody) -> None:
        self._custody = custody
        self.asked = threading.Event()
        self.may_sign = threading.Event()
        self.signed: list[bytes] = []

    @property
    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """The key's public half."""
        return self._custody.public_key

    def sign(self, tbs: bytes) -> bytes:
        """Sign once it may."""
        self.signed.append(tbs)
        self.asked.set()
        assert self.may_sign.wait(60)
        return self._custody.sign(tbs)

    def close(self) -> None:
        """Let go of the key."""
        self._custody.close()


def with_key(agent: Agent, wrap: Any) -> Any:
    """Have an agent sign with its key as it is wrapped; return the wrapped one."""
    current = agent.generations.current
    key = wrap(current.custody)
    agent.generations.current = replace(current, custody=key)
    return key


@contextmanager
def two_agents(state_dir: Path, time: Time, **second: Any) -> Iterator[tuple[Agent, Agent]]:
    """Open two agents on one state directory; options are those of the second one."""
    with open_agent(state_dir, time) as one, open_agent(state_dir, time, alone=False, **second) as other:
        yield one, other


def leaf_of(agent: Agent, csr: bytes, **options: Any) -> bytes:
    """Ask an agent to sign; return the leaf."""
    answer = agent.sign(request(csr, **options), sha256(csr).digest(), always).answer
    assert isinstance(answer, Signed), answer
    return answer.chain[0]


def events(state_dir: Path) -> list[str]:
    """Return the words of all events, in their order; the audit verifies."""
    with reading(state_dir) as connection:
        verify(connection)
        return [row.event.decode() for row in audit_chain.rows(connection)]


def statuses(state_dir: Path) -> list[str]:
    """Return the status of every certificate, in the order of their intents."""
    with reading(state_dir) as connection:
        return list(connection.exec_driver_sql("SELECT status FROM issuance ORDER BY id").scalars())
