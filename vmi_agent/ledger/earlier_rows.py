"""Looking up whether the same was asked before: by requester and CSR, and by idempotency key."""

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from vmi_agent.ledger.ledger_schema import ISSUED, PENDING
from vmi_agent.ledger.statements import execute, one_of

# A request digest and a root generation.
Question = tuple[bytes, int]


class IssuedRow(NamedTuple):
    """A certificate."""

    serial: bytes
    status: str
    root_generation: int
    reason: int | None
    not_after: int
    tbs: bytes
    signature: bytes
    request_digest: bytes


class PendingRow(NamedTuple):
    """An intent without a signature."""

    serial: bytes
    root_generation: int
    recorded_ms: int
    not_after: int
    tbs: bytes
    request_digest: bytes


class TokenRow(NamedTuple):
    """What an idempotency key stands for, and the certificate that was given for it."""

    token: bytes
    csr_sha256: bytes
    serial: bytes
    status: str
    root_generation: int
    reason: int | None
    not_after: int
    tbs: bytes
    signature: bytes


def issued_since(connection: sqlite3.Connection, digests: Sequence[bytes], since_ms: int) -> dict[Question, IssuedRow]:
    """Return the newest certificate for each requester and CSR whose intent is younger, of each generation.

    What is revoked or on hold is left out.

    Args:
        digests: of requester and CSR.
        since_ms: in milliseconds since 1970-01-01 UTC.
    """
    statement = (
        f"SELECT {', '.join(IssuedRow._fields)} FROM issuance"  # noqa: S608  # names of our own columns
        f" WHERE request_digest {one_of(digests)} AND recorded_ms > ? AND status = '{ISSUED}' AND reason IS NULL"
        " ORDER BY id"
    )
    rows = map(IssuedRow._make, execute(connection, statement, (*digests, since_ms)))
    return {(row.request_digest, row.root_generation): row for row in rows}


def pending(connection: sqlite3.Connection, digests: Sequence[bytes]) -> dict[Question, list[PendingRow]]:
    """Return what is pending for each requester and CSR, however old, oldest first."""
    statement = (
        # Left to itself, SQLite would look through all that the same CSR ever got.
        f"SELECT {', '.join(PendingRow._fields)} FROM issuance INDEXED BY issuance_pending"  # noqa: S608  # our own
        f" WHERE status = '{PENDING}' AND request_digest {one_of(digests)} ORDER BY id"
    )
    found: dict[Question, list[PendingRow]] = {}
    for row in map(PendingRow._make, execute(connection, statement, digests)):
        found.setdefault((row.request_digest, row.root_generation), []).append(row)
    return found


def of_tokens(connection: sqlite3.Connection, tokens: Sequence[bytes]) -> dict[bytes, TokenRow]:
    """Return, for each idempotency key that was used before, the CSR and certificate it stands for, by token."""
    if not tokens:
        return {}
    statement = (
        "SELECT token, idempotency.csr_sha256, serial, status, root_generation, reason, not_after, tbs, signature"  # noqa: S608  # our own
        f" FROM idempotency JOIN issuance USING (serial) WHERE token {one_of(tokens)}"
    )
    return {row.token: row for row in map(TokenRow._make, execute(connection, statement, tokens))}
