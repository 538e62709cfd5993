"""Checkpoints: what the ledger's log of writes (WAL) holds is brought into its file, by whoever writes.

SQLite would do it by itself at the end of a commit, and say nothing where it fails. That is not harmless: after a
checkpoint that a reader kept from its end, pages may be in the system's cache only; where their sync fails, the system
takes them for written, the next checkpoint goes on behind them and begins a new log, and when the power fails the
ledger is damaged. So a sync that fails after such a checkpoint is the end of the process: whoever opens the ledger next
begins with the whole log. (Not where another agent shares the ledger: that one is to be started anew as well.) Closing
connections are left to SQLite; the last one has no checkpoint before it that a reader kept from its end.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine

from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger.sql import driver_of

# So many transactions write a log of a few MB.
EVERY = 200

_CHUNK = 1 << 20

_SYNC_FAILED = frozenset({sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC})


class TrustLost(Exception):
    """What is in the ledger's file may not be on the disk, and this process cannot find out."""


def settle(engine: Engine, path: Path) -> None:
    """Bring all that the log holds into the ledger's file, durably, and begin an empty log.

    Where a sync of the log failed, its end may be in the system's cache only, and a later sync does not make up for
    that: whoever opens the ledger after a crash finds those rows, and would add to what is not on the disk. So the log
    is written once more, over itself, before its pages go into the file.

    Args:
        path: of the ledger's file.

    Raises:
        LedgerUnavailable: another process has been reading for long.
        sqlite3.Error, OSError: the disk does not take it.
    """
    with closing(engine.raw_connection()) as held:
        connection = driver_of(held)
        connection.execute("BEGIN IMMEDIATE")  # nobody adds to the log, or begins another one
        try:
            _write_again(path.with_name(path.name + "-wal"))
        finally:
            connection.execute("ROLLBACK")
        is_busy, *_ = _checkpoint(connection, "TRUNCATE")
    if is_busy:
        raise LedgerUnavailable("another process uses it, and has for long. Wait for its end, or end it.")


def _write_again(path: Path) -> None:
    """Write a file over itself, so that all of it counts as not yet on the disk, and sync it."""
    with path.open("r+b", buffering=0) as file:  # SQLite has no locks on this one that closing it would drop
        offset = 0
        while chunk := os.pread(file.fileno(), _CHUNK, offset):
            offset += os.pwrite(file.fileno(), chunk, offset)
        os.fsync(file.fileno())


class Checkpoints:
    """Checkpoints: one after every `EVERY` transactions, as far as nobody reads what is older.

    Args:
        connection: used outside of transactions.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._transactions = 0
        self._is_partial = False

    def transaction_over(self) -> None:
        """Count a transaction, and do what is due. To be called outside of one.

        Raises:
            sqlite3.Error: the disk does not take it now; it is tried again.
            TrustLost: the process must end at once, without closing the ledger.
        """
        self._transactions += 1
        if self._transactions < EVERY:
            return
        self._transactions = 0
        try:
            _, in_log, done = _checkpoint(self._connection, "PASSIVE")
        except sqlite3.Error as error:
            if self._is_partial and getattr(error, "sqlite_errorcode", None) in _SYNC_FAILED:
                raise TrustLost(str(error)) from error
            raise
        self._is_partial = done < in_log


def _checkpoint(connection: sqlite3.Connection, how: str) -> tuple[int, int, int]:
    """Return whether it was kept from its end, and how many pages the log has and of how many the file has them."""
    is_busy, in_log, done = connection.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
    return is_busy, in_log, done
