"""Revoking and releasing certificates in the ledger (RFC 5280, 5.3.1)."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, or_, select, update

from runtime.asn1.der import leaf_subject_and_key
from runtime.hints import command
from vmi_agent.certificate import assemble
from vmi_agent.ledger import blocked_keys, carried_revocations
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.key_forms import key_forms
from vmi_agent.ledger.schema import ISSUED, issuance
from vmi_agent.ledger.sql import check_changed


class Reason(IntEnum):
    """CRLReason (RFC 5280, 5.3.1), under the names that it has there; those that make sense for a client's leaf."""

    unspecified = 0
    keyCompromise = 1
    affiliationChanged = 3
    superseded = 4
    cessationOfOperation = 5
    certificateHold = 6
    privilegeWithdrawn = 9


class RevocationRefused(Exception):
    """A certificate cannot be revoked or released as it stands; the text says why."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """A row that was revoked or released.

    Attributes:
        number: of the audit row that tells of it.
        reason: None where it was released.
        revoked_ms: in milliseconds since 1970-01-01 UTC; not_after in seconds.
    """

    number: int
    serial: bytes
    root_generation: int
    reason: int | None
    revoked_ms: int
    not_after: int


def revoke(
    connection: Connection, serial: bytes, reason: Reason, now_ms: int, by: str, *, since_ms: int | None = None
) -> None:
    """Revoke a certificate, or put it on hold, in the transaction of the connection.

    keyCompromise blocks its key for good, a hold until it is over (`vmi_agent.ledger.blocked_keys`).

    Args:
        serial: 17 octets.
        now_ms: in milliseconds since 1970-01-01 UTC.
        by: who does it, for the audit.
        since_ms: since when it counts as revoked, where that was before now.

    Raises:
        RevocationRefused: there is no such certificate, or it is revoked already.
    """
    row = _find(connection, serial)
    if not _may_become(row, reason):
        text = f"certificate {serial.hex()} is revoked already ({Reason(row.reason).name})"
        if reason is Reason.keyCompromise and not blocked_keys.blocks_of(connection, row.key_sha256):
            block = command("vmi-agent", f"keys block {row.key_sha256.hex()} --reason keyCompromise")
            text += f". Its key is not blocked; to block it: `{block}`"
        raise RevocationRefused(text)
    # From hold to revoked for good: it counts as revoked from the beginning of the hold.
    revoked_ms = (since_ms or now_ms) if row.revoked_ms is None else row.revoked_ms
    fields = {"serial": serial.hex(), "reason": int(reason), "reason_name": reason.name, "by": by}
    if since_ms is not None:
        fields["revoked_ms"] = revoked_ms
    _mark(connection, serial, reason, revoked_ms, Event("revoked", now_ms, fields))
    if reason.name in blocked_keys.BLOCKING:
        blocked_keys.block(connection, row.key_sha256, serial, reason.name, now_ms, by)
    else:  # what ends a hold ends its block
        blocked_keys.lift_hold(connection, row.key_sha256, serial, now_ms, by)


def release(connection: Connection, serial: bytes, now_ms: int, by: str) -> None:
    """Take a certificate off hold, and its key off the block list unless something else blocks it.

    Arguments as for `revoke`.

    Raises:
        RevocationRefused: there is no such certificate, or it is not on hold.
    """
    row = _find(connection, serial)
    if row.reason != Reason.certificateHold:
        state = "not revoked" if row.reason is None else f"revoked for good ({Reason(row.reason).name})"
        raise RevocationRefused(f"certificate {serial.hex()} is {state}; only one on hold can be released")
    _mark(connection, serial, None, None, Event("released", now_ms, {"serial": serial.hex(), "by": by}))
    blocked_keys.lift_hold(connection, row.key_sha256, serial, now_ms, by)


def others_of_key(connection: Connection, row: Any) -> list[Any]:
    """Return the rows of the other certificates of a certificate's key that are not revoked.

    Those on hold are among them, and those that have ended: the clock that says so may be ahead, and revoking one that
    has ended harms nothing. An EC key counts as the same in each form of its point.
    """
    _, public_key_info = leaf_subject_and_key(assemble(row.tbs, row.signature))
    is_other = issuance.c.key_sha256.in_(key_forms(public_key_info)), issuance.c.serial != row.serial
    is_open = or_(issuance.c.reason.is_(None), issuance.c.reason == Reason.certificateHold)
    statement = select(issuance).where(*is_other, issuance.c.status == ISSUED, is_open)
    return list(connection.execute(statement.order_by(issuance.c.id)).all())


def revoke_one(
    connection: Connection, row: Any, _others: Sequence[Any], reason: Reason, now_ms: int, by: str
) -> list[Any]:
    """Revoke a row's certificate; return the rows of what was revoked. Arguments and errors as for `revoke_all`."""
    revoke(connection, row.serial, reason, now_ms, by)
    return [row]


