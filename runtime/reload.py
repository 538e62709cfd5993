"""Certificates that are read anew on SIGHUP, each by itself: what cannot be read leaves the old one in place."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from twisted.logger import Logger

from runtime.tls import TlsContext

WARN_BEFORE = timedelta(days=30)

_log = Logger()


class Reloadable:
    """A TLS context and where it comes from.

    Args:
        what: names it in the log: "https", "channel".
        load: reads it.

    Raises:
        FileRefused: it cannot be read the first time.
    """

    def __init__(self, what: str, load: Callable[[], TlsContext]) -> None:
        self._what = what
        self._load = load
        self.context = load()
        self._tell_of_its_end()

    def reload(self) -> None:
        """Read it anew for the connections that are to come."""
        try:
            self.context.take(self._load())
        except Exception as error:  # noqa: BLE001  # whatever a file holds, the old one stays, and the next file is read
            _log.error("certificate not reloaded, the old one stays", what=self._what, reason=str(error))
            return
        _log.info("reloaded", what=self._what, not_after=self.context.not_after.isoformat())
        self._tell_of_its_end()

    def _tell_of_its_end(self) -> None:
        if self.context.not_after - WARN_BEFORE < datetime.now(UTC):
            _log.warn(
                "certificate ends soon or has ended", what=self._what, not_after=self.context.not_after.isoformat()
            )
