"""The ledger's certificates, held against what the audit tells of them, in the order in which it tells it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Integer, LargeBinary
from sqlalchemy.exc import SQLAlchemyError

from vmi_agent.certificate import assemble
from vmi_agent.ledger.issuances import digest_of, facts_of
from vmi_agent.ledger.schema import (
    ABANDONED,
    FIRST_WITH_BLOCK_LIST,
    FIRST_WITH_CARRIED_REVOCATIONS,
    ISSUED,
    PENDING,
    issuance,
    version_of,
)

_COLUMNS = ", ".join(column.name for column in issuance.columns)


# Of a certificate: reason, time of the revocation, number of the audit's last row about it.
_Mark = tuple[int | None, int | None, int]


class AuditBroken(Exception):
    """The audit, or the ledger beside it, is not as it was written; the text names the first place."""


@dataclass(frozen=True, slots=True)
class _Open:
    """An intent that was recorded and is not yet told to be signed or closed off.

    Attributes:
        status: in the ledger now; None where its row is gone.
        certificate: its hash and time in the ledger; None where it has none.
        question: who asked for it, and the CSR's hash.
        is_older: it was recorded before there was an audit, which may never have told that it was closed off.
    """

    status: str | None
    certificate: tuple[str, int] | None
    question: tuple[str, str]
    is_older: bool


class AuditedLedger:
    """Walks through the rows of the ledger beside the audit: both are in the order in which intents were recorded.

    Each method takes the number of the audit's row and what it holds, and raises AuditBroken where the ledger says
    something else. In memory are what is not yet signed, the serials of what was ever revoked, and the block list.

    Args:
        connection: one consistent look at the ledger.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows = self._read()
        self._next: Any = next(self._rows, None)
        # By serial.
        self._open: dict[str, _Open] = {}
        # As the audit tells it and as the ledger has it, by serial.
        self._told_marks: dict[str, _Mark] = {}
        self._found_marks: dict[str, _Mark] = {}
        self._gone = 0
        # Of what is gone, the end of the longest-lived, and the audit's row that told of it.
        self._gone_until = (0, 0)
        self._pruned = 0
        self._pruned_before = 0
        # By serial and generation.
        self._told_carried: dict[tuple[bytes, int], tuple[int, int, int, int]] = {}
        # By key and serial, with the number of the audit's last row about it.
        self._told_blocks: dict[tuple[bytes, bytes], tuple[str, int, int]] = {}

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
        question, is_older = (told["user"], told["csr_sha256"]), "before_the_audit_ms" in fields
        if serial in self._open:
            raise AuditBroken(f"audit row {number} tells again of certificate {serial}, which is not signed yet")
        if row is None or row.serial != bytes.fromhex(serial):
            self._look_for(serial, number)
            self._gone += 1
            self._gone_until = max(self._gone_until, (told["not_after"], number))
            self._open[serial] = _Open(None, None, question, is_older)
            return
        if not _is_well_typed(row) or facts_of(row) != told or row.recorded_ms != recorded_ms:
            raise _changed(serial, number)
        if row.request_digest != digest_of(row.user, row.csr_sha256) or not _has_consistent_status(row):
            raise _changed(serial, number)
        certificate = None
        if row.status == ISSUED:
            certificate = (sha256(assemble(row.tbs, row.signature)).hexdigest(), row.issued_ms)
        self._open[serial] = _Open(row.status, certificate, question, is_older)
        self._next = next(self._rows, None)
        mark = (row.reason, row.revoked_ms, row.revocation)
        if mark != (None, None, None):
            self._found_marks[serial] = mark

    def signed(self, number: int, at_ms: int, fields: Mapping[str, Any]) -> None:
        """A certificate was signed."""
        serial = fields["serial"]
        intent = self._pop(serial, number)
        told = (fields["certificate_sha256"], fields.get("before_the_audit_ms", at_ms))
        if intent.status is not None and intent.certificate != told:
            raise _changed(serial, number)

    def resumed(self, number: int, fields: Mapping[str, Any]) -> None:
        """An intent was taken up again, by a retry."""
        intent = self._open.get(_checked(fields["serial"]))
        if intent is None or intent.question != (fields["user"], fields["csr_sha256"]):
            raise AuditBroken(f"audit row {number} takes up an intent that nobody recorded, or not of this request")

    def abandoned(self, number: int, count: int, serials: Sequence[str] | None) -> None:
        """Intents were closed off: these, or all that were open, where an older agent told their number alone."""
        if serials is None:
            serials = self._of_older_agent(number, count)
        elif count != len(serials):
            raise AuditBroken(
                f"audit row {number} tells of {count} intents that were closed off, and names another number"
            )
        for serial in serials:
            if self._pop(serial, number).status not in (ABANDONED, None):
                raise _changed(serial, number)

    def _of_older_agent(self, number: int, count: int) -> list[str]:
        # What is gone may have been pruned before, and what is older may have been closed off before.
        is_certain = {
            serial: it.status is not None and not (it.is_older and it.status == ABANDONED)
            for serial, it in self._open.items()
        }
        if not sum(is_certain.values()) <= count <= len(is_certain):
            raise AuditBroken(f"audit row {number} tells of {count} intents that were closed off, and others were open")
        return [serial for serial, it in self._open.items() if it.status in (ABANDONED, None) or is_certain[serial]]

    def _pop(self, serial: str, number: int) -> _Open:
        intent = self._open.pop(_checked(serial), None)
        if intent is None:
            raise AuditBroken(f"audit row {number} tells of certificate {serial}, for which no intent was open")
        return intent

    def revoked(self, number: int, at_ms: int, serial: str, reason: int) -> None:
        """A certificate was revoked or put on hold."""
        # From hold to revoked for good: it counts as revoked from the beginning of the hold.
        _, since_ms, _ = self._told_marks.get(serial, (None, None, 0))
        self._told_marks[serial] = (reason, at_ms if since_ms is None else since_ms, number)

    def released(self, number: int, serial: str) -> None:
        """A certificate was taken off hold."""
        self._told_marks[serial] = (None, None, number)

    def carried_over(self, number: int, fields: Mapping[str, Any]) -> None:
        """The revocation of a certificate was taken over that the ledger does not hold."""
        place = bytes.fromhex(fields["serial"]), int(fields["root_generation"])
        self._told_carried[place] = fields["reason"], fields["revoked_ms"], fields["not_after"], number

    def keys_blocked(self, number: int, at_ms: int, fields: Mapping[str, Any]) -> None:
        """Keys were put on the block list."""
        if fields["count"] != len(fields["keys"]):
            raise AuditBroken(f"audit row {number} tells of {fields['count']} blocked keys, and names another number")
        told = (str(fields["reason"]), int(fields.get("blocked_ms", at_ms)), number)
        for key in fields["keys"]:
            self._told_blocks[bytes.fromhex(key), bytes.fromhex(fields.get("serial", ""))] = told

    def key_unblocked(self, number: int, fields: Mapping[str, Any]) -> None:
        """A key was taken off the block list, as far as one certificate or a block by hand put it there."""
        place = bytes.fromhex(fields["key"]), bytes.fromhex(fields.get("serial", ""))
        if self._told_blocks.pop(place, None) is None:
            raise AuditBroken(f"audit row {number} tells that key {fields['key']} was unblocked, which was not blocked")

    def pruned(self, count: int, not_after_before: int) -> None:
        """So many certificates were forgotten, all of which had ended before a time."""
        self._pruned += count
        self._pruned_before = max(self._pruned_before, not_after_before)

    def finish(self) -> None:
        """The audit is at its end: what is in the ledger now must be what was told."""
        if self._next is not None:
            raise AuditBroken(f"the audit does not tell of {_name(self._next)}, which is in the ledger")
        for serial, intent in self._open.items():
            if intent.certificate is not None:
                raise AuditBroken(f"the audit does not tell that certificate {serial} was signed, the ledger does")
            if intent.status == ABANDONED and not intent.is_older:
                raise AuditBroken(f"the audit does not tell that certificate {serial} was closed off, the ledger does")
        not_after, number = self._gone_until
        if number and not_after >= self._pruned_before:
            raise AuditBroken(f"the certificate of audit row {number} is missing from the ledger")
        if self._gone != self._pruned:
            raise AuditBroken(f"{self._gone} certificates are gone, the audit tells of {self._pruned} that were pruned")
        self._check_marks()
        self._check_block_list()
        self._check_carried()
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

    def _check_block_list(self) -> None:
        """Hold the block list, which ledgers of earlier versions have not, against what the audit tells of it."""
        told = self._told_blocks
        statement = "SELECT key_sha256, serial, reason, blocked_ms FROM blocked_key"
        has_list = version_of(self._connection) >= FIRST_WITH_BLOCK_LIST
        for row in self._connection.exec_driver_sql(statement) if has_list else ():
            key, serial, reason, blocked_ms = row
            expected = told.pop((key, serial), None)
            if expected is None:
                raise AuditBroken(
                    f"the audit does not tell of the block of {_name_of_key(key)}, which is in the ledger"
                )
            if (type(reason), type(blocked_ms)) != (str, int) or (reason, blocked_ms) != expected[:2]:
                raise AuditBroken(f"the block of {_name_of_key(key)} of audit row {expected[2]} was changed")
        for (key, _), (_, _, number) in told.items():
            raise AuditBroken(f"the block of {_name_of_key(key)} of audit row {number} is missing from the ledger")

    def _check_carried(self) -> None:
        """Hold the revocations that were taken over against what the audit tells of them."""
        if version_of(self._connection) < FIRST_WITH_CARRIED_REVOCATIONS:
            return
        statement = "SELECT serial, root_generation, reason, revoked_ms, not_after, revocation FROM carried_revocation"
        rows = self._connection.exec_driver_sql(statement)
        found = {(row[0], row[1]): tuple(row[2:]) for row in rows}
        if found != self._told_carried:
            raise AuditBroken("the revocations that were carried over are not as the audit tells them")

    def _check_idempotency(self) -> None:
        """Look for keys that lead to another CSR's certificate; the audit does not tell of keys themselves."""
        wrong = self._connection.exec_driver_sql(
            "SELECT count(*) FROM idempotency LEFT JOIN issuance USING (serial)"
            " WHERE issuance.csr_sha256 IS NOT idempotency.csr_sha256"
        ).scalar_one()
        if wrong:
            raise AuditBroken(f"{wrong} idempotency keys in the ledger do not lead to the certificate of their CSR")


def _checked(serial: str) -> str:
    """Return a serial number, or raise what fields do that are not as they should be."""
    bytes.fromhex(serial)
    return serial


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


def _name_of_key(key: Any) -> str:
    return f"key {key.hex()}" if type(key) is bytes else "a key that is not a hash"


def _name(row: Any) -> str:
    return f"certificate {row.serial.hex()}" if type(row.serial) is bytes else "a certificate without a serial number"
