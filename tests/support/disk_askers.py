"""An agent on a disk without room: who asks it, and what it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.errors import ErrorCode
from protocol.records import Answer, Error, Signed
from support.agents import request
from support.csrs import make_csr
from support.processes import Process
from support.raw_asker import RawAsker

CSR = make_csr()


TEXT = "The agent's ledger cannot be written. Nothing was issued."


class Askers:
    """Asks as ever new users, and keeps what was answered."""

    def __init__(self, asker: RawAsker) -> None:
        self._asker = asker
        self._count = 0
        self.signed: set[str] = set()

    def ask(self, count: int = 1) -> list[Answer]:
        """Return the answers to requests that are sent together."""
        records = [request(CSR, user=f"hmc{self._count + n}") for n in range(count)]
        self._count += count
        ids = self._asker.ask(*records)
        found = self._asker.answers(self._count)
        answers = [found[each] for each in ids]
        for answer in answers:
            if isinstance(answer, Signed):
                self.signed.add(answer.chain[0].hex())
            else:
                assert answer == Error(ErrorCode.FAILED, True, 5_000, TEXT)
        return answers


def failed(answers: list[Answer]) -> int:
    """Return how many were not signed."""
    return sum(isinstance(answer, Error) for answer in answers)


def assert_all_told(state: Path, askers: Askers, run_there: Callable[..., Any]) -> None:
    """What was handed out, what the ledger has, and what the audit tells of, are the same; the audit verifies."""
    assert run_there("vmi-agent", "audit", "verify", "--state-dir", str(state)).returncode == 0
    exported = run_there("vmi-agent", "certs", "export", "--state-dir", str(state)).stdout
    certificates = [json.loads(line)["certificate"] for line in exported.splitlines()]
    audited = run_there("vmi-agent", "audit", "export", "--state-dir", str(state)).stdout
    rows = [json.loads(line) for line in audited.splitlines()]
    signed = [row["fields"]["serial"] for row in rows if row["event"] == "signed"]

    ders = {der_of(each) for each in certificates}
    assert ders == askers.signed
    assert sorted(signed) == sorted(json.loads(line)["serial"] for line in exported.splitlines())
    assert len(certificates) == len(askers.signed)


def der_of(text: str) -> str:
    """Return a certificate's DER in hexadecimal."""
    return x509.load_pem_x509_certificate(text.encode()).public_bytes(Encoding.DER).hex()


def told_by(agent: Process, event: str) -> list[str]:
    """Return what an agent logged of an event."""
    return [line for line in agent.lines if f'"event": "{event}' in line]
