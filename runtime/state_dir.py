"""The state directory of a process: private to its user, and used by one process at a time or by those that share it.

Whoever uses it holds a lock on `STATE/lock`: of its own, or one that those have together who share the directory. What
is to be done once at a start is done by one of these at a time: each holds a lock on `STATE/start.lock` meanwhile.
"""

import os
import stat
from pathlib import Path

from runtime.errors import StartError
from runtime.file_lock import lock_within, open_lock, try_lock

# Longer than the making of a CA takes on a slow machine.
START_WAIT_S = 30.0


class StateDirLock:
    """Holds the state directory for this process until `release`, or until the process ends however it ends.

    Attributes:
        is_alone: nobody else held it when this process took it; what an earlier process left there is nobody's.
    """

    def __init__(self, descriptor: int, *, is_alone: bool = True, starting: int | None = None) -> None:
        self._descriptor = descriptor
        self._starting = starting
        self.is_alone = is_alone

    def started(self) -> None:
        """What is done once at a start is done: let the next process start that shares the directory."""
        if self._starting is not None:
            os.close(self._starting)
            self._starting = None

    def release(self) -> None:
        """Let another process use the directory."""
        self.started()
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


def claim(path: Path, *, shared: bool = False) -> StateDirLock:
    """Make the directory where it is missing (0700) and lock it.

    Args:
        shared: together with other processes that share it. Blocks while another one of them starts, and the next one
            waits for `StateDirLock.started`.

    Raises:
        StartError: it cannot be made, other users may write to it, or another process uses it that does not share it,
            or may not be shared with.
    """
    make(path)
    try:
        return _share(path) if shared else _claim(path)
    except OSError as error:
        raise StartError(f"state directory {path}: {error.strerror}") from error


def _claim(path: Path) -> StateDirLock:
    descriptor = open_lock(path / "lock")
    if try_lock(descriptor):
        return StateDirLock(descriptor)
    is_shared = try_lock(descriptor, shared=True)
    os.close(descriptor)
    if is_shared:
        raise StartError(
            f"state directory {path} is in use by processes that share it. Stop them first, or start this one with"
            " --shared as well."
        )
    raise StartError(f"state directory {path} is in use by another process. Stop it first.")


def _share(path: Path) -> StateDirLock:
    starting = open_lock(path / "start.lock")
    if not lock_within(starting, START_WAIT_S):
        os.close(starting)
        raise StartError(
            f"state directory {path}: another process has been starting for {START_WAIT_S:.0f} s. Look whether it was"
            " stopped."
        )
    descriptor = open_lock(path / "lock")
    # Nobody else who shares gets in between the two: only one at a time is here.
    is_alone = try_lock(descriptor)
    if not try_lock(descriptor, shared=True):
        os.close(descriptor)
        os.close(starting)
        raise StartError(
            f"state directory {path} is in use by a process that does not share it. Stop it first, or start it with"
            " --shared as well."
        )
    return StateDirLock(descriptor, is_alone=is_alone, starting=starting)
