"""What the audit says of certificates from before there was one: a ledger of version 1 held rows alone."""

from collections.abc import Iterator
from hashlib import sha256

from sqlalchemy import Connection, select

from vmi_agent.ca.certificate import assemble
from vmi_agent.ledger.audit import Event
from vmi_agent.ledger.ledger_rows import ISSUED, facts_of
from vmi_agent.ledger.ledger_schema import issuance


def audit_of_before(connection: Connection, now_ms: int) -> list[Event]:
    """Return the events that would have told of what is in the ledger, with the times that they would have had."""
    return list(_events(connection, now_ms))


def _events(connection: Connection, now_ms: int) -> Iterator[Event]:
    for row in connection.execute(select(issuance).order_by(issuance.c.id)):
        yield Event("signing", now_ms, facts_of(row) | {"before_the_audit_ms": row.recorded_ms})
        if row.status == ISSUED:
            fields = {
                "serial": row.serial.hex(),
                "certificate_sha256": sha256(assemble(row.tbs, row.signature)).hexdigest(),
                "not_after": row.not_after,
                "before_the_audit_ms": row.issued_ms,
            }
            yield Event("signed", now_ms, fields)
