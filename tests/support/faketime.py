"""Processes under a wrong clock: Debian's libfaketime, preloaded. Monotonic clocks and file times stay right."""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from support.needs import need_library
from support.processes import BIN, run
from support.run_log import LINES

# What a machine without a battery starts with.
EPOCH = "@1970-01-02 00:00:00"


def wrong_clock(clock: str) -> dict[str, str]:
    """Return the environment of a process under a wrong clock.

    Args:
        clock: as faketime(1) has it: "+40d", or `EPOCH` for a clock that starts there.
    """
    return {
        "LD_PRELOAD": need_library("faketime/libfaketimeMT.so.1", "faketime"),
        "FAKETIME": clock,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        "TZ": "UTC",
    }


def run_at(clock: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run one of our commands to its end under a wrong clock."""
    words, environment = [str(BIN / command[0]), *command[1:]], {**os.environ, **wrong_clock(clock)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    LINES.append(done.stderr)
    return done


class MovableClock:
    """A clock that is moved while processes run by it.

    Args:
        directory: for its file.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "faketime"
        self.move(timedelta(0))

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process that runs by this clock."""
        variables = wrong_clock("+0d") | {"FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1"}
        del variables["FAKETIME"]  # it would win over the file
        return variables

    def move(self, ahead: timedelta) -> None:
        """Move the clock so far ahead of the right time."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{int(ahead.total_seconds()):+d}s\n")
        written.rename(self._file)


def accept_clock(state_dir: Path) -> None:
    """Accept the clock as it is now, as an operator does who has mended it."""
    done = run("vmi-agent", "audit", "accept-clock", "--state-dir", str(state_dir))
    assert done.returncode == 0, done.stderr


def attime(moment: datetime) -> list[str]:
    """Return openssl's options to judge as by a clock that shows this time."""
    return ["-attime", str(int(moment.astimezone(UTC).timestamp()))]
