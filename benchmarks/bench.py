"""Ours beside cfssl and step-ca, and beside ourselves: who signs how fast, and what it takes.

    python benchmarks/bench.py [--kinds p256,rsa2048] [--rounds 3] [--seconds 4] [--out build/bench] …

Wants what `benchmarks/install_peers DIRECTORY` installs and builds, in the same directory; `make bench` does both.
Real processes on loopback. Prints the tables, and writes them, all numbers and a plot into the directory. Ends with
status 1 where a request was not answered with a certificate.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import csr_pool
import full_ledger
import measure
import plot
import proxy_size
import report
from load import MODES, WrongAnswer
from ratios import Results
from signing import OURS, PEERS, Signing, remove_leftovers

PARTS = ("signing", "proxy", "ledger")


def options() -> argparse.Namespace:
    """Return the command line, judged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = tuple(mode.name for mode in MODES)
    for name, known, what in (
        ("parts", PARTS, "what is measured"),
        ("kinds", measure.KEY_KINDS, "of CA keys"),
        ("peers", PEERS, "that are compared"),
        ("modes", modes, "in which requests come"),
    ):
        parser.add_argument(f"--{name}", type=_some_of(known), default=list(known), help=f"{what}: {','.join(known)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--csrs", type=int, default=120_000, help="made beforehand; runs get shorter without enough")
    parser.add_argument("--certificates", type=int, default=1_000_000, help="in the full ledger")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    return parser.parse_args()


def _some_of(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := set(wanted) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of: {', '.join(known)}")
        return [each for each in known if each in wanted]

    return read


def tell(line: str) -> None:
    """Show how far it is."""
    print(line, file=sys.stderr, flush=True)


def measured(chosen: argparse.Namespace) -> Results:
    """Measure all that was chosen, in the form in which it is kept."""
    out: Path = chosen.out
    results: Results = {
        "machine": measure.machine(out),
        "versions": measure.versions(),
        "settings": {
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
            "CSRs": csr_pool.MIX,
            "load": "wrk, one thread, 16 connections or 1",
            "step-ca": "JWK provisioner, a one-time token in each request; badgerv2",
        },
    }
    if "proxy" in chosen.parts:
        proxies, bare = proxy_size.measure(out, chosen.rounds, tell)
        results["proxy"] = {"proxy": [*map(dataclasses.asdict, proxies)], "bare": [*map(dataclasses.asdict, bare)]}
    if "signing" in chosen.parts:
        signing = Signing(out, chosen.csrs, chosen.peers)
        modes = [mode for mode in MODES if mode.name in chosen.modes]
        results["signing"] = {}
        for kind in chosen.kinds:
            found = signing.measure(kind, modes, chosen.rounds, chosen.seconds, tell)
            results["signing"][kind] = dataclasses.asdict(found)
    if "ledger" in chosen.parts:
        grown = full_ledger.measure(out, chosen.csrs, chosen.certificates, chosen.rounds, chosen.seconds, tell)
        results["ledger"] = dataclasses.asdict(grown)
    return results


def main() -> int:
    """Measure, print, write; return the exit status."""
    chosen = options()
    if OURS not in chosen.peers:
        chosen.peers.insert(0, OURS)
    os.umask(0o077)
    chosen.out = chosen.out.resolve()  # some servers run elsewhere
    chosen.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(chosen.out)
    try:
        results = measured(chosen)
    except WrongAnswer as error:
        print(f"WRONG {error}", file=sys.stderr)
        return 1
    (chosen.out / "results.json").write_text(json.dumps(results, indent=1))
    text = report.text(results)
    (chosen.out / "results.md").write_text(text + "\n")
    print(text)
    if "signing" in results:
        plot.plot(results, chosen.out / "results.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
