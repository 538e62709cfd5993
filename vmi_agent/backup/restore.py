"""Restoring: a state directory made from a backup, whole or not at all.

Nothing of a backup is relied on before it was checked as far as it can be: the archive's form while it is read, each
file against the manifest, the manifest's signature, the SHA-256 over the archive, then the ledger against its audit.
Whether the backup is the CA's own, only something from outside can tell: its SHA-256, or a root that is trusted
already.
"""

import io
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from sqlalchemy import Connection, select

from runtime.errors import StartError
from runtime.files import sync_directory
from runtime.state_dir import make as make_state_dir
from vmi_agent.backup import later_revocations, reapplied_revocations
from vmi_agent.backup import manifest as backup_manifest
from vmi_agent.backup.archive import MANIFEST, ArchiveReader, ArchiveRefused, Member
from vmi_agent.backup.backup import MADE, digest_of
from vmi_agent.backup.later_revocations import Later
from vmi_agent.backup.manifest import Manifest
from vmi_agent.backup.reapplied_revocations import Outcome
from vmi_agent.backup.signed_statement import StatementRefused, signing_generation
from vmi_agent.backup.staging import staging_directory
from vmi_agent.ca import authority
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import recovery, retention
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit import verify as audit_check
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.audit.reconcile import AuditBroken
from vmi_agent.ledger.crl_numbers import RESTORED
from vmi_agent.ledger.schema import FILE_NAME, reading, writing
from vmi_agent.ledger.schema import audit as audit_rows

