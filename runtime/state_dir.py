"""The state directory of a process: private to its user, and used by one process at a time."""

import fcntl
import os
import stat
from pathlib import Path

from runtime.errors import StartError


class StateDirLock:
    """Holds the state directory for this process until `release`, or until the process ends however it ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another process use the directory."""
        os.close(self._descriptor)


def make(path: Path) -> None:
    """Make the directory where it is missing (0700).

    Raises:
        StartError: it cannot be made, it is another user's, or others may write to it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = path.stat()
    except OSError as error:
        raise StartError(f"state directory {path}: {error.strerror}") from error
    if state.st_uid != os.geteuid():
        raise StartError(
            f"state directory {path} belongs to uid {state.st_uid}, this process runs as {os.geteuid()}."
            " Run it as the directory's owner."
        )
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartError(f"state directory {path} can be written by other users. Run: chmod 700 {path}")


def claim(path: Path) -> StateDirLock:
    """Make the directory where it is missing (0700) and lock it.

    Raises:
        StartError: it cannot be made, other users may write to it, or another process uses it.
    """
    make(path)
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"state directory {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StartError(f"state directory {path} is in use by another process. Stop it first.") from error
    return StateDirLock(descriptor)
