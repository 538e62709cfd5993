"""Backups: everything in the state directory that cannot be made again, in one tar file, while the agent serves."""

import io
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from runtime.errors import StartError
from runtime.files import sync_directory
from runtime.state_dir import make as make_state_dir
from vmi_agent import audit, ca_store
from vmi_agent.audit import Event
from vmi_agent.audit_check import verify
from vmi_agent.audited_ledger import AuditBroken
from vmi_agent.ledger_schema import FILE_NAME, reading, writing

# All that a backup may hold: nothing else is read from one.
_MEMBER = re.compile(r"ledger\.sqlite|channel(-of-proxy)?\.pem|ca/([1-9][0-9]{0,17}|requested)/[a-z-]+\.(pem|uri)")


def back_up(state_dir: Path, target: Path, now: datetime) -> str:
    """Write a backup, mode 0600, and tell the audit of it; return its SHA-256 in hexadecimal.

    Raises:
        StartError: the target exists.
        LedgerUnavailable: the ledger cannot be read or its audit written.
        OSError: the target cannot be written.
    """
    if target.exists():
        raise StartError(f"{target} exists already. Nothing was changed.")
    # Nobody changes the CA meanwhile, so that ledger and CA are of one time.
    with ca_store.locked(state_dir), tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as temporary:
        with writing(state_dir) as connection:
            audit.append(connection, [Event("backup made", int(now.timestamp() * 1000), {})])
        copy = Path(temporary) / FILE_NAME
        source = sqlite3.connect(state_dir / FILE_NAME)
        try:
            source.execute("VACUUM INTO ?", (str(copy),))
        finally:
            source.close()
        tar = Path(temporary) / "backup.tar"
        with open(os.open(tar, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                _write(archive, state_dir, copy)
            file.flush()
            os.fsync(file.fileno())
        digest = _digest(tar)
        os.link(tar, target)  # unlike a rename, this never replaces what somebody else has just put there
    sync_directory(target.parent)
    return digest


def restore(source: Path, state_dir: Path, now: datetime) -> None:
    """Make a state directory from a backup, whose audit is verified first; the audit tells of it.

    Raises:
        StartError: the state directory is not empty, or the backup is not sound.
        OSError: something cannot be read or written.
    """
    make_state_dir(state_dir.parent)
    if state_dir.exists() and any(state_dir.iterdir()):
        raise StartError(f"{state_dir} is not empty. Nothing was changed. Restore into an empty directory.")
    staging = Path(tempfile.mkdtemp(dir=state_dir.parent, prefix=f".{state_dir.name}-"))
    try:
        _extract(source, staging)
        with reading(staging) as connection:
            verify(connection)
        fields = {"backup_sha256": _digest(source)}
        with writing(staging) as connection:
            audit.append(connection, [Event("restored", int(now.timestamp() * 1000), fields)])
        os.rename(staging, state_dir)
    except (tarfile.TarError, AuditBroken) as error:
        raise StartError(f"{source} is not a sound backup: {error}") from error
    finally:
        if staging.exists():
            shutil.rmtree(staging)
    sync_directory(state_dir.parent)


def _write(tar: tarfile.TarFile, state_dir: Path, ledger: Path) -> None:
    tar.add(ledger, FILE_NAME)
    for path in sorted(state_dir.rglob("*")):
        name = path.relative_to(state_dir).as_posix()
        if path.is_file() and name != FILE_NAME and _MEMBER.fullmatch(name):
            content = path.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size, entry.mtime = 0o600, len(content), int(path.stat().st_mtime)
            tar.addfile(entry, io.BytesIO(content))


def _extract(source: Path, target: Path) -> None:
    with tarfile.open(source, mode="r:") as tar:
        names = set()
        for member in tar:
            if not member.isfile() or not _MEMBER.fullmatch(member.name) or member.name in names:
                raise tarfile.TarError(f"it holds {member.name[:80]!r}, which no backup has")
            names.add(member.name)
            path = target / member.name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None  # it is a file
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                shutil.copyfileobj(content, file)
                file.flush()
                os.fsync(file.fileno())
        if FILE_NAME not in names:
            raise tarfile.TarError("it holds no ledger")


def _digest(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
