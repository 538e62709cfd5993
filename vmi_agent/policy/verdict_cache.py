"""What was found out once about something that its hash names, kept for the next time."""

from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class Verdicts(Generic[V]):
    """A bounded map from a SHA-256 to a verdict that forgets what was asked for longest ago. Safe for use by threads.

    Args:
        most: how many verdicts are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._found: OrderedDict[bytes, V] = OrderedDict()

    def get(self, sha256: bytes) -> V | None:
        """Return the verdict, or None where there is none (any more)."""
        with self._lock:
            verdict = self._found.get(sha256)
            if verdict is not None:
                self._found.move_to_end(sha256)
            return verdict

    def put(self, sha256: bytes, verdict: V) -> None:
        """Keep a verdict."""
        with self._lock:
            self._found[sha256] = verdict
            self._found.move_to_end(sha256)
            if len(self._found) > self._most:
                self._found.popitem(last=False)

    def __len__(self) -> int:
        return len(self._found)
