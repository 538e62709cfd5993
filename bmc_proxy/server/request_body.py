"""The body of one request: what its octets on the wire cost, and what is kept of them.

Octets of the wire count, not those of the payload: chunk sizes, extensions and trailers are octets as well. In the room
that all bodies share, a read that brings little counts for more than it brings.
"""

from collections.abc import Callable

from bmc_proxy.api.types import CSR_BODY_LIMIT
from bmc_proxy.http1.chunked import ChunkedBody
from runtime.limits.byte_quota import BodyRoom, Holding

# Beside the limit of the body itself: what may frame it.
FRAMING_ALLOWANCE = 8 * 1024
# Chunks are decoded so many octets in a turn of the reactor: a few milliseconds' worth of the smallest ones.
DECODE_AT_ONCE = 16 * 1024
# A read costs more than its octets do, so a small one takes as much of the room as this many.
LEAST_CHARGE = 16


class RequestBody:
    """Reads a body, and keeps it within its limit and the room that all bodies share.

    Args:
        room: for all bodies.
        source: where it comes from.
        length: in octets; None where it comes in chunks.
        framing_limit: see `ChunkedBody`.
        given_up: called once when it is given up.

    Attributes:
        limit: of the payload, in octets.
        octets: what is here of the payload.
        charged: what its octets on the wire have counted for so far.
        is_whole: nothing more belongs to it.
        is_given_up: it is over its limit, or others need its room; nothing of it is kept.
        had_room: others do not need its room.
        is_wanted: what comes is kept.
    """

    def __init__(
        self, room: BodyRoom, source: str, length: int | None, framing_limit: int, given_up: Callable[[], None]
    ) -> None:
        self.limit = CSR_BODY_LIMIT
        self.octets = bytearray()
        self.charged = 0
        self.is_whole = length == 0
        self.is_given_up = False
        self.had_room = True
        self.is_wanted = True
        self._room = room
        # Both refer back to this body or its request, and are forgotten with the last use: no garbage collection.
        self._holding: Holding | None = None if self.is_whole else Holding(source, self._make_room)
        self._given_up: Callable[[], None] | None = given_up
        self._left = length or 0
        self._behind: bytes | None = None
        self._chunks = ChunkedBody(self._keep, self._ends, framing_limit) if length is None else None

    def read(self, octets: bytes) -> bytes:
        """Take a piece of what is here; return the rest: more of the body, for another turn, or what is behind it.

        Chunks of a body that is not wanted are not decoded.

        Raises:
            ChunksMalformed, FramingTooLarge: it cannot be continued.
        """
        at_once = self._left if self._chunks is None else DECODE_AT_ONCE
        part, rest = octets[:at_once], octets[at_once:]
        self._charge(len(part))
        if self._chunks is None:
            self._left -= len(part)
            if self.is_wanted:
                self._keep(part)
            if not self._left:
                self._is_here()
        elif self.is_wanted:
            self._chunks.dataReceived(part)
            if self._behind is not None:
                self._is_here()
                return self._behind + rest
        return rest

    def give_up(self) -> None:
        """Keep nothing of it."""
        given_up = self._given_up
        if given_up is not None:
            self.is_given_up = True
            self.release()
            given_up()

    def release(self) -> None:
        """Forget it: it is answered for, or nobody waits for that any more. May be called again."""
        self.is_wanted = False
        self._given_up = None
        if self._holding is not None:
            self._holding.give_up = None
            self._room.release(self._holding)
            self._holding = None
            self.octets.clear()

    def _charge(self, octets: int) -> None:
        if not self.is_wanted or self._holding is None:
            return
        self.charged += octets
        if self.charged > self.limit + FRAMING_ALLOWANCE:
            self.give_up()
        elif not self._room.take(self._holding, max(octets, LEAST_CHARGE)):
            self._make_room()

    def _keep(self, data: bytes) -> None:
        if len(self.octets) + len(data) > self.limit:
            self.give_up()
        elif self.is_wanted:
            self.octets += data

    def _ends(self, behind: bytes) -> None:
        self._behind = behind

    def _is_here(self) -> None:
        self.is_whole = True
        if self._holding is not None:
            self._holding.give_up = None

    def _make_room(self) -> None:
        """Leave its room to other bodies."""
        self.had_room = False
        self.give_up()
