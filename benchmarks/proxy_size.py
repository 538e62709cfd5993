"""How much memory the proxy takes and how soon it is ready, beside a process that only imports what it stands on."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import taken
from peers import connected

# isort: split
from support.processes import Process, add_account, port_of, start_agent

BARE = "import twisted.web.server, twisted.internet.ssl; print('ready', flush=True); input()"
CONNECTIONS = 200
# What a process does at its start is over by then.
AT_REST_S = 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """One process.

    Attributes:
        ready_s: from exec to ready, by the clock.
        ready_cpu_s: and in CPU time.
        resident_kib: at rest.
        crowded_kib: under CONNECTIONS idle TLS connections; of the bare import, the same as at rest.
    """

    ready_s: float
    ready_cpu_s: float
    resident_kib: int
    crowded_kib: int


def measure(out: Path, rounds: int, tell: Callable[[str], None]) -> tuple[list[Size], list[Size]]:
    """Start proxy and bare import in turn; return the sizes of both."""
    proxies, bare = [], []
    with TemporaryDirectory(dir=out, prefix="states-") as states:
        directory = Path(states)
        add_account(directory / "proxy", "hmc", "Administrator", "0penBmc-bench")
        with start_agent(directory / "agent", 0, "--key-type", "p256") as agent:
            agent_at = f"tcp:127.0.0.1:{port_of(agent.wait_for('ready')['listen'][0])}"
            _proxy(directory / "proxy", agent_at)  # which makes its certificate
            for number in range(rounds):
                bare.append(_bare())
                proxies.append(_proxy(directory / "proxy", agent_at))
                tell(f"proxy    round {number + 1}: {proxies[-1]}, bare import: {bare[-1]}")
    return proxies, bare


def _bare() -> Size:
    began = time.perf_counter()
    command = [sys.executable, "-c", BARE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ready_s, cpu_s = time.perf_counter() - began, taken(process.pid).cpu_s
        time.sleep(AT_REST_S)
        resident = taken(process.pid).resident_kib
        process.kill()
    return Size(ready_s, cpu_s, resident, resident)


def _proxy(state_dir: Path, agent_at: str) -> Size:
    began = time.perf_counter()
    command = ["bmc-proxy", "serve", "--state-dir", str(state_dir), "--agent", agent_at]
    with Process(*command, "--https", "tcp:0:interface=127.0.0.1") as process:
        ready = process.wait_for("ready")
        ready_s, cpu_s = time.perf_counter() - began, taken(process.pid).cpu_s
        process.wait_for("root learned")
        time.sleep(AT_REST_S)
        at_rest = taken(process.pid).resident_kib
        with ExitStack() as crowd:
            for _ in range(CONNECTIONS):
                crowd.enter_context(connected(port_of(ready["https"])))
            time.sleep(AT_REST_S)
            crowded = taken(process.pid).resident_kib
        process.stop()
    return Size(ready_s, cpu_s, at_rest, crowded)
