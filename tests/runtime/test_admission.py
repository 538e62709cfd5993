"""Admission: bounded, fair, one at a time for the same question, and no wait that cannot end well."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial

import pytest
from twisted.internet.task import Clock

from runtime.limits.admission import LEAST_OCTETS, Admission, Entrant


@dataclass
class Door:
    """An admission with so much room, and what became of who came."""

    room: int
    limit: int
    clock: Clock = field(default_factory=Clock)
    started: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admission = Admission(self.clock.seconds, self.has_room, self.limit)
        self.entrants: dict[str, Entrant] = {}

    def has_room(self) -> bool:
        """Return whether less than `room` are under way."""
        return self.admission.under_way < self.room

    def enter(
        self, name: str, who: str = "somebody", question: Hashable = None, within_s: float = 30, octets: int = 1
    ) -> None:
        """Somebody comes."""

        def refuse(wait_s: float) -> None:
            self.refused.append(name)
            self.waits.append(wait_s)

        deadline = self.clock.seconds() + within_s
        self.entrants[name] = Entrant((who,), octets, deadline, lambda: self.started.append(name), refuse, question)
        self.admission.enter(self.entrants[name])

    def leave(self, name: str) -> None:
        """Somebody is answered."""
        self.admission.leave(self.entrants[name])


def test_admission_at_its_limit() -> None:
    """As many as there is room for start, as many as the limit wait, one more is refused; each answer lets one in."""
    door = Door(room=1, limit=2)
    for name in "abcd":
        door.enter(name)
    assert (door.started, door.refused, door.admission.waiting) == (["a"], ["d"], 2)

    door.leave("a")
    door.enter("e")
    assert (door.started, door.refused, door.admission.waiting) == (["a", "b"], ["d"], 2)


def test_admission_with_a_limit_of_octets() -> None:
    """What waits holds no more octets than it may, however few they are."""
    door = Door(room=0, limit=2)
    door.enter("fits", octets=LEAST_OCTETS)
    door.enter("does not", octets=1)

    assert (door.refused, door.admission.held_octets) == (["does not"], LEAST_OCTETS)


def test_admission_lets_the_same_question_through_one_by_one() -> None:
    """A repetition starts when the one before it has left, in order; other questions do not wait."""
    door = Door(room=9, limit=9)
    for name in "abc":
        door.enter(name, who="same", question="same")
    door.enter("other", who="same2", question="other")
    assert door.started == ["a", "other"]

    door.leave("a")
    assert door.started == ["a", "other", "b"]
    door.leave("b")
    door.leave("other")
    door.leave("c")
    assert door.started == ["a", "other", "b", "c"]
    assert (door.admission.under_way, door.admission.waiting) == (0, 0)
    door.enter("d", question="same")
    assert door.started[-1] == "d"


def test_admission_refuses_the_flood_and_not_who_asks_now_and_then() -> None:
    """Where all places are taken by one, another one's first request takes the place of the flood's last."""
    door = Door(room=1, limit=3)
    for number in range(10):
        door.enter(f"flood {number}", who="flood")
    assert len(door.refused) == 6

    door.enter("quiet", who="quiet")
    assert door.refused[-1] == "flood 3"
    door.leave("flood 0")
    door.leave("flood 1")
    assert door.started == ["flood 0", "flood 1", "quiet"]


def test_admission_forgets_who_does_not_want_to_wait() -> None:
    """Who withdraws frees its place and never starts; who has started cannot withdraw."""
    door = Door(room=1, limit=1)
    for name in "ab":
        door.enter(name)
    assert not door.admission.withdraw(door.entrants["a"])
    assert door.admission.withdraw(door.entrants["b"])

    door.enter("c")
    door.leave("a")
    assert (door.started, door.refused) == (["a", "c"], [])


@pytest.mark.parametrize(("within_s", "is_refused"), [(4.1, False), (3.9, True)])
def test_admission_refuses_at_once_what_would_wait_too_long(within_s: float, is_refused: bool) -> None:
    """By the pace of the last answers; the refusal says how long it would take."""
    door = Door(room=1, limit=99)
    for number in range(20):
        door.enter(f"{number}")
    for number in range(10):
        door.clock.advance(0.4)
        door.leave(f"{number}")  # 4 s for ten, and one half done: ten wait from 9 on, by 0.36 s each

    door.enter("late", within_s=within_s - 4 + 0.36 * 9)
    assert (door.refused == ["late"]) is is_refused
    assert all(3 < wait_s < 4 for wait_s in door.waits)


def test_admission_slows_down_with_who_answers() -> None:
    """Where no answer comes at all, whoever comes later is refused sooner."""
    door = Door(room=1, limit=99)
    for number in range(10):
        door.enter(f"{number}")
    door.clock.advance(2)
    door.enter("in time")
    door.clock.advance(2)
    door.enter("too late")

    assert door.refused == ["too late"]


def test_admission_lets_in_one_after_the_other() -> None:
    """What is answered while it starts lets the next one in, however many wait: one after the other, not nested."""
    door = Door(room=0, limit=5_000)
    left = []

    def start_and_leave(number: int) -> None:
        left.append(number)
        door.admission.leave(entrants[number])

    entrants = [Entrant((), 1, 30.0, partial(start_and_leave, number), door.waits.append) for number in range(5_000)]
    for entrant in entrants:
        door.admission.enter(entrant)
    door.room = 1
    door.admission.let_in()

    assert left == list(range(5_000))
    assert door.admission.under_way == 0
