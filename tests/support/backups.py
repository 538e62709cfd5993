"""Backups for the tests: of a small CA, taken apart, put together as somebody else might, and restored as they are."""

import io
import tarfile
from datetime import datetime, timedelta
from pathlib import Path

from support.agents import create_ca
from support.ca_life_parts import issue, now, rotate
from vmi_agent.backup import restore as restoring
from vmi_agent.backup.backup import back_up
from vmi_agent.backup.later_revocations import Later
from vmi_agent.backup.restore import Check, Restored

UNVERIFIED = Check()
FORGETTING = Later(forget=True)


def make_backup(directory: Path) -> Path:
    """Return the backup of a small CA, two generations, one certificate."""
    state_dir = directory / "agent"
    create_ca(state_dir, "p256", now() - timedelta(hours=1))
    rotate(state_dir)
    issue(state_dir)
    target = directory / "backup.tar"
    back_up(state_dir, target, now())
    return target


def restore(source: Path, state_dir: Path, at: datetime, later: Later = FORGETTING) -> Restored:
    """Restore a backup as it is, without anything that shows whose it is."""
    return restoring.restore(source, state_dir, at, UNVERIFIED, later)


def members(archive: Path) -> dict[str, bytes]:
    """Return what a backup holds."""
    with tarfile.open(archive, "r:") as tar:
        return {each.name: file.read() for each in tar if (file := tar.extractfile(each)) is not None}


def write_tar(path: Path, contents: dict[str, bytes], *odd: tarfile.TarInfo) -> Path:
    """Write an archive as somebody else might."""
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in odd:
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", size: int = 0) -> tarfile.TarInfo:
    """Return an entry of an archive."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


def names(directory: Path) -> set[str]:
    """Return what there is in a directory."""
    return {each.name for each in directory.iterdir()}
