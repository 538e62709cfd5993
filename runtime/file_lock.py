"""Locks between processes (flock(2)), waited for so long and no longer.

The kernel lets go of a process's locks when it ends, however it ends.
"""

import fcntl
import os
import time
from pathlib import Path

POLL_S = 0.0005


def open_lock(path: Path) -> int:
    """Open a lock's file, which is made where it is missing, for this user alone; return its descriptor.

    Raises:
        OSError: it cannot be opened.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take a lock, or change the kind of one that is held; return False where somebody else's is in the way."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(descriptor: int, wait_s: float) -> bool:
    """Take a lock for this process alone; return False where it could not be had in that time. Blocks."""
    # flock waits for ever or not at all, and a holder may be stopped for ever.
    give_up_at = time.monotonic() + wait_s
    while not try_lock(descriptor):
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(POLL_S)
    return True


def unlock(descriptor: int) -> None:
    """Let go of a lock that is held."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
