"""All that a ledger knows of revocations and blocked keys, as one signed statement: for a ledger that was restored.

It is made beside the backups, more often than they are, and holds no secret.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, select

from runtime.errors import StartError
from runtime.files import replace_file
from vmi_agent.backup import signed_statement
from vmi_agent.backup.signed_statement import Statement, StatementRefused
from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.keys.open import Access
from vmi_agent.ledger import blocked_keys, crl_numbers
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.carried_revocations import CarriedRevocation, rows_since
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import (
    FIRST_WITH_BLOCK_LIST,
    FIRST_WITH_CARRIED_REVOCATIONS,
    ISSUED,
    issuance,
    version_of,
    writing,
)

MAX_OCTETS = 256 << 20
_YEAR_9999_S = 253_370_764_800


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What was known of revocations at one time.

    Attributes:
        at: when; aware UTC time.
        last_row: the number of the last audit row at that time.
        revoked: certificates that are revoked or on hold.
        blocked: the block list, as `blocked_keys.export_blocked` gives it.
        crl_number: the highest number of a CRL at that time; 0 where it is not known.
    """

    at: datetime
    last_row: int
    revoked: Sequence[CarriedRevocation]
    blocked: Sequence[str]
    crl_number: int = 0


def of_ledger(connection: Connection, at: datetime) -> RevocationList:
    """Return what a ledger knows, also one of version 2, which has no block list of its own."""
    version = version_of(connection)
    columns = issuance.c
    statement = select(columns.serial, columns.root_generation, columns.reason, columns.revoked_ms, columns.not_after)
    rows = connection.execute(statement.where(columns.status == ISSUED, columns.reason.is_not(None)))
    revoked = [CarriedRevocation(*row) for row in rows]
    if version >= FIRST_WITH_CARRIED_REVOCATIONS:
        revoked += [
            CarriedRevocation(row.serial, row.root_generation, row.reason, row.revoked_ms, row.not_after)
            for row in rows_since(connection, 0)
        ]
    has_block_list = version >= FIRST_WITH_BLOCK_LIST
    if has_block_list:
        blocked = blocked_keys.export_blocked(connection)
    else:
        blocked = map(blocked_keys.line_of, blocked_keys.blocks_of_revocations(connection))
    return RevocationList(
        at, audit_chain.read_head(connection).last_id, revoked, list(blocked), crl_numbers.highest(connection)
    )


def write(state_dir: Path, target: Path, access: Access, now: datetime) -> RevocationList:
    """Write what the ledger knows to a file, signed, in the place of an older one; return it.

    Raises:
        StartError: there is no such directory for the file.
        CustodyError: the CA's key cannot be used.
        LedgerUnavailable: the ledger cannot be read or its audit written.
        OSError: the file cannot be written.
    """
    if not target.parent.is_dir():
        raise StartError(f"there is no directory {target.parent}. Make it, or give another target.")
    signer = signed_statement.open_signer(state_dir, access)
    with closing(signer.custody):
        with writing(state_dir) as connection:
            fields = {"signed_by_generation": signer.generation}
            audit_chain.append(connection, [Event("revocations exported", int(now.timestamp() * 1000), fields)])
            known = of_ledger(connection, now)
        content = {
            "at": known.at.isoformat(timespec="seconds"),
            "last_row": known.last_row,
            "crl_number": known.crl_number,
            "revoked": [
                [each.serial.hex(), each.root_generation, each.reason, each.revoked_ms, each.not_after]
                for each in known.revoked
            ],
            "blocked": known.blocked,
        }
        replace_file(target, signed_statement.make(signed_statement.REVOCATIONS, content, state_dir, signer))
    return known


def read(octets: bytes) -> tuple[RevocationList, Statement]:
    """Read such a file; return it, and the statement that it is, which names the signer.

    Raises:
        StatementRefused: it is none, or its signature does not verify.
    """
    statement = signed_statement.read(signed_statement.REVOCATIONS, octets)
    fields = statement.fields
    try:
        at, last_row, blocked = datetime.fromisoformat(fields["at"]), fields["last_row"], fields["blocked"]
        crl_number = fields.get("crl_number", 0)  # lists of earlier versions have none
        revoked = [CarriedRevocation(bytes.fromhex(serial), *numbers) for serial, *numbers in fields["revoked"]]
        is_sound = (
            at.utcoffset() is not None
            and type(last_row) is int
            and type(crl_number) is int
            and crl_number >= 0
            and all(_is_sound(each) for each in revoked)
            and all(isinstance(line, str) for line in blocked)
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StatementRefused("its content is not a list of revocations") from error
    if not is_sound:
        raise StatementRefused("its content is not a list of revocations")
    return RevocationList(at.astimezone(UTC), last_row, revoked, blocked, crl_number), statement


def _is_sound(each: CarriedRevocation) -> bool:
    numbers = (each.root_generation, each.revoked_ms // 1000 if type(each.revoked_ms) is int else None, each.not_after)
    are_times = all(type(number) is int and 0 <= number < _YEAR_9999_S for number in numbers)
    return are_times and len(each.serial) == SERIAL_OCTETS and each.reason in list(Reason)
