"""The real processes by the hundred: forked from one that has imported all they need, which is most of a start.

What is forked runs the command line's own entry point, under the faults' library, and exits as any process does.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

_MESSAGE = 65_536
_START_S = 60.0


class Forked:
    """A process, in as much of the form of `subprocess.Popen` as the tests need.

    Args:
        command: program and arguments.
        environment: the whole of it.
        files: its standard input, output and error.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], files: tuple[int, int, int]) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(_START_S)
        self._connection.connect(_server())
        message = json.dumps({"command": command, "environment": dict(environment)}).encode()
        socket.send_fds(self._connection, [message], files)
        self.pid = int(self._connection.recv(_MESSAGE))
        self.stderr: IO[bytes] | None = None
        self._status: int | None = None

    def wait(self, timeout: float) -> int:
        """Wait for the end, return the exit status, or minus the number of the signal."""
        if self._status is None:
            self._connection.settimeout(timeout)
            self._status = int(self._connection.recv(_MESSAGE))
            self._connection.close()
        return self._status

    def poll(self) -> int | None:
        """Return the same without waiting; None before the end."""
        if self._status is None and select.select([self._connection], [], [], 0)[0]:
            self.wait(_START_S)
        return self._status

    def send_signal(self, number: int) -> None:
        """Send a signal, as long as the process is there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def start(command: list[str], environment: Mapping[str, str]) -> Forked:
    """Start a process; its `stderr` can be read."""
    reader, writer = os.pipe()
    with open(os.devnull, "rb+", buffering=0) as null:
        process = Forked(command, environment, (null.fileno(), null.fileno(), writer))
    os.close(writer)
    process.stderr = os.fdopen(reader, "rb")
    return process


def run(command: list[str], environment: Mapping[str, str], text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a process to its end."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(text.encode())
        stdin.seek(0)
        process = Forked(command, environment, (stdin.fileno(), stdout.fileno(), stderr.fileno()))
        status = process.wait(_START_S)
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess(command, status, stdout.read().decode(), stderr.read().decode())


@cache
def _server() -> str:
    """Start the process that all others are forked from, once in a run; return where it listens."""
    from support.faults import library

    directory = tempfile.TemporaryDirectory(prefix="forks-")
    atexit.register(directory.cleanup)
    path = str(Path(directory.name) / "socket")
    words = [sys.executable, __file__, path]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"LD_PRELOAD": library()}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_START_S)

    atexit.register(end)
    return path


def _serve(path: str) -> None:
    """Fork a process for each that connects, until standard input ends."""
    import bmc_proxy.app
    import bmc_proxy.cli
    import vmi_agent.app
    import vmi_agent.cli
    from runtime.clock import utc_now
    from vmi_agent.policy.profile import Profile
    from vmi_agent.policy.profile_lint import lint

    assert lint(Profile(), utc_now()) == []  # as each start does, which takes much that is imported only then

    mains = {"vmi-agent": vmi_agent.cli.main, "bmc-proxy": bmc_proxy.cli.main}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                break
            connection.close()
        else:
            return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(connection, _MESSAGE, 3)
    child = os.fork()
    if child:
        for each in files:
            os.close(each)
        connection.send(str(child).encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(OSError):  # the tests are over
            connection.send(str(status).encode())
        os._exit(0)
    connection.close()
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    asked = json.loads(message)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["command"]
    sys.exit(mains[sys.argv[0]]())


if __name__ == "__main__":
    _serve(sys.argv[1])
