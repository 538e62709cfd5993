"""The ledger's one writer, and why a certificate can be trusted to be in it.

One thread writes. It takes whatever has piled up since its last commit into one transaction, so requests that arrive
together share one sync of the disk; each caller waits until its own row is safe. The audit's rows are written in the
same transactions.
"""

import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from runtime.files import sync_directory
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import audit
from vmi_agent.ledger.audit import Event
from vmi_agent.ledger.ledger_rows import (
    AlreadyIssued,
    Intent,
    Outcome,
    Recorded,
    Signature,
    abandon_pending,
    facts_of,
    record_intents,
    record_signatures,
)
from vmi_agent.ledger.ledger_schema import FILE_NAME, open_ledger, prepare, reason, settle
from vmi_agent.ledger.ledger_takeover import audit_of_before

# The most requests that one commit carries: bounds how long the first of them waits, and one statement's parameters.
MAX_BATCH = 256

_Result = TypeVar("_Result")
_Change = Callable[[Connection], Any]
_Job = tuple[Intent | Signature | Event | _Change, Future[Any]]


class Ledger:
    """The agent's ledger, open for writing.

    Args:
        state_dir: where `ledger.sqlite` is, or will be.
        now: aware UTC time of the opening, for the audit.
        tell: hears once, in the writer's thread, that it cannot be written and why, and of None once it can again.

    Attributes:
        is_new: nothing was in it.
        abandoned_at_start: how many intents an earlier process left without a signature.

    Raises:
        LedgerUnavailable: it cannot be opened, is of another version, or its audit was written later than now.
    """

    def __init__(
        self, state_dir: Path, now: datetime, tell: Callable[[LedgerUnavailable | None], None] = lambda _: None
    ) -> None:
        self._tell = tell
        self._told = ""
        self._path = state_dir / FILE_NAME
        try:
            # This user's alone, whoever made it and however; what SQLite puts beside it gets the same mode.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._path.chmod(0o600)
            self.is_new = self._path.stat().st_size == 0
        except OSError as error:
            raise LedgerUnavailable(f"ledger {self._path}: {error.strerror}") from error
        self._engine = open_ledger(self._path, for_writing=True)
        try:
            settle(self._engine)
            with self._engine.begin() as connection:
                self.abandoned_at_start = _take_over(connection, now)
            # SQLite does the same for its log of writes, but does not mind where it fails.
            sync_directory(state_dir)
        except (SQLAlchemyError, sqlite3.Error, OSError, UnicodeDecodeError, LedgerUnavailable) as error:
            self._engine.dispose()
            raise LedgerUnavailable(f"ledger {self._path}: {reason(error)}") from error
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
        outcome: Outcome = self._wait_for(intent)
        return outcome

    def record_signature(self, signature: Signature) -> None:
        """Record, before the answer, the signature over a recorded intent; wait until it is on disk.

        Raises:
            LedgerUnavailable: it may not be answered.
        """
        self._wait_for(signature)

    def note(self, event: Event) -> None:
        """Add a row to the audit; wait until it is on disk.

        Raises:
            LedgerUnavailable: it is not there.
        """
        self._wait_for(event)

    def note_later(self, event: Event, not_noted: Callable[[BaseException], None]) -> None:
        """Add a row to the audit without waiting for it.

        Args:
            not_noted: told, in the writer's thread, where it could not be written.
        """
        future: Future[None] = Future()

        def written(done: Future[None]) -> None:
            error = done.exception()
            if error is not None:
                not_noted(error)

        future.add_done_callback(written)
        self._jobs.put((event, future))

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

    def _wait_for(self, work: Intent | Signature | Event | _Change) -> Any:
        future: Future[Any] = Future()
        self._jobs.put((work, future))
        return future.result()

    # The writer's thread

    def _write(self) -> None:
        open_for_more = True
        while open_for_more:
            jobs, open_for_more = self._take_jobs()
            joined = [job for job in jobs if not callable(job[0])]
            if joined and not self._commit(joined):
                open_for_more = self._fail_queued() and open_for_more
            for work, future in jobs:
                if callable(work):
                    self._commit_alone(work, future)

    def _take_jobs(self) -> tuple[list[_Job], bool]:
        """Wait for a job, then take all that are there; the flag is False once `close` was called."""
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == MAX_BATCH:
                return jobs, True
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _fail_queued(self) -> bool:
        """Fail what has piled up behind a write that failed: each would wait as long for the same; False at the end."""
        failed: list[Future[Any]] = []
        open_for_more = True
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is None:
                    open_for_more = False
                    break
                failed.append(job[1])
        _fail(failed, LedgerUnavailable(self._told))
        return open_for_more

    def _commit(self, jobs: Sequence[_Job]) -> bool:
        signatures = [job[0] for job in jobs if isinstance(job[0], Signature)]
        intents = [job[0] for job in jobs if isinstance(job[0], Intent)]
        events = [job[0] for job in jobs if isinstance(job[0], Event)]

        def change(connection: Connection) -> list[Outcome]:
            record_signatures(connection, signatures)
            outcomes = record_intents(connection, intents)
            told = (_event_of(intent, outcome) for intent, outcome in zip(intents, outcomes, strict=True))
            audit.append(connection, [*map(_signed, signatures), *(each for each in told if each), *events])
            return outcomes

        try:
            outcomes = iter(self._transact(change))
        except LedgerUnavailable as error:
            _fail((future for _, future in jobs), error)
            return False
        for work, future in jobs:
            future.set_result(next(outcomes) if isinstance(work, Intent) else None)
        return True

    def _commit_alone(self, change: _Change, future: Future[Any]) -> None:
        try:
            result = self._transact(change)
        except LedgerUnavailable as error:
            _fail([future], error)
        else:
            future.set_result(result)

    def _transact(self, change: Callable[[Connection], _Result]) -> _Result:
        try:
            self._check_file()
            with self._engine.begin() as connection:
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
        return result

    def _check_file(self) -> None:
        """Make sure that what is written can be found again: an open file takes rows even when it was moved away."""
        if not os.path.samestat(os.stat(self._path), self._file):
            raise LedgerUnavailable(f"ledger {self._path} was replaced. Restart the agent on the right one.")


