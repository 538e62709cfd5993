"""The agent's doorway, and log lines that strangers cause."""

from typing import Any

from runtime.limits.connection_limiter import GRACE_S, LIMIT, LIMIT_PER_SOURCE, Doorway, Stranger
from runtime.log_throttle import LINES_AT_ONCE, Sparse


class Door:
    """A doorway, and who was cut."""

    def __init__(self) -> None:
        self.doorway = Doorway()
        self.cut: list[str] = []

    def knock(self, source: str, now: float = 0.0) -> bool:
        """Connect if there is room."""
        if not self.doorway.has_room_for(source, now):
            return False
        self.leave = self.doorway.enter(Stranger(source, now, lambda: self.cut.append(source)))
        return True


def test_source_has_half_of_the_places() -> None:
    """One source has 32 places; one more is refused, or takes the place of one that had a second."""
    door = Door()
    assert all(door.knock("a") for _ in range(LIMIT_PER_SOURCE))

    assert not door.knock("a", GRACE_S - 0.01)
    assert door.cut == []
    assert door.knock("a", GRACE_S)
    assert door.cut == ["a"]


def test_largest_source_makes_room_for_another_one() -> None:
    """Where all 64 places are taken the source that has the most loses its oldest, at once."""
    door = Door()
    for source, count in (("a", LIMIT_PER_SOURCE), ("b", LIMIT - LIMIT_PER_SOURCE - 1), ("c", 1)):
        assert all(door.knock(source) for _ in range(count))

    assert door.knock("d")
    assert door.cut == ["a"]


def test_who_said_hello_takes_no_place() -> None:
    """Whoever left the doorway is not counted, and leaving twice is nothing."""
    door = Door()
    for _ in range(10 * LIMIT):
        assert door.knock("a")
        door.leave()
        door.leave()
    assert door.cut == []


def test_sparse_lines_tell_how_many_were_left_out() -> None:
    """Fifty lines of an event at once, then one a second, which says how many there would have been before it."""
    written: list[dict[str, Any]] = []
    now = [0.0]
    sparse = Sparse(lambda event, **fields: written.append({"event": event, **fields}), lambda: now[0])
    for _ in range(LINES_AT_ONCE + 7):
        sparse("refused", peer="a")
    assert written == [{"event": "refused", "peer": "a"}] * LINES_AT_ONCE
    sparse("another")
    assert written.pop() == {"event": "another"}
    now[0] = 1.0
    sparse("refused", peer="b")
    sparse("refused", peer="c")
    now[0] = 3.0
    sparse("refused", peer="d")

    assert written[LINES_AT_ONCE:] == [
        {"event": "refused", "peer": "b", "left_out_before": 7},
        {"event": "refused", "peer": "d", "left_out_before": 1},
    ]
