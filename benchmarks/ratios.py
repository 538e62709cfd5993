"""What was measured, as ratios of pairs, beside the goals. Reads what bench.py writes as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One row of the table.

    Attributes:
        ratios: one of each round.
        goal: None where there is none.
        at_most: the goal is a ceiling, not a floor.
        told: the medians that were compared.
    """

    what: str
    ratios: Sequence[float]
    told: str
    goal: float | None = None
    at_most: bool = False

    @property
    def median(self) -> float:
        """Of the rounds."""
        return median(self.ratios)

    @property
    def verdict(self) -> str:
        """Whether the goal is reached by the median."""
        if self.goal is None:
            return ""
        return "reached" if (self.median <= self.goal if self.at_most else self.median >= self.goal) else "missed"


# Kind of the CA key, mode, peer -> goal of requests in a second, against that peer.
_GOALS = {
    ("p256", "keep-alive", "cfssl"): 1.0,
    ("p256", "keep-alive", "cfssl with ledger"): 7.0,
    ("p256", "keep-alive", "step-ca"): 4.0,
    ("rsa2048", "keep-alive", "cfssl"): 3.0,
    ("rsa3072", "keep-alive", "cfssl"): 2.5,
    ("p256", "new connection", "cfssl"): 1.0,
    ("p256", "resumed connection", "cfssl"): 1.0,
}
_LIMIT_GOALS = {"rsa3072": 0.60, "rsa4096": 0.75}
_ONE_CLIENT_GOALS = {("p256", "cfssl with ledger"): 1.0}


def rows(results: Results) -> Iterator[Ratio]:
    """Yield the table."""
    for kind, found in results.get("signing", {}).items():
        yield from _signing(kind, found)
    if "proxy" in results:
        yield from _proxy(results["proxy"])
    if "ledger" in results:
        yield from _ledger(results["ledger"])


def _signing(kind: str, found: Results) -> Iterator[Ratio]:
    for mode, runs in found["runs"].items():
        ours = runs.get("ours", [])
        for peer, theirs in runs.items():
            if peer == "ours" or not ours:
                continue
            what = f"{kind}, {mode}, against {peer}"
            if mode == "one client":
                goal = _ONE_CLIENT_GOALS.get((kind, peer))
                pairs = [run["p50_ms"] for run in ours], [run["p50_ms"] for run in theirs]
                yield _of_pairs(f"{what}: p50", *pairs, "ms", goal, at_most=True)
            else:
                pairs = [per_s(run) for run in ours], [per_s(run) for run in theirs]
                yield _of_pairs(f"{what}: requests/s", *pairs, "/s", _GOALS.get((kind, mode, peer)))
                pairs = [cpu_ms(run) for run in ours], [cpu_ms(run) for run in theirs]
                yield _of_pairs(f"{what}: CPU for one", *pairs, "ms", None, at_most=True)
    kept = found["runs"].get("keep-alive", {}).get("ours", [])
    if kept:
        pairs = [per_s(run) for run in kept], found["raw_per_s"]
        yield _of_pairs(f"{kind}, keep-alive, share of the raw sign rate", *pairs, "/s", _LIMIT_GOALS.get(kind))


def _proxy(found: Results) -> Iterator[Ratio]:
    ours, bare = found["proxy"], found["bare"]
    for what, name, unit, goal in (
        ("proxy's memory at rest, against the bare import", "resident_kib", "KiB", 1.15),
        ("proxy's memory under 200 idle TLS connections", "crowded_kib", "KiB", 1.6),
        ("proxy's time from exec to ready", "ready_s", "s", 1.5),
        ("proxy's CPU time from exec to ready", "ready_cpu_s", "s", None),
    ):
        yield _of_pairs(what, [one[name] for one in ours], [one[name] for one in bare], unit, goal, at_most=True)


def _ledger(found: Results) -> Iterator[Ratio]:
    count = f"{found['certificates']:,} certificates against none"
    for what, name, unit, goal, at_most in (
        ("requests/s", "per_s", "/s", 0.95, False),
        ("agent's CPU seconds per 1,000", "agent_cpu_s_per_1000", "s", None, True),
        ("agent's time from exec to ready", "start_s", "s", 1.1, True),
        ("agent's CPU time from exec to ready", "start_cpu_s", "s", None, True),
        ("time of certs list --limit 100", "list_s", "s", 1.1, True),
    ):
        yield _of_pairs(f"{count}: {what}", found[name]["full"], found[name]["empty"], unit, goal, at_most)


def _of_pairs(
    what: str, ours: Sequence[float], theirs: Sequence[float], unit: str, goal: float | None, at_most: bool = False
) -> Ratio:
    told = f"{_number(median(ours))} {unit} to {_number(median(theirs))} {unit}"
    return Ratio(what, [a / b for a, b in zip(ours, theirs, strict=True)], told, goal, at_most)


def per_s(run: Results) -> float:
    """Return how many certificates a run had in a second."""
    return float(run["signed"] / run["took_s"])


def cpu_ms(run: Results) -> float:
    """Return the CPU time that one certificate took in a run, in milliseconds, over all processes."""
    return float(sum(run["cpu_s_per_1000"].values()))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
