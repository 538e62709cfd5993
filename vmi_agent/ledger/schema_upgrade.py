"""Making the tables of a ledger that begins, and bringing one of an earlier version up to date."""

from sqlalchemy import Connection

from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import schema_check
from vmi_agent.ledger.schema import (
    PENDING_INDEX,
    SCHEMA_VERSION,
    check_schema,
    idempotency,
    issuance,
    metadata,
    not_ours,
    schema_before,
    version_of,
)


def prepare(connection: Connection, *, alone: bool) -> int:
    """Make the tables of a ledger that begins, and bring one of an earlier version up to date.

    Args:
        alone: no other agent has the ledger open.

    Returns:
        The version that the ledger had; 0 for one that begins. Version 1 had no audit, version 2 no block list.

    Raises:
        LedgerUnavailable: the file is of another version, its schema is not as an agent makes it, or it is to be
            brought up to date and others use it.
    """
    version = version_of(connection)
    if version not in range(SCHEMA_VERSION + 1):
        raise LedgerUnavailable(f"the ledger has schema version {version}, this agent knows {SCHEMA_VERSION}")
    if version == SCHEMA_VERSION:
        check_schema(connection)
        return version
    # A trigger that is there already would see, and could undo, what the update writes.
    strange = schema_check.stranger(schema_check.objects_of(connection), schema_before(version))
    if strange is not None:
        raise not_ours(strange)
    if version and not alone:
        raise LedgerUnavailable("it is of another version than this agent's. Stop the other agents first.")
    if version == 1:
        _add_columns_of_version_2(connection)
    metadata.create_all(connection)
    PENDING_INDEX.create(connection, checkfirst=True)
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    check_schema(connection)
    return version


def _add_columns_of_version_2(connection: Connection) -> None:
    for column in (issuance.c.reason, issuance.c.revoked_ms, issuance.c.revocation):
        connection.exec_driver_sql(f"ALTER TABLE issuance ADD COLUMN {column.name} {column.type}")
    for index in (*issuance.indexes, *idempotency.indexes):
        index.create(connection, checkfirst=True)
