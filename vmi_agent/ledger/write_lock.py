"""Turns of the processes that write to one ledger: agents that share it, and commands beside them.

SQLite lets one write at a time, and who finds it taken sleeps for ever longer times and tries again: whoever has it and
wants it again at once has it nearly always. So each takes a turn first. It queues at `STATE/ledger.next`, where only
one waits for `STATE/ledger.turn`: who has just had its turn finds that one before it.

What keeps the ledger sound is SQLite's own lock; the turns only share it out evenly. So who waits too long for one,
such as where a process that has it was stopped, goes on without.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.file_lock import lock_within, open_lock, unlock

# Many times what a transaction takes.
WAIT_S = 1.0


class Turns:
    """One process's place among those that write; one thread at a time.

    Raises:
        OSError: the files cannot be made.
    """

    def __init__(self, state_dir: Path) -> None:
        self._next = open_lock(state_dir / "ledger.next")
        try:
            self._turn = open_lock(state_dir / "ledger.turn")
        except OSError:
            os.close(self._next)
            raise

    @contextmanager
    def take(self) -> Iterator[None]:
        """Have the turn inside the `with`, or go on without after `WAIT_S`. Blocks."""
        give_up_at = time.monotonic() + WAIT_S
        has_turn = False
        if lock_within(self._next, WAIT_S):
            try:
                has_turn = lock_within(self._turn, give_up_at - time.monotonic())
            finally:
                unlock(self._next)
        try:
            yield
        finally:
            if has_turn:
                unlock(self._turn)

    def close(self) -> None:
        """Leave."""
        os.close(self._next)
        os.close(self._turn)
