"""Revocations of certificates that this ledger does not hold, which a restored ledger took over from elsewhere.

A certificate that was issued and revoked after a backup is not in the ledger restored from it, and is out there all the
same. So that it stays on the CRL, and OCSP says "revoked", its serial is kept in a table of its own. Each row has its
row in the audit, "revocation carried over", in the same transaction. Rows stay until the ledger goes: there are few.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select

from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.schema import carried_revocation


@dataclass(frozen=True, slots=True)
class CarriedRevocation:
    """A revoked certificate as others know it.

    Attributes:
        serial: 17 octets.
        reason: a CRLReason (RFC 5280, 5.3.1).
        revoked_ms: in milliseconds since 1970-01-01 UTC.
        not_after: its end in seconds since 1970-01-01 UTC, or that of its CA where its own is not known.
    """

    serial: bytes
    root_generation: int
    reason: int
    revoked_ms: int
    not_after: int


def carry(connection: Connection, revocation: CarriedRevocation, source: str, now_ms: int) -> bool:
    """Take over a revocation; return False where it is here already.

    Args:
        source: where it was learnt from, for the audit.
        now_ms: in milliseconds since 1970-01-01 UTC.
    """
    if find(connection, revocation.serial, revocation.root_generation) is not None:
        return False
    values = {
        "root_generation": revocation.root_generation,
        "reason": revocation.reason,
        "revoked_ms": revocation.revoked_ms,
        "not_after": revocation.not_after,
    }
    fields = {"serial": revocation.serial.hex(), **values, "source": source}
    audit_chain.append(connection, [Event("revocation carried over", now_ms, fields)])
    number = audit_chain.read_head(connection).last_id
    connection.execute(insert(carried_revocation).values(serial=revocation.serial, revocation=number, **values))
    return True


def find(connection: Connection, serial: bytes, root_generation: int) -> Any:
    """Return the row of a certificate under a root, or None."""
    columns = carried_revocation.c
    wanted = columns.serial == serial, columns.root_generation == root_generation
    return connection.execute(select(carried_revocation).where(*wanted)).first()


def rows_since(connection: Connection, number: int) -> Iterator[Any]:
    """Yield the rows whose audit row is behind a number, in the order of these."""
    columns = carried_revocation.c
    yield from connection.execute(
        select(carried_revocation).where(columns.revocation > number).order_by(columns.revocation)
    )
