"""Closing off intents that nobody will complete, each of which the audit is told of by its serial.

What is closed off is never answered: a signature that comes later is refused. A retry gets a certificate of its own.
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, or_, select, true, update

from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.issuances import REPLAY_WINDOW_MS
from vmi_agent.ledger.replay import AHEAD_MS
from vmi_agent.ledger.schema import ABANDONED, IS_PENDING, issuance
from vmi_agent.ledger.sql import check_changed

# A retry takes a pending intent up within the replay window; the rest is for what was taken up at its end. A request
# may have a deadline of weeks, and a token may hang: whoever comes back after that has its signature refused.
PENDING_MS = REPLAY_WINDOW_MS + 5 * 60 * 1000
# In one transaction, so that signing gets its turns.
AT_ONCE = 500
# Keeps one row of the audit below 3 KiB.
_SERIALS_IN_ROW = 64


def close_off_all(connection: Connection, now_ms: int) -> int:
    """Close off all that is pending, in the transaction of the connection; return how many there were.

    Args:
        now_ms: in milliseconds since 1970-01-01 UTC.
    """
    return _close_off(connection, true(), now_ms)


def close_off_old(connection: Connection, now_ms: int) -> int:
    """Close off up to `AT_ONCE` of what no retry takes up any more; return how many.

    That is what has been pending for longer than `PENDING_MS`, or was recorded while the clock was ahead.
    """
    return _close_off(connection, _is_old(now_ms), now_ms, AT_ONCE)


def has_old(connection: Connection, now_ms: int) -> bool:
    """Return whether `close_off_old` has anything to do. Costs next to nothing."""
    return connection.execute(select(issuance.c.id).where(IS_PENDING, _is_old(now_ms)).limit(1)).first() is not None


def events_of(serials: Sequence[bytes], now_ms: int) -> list[Event]:
    """Return what tells the audit that these intents were closed off."""
    chunks = (serials[at : at + _SERIALS_IN_ROW] for at in range(0, len(serials), _SERIALS_IN_ROW))
    return [
        Event("intents abandoned", now_ms, {"count": len(chunk), "serials": [serial.hex() for serial in chunk]})
        for chunk in chunks
    ]


def _is_old(now_ms: int) -> ColumnElement[bool]:
    return or_(issuance.c.recorded_ms < now_ms - PENDING_MS, issuance.c.recorded_ms > now_ms + AHEAD_MS)


def _close_off(connection: Connection, which: ColumnElement[bool], now_ms: int, limit: int | None = None) -> int:
    # Oldest first. Asked for the bare number, SQLite goes through all certificates, which are in that order already.
    found = select(issuance.c.serial).where(IS_PENDING, which).order_by(issuance.c.id + 0).limit(limit)
    serials = list(connection.execute(found).scalars())
    if serials:
        chosen = which if limit is None else issuance.c.serial.in_(serials)
        done = connection.execute(update(issuance).where(IS_PENDING, chosen).values(status=ABANDONED))
        check_changed(done.rowcount, len(serials))
        audit_chain.append(connection, events_of(serials, now_ms))
    return len(serials)
