"""The ledger's one writer, and why a certificate can be trusted to be in it.

One thread writes. It takes whatever has piled up since its last commit into one transaction, so requests that arrive
together share one sync of the disk; each caller waits until its own row is safe.
"""

import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger_rows import (
    FILE_NAME,
    Intent,
    Outcome,
    Signature,
    open_ledger,
    prepare,
    reason,
    record_intents,
    record_signatures,
)

# The most requests that one commit carries: bounds how long the first of them waits, and one statement's parameters.
MAX_BATCH = 256

_Job = tuple[Intent, Future[Outcome]] | tuple[Signature, Future[None]]


class Ledger:
    """The agent's ledger, open for writing.

    Args:
        state_dir: where `ledger.sqlite` is, or will be.

    Attributes:
        abandoned_at_start: how many intents an earlier process left without a signature.

    Raises:
        LedgerUnavailable: it cannot be opened, or is of another version.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        self._engine = open_ledger(self._path, for_writing=True)
        try:
            with self._engine.begin() as connection:
                self.abandoned_at_start = prepare(connection)
        except (SQLAlchemyError, LedgerUnavailable) as error:
            self._engine.dispose()
            raise LedgerUnavailable(f"ledger {self._path}: {reason(error)}") from error
        self._file = os.stat(self._path)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="ledger")
        self._writer.start()

    def record_intent(self, intent: Intent) -> Outcome:
        """Record, before the key is used, what is about to be signed; wait until it is on disk.

        Raises:
            LedgerUnavailable: nothing was recorded.
        """
        future: Future[Outcome] = Future()
        self._jobs.put((intent, future))
        return future.result()

    def record_signature(self, signature: Signature) -> None:
        """Record, before the answer, the signature over a recorded intent; wait until it is on disk.

        Raises:
            LedgerUnavailable: it may not be answered.
        """
        future: Future[None] = Future()
        self._jobs.put((signature, future))
        future.result()

    def close(self) -> None:
        """Write what is queued, then stop. Nothing may be recorded afterwards."""
        self._jobs.put(None)
        self._writer.join()
        self._engine.dispose()

    # The writer's thread

    def _write(self) -> None:
        open_for_more = True
        while open_for_more:
            jobs, open_for_more = self._take_jobs()
            if jobs:
                self._commit(jobs)

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

    def _commit(self, jobs: Sequence[_Job]) -> None:
        signatures = [job[0] for job in jobs if isinstance(job[0], Signature)]
        intents = [job[0] for job in jobs if isinstance(job[0], Intent)]
        try:
            self._check_file()
            with self._engine.begin() as connection:
                record_signatures(connection, signatures)
                outcomes = iter(record_intents(connection, intents))
        except Exception as error:  # noqa: BLE001  # whatever it was, each waiting caller must hear of it
            for _, future in jobs:
                future.set_exception(LedgerUnavailable(reason(error)))
            return
        for work, future in jobs:
            future.set_result(next(outcomes) if isinstance(work, Intent) else None)  # type: ignore[arg-type]  # as paired in _Job

    def _check_file(self) -> None:
        """Make sure that what is written can be found again: an open file takes rows even when it was moved away."""
        if not os.path.samestat(os.stat(self._path), self._file):
            raise LedgerUnavailable(f"ledger {self._path} was replaced. Restart the agent on the right one.")