def revoke_all(
    connection: Connection, row: Any, others: Sequence[Any], reason: Reason, now_ms: int, by: str
) -> list[Any]:
    """Revoke a row's certificate and others of its key, each with its own row in the audit.

    Args:
        others: from `others_of_key`. Those on hold stay so where the reason is certificateHold. The others as for
            `revoke`.

    Returns:
        The rows of what was revoked: of the others alone, where the certificate was revoked before.

    Raises:
        RevocationRefused: there was nothing to revoke.
    """
    chosen = [each for each in (row, *others) if _may_become(each, reason)]
    if not chosen:
        revoke(connection, row.serial, reason, now_ms, by)  # which says why not
    for each in chosen:
        revoke(connection, each.serial, reason, now_ms, by)
    return chosen


def _may_become(row: Any, reason: Reason) -> bool:
    return row.reason is None or bool(row.reason == Reason.certificateHold != reason)


def changes_since(connection: Connection, number: int) -> Iterator[Revocation]:
    """Yield what was revoked or released since the change of this number, each certificate as it stands now."""
    yield from heapq.merge(_changed_here(connection, number), _carried(connection, number), key=attrgetter("number"))


def _changed_here(connection: Connection, number: int) -> Iterator[Revocation]:
    rows = connection.execute(
        select(
            issuance.c.revocation,
            issuance.c.serial,
            issuance.c.root_generation,
            issuance.c.reason,
            issuance.c.revoked_ms,
            issuance.c.not_after,
        )
        .where(issuance.c.revocation > number)
        .order_by(issuance.c.revocation)
    )
    for row in rows:
        yield Revocation(*row)


def _carried(connection: Connection, number: int) -> Iterator[Revocation]:
    for row in carried_revocations.rows_since(connection, number):
        yield Revocation(row.revocation, row.serial, row.root_generation, row.reason, row.revoked_ms, row.not_after)


def is_revoked(connection: Connection, serial: bytes) -> bool:
    """Return whether a certificate is revoked or on hold."""
    statement = select(issuance.c.id).where(issuance.c.serial == serial, issuance.c.reason.is_not(None))
    return connection.execute(statement).first() is not None


def _find(connection: Connection, serial: bytes) -> Any:
    row = connection.execute(select(issuance).where(issuance.c.serial == serial, issuance.c.status == ISSUED)).first()
    if row is None:
        raise RevocationRefused(f"no certificate with the serial number {serial.hex()} was issued here")
    return row


def _mark(connection: Connection, serial: bytes, reason: Reason | None, revoked_ms: int | None, event: Event) -> None:
    audit_chain.append(connection, [event])
    values = {"reason": reason, "revoked_ms": revoked_ms, "revocation": audit_chain.read_head(connection).last_id}
    done = connection.execute(update(issuance).where(issuance.c.serial == serial).values(values))
    check_changed(done.rowcount, 1)
