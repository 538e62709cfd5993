"""The certificates of a running process, each by itself.

They are read again on SIGHUP, and those that this process makes itself when they are due; what cannot be read leaves
the old one in place. Connections that are open keep the certificate that they began with. Whoever has to act is told at
the start and then daily: from 30 days before a certificate ends, and where one has ended or is not valid yet.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography import x509
from twisted.logger import Logger

from runtime import channel_credentials
from runtime.clock import early_clock_text, is_before_build, utc_now
from runtime.tls import TlsContext, is_due, sha256_of

WARN_BEFORE = timedelta(days=30)
WARN_EVERY = timedelta(days=1)
RETRY_AFTER = timedelta(hours=1)
# How often a process is to call `Reloadable.look`.
LOOK_EVERY_S = 5.0

_log = Logger()


class Reloadable:
    """A TLS context and where it comes from.

    Args:
        what: names it in the log: "https", "channel".
        load: reads it; makes the certificate first where it is this process's own and due.
        advice: what an operator is to do about a certificate that is not valid, or soon no more.
        renew_before: how long before its end `load` makes another certificate; None where it makes none.
        warns: tell the log of certificates; another process does so where this is False.
        now: returns the aware UTC time.

    Raises:
        FileRefused: it cannot be read the first time.
    """

    def __init__(
        self,
        what: str,
        load: Callable[[], TlsContext],
        *,
        advice: str = "",
        renew_before: timedelta | None = None,
        warns: bool = True,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._what = what
        self._load = load
        self._advice = advice
        self._renew_before = renew_before
        self._warns = warns
        self._now = now
        self._warned_at: datetime | None = None
        self._renewed_at: datetime | None = None
        self.context = load()
        self._warn(now())

    def reload(self) -> bool:
        """Read it again for the connections that are to come; return whether that worked."""
        try:
            self.context.take(self._load())
        except Exception as error:  # noqa: BLE001  # whatever a file holds, the old one stays, and the next file is read
            _log.error("certificate not reloaded, the old one stays", what=self._what, reason=str(error))
            return False
        _log.info("reloaded", what=self._what, not_after=self.context.not_after.isoformat())
        self._warned_at = None
        self._warn(self._now())
        return True

    def look(self) -> bool:
        """Renew the certificate where it is due, and warn where one is due; return whether another one is shown now.

        Costs next to nothing where nothing is due.
        """
        now = self._now()
        is_renewed = self._is_renewal_due(now) and self.reload()
        self._warn(now)
        return is_renewed

    def _is_renewal_due(self, now: datetime) -> bool:
        if self._renew_before is None or is_before_build(now):
            return False
        if not is_due(self.context.certificates[0], now, self._renew_before):
            return False
        if _is_within(self._renewed_at, RETRY_AFTER, now):
            return False  # it failed a moment ago
        self._renewed_at = now
        return True

    def _warn(self, now: datetime) -> None:
        if not self._warns or _is_within(self._warned_at, WARN_EVERY, now):
            return
        self._warned_at = None
        if is_before_build(now):  # it says nothing about certificates
            self._warned_at = now
            _log.warn("clock cannot be right", what=self._what, reason=early_clock_text(now))
            return
        for certificate in self.context.certificates:
            text = _trouble(certificate, now)
            if text:
                self._warned_at = now
                _log.warn(
                    text,
                    what=self._what,
                    subject=certificate.subject.rfc4514_string(),
                    sha256=sha256_of(certificate),
                    not_before=certificate.not_valid_before_utc.isoformat(),
                    not_after=certificate.not_valid_after_utc.isoformat(),
                    advice=self._advice,
                )


def channel_reloadable(state_dir: Path, *, warns: bool = True) -> Reloadable:
    """Return the channel's context, of the credentials in a state directory. Raises FileRefused."""
    load = partial(channel_credentials.channel_context, state_dir / channel_credentials.FILE_NAME)
    return Reloadable("channel", load, advice=channel_credentials.ADVICE, warns=warns)


def _trouble(certificate: x509.Certificate, now: datetime) -> str:
    """Return what is to be said of a certificate; nothing where nothing is wrong."""
    if now < certificate.not_valid_before_utc:
        return "certificate is not valid yet"
    left = certificate.not_valid_after_utc - now
    if left < timedelta(0):
        return "certificate has ended"
    return "certificate ends soon" if left < WARN_BEFORE else ""


def _is_within(since: datetime | None, period: timedelta, now: datetime) -> bool:
    """Return whether a period since some time is not over; after a clock was set back it is."""
    return since is not None and since <= now < since + period
