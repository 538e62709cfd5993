"""Agents that share one ledger and are ended and started again where they listened, and what a process takes."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.processes import Process, port_of, start_agent, start_proxy


class Agent:
    """One of them, whichever process it is at the moment.

    Attributes:
        process: that process, once it is ready; None while there is none.
        told: what the processes before it logged.
    """

    def __init__(self, state_dir: Path, key_type: str) -> None:
        self.state_dir = state_dir
        self.port = 0
        self.process: Process | None = None
        self.told: list[str] = []
        self._key_type = key_type

    def start(self) -> None:
        """Start it, where it listened before."""
        with ExitStack() as until_ready:
            process = until_ready.enter_context(
                start_agent(self.state_dir, self.port, "--shared", "--key-type", self._key_type)
            )
            self.port = port_of(process.wait_for("ready")["listen"][0])
            until_ready.pop_all()
        self.process = process

    def end(self, number: int) -> int:
        """End it with a signal; return its exit status."""
        ending, self.process = self.process, None
        assert ending is not None
        status = ending.stop(number)
        ending.__exit__(None, None, None)
        self.told += ending.lines
        return status


@contextmanager
def running(directory: Path, key_type: str, *proxy_options: str) -> Iterator[tuple[Sequence[Agent], Process, int]]:
    """Run two agents and a proxy that is connected to both; give them, and the port of its plain listener."""
    agents = [Agent(directory / "agent", key_type) for _ in range(2)]
    try:
        for agent in agents:
            agent.start()
        at = [f"tcp:127.0.0.1:{agent.port}" for agent in agents]
        with start_proxy(directory / "proxy", at, *proxy_options) as proxy:
            port = port_of(proxy.wait_for("ready")["http"])
            for _ in agents:
                proxy.wait_for("agent connected")
            yield agents, proxy, port
    finally:
        for agent in agents:
            if agent.process is not None:
                agent.end(signal.SIGTERM)


def footprint(process: Process) -> tuple[int, int] | None:
    """Return a process's resident KiB and its open descriptors; None where it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        descriptors = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return None
    resident = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), None)
    return None if resident is None else (resident, descriptors)


def resident_kib(process: Process) -> int:
    """Return the resident KiB of a process that runs."""
    taken = footprint(process)
    assert taken is not None, f"process {process.pid} has ended"
    return taken[0]
