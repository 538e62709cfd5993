"""Log lines of several processes on one stderr: none stands in the middle of another.

POSIX has a write to a pipe of up to PIPE_BUF octets go whole. So a line is one write, and no longer than that: what is
too long loses the beginning of its traceback, then its fields.
"""

import os
import select
import sys
import warnings
from collections.abc import Callable

from twisted.logger import globalLogBeginner

from runtime.logging import LineObserver, log_warning

LIMIT = select.PIPE_BUF
_CUT = "…"
_KEPT = ("time", "level", "source", "worker", "event")


class SharedLineObserver(LineObserver):
    """Writes each event as `LineObserver` does, in one write.

    Args:
        write: takes octets, all at once.
        fields: that each line has beside its own.
    """

    def __init__(self, write: Callable[[bytes], object], as_json: bool, **fields: object) -> None:
        super().__init__(sys.stderr, as_json)
        self._write_octets = write
        self._fields = fields

    def write(self, line: dict[str, object]) -> None:
        """Write a line, or what fits of it."""
        line = {**line, **self._fields}
        octets = self._octets(line)
        end = str(line.get("traceback", ""))
        while len(octets) > LIMIT and end:
            end = end[len(end) // 8 + 1 :]
            octets = self._octets(line | {"traceback": _CUT + end})
        if len(octets) > LIMIT:
            octets = self._octets({name: line[name] for name in _KEPT if name in line} | {"cut": True})
        self._write_octets(octets[:LIMIT])

    def _octets(self, line: dict[str, object]) -> bytes:
        return (self.to_text(line) + "\n").encode(errors="backslashreplace")


def start_shared_logging(log_format: str, **fields: object) -> None:
    """As `runtime.logging.start_logging`, for one of several processes."""
    descriptor = sys.stderr.fileno()
    observer = SharedLineObserver(lambda octets: os.write(descriptor, octets), log_format == "json", **fields)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    warnings.showwarning = log_warning
