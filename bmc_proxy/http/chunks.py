"""The chunked transfer coding (RFC 9112, 7.1), octets in, a body out; what frames it is checked, bounded and dropped.

    chunk size in hexadecimal [; extensions] CRLF
    as many octets CRLF
    …
    0 [; extensions] CRLF
    [trailer field CRLF …]
    CRLF

Twisted's own decoder keeps every trailer field, of which 64 KiB become more than a megabyte of objects, and reads
extensions without end.
"""

import re
from collections.abc import Callable

SIZE_DIGITS = 16
# A size line of this length is any client's; what is longer is charged.
FREE_OCTETS = 6

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_EXTENSION = rb"[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,%d})(?:" % SIZE_DIGITS + _EXTENSION + rb")*")
_TRAILER = re.compile(_TOKEN + rb":[\t \x21-\x7e\x80-\xff]*")
_BARE = re.compile(rb"\r[^\n]|(?<!\r)\n")


class ChunksMalformed(Exception):
    """The octets are no chunked body, or one that another recipient may read otherwise."""


class FramingTooLarge(Exception):
    """Chunk extensions and trailer fields are over their limit."""


def has_bare_line_break(octets: bytes | bytearray) -> bool:
    """Return whether CR or LF stand alone in octets that hold no CRLF; a CR at their end may still get its LF."""
    return _BARE.search(octets) is not None


class ChunkedBody:
    """Decodes one body.

    Args:
        take: called with each part of the body.
        finish: called once, with what came behind the body.
        framing_limit: octets of extensions, of needlessly long chunk sizes and of trailer fields.
    """

    def __init__(self, take: Callable[[bytes], None], finish: Callable[[bytes], None], framing_limit: int) -> None:
        self._take = take
        self._finish = finish
        self._spare = framing_limit
        self._held = bytearray()
        self._left = 0
        self._read: Callable[[], bool] = self._read_size

    def dataReceived(self, data: bytes) -> None:
        """Read octets.

        Raises:
            ChunksMalformed, FramingTooLarge: the body cannot go on.
        """
        self._held += data
        while self._held and self._read():
            pass

    def _read_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        found = _SIZE_LINE.fullmatch(line)
        if found is None:
            raise ChunksMalformed
        self._charge(len(line) - FREE_OCTETS)
        self._left = int(found[1], 16)
        self._read = self._read_octets if self._left else self._read_trailer
        return True

    def _read_octets(self) -> bool:
        part = bytes(self._held[: self._left])
        del self._held[: self._left]
        self._left -= len(part)
        if not self._left:
            self._read = self._read_end
        self._take(part)
        return True

    def _read_end(self) -> bool:
        if not b"\r\n".startswith(self._held[:2]):
            raise ChunksMalformed
        if len(self._held) < 2:
            return False
        del self._held[:2]
        self._read = self._read_size
        return True

    def _read_trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        if line:
            if _TRAILER.fullmatch(line) is None:
                raise ChunksMalformed
            self._charge(len(line) + len(b"\r\n"))
            return True
        rest = bytes(self._held)
        self._held.clear()
        self._finish(rest)
        return False

    def _line(self) -> bytes | None:
        """Take the next line out; None where it is not here whole."""
        line, end, _ = self._held.partition(b"\r\n")
        if has_bare_line_break(line):
            raise ChunksMalformed
        if len(line) > self._spare + FREE_OCTETS:
            raise FramingTooLarge
        if not end:
            return None
        del self._held[: len(line) + len(end)]
        return bytes(line)

    def _charge(self, octets: int) -> None:
        self._spare -= max(0, octets)
        if self._spare < 0:
            raise FramingTooLarge
