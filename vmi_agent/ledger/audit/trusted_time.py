"""What time it is at least, whatever the clock says, and the latest time that the audit tells of.

A clock may be wrong at one start or at many, so no clock decides what is forgotten for good. The trusted time begins
with the audit's last row before the first start, and advances by what a running agent measures with a monotonic clock.
An operator who accepts the clock (`audit accept-clock`) sets it. It lags behind by as long as no agent ran.

The rows "started", "stopped" and "clock noted" carry it as `trusted_ms`, and as `latest_ms` the latest time of any row
since the clock was last accepted. So nobody reads further back than the last of these rows.
"""

import json
from dataclasses import dataclass

from sqlalchemy import Connection

from runtime.hints import command
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event

CLOCK_ACCEPTED = "clock accepted"
CLOCK_NOTED = "clock noted"
# No text in a field looks like the name of one: its quotes are escaped.
_LAST_NOTED = (
    "SELECT id, at_ms, event, fields FROM audit WHERE event = 'clock accepted'"
    " OR (event IN ('started', 'stopped', 'clock noted') AND fields LIKE '%\"trusted_ms\":%')"
    " ORDER BY id DESC LIMIT 1"
)
_LATEST_SINCE = "SELECT max(at_ms) FROM audit WHERE id > ?"


@dataclass(frozen=True, slots=True)
class Times:
    """Two times in milliseconds since 1970-01-01 UTC; 0 where the audit has no row.

    Attributes:
        trusted_ms: it is not earlier than this.
        latest_ms: of the row with the latest time since the clock was last accepted.
        is_noted: a row carries them; otherwise `trusted_ms` is the time of the last row.
    """

    trusted_ms: int
    latest_ms: int
    is_noted: bool

    def fields(self, trusted_ms: int) -> dict[str, object]:
        """Return what a row carries that is about to be written."""
        return {"trusted_ms": trusted_ms, "latest_ms": self.latest_ms}


def read_times(connection: Connection) -> Times:
    """Look the times up.

    Raises:
        LedgerUnavailable: the row that carries them was tampered with.
    """
    noted = connection.exec_driver_sql(_LAST_NOTED).first()
    since = 0 if noted is None else noted.id
    latest_ms = connection.exec_driver_sql(_LATEST_SINCE, (since,)).scalar() or 0
    if noted is None:
        return Times(audit_chain.last_time_ms(connection), latest_ms, False)
    if noted.event == CLOCK_ACCEPTED:
        return Times(noted.at_ms, max(noted.at_ms, latest_ms), True)
    try:
        fields = json.loads(noted.fields)
        noted_ms, noted_latest_ms = int(fields["trusted_ms"]), int(fields["latest_ms"])
    except (ValueError, TypeError, KeyError) as error:
        verify = command("vmi-agent", "audit verify")
        raise LedgerUnavailable(f"row {noted.id} of the audit cannot be read: `{verify}`") from error
    return Times(noted_ms, max(noted_latest_ms, noted.at_ms, latest_ms), True)


def note_times(connection: Connection, trusted_ms: int, now_ms: int) -> None:
    """Add a row that carries both, in the transaction of the connection."""
    fields = read_times(connection).fields(trusted_ms)
    audit_chain.append(connection, [Event(CLOCK_NOTED, now_ms, fields)])
