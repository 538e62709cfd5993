"""The end of a connection whose client may still be sending.

A socket that is closed while octets wait in it unread resets the connection, and the reset can destroy an answer that
the client has not read yet (RFC 9112, 9.6). So the proxy closes its own direction first, then reads and drops what
still comes, within bounds of octets, reads and time. What is dropped is counted and never decoded.
"""

DISCARD_LIMIT = 4 * 1024 * 1024
# A read costs more than its octets do, so a small one counts as this many.
LEAST_DISCARD = 1024
# How long the client may take to end its side: without sending anything, and in all.
LINGER_IDLE_S = 3.0
LINGER_S = 30.0


class Lingering:
    """What a client may still send on a connection that has had its last answer.

    Args:
        now: seconds, of a clock that goes forward.
        in_all_s: how long it may take, whatever the client sends.

    Attributes:
        due: when the connection is to be cut off, unless octets come first.
    """

    def __init__(self, now: float, in_all_s: float = LINGER_S) -> None:
        self._ends_at = now + in_all_s
        self._left = DISCARD_LIMIT
        self.due = min(self._ends_at, now + LINGER_IDLE_S)

    def drop(self, octets: int, now: float) -> bool:
        """Count a read; return False where the connection is to be cut off now."""
        self._left -= octets if octets > LEAST_DISCARD else LEAST_DISCARD
        self.due = min(self._ends_at, now + LINGER_IDLE_S)
        return self._left >= 0
