"""Turns of those that write to one ledger: had in turn, and gone without where somebody keeps one."""

import threading
from contextlib import closing
from pathlib import Path

import pytest
from support.agents import Time, open_agent
from support.intents import make_intent

from runtime.file_lock import lock_within, open_lock, try_lock, unlock
from vmi_agent.ledger.issuances import Recorded
from vmi_agent.ledger.write_lock import Turns


def test_turns_are_had_in_turn(tmp_path: Path) -> None:
    """Who has just had its turn and wants another one gets it after whoever waits."""
    order: list[str] = []
    with closing(Turns(tmp_path)) as one, closing(Turns(tmp_path)) as other:

        def wait() -> None:
            with other.take():
                order.append("other")

        waiting = threading.Thread(target=wait)
        with one.take():
            waiting.start()
            with open(open_lock(tmp_path / "ledger.next"), "rb") as queue:
                while try_lock(queue.fileno()):  # nobody waits yet
                    unlock(queue.fileno())
            order.append("one")
        with one.take():
            order.append("one")
        waiting.join()
    assert order == ["one", "other", "one"]


@pytest.mark.parametrize("name", ["ledger.next", "ledger.turn"])
def test_turn_of_a_stopped_process(tmp_path: Path, name: str) -> None:
    """Where a process that has its turn does not go on, the others do without."""
    with open_agent(tmp_path, Time()) as agent, open(open_lock(tmp_path / name), "rb") as stopped:
        assert try_lock(stopped.fileno())
        assert agent.ledger.record_intent(make_intent(1)) == Recorded()


def test_lock_within_its_time(tmp_path: Path) -> None:
    """A lock that somebody else holds is waited for, and no longer than that; one that is let go of is had."""
    with open(open_lock(tmp_path / "lock"), "rb") as one, open(open_lock(tmp_path / "lock"), "rb") as other:
        assert lock_within(one.fileno(), 0)
        assert not lock_within(other.fileno(), 0.01)
        unlock(one.fileno())
        assert lock_within(other.fileno(), 0)
