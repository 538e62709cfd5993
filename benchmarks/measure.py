"""What processes take, as the kernel counts it, what the machine is, and how fast a bare key signs."""

import os
import platform
import re
import sqlite3
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# About as long as a TBSCertificate.
_MESSAGE = bytes(700)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a process and its children have taken up to now.

    Attributes:
        cpu_s: user and system time of all of them.
        resident_kib: of all of them, added up; shared pages count in each.
        peak_kib: their peaks (VmHWM), added up.
    """

    processes: int
    cpu_s: float
    resident_kib: int
    peak_kib: int


def taken(pid: int) -> Taken:
    """Return what a process that runs has taken, its children included."""
    family = _family(pid)
    memory = [_memory_kib(each) for each in family]
    return Taken(
        len(family),
        sum(map(_cpu_s, family)),
        sum(each["VmRSS"] for each in memory),
        sum(each["VmHWM"] for each in memory),
    )


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(one for each in children for child in each.read_text().split() for one in _family(int(child)))]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _memory_kib(pid: int) -> dict[str, int]:
    found = re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return {name: int(kib) for name, kib in found}


CaKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
# The kinds of CA keys that all peers have.
KEY_KINDS = ("p256", "rsa2048", "rsa3072", "rsa4096")


def new_key(kind: str) -> CaKey:
    """Return a new key of one of KEY_KINDS."""
    if kind == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))


def raw_signatures_per_s(key: CaKey, seconds: float) -> float:
    """Return how many signatures `cryptography` makes with a key in a second, in one thread for each core."""
    counts: list[int] = []
    began = time.perf_counter()
    until = began + seconds

    def sign_on() -> None:
        count = 0
        while time.perf_counter() < until:
            if isinstance(key, rsa.RSAPrivateKey):
                key.sign(_MESSAGE, padding.PKCS1v15(), hashes.SHA256())
            else:
                key.sign(_MESSAGE, ec.ECDSA(hashes.SHA256()))
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=sign_on) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def machine(directory: Path) -> dict[str, str]:
    """Return what was measured on. Args: directory: where the ledgers are."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cores": str(os.cpu_count()),
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "memory": f"{int(memory.group(1)) // 1024} MiB" if memory else "?",
        "kernel": platform.release(),
        "file system of the ledgers": _output("stat", "--file-system", "--format=%T", str(directory)),
        "load before": " ".join(f"{each:.1f}" for each in os.getloadavg()),
    }


def versions() -> dict[str, str]:
    """Return the versions of everything that takes part."""
    ours = ("vmi-certificate-exchange", "twisted", "cryptography", "pyopenssl", "sqlalchemy")
    found = {name: version(name) for name in ours}
    found["commit"] = _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    found |= {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    found |= {"openssl of cryptography": backend.openssl_version_text(), "openssl of python": ssl.OPENSSL_VERSION}
    debian = ("golang-cfssl", "golang-github-smallstep-certificates-dev", "golang-go", "wrk", "libssl3")
    found |= {name: _output("dpkg-query", "--show", "--showformat=${Version}", name) for name in debian}
    return found


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "?"
    return done.stdout.strip() or "?"
