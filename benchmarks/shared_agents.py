"""Agents that share one ledger and are ended and started again where they listened, and what a process takes."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from processes import Process, port_of, start_agent, start_proxy


class Agent:
    """One of them, whichever process it is at the moment; `process` is None while there is none."""

    def __init__(self, state_dir: Path, key_type: str) -> None:
        self.state_dir = state_dir
        self.port = 0
        self.process: Process | None = None
        self._key_type = key_type

    def start(self) -> None:
        """Start it, where it listened before."""
        self.process = start_agent(self.state_dir, self.port, "--shared", "--key-type", self._key_type)
        self.process.__enter__()
        self.port = port_of(self.process.wait_for("ready")["listen"][0])

    def end(self, number: int) -> int:
        """End it with a signal; return its exit status."""
        assert self.process is not None
        status = self.process.stop(number)
        self.process.__exit__(None, None, None)
        self.process = None
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


def footprint(process: Process) -> tuple[int, int]:
    """Return a process's resident KiB and its open descriptors."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return resident, len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
