"""Looking up what was issued: filters and pages over the ledger, from any process."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, select

from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import ISSUED, PENDING, idempotency, issuance, reading
from vmi_agent.ledger.sql import check_changed

STATUSES = ("valid", "expired", "revoked", "on-hold", "not-yet-valid")
PRUNE_BATCH = 500
PAGE = 500


class NoSuchCertificate(Exception):
    """No certificate with this serial number was issued here."""

    def __init__(self, serial: str) -> None:
        super().__init__(f"no certificate with the serial number {serial} was issued here")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which certificates are wanted; what is None or empty does not matter.

    Attributes:
        subject: a part of the subject as RFC 4514 writes it, in any case.
        requester: the user, exactly.
        serial_prefix: how the serial number begins, in hexadecimal.
        key_sha256: over the SubjectPublicKeyInfo, 32 octets.
        status: one of `STATUSES`.
        expiring_before: not ended now, but then.
        after: the serial number, in hexadecimal, of the last certificate of the page before.
        limit: how many at most.
    """

    subject: str | None = None
    requester: str | None = None
    serial_prefix: str | None = None
    key_sha256: bytes | None = None
    status: str | None = None
    expiring_before: datetime | None = None
    after: str | None = None
    limit: int | None = None


def list_certificates(state_dir: Path, wanted: Filter, now: datetime) -> Iterator[Any]:
    """Yield the rows of issued certificates, oldest first.

    They are read a page at a time: a look that stays open, such as in a pager, would keep SQLite's log from being
    emptied, and it would grow with all that is signed meanwhile.

    Raises:
        LedgerUnavailable: there is no ledger, or it cannot be read.
        NoSuchCertificate: there is none with the serial number `wanted.after`.
    """
    last_id, left = 0, wanted.limit
    if wanted.after is not None:
        last_id = find_certificate(state_dir, wanted.after).id
    conditions = [issuance.c.status == ISSUED, *_conditions(wanted, now)]
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        with reading(state_dir) as connection:
            statement = select(issuance).where(*conditions, issuance.c.id > last_id)
            page = connection.execute(statement.order_by(issuance.c.id).limit(size)).all()
        yield from page
        if len(page) < size:
            return
        last_id = page[-1].id
        left = None if left is None else left - size


def find_certificate(state_dir: Path, serial: str) -> Any:
    """Return the row of one issued certificate. Raises as `list_certificates` does."""
    with reading(state_dir) as connection:
        return find(connection, serial)


def find(connection: Connection, serial: str) -> Any:
    """Return the row of one issued certificate.

    Args:
        serial: in hexadecimal.

    Raises:
        NoSuchCertificate: it was not issued here.
    """
    number = int(serial, 16)
    octets = number.to_bytes(SERIAL_OCTETS) if 0 < number < 1 << 8 * SERIAL_OCTETS else b""
    row = connection.execute(select(issuance).where(issuance.c.serial == octets, issuance.c.status == ISSUED)).first()
    if row is None:
        raise NoSuchCertificate(serial)
    return row


def status_of(row: Any, now: datetime) -> str:
    """Return which of `STATUSES` a row has."""
    if row.reason is not None:
        return "on-hold" if row.reason == Reason.certificateHold else "revoked"
    now_s = int(now.timestamp())
    if row.not_before > now_s:
        return "not-yet-valid"
    return "valid" if row.not_after >= now_s else "expired"


def prune(connection: Connection, ended_before: datetime, now_ms: int) -> int:
    """Forget up to `PRUNE_BATCH` certificates that ended before a time, for good; return how many.

    The audit keeps what it told of them.
    """
    before_s = int(ended_before.timestamp())
    if ended_before > datetime.fromtimestamp(now_ms / 1000, UTC):
        raise ValueError("certificates that have not ended are never pruned")
    # What is pending is closed off before it can be forgotten.
    is_over = issuance.c.status != PENDING, issuance.c.not_after < before_s
    ended = select(issuance.c.id, issuance.c.serial).where(*is_over).limit(PRUNE_BATCH)
    rows = connection.execute(ended).all()
    if rows:
        serials = [row.serial for row in rows]
        tokens = idempotency.c.serial.in_(serials)
        token_count = connection.execute(select(func.count()).select_from(idempotency).where(tokens)).scalar_one()
        check_changed(connection.execute(delete(idempotency).where(tokens)).rowcount, token_count)
        done = connection.execute(delete(issuance).where(issuance.c.id.in_([row.id for row in rows])))
        check_changed(done.rowcount, len(rows))
        audit_chain.append(connection, [Event("pruned", now_ms, {"count": len(rows), "not_after_before": before_s})])
    return len(rows)


def _conditions(wanted: Filter, now: datetime) -> Iterator[ColumnElement[bool]]:
    columns, now_s = issuance.c, int(now.timestamp())
    if wanted.subject is not None:
        yield columns.subject.icontains(wanted.subject, autoescape=True)
    if wanted.requester is not None:
        yield columns.user == wanted.requester
    if wanted.serial_prefix is not None:
        digits = 2 * SERIAL_OCTETS
        yield columns.serial >= bytes.fromhex(wanted.serial_prefix.ljust(digits, "0"))
        yield columns.serial <= bytes.fromhex(wanted.serial_prefix.ljust(digits, "f"))
    if wanted.key_sha256 is not None:
        yield columns.key_sha256 == wanted.key_sha256
    if wanted.expiring_before is not None:
        yield columns.reason.is_(None)
        yield columns.not_before <= now_s
        yield columns.not_after >= now_s
        yield columns.not_after < int(wanted.expiring_before.timestamp())
    match wanted.status:
        case "valid":
            yield columns.reason.is_(None)
            yield columns.not_before <= now_s
            yield columns.not_after >= now_s
        case "not-yet-valid":
            yield columns.reason.is_(None)
            yield columns.not_before > now_s
        case "expired":
            yield columns.reason.is_(None)
            yield columns.not_after < now_s
        case "revoked":
            yield columns.reason != Reason.certificateHold
        case "on-hold":
            yield columns.reason == Reason.certificateHold