def _fail(futures: Iterable[Future[Any]], error: LedgerUnavailable) -> None:
    for future in futures:
        # One each: an exception that several threads raise collects all their tracebacks.
        future.set_exception(LedgerUnavailable(str(error)))


def _take_over(connection: Connection, now: datetime) -> int:
    now_ms = int(now.timestamp() * 1000)
    had_no_audit = prepare(connection)
    last_ms = audit.last_time_ms(connection)
    if now_ms < last_ms:
        was = datetime.fromtimestamp(last_ms / 1000, now.tzinfo).isoformat(timespec="seconds")
        raise LedgerUnavailable(
            f"the clock says {now.isoformat(timespec='seconds')}, and the audit was last written at {was}. Set the"
            " clock; where it was the old time that was wrong: vmi-agent audit accept-clock"
        )
    if had_no_audit:
        audit.append(connection, audit_of_before(connection, now_ms))
    abandoned = abandon_pending(connection)
    if abandoned:
        audit.append(connection, [Event("intents abandoned", now_ms, {"count": abandoned})])
    return abandoned


def _event_of(intent: Intent, outcome: Outcome) -> Event | None:
    """Return what the audit says of an intent's outcome; a conflict is told as the refusal that it leads to."""
    match outcome:
        case Recorded():
            return Event("signing", intent.recorded_ms, facts_of(intent))
        case AlreadyIssued(serial=serial):
            fields = {
                "serial": serial.hex(),
                "user": intent.user,
                "method": intent.method,
                "address": intent.address,
                "csr_sha256": intent.csr_sha256.hex(),
            }
            return Event("signed before", intent.recorded_ms, fields)
    return None


def _signed(signature: Signature) -> Event:
    fields = {
        "serial": signature.serial.hex(),
        "certificate_sha256": signature.certificate_sha256.hex(),
        "not_after": signature.not_after,
    }
    return Event("signed", signature.issued_ms, fields)
