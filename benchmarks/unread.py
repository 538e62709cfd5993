"""Our processes, whose logs nobody reads while they are measured: that would be a load of its own."""

import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

# isort: split
from support.processes import BIN, Process

_POLL_S = 0.01


class Unread(Process):
    """A process of ours that logs into a file.

    Args:
        log: the file; lines of an earlier process may be in it.
    """

    def __init__(self, log: Path, *command: str) -> None:
        self._log = log
        self._is_left_alone = threading.Event()
        super().__init__(*command)

    def leave_alone(self) -> None:
        """Read its lines no more: `wait_for` finds nothing new from now on."""
        self._is_left_alone.set()

    def _start(self, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            self._begins_at = log.tell()
            return subprocess.Popen([str(BIN / command[0]), *command[1:]], stderr=log, env=environment)

    def _read(self) -> None:
        with self._log.open("rb") as log:
            log.seek(self._begins_at)
            rest = b""
            while not self._is_left_alone.wait(_POLL_S):
                has_ended = self._process.poll() is not None
                *lines, rest = (rest + log.read()).split(b"\n")
                for line in lines:
                    self._take(line)
                if has_ended:
                    break
        self._events.put(None)
