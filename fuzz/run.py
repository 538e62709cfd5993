"""Run every fuzz target for a bounded time, each over a copy of its committed corpus.

    python fuzz/run.py --seconds 60 [--keep DIR]

What a run finds that is new goes to DIR/TARGET, to be looked at and, where it earns it, committed to
fuzz/corpus/TARGET. Ends with status 1 where a target failed; the input that did it is printed by the target.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# libFuzzer gives one input this long before it calls it a hang.
INPUT_TIMEOUT_S = 10


def run(target: Path, seconds: int, found: Path) -> int:
    """Run one target; return its exit status."""
    found.mkdir(parents=True, exist_ok=True)
    corpus = HERE / "corpus" / target.stem.removeprefix("fuzz_")
    limits = [f"-max_total_time={seconds}", f"-timeout={INPUT_TIMEOUT_S}", "-rss_limit_mb=1024", "-print_final_stats=1"]
    command = [sys.executable, str(target), *limits, f"-artifact_prefix={found}/", str(found), str(corpus)]
    return subprocess.run(command, cwd=HERE.parent, check=False).returncode


def main() -> int:
    """Run all targets; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", type=Path, help="where new inputs go; default: thrown away")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        keep = options.keep or Path(scratch)
        statuses = [run(target, options.seconds, keep / target.stem) for target in sorted(HERE.glob("fuzz_*.py"))]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
