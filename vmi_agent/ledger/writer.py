"""The ledger's one writer, and why a certificate can be trusted to be in it.

One thread writes. It takes whatever has piled up since its last commit into one transaction, so requests that arrive
together share one sync of the disk; each caller waits, or is told, until its own row is safe. The audit's rows are
written in the same transactions. Other processes may write as well, in turns.
"""

import os
import queue
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from runtime.files import sync_directory
from vmi_agent.errors import CheckpointFailed, ClosedOff, LedgerUnavailable
from vmi_agent.ledger import audit
from vmi_agent.ledger.audit import Event
from vmi_agent.ledger.checkpoints import Checkpoints, TrustLost, settle
from vmi_agent.ledger.ledger_events import events_of, signed
from vmi_agent.ledger.ledger_rows import Intent, Kept, Outcome, Signature, record_intents, record_signatures
from vmi_agent.ledger.ledger_schema import FILE_NAME, open_ledger, reason
from vmi_agent.ledger.ledger_takeover import take_over
from vmi_agent.ledger.turns import Turns

# The most requests that one commit carries: bounds how long the first of them waits, and one statement's parameters.
MAX_BATCH = 256

Work = Intent | Signature | Event
# Gets, in the writer's thread, one outcome for each work, in their order: what it led to, or what it failed with. It is
# quick and raises nothing.
Then = Callable[[Sequence[Any]], None]

_Result = TypeVar("_Result")
_Change = Callable[[Connection], Any]
_Job = tuple[Sequence[Work] | _Change, Then]


