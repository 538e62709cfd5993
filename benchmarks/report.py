"""Tables of what was measured. `python benchmarks/report.py RESULTS.json` makes them anew."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import ratios
from ratios import Ratio, Results, per_s


def text(results: Results) -> str:
    """Return all of it as Markdown."""
    rows = list(ratios.rows(results))
    with_goal = [row for row in rows if row.goal is not None]
    others = [row for row in rows if row.goal is None]
    return "\n".join([*_setting(results), "", *_ratios(with_goal), "", *_ratios(others), "", *_runs(results)])


def _setting(results: Results) -> Iterator[str]:
    for name in ("machine", "versions", "settings"):
        yield f"{name}: " + "; ".join(f"{key} {value}" for key, value in results[name].items())


def _ratios(rows: Sequence[Ratio]) -> Iterator[str]:
    yield from _table(
        ("what", "median", "min", "max", "goal", "", "medians"),
        [
            (
                row.what,
                f"{row.median:.2f}",
                f"{min(row.ratios):.2f}",
                f"{max(row.ratios):.2f}",
                "" if row.goal is None else f"{'≤' if row.at_most else '≥'} {row.goal:.2f}",
                row.verdict,
                row.told,
            )
            for row in rows
        ],
    )


def _runs(results: Results) -> Iterator[str]:
    rows = []
    for kind, found in results.get("signing", {}).items():
        for mode, runs in found["runs"].items():
            rows += [(kind, mode, peer, *_numbers(of_peer)) for peer, of_peer in runs.items()]
        rows.append((kind, "raw sign rate", "all cores", f"{median(found['raw_per_s']):,.0f}", "", "", "", "", ""))
    if rows:
        yield from _table(
            ("CA", "mode", "server", "requests/s", "p50 ms", "p99 ms", "CPU s per 1,000", "peak MiB", "short runs"),
            rows,
        )


def _numbers(runs: Sequence[Results]) -> Iterator[str]:
    yield f"{median(map(per_s, runs)):,.0f}"
    yield f"{median(run['p50_ms'] for run in runs):.2f}"
    yield f"{median(run['p99_ms'] for run in runs):.1f}"
    processes = runs[0]["cpu_s_per_1000"]
    yield ", ".join(f"{name} {median(run['cpu_s_per_1000'][name] for run in runs):.2f}" for name in processes)
    yield ", ".join(f"{name} {max(run['peak_kib'][name] for run in runs) / 1024:.0f}" for name in processes)
    yield str(sum(run["is_short"] for run in runs) or "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


if __name__ == "__main__":
    print(text(json.loads(Path(sys.argv[1]).read_text())))
