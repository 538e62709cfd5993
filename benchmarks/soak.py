"""A long run of everything at once: good and bad requests, hang-ups, restarts, kills, rotation, revocations.

    python benchmarks/soak.py [--seconds 600] [--seed N]

Two agents on one ledger and a proxy, real processes on loopback. In the first two thirds the agents are restarted and
killed in turns and the CA is rotated; in the last third they are left alone under the same load, so that their memory
can be told. At the end the seven promises are checked on what the HMCs hold and what the ledger has. Ends with status 1
where one is broken, or where memory or descriptors grew.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmcs import NO_ANSWER, SIGN_CSR, Answer, Hmc, bodies, share
from shared_agents import Agent, footprint, running

# isort: split
from support.judges import split_chain
from support.processes import Process, run

ADDRESSES = [f"127.0.0.{number}" for number in range(2, 8)]
STREAMS = 6
RESTART_EVERY_S = 5.0
REVOKE_EVERY_S = 2.0
PAUSE_S = 0.02
# What a process may have more at the end than at the beginning of the last third.
GROWTH_KIB = 12 * 1024
GROWTH_DESCRIPTORS = 8
# 503 where an agent is away or busy, which an HMC tries again on.
RETRIED = (503,)
LAST_THIRD = 2 / 3

# What is sent instead of a request, and the statuses that it may get.
BAD: dict[str, tuple[bytes, set[int]]] = {
    "not JSON": (b"{", {400}),
    "no CSR": (b'{"data":[]}', {400}),
    "not a CSR": (
        b'{"data":["-----BEGIN CERTIFICATE REQUEST-----\\nAAAA\\n-----END CERTIFICATE REQUEST-----"]}',
        {400},
    ),
    "deep": (b"[" * 30_000, {400}),
    "too large": (b'{"data":["' + b"A" * 70_000 + b'"]}', {413}),
    "not UTF-8": (b'{"data":["\xff\xfe"]}', {400}),
}


@dataclass
class Run:
    """What happened."""

    port: int
    until: float
    chance: random.Random
    began: float = field(default_factory=time.monotonic)
    received: dict[bytes, list[bytes]] = field(default_factory=dict)  # certificates by the body that asked
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)
    rotations: int = 0

    def goes_on(self) -> bool:
        """Return whether there is time left."""
        return time.monotonic() < self.until

    def in_last_third(self) -> bool:
        """Return whether the agents are left alone from now on."""
        return time.monotonic() > self.began + (self.until - self.began) * LAST_THIRD

    def note(self, what: str, answer: Answer, accepted: set[int]) -> None:
        """Count an answer, and remember one that may not be."""
        self.statuses[f"{what}: {answer.status}"] += 1
        if answer.status not in accepted:
            self.wrong.append(f"{what}: {answer.status} {answer.body[:200]!r}")


async def good(run_: Run, hmc: Hmc) -> None:
    """Ask for certificates, now and then once more for the same, and again after a 503, as an HMC does."""
    while run_.goes_on():
        [body] = bodies(1)
        for _ in range(1 + (run_.chance.random() < 0.1)):
            answer = await hmc.ask(body)
            run_.took_s.append(answer.took_s)
            while answer.status in RETRIED:
                run_.note("good", answer, {503})
                await asyncio.sleep(0.2)
                answer = await hmc.ask(body)
            run_.note("good", answer, {200})
            if answer.status == 200:
                run_.received.setdefault(body, []).append(json.loads(answer.body)["data"][0].encode())
        await asyncio.sleep(PAUSE_S)


async def bad(run_: Run, hmc: Hmc) -> None:
    """Send what is refused."""
    while run_.goes_on():
        what = run_.chance.choice(list(BAD))
        body, accepted = BAD[what]
        run_.note(what, await hmc.ask(body), accepted)
        await asyncio.sleep(2 * PAUSE_S)


async def hang_up(run_: Run, address: str) -> None:
    """Begin a request and leave: in its header, in its body, or before its answer."""
    while run_.goes_on():
        [body] = bodies(1)
        head = f"POST {SIGN_CSR} HTTP/1.1\r\nHost: bmc\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        whole = head + body
        cut = run_.chance.choice([1, len(head) // 2, len(head), len(whole) // 2, len(whole)])
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", run_.port, local_addr=(address, 0))
            writer.write(whole[:cut])
            await writer.drain()
            await asyncio.sleep(run_.chance.random() * 0.02)
            writer.transport.abort()
            run_.statuses["hung up"] += 1
        except OSError as error:
            run_.wrong.append(f"hanging up: {error}")
        await asyncio.sleep(3 * PAUSE_S)


async def strangers(run_: Run, agents: Sequence[Agent]) -> None:
    """Say nonsense to the agents."""
    while run_.goes_on():
        agent = run_.chance.choice(agents)
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", agent.port)
            writer.write(run_.chance.randbytes(run_.chance.randrange(1, 200)))
            await writer.drain()
            writer.close()
        except OSError:
            run_.statuses["stranger before a closed door"] += 1
        await asyncio.sleep(10 * PAUSE_S)


async def restarts(run_: Run, agents: Sequence[Agent]) -> None:
    """End one agent after the other, gently and not, and start it again."""
    number = 0
    while not run_.in_last_third():
        await asyncio.sleep(min(RESTART_EVERY_S, max(0.1, (run_.until - run_.began) / 20)))
        if run_.in_last_third():
            break
        agent, with_signal = run_.chance.choice(agents), (signal.SIGKILL, signal.SIGTERM)[number % 2]
        status = await asyncio.to_thread(agent.end, with_signal)
        expected = 0 if with_signal == signal.SIGTERM else -signal.SIGKILL
        if status != expected:
            run_.wrong.append(f"an agent ended with status {status}")
        await asyncio.to_thread(agent.start)
        run_.statuses[f"agent ended by {with_signal.name}"] += 1
        number += 1


async def operator(run_: Run, state_dir: Path) -> None:
    """Revoke one certificate after the other, and rotate the CA twice."""
    kinds = ["p384", "p256"]
    while run_.goes_on():
        await asyncio.sleep(min(REVOKE_EVERY_S, (run_.until - run_.began) / 20))
        share_of_time = (time.monotonic() - run_.began) / (run_.until - run_.began)
        if kinds and share_of_time > 0.3 * (3 - len(kinds)):
            command = ["vmi-agent", "ca", "rotate", "--state-dir", str(state_dir), "--key-type", kinds.pop()]
            run_.rotations += 1
        else:
            listed = ["vmi-agent", "certs", "list", "--state-dir", str(state_dir), "--json"]
            rows = json.loads((await asyncio.to_thread(run, *listed, "--status", "valid", "--limit", "1")).stdout)
            if not rows:
                continue
            [serial] = (row["serial"] for row in rows)
            run_.revoked.add(serial)
            command = ["vmi-agent", "certs", "revoke", serial, "--state-dir", str(state_dir)]
        done = await asyncio.to_thread(run, *command)
        run_.statuses[" ".join(command[1:3])] += 1
        if done.returncode:
            run_.wrong.append(f"{command[1:3]}: {done.stderr}")


async def look(run_: Run, processes: Callable[[], dict[str, Process]]) -> dict[str, list[tuple[int, int]]]:
    """Return the footprints of the last third: a few, evenly, under load."""
    seen: dict[str, list[tuple[int, int]]] = {}
    step = max(0.5, (run_.until - run_.began) / 30)
    while run_.goes_on():
        await asyncio.sleep(step)
        if run_.in_last_third():
            for name, process in processes().items():
                if (taken := footprint(process)) is not None:
                    seen.setdefault(name, []).append(taken)
    return seen


async def everything(run_: Run, agents: Sequence[Agent], proxy: Process) -> dict[str, list[tuple[int, int]]]:
    """Run it all until the end."""
    hmcs = [Hmc(run_.port, address) for address in ADDRESSES]

    def processes() -> dict[str, Process]:
        named = {f"agent {number}": agent.process for number, agent in enumerate(agents) if agent.process is not None}
        return {**named, "proxy": proxy}

    looking = asyncio.create_task(look(run_, processes))
    work: list[Coroutine[Any, Any, None]] = [good(run_, hmcs[number % len(hmcs)]) for number in range(STREAMS)]
    work += [bad(run_, Hmc(run_.port, "127.0.0.20")), hang_up(run_, "127.0.0.30"), strangers(run_, agents)]
    work += [restarts(run_, agents), operator(run_, agents[0].state_dir)]
    await asyncio.gather(*work)
    return await looking


def check_promises(run_: Run, state_dir: Path) -> None:
    """Hold what the HMCs have against the ledger and the audit."""
    verified = run("vmi-agent", "audit", "verify", "--state-dir", str(state_dir))
    print(verified.stdout.strip() or verified.stderr.strip())
    if verified.returncode:
        run_.wrong.append(f"audit verify: {verified.stderr}")
    exported = run("vmi-agent", "certs", "export", "--state-dir", str(state_dir)).stdout.splitlines()
    in_ledger = Counter(json.loads(line)["certificate"] for line in exported)
    leaves = {split_chain(chain.decode())[0] for chains in run_.received.values() for chain in chains}
    lost = sum(leaf not in in_ledger for leaf in leaves)
    repeated = [chains for chains in run_.received.values() if len(set(chains)) > 1]
    serials = Counter(json.loads(line)["serial"] for line in exported)
    print(
        f"{len(leaves)} certificates received, {len(exported)} in the ledger, {lost} of the first not in the second,"
        f" {sum(count > 1 for count in serials.values())} serials twice;"
        f" {sum(len(chains) > 1 for chains in run_.received.values())} asked again, {len(repeated)} got another one"
        f" ({run_.rotations} rotations and {len(run_.revoked)} revocations may be why)"
    )
    if lost or len(serials) != len(exported):
        run_.wrong.append("promise 1 is broken")
    if len(repeated) > run_.rotations * STREAMS + len(run_.revoked):
        run_.wrong.append("promise 3 is broken")


def check_growth(run_: Run, seen: dict[str, list[tuple[int, int]]]) -> None:
    """Print what the processes took, and judge it."""
    for name, footprints in seen.items():
        (first_kib, first_open), (last_kib, last_open) = footprints[0], footprints[-1]
        most_kib, most_open = (max(each) for each in zip(*footprints, strict=True))
        print(
            f"{name}: resident {first_kib} KiB at the beginning of the last third, {last_kib} at its end, at most"
            f" {most_kib}; descriptors {first_open}, {last_open}, at most {most_open}"
        )
        if last_kib > first_kib + GROWTH_KIB or last_open > first_open + GROWTH_DESCRIPTORS:
            run_.wrong.append(f"{name} grew")


def main() -> int:
    """Run, check, tell; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=time.time_ns() % (1 << 32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        with running(directory, "p256") as (agents, proxy, port):
            print(f"seed {options.seed}, {options.seconds:.0f} s")
            run_ = Run(port, time.monotonic() + options.seconds, random.Random(options.seed))  # noqa: S311  # a plan
            seen = asyncio.run(everything(run_, agents, proxy))
            check_growth(run_, seen)
            if proxy.stop() != 0:
                run_.wrong.append("the proxy did not end well")
        logs = [*proxy.lines, *(line for agent in agents for line in agent.told)]
        for what, count in sorted(run_.statuses.items()):
            print(f"    {count:7} {what}")
        if run_.statuses[f"good: {NO_ANSWER}"]:
            run_.wrong.append("requests without an answer")
        run_.wrong += [line for line in logs if "Traceback" in line]
        print(f"    answers took p50 {share(run_.took_s, 0.5):.3f} s, p99 {share(run_.took_s, 0.99):.3f} s")
        check_promises(run_, directory / "agent")
    for each in run_.wrong[:20]:
        print("WRONG", each)
    return int(bool(run_.wrong))


if __name__ == "__main__":
    sys.exit(main())
