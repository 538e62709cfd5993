"""The ledger, open for writing, and why a certificate can be trusted to be in it.

Whoever writes does so in its own thread, one at a time, and goes on once what it wrote is on the disk. What is recorded
together shares one sync; the audit's rows are written in the same transactions. Other processes may write as well, in
turns.
"""

import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from runtime.clock import milliseconds
from runtime.files import sync_directory
from vmi_agent.errors import CheckpointFailed, ClosedOff, LedgerUnavailable
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.audit.events import events_of, signed
from vmi_agent.ledger.checkpoints import Checkpoints, TrustLost, settle
from vmi_agent.ledger.free_keys import FreeKeys
from vmi_agent.ledger.issuances import (
    Intent,
    Kept,
    KeyBlocked,
    KeyQuestion,
    Outcome,
    Signature,
    record_intents,
    record_signatures,
)
from vmi_agent.ledger.recovery import take_over
from vmi_agent.ledger.retention import events_of as closing_events
from vmi_agent.ledger.schema import FILE_NAME, open_ledger, reason
from vmi_agent.ledger.sql import driver_of
from vmi_agent.ledger.write_lock import Turns

Work = Intent | Signature | Event | KeyQuestion

# What a signature led to; None where its intent was closed off.
_Kept = Kept | KeyBlocked | None

_Result = TypeVar("_Result")
_Transaction = TypeVar("_Transaction")


