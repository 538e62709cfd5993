"""Revocations of certificates that this ledger does not hold, as it was restored from an older backup.

A certificate that was issued after a backup is not in the ledger restored from it, and is out there all the same. So
that it stays on the CRL, and OCSP says "revoked", its serial is kept in a table of its own. Each row has its row in the
audit, "revocation carried over", in the same transaction, and another one where a hold became final. Rows stay until
the ledger goes: there are few.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.schema import carried_revocation
from vmi_agent.ledger.sql import check_changed

# certificateHold (RFC 5280, 5.3.1), which alone may be followed by another reason.
_HOLD = 6


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
    """Take over a revocation; return False where it is here already, in this way or a stricter one.

    From hold to revoked for good, it counts as revoked from the beginning of the hold.

    Args:
        source: where it was learnt from, for the audit.
        now_ms: in milliseconds since 1970-01-01 UTC.
    """
    standing = find(connection, revocation.serial, revocation.root_generation)
    if standing is not None and not _HOLD == standing.reason != revocation.reason:
        return False
    values = {
        "root_generation": revocation.root_generation,
        "reason": revocation.reason,
        "revoked_ms": revocation.revoked_ms if standing is None else standing.revoked_ms,
        "not_after": revocation.not_after,
    }
    fields = {"serial": revocation.serial.hex(), **values, "source": source}
    audit_chain.append(connection, [Event("revocation carried over", now_ms, fields)])
    number = audit_chain.read_head(connection).last_id
    if standing is None:
        connection.execute(insert(carried_revocation).values(serial=revocation.serial, revocation=number, **values))
    else:
        columns = carried_revocation.c
        place = columns.serial == standing.serial, columns.root_generation == standing.root_generation
        done = connection.execute(update(carried_revocation).where(*place).values(revocation=number, **values))
        check_changed(done.rowcount, 1)
    return True


def find(connection: Connection, serial: bytes, root_generation: int) -> Any:
    """Return the row of a certificate under a root, or None."""
    wanted = carried_revocation.c.serial == serial, carried_revocation.c.root_generation == root_generation
    return connection.execute(select(carried_revocation).where(*wanted)).first()


def rows_since(connection: Connection, number: int) -> Iterator[Any]:
    """Yield the rows whose audit row is behind a number, in the order of these."""
    columns = carried_revocation.c
    yield from connection.execute(
        select(carried_revocation).where(columns.revocation > number).order_by(columns.revocation)
    )
