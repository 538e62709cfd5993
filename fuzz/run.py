"""Run every fuzz target for a bounded time, each over a copy of its committed corpus, and print what it did.

    python fuzz/run.py --seconds 60 [--jobs 2] [--keep DIR] [TARGET …]

What a run finds that is new goes to DIR/TARGET, to be looked at and, where it earns it, committed to
fuzz/corpus/TARGET. Ends with status 1 where a target failed; what it printed, and the input that did it, follow the
table.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# libFuzzer gives one input this long before it calls it a hang; the time of day, on a machine that may be busy.
INPUT_TIMEOUT_S = 60
MOST_MEMORY_MB = 1024
_STATISTIC = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)
_COLUMNS = ("target", "executions", "exec/s", "new units", "peak RSS MB", "findings")


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one target.

    Attributes:
        statistics: libFuzzer's, by name.
        findings: the files of the inputs that failed.
        output: the end of what it printed.
    """

    name: str
    status: int
    statistics: dict[str, int]
    findings: tuple[Path, ...]
    output: str

    def row(self) -> tuple[str, ...]:
        """Return its line of the table."""
        names = ("number_of_executed_units", "average_exec_per_sec", "new_units_added", "peak_rss_mb")
        numbers = (f"{self.statistics.get(name, 0):,}" for name in names)
        return self.name, *numbers, str(len(self.findings) or int(self.status != 0))


def run(target: Path, seconds: int, keep: Path) -> Run:
    """Run one target."""
    name = target.stem.removeprefix("fuzz_")
    found, failed = keep / name, keep / "findings" / name
    found.mkdir(parents=True, exist_ok=True)
    failed.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-timeout={INPUT_TIMEOUT_S}", f"-rss_limit_mb={MOST_MEMORY_MB}"]
    command = [sys.executable, str(target), *limits, "-print_final_stats=1", f"-artifact_prefix={failed}/"]
    command += [str(found), str(HERE / "corpus" / name)]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, errors="replace", check=False)
    statistics = {key: int(value) for key, value in _STATISTIC.findall(done.stderr)}
    output = (done.stdout + done.stderr)[-4000:]
    # libFuzzer keeps slow inputs as well, by the time of day; what is too slow, it calls a time-out.
    findings = sorted(path for path in failed.iterdir() if not path.name.startswith("slow-unit-"))
    return Run(name, done.returncode, statistics, tuple(findings), output)


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        print(first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)))


def main() -> int:
    """Run the targets; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("--keep", type=Path, help="where new inputs go; default: thrown away")
    names = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; default: all")
    options = parser.parse_args()
    unknown = set(options.targets) - set(names)
    if unknown:
        parser.error(f"unknown target: {', '.join(sorted(unknown))}; accepted: {', '.join(names)}")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as at_a_time:
        keep = options.keep or Path(scratch)
        targets = [HERE / f"fuzz_{name}.py" for name in options.targets or names]
        runs = list(at_a_time.map(lambda target: run(target, options.seconds, keep), targets))
        print_table([_COLUMNS, *(each.row() for each in runs)])
        failed = [each for each in runs if each.status]
        for each in failed:
            print(f"\n{each.name} failed with status {each.status}:\n{each.output}")
            for finding in each.findings:
                print(f"{finding.name}: {finding.read_bytes().hex()}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
