"""Two agents on one ledger, one of them killed every few seconds, under load: what the HMCs see of it.

    python benchmarks/failover.py [--seconds 60] [--every 5] [--streams 16] [--key-type p256]

Real processes on loopback. Ends with status 1 where a request failed, or a certificate that was received is not in the
ledger.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hmcs import Hmc, bodies, closed_loop, endless, share, told
from shared_agents import Agent, running

# isort: split
from support.judges import split_chain
from support.processes import run

ADDRESSES = [f"127.0.0.{number}" for number in range(2, 6)]


async def kill(agents: Sequence[Agent], seconds: float, every_s: float) -> list[float]:
    """Kill one after the other, and start it again at once; return how long each took to be back."""
    back_s: list[float] = []
    next_at, until = time.monotonic() + every_s, time.monotonic() + seconds
    while next_at < until:
        await asyncio.sleep(max(0.0, next_at - time.monotonic()))
        next_at += every_s
        agent = agents[len(back_s) % len(agents)]
        began = time.monotonic()
        await asyncio.to_thread(agent.end, signal.SIGKILL)
        await asyncio.to_thread(agent.start)
        back_s.append(time.monotonic() - began)
    return back_s


async def _result_of(task: asyncio.Task[list[float]]) -> list[float]:
    return await task


def main() -> int:
    """Run, check, tell; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--key-type", default="p256")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        with running(directory, options.key_type, "--requests-per-s", "100000") as (agents, proxy, port):
            hmcs = [Hmc(port, address) for address in ADDRESSES]
            with asyncio.Runner() as runner:
                killing = runner.get_loop().create_task(kill(agents, options.seconds, options.every))
                runner.run(closed_loop(hmcs, options.streams, endless(bodies(1000)), options.seconds))
                back_s = runner.run(_result_of(killing))
            repeated = sum("request repeated" in line or "asked of a second" in line for line in proxy.lines)
        answers = [answer for hmc in hmcs for answer in hmc.answers]
        print(f"{len(back_s)} kills, back after {share(back_s, 0.5):.1f} s, at most {max(back_s, default=0):.1f}")
        print(f"{told(answers)}; log lines of requests that were repeated: {repeated}")
        took = [answer.took_s for answer in answers]
        print(f"answers took p50 {share(took, 0.5):.3f} s, p99 {share(took, 0.99):.3f} s, at most {max(took):.3f} s")
        exported = run("vmi-agent", "certs", "export", "--state-dir", str(directory / "agent")).stdout.splitlines()
        in_ledger = {json.loads(line)["certificate"] for line in exported}
        signed = [json.loads(answer.body)["data"][0] for answer in answers if answer.status == 200]
        lost = sum(split_chain(each)[0] not in in_ledger for each in signed)
        print(f"{len(signed)} received, {len(in_ledger)} in the ledger, {lost} of the first not in the second")
        verified = run("vmi-agent", "audit", "verify", "--state-dir", str(directory / "agent"))
        print(verified.stdout.strip() or verified.stderr.strip())
    return int(len(signed) != len(answers) or lost > 0 or verified.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
