"""The last root that an agent presented, in memory and on disk, for when no agent can be asked.

The file is the root in PEM; its time of modification is when an agent last presented it.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

FILE_NAME = "root.pem"


class RootCache:
    """Keeps one root.

    Args:
        state_dir: where `root.pem` is, or will be.
        now: seconds since 1970-01-01 UTC.
        report: is told where the root could not be stored; it is then remembered in memory only.

    Raises:
        OSError, ValueError: the stored root cannot be read.
    """

    def __init__(self, state_dir: Path, now: Callable[[], float], report: Callable[[OSError], None]) -> None:
        self._path = state_dir / FILE_NAME
        self._now = now
        self._report = report
        self._pem: str | None = None
        self._received_at = 0.0
        try:
            with open(self._path, encoding="ascii") as file:
                self._pem = file.read()
                self._received_at = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            pass

    def last(self) -> tuple[str, int] | None:
        """Return the root in PEM and its age in whole seconds; None where no agent ever presented one."""
        if self._pem is None:
            return None
        return self._pem, max(0, int(self._now() - self._received_at))

    def received(self, pem: str) -> None:
        """An agent presented this root just now."""
        changed = pem != self._pem
        self._pem, self._received_at = pem, self._now()
        try:
            if changed or not self._path.exists():
                self._write(pem)
            os.utime(self._path, (self._received_at, self._received_at))
        except OSError as error:
            self._report(error)

    def _write(self, pem: str) -> None:
        """Write the file beside the old one and put it in its place: it is the old root or the new one, whole."""
        descriptor, temporary = tempfile.mkstemp(prefix=".root-", dir=self._path.parent)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError:
            os.unlink(temporary)
            raise
