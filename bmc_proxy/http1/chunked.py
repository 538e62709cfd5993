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

_CRLF = b"\r\n"
_NOT_WHOLE = -1
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_EXTENSION = rb"[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,%d})(?:" % SIZE_DIGITS + _EXTENSION + rb")*")
# Nearly every size line: without extensions, and free.
_FREE_LINE = re.compile(rb"([0-9A-Fa-f]{1,%d})\r\n" % FREE_OCTETS)
_TRAILER = re.compile(_TOKEN + rb":[\t \x21-\x7e\x80-\xff]*")
_BARE = re.compile(rb"\r[^\n]|(?<!\r)\n")


class ChunksMalformed(Exception):
    """The octets are no chunked body, or one that another recipient may read otherwise."""


class FramingTooLarge(Exception):
    """Chunk extensions and trailer fields are over their limit."""


def has_bare_line_break(octets: bytes, begin: int, end: int) -> bool:
    """Return whether CR or LF stand alone in this part of octets, which holds no CRLF.

    A CR at the end of the part may still get its LF; what stands before the part is seen.
    """
    return _BARE.search(octets, begin, end) is not None


class ChunkedBody:
    """Decodes one body.

    Each octet is looked at a bounded number of times, however the body is split into chunks and reads.

    Args:
        take: called at most once for each `dataReceived`, with all of the body that it brought.
        finish: called once, with what came behind the body.
        framing_limit: octets of extensions, of needlessly long chunk sizes and of trailer fields.

    Attributes:
        steps: how many chunks, parts of chunks and lines were read; what the decoding cost.
    """

    def __init__(self, take: Callable[[bytes], None], finish: Callable[[bytes], None], framing_limit: int) -> None:
        self._take = take
        self._finish = finish
        self._spare = framing_limit
        self._held = b""  # the beginning of a line, or of the CRLF behind a chunk
        self._searched = 0  # so much of it holds no line break
        self._left = 0
        self._read: Callable[[bytes, int], int] = self._read_size
        self._parts: list[bytes] = []
        self._is_over = False
        self.steps = 0

    def dataReceived(self, data: bytes) -> None:
        """Read octets.

        Raises:
            ChunksMalformed, FramingTooLarge: the body cannot be continued.
        """
        octets = self._held + data if self._held else data
        at = 0
        while at < len(octets) and not self._is_over:
            self.steps += 1
            end = self._read(octets, at)
            if end == _NOT_WHOLE:
                break
            at = end
        self._held = octets[at:]
        if self._parts:
            body, self._parts = b"".join(self._parts), []
            self._take(body)
        if self._is_over:
            self._finish(self._held)

    # Each of these reads from `at` on and returns up to where, or `_NOT_WHOLE`.

    def _read_size(self, octets: bytes, at: int) -> int:
        found = _FREE_LINE.match(octets, at)
        if found is not None:
            begin = found.end()
            end = begin + int(found[1], 16)
            if end > begin and octets[end : end + 2] == _CRLF:
                self._parts.append(octets[begin:end])
                self._searched = 0
                return end + 2
        end = self._end_of_line(octets, at)
        if end == _NOT_WHOLE:
            return end
        found = _SIZE_LINE.fullmatch(octets, at, end)
        if found is None:
            raise ChunksMalformed
        self._charge(end - at - FREE_OCTETS)
        self._left = int(found[1], 16)
        self._read = self._read_octets if self._left else self._read_trailer
        return end + len(_CRLF)

    def _read_octets(self, octets: bytes, at: int) -> int:
        part = octets[at : at + self._left]
        self._parts.append(part)
        self._left -= len(part)
        if not self._left:
            self._read = self._read_end
        return at + len(part)

    def _read_end(self, octets: bytes, at: int) -> int:
        end = at + len(_CRLF)
        if not _CRLF.startswith(octets[at:end]):
            raise ChunksMalformed
        if end > len(octets):
            return _NOT_WHOLE
        self._read = self._read_size
        return end

    def _read_trailer(self, octets: bytes, at: int) -> int:
        end = self._end_of_line(octets, at)
        if end == _NOT_WHOLE:
            return end
        if end == at:
            self._is_over = True
        elif _TRAILER.fullmatch(octets, at, end) is None:
            raise ChunksMalformed
        else:
            self._charge(end - at + len(_CRLF))
        return end + len(_CRLF)

    def _end_of_line(self, octets: bytes, at: int) -> int:
        """Return where the line that begins here ends."""
        # A CR that was the last octet of the read before may have got its LF.
        begin = at + max(0, self._searched - 1)
        end = octets.find(_CRLF, begin)
        length = (len(octets) if end < 0 else end) - at
        if has_bare_line_break(octets, begin, at + length):
            raise ChunksMalformed
        if length > self._spare + FREE_OCTETS:
            raise FramingTooLarge
        self._searched = length if end < 0 else 0
        return end

    def _charge(self, octets: int) -> None:
        self._spare -= max(0, octets)
        if self._spare < 0:
            raise FramingTooLarge
