"""Writing a large body at the pace at which the client reads: what is in memory once serves all who read it."""

from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

SLICE = 32 * 1024


@implementer(IPushProducer)
class Pouring:
    """Writes slices until told to pause, and goes on when told to.

    Args:
        body: what is to be written; never copied as a whole.
        write: takes a slice.
        done: called once, after the last slice.
    """

    def __init__(self, body: bytes, write: Callable[[bytes], None], done: Callable[[], None]) -> None:
        self._rest = memoryview(body)
        self._write = write
        self._done = done
        self._is_paused = True

    def pauseProducing(self) -> None:
        """What is written is not taken at the moment."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """What was written is taken: write more."""
        self._is_paused = False
        while self._rest and not self._is_paused:
            part, self._rest = self._rest[:SLICE], self._rest[SLICE:]
            self._write(bytes(part))
            if not self._rest:
                self._done()

    def stopProducing(self) -> None:
        """Nobody reads any more."""
        self._is_paused = True
        self._rest = self._rest[:0]
