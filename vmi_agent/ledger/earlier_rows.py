"""Looking up whether the same was asked before: by requester and CSR, and by idempotency key.

This is done for every request, so the statements are text: SQLAlchemy would build and compile each one anew.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from vmi_agent.ledger.ledger_schema import ISSUED, PENDING, one_of

# A request digest and a root generation.
Question = tuple[bytes, int]


def issued_since(connection: Connection, digests: Sequence[bytes], since_ms: int) -> dict[Question, Any]:
    """Return the newest certificate for each requester and CSR whose intent is younger, of each generation.

    What is revoked or on hold is left out.

    Args:
        digests: of requester and CSR.
        since_ms: in milliseconds since 1970-01-01 UTC.
    """
    rows = connection.exec_driver_sql(
        "SELECT serial, status, root_generation, request_digest, tbs, signature, reason FROM issuance"  # noqa: S608  # no text of others
        f" WHERE request_digest {one_of(digests)} AND recorded_ms > ? AND status = '{ISSUED}' AND reason IS NULL"
        " ORDER BY id",
        (*digests, since_ms),
    )
    return {(row.request_digest, row.root_generation): row for row in rows}


def pending(connection: Connection, digests: Sequence[bytes]) -> dict[Question, list[Any]]:
    """Return what is pending for each requester and CSR, however old, oldest first."""
    rows = connection.exec_driver_sql(
        # Left to itself, SQLite would look through all that the same CSR ever got.
        "SELECT serial, request_digest, root_generation, recorded_ms, tbs FROM issuance INDEXED BY issuance_pending"  # noqa: S608  # no text of others
        f" WHERE status = '{PENDING}' AND request_digest {one_of(digests)} ORDER BY id",
        tuple(digests),
    )
    found: dict[Question, list[Any]] = {}
    for row in rows:
        found.setdefault((row.request_digest, row.root_generation), []).append(row)
    return found


def of_tokens(connection: Connection, tokens: Sequence[bytes]) -> dict[bytes, Any]:
    """Return, for each idempotency key that was used before, the CSR and certificate it stands for, by token."""
    if not tokens:
        return {}
    rows = connection.exec_driver_sql(
        "SELECT idempotency.token, idempotency.csr_sha256, serial, status, root_generation, reason, tbs, signature"  # noqa: S608  # no text of others
        f" FROM idempotency JOIN issuance USING (serial) WHERE idempotency.token {one_of(tokens)}",
        tuple(tokens),
    )
    return {row.token: row for row in rows}
