"""Faults at the system calls of a real process: where it is killed, or which call fails. `faults.c` says how."""

import atexit
import errno
import os
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support import forks
from support.needs import need
from support.processes import Process
from support.run_log import LINES

SYNC, ROOM, NAME = 1, 2, 4
ANY = SYNC | ROOM | NAME
ANYWHERE = "-"


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changed or synced something.

    Attributes:
        number: counts from 1 on in each process.
        name: "pwrite", "fdatasync", "rename", …
        result: what it returned.
        path: of the file, or of the directory.
        more: the offset of a write, the size of a truncation, the other path of a rename or link, or "-".
    """

    number: int
    name: str
    result: int
    path: str
    more: str


@cache
def library() -> str:
    """Build `faults.c`, once in a run; return the library's path."""
    directory = tempfile.TemporaryDirectory(prefix="faults-")
    atexit.register(directory.cleanup)
    path = Path(directory.name) / "faults.so"
    source = Path(__file__).with_name("faults.c")
    command = [need("cc"), "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(path), str(source)]
    subprocess.run(command, check=True)
    return str(path)


class ForkedProcess(Process):
    """The same process, forked."""

    def _start(self, command: list[str], environment: dict[str, str]) -> forks.Forked:
        return forks.start(command, environment)


def run_forked(*command: str, stdin: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run one of our commands to its end, or its death."""
    done = forks.run([*command], os.environ | variables, stdin)
    LINES.append(done.stderr)
    return done


class Faults:
    """The faults that processes meet in one directory, changed while they run.

    Args:
        under: the directory, which exists.
        beside: an existing directory for the log and the control file, outside of `under`.
        keep_data: keep what was written, for `power_loss`.
    """

    def __init__(self, under: Path, beside: Path, *, keep_data: bool = False) -> None:
        self.under = under.resolve()
        self._log = beside / "calls"
        self._control = beside / "control"
        self.data = beside / "data"
        self.variables = {
            "FAULTS_UNDER": str(self.under),
            "FAULTS_LOG": str(self._log),
            "FAULTS_CONTROL": str(self._control),
        }
        if keep_data:
            self.variables["FAULTS_DATA"] = str(self.data)

    def start(self, *command: str) -> Process:
        """Start a process of ours under the faults."""
        return ForkedProcess(*command, **self.variables)

    def run(self, *command: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command of ours under the faults, to its end or its death."""
        return run_forked(*command, stdin=stdin, **self.variables)

    def calls(self) -> list[Call]:
        """Return what was called so far, by all processes in turn."""
        if not self._log.exists():
            return []
        rows = (line.split("\t") for line in self._log.read_text().splitlines())
        return [Call(int(number), name, int(result), path, more) for number, name, result, path, more in rows]

    def kill(self, when: str, number: int) -> None:
        """Kill the process "before" or "after" the call of this number."""
        self._set(f"{when} {ANY} {number} 1 0 {ANYWHERE}")

    def fail(
        self, kinds: int, error: int = errno.EIO, *, number: int = 0, count: int = 0, suffix: str = ANYWHERE
    ) -> None:
        """Let calls of these kinds fail from now on.

        Args:
            number: of the first call that fails.
            count: how many; 0 for all until `stop`.
            suffix: only those whose path ends like this.
        """
        self._set(f"fail {kinds} {number} {count} {error} {suffix}")

    def shorten(self, *, torn: bool = False) -> None:
        """Let writes write half of what they are given; torn: and then say that the disk is full."""
        self._set(f"{'torn' if torn else 'short'} {ROOM} 0 0 {errno.ENOSPC} {ANYWHERE}")

    def stop(self) -> None:
        """Let everything go well again."""
        self._control.unlink(missing_ok=True)

    def _set(self, text: str) -> None:
        beside = self._control.with_suffix(".new")
        beside.write_text(text + "\n")
        beside.replace(self._control)
