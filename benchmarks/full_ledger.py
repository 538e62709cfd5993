"""An agent whose ledger holds very many certificates, beside one that has just begun: each thing in turn for both."""

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import csr_pool
from ledger_filling import fill
from load import KEEP_ALIVE, Load
from measure import taken
from peers import ours

# isort: split
from support.processes import run, start_agent

FULL, EMPTY = "full", "empty"
WARM_S = 1
PAGE = 100


@dataclass
class Grown:
    """What was measured, by FULL and EMPTY; one value for each round.

    Attributes:
        start_s, start_cpu_s: an agent's time from exec to ready, and its CPU time until then.
        list_s: how long `certs list` takes for its first page.
    """

    certificates: int
    fill_s: float = 0.0
    per_s: dict[str, list[float]] = field(default_factory=dict)
    agent_cpu_s_per_1000: dict[str, list[float]] = field(default_factory=dict)
    start_s: dict[str, list[float]] = field(default_factory=dict)
    start_cpu_s: dict[str, list[float]] = field(default_factory=dict)
    list_s: dict[str, list[float]] = field(default_factory=dict)


def measure(
    out: Path, csrs: int, certificates: int, rounds: int, seconds: int, tell: Callable[[str], None], kind: str = "p256"
) -> Grown:
    """Fill a ledger with so many certificates, and compare. Args as of `signing.Signing`."""
    found = Grown(certificates)
    csr_pool.prepare(out / "csrs", csrs)
    load = Load(out / "csrs", out)
    with TemporaryDirectory(dir=out, prefix="states-") as states:
        directories = {name: Path(states) / name for name in (FULL, EMPTY)}
        for name, directory in directories.items():
            with ours(directory, kind, name) as peer:
                load.run(peer, KEEP_ALIVE, WARM_S)
        began = time.perf_counter()
        # The first start closes off what the end of the load left pending.
        _start(directories[FULL])
        fill(directories[FULL] / "agent", certificates)
        found.fill_s = time.perf_counter() - began
        tell(f"ledger   filled with {certificates} certificates in {found.fill_s:.0f} s")
        for directory in directories.values():
            _start(directory)
        for _ in range(rounds):
            for name, directory in directories.items():
                clock_s, cpu_s = _start(directory)
                found.start_s.setdefault(name, []).append(clock_s)
                found.start_cpu_s.setdefault(name, []).append(cpu_s)
                found.list_s.setdefault(name, []).append(_list(directory))
        tell(f"ledger   ready after {found.start_s}, listed in {found.list_s}")
        with ExitStack() as running:
            for directory in directories.values():
                shutil.rmtree(directory / "proxy")  # whose password nobody knows any more
            peers = [running.enter_context(ours(directory, kind, name)) for name, directory in directories.items()]
            for peer in peers:
                load.run(peer, KEEP_ALIVE, WARM_S)
            for round_ in range(rounds):
                for peer in peers if round_ % 2 == 0 else peers[::-1]:
                    done = load.run(peer, KEEP_ALIVE, seconds)
                    found.per_s.setdefault(peer.name, []).append(done.per_s)
                    found.agent_cpu_s_per_1000.setdefault(peer.name, []).append(done.cpu_s_per_1000["agent"])
                    tell(f"ledger   round {round_ + 1} {peer.name:18} {done.per_s:7.0f}/s")
    return found


def _start(directory: Path) -> tuple[float, float]:
    """Start an agent and stop it; return its time from exec to ready, by the clock and in CPU time."""
    began = time.perf_counter()
    with start_agent(directory / "agent") as agent:
        agent.wait_for("ready")
        took_s, cpu_s = time.perf_counter() - began, taken(agent.pid).cpu_s
        agent.stop()
    return took_s, cpu_s


def _list(directory: Path) -> float:
    began = time.perf_counter()
    listed = run("vmi-agent", "certs", "list", "--state-dir", str(directory / "agent"), "--limit", str(PAGE))
    took_s = time.perf_counter() - began
    assert len(listed.stdout.splitlines()) == PAGE, listed.stderr
    return took_s
