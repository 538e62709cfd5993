"""Turns of the processes that write to one ledger: agents that share it, and commands beside them.

SQLite lets one write at a time, and who finds it taken sleeps for ever longer times and tries again: whoever has it and
wants it again at once has it nearly always. So each takes a turn first. It queues at `STATE/ledger.next`, where only
one waits for `STATE/ledger.turn`: who has just had its turn finds that one before it. What keeps the ledger sound is
SQLite's own lock; the turns only make who shares it share it evenly.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.flocks import lock_within, open_lock, unlock
from vmi_agent.errors import LedgerUnavailable


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
    def take(self, wait_s: float) -> Iterator[None]:
        """Have the turn inside the `with`. Blocks.

        Raises:
            LedgerUnavailable: it did not come in that time, such as where a process that has it was stopped.
        """
        give_up_at = time.monotonic() + wait_s
        self._wait_for(self._next, give_up_at, wait_s)
        try:
            self._wait_for(self._turn, give_up_at, wait_s)
        finally:
            unlock(self._next)
        try:
            yield
        finally:
            unlock(self._turn)

    def close(self) -> None:
        """Leave."""
        os.close(self._next)
        os.close(self._turn)

    def _wait_for(self, lock: int, give_up_at: float, wait_s: float) -> None:
        if not lock_within(lock, give_up_at - time.monotonic()):
            raise LedgerUnavailable(
                f"another process has been writing to the ledger for {wait_s:.0f} s. Look whether it was stopped."
            )
