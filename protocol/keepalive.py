"""Liveness: when a silent or dawdling peer is asked, and when it is given up (docs/protocol.md, 8).

Arithmetic over times that the caller passes in; whoever owns a `Connection` lends it a clock.
"""

from collections import deque
from dataclasses import dataclass

from protocol.errors import ErrorCode, RemoteProtocolError


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each wait may take, in seconds.

    Attributes:
        hello_s: from the start of the connection to the peer's whole HELLO.
        frame_s: from a frame's first octet to its last.
        silence_s: from the last octet received to a PING.
        pong_s: from a PING to its PONG.
    """

    hello_s: float = 5.0
    frame_s: float = 10.0
    silence_s: float = 15.0
    pong_s: float = 5.0


class Liveness:
    """The four waits of one connection. All times are seconds on the caller's one monotonic clock.

    Attributes:
        heard_at: when the last octets came in.
    """

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self._hello_by: float | None = now + timeouts.hello_s
        self.heard_at = now
        self._frame_by: float | None = None
        self._pongs_by: deque[float] = deque()  # one for each PING without a PONG, oldest first

    def heard(self, now: float) -> None:
        """Octets came in."""
        self.heard_at = now

    def hello(self) -> None:
        """The peer's HELLO is complete."""
        self._hello_by = None

    def ping_sent(self, now: float) -> None:
        """A PING went out: its PONG is due."""
        self._pongs_by.append(now + self._timeouts.pong_s)

    def pong(self) -> None:
        """The PONG of the oldest PING is here."""
        self._pongs_by.popleft()

    def frame_progress(self, mid_frame: bool, completed: bool) -> None:
        """Say where the frame decoder stands after a read was used up.

        Args:
            mid_frame: a frame has begun and is not whole.
            completed: at least one frame became whole since the last call, so what is left began with the last read.
        """
        if not mid_frame:
            self._frame_by = None
        elif completed or self._frame_by is None:
            self._frame_by = self.heard_at + self._timeouts.frame_s

    def next_timer(self) -> float:
        """Return when `expire` wants to be called next."""
        if self._hello_by is None and self._frame_by is None and not self._pongs_by:
            return self.heard_at + self._timeouts.silence_s  # as nearly always
        waits = [wait for wait in (self._hello_by, self._frame_by, *self._pongs_by) if wait is not None]
        if not self._pongs_by and self._hello_by is None:
            waits.append(self.heard_at + self._timeouts.silence_s)
        return min(waits)

    def expire(self, now: float) -> bool:
        """Judge the waits at `now`; return True where a PING is due.

        Raises:
            RemoteProtocolError: TOO_SLOW, with the wait that ran out.
        """
        timeouts = self._timeouts
        for wait_until, what, limit_s in (
            (self._hello_by, "no HELLO", timeouts.hello_s),
            (self._frame_by, "a frame not finished", timeouts.frame_s),
            (self._pongs_by[0] if self._pongs_by else None, "no PONG", timeouts.pong_s),
        ):
            if wait_until is not None and wait_until <= now:
                raise RemoteProtocolError(ErrorCode.TOO_SLOW, f"{what} within {limit_s:g} s")
        return not self._pongs_by and self._hello_by is None and self.heard_at + timeouts.silence_s <= now
