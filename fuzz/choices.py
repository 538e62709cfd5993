"""Choices: what a structured target reads out of the octets that it is given."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Octets, taken from the front; where they are used up, everything is 0, or empty.

    Taken from the front, the beginning of an input keeps its meaning while the fuzzer changes and lengthens its end.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def number(self, octets: int = 1) -> int:
        """Return a number of so many octets."""
        return int.from_bytes(self.octets(octets).ljust(octets, b"\0"))

    def one_of(self, items: Sequence[T]) -> T:
        """Return one of at most 256 items."""
        return items[self.number() % len(items)]

    def octets(self, count: int) -> bytes:
        """Return the next octets; fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def short(self) -> bytes:
        """Return octets behind one that counts them."""
        return self.octets(self.number())

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.octets(len(self._data))