class Ledger:
    """The agent's ledger, open for writing.

    Args:
        state_dir: where `ledger.sqlite` is, or will be.
        now: aware UTC time of the opening, for the audit.
        tell: hears once, in the writer's thread, that it cannot be written and why, and of None once it can again.
        alone: no other agent has it open: what is pending was left by processes that are gone, and is closed off.

    Attributes:
        is_new: nothing was in it.
        abandoned_at_start: how many intents earlier processes left without a signature.

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
                    self.abandoned_at_start = take_over(connection, now, alone=alone)
            # SQLite does the same for its log of writes, but does not mind where it fails.
            sync_directory(state_dir)
        except (SQLAlchemyError, sqlite3.Error, OSError, UnicodeDecodeError, LedgerUnavailable) as error:
            self._engine.dispose()
            self._turns.close()
            raise LedgerUnavailable(f"ledger {self._path}: {reason(error)}") from error
        self._checkpoints = Checkpoints(self._engine)
        self._is_log_growing = False
        self._reader = open_ledger(self._path, for_writing=False)
        self._file = os.stat(self._path)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="ledger")
        self._writer.start()

    def record_intent(self, intent: Intent) -> Outcome:
        """Record, before the key is used, what is about to be signed; wait until it is on disk.

        Raises:
            LedgerUnavailable: nothing was recorded.
        """
        outcome: Outcome = self.record(intent)
        return outcome

    def record_signature(self, signature: Signature) -> Kept:
        """Record, before the answer, the signature over a recorded intent; wait until it is on disk.

        Returns:
            The one that the certificate has, which is another one where somebody else had signed the same before.

        Raises:
            ClosedOff: the intent was closed off meanwhile; the signature is worth nothing.
            LedgerUnavailable: it may not be answered.
        """
        kept: Kept = self.record(signature)
        return kept

    def note(self, event: Event) -> None:
        """Add a row to the audit; wait until it is on disk.

        Raises:
            LedgerUnavailable: it is not there.
        """
        self.record(event)

    def record(self, work: Work) -> Any:
        """Do what `record_intent`, `record_signature` or `note` does, whichever is for this kind of work."""
        return self._wait_for([work])

    def record_later(self, works: Sequence[Work], then: Then) -> None:
        """Record several at once, without waiting: one transaction has them all, and it may have others as well.

        Args:
            then: told what each led to, or the error that `record_intent` and its like raise for it, once all of them
                are on disk or none is; in the writer's thread, which must not be kept long.
        """
        self._jobs.put((works, then))

    def note_later(self, event: Event, not_noted: Callable[[BaseException], None]) -> None:
        """Add a row to the audit without waiting for it.

        Args:
            not_noted: told, in the writer's thread, where it could not be written.
        """

        def written(outcomes: Sequence[Any]) -> None:
            if outcomes[0] is not None:
                not_noted(outcomes[0])

        self.record_later([event], written)

    def change(self, change: Callable[[Connection], _Result]) -> _Result:
        """Run something in a transaction of its own; wait until what it wrote is on disk.

        Raises:
            LedgerUnavailable: nothing was written.
        """
        result: _Result = self._wait_for(change)
        return result

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
        """Write what is queued, then stop. Nothing may be recorded afterwards."""
        self._jobs.put(None)
        self._writer.join()
        self._reader.dispose()
        self._engine.dispose()
        self._turns.close()

    def _wait_for(self, works: Sequence[Work] | _Change) -> Any:
        future: Future[Any] = Future()

        def written(outcomes: Sequence[Any]) -> None:
            if isinstance(outcomes[0], BaseException):
                future.set_exception(outcomes[0])
            else:
                future.set_result(outcomes[0])

        self._jobs.put((works, written))
        return future.result()

    # The writer's thread

    def _write(self) -> None:
        open_for_more = True
        while open_for_more:
            jobs, open_for_more = self._take_jobs()
            joined = [(works, then) for works, then in jobs if not callable(works)]
            if joined and not self._commit(joined):
                open_for_more = self._fail_queued() and open_for_more
            for works, then in jobs:
                if callable(works):
                    self._commit_alone(works, then)

    def _take_jobs(self) -> tuple[list[_Job], bool]:
        """Wait for a job, then take all that are there; the flag is False once `close` was called."""
        jobs: list[_Job] = []
        count = 0
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            count += 1 if callable(job[0]) else len(job[0])
            if count >= MAX_BATCH:
                return jobs, True
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _fail_queued(self) -> bool:
        """Fail what has piled up behind a write that failed: each would wait as long for the same; False at the end."""
        failed: list[_Job] = []
        open_for_more = True
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is None:
                    open_for_more = False
                    break
                failed.append(job)
        _fail(failed, LedgerUnavailable(self._told))
        return open_for_more

    def _commit(self, jobs: Sequence[tuple[Sequence[Work], Then]]) -> bool:
        works = [work for job in jobs for work in job[0]]
        signatures = [work for work in works if isinstance(work, Signature)]
        intents = [work for work in works if isinstance(work, Intent)]
        events = [work for work in works if isinstance(work, Event)]

        def change(connection: Connection) -> tuple[list[Kept | None], list[Outcome]]:
            kept = record_signatures(connection, signatures)
            first = [each for each, it in zip(signatures, kept, strict=True) if it is not None and it.is_first]
            outcomes = record_intents(connection, intents)
            told = (event for pair in zip(intents, outcomes, strict=True) for event in events_of(*pair))
            audit.append(connection, [*map(signed, first), *told, *events])
            return kept, outcomes

        try:
            all_kept, all_outcomes = self._transact(change)
        except LedgerUnavailable as error:
            _fail(jobs, error)
            return False
        kept, outcomes = iter(all_kept), iter(all_outcomes)
        for of_job, then in jobs:
            then([_outcome(work, kept, outcomes) for work in of_job])
        return True

    def _commit_alone(self, change: _Change, then: Then) -> None:
        try:
            result = self._transact(change)
        except LedgerUnavailable as error:
            _fail([(change, then)], error)
        else:
            then([result])

    def _transact(self, change: Callable[[Connection], _Result]) -> _Result:
        try:
            self._check_file()
            with self._turns.take(), self._engine.begin() as connection:
                result = change(connection)
        except Exception as error:  # whatever it was, each waiting caller must hear of it
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
            self._tell(CheckpointFailed(f"{error}; {text}"))
            os.kill(os.getpid(), signal.SIGKILL)  # closing the ledger would make the loss final
        except sqlite3.Error as error:  # what was promised holds all the same: it is in the log
            if not self._is_log_growing:
                self._tell(CheckpointFailed(f"{error}; its log of writes grows until that works again"))
            self._is_log_growing = True
        else:
            self._is_log_growing = False

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


def _outcome(work: Work, kept: Iterator[Kept | None], outcomes: Iterator[Outcome]) -> Outcome | Kept | ClosedOff | None:
    """Return what a work led to, taken from those of its kind."""
    if isinstance(work, Intent):
        return next(outcomes)
    if isinstance(work, Event):
        return None
    return next(kept) or ClosedOff("what was signed was closed off, or revoked, before its signature came")


def _fail(jobs: Iterable[_Job], error: LedgerUnavailable) -> None:
    for works, then in jobs:
        # One each: an exception that several threads raise collects all their tracebacks.
        then([LedgerUnavailable(str(error)) for _ in range(1 if callable(works) else len(works))])
