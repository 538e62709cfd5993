"""What the audit says of certificates from before there was one: a ledger of version 1 held rows alone."""

from hashlib import sha256

from sqlalchemy import Connection, select

from vmi_agent.audit import Event
from vmi_agent.certificate import assemble
from vmi_agent.ledger_rows import ISSUED
from vmi_agent.ledger_schema import issuance


def audit_of_before(connection: Connection, now_ms: int) -> list[Event]:
    """Return one "signed" event for each certificate that is in the ledger."""
    rows = connection.execute(select(issuance).where(issuance.c.status == ISSUED).order_by(issuance.c.id))
    return [
        Event(
            "signed",
            now_ms,
            {
                "serial": row.serial.hex(),
                "certificate_sha256": sha256(assemble(row.tbs, row.signature)).hexdigest(),
                "not_after": row.not_after,
                "before_the_audit": True,
            },
        )
        for row in rows
    ]
