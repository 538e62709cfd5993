"""What crash tests have in common: the points, the questions that a client asks, and what must hold afterwards.

`make test` crashes at a few points of each kind, others in every run. All of them:
`VMI_CRASH_POINTS=all pytest --timeout 3600 tests/test_crash_*.py`. A run prints its seed; VMI_CRASH_SEED=… takes the
same points again.
"""

import hashlib
import os
import random
import secrets
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlalchemy import select

from protocol.records import NO_IDEMPOTENCY_KEY, SignCsr, Signed
from runtime.clock import utc_now
from support.agents import create_ca, request
from support.csrs import make_csr
from support.faults import Faults, ForkedProcess
from support.processes import Process, port_of
from support.raw_asker import RawAsker
from vmi_agent.certificate import assemble
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.schema import ISSUED, issuance, reading

# Two cores: while one child starts, another one runs into its end.
AT_ONCE = 2
WHEN = ("before", "after")

_Point = TypeVar("_Point")


@cache
def seed() -> int:
    """Return what this run's choices are made from."""
    return int(os.environ.get("VMI_CRASH_SEED") or secrets.randbelow(1 << 32))


def chosen(points: Sequence[_Point], count: int) -> list[_Point]:
    """Return so many of the points, in their order, or all of them where the environment says so."""
    print(f"VMI_CRASH_SEED={seed()}, {len(points)} points")
    if os.environ.get("VMI_CRASH_POINTS") == "all" or len(points) <= count:
        return list(points)
    picked = random.Random(seed()).sample(range(len(points)), count)  # noqa: S311  # not a secret
    return [points[n] for n in sorted(picked)]


def at_each(points: Sequence[_Point], crash: Callable[[_Point], object]) -> None:
    """Crash at each point, a few at once; say at which one it went wrong."""

    def told(point: _Point) -> None:
        try:
            crash(point)
        except BaseException as error:
            error.add_note(f"at {point}; VMI_CRASH_SEED={seed()}")
            raise

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(told, point) for point in points]:
            done.result()


@cache
def questions() -> tuple[SignCsr, ...]:
    """Return what the client asks: two CSRs, the second with an Idempotency-Key, and that one's CSR as another user."""
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hmc{n}")]) for n in range(2)]
    first, second = (make_csr(subject=name) for name in names)
    key = hashlib.sha256(b"key").digest()[: len(NO_IDEMPOTENCY_KEY)]
    return request(first), request(second, key=key), request(second, user="hmc2")


def ask(port: int, asked: Sequence[SignCsr]) -> list[bytes]:
    """Ask one after another; return the leaves, until the agent is gone."""
    leaves: list[bytes] = []
    with suppress(OSError, AssertionError), RawAsker(port) as asker:
        for each in asked:
            (request_id,) = asker.ask(each)
            answer = asker.answers(len(leaves) + 1).get(request_id)
            if not isinstance(answer, Signed):
                break
            leaves.append(answer.chain[0])
    return leaves


def state_with_ca(directory: Path) -> Path:
    """Return a state directory with a CA that is as good as new."""
    create_ca(directory, now=utc_now())
    return directory


def serve(state: Path, faults: Faults | None = None) -> Process:
    """Start an agent on a free port."""
    listen = ("--listen", "tcp:0:interface=127.0.0.1", "--key-type", "p256")
    command = ("vmi-agent", "serve", "--state-dir", str(state), *listen)
    return faults.start(*command) if faults else ForkedProcess(*command)


def port_of_agent(agent: Process) -> int:
    """Return where a started agent listens."""
    return port_of(agent.wait_for("ready")["listen"][0])


@dataclass(frozen=True, slots=True)
class Kept:
    """What a ledger holds.

    Attributes:
        certificates: all that were issued, in DER, in order.
    """

    certificates: tuple[bytes, ...]


def kept(state: Path) -> Kept:
    """Read a ledger, and fail where its audit is not in order or a serial is there twice."""
    with reading(state) as connection:
        verify(connection)
        rows = connection.execute(select(issuance).order_by(issuance.c.id)).all()
    serials = Counter(row.serial for row in rows)
    assert set(serials.values()) <= {1}
    return Kept(tuple(assemble(row.tbs, row.signature) for row in rows if row.status == ISSUED))


def assert_goes_on(state: Path, received: Sequence[bytes], asked: Sequence[SignCsr]) -> None:
    """An agent that starts on what was left has what a client received, and answers each question with one."""
    with serve(state) as agent:
        port = port_of_agent(agent)
        assert set(received) <= set(kept(state).certificates)
        leaves = ask(port, asked)
        assert leaves[: len(received)] == list(received)
        assert Counter(kept(state).certificates) == Counter(leaves)
        assert len(set(leaves)) == len(asked)
        assert agent.stop(signal.SIGTERM) == 0
    assert "Traceback" not in "".join(agent.lines)
    kept(state)


def begin(directory: Path, state: Path) -> Faults:
    """Return the faults of the processes that use a copy of a state directory, which is at `under`."""
    directory.mkdir()
    shutil.copytree(state, directory / state.name)
    return Faults(directory / state.name, directory)


def crash_command(
    directory: Path, state: Path, command: Sequence[str], check: Callable[[Path], None], count: int, stdin: str = ""
) -> None:
    """Kill a command before and after each of its steps, and look at what it left each time.

    Args:
        directory: for copies of `state`; the command is run with `--state-dir` of one.
        check: is given the copy, and fails where it is not in order.
        count: how many points `make test` takes.
    """
    faults = begin(directory / "whole", state)
    done = faults.run(*command, "--state-dir", str(faults.under), stdin=stdin)
    assert done.returncode == 0, done.stderr
    steps = len(faults.calls())
    assert steps

    def crash(point: tuple[str, int]) -> None:
        when, step = point
        faults = begin(directory / f"{when}-{step}", state)
        faults.kill(when, step)
        done = faults.run(*command, "--state-dir", str(faults.under), stdin=stdin)
        assert done.returncode == -signal.SIGKILL, done
        faults.stop()
        check(faults.under)

    at_each(chosen([(when, step) for step in range(1, steps + 1) for when in WHEN], count), crash)
