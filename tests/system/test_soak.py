"""The soak runs, a short one; `make soak` is the long one."""

import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_short_soak() -> None:
    """Good and bad requests, kills, rotations and revocations at once: no request fails, the promises hold."""
    command = [sys.executable, str(SOAK), "--seconds", "15", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("agent ended by SIGKILL", "ca rotate", "certs revoke", "good: 200", "hung up"):
        assert word in done.stdout
