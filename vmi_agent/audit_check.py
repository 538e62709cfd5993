"""`audit verify`: finds the first row of the audit that is bad or missing, then holds the ledger against the audit."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from vmi_agent import audit
from vmi_agent.audit import Head, Row
from vmi_agent.certificate import assemble
from vmi_agent.ledger_rows import ISSUED
from vmi_agent.ledger_schema import issuance, reason

NO_ANCHORS: Mapping[int, bytes] = MappingProxyType({})


class AuditBroken(Exception):
    """The audit, or the ledger beside it, is not as it was written; the text names the first place."""


@dataclass(slots=True)
class _Told:
    """What the audit says of the ledger, as far as it was read.

    Attributes:
        signed: how many certificates that are still in the ledger.
        revoked: reason codes of those that are revoked or on hold, by serial.
        gone: the end of the longest-lived certificate that is not in the ledger any more, and the row that told of it.
        pruned_before: what ended before this was pruned, in seconds since 1970-01-01 UTC.
    """

    signed: int = 0
    revoked: dict[str, int] = field(default_factory=dict)
    gone: tuple[int, int] = (0, 0)
    pruned_before: int = 0


def verify(connection: Connection, anchors: Mapping[int, bytes] = NO_ANCHORS) -> Head:
    """Check every row of the audit, and the ledger against it; return where the chain ends.

    Args:
        connection: one consistent look at the ledger.
        anchors: hashes of rows as they were written down elsewhere, by the row's number.

    Raises:
        AuditBroken: something is not as it was written.
    """
    told = _Told()
    try:
        end = _verify_chain(connection, anchors, told)
        _verify_ledger(connection, told)
    except SQLAlchemyError as error:
        raise AuditBroken(f"the ledger cannot be read: {reason(error)}") from error
    return end


def _verify_chain(connection: Connection, anchors: Mapping[int, bytes], told: _Told) -> Head:
    end = audit.START
    rows = audit.rows(connection)
    while True:
        try:
            row = next(rows, None)
        except SQLAlchemyError as error:
            raise AuditBroken(f"audit row {end.last_id + 1} cannot be read: {reason(error)}") from error
        if row is None:
            break
        end = _verify_row(row, end)
        if anchors.get(end.last_id, end.hash) != end.hash:
            raise AuditBroken(f"audit row {end.last_id} is not the one that the anchor names: the chain was made anew")
        _take_in(connection, row, told)
    _verify_end(connection, end, anchors)
    return end


def _verify_row(row: Row, before: Head) -> Head:
    expected_id = before.last_id + 1
    if type(row.id) is int and row.id > expected_id:
        raise AuditBroken(f"audit row {expected_id} is missing")
    link = audit.link_of(row, before.hash)
    if row.id != expected_id or link is None or link != row.hash:
        raise AuditBroken(f"audit row {expected_id} was changed")
    return Head(expected_id, link)


def _verify_end(connection: Connection, end: Head, anchors: Mapping[int, bytes]) -> None:
    head = audit.read_head(connection)
    last_known = max(*anchors, 0, head.last_id if type(head.last_id) is int else 0)
    if last_known > end.last_id:
        raise AuditBroken(f"audit row {end.last_id + 1} is missing: the chain went on to row {last_known}")
    if head != end:
        raise AuditBroken(f"the audit ends with row {end.last_id}, and the record of its end says something else")


def _take_in(connection: Connection, row: Row, told: _Told) -> None:
    """Look up what a row tells of. The row holds: its hash was right."""
    event, fields = row.event.decode(), json.loads(row.fields)
    match event:
        case "signed":
            _look_up(connection, row.id, fields, told)
        case "revoked":
            told.revoked[fields["serial"]] = fields["reason"]
        case "released":
            told.revoked.pop(fields["serial"], None)
        case "pruned":
            told.pruned_before = max(told.pruned_before, fields["not_after_before"])


def _look_up(connection: Connection, row_id: int, fields: dict[str, Any], told: _Told) -> None:
    found = connection.execute(
        select(issuance.c.tbs, issuance.c.signature, issuance.c.status).where(
            issuance.c.serial == bytes.fromhex(fields["serial"])
        )
    ).first()
    if found is None:
        told.gone = max(told.gone, (fields["not_after"], row_id))
        return
    told.signed += 1
    kept = b"" if found.signature is None else assemble(found.tbs, found.signature)
    if found.status != ISSUED or sha256(kept).hexdigest() != fields["certificate_sha256"]:
        raise AuditBroken(f"certificate {fields['serial']} of audit row {row_id} was changed in the ledger")


def _verify_ledger(connection: Connection, told: _Told) -> None:
    not_after, row_id = told.gone
    if row_id and not_after >= told.pruned_before:
        raise AuditBroken(f"the certificate of audit row {row_id} is missing from the ledger")
    issued = connection.execute(select(func.count()).where(issuance.c.status == ISSUED)).scalar_one()
    if issued != told.signed:
        raise AuditBroken(f"the ledger has {issued} certificates, the audit tells of {told.signed} of them")
    rows = connection.execute(select(issuance.c.serial, issuance.c.reason).where(issuance.c.reason.is_not(None)))
    marked = {row.serial.hex(): row.reason for row in rows}
    for serial in marked.keys() | told.revoked.keys():
        if marked.get(serial) != told.revoked.get(serial) and not _was_pruned(connection, serial, told):
            raise AuditBroken(f"the revocation of certificate {serial} is not as the audit tells it")


def _was_pruned(connection: Connection, serial: str, told: _Told) -> bool:
    """Return whether a certificate that the audit calls revoked is gone with those that had ended."""
    found = select(issuance.c.id).where(issuance.c.serial == bytes.fromhex(serial))
    return bool(told.pruned_before) and connection.execute(found).first() is None
