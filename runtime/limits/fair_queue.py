"""A bounded queue that is fair between those who fill it, however much each of them brings.

Theory of operation. Who waits is named by a path, such as (address, user, connection). The queue is a tree of such
names; at each level the branches take turns, and within the last one it is first come, first served. So a flood from
one address costs another address one turn, not the flood's length, and the same holds between users of one address and
between connections of one user. Where there are more than the limits allow, the longest branch, level by level, loses
what it brought last: that has waited least, and whoever brings little is never the longest.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Path = tuple[Hashable, ...]


class _Branch(Generic[Item]):
    """One name at one level, with all that waits below it."""

    __slots__ = ("branches", "count", "items")

    def __init__(self) -> None:
        self.count = 0
        self.branches: OrderedDict[Hashable, _Branch[Item]] = OrderedDict()  # whose turn is next comes first
        self.items: deque[tuple[Item, int]] = deque()  # at the last level only, with their octets


class FairQueue(Generic[Item]):
    """What waits, in the order of fair turns.

    Args:
        limit: how many may wait.
        limit_octets: how many octets they may hold together.
    """

    def __init__(self, limit: int, limit_octets: int) -> None:
        self._limit = limit
        self._limit_octets = limit_octets
        self._root: _Branch[Item] = _Branch()
        self.octets = 0

    def __len__(self) -> int:
        return self._root.count

    def ahead_of(self, path: Path) -> int:
        """Return about how many turns pass before it is the turn of who comes next on a path; never too few."""
        turns, branch = 1, self._root
        for name in path:
            turns *= len(branch.branches) + (name not in branch.branches)
            branch = branch.branches.get(name) or _Branch()
        return min(self._root.count, turns * (len(branch.items) + 1) - 1)

    def put(self, path: Path, item: Item, octets: int) -> None:
        """Add what waits; all paths have the same length. Then call `take` as long as somebody can, and `shed`."""
        branch = self._root
        branch.count += 1
        for name in path:
            branch = branch.branches.setdefault(name, _Branch())
            branch.count += 1
        branch.items.append((item, octets))
        self.octets += octets

    def take(self, is_ready: Callable[[Item], bool] = lambda _item: True) -> Item | None:
        """Remove and return whose turn it is; None where nobody waits, or of each path the first is not ready."""
        return self._take(self._root, is_ready)

    def _take(self, branch: _Branch[Item], is_ready: Callable[[Item], bool]) -> Item | None:
        found: Item | None = None
        if branch.items and is_ready(branch.items[0][0]):
            found, octets = branch.items.popleft()
            self.octets -= octets
        for name, below in branch.branches.items():
            found = self._take(below, is_ready)
            if found is not None:
                branch.branches.move_to_end(name)
                if not below.count:
                    del branch.branches[name]
                break  # the order has changed
        if found is not None:
            branch.count -= 1
        return found

    def shed(self, newest: Path) -> list[Item]:
        """Remove and return what is over the limits.

        Args:
            newest: the path of who came last, who goes first where several have brought as much; then whoever has the
                last turn of these.
        """
        removed = []
        while self._root.count > self._limit or self.octets > self._limit_octets:
            removed.append(self._remove_from_longest(newest))
        return removed

    def _remove_from_longest(self, newest: Path) -> Item:
        passed, branch = [], self._root
        for own in newest:
            names = branch.branches
            longest = max(reversed(names), key=lambda name: (names[name].count, name == own))
            passed.append((branch, longest))
            branch = names[longest]
        item, octets = branch.items.pop()
        self._forget_one(passed, branch, octets)
        return item

    def withdraw(self, path: Path, item: Item) -> bool:
        """Remove what does not want to wait any more; return False where it does not wait here."""
        passed, branch = [], self._root
        for name in path:
            if name not in branch.branches:
                return False
            passed.append((branch, name))
            branch = branch.branches[name]
        for at, (waiting, octets) in enumerate(branch.items):
            if waiting is item:
                del branch.items[at]
                self._forget_one(passed, branch, octets)
                return True
        return False

    def _forget_one(self, passed: list[tuple[_Branch[Item], Hashable]], last: _Branch[Item], octets: int) -> None:
        """Count one less in all branches on the way to where it was."""
        self.octets -= octets
        last.count -= 1
        for branch, name in reversed(passed):
            if not branch.branches[name].count:
                del branch.branches[name]
            branch.count -= 1
