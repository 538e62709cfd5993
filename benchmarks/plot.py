"""A picture of what was measured. `python benchmarks/plot.py RESULTS.json PICTURE.png` draws it anew."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ratios import Results, cpu_ms, per_s

_COLOURS = {"ours": "#0b6e4f", "cfssl": "#e08e45", "cfssl with ledger": "#b23a48", "step-ca": "#4a6fa5"}
_Value = Callable[[Results], float]


def plot(results: Results, path: Path) -> None:
    """Draw, for each kind of CA key and each server, what the modes gave: medians, with lines from min to max."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = _panels(results["signing"])
    height = (len(panels) + 1) // 2
    figure, axes = pyplot.subplots(height, 2, figsize=(14, 4.2 * height), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, mode, value) in zip(axes.flat, panels, strict=False):
        _draw(axis, title, results["signing"], mode, value)
    machine = results["machine"]
    figure.suptitle(f"{machine['cores']} cores, {machine['cpu']}, Linux {machine['kernel']}. Lines: min to max.")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.97), ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _panels(signing: Results) -> list[tuple[str, str, _Value]]:
    modes = list(dict.fromkeys(mode for found in signing.values() for mode in found["runs"]))
    panels: list[tuple[str, str, _Value]] = []
    for mode in modes:
        if mode == "one client":
            panels.append(("one client, one request at a time: p50 in ms (less is better)", mode, _p50_ms))
        else:
            panels.append((f"{mode}: requests/s", mode, per_s))
    if "keep-alive" in modes:
        panels.append(("keep-alive: CPU ms for one request, all processes (less is better)", "keep-alive", cpu_ms))
    return panels


def _draw(axis: Any, title: str, signing: Results, mode: str, value: _Value) -> None:
    kinds = [kind for kind, found in signing.items() if mode in found["runs"]]
    peers = list(dict.fromkeys(peer for kind in kinds for peer in signing[kind]["runs"][mode]))
    width = 0.84 / len(peers)
    for number, peer in enumerate(peers):
        places = [place - 0.42 + (number + 0.5) * width for place in range(len(kinds))]
        of_kinds = [[value(run) for run in signing[kind]["runs"][mode][peer]] for kind in kinds]
        _bars(axis, places, of_kinds, width, peer)
    if value is per_s:
        limits = [median(signing[kind]["raw_per_s"]) for kind in kinds if signing[kind]["raw_per_s"]]
        for place, limit in enumerate(limits):
            label = "raw sign rate of all cores" if place == 0 else None
            axis.hlines(limit, place - 0.45, place + 0.45, colors="black", linestyles="dashed", label=label)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_title(title, fontsize="medium")
    axis.margins(y=0.15)
    axis.grid(axis="y", alpha=0.3)


def _bars(axis: Any, places: Sequence[float], of_kinds: Sequence[Sequence[float]], width: float, peer: str) -> None:
    middles = [median(values) for values in of_kinds]
    spread = [
        [middle - min(values) for middle, values in zip(middles, of_kinds, strict=True)],
        [max(values) - middle for middle, values in zip(middles, of_kinds, strict=True)],
    ]
    bars = axis.bar(places, middles, width, yerr=spread, capsize=2, color=_COLOURS[peer], label=peer)
    labels = [f"{middle:,.0f}" if middle >= 10 else f"{middle:.2f}" for middle in middles]
    axis.bar_label(bars, labels, fontsize="x-small", padding=1)


def _p50_ms(run: Results) -> float:
    return float(run["p50_ms"])


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
