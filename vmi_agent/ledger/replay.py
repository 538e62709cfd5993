"""Looking up whether the same was asked before: by requester and CSR, and by idempotency key."""

import sqlite3
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple, Protocol

from runtime.clock import BACK_DATE
from vmi_agent.ledger.schema import ISSUED, PENDING
from vmi_agent.ledger.sql import execute, one_of

# What was recorded later than this from now was recorded while the clock was ahead.
AHEAD_MS = BACK_DATE // timedelta(milliseconds=1)

# A request digest and a root generation.
Question = tuple[bytes, int]


class Dated(Protocol):
    """When an intent was recorded, in milliseconds since 1970-01-01 UTC, and its certificate's validity, in seconds."""

    @property
    def recorded_ms(self) -> int: ...

    @property
    def not_before(self) -> int: ...

    @property
    def not_after(self) -> int: ...


class IssuedRow(NamedTuple):
    """A certificate."""

    serial: bytes
    status: str
    root_generation: int
    reason: int | None
    recorded_ms: int
    not_before: int
    not_after: int
    tbs: bytes
    signature: bytes
    request_digest: bytes


class PendingRow(NamedTuple):
    """An intent without a signature."""

    serial: bytes
    root_generation: int
    recorded_ms: int
    not_before: int
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
    recorded_ms: int
    not_before: int
    not_after: int
    tbs: bytes
    signature: bytes


def is_of_now(row: Dated, now_ms: int) -> bool:
    """Return whether a certificate is valid now, and was not recorded while the clock was ahead of now."""
    is_valid = row.not_before <= now_ms // 1000 <= row.not_after  # the last second is valid (RFC 5280, 4.1.2.5)
    return is_valid and row.recorded_ms <= now_ms + AHEAD_MS


def issued_since(
    connection: sqlite3.Connection, digests: Sequence[bytes], since_ms: int, now_ms: int
) -> dict[Question, IssuedRow]:
    """Return the newest certificate for each requester and CSR whose intent is younger, of each generation.

    Certificates that are revoked or on hold are left out, and those that are not of now: they would hide older ones
    that are.

    Args:
        digests: of requester and CSR.
        since_ms, now_ms: in milliseconds since 1970-01-01 UTC.
    """
    statement = (
        f"SELECT {', '.join(IssuedRow._fields)} FROM issuance"  # noqa: S608  # names of our own columns
        f" WHERE request_digest {one_of(digests)} AND recorded_ms > ? AND status = '{ISSUED}' AND reason IS NULL"
        " ORDER BY id"
    )
    rows = map(IssuedRow._make, execute(connection, statement, (*digests, since_ms)))
    return {(row.request_digest, row.root_generation): row for row in rows if is_of_now(row, now_ms)}


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
        "SELECT token, idempotency.csr_sha256, serial, status, root_generation, reason, recorded_ms, not_before,"  # noqa: S608  # our own
        f" not_after, tbs, signature FROM idempotency JOIN issuance USING (serial) WHERE token {one_of(tokens)}"
    )
    return {row.token: row for row in map(TokenRow._make, execute(connection, statement, tokens))}
