"""wrk as a load, with CSRs of the pool, and what came of it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from measure import Taken, taken
from peers import Peer

TIMEOUT_S = 30
_SCRIPT = Path(__file__).parent / "sign.lua"


@dataclass(frozen=True, slots=True)
class Mode:
    """How requests come.

    Attributes:
        connections: at once; each asks one request after the other.
        closes: each request has a connection of its own.
        resumes: and that one resumes the TLS session of the one before.
    """

    name: str
    connections: int
    closes: bool = False
    resumes: bool = False


KEEP_ALIVE = Mode("keep-alive", 16)
NEW_CONNECTION = Mode("new connection", 16, closes=True)
RESUMED = Mode("resumed connection", 16, closes=True, resumes=True)
ONE_CLIENT = Mode("one client", 1)
MODES = (KEEP_ALIVE, NEW_CONNECTION, RESUMED, ONE_CLIENT)


class WrongAnswer(Exception):
    """A request was not answered with a certificate, or not at all; nothing that was measured counts."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run against one server.

    Attributes:
        signed: how many certificates came.
        took_s: from the first request to the last certificate.
        p50_ms, p99_ms: of a request's first octet to its answer's last; a connection's handshake is before that.
        cpu_s_per_1000: CPU seconds that each process took for 1,000 certificates.
        peak_kib: each process's peak memory up to the end of this run.
        is_short: it ended because there were no more CSRs.
    """

    signed: int
    took_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_1000: dict[str, float]
    peak_kib: dict[str, int]
    is_short: bool

    @property
    def per_s(self) -> float:
        """Certificates in a second."""
        return self.signed / self.took_s


class Load:
    """Loads servers; remembers of each which CSRs it got, so that none comes a second time.

    Args:
        csrs: the pool's file.
        built: where `install_peers` put what it built.
    """

    def __init__(self, csrs: Path, built: Path) -> None:
        self._csrs = csrs
        self._preload = built.resolve() / "new_sessions.so"
        self._sent: dict[str, int] = {}

    def run(self, peer: Peer, mode: Mode, seconds: int) -> Run:
        """Load one server for so many seconds, or until there are no more CSRs.

        Raises:
            WrongAnswer: as it says.
        """
        first = self._sent.get(peer.name, 0)
        before = {name: taken(pid) for name, pid in peer.processes.items()}
        told = self._wrk(peer, mode, seconds, first)
        after = {name: taken(pid) for name, pid in peer.processes.items()}
        self._sent[peer.name] = first + int(told["asked"])
        signed = int(told["signed"])
        if not signed:
            why = "all CSRs are used up, make more (--csrs)" if told["exhausted"] else "no answer in time"
            raise WrongAnswer(f"{peer.name}, {mode.name}: {why}")
        return Run(
            signed,
            told["ended"] - told["began"],
            told["p50_us"] / 1000,
            told["p99_us"] / 1000,
            {name: _cpu_between(before[name], after[name]) * 1000 / signed for name in before},
            {name: after[name].peak_kib for name in after},
            bool(told["exhausted"]),
        )

    def _wrk(self, peer: Peer, mode: Mode, seconds: int, first: int) -> dict[str, float]:
        settings = {
            "csrs": str(self._csrs),
            "tokens": str(peer.one_time_tokens or ""),
            "skip": str(first),
            "path": peer.path,
            "status": str(peer.status),
            "token": peer.session_token,
            "close": "yes" if mode.closes else "no",
            **dict(zip(("before", "between", "after"), peer.body, strict=True)),
        }
        command = ["wrk", "-t1", f"-c{mode.connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s"]
        command += ["-s", str(_SCRIPT), peer.url, "--", *(f"{name}={value}" for name, value in settings.items())]
        variables = dict(os.environ)
        if mode.closes and not mode.resumes:
            variables["LD_PRELOAD"] = str(self._preload)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith("told ")]
        told = {name: float(value) for _, name, value in lines}
        # What is asked when the CSRs are used up is cut off in the middle.
        broken = told.get("broken", 1) if not told.get("exhausted") else 0
        if done.returncode != 0 or not told or told["wrong"] or broken:
            raise WrongAnswer(f"{peer.name}, {mode.name}:\n{done.stdout}{done.stderr}")
        return told


def _cpu_between(before: Taken, after: Taken) -> float:
    return after.cpu_s - before.cpu_s