class Ledger:
    """The agent's ledger, open for writing. Safe for use by threads.

    Args:
        state_dir: where `ledger.sqlite` is, or will be.
        now: aware UTC time of the opening, for the audit.
        tell: hears once, in the writing thread, that it cannot be written and why, and of None once it can again.
        alone: no other agent has it open: what is pending was left by processes that are gone, and is closed off.

    Attributes:
        is_new: nothing was in it.
        abandoned_at_start: how many intents earlier processes left without a signature.
        trusted_ms: what time it was at least when this process opened it, in milliseconds since 1970-01-01 UTC
            (`vmi_agent.ledger.audit.trusted_time`).

    Raises:
        LedgerUnavailable: it cannot be opened, is of another version, or its audit was written later than now.
    """

    def __init__(
        self,
        state_dir: Path,
        now: datetime,
        tell: Callable[[LedgerUnavailable | None], None] = lambda _: None,
        *,
        alone: bool = True,
    ) -> None:
        self._tell = tell
        self._told = ""
        self._path = state_dir / FILE_NAME
        try:
            _make_file(self._path)
            self.is_new = self._path.stat().st_size == 0
            self._turns = Turns(state_dir)
        except OSError as error:
            raise LedgerUnavailable(f"ledger {self._path}: {error.strerror}") from error
        self._engine = open_ledger(self._path, for_writing=True)
        try:
            with self._turns.take():
                if alone:
                    settle(self._engine, self._path)
                with self._engine.begin() as connection:
                    self.abandoned_at_start, times = take_over(connection, now, alone=alone)
            # A clock that is behind is accepted up to ten seconds where others share the ledger.
            self.trusted_ms = min(times.trusted_ms or milliseconds(now), milliseconds(now))
            # SQLite does the same for its log of writes, but does not mind where it fails.
            sync_directory(state_dir)
            # For what every certificate needs; what else there is gets others of SQLAlchemy's connections.
            self._held = self._engine.raw_connection()
        except (SQLAlchemyError, sqlite3.Error, OSError, UnicodeDecodeError, LedgerUnavailable) as error:
            self._engine.dispose()
            self._turns.close()
            raise LedgerUnavailable(f"ledger {self._path}: {reason(error)}") from error
        self._connection = driver_of(self._held)
        self._checkpoints = Checkpoints(self._connection)
        self._free_keys = FreeKeys()
        self._is_log_growing = False
        self._reader = open_ledger(self._path, for_writing=False)
        self._file = os.stat(self._path)
        self._writing = threading.Lock()

    def record_intent(self, intent: Intent) -> Outcome:
        """Record, before the key is used, what is about to be signed; wait until it is on disk.

        Raises:
            LedgerUnavailable: nothing was recorded.
        """
        outcome: Outcome = self.record(intent)
        return outcome

    def record_signature(self, signature: Signature) -> Kept | KeyBlocked:
        """Record, before the answer, the signature over a recorded intent; wait until it is on disk.

        Returns:
            The one that the certificate has, which is another one where somebody else had signed the same before; or
            that its key was blocked meanwhile, and the signature is worth nothing.

        Raises:
            ClosedOff: the intent was closed off meanwhile; the signature is worth nothing.
            LedgerUnavailable: it may not be answered.
        """
        kept: Kept | KeyBlocked = self.record(signature)
        return kept

    def note(self, event: Event) -> None:
        """Add a row to the audit; wait until it is on disk.

        Raises:
            LedgerUnavailable: it is not there.
        """
        self.record(event)

    def record(self, work: Work) -> Any:
        """Do what `record_intent`, `record_signature` or `note` does, whichever is for this kind of work.

        A `KeyQuestion` leads to whether the key is blocked.
        """
        (outcome,) = self.record_all([work])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def record_all(self, works: Sequence[Work]) -> list[Any]:
        """Record several at once, in one transaction; wait until all of them are on disk, or none is.

        Args:
            works: not more than a few hundred.

        Returns:
            What each led to, or the error that `record_intent` and its like raise for it.
        """
        signatures = [work for work in works if isinstance(work, Signature)]
        intents = [work for work in works if isinstance(work, Intent)]
        events = [work for work in works if isinstance(work, Event)]
        keys = [work.public_key_info for work in works if not isinstance(work, Event)]

        def change(connection: sqlite3.Connection) -> tuple[list[_Kept], list[Outcome], frozenset[bytes]]:
            # In the transaction that records, so that a block that was committed first always counts.
            blocked = self._free_keys.blocked_among(connection, keys)
            kept = record_signatures(connection, signatures, blocked)
            outcomes = record_intents(connection, intents, blocked)
            told = (event for pair in zip(signatures, kept, strict=True) for event in _events_of_signature(*pair))
            signing = (event for pair in zip(intents, outcomes, strict=True) for event in events_of(*pair))
            audit_chain.append(connection, [*told, *signing, *events])
            return kept, outcomes, blocked

        try:
            all_kept, all_outcomes, blocked = self._transact(lambda: _transaction(self._connection), change)
        except LedgerUnavailable as error:
            # One each: an exception that is raised in several places collects all their tracebacks.
            return [LedgerUnavailable(str(error)) for _ in works]
        kept, outcomes = iter(all_kept), iter(all_outcomes)
        return [_outcome(work, kept, outcomes, blocked) for work in works]

    def change(self, change: Callable[[Connection], _Result]) -> _Result:
        """Run something in a transaction of its own; wait until what it wrote is on disk.

        Raises:
            LedgerUnavailable: nothing was written.
        """
        return self._transact(self._engine.begin, change)

    def read(self, look: Callable[[Connection], _Result]) -> _Result:
        """Look something up, in the thread of the caller.

        Raises:
            LedgerUnavailable: it cannot be read.
        """
        try:
            with self._reader.begin() as connection:
                return look(connection)
        except (SQLAlchemyError, UnicodeDecodeError) as error:
            raise LedgerUnavailable(f"ledger {self._path}: {reason(error)}") from error

    def close(self) -> None:
        """Let go of it, after what is being written. Nothing may be recorded afterwards."""
        with self._writing:
            self._held.close()
            self._reader.dispose()
            self._engine.dispose()
            self._turns.close()

    def _transact(
        self,
        begin: Callable[[], AbstractContextManager[_Transaction]],
        change: Callable[[_Transaction], _Result],
    ) -> _Result:
        with self._writing:
            try:
                self._check_file()
                with self._turns.take(), begin() as transaction:
                    result = change(transaction)
            except Exception as error:  # whatever it was, the certificates of which it was a part must not be answered
                unavailable = LedgerUnavailable(reason(error))
                if self._told != str(unavailable):
                    self._told = str(unavailable)
                    unavailable.__cause__ = error
                    self._tell(unavailable)
                raise unavailable from error
            if self._told:
                self._told = ""
                self._tell(None)
            self._checkpoint_where_due()
            return result

    def _checkpoint_where_due(self) -> None:
        try:
            self._checkpoints.transaction_over()
        except TrustLost as error:
            text = "part of it may not be on the disk. This process ends at once, and the next one finds it whole."
            self._tell_of_checkpoint(f"{error}; {text}", error.__cause__)
            os.kill(os.getpid(), signal.SIGKILL)  # closing the ledger would make the loss final
        except Exception as error:  # noqa: BLE001  # what was promised holds all the same: it is in the log
            if not self._is_log_growing:
                self._tell_of_checkpoint(f"{error}; its log of writes grows until that works again", error)
            self._is_log_growing = True
        else:
            self._is_log_growing = False

    def _tell_of_checkpoint(self, text: str, cause: BaseException | None) -> None:
        failed = CheckpointFailed(text)
        failed.__cause__ = cause
        self._tell(failed)

    def _check_file(self) -> None:
        """Make sure that what is written can be found again: an open file takes rows even when it was moved away."""
        if not os.path.samestat(os.stat(self._path), self._file):
            raise LedgerUnavailable(f"ledger {self._path} was replaced. Restart the agent on the right one.")


def _make_file(path: Path) -> None:
    """Make the file where it is missing: this user's alone, whoever made it and however."""
    # One that is there is not opened: closing it would drop the locks that SQLite has on it in this process (POSIX).
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)  # what SQLite puts beside it gets the same mode


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Give a transaction that ends with the `with`: on the disk, or undone where that raises."""
    if connection.in_transaction:  # undoing the last one failed
        connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _events_of_signature(signature: Signature, kept: _Kept) -> list[Event]:
    if isinstance(kept, KeyBlocked):
        return closing_events(kept.closed_off, signature.issued_ms)
    return [signed(signature)] if kept is not None and kept.is_first else []


def _outcome(
    work: Work, kept: Iterator[_Kept], outcomes: Iterator[Outcome], blocked: frozenset[bytes]
) -> Outcome | Kept | ClosedOff | bool | None:
    """Return what a work led to, taken from those of its kind."""
    if isinstance(work, KeyQuestion):
        return work.public_key_info in blocked
    if isinstance(work, Intent):
        return next(outcomes)
    if isinstance(work, Event):
        return None
    return next(kept) or ClosedOff("what was signed was closed off, or revoked, before its signature came")
