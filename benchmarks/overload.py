"""What becomes of requests at twice the load that the agent can sign, and of a quiet HMC beside a flood.

    python benchmarks/overload.py [--key-type rsa4096] [--seconds 20]

Real processes on loopback. First the peak: as many streams as it takes. Then twice as many requests a second as the
peak had, from eight addresses. Then a flood of as many again, and beside it one HMC that asks once a second.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hmcs import Answer, Hmc, bodies, closed_loop, endless, open_loop, share, told
from shared_agents import resident_kib

# isort: split
from support.processes import Process, port_of, start_agent, start_proxy

ADDRESSES = [f"127.0.0.{number}" for number in range(2, 10)]
QUIET = "127.0.0.100"
STREAMS = 48


def row(name: str, answers: Sequence[Answer], seconds: float, peak: float) -> None:
    """Print one row."""
    signed = [each.took_s * 1000 for each in answers if each.status == 200]
    refused = [each for each in answers if each.status == 503]
    waits = [each.took_s * 1000 for each in refused]
    print(f"{name}: {told(answers)}")
    print(
        f"    signed {len(signed) / seconds:.0f}/s, {len(signed) / seconds / peak:.2f} of the peak;"
        f" ms p50 {share(signed, 0.5):.0f}, p99 {share(signed, 0.99):.0f}, max {max(signed, default=0):.0f}"
    )
    if refused:
        named = sum(each.retry_after is not None for each in refused)
        print(
            f"    refused with 503 {len(refused)}, {named} with Retry-After;"
            f" ms p50 {share(waits, 0.5):.1f}, p99 {share(waits, 0.99):.1f}, max {max(waits):.0f}"
        )


async def quiet_and_flood(
    port: int, flood: Sequence[Hmc], per_s: float, source: Iterator[bytes], seconds: float
) -> Hmc:
    """Flood, and ask once a second beside it; return who asked."""
    quiet = Hmc(port, QUIET)
    own = bodies(int(seconds) + 1)

    async def ask_now_and_then() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await quiet.ask(own.pop())
            await asyncio.sleep(1)

    await asyncio.gather(open_loop(flood, per_s, source, seconds), ask_now_and_then())
    return quiet


def measure(port: int, seconds: float, processes: dict[str, Process]) -> None:
    """Run the three loads."""
    with asyncio.Runner() as runner:
        hmcs = [Hmc(port, address) for address in ADDRESSES]
        source = endless(bodies(2000))
        runner.run(closed_loop(hmcs, STREAMS, source, 3))  # warm
        before = {name: resident_kib(process) for name, process in processes.items()}
        for hmc in hmcs:
            hmc.answers.clear()
        peak = runner.run(closed_loop(hmcs, STREAMS, source, seconds))
        row(f"peak, {STREAMS} streams", [answer for hmc in hmcs for answer in hmc.answers], seconds, peak)
        for name in ("twice the peak", "flood of twice the peak"):
            for hmc in hmcs:
                hmc.answers.clear()
            source = endless(bodies(int(2.2 * peak * seconds)))
            if name.startswith("twice"):
                runner.run(open_loop(hmcs, 2 * peak, source, seconds))
            else:
                quiet = runner.run(quiet_and_flood(port, hmcs[:1], 2 * peak, source, seconds))
            row(name, [answer for hmc in hmcs for answer in hmc.answers], seconds, peak)
        row("once a second beside it", quiet.answers, seconds, peak)
        for hmc in (*hmcs, quiet):
            hmc.close()
        for name, process in processes.items():
            now = resident_kib(process)
            print(f"memory of the {name}: {before[name]} KiB after warming up, {now} KiB at the end")


def main() -> None:
    """Start both processes and load them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key-type", default="rsa4096")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        with start_agent(directory / "agent", 0, "--key-type", options.key_type) as agent:
            at = f"tcp:127.0.0.1:{port_of(agent.wait_for('ready')['listen'][0])}"
            # The flood is of one address; how many requests an address may make is not what is looked at here.
            with start_proxy(directory / "proxy", [at], "--requests-per-s", "100000") as proxy:
                port = port_of(proxy.wait_for("ready")["http"])
                proxy.wait_for("agent connected")
                print(f"CA {options.key_type}, {options.seconds:.0f} s each, deadline 30 s")
                measure(port, options.seconds, {"agent": agent, "proxy": proxy})


if __name__ == "__main__":
    main()
