"""CRL numbers as the audit tells them: the highest one so far, whichever ledger gave it.

Numbers rise over all generations, so the last CRL has the highest of this ledger. A ledger that was restored from a
backup does not know the CRLs that were issued since: what the operator gave at restore time tells of some of them, and
the highest number among those is in the row "restored".
"""

from sqlalchemy import Connection

from vmi_agent.ledger.audit import chain as audit_chain

CRL_ISSUED = "crl issued"
RESTORED = "restored"


def highest(connection: Connection, after: int = 0, known: int = 0) -> int:
    """Return the highest CRL number that the audit tells of.

    Args:
        after: the number of an audit row; looks only at rows behind it.
        known: the highest number up to that row.
    """
    issued = audit_chain.last_fields(connection, CRL_ISSUED, after=after).get("number", 0)
    elsewhere = audit_chain.last_fields(connection, RESTORED, after=after).get("crl_number", 0)
    return max(known, int(issued), int(elsewhere))
