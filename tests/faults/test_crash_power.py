"""An agent whose machine loses its power after each of its steps: what a client received is there, and it goes on.

A process that is killed loses nothing that it wrote; a machine loses what was not synced. One run of a real agent tells
all its steps; what the disk holds after each of them is worked out by `power_loss`, and opened anew.
"""

import random
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from support.agents import Time, always, open_agent, request
from support.crashes import ask, chosen, kept, port_of_agent, questions, seed, serve, state_with_ca
from support.disk_askers import told_by
from support.faults import SYNC, Call, Faults
from support.power_loss import Disk

from protocol.records import SignCsr
from runtime.clock import utc_now
from vmi_agent.ledger.checkpoints import EVERY
from vmi_agent.ledger.schema import FILE_NAME

IN_MAKE_TEST = 20


def receive_in_turn(port: int, faults: Faults, asked: Sequence[SignCsr]) -> list[tuple[int, bytes]]:
    """Ask one after another; return each leaf with how many calls the agent had made when it came."""
    received = []
    for each in asked:
        leaves = ask(port, [each])
        received += [(len(faults.calls()), leaf) for leaf in leaves]
    return received


def assert_found_again(state: Path, had: list[bytes], asked: Sequence[SignCsr]) -> None:
    """The parts of an agent, opened on what was left, have what a client had and answer each question with one."""
    time = Time()
    time.now = utc_now()
    with open_agent(state, time) as agent:
        assert set(had) <= set(kept(state).certificates)
        leaves = [agent.issuing.issue(each, always).chain[0] for each in asked]
    assert leaves[: len(had)] == had
    assert Counter(kept(state).certificates) == Counter(leaves)


def assert_each_loss_is_survived(
    directory: Path, disk: Disk, calls: Sequence[Call], received: Sequence[tuple[int, bytes]], count: int
) -> None:
    """After any of the calls, nothing is lost with what was not synced, whether all of that or some."""
    points = {*chosen(range(1, len(calls) + 1), count), len(calls)}
    chance = random.Random(seed())  # noqa: S311  # not a secret
    for point, call in enumerate(calls, start=1):
        disk.make(call)
        if point not in points:
            continue
        had = [leaf for number, leaf in received if number <= point]
        for luck in (None, chance):
            image = directory / "image"
            disk.write_to(image, luck)
            try:
                assert_found_again(image, had, questions())
            except BaseException as error:
                error.add_note(f"after call {point} of {len(calls)}: {call}, luck {luck}; VMI_CRASH_SEED={seed()}")
                raise
            shutil.rmtree(image)


def test_power_fails_at_a_step_of_an_agent(tmp_path: Path) -> None:
    """From the first start on: whatever of the unsynced got to the disk, nothing that a client has is lost."""
    state = tmp_path / "agent"
    state.mkdir(mode=0o700)
    faults = Faults(state, tmp_path, keep_data=True)
    disk = Disk(state, faults.data)
    with serve(state, faults) as agent:
        received = receive_in_turn(port_of_agent(agent), faults, questions())
        assert agent.stop(signal.SIGTERM) == 0
    assert len(received) == len(questions())
    assert_each_loss_is_survived(tmp_path, disk, faults.calls(), received, IN_MAKE_TEST)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_power_fails_after_a_sync_failed_and_the_agent_was_restarted(tmp_path: Path, end: signal.Signals) -> None:
    """What a failed sync left in the system's cache alone is not built upon: each later certificate is found again."""
    state = state_with_ca(tmp_path / "agent")
    faults = Faults(state, tmp_path, keep_data=True)
    disk = Disk(state, faults.data)
    first, second, third = questions()
    with serve(state, faults) as agent:
        port = port_of_agent(agent)
        received = receive_in_turn(port, faults, [first])
        faults.fail(SYNC, suffix="-wal")
        assert receive_in_turn(port, faults, [second]) == []
        agent.stop(end)
    faults.stop()
    with serve(state, faults) as agent:
        received += receive_in_turn(port_of_agent(agent), faults, [second, third])
        assert len(received) == len(questions())
        agent.stop(signal.SIGKILL)
    assert_each_loss_is_survived(tmp_path, disk, faults.calls(), received, IN_MAKE_TEST)


def test_power_fails_after_a_sync_failed_and_the_agent_went_on(tmp_path: Path) -> None:
    """The agent says once that it cannot write, goes on by itself, and each later certificate is found again."""
    state = state_with_ca(tmp_path / "agent")
    faults = Faults(state, tmp_path, keep_data=True)
    disk = Disk(state, faults.data)
    first, second, third = questions()
    with serve(state, faults) as agent:
        port = port_of_agent(agent)
        received = receive_in_turn(port, faults, [first])
        faults.fail(SYNC)
        assert receive_in_turn(port, faults, [second, third]) == []
        faults.stop()
        received += receive_in_turn(port, faults, [second, third])
        agent.wait_for("ledger cannot be written, nothing is issued")
        agent.wait_for("ledger written again")
        assert len(received) == len(questions())
        agent.stop(signal.SIGKILL)
    assert_each_loss_is_survived(tmp_path, disk, faults.calls(), received, IN_MAKE_TEST // 4)


def test_power_fails_after_a_sync_failed_behind_a_partial_checkpoint(tmp_path: Path) -> None:
    """Pages that may be in the system's cache only end the agent, at once; the next one finds all that was received."""
    state = state_with_ca(tmp_path / "agent")
    faults = Faults(state, tmp_path, keep_data=True)
    disk = Disk(state, faults.data)
    csr = questions()[0].csr
    asked = [request(csr, user=f"hmc{number}") for number in range(4 * EVERY)]
    with serve(state, faults) as agent, closing(sqlite3.connect(state / FILE_NAME, isolation_level=None)) as reader:
        port = port_of_agent(agent)
        received = receive_in_turn(port, faults, asked[:5])
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM issuance").fetchone()
        received += receive_in_turn(port, faults, asked[5 : EVERY // 2 + 5])  # two transactions each
        reader.execute("COMMIT")
        faults.fail(SYNC, suffix=FILE_NAME)
        for each in asked[EVERY // 2 + 5 :]:
            got = receive_in_turn(port, faults, [each])
            if not got:
                break
            received += got
        assert agent.wait() == -signal.SIGKILL
        assert told_by(agent, "ledger's checkpoint failed")
    assert EVERY // 2 + 5 < len(received) < EVERY + 10
    calls = faults.calls()
    faults.stop()
    for call in calls:
        disk.make(call)
    for luck in (None, random.Random(seed())):  # noqa: S311  # not a secret
        image = tmp_path / "image"
        disk.write_to(image, luck)
        time = Time()
        time.now = utc_now()
        with open_agent(image, time):
            assert {leaf for _, leaf in received} <= set(kept(image).certificates)
        shutil.rmtree(image)
