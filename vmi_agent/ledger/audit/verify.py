"""`audit verify`: finds the first row of the audit that is bad or missing, then holds the ledger against the audit."""

import json
from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Head, Row
from vmi_agent.ledger.audit.reconcile import AuditBroken, AuditedLedger
from vmi_agent.ledger.schema import fault_of_schema, reason

NO_ANCHORS: Mapping[int, bytes] = MappingProxyType({})


def verify(connection: Connection, anchors: Mapping[int, bytes] = NO_ANCHORS) -> Head:
    """Check every row of the audit, the ledger against it, and the file; return where the chain ends.

    Of the ledger every column of every certificate and of the block list is checked. Of an idempotency key nothing is:
    the audit does not tell of it.

    Args:
        connection: one consistent look at the ledger.
        anchors: hashes of rows as they were written down elsewhere, by the row's number.

    Raises:
        AuditBroken: something is not as it was written.
    """
    try:
        fault = fault_of_schema(connection)
        if fault is not None:
            raise AuditBroken(fault)
        return verify_rows(connection, anchors)
    except SQLAlchemyError as error:
        raise AuditBroken(f"the ledger cannot be read: {reason(error)}") from error


def verify_rows(connection: Connection, anchors: Mapping[int, bytes] = NO_ANCHORS) -> Head:
    """Do what `verify` does, without looking at the schema."""
    try:
        ledger = AuditedLedger(connection)
        end = _verify_chain(connection, anchors, ledger)
        ledger.finish()
        # An index that lies changes no row, and hides some from whoever looks one up.
        state = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
    except SQLAlchemyError as error:
        raise AuditBroken(f"the ledger cannot be read: {reason(error)}") from error
    if state != "ok":
        raise AuditBroken(f"the ledger's file is damaged: {state}")
    return end


def _verify_chain(connection: Connection, anchors: Mapping[int, bytes], ledger: AuditedLedger) -> Head:
    end = audit_chain.START
    rows = audit_chain.rows(connection)
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
        _take_in(row, ledger)
    _verify_end(connection, end, anchors)
    return end


def _verify_row(row: Row, before: Head) -> Head:
    expected_id = before.last_id + 1
    if type(row.id) is int and row.id > expected_id:
        raise AuditBroken(f"audit row {expected_id} is missing")
    link = audit_chain.link_of(row, before.hash)
    if row.id != expected_id or link is None or link != row.hash:
        raise AuditBroken(f"audit row {expected_id} was changed")
    return Head(expected_id, link)


def _verify_end(connection: Connection, end: Head, anchors: Mapping[int, bytes]) -> None:
    # As they stand in the file, whatever their types are.
    statement = "SELECT last_id, CASE typeof(hash) WHEN 'blob' THEN hash END AS hash FROM audit_head"
    heads = connection.exec_driver_sql(statement).all()
    last_known = max([0, *anchors, *(head.last_id for head in heads if type(head.last_id) is int)])
    if last_known > end.last_id:
        raise AuditBroken(f"audit row {end.last_id + 1} is missing: the chain went on to row {last_known}")
    expected = [] if end == audit_chain.START else [(end.last_id, end.hash)]
    if [tuple(head) for head in heads] != expected:
        raise AuditBroken(f"the audit ends with row {end.last_id}, and the record of its end says something else")


def _take_in(row: Row, ledger: AuditedLedger) -> None:
    """Hold what a row tells against the ledger. The row is as it was written, or was made with the whole chain."""
    try:
        event, fields = row.event.decode(), json.loads(row.fields)
        match event:
            case "signing":
                ledger.signing(row.id, row.at_ms, fields)
            case "signing resumed":
                ledger.resumed(row.id, fields)
            case "signed":
                ledger.signed(row.id, row.at_ms, fields)
            case "intents abandoned":
                ledger.abandoned(row.id, fields["count"], fields.get("serials"))
            case "revoked":
                ledger.revoked(row.id, fields.get("revoked_ms", row.at_ms), fields["serial"], fields["reason"])
            case "revocation carried over":
                ledger.carried_over(row.id, fields)
            case "released":
                ledger.released(row.id, fields["serial"])
            case "keys blocked":
                ledger.keys_blocked(row.id, row.at_ms, fields)
            case "key unblocked":
                ledger.key_unblocked(row.id, fields)
            case "pruned":
                ledger.pruned(fields["count"], fields["not_after_before"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AuditBroken(f"audit row {row.id} does not hold what its event tells: the chain was made anew") from error