_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Check:
    """What from outside tells whether a backup is the CA's own; with neither it may be forged.

    Attributes:
        sha256: over the archive, in hexadecimal.
        trusted: certificates of CAs of which one must lead to the signer of the manifest; empty where none are given.
        anchors: hashes of audit rows as they were written down elsewhere, by the row's number. The audit must hold
            those that are not newer than it.
    """

    sha256: str | None = None
    trusted: Sequence[x509.Certificate] = ()
    anchors: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored.

    Attributes:
        made_at: when the backup was made, as its audit records it.
        manifest: None where an older version made the backup.
        later: what was done about revocations since then.
        rows_lost: how many audit rows anchors show that were written after the backup.
    """

    made_at: datetime
    manifest: Manifest | None
    later: Outcome
    rows_lost: int


@dataclass(slots=True)
class _Contents:
    """What was extracted: the manifest, and SHA-256 of each file in hexadecimal, by name."""

    manifest: Manifest | None = None
    digests: dict[str, str] = field(default_factory=dict)
    archive_sha256: str = ""


def restore(source: Path, state_dir: Path, now: datetime, check: Check, later: Later) -> Restored:
    """Make a state directory from a backup. Its audit is verified first, and records the restoring.

    Args:
        source: a regular file.
        later: what tells of revocations since the backup was made.

    Raises:
        StartError: the state directory is not empty, or the backup is not whole, sound and the CA's own, or
            nothing tells of revocations since it was made.
        LedgerUnavailable: the ledger in it cannot be read.
        OSError: something cannot be read or written.
    """
    state_dir = Path(os.path.abspath(state_dir))  # `.` has no name to derive another one from
    _check_replaceable(state_dir)
    make_state_dir(state_dir.parent)
    if state_dir.exists() and any(state_dir.iterdir()):
        raise StartError(f"{state_dir} is not empty. Nothing was changed. Restore into an empty directory.")
    with staging_directory(state_dir.with_name(f".{state_dir.name}.restoring")) as staging:
        try:
            contents = _extract(source, staging, check)
            with reading(staging) as connection:
                rows_lost = _verify_audit(connection, check.anchors)
                made_at_ms = _check_files(connection, contents)
            _check_signer(staging, contents.manifest)
        except (ArchiveRefused, StatementRefused, AuditBroken) as error:
            raise StartError(f"{source} is not a sound backup: {error}") from error
        except LedgerUnavailable as error:
            raise StartError(f"{source} is not a sound backup: its ledger cannot be read") from error
        made_at = datetime.fromtimestamp(made_at_ms / 1000, UTC)
        now_ms = int(now.timestamp() * 1000)
        sources = later_revocations.gather(later, staging, made_at, check.trusted, now)
        with writing(staging) as connection:
            _bring_up_to_date(connection, now_ms)
            outcome = reapplied_revocations.apply(connection, sources, staging, made_at, now)
            fields = {"backup_sha256": contents.archive_sha256, **outcome.told}
            audit_chain.append(connection, [Event(RESTORED, now_ms, fields)])
        for directory in [staging, *(each for each in staging.rglob("*") if each.is_dir())]:
            sync_directory(directory)
        os.rename(staging, state_dir)
    sync_directory(state_dir.parent)
    return Restored(made_at, contents.manifest, outcome, rows_lost)


def _check_replaceable(state_dir: Path) -> None:
    """Check that a directory can be put under this name."""
    if state_dir.is_symlink():
        target = Path(os.path.realpath(state_dir))
        lack = "" if target.exists() else ", which does not exist"
        raise StartError(
            f"{state_dir} is a symbolic link to {target}{lack}. Give {target} itself. Nothing was changed."
        )


def _verify_audit(connection: Connection, anchors: Mapping[int, bytes]) -> int:
    """Verify the audit, with the anchors that are not newer; return how many rows behind its end the others show."""
    last_id = audit_chain.read_head(connection).last_id
    audit_check.verify(connection, {number: digest for number, digest in anchors.items() if number <= last_id})
    return max(0, max(anchors, default=0) - last_id)


def _bring_up_to_date(connection: Connection, now_ms: int) -> None:
    """Give a ledger of an earlier version what it lacks, and close off what was pending when the backup was made.

    Whether a pending certificate was signed after that is not known; it is not to be signed again, for it may be
    revoked.
    """
    recovery.bring_up_to_date(connection, now_ms)
    retention.close_off_all(connection, now_ms)


def _extract(source: Path, target: Path, check: Check) -> _Contents:
    """Write out what an archive holds, checked against its manifest and what is known of it from outside."""
    contents = _Contents()
    # Without waiting for the other end of a pipe.
    with open(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise StartError(f"{source} is not a file")
        reader = ArchiveReader(file, state.st_size)
        for member in reader.members():
            if member.name == MANIFEST:
                contents.manifest = _read_manifest(member, check)
                continue
            if contents.manifest is None and check.trusted:
                raise StartError(
                    f"{source} was made by an older version, which signed nothing, so --trust-root cannot check it."
                    " Give the --sha256 that was printed when it was made, or --unverified."
                )
            contents.digests[member.name] = _extract_file(member, target, contents.manifest)
    contents.archive_sha256 = reader.sha256
    if check.sha256 is not None and check.sha256 != reader.sha256:
        raise StartError(
            f"{source} is not the backup that --sha256 names: its SHA-256 is {reader.sha256}. It was exchanged, changed"
            " or damaged. Nothing was restored."
        )
    listed = {FILE_NAME} if contents.manifest is None else contents.manifest.files.keys()
    for name in listed - contents.digests.keys():
        raise ArchiveRefused(f"it holds no {name}")
    return contents


def _read_manifest(member: Member, check: Check) -> Manifest:
    buffer = io.BytesIO()
    member.copy_to(buffer)
    manifest = backup_manifest.read(buffer.getvalue())
    if check.trusted and not manifest.statement.is_signed_under(check.trusted):
        if manifest.signer is None:
            raise StartError(
                "the backup is not signed, so --trust-root shows nothing. Give --sha256 HEX, as `backup` printed it, or"
                " --unverified. Nothing was restored."
            )
        raise StartError(
            f"the backup is signed by {manifest.signer.subject.rfc4514_string()}, to which no certificate leads from"
            " those of --trust-root. If the CA was rotated after the backup, give the older root, which was in use when"
            " it was made, or --sha256 HEX, as `backup` printed it. Otherwise it is another CA's or forged. Nothing was"
            " restored."
        )
    return manifest


def _extract_file(member: Member, target: Path, manifest: Manifest | None) -> str:
    facts = None if manifest is None else manifest.files.get(member.name)
    if manifest is not None and (facts is None or facts.size != member.size):
        raise ArchiveRefused(f"{member.name} is not the file that its manifest names")
    path = target / member.name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    free = os.statvfs(target)
    if member.size > free.f_bavail * free.f_frsize:
        raise StartError(f"{target.parent} has no room for {member.size} octets of {member.name}")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        digest = member.copy_to(_LedgerFile(file, member.size) if member.name == FILE_NAME else file)
        file.flush()
        os.fsync(file.fileno())
    if facts is not None and facts.sha256 != digest:
        raise ArchiveRefused(f"{member.name} is not the file that its manifest names")
    return digest


class _LedgerFile:
    """Takes the ledger's octets, from the first ones on only where they begin a whole SQLite file of this size.

    A file of holes may be larger than the disk that it lies on; it is not written out (SQLite's file format, 1.3).
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._is_checked = False

    def write(self, octets: bytes) -> int:
        if not self._is_checked:
            page_octets = int.from_bytes(octets[16:18])
            pages = int.from_bytes(octets[28:32])
            page_octets = 65536 if page_octets == 1 else page_octets
            if not octets.startswith(_SQLITE) or page_octets * pages != self._size:
                raise ArchiveRefused(f"{FILE_NAME} is not a whole SQLite file")
            self._is_checked = True
        return self._file.write(octets)


def _check_signer(staging: Path, manifest: Manifest | None) -> None:
    """Check that a manifest is signed by the newest generation that is in the backup, and names its root."""
    if manifest is None or manifest.signer is None:
        return
    generation = signing_generation(staging)
    certificates = () if generation is None else authority.certificates_of(staging, generation)
    if not certificates or certificates[0].public_key() != manifest.signer.public_key():
        raise StatementRefused("its newest generation did not sign it")
    if manifest.root_sha256 != certificates[-1].fingerprint(hashes.SHA256()).hex():
        raise StatementRefused("its manifest names another root than its newest generation has")


def _check_files(connection: Connection, contents: _Contents) -> int:
    """Check the files against what the audit records of them; return when the backup was made, in milliseconds."""
    statement = select(audit_rows.c.at_ms, audit_rows.c.fields).where(audit_rows.c.event == MADE)
    row = connection.execute(statement.order_by(audit_rows.c.id.desc()).limit(1)).first()
    files = {name: digest for name, digest in contents.digests.items() if name != FILE_NAME}
    if row is None or json.loads(row.fields).get("files_sha256") != digest_of(files):
        raise ArchiveRefused("its files are not those that its audit records")
    made_at_ms: int = row.at_ms
    return made_at_ms
