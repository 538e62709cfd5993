"""Backups: everything in the state directory that cannot be made again, in one tar file, while the agent serves.

`backup_archive` is the form of the file, `backup_manifest` what the CA states of its contents, `restore` the way back.
"""

import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from cryptography import x509

from runtime.errors import StartError
from runtime.files import sync_directory
from vmi_agent.backup import archive, signed_statement
from vmi_agent.backup import manifest as backup_manifest
from vmi_agent.backup.manifest import FileFacts
from vmi_agent.backup.staging import staging_directory
from vmi_agent.ca import store as ca_store
from vmi_agent.keys import CustodyError
from vmi_agent.keys.open import Access
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.schema import FILE_NAME, writing

MADE = "backup made"


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was written.

    Attributes:
        sha256: over the file, in hexadecimal.
        signer: the certificate of the key that signed its manifest; None where it is not signed.
        root: above the signer.
    """

    sha256: str
    signer: x509.Certificate | None
    root: x509.Certificate | None


def back_up(state_dir: Path, target: Path, now: datetime, access: Access | None = Access()) -> Made:  # noqa: B008  # a frozen value
    """Write a backup, mode 0600, and record it in the audit before anything is signed.

    Args:
        access: opens the key that signs the manifest; None leaves it unsigned.

    Raises:
        StartError: the target exists, or there is no state directory.
        CustodyError: the CA's key cannot be used.
        LedgerUnavailable: the ledger cannot be read or its audit written.
        OSError: the target cannot be written.
    """
    if target.exists():
        raise StartError(f"{target} exists already. Nothing was changed.")
    if not target.parent.is_dir():
        raise StartError(f"there is no directory {target.parent}. Make it, or give another target.")
    # Nobody changes the CA meanwhile, so that ledger and CA are of one time.
    with ca_store.locked(state_dir), staging_directory(target.with_name(f".{target.name}.partial")) as temporary:
        try:
            signer = None if access is None else signed_statement.open_signer(state_dir, access)
        except CustodyError as error:
            reason = str(error).rstrip(".")
            text = f"the backup cannot be signed: {reason}. To have one that only its SHA-256 vouches for: --unsigned"
            raise CustodyError(text) from error
        try:
            files = _files(state_dir)
            signed_by = None if signer is None else signer.generation
            fields = {"files_sha256": digest_of({name: sha256(each).hexdigest() for name, each in files.items()})}
            with writing(state_dir) as connection:
                event = Event(MADE, int(now.timestamp() * 1000), {**fields, "signed_by_generation": signed_by})
                audit_chain.append(connection, [event])
            copy = temporary / FILE_NAME
            _copy_ledger(state_dir / FILE_NAME, copy)
            listed = {FILE_NAME: FileFacts(copy.stat().st_size, _sha256_of(copy))}
            listed |= {name: FileFacts(len(each), sha256(each).hexdigest()) for name, each in files.items()}
            manifest = backup_manifest.make(listed, state_dir, signer, now)
        finally:
            if signer is not None:
                signer.custody.close()
        tar = temporary / "backup.tar"
        with open(os.open(tar, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            digest = archive.write(file, manifest, copy, files, int(now.timestamp()))
            file.flush()
            os.fsync(file.fileno())
        _put(tar, target)
    sync_directory(target.parent)
    return Made(digest, None if signer is None else signer.certificate, None if signer is None else signer.root)


def digest_of(digests: Mapping[str, str]) -> str:
    """Return one digest over the files of a backup beside the ledger, as the audit records it.

    Args:
        digests: SHA-256 in hexadecimal, by name.
    """
    return sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()).hexdigest()


def _copy_ledger(ledger: Path, copy: Path) -> None:
    source = sqlite3.connect(ledger)
    try:
        source.execute("VACUUM INTO ?", (str(copy),))
    except sqlite3.Error as error:
        raise StartError(f"the ledger cannot be copied to {copy.parent.parent}: {error}. Is there room?") from error
    finally:
        source.close()


def _files(state_dir: Path) -> dict[str, bytes]:
    """Return the contents of the small files that belong into a backup, by name."""
    names = {path.relative_to(state_dir).as_posix(): path for path in sorted(state_dir.rglob("*")) if path.is_file()}
    others = (FILE_NAME, archive.MANIFEST)
    return {
        name: path.read_bytes() for name, path in names.items() if name not in others and archive.MEMBER.fullmatch(name)
    }


def _put(source: Path, target: Path) -> None:
    """Put a file where nothing is, and never in the place of what somebody else has just put there."""
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise StartError(f"{target} exists already. Nothing was changed.") from error
    except OSError:  # a file system without links, such as many a USB stick's
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.replace(source, target)


def _sha256_of(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
