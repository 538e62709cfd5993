"""What a running agent looks after: changes that others made beside it, CRLs that are due, anchors, pruning, intents.

Each round looks at a few numbers and does what is due. What fails is told once, until it works again, and tried again
with the next round.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from twisted.logger import Logger
from twisted.python.failure import Failure

from runtime.clock import milliseconds
from runtime.errors import ConfigError
from runtime.hints import command
from vmi_agent.ca.authority import Generations, validity_text
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.keys import CustodyError
from vmi_agent.ledger import retention
from vmi_agent.ledger.audit import anchors as audit_anchors
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.trusted_time import note_times, read_times
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.queries import PRUNE_BATCH, prune
from vmi_agent.revocation.ocsp import OcspResponder
from vmi_agent.revocation.publisher import Publishing

PRUNE_EVERY = timedelta(hours=1)
NOTE_CLOCK_EVERY_S = 6 * 3600.0
WARN_BEFORE_END = timedelta(days=90)
WARN_EVERY = timedelta(days=1)
TELL_AGAIN = timedelta(hours=1)
_VALIDITY = "warning of the CA's validity"

_log = Logger()


@dataclass(frozen=True, slots=True)
class AnchorTo:
    """Where the audit's head is written down.

    Attributes:
        file: None for no file.
        syslog: the path of a unix socket or HOST:PORT; None for none.
        period: how often.

    Raises:
        ConfigError: `syslog` is neither.
    """

    file: Path | None
    syslog: str | None
    period: timedelta

    def __post_init__(self) -> None:
        if self.syslog is not None and not audit_anchors.is_syslog_address(self.syslog):
            accepted = "the path of a unix socket, such as /dev/log, or HOST:PORT for UDP"
            raise ConfigError(f"--anchor-syslog {self.syslog!r} is refused. Accepted: {accepted}.")


class Upkeep:
    """One round after the other, in one worker thread.

    Args:
        generations, publishing, responder, ledger: what is looked after.
        anchor_to: where anchors go.
        keep_expired: how long certificates are kept after their end; None for ever.
        now: returns the aware UTC time.
        monotonic: returns the seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        generations: Generations,
        publishing: Publishing,
        responder: OcspResponder,
        ledger: Ledger,
        anchor_to: AnchorTo,
        keep_expired: timedelta | None,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generations = generations
        self._publishing = publishing
        self._responder = responder
        self._ledger = ledger
        self._anchor_to = anchor_to
        self._keep_expired = keep_expired
        self._now = now
        self._monotonic = monotonic
        self._opened_at = self._noted_at = monotonic()
        self._told: dict[str, str] = {}
        self._due: dict[str, datetime] = {}

    def round(self) -> tuple[int, int]:
        """Do what is due. Blocks.

        Returns:
            The root generation and the number of the newest CRL, as proxies are told them.
        """
        self._try("CRL not made", self._refresh_lists)  # first: it takes in what was revoked
        self._try("new generation of the CA not usable", self._look_for_newer)
        if self._publishing.crl(self._generations.current.generation) is None:  # it is new: its leaves name a CRL
            self._try("CRL not made", self._refresh_lists)
        self._try("audit not anchored", self._anchor)
        self._try("time not noted", self._note_clock)
        self._try("expired certificates not pruned", self._prune)
        self._try("intents not closed off", self._close_off)
        self._warn_of_validity()
        return self._generations.current.generation, self._publishing.newest_number

    def _try(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (CustodyError, LedgerUnavailable, OSError) as error:
            if self._told.get(what) != str(error) or self._is_due(what, TELL_AGAIN):
                self._told[what] = str(error)
                self._due[what] = self._now() + TELL_AGAIN
                _log.warn(what, reason=str(error))
        except Exception as error:  # noqa: BLE001  # a bug of ours keeps no other work from being done
            if self._told.get(what) != str(error):
                self._told[what] = str(error)
                _log.failure(what, Failure(error))
        else:
            if self._told.pop(what, None) is not None:
                _log.info("works again", what=what)

    def _is_due(self, what: str, period: timedelta) -> bool:
        now = self._now()
        # What is due later than one period from now was put off while the clock was ahead.
        if now < self._due.get(what, now) <= now + period:
            return False
        self._due[what] = now + period
        return True

    def _look_for_newer(self) -> None:
        if self._generations.look_for_newer():
            _log.info("CA rotated", root_generation=self._generations.current.generation)

    def _refresh_lists(self) -> None:
        before = self._publishing.newest_number
        try:
            self._publishing.refresh(self._forget)
        finally:  # where one generation's is not made, another's may be
            if self._publishing.newest_number != before:
                _log.info("CRL made", crl_number=self._publishing.newest_number)

    def _forget(self, changed: frozenset[bytes]) -> None:
        self._responder.forget(changed)
        _log.info("revocations taken in", count=len(changed))

    def _anchor(self) -> None:
        to = self._anchor_to
        if to.file is None and to.syslog is None:
            return
        if not self._is_due("anchor", to.period):
            return
        self.write_anchor()

    def write_anchor(self) -> None:
        """Write down where the audit ends now.

        Raises:
            LedgerUnavailable, OSError: it cannot be read, or the anchor not be written; the next round tries again.
        """
        to = self._anchor_to
        if to.file is None and to.syslog is None:
            return
        try:
            line = audit_anchors.line_of(self._ledger.read(audit_chain.read_head), self._now())
            if to.file is not None:
                audit_anchors.append_to_file(to.file, line)
            if to.syslog is not None:
                audit_anchors.send_to_syslog(to.syslog, line)
        except (LedgerUnavailable, OSError):
            self._due.pop("anchor", None)
            raise

    def _prune(self) -> None:
        if self._keep_expired is None or not self._is_due("prune", PRUNE_EVERY):
            return
        now = self._now()
        ended_before = datetime.fromtimestamp(self._trusted_ms() / 1000, UTC) - self._keep_expired
        count = self._ledger.change(lambda connection: prune(connection, ended_before, milliseconds(now)))
        if count:
            _log.info("expired certificates pruned", count=count)
        if count == PRUNE_BATCH:
            self._due.pop("prune")  # the rest with the next rounds, so that signing gets its turns

    def clock_fields(self) -> dict[str, object]:
        """Return what the row "stopped" carries for the next start. Raises LedgerUnavailable."""
        return self._ledger.read(read_times).fields(self._trusted_ms())

    def _note_clock(self) -> None:
        """Note the trusted time now and then: a process that is killed writes no last row."""
        monotonic = self._monotonic()
        if monotonic - self._noted_at >= NOTE_CLOCK_EVERY_S:
            trusted_ms, now_ms = self._trusted_ms(), milliseconds(self._now())
            self._ledger.change(lambda connection: note_times(connection, trusted_ms, now_ms))
            self._noted_at = monotonic

    def _trusted_ms(self) -> int:
        """Return what time it is at least, in milliseconds since 1970-01-01 UTC (`ledger.audit.trusted_time`).

        What is pruned is gone for good, and a clock that is ahead says of everything that it ended long ago. Not later
        than the clock: where the clock was accepted meanwhile, what was trusted before was wrong.
        """
        passed_ms = int((self._monotonic() - self._opened_at) * 1000)
        return min(milliseconds(self._now()), self._ledger.trusted_ms + passed_ms)

    def _close_off(self) -> None:
        now_ms = milliseconds(self._now())
        if self._ledger.read(lambda connection: retention.has_old(connection, now_ms)):
            count = self._ledger.change(lambda connection: retention.close_off_old(connection, now_ms))
            _log.warn("intents without certificate closed off", count=count)

    def _warn_of_validity(self) -> None:
        now, current = self._now(), self._generations.current
        is_valid = current.is_valid_at(now)
        if is_valid and current.valid_until - now >= WARN_BEFORE_END:
            self._due.pop(_VALIDITY, None)  # where it is wrong later, it is told at once
        elif self._is_due(_VALIDITY, WARN_EVERY):
            if is_valid:
                rotate = command("vmi-agent", "ca rotate", opens_keys=True)
                _log.warn("CA ends soon", not_after=current.valid_until.isoformat(), renew_with=f"`{rotate}`")
            else:
                reason = validity_text(current.valid_from, current.valid_until, now)
                _log.error("CA is not valid, nothing is signed", reason=reason)
