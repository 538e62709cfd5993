"""Liveness: when a silent or dawdling peer is asked, and when it is given up (docs/protocol.md, 8).

Arithmetic over times that the caller passes in; whoever owns a `Connection` lends it a clock.
"""

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
    """The four waits of one connection. All times are seconds on the caller's one monotonic clock."""

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self._hello_by: float | None = now + timeouts.hello_s
        self._heard_at = now
        self._frame_by: float | None = None
        self._pong_by: float | None = None

    def heard(self, now: float) -> None:
        """Octets came in."""
        self._heard_at = now

    def hello(self) -> None:
        """The peer's HELLO is complete."""
        self._hello_by = None

    def pong(self) -> None:
        """The PONG that was waited for is here."""
        self._pong_by = None

    def frame_progress(self, mid_frame: bool, completed: bool) -> None:
        """Say where the frame decoder stands after a read was used up.

        Args:
            mid_frame: a frame has begun and is not whole.
            completed: at least one frame became whole since the last call, so what is left began with the last read.
        """
        if not mid_frame:
            self._frame_by = None
        elif completed or self._frame_by is None:
            self._frame_by = self._heard_at + self._timeouts.frame_s

    def next_timer(self) -> float:
        """Return when `expire` wants to be called next."""
        if self._hello_by is None and self._frame_by is None and self._pong_by is None:
            return self._heard_at + self._timeouts.silence_s  # as nearly always
        waits = [wait for wait in (self._hello_by, self._frame_by, self._pong_by) if wait is not None]
        if self._pong_by is None and self._hello_by is None:
            waits.append(self._heard_at + self._timeouts.silence_s)
        return min(waits)

    def expire(self, now: float) -> bool:
        """Judge the waits at `now`; return True where a PING is due, and count it as sent.

        Raises:
            RemoteProtocolError: TOO_SLOW, with the wait that ran out.
        """
        timeouts = self._timeouts
        for wait_until, what, limit_s in (
            (self._hello_by, "no HELLO", timeouts.hello_s),
            (self._frame_by, "a frame not finished", timeouts.frame_s),
            (self._pong_by, "no PONG", timeouts.pong_s),
        ):
            if wait_until is not None and wait_until <= now:
                raise RemoteProtocolError(ErrorCode.TOO_SLOW, f"{what} within {limit_s:g} s")
        if self._pong_by is None and self._hello_by is None and self._heard_at + timeouts.silence_s <= now:
            self._pong_by = now + timeouts.pong_s
            return True
        return False
