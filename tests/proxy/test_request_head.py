"""Request heads alone: what they say, what is refused, and that it does not matter how the octets were split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmc_proxy.http1.request_head import Head, HeadReader, HeadRefused

LIMIT = 200
GET = b"GET / HTTP/1.1\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: b\r\n"

# Octets, and the status with which they are refused.
REFUSED = [
    (b"\r\n\r\n", 400),
    (b"GET /\r\n", 400),
    (b"GET / HTTP/1.1 \r\n", 400),
    (b"GET  / HTTP/1.1\r\n", 400),
    (b"GET / HTTP/2.0\r\n", 400),
    (b"GET / http/1.1\r\n", 400),
    (b"G(T / HTTP/1.1\r\n", 400),
    (b" GET / HTTP/1.1\r\n", 400),
    (b"GET /\xff HTTP/1.1\r\n", 400),
    (b"GET / HTTP/1.1\n", 400),
    (b"GET / HTTP/1.1\r\r\n", 400),
    (GET + b"no colon\r\n", 400),
    (GET + b": no name\r\n", 400),
    (GET + b"Name : x\r\n", 400),
    (GET + b"A: b\r\n folded: x\r\n", 400),
    (GET + b"A: b\0c\r\n", 400),
    (GET + b"A: b\rc\r\n", 400),
    (GET + b"A: b\nc\r\n", 400),
    (POST + b"Content-Length: \r\n", 400),
    (POST + b"Content-Length: -1\r\n", 400),
    (POST + b"Content-Length: +1\r\n", 400),
    (POST + b"Content-Length: 1, 1\r\n", 400),
    (POST + b"Content-Length: 0000000000000000001\r\n", 400),
    (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n", 400),
    (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
    (POST + b"Transfer-Encoding: identity\r\n", 400),
    (POST + b"Transfer-Encoding: chunked, gzip\r\n", 400),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n", 501),
    (POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n", 400),
    (b"GET /" + b"a" * LIMIT, 414),
    (GET + b"A: " + b"b" * LIMIT, 431),
    (GET + b"A: b\r\n" * LIMIT, 431),
]


def read(octets: bytes, step: int) -> tuple[Head, bytes]:
    """Give octets to a reader, some at a time; return the head and what is behind it."""
    reader, held = HeadReader(LIMIT), b""
    for at in range(0, len(octets), step):
        held += octets[at : at + step]
        held = held[reader.read(held) :]
    assert reader.is_whole
    assert reader.head is not None
    return reader.head, held


@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize(("octets", "status"), REFUSED)
def test_head_that_has_no_one_meaning_is_refused(octets: bytes, status: int, step: int) -> None:
    """However it is split, it gets its status, and at the latest with its last octet."""
    with pytest.raises(HeadRefused) as refused:
        read(octets, step)

    assert refused.value.problem.status == status


@given(st.integers(1, 60), st.booleans())
def test_head_says_the_same_however_it_is_split(step: int, begins_empty: bool) -> None:
    """Names in any case, white space around values, one empty line before the first, and what is behind is left."""
    octets = (
        b"\r\n" * begins_empty + b"POST /a?b HTTP/1.1\r\nHOST:b\r\nA: 1\r\na:\t 2 \r\nContent-Length: 04\r\n\r\nbody"
    )
    head, behind = read(octets, step)

    assert (head.method, head.target, head.version, head.length) == (b"POST", b"/a?b", b"HTTP/1.1", 4)
    assert (head.values(b"host"), head.values(b"a"), head.values(b"x")) == ([b"b"], [b"1", b"2"], ())
    assert b"a" in head
    assert b"x" not in head
    assert behind == b"body"


def test_head_of_the_limit_is_read_and_of_one_octet_more_is_not() -> None:
    """The limit counts all octets of the head, the line breaks among them."""
    octets = GET + b"A: " + b"b" * (LIMIT - len(GET) - len(b"A: \r\n\r\n")) + b"\r\n\r\n"
    assert len(octets) == LIMIT
    read(octets, LIMIT)
    with pytest.raises(HeadRefused):
        read(octets.replace(b"A: ", b"A: b"), LIMIT)


@pytest.mark.parametrize(
    ("lines", "keeps_alive"),
    [
        (b"", True),
        (b"Connection: keep-alive\r\n", True),
        (b"Connection: Close\r\n", False),
        (b"Connection: x, close\r\n", False),
        (b"Connection: x\r\nConnection: close,y\r\n", False),
        (b"Connection: closed\r\n", True),
    ],
)
def test_connection_outlives_what_does_not_say_close(lines: bytes, keeps_alive: bool) -> None:
    """HTTP/1.1 lives on unless `close` is among the options; HTTP/1.0 does not."""
    head, _ = read(GET + lines + b"\r\n", 7)
    assert head.keeps_alive is keeps_alive
    old, _ = read(GET.replace(b"1.1", b"1.0") + lines + b"\r\n", 7)
    assert not old.keeps_alive


def test_chunked_body_has_no_length() -> None:
    """The one coding that is known."""
    head, _ = read(POST + b"Transfer-Encoding: Chunked\r\n\r\n", 5)
    assert head.length is None
