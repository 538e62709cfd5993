"""Backups: everything in the state directory that cannot be made again, in one tar file, while the agent serves."""

import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection, select

from runtime.errors import StartError
from runtime.files import sync_directory
from runtime.state_dir import make as make_state_dir
from vmi_agent.ca import ca_store
from vmi_agent.ledger import audit
from vmi_agent.ledger.audit import Event
from vmi_agent.ledger.audit_check import verify
from vmi_agent.ledger.audited_ledger import AuditBroken
from vmi_agent.ledger.ledger_schema import FILE_NAME, reading, writing
from vmi_agent.ledger.ledger_schema import audit as audit_rows

# All that a backup may hold: nothing else is read from one.
_MEMBER = re.compile(
    r"ledger\.sqlite|channel(-of-proxy)?\.pem"
    r"|ca/([1-9][0-9]{0,17}|requested)/[a-z-]+\.(pem|uri)|ca/[1-9][0-9]{0,17}/ephemeral"
)
_MOST_OCTETS = 1 << 20  # of any but the ledger
_MADE = "backup made"


def back_up(state_dir: Path, target: Path, now: datetime) -> str:
    """Write a backup, mode 0600, and tell the audit of it; return its SHA-256 in hexadecimal.

    Raises:
        StartError: the target exists, or there is no state directory.
        LedgerUnavailable: the ledger cannot be read or its audit written.
        OSError: the target cannot be written.
    """
    if target.exists():
        raise StartError(f"{target} exists already. Nothing was changed.")
    if not target.parent.is_dir():
        raise StartError(f"there is no directory {target.parent}. Make it, or give another target.")
    # Nobody changes the CA meanwhile, so that ledger and CA are of one time.
    partial = target.with_name(f".{target.name}.partial")
    with ca_store.locked(state_dir), _emptied(partial) as temporary:
        files = _files(state_dir)
        with writing(state_dir) as connection:
            fields = {"files_sha256": _digest_of_all(files)}
            audit.append(connection, [Event(_MADE, int(now.timestamp() * 1000), fields)])
        copy = temporary / FILE_NAME
        _copy_ledger(state_dir / FILE_NAME, copy)
        tar = temporary / "backup.tar"
        with open(os.open(tar, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                archive.add(copy, FILE_NAME)
                for name, content in files.items():
                    entry = tarfile.TarInfo(name)
                    entry.mode, entry.size, entry.mtime = 0o600, len(content), int(now.timestamp())
                    archive.addfile(entry, io.BytesIO(content))
            file.flush()
            os.fsync(file.fileno())
        digest = _digest(tar)
        _put(tar, target)
    sync_directory(target.parent)
    return digest


def restore(source: Path, state_dir: Path, now: datetime) -> None:
    """Make a state directory from a backup, all of it; its audit is verified first, and tells of it.

    Raises:
        StartError: the state directory is not empty, or the backup is not whole and sound.
        OSError: something cannot be read or written.
    """
    make_state_dir(state_dir.parent)
    if state_dir.exists() and any(state_dir.iterdir()):
        raise StartError(f"{state_dir} is not empty. Nothing was changed. Restore into an empty directory.")
    staging = Path(tempfile.mkdtemp(dir=state_dir.parent, prefix=f".{state_dir.name}-"))
    try:
        files_sha256 = _extract(source, staging)
        with reading(staging) as connection:
            verify(connection)
            if files_sha256 != _told_of_files(connection):
                raise tarfile.TarError("its files are not those of which its audit tells")
        fields = {"backup_sha256": _digest(source)}
        with writing(staging) as connection:
            audit.append(connection, [Event("restored", int(now.timestamp() * 1000), fields)])
        for directory in [staging, *(each for each in staging.rglob("*") if each.is_dir())]:
            sync_directory(directory)
        os.rename(staging, state_dir)
    except (tarfile.TarError, AuditBroken) as error:
        raise StartError(f"{source} is not a sound backup: {error}") from error
    finally:
        if staging.exists():
            shutil.rmtree(staging)
    sync_directory(state_dir.parent)


@contextmanager
def _emptied(directory: Path) -> Iterator[Path]:
    """Give an empty directory for this user alone, which is gone afterwards.

    Its name is always the same, so that what a killed backup left there, keys among it, is gone with the next one.
    """
    if directory.is_symlink() or directory.is_file():
        raise StartError(f"{directory} is in the way. Remove it.")
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _copy_ledger(ledger: Path, copy: Path) -> None:
    source = sqlite3.connect(ledger)
    try:
        source.execute("VACUUM INTO ?", (str(copy),))
    except sqlite3.Error as error:
        raise StartError(f"the ledger cannot be copied to {copy.parent.parent}: {error}. Is there room?") from error
    finally:
        source.close()


def _files(state_dir: Path) -> dict[str, bytes]:
    """Return what there is beside the ledger, by name. It is small."""
    names = {path.relative_to(state_dir).as_posix(): path for path in sorted(state_dir.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if name != FILE_NAME and _MEMBER.fullmatch(name)}


def _put(source: Path, target: Path) -> None:
    """Put a file where nothing is, and never in the place of what somebody else has just put there."""
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise StartError(f"{target} exists already. Nothing was changed.") from error
    except OSError:  # a file system without links, such as many a USB stick's
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.replace(source, target)


def _extract(source: Path, target: Path) -> str:
    """Write out what an archive holds; return the digest over all of it but the ledger."""
    files: dict[str, bytes] = {}
    with tarfile.open(source, mode="r:") as tar:
        for member in tar:
            name = member.name
            path = target / name
            # A sparse file may be any number of times as large as the archive.
            if not member.isfile() or member.issparse() or not _MEMBER.fullmatch(name) or path.exists():
                raise tarfile.TarError(f"it holds {name[:80]!r}, which no backup has")
            content = tar.extractfile(member)
            assert content is not None  # it is a file
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                if name == FILE_NAME:
                    shutil.copyfileobj(content, file)
                elif member.size > _MOST_OCTETS:
                    raise tarfile.TarError(f"{name} has {member.size} octets, accepted up to {_MOST_OCTETS}")
                else:
                    files[name] = content.read()
                    file.write(files[name])
                file.flush()
                os.fsync(file.fileno())
    if not (target / FILE_NAME).exists():
        raise tarfile.TarError("it holds no ledger")
    return _digest_of_all(files)


def _told_of_files(connection: Connection) -> str | None:
    """Return the digest over the files that the audit tells of, where the ledger was made for a backup."""
    fields = connection.execute(
        select(audit_rows.c.fields).where(audit_rows.c.event == _MADE).order_by(audit_rows.c.id.desc()).limit(1)
    ).scalar()
    return None if fields is None else json.loads(fields).get("files_sha256")


def _digest_of_all(files: Mapping[str, bytes]) -> str:
    lines = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return sha256("".join(lines).encode()).hexdigest()


def _digest(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
