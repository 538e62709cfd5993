"""What an agent does to the ledger that it opens: bring it up to date, look at the clock, close off what was left."""

from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256

from sqlalchemy import Connection, select

from runtime.hints import command
from vmi_agent.certificate import assemble
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import blocked_keys, retention
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.audit.trusted_time import Times, read_times
from vmi_agent.ledger.issuances import facts_of
from vmi_agent.ledger.schema import ABANDONED, FIRST_WITH_BLOCK_LIST, ISSUED, issuance
from vmi_agent.ledger.schema_upgrade import prepare

# How much later than this process looked at the clock those may have written who share the ledger.
_MEANWHILE_MS = 10_000


def take_over(connection: Connection, now: datetime, *, alone: bool) -> tuple[int, Times]:
    """Open a ledger in the transaction of the connection.

    Args:
        alone: no other agent has it open.

    Returns:
        How many intents of dead processes were closed off, and what the audit told of the time before.

    Raises:
        LedgerUnavailable: it is of another version, or a row of its audit was written later than now.
    """
    now_ms = int(now.timestamp() * 1000)
    version = prepare(connection, alone=alone)
    times = read_times(connection)
    if now_ms + (0 if alone else _MEANWHILE_MS) < times.latest_ms:
        was = datetime.fromtimestamp(times.latest_ms / 1000, now.tzinfo).isoformat(timespec="seconds")
        raise LedgerUnavailable(
            f"the clock says {now.isoformat(timespec='seconds')}, and the audit was last written at {was}. Set the"
            f" clock; where it was the old time that was wrong: `{command('vmi-agent', 'audit accept-clock')}`"
        )
    _note_update(connection, version, now_ms)
    return retention.close_off_all(connection, now_ms) if alone else 0, times


def bring_up_to_date(connection: Connection, now_ms: int) -> None:
    """Bring a ledger of an earlier version that nobody serves from up to date, as the first agent would.

    Args:
        now_ms: in milliseconds since 1970-01-01 UTC.

    Raises:
        LedgerUnavailable: as `schema_upgrade.prepare` does.
    """
    _note_update(connection, prepare(connection, alone=True), now_ms)


def _note_update(connection: Connection, version: int, now_ms: int) -> None:
    """Fill in what a ledger of this version lacked: its audit, its block list."""
    if version == 1:
        audit_chain.append(connection, list(_events_of_before(connection, now_ms)))
    if 0 < version < FIRST_WITH_BLOCK_LIST:
        blocked_keys.block_revoked(connection, now_ms, f"vmi-agent, from schema version {version}")


def _events_of_before(connection: Connection, now_ms: int) -> Iterator[Event]:
    """Yield what would have told of a ledger of version 1, which had no audit, with the times it would have had."""
    abandoned = []
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
        elif row.status == ABANDONED:
            abandoned.append(row.serial)
    yield from retention.events_of(abandoned, now_ms)
