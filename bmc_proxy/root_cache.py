"""The last root that an agent presented, in memory and on disk, for when no agent can be asked.

The file is the root in PEM; its time of modification is when an agent last presented it. How long ago that was counts
by a clock that nobody sets, as long as the process lives.
"""

import os
from collections.abc import Callable
from pathlib import Path

from bmc_proxy.pem import is_certificate
from runtime.files import remove_leftovers, replace_file

FILE_NAME = "root.pem"


class RootCache:
    """Keeps one root.

    Args:
        state_dir: where `root.pem` is, or will be.
        now: seconds since 1970-01-01 UTC.
        monotonic: seconds of a clock that nobody sets.
        report: is told, once until it works again, why the root cannot be stored or read. A root that cannot be stored
            is remembered in memory, one that cannot be read is as good as none: the next agent presents it anew.
        is_alone: no other process may be writing the file; what killed ones left beside it is removed.
    """

    def __init__(
        self,
        state_dir: Path,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        report: Callable[[str], None],
        *,
        is_alone: bool = True,
    ) -> None:
        self._path = state_dir / FILE_NAME
        self._now = now
        self._monotonic = monotonic
        self._report = report
        self._pem: str | None = None
        self._stored: str | None = None
        self._received_at = 0.0  # by the clock that nobody sets
        self._reported = False
        if is_alone:
            remove_leftovers(self._path)
        try:
            with open(self._path, encoding="ascii") as file:
                stored, received_at = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            report(f"{self._path}: {error}")
            return
        if is_certificate(stored):
            self._pem = self._stored = stored
            self._received_at = monotonic() - max(0.0, now() - received_at)
        else:
            report(f"{self._path} is not a certificate in PEM")

    def last(self) -> tuple[str, int] | None:
        """Return the root in PEM and its age in whole seconds; None where no agent ever presented one."""
        if self._pem is None:
            return None
        return self._pem, int(self._monotonic() - self._received_at)

    def received(self, pem: str) -> None:
        """An agent presented this root just now."""
        self._pem, self._received_at = pem, self._monotonic()
        try:
            if pem != self._stored or not self._path.exists():
                self._stored = None  # either of the two, where this fails
                replace_file(self._path, pem.encode("ascii"))
                self._stored = pem
            now = self._now()
            os.utime(self._path, (now, now))
            self._reported = False
        except OSError as error:
            if not self._reported:
                self._report(f"{self._path}: {error.strerror}")
            self._reported = True
