"""What a process holds: descriptors and memory."""

import os
import time
from pathlib import Path

from support.processes import (
    START_S,
    Process,
)


def descriptors(process: Process) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def wait_until_descriptors(process: Process, count: int) -> None:
    """Wait until a process has no more descriptors open than this; connections are seen to end a moment later."""
    give_up_at = time.monotonic() + START_S
    while descriptors(process) > count:
        assert time.monotonic() < give_up_at, f"{descriptors(process)} descriptors are open, {count} were"
        os.sched_yield()


def memory_octets(process: Process) -> int:
    """Return how much memory a process has."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    [resident] = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(resident) * 1024
