"""Disks for the tests that are small, fill up, and are gone with the test."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from support.processes import BIN, Process, run

SIZE = "2m"
# What stands in where nothing can be mounted: the files of a process may not grow, as under a quota.
LIMIT = "--fsize"
# A mount namespace of one's own, or with a user namespace as well, which may be allowed where the first is not.
_WAYS = {"--mount": ["unshare", "--mount"], "--user": ["unshare", "--user", "--map-root-user", "--mount"]}


@cache
def ways_to_a_small_disk() -> list[str]:
    """Return the best way to mount one that this machine allows, if there is any, and the one that is always there."""
    mount = "mount -t tmpfs -o size=1m none /mnt"
    tried = {way: subprocess.run([*command, "sh", "-c", mount], capture_output=True) for way, command in _WAYS.items()}
    return [*[way for way, done in tried.items() if done.returncode == 0][:1], LIMIT]


class SmallDisk:
    """A tmpfs of 2 MB that only the processes see that are started on it.

    Attributes:
        path: where they see it.
        full: what somebody is told of it, one of these.
    """

    full: tuple[str, ...] = ("database or disk is full", "No space left on device")

    def __init__(self, path: Path, holder: int, enter: list[str]) -> None:
        self.path = path
        self._seen_from_here = Path(f"/proc/{holder}/root{path}")
        self._enter = enter

    def start(self, *command: str) -> Process:
        """Start a process of ours that sees the disk."""
        return Process(*self._enter, str(BIN / command[0]), *command[1:])

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of ours that sees the disk."""
        return run(*self._enter, str(BIN / command[0]), *command[1:])

    def make_read_only(self) -> bool:
        """Let nobody write to the disk any more; return whether that is possible."""
        return run(*self._enter, "/bin/mount", "-o", "remount,ro", str(self.path)).returncode == 0

    def fill(self, leave: int = 0) -> None:
        """Put as much ballast on the disk as goes there, but for so many octets."""
        ballast = os.open(self._seen_from_here / "ballast", os.O_WRONLY | os.O_CREAT)
        try:
            with suppress_full_disk():
                while True:
                    os.write(ballast, bytes(4096))
            if leave:
                os.truncate(ballast, max(0, os.fstat(ballast).st_size - leave))
        finally:
            os.close(ballast)

    def free(self) -> None:
        """Take the ballast away."""
        (self._seen_from_here / "ballast").unlink()


class LimitedDisk(SmallDisk):
    """The same for who can mount nothing: on a full disk no file may grow."""

    full = ("disk I/O error", "File too large", "database or disk is full")

    def __init__(self, path: Path) -> None:
        super().__init__(path, os.getpid(), [])
        self._started: list[Process] = []
        self._limit = resource.RLIM_INFINITY

    def start(self, *command: str) -> Process:
        enter = ["/usr/bin/prlimit", f"--fsize={self._limit}:unlimited"] if self._limit >= 0 else []
        process = Process(*enter, str(BIN / command[0]), *command[1:])
        self._started.append(process)
        return process

    def fill(self, leave: int = 0) -> None:
        largest = max((path.stat().st_size for path in self.path.rglob("*")), default=0)
        self._limit_all(largest + leave if leave else 0)

    def free(self) -> None:
        self._limit_all(resource.RLIM_INFINITY)

    def make_read_only(self) -> bool:
        return False

    def _limit_all(self, octets: int) -> None:
        self._limit = octets
        for process in self._started:
            with suppress(ProcessLookupError):
                limit_files(process, octets)


@contextmanager
def suppress_full_disk() -> Iterator[None]:
    """Let a full disk end the block."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@contextmanager
def small_disk(directory: Path, way: str) -> Iterator[SmallDisk]:
    """Give a disk in place of an empty directory, in one of `ways_to_a_small_disk`."""
    if way == LIMIT:
        yield LimitedDisk(directory)
        return
    mount = f'mount -t tmpfs -o size={SIZE},mode=0700 none "$0" && echo mounted && exec cat'
    command = [*_WAYS[way], "sh", "-c", mount, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"mounted\n"
            enter = ["/usr/bin/nsenter", "--target", str(holder.pid), "--mount"]
            if way == "--user":
                enter += ["--user", "--preserve-credentials"]
            yield SmallDisk(directory, holder.pid, enter)
        finally:
            with suppress(BrokenPipeError):
                holder.stdin.close()


def limit_files(process: Process, octets: int = resource.RLIM_INFINITY) -> None:
    """Let no file of a process grow over a size, as a quota does."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))
