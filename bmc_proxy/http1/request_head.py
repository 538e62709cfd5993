"""Request heads (RFC 9112, 2 to 6): octets in, a request line, fields and the length of a body out.

Theory of operation. Each line is judged when it is here whole, and once, so that it does not matter how the octets were
split. Whatever leaves room for two readings is refused: another recipient on the way may have taken the other one.
"""

import re
from collections.abc import Iterable, Sequence

from bmc_proxy.api import errors as api_errors
from bmc_proxy.api.types import Problem
from bmc_proxy.http1.chunked import has_bare_line_break

LENGTH_DIGITS = 18
END_OF_LINE = b"\r\n"
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[!-\xb0]+")
# What nearly every request brings, as nearly all spell it.
_KNOWN = {
    name: name.lower()
    for name in (b"Host", b"User-Agent", b"Accept", b"Content-Type", b"Content-Length", b"Connection", b"X-Auth-Token")
}
_FORBIDDEN = re.compile(rb"[\0\r\n]")


class HeadRefused(Exception):
    """The request gets this problem, and its connection ends: where the next one begins is not known."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


class Head:
    """The head of a request, from its first line on.

    Attributes:
        length: octets of the body; 0 where there is none, None for a chunked one.
    """

    __slots__ = ("_fields", "length", "method", "target", "version")

    def __init__(self, method: bytes, target: bytes, version: bytes) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.length: int | None = 0
        self._fields: dict[bytes, list[bytes]] = {}

    def add(self, name: bytes, value: bytes) -> None:
        """Take a field; its name in lower case."""
        if name in self._fields:
            self._fields[name].append(value)
        else:
            self._fields[name] = [value]

    def values(self, name: bytes) -> Sequence[bytes]:
        """Return the values of all fields of this name, which is given in lower case, without white space around."""
        return self._fields.get(name, ())

    def names(self) -> Iterable[bytes]:
        """Return the names of all fields, in lower case."""
        return self._fields

    def __contains__(self, name: bytes) -> bool:
        return name in self._fields

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection is to outlive this request."""
        if self.version != b"HTTP/1.1":
            return False
        if b"connection" not in self._fields:
            return True
        options = b",".join(self._fields[b"connection"]).lower().split(b",")
        return b"close" not in (option.strip(b" \t") for option in options)

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for a word before it sends the body (RFC 9110, 10.1.1)."""
        expected = self._fields.get(b"expect")
        return expected is not None and expected[0].lower() == b"100-continue" and self.version == b"HTTP/1.1"


class HeadReader:
    """Reads one head.

    Args:
        limit: of the whole head, in octets.

    Attributes:
        head: what is known of it; None before its first line.
        is_whole: nothing more belongs to it.
    """

    __slots__ = ("_has_length", "_is_skipped", "_limit", "_octets", "_searched", "head", "is_whole")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._octets = 0
        self._searched = 0  # so much of what is left over holds no line break
        self._is_skipped = False
        self._has_length = False
        self.head: Head | None = None
        self.is_whole = False

    def read(self, octets: bytes) -> int:
        """Read the lines that are here whole; return how many octets they were.

        Args:
            octets: from where the last call ended; what is left over is to be given again, with more behind it.

        Raises:
            HeadRefused: what it says cannot be answered.
        """
        at = 0
        # A CR that was the last octet of the read before may have got its LF.
        begin = max(0, self._searched - 1)
        while not self.is_whole:
            end = octets.find(END_OF_LINE, begin)
            if end < 0:
                self._judge_rest(octets, at, begin)
                break
            line, at = octets[at:end], end + len(END_OF_LINE)
            begin = at
            self._octets += len(line) + len(END_OF_LINE)
            if self._octets > self._limit:
                raise HeadRefused(self._too_large())
            if self.head is None:
                self._before(line)
            elif line:
                self._field(self.head, line)
            else:
                self.is_whole = True
        return at

    def _judge_rest(self, octets: bytes, at: int, begin: int) -> None:
        """Refuse the beginning of a line, at `at`, where none can come of it; what stands before `begin` was judged."""
        self._searched = len(octets) - at
        if self._octets + self._searched > self._limit:
            raise HeadRefused(self._too_large())
        if has_bare_line_break(octets, begin, len(octets)):
            # It would wait for a CRLF that whoever ends lines otherwise never sends (RFC 9112, 2.2).
            raise HeadRefused(api_errors.not_http())

    def _too_large(self) -> Problem:
        """RFC 9112, 3: over the limit, perhaps with the first line already."""
        limit = self._limit
        return api_errors.target_too_long(limit) if self.head is None else api_errors.header_too_large(limit)

    def _before(self, line: bytes) -> None:
        """Take the first line, or one empty line before it (RFC 9112, 2.2)."""
        if line or self._is_skipped:
            self.head = _first_line(line)
        self._is_skipped = True

    def _field(self, head: Head, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        # A line that is folded as long ago (RFC 9112, 5.2) begins with what is in no name.
        known = _KNOWN.get(name)
        if not colon or _FORBIDDEN.search(value) or (known is None and _TOKEN.fullmatch(name) is None):
            raise HeadRefused(api_errors.not_http())
        name, value = known or name.lower(), value.strip(b" \t")
        if name == b"content-length":
            self._announce(head, _length_of(value))
        elif name == b"transfer-encoding":
            # RFC 9112, 6.1: whoever speaks HTTP/1.0 knows no codings, and may have sent on what it did not understand.
            if value.lower() != b"chunked" or head.version == b"HTTP/1.0":
                raise HeadRefused(api_errors.unknown_coding() if _ends_in_chunks(value) else api_errors.not_http())
            self._announce(head, None)
        head.add(name, value)

    def _announce(self, head: Head, length: int | None) -> None:
        """Take down where the body ends, which is said once."""
        if self._has_length:
            raise HeadRefused(api_errors.not_http())
        self._has_length = True
        head.length = length


def _first_line(line: bytes) -> Head:
    """Return the head that a request line begins (RFC 9112, 3)."""
    words = line.split(b" ")
    if len(words) != 3 or words[2] not in VERSIONS:
        raise HeadRefused(api_errors.not_http())
    if _TOKEN.fullmatch(words[0]) is None or _TARGET.fullmatch(words[1]) is None:
        raise HeadRefused(api_errors.not_http())
    return Head(*words)


def _length_of(value: bytes) -> int:
    if len(value) > LENGTH_DIGITS or not value.isdigit():
        raise HeadRefused(api_errors.not_http())
    return int(value)


def _ends_in_chunks(codings: bytes) -> bool:
    """Return whether codings that are not known to this proxy leave no doubt where the body ends (RFC 9112, 6.1)."""
    *others, last = (coding.strip(b" \t").lower() for coding in codings.split(b","))
    return last == b"chunked" and b"chunked" not in others and all(others) and bool(others)
