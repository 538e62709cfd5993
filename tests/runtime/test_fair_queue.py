"""The fair queue, against a plain list that knows the rules by heart."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.limits.fair_queue import FairQueue, Path

LIMIT, LIMIT_OCTETS = 6, 50
PATHS = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))


class AgainstAList(RuleBasedStateMachine):
    """Items are numbers in the order of their coming; the list holds (path, number, octets)."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(LIMIT, LIMIT_OCTETS)
        self.model: list[tuple[Path, int, int]] = []
        self.count = 0

    @rule(path=PATHS, octets=st.integers(0, 20))
    def put(self, path: Path, octets: int) -> None:
        """What goes is each time the newest of the longest branch of the longest branch."""
        self.count += 1
        self.queue.put(path, self.count, octets)
        self.model.append((path, self.count, octets))

        for removed in self.queue.shed(path):
            assert len(self.model) > LIMIT or sum(octets for *_, octets in self.model) > LIMIT_OCTETS
            [entry] = [entry for entry in self.model if entry[1] == removed]
            (outer, inner), *_ = entry
            outers = Counter(path[0] for path, *_ in self.model)
            inners = Counter(path[1] for path, *_ in self.model if path[0] == outer)
            assert outers[outer] == max(outers.values())
            assert inners[inner] == max(inners.values())
            assert removed == max(number for of, number, _ in self.model if of == entry[0])
            self.model.remove(entry)

    @precondition(lambda self: self.model)
    @rule()
    def take(self) -> None:
        """What comes is the oldest of its path; and who waits is never passed twice by the same branch."""
        taken = self.queue.take()
        [entry] = [entry for entry in self.model if entry[1] == taken]
        assert taken == min(number for path, number, _ in self.model if path == entry[0])
        self.model.remove(entry)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """Who leaves is gone, and leaves once."""
        entry = data.draw(st.sampled_from(self.model))
        assert self.queue.withdraw(entry[0], entry[1])
        assert not self.queue.withdraw(entry[0], entry[1])
        self.model.remove(entry)

    @invariant()
    def counts_agree(self) -> None:
        """Count and octets are those of the list, and within the limits."""
        assert len(self.queue) == len(self.model) <= LIMIT
        assert self.queue.octets == sum(octets for *_, octets in self.model) <= LIMIT_OCTETS
        for path in (("a", "x"), ("b", "z"), ("c", "c")):
            assert 0 <= self.queue.ahead_of(path) <= len(self.model)


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def filled(*paths: str, limit: int = 100) -> FairQueue[str]:
    """Return a queue in which these wait; each path is one of letters, each item its path and number."""
    queue: FairQueue[str] = FairQueue(limit, 1000)
    counts: Counter[str] = Counter()
    for path in paths:
        counts[path] += 1
        queue.put(tuple(path), f"{path}{counts[path]}", 1)
    return queue


def all_taken(queue: FairQueue[str]) -> list[str]:
    """Return everything in the order of the turns."""
    return [queue.take() or "" for _ in range(len(queue))]


def test_queue_takes_turns_at_each_level() -> None:
    """Between addresses first, then between users of one address, and first come first served for each user."""
    queue = filled("ax", "ax", "ax", "ay", "bx")

    assert all_taken(queue) == ["ax1", "bx1", "ay1", "ax2", "ax3"]


@pytest.mark.parametrize("flood", [1, 99])
def test_queue_lets_who_brings_little_wait_one_turn(flood: int) -> None:
    """However much somebody brought before, one turn passes before it is the next one's."""
    queue = filled(*["ax"] * flood, "bx")
    assert queue.ahead_of(("c", "x")) == min(2, flood + 1)

    assert all_taken(queue).index("bx1") == 1


def test_queue_over_its_limit() -> None:
    """The flood loses what it brought last; who brings as much as everybody else and comes last is the one to go."""
    queue = filled("ax", "ax", "bx", limit=3)
    assert queue.shed(("b", "x")) == []

    queue.put(("b", "y"), "by1", 1)
    assert queue.shed(("b", "y")) == ["by1"]
    queue.put(("c", "x"), "cx1", 1)
    assert queue.shed(("c", "x")) == ["ax2"]
    queue.put(("d", "x"), "dx1", 1)
    assert queue.shed(("d", "x")) == ["dx1"]


def test_queue_over_its_octets() -> None:
    """Few that are large have no more room than many that are small."""
    queue: FairQueue[str] = FairQueue(100, 10)
    queue.put(("a",), "small", 4)
    queue.put(("b",), "fits", 6)
    assert queue.shed(("b",)) == []

    queue.put(("b",), "one octet too many", 1)
    assert queue.shed(("b",)) == ["one octet too many"]


def test_queue_passes_over_who_is_not_ready() -> None:
    """The first of a path that is not ready holds up its path, and nobody else."""
    queue = filled("ax", "ay", "bx")
    assert queue.take(lambda item: item != "ax1") == "ay1"
    assert queue.take(lambda item: item != "ax1") == "bx1"
    assert queue.take(lambda item: item != "ax1") is None
    assert queue.take() == "ax1"
    assert queue.take() is None
