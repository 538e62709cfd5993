"""The octets of an answer's head (RFC 9112, 4 and 5)."""

import time
from collections.abc import Iterable, Mapping
from functools import lru_cache

from bmc_proxy.api.errors import reason
from bmc_proxy.api.headers import FIXED_HEADERS

# What would end a field and begin another one.
_LINE_BREAKS = str.maketrans("\r\n", "  ")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# RFC 9110, 15.4.5 and 8.6: with these an answer would say something about a body that is not sent.
_OF_A_BODY = frozenset({"Content-Type", "Content-Length"})


def answer_head(
    version: bytes,
    status: int,
    request_id: str,
    length: int,
    headers: Mapping[str, str],
    *,
    closes: bool,
    cookies: Iterable[str] = (),
) -> bytes:
    """Return the status line and all fields of an answer, with the empty line behind them.

    Args:
        length: of the body, which is not sent to a HEAD or with a 304.
        headers: beside those that every answer has, or in their stead.
        closes: the connection ends with this answer.
    """
    fields = _FIXED
    if headers or status == 304:
        fields = _fields({**FIXED_HEADERS, **headers}, _OF_A_BODY if status == 304 else frozenset())
    about = b"" if status == 304 else b"Content-Length: %d\r\n" % length
    ends = b"Connection: close\r\n" if closes else b""
    lines = b"".join(b"Set-Cookie: " + _text(each) + b"\r\n" for each in cookies)
    return b"%b %bDate: %b\r\nX-Request-Id: %b\r\n%b%b%b%b\r\n" % (
        version,
        _status_line(status),
        _date(int(time.time())),
        request_id.encode(),
        about,
        ends,
        lines,
        fields,
    )


def _fields(headers: Mapping[str, str], without: frozenset[str] = frozenset()) -> bytes:
    return b"".join(
        name.encode() + b": " + _text(value) + b"\r\n" for name, value in headers.items() if name not in without
    )


def _text(value: str) -> bytes:
    return value.translate(_LINE_BREAKS).encode()


_FIXED = _fields(FIXED_HEADERS)


@lru_cache(64)
def _status_line(status: int) -> bytes:
    return f"{status} {reason(status)}\r\n".encode()


@lru_cache(1)
def _date(second: int) -> bytes:
    """Return a Date (RFC 9110, 5.6.7)."""
    now = time.gmtime(second)
    day, month = _DAYS[now.tm_wday], _MONTHS[now.tm_mon - 1]
    clock = f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
    return f"{day}, {now.tm_mday:02} {month} {now.tm_year} {clock} GMT".encode()
