"""Files that are there whole or not at all, and secrets that nobody else can read."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


class FileRefused(Exception):
    """A file of ours may not be used as it is; the text says what to change."""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside the old one, make it durable and put it in its place, mode 0600.

    Whenever the machine stops, the path holds the old content or the new one.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):  # on a medium that has become read-only it stays
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what calls of `replace_file` for this path left beside it where they were killed.

    Nobody may be replacing the file at this time. What cannot be removed stays: nothing ever reads it.
    """
    with suppress(OSError):
        for each in path.parent.glob(f".{path.name}-????????"):
            each.unlink()


def read_secret(path: Path) -> bytes:
    """Return the content of a file that only this user may read.

    Raises:
        FileRefused: others may read it, or it is another user's.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        # Of the open file, not of the path: what was checked is what is read.
        state = os.fstat(file.fileno())
        if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = stat.S_IMODE(state.st_mode)
            raise FileRefused(f"{path} is open to other users (mode {mode:04o}). Run: chmod 600 {path}")
        if state.st_uid != os.geteuid():
            raise FileRefused(f"{path} belongs to uid {state.st_uid}, this process runs as {os.geteuid()}.")
        return file.read()


def sync_directory(path: Path) -> None:
    """Make what was renamed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
