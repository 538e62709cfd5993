"""The door to the agents, on a clock that the test moves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.queue import AT_ONE_AGENT, Door
from bmc_proxy.errors import AgentBusy, AgentUnavailable
from runtime.limits.fair_queue import Path


@dataclass
class Entrance:
    """A door, the agents behind it, and what became of who came."""

    limit: int = 2
    connected: int = 1
    room: int = 1000
    clock: Clock = field(default_factory=Clock)
    inside: list[str] = field(default_factory=list)
    ends: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.door = Door(self.clock, self, self.limit)
        self._signing: dict[str, Deferred[None]] = {}
        self._work: dict[str, Deferred[None]] = {}

    def ask(self, name: str, path: Path = ("192.0.2.1", "hmc", 1), within_s: float = 30) -> None:
        """Somebody asks, and is at an agent from its turn until `answer`."""

        async def signed() -> None:
            async with self.door.turn(path, 1000, Deadline.after(self.clock, within_s)):
                self.inside.append(name)
                self._signing[name] = Deferred()
                await self._signing[name]

        def ended(result: object) -> None:
            self.ends[name] = type(result.value) if isinstance(result, Failure) else result

        self._work[name] = Deferred.fromCoroutine(signed())
        self._work[name].addBoth(ended)

    def answer(self, name: str) -> None:
        """An agent answers."""
        self._signing.pop(name).callback(None)

    def hang_up(self, name: str) -> None:
        """Nobody wants the answer any more."""
        self._work[name].cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in [name for name in self._work if name not in self.ends]:
            self.hang_up(name)
        assert self.door.waiting == 0


@contextmanager
def full_entrance(limit: int = 2) -> Iterator[Entrance]:
    """Give one whose agent has as many as it gets."""
    with Entrance(limit) as entrance:
        for number in range(AT_ONE_AGENT):
            entrance.ask(f"{number}")
        assert len(entrance.inside) == AT_ONE_AGENT
        yield entrance


def test_door_gives_an_agent_no_more_than_keeps_it_busy() -> None:
    """The next one waits, those past the limit are refused at once, and an answer lets the first one in."""
    with full_entrance() as entrance:
        for name in "abc":
            entrance.ask(name)
        assert entrance.ends == {"c": AgentBusy}
        assert entrance.door.waiting == 2

        entrance.answer("0")
        assert entrance.inside[-1] == "a"
        assert entrance.ends == {"c": AgentBusy, "0": None}


def test_door_with_an_agent_that_has_no_room() -> None:
    """What the agent does not take waits until it says that it does."""
    with Entrance(room=0) as entrance:
        entrance.ask("a")
        assert entrance.inside == []

        entrance.room = 1
        entrance.door.look()
        assert entrance.inside == ["a"]


def test_door_lets_a_quiet_hmc_pass_a_flood() -> None:
    """An address that asks once is let in next, though another one fills every place."""
    with full_entrance(limit=50) as entrance:
        for number in range(100):
            entrance.ask(f"flood {number}", path=("192.0.2.66", "hmc", number))
        entrance.ask("quiet", path=("192.0.2.2", "hmc", 1))
        entrance.answer("0")
        entrance.answer("1")

        assert "quiet" in entrance.inside
        assert "quiet" not in entrance.ends


def test_door_without_agents() -> None:
    """Nobody waits for an agent that is not there: neither who comes, nor who was waiting when the last one left."""
    with full_entrance() as entrance:
        entrance.ask("waits")
        entrance.connected = 0
        entrance.door.look()
        assert entrance.ends == {"waits": AgentUnavailable}

        entrance.ask("comes")
        assert entrance.ends["comes"] is AgentUnavailable


@pytest.mark.parametrize(("within_s", "is_refused"), [(11, False), (9, True)])
def test_door_refuses_who_would_wait_past_the_deadline(within_s: float, is_refused: bool) -> None:
    """By the pace of the last answers: a turn that comes too late is not waited for."""
    with full_entrance(limit=99) as entrance:
        for number in range(64):
            entrance.ask(f"waiting {number}")
        entrance.clock.advance(10)  # without an answer to any of 64, so the next 64 take as long

        entrance.ask("late", within_s=within_s)
        assert ("late" in entrance.ends) is is_refused


@pytest.mark.parametrize("at", ["waiting", "inside"])
def test_door_forgets_who_hangs_up(at: str) -> None:
    """Whoever hangs up leaves its place to the next one, whether it waited or was at an agent."""
    with full_entrance(limit=1) as entrance:
        entrance.ask("a")
        entrance.hang_up("a" if at == "waiting" else "0")
        entrance.ask("b")

        assert entrance.ends == {"a" if at == "waiting" else "0": CancelledError}
        assert entrance.inside[-1] == ("63" if at == "waiting" else "a")
        assert entrance.door.waiting == 1
