"""Admission: which requests may start, so that work is bounded and no question is worked on twice at once."""

from collections import deque
from collections.abc import Callable, Hashable

Start = Callable[[], None]


class Admission:
    """Count what is under way, and let the same question through one at a time.

    A request that repeats one under way waits for it; when its turn comes, the ledger has the answer.

    Args:
        limit: how many requests may be under way or waiting.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[Hashable, deque[Start]] = {}
        self.admitted = 0

    def enter(self, question: Hashable, start: Start) -> bool:
        """Start the request now, or once those before it with the same question left; False where there is no room."""
        if self.admitted >= self._limit:
            return False
        self.admitted += 1
        waiting = self._waiting.get(question)
        if waiting is not None:
            waiting.append(start)
            return True
        self._waiting[question] = deque()
        start()
        return True

    def leave(self, question: Hashable) -> None:
        """The request that was started last with this question is answered: start the next one."""
        self.admitted -= 1
        waiting = self._waiting[question]
        if waiting:
            waiting.popleft()()
        else:
            del self._waiting[question]
