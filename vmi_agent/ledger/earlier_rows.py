"""Looking up whether the same was asked before: by requester and CSR, and by idempotency key."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from vmi_agent.ledger.ledger_schema import IS_PENDING, ISSUED, idempotency, issuance

# A request digest and a root generation.
Question = tuple[bytes, int]


def issued_since(connection: Connection, digests: Sequence[bytes], since_ms: int) -> dict[Question, Any]:
    """Return the newest certificate for each requester and CSR whose intent is younger, of each generation.

    What is revoked or on hold is left out.

    Args:
        digests: of requester and CSR.
        since_ms: in milliseconds since 1970-01-01 UTC.
    """
    rows = connection.execute(
        select(issuance)
        .where(issuance.c.request_digest.in_(digests))
        .where(issuance.c.recorded_ms > since_ms, issuance.c.status == ISSUED, issuance.c.reason.is_(None))
        .order_by(issuance.c.id)
    )
    return {(row.request_digest, row.root_generation): row for row in rows}


def pending(connection: Connection, digests: Sequence[bytes]) -> dict[Question, list[Any]]:
    """Return what is pending for each requester and CSR, however old, oldest first."""
    columns = issuance.c
    rows = connection.execute(
        select(columns.serial, columns.request_digest, columns.root_generation, columns.recorded_ms, columns.tbs)
        # Left to itself, SQLite would look through all that the same CSR ever got.
        .with_hint(issuance, "INDEXED BY issuance_pending", "sqlite")
        .where(IS_PENDING, columns.request_digest.in_(digests))
        .order_by(columns.id)
    )
    found: dict[Question, list[Any]] = {}
    for row in rows:
        found.setdefault((row.request_digest, row.root_generation), []).append(row)
    return found


def of_tokens(connection: Connection, tokens: Sequence[bytes]) -> dict[bytes, Any]:
    """Return, for each idempotency key that was used before, the CSR and certificate it stands for, by token."""
    if not tokens:
        return {}
    rows = connection.execute(
        select(
            idempotency.c.token,
            idempotency.c.csr_sha256,
            issuance.c.serial,
            issuance.c.status,
            issuance.c.root_generation,
            issuance.c.reason,
            issuance.c.tbs,
            issuance.c.signature,
        )
        .join_from(idempotency, issuance, idempotency.c.serial == issuance.c.serial)
        .where(idempotency.c.token.in_(tokens))
    )
    return {row.token: row for row in rows}
