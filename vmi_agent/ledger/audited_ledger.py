"""The ledger's certificates, held against what the audit tells of them, in the order in which it tells it."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Integer, LargeBinary
from sqlalchemy.exc import SQLAlchemyError

from vmi_agent.ca.certificate import assemble
from vmi_agent.ledger.ledger_rows import ABANDONED, ISSUED, PENDING, digest_of, facts_of
from vmi_agent.ledger.ledger_schema import issuance

_COLUMNS = ", ".join(column.name for column in issuance.columns)


# Of a certificate: reason, time of the revocation, number of the audit's last row about it.
_Mark = tuple[int | None, int | None, int]


class AuditBroken(Exception):
    """The audit, or the ledger beside it, is not as it was written; the text names the first place."""


class AuditedLedger:
    """Walks through the rows of the ledger beside the audit: both are in the order in which intents were recorded.

    Each method takes the number of the audit's row and what it holds, and raises AuditBroken where the ledger says
    something else. In memory are what is not yet signed, and the serials of what was ever revoked.

    Args:
        connection: one consistent look at the ledger.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows = self._read()
        self._next: Any = next(self._rows, None)
        # Recorded and not yet told to be signed: the certificate's hash and time in the ledger, None where it has none.
        self._open: dict[str, tuple[str, int] | None] = {}
        # As the audit tells it and as the ledger has it, by serial.
        self._told_marks: dict[str, _Mark] = {}
        self._found_marks: dict[str, _Mark] = {}
        self._gone = 0
        # Of what is gone, the end of the longest-lived, and the audit's row that told of it.
        self._gone_until = (0, 0)
        self._pruned = 0
        self._pruned_before = 0

    def _read(self) -> Iterator[Any]:
        statement = f"SELECT {_COLUMNS} FROM issuance ORDER BY id"  # noqa: S608  # names of our own columns
        try:
            yield from self._connection.exec_driver_sql(statement)
        except SQLAlchemyError as error:
            # Not the reason: it may show what stands in the row.
            raise AuditBroken("a certificate in the ledger cannot be read: its row was changed") from error

    def signing(self, number: int, at_ms: int, fields: Mapping[str, Any]) -> None:
        """An intent was recorded."""
        told = dict(fields)
        recorded_ms = told.pop("before_the_audit_ms", at_ms)
        row, serial = self._next, told["serial"]
        if row is None or row.serial != bytes.fromhex(serial):
            self._look_for(serial, number)
            self._gone += 1
            self._gone_until = max(self._gone_until, (told["not_after"], number))
            return
        if not _is_well_typed(row) or facts_of(row) != told or row.recorded_ms != recorded_ms:
            raise _changed(serial, number)
        if row.request_digest != digest_of(row.user, row.csr_sha256) or not _has_consistent_status(row):
            raise _changed(serial, number)
        certificate = None
        if row.status == ISSUED:
            certificate = (sha256(assemble(row.tbs, row.signature)).hexdigest(), row.issued_ms)
        self._open[serial] = certificate
        self._next = next(self._rows, None)
        mark = (row.reason, row.revoked_ms, row.revocation)
        if mark != (None, None, None):
            self._found_marks[serial] = mark

    def signed(self, number: int, at_ms: int, fields: Mapping[str, Any]) -> None:
        """A certificate was signed."""
        serial = fields["serial"]
        if serial not in self._open:
            return  # gone: `signing` saw that
        if self._open.pop(serial) != (fields["certificate_sha256"], fields.get("before_the_audit_ms", at_ms)):
            raise _changed(serial, number)

    def revoked(self, number: int, at_ms: int, serial: str, reason: int) -> None:
        """A certificate was revoked or put on hold."""
        # From hold to revoked for good: it counts as revoked from the beginning of the hold.
        _, since_ms, _ = self._told_marks.get(serial, (None, None, 0))
        self._told_marks[serial] = (reason, at_ms if since_ms is None else since_ms, number)

    def released(self, number: int, serial: str) -> None:
        """A certificate was taken off hold."""
        self._told_marks[serial] = (None, None, number)

    def pruned(self, count: int, not_after_before: int) -> None:
        """So many certificates were forgotten, all of which had ended before a time."""
        self._pruned += count
        self._pruned_before = max(self._pruned_before, not_after_before)

    def finish(self) -> None:
        """The audit is at its end: what is in the ledger now must be what was told."""
        if self._next is not None:
            raise AuditBroken(f"the audit does not tell of {_name(self._next)}, which is in the ledger")
        unsigned = [serial for serial, certificate in self._open.items() if certificate is not None]
        if unsigned:
            raise AuditBroken(f"the audit does not tell that certificate {unsigned[0]} was signed, the ledger does")
        not_after, number = self._gone_until
        if number and not_after >= self._pruned_before:
            raise AuditBroken(f"the certificate of audit row {number} is missing from the ledger")
        if self._gone != self._pruned:
            raise AuditBroken(f"{self._gone} certificates are gone, the audit tells of {self._pruned} that were pruned")
        self._check_marks()
        self._check_idempotency()

    def _look_for(self, serial: str, number: int) -> None:
        """Raise where a certificate is in the ledger, but not in its place."""
        if self._is_there(serial):
            before = "" if self._next is None else f": {_name(self._next)} stands before it"
            raise AuditBroken(f"certificate {serial} of audit row {number} is not in its place in the ledger{before}")

    def _is_there(self, serial: str) -> bool:
        statement = "SELECT 1 FROM issuance WHERE serial = ?"
        return self._connection.exec_driver_sql(statement, (bytes.fromhex(serial),)).first() is not None

    def _check_marks(self) -> None:
        for serial in self._found_marks.keys() | self._told_marks.keys():
            found, told = self._found_marks.get(serial), self._told_marks.get(serial)
            if found != told and (found is not None or self._is_there(serial)):
                row = "" if told is None else f" in row {told[2]}"
                raise AuditBroken(f"the revocation of certificate {serial} is not as the audit tells it{row}")

    def _check_idempotency(self) -> None:
        """Look for keys that lead to another CSR's certificate; the audit does not tell of keys themselves."""
        wrong = self._connection.exec_driver_sql(
            "SELECT count(*) FROM idempotency LEFT JOIN issuance USING (serial)"
            " WHERE issuance.csr_sha256 IS NOT idempotency.csr_sha256"
        ).scalar_one()
        if wrong:
            raise AuditBroken(f"{wrong} idempotency keys in the ledger do not lead to the certificate of their CSR")


def _is_well_typed(row: Any) -> bool:
    """Return whether a row has values of the types that its columns promise; SQLite stores any in any."""
    for column in issuance.columns:
        value = getattr(row, column.name)
        kind = bytes if isinstance(column.type, LargeBinary) else int if isinstance(column.type, Integer) else str
        if type(value) is not kind and not (value is None and column.nullable):
            return False
    return True


def _has_consistent_status(row: Any) -> bool:
    if row.status == ISSUED:
        return row.signature is not None and row.issued_ms is not None
    return row.status in (PENDING, ABANDONED) and row.signature is None and row.issued_ms is None


def _changed(serial: str, number: int) -> AuditBroken:
    return AuditBroken(f"certificate {serial} of audit row {number} was changed in the ledger")


def _name(row: Any) -> str:
    return f"certificate {row.serial.hex()}" if type(row.serial) is bytes else "a certificate without a serial number"
