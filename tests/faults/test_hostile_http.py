"""Hostile HTTP against the real process: framing that two readers may see differently, octets that are no HTTP, bodies.

Every case is said over the plain and the HTTPS listener, and octet by octet, with a second request behind it. Where it
is not certain where the first one ends, the second is never answered: one refusal, and the end (RFC 9112, 6.3 and
11.2). VMI_HOSTILE=all says all cases octet by octet, over HTTPS as well, each octet in a TLS record of its own.
"""

import json
import os
import socket
from collections.abc import Iterator

import pytest
from support.hostile_bodies import BODIES, LOGINS
from support.processes import IBM_SIGN_CSR, SIGN_CSR, SecurePair, running_secure_pair
from support.raw_http import answers_in, assert_log_is_clean, connect, said, status_kib

SAYS_ALL = os.environ.get("VMI_HOSTILE") == "all"
SHORT = 100_000 if SAYS_ALL else 700
MEMORY_KIB = 24 * 1024

GET = b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n"
POST = b"POST " + SIGN_CSR.encode() + b" HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/json\r\n{auth}"
IBM = b"POST " + IBM_SIGN_CSR.encode() + b" HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/json\r\n{auth}"
LOGIN = b"POST /login HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SECOND = b"GET /second HTTP/1.1\r\nHost: bmc\r\nConnection: close\r\n\r\n"

# The second request inside what may be the first one's body.
INSIDE = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SECOND), SECOND)

LENGTHS = [
    b"+5", b"-5", b"0x5", b"5 5", b"5,5", b"5, 5", b"5;", b"", b"1_0", b"1e1", b"5.0", b"\xd9\xa5", b"five", b"9" * 19,
]  # fmt: skip
CODINGS = [
    b"identity", b"gzip", b"chunked, gzip", b"chunked, chunked", b"xchunked", b"chunkedx", b"chunked;q=1", b'"chunked"',
    b"", b"chunked,", b", chunked", b"\x0bchunked", b"chunked\x0c", b"chunked, identity",
]  # fmt: skip
SIZES = [
    b"", b"xyz", b"-1", b"+1", b"0x1", b" 1", b"1 ", b"1;", b"1;=a", b"1; a=\0", b"1;a=\"b", b"1\n", b"1\r", b"1,2",
    b"0" * 17, b"f" * 17, b"1_0", b"\xd9\xa1",
]  # fmt: skip

# What begins, then the statuses of its answers; 404 is the second request's.
CASES: dict[str, tuple[bytes, list[int]]] = {
    # Where the body ends is not certain.
    **{f"length {length[:8]!r}": (POST + b"Content-Length: " + length + b"\r\n\r\n12345", [400]) for length in LENGTHS},
    **{f"coding {each!r}": (POST + b"Transfer-Encoding: " + each + b"\r\n\r\n" + INSIDE, [400]) for each in CODINGS},
    **{f"size {size[:8]!r}": (POST + CHUNKED + b"\r\n" + size + b"\r\na\r\n0\r\n\r\n", [400]) for size in SIZES},
    "length, then coding": (POST + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n", [400]),
    "coding, then length": (POST + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n", [400]),
    "coding, then length of nothing": (POST + CHUNKED + b"Content-Length: 0\r\n\r\n0\r\n\r\n", [400]),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345", [400]),
    "one length twice": (POST + b"Content-Length: 5\r\ncontent-length: 5\r\n\r\n12345", [400]),
    "length of nothing, then another": (POST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n12345", [400]),
    "two codings": (POST + CHUNKED + CHUNKED + b"\r\n" + INSIDE, [400]),
    "coding in HTTP/1.0": ((POST + CHUNKED + b"\r\n" + INSIDE).replace(b"HTTP/1.1", b"HTTP/1.0", 1), [400]),
    "coding that is not known": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + INSIDE, [501]),
    "space before the colon of a coding": (POST + b"Transfer-Encoding : chunked\r\n\r\n" + INSIDE, [400]),
    "tab before the colon of a coding": (POST + b"Transfer-Encoding\t: chunked\r\n\r\n" + INSIDE, [400]),
    "space before the colon of a length": (POST + b"Content-Length : 5\r\n\r\n12345", [400]),
    "folded coding": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + INSIDE, [400]),
    "folded length": (POST + b"Content-Length: 1\r\n\t0\r\n\r\n1234567890", [400]),
    "folded header": (GET + b"X: a\r\n b\r\n\r\n", [400]),
    "header folded onto the first line": (b"GET / HTTP/1.1\r\n Host: bmc\r\nHost: bmc\r\n\r\n", [400]),
    "coding behind a bare LF": (POST + b"X: a\nTransfer-Encoding: chunked\r\n\r\n" + INSIDE, [400]),
    "coding behind a bare CR": (POST + b"X: a\rTransfer-Encoding: chunked\r\n\r\n" + INSIDE, [400]),
    "coding with a NUL": (POST + b"Transfer-Encoding: chun\0ked\r\n\r\n" + INSIDE, [400]),
    "chunk that is longer than it says": (POST + CHUNKED + b"\r\n1\r\nab\r\n0\r\n\r\n", [400]),
    "chunk that ends in LF": (POST + CHUNKED + b"\r\n1\r\na\n0\r\n\r\n", [400]),
    "extension with a bare LF": (POST + CHUNKED + b"\r\n1;a\nb\r\na\r\n0\r\n\r\n", [400]),
    "trailer that is no header": (POST + CHUNKED + b"\r\n0\r\nno colon\r\n\r\n", [400]),
    "trailer with a NUL": (POST + CHUNKED + b"\r\n0\r\nA: \0\r\n\r\n", [400]),
    "trailer behind a bare LF": (POST + CHUNKED + b"\r\n0\r\nA: b\n\r\n\r\n", [400]),
    "folded trailer": (POST + CHUNKED + b"\r\n0\r\nA: b\r\n c\r\n\r\n", [400]),
    "extension without end": (POST + CHUNKED + b"\r\n1;" + b"a" * 9_000, [431]),
    "chunks with long extensions": (POST + CHUNKED + b"\r\n" + (b"1;" + b"a" * 900 + b"\r\n \r\n") * 10, [431]),
    "trailers without end": (POST + CHUNKED + b"\r\n0\r\n" + b"A: b\r\n" * 2_000, [431]),
    # The framing is certain, and so is what comes behind it.
    "coding between tabs": (POST + b"Transfer-Encoding:\tCHUNKED \t\r\n\r\n2\r\n{}\r\n0\r\n\r\n", [400, 404]),
    "length between tabs": (POST + b"Content-Length:\t0002 \t\r\n\r\n{}", [400, 404]),
    "extensions": (POST + CHUNKED + b'\r\n2;a;b=c ; d="\\"e;"\r\n{}\r\n00;x\r\n\r\n', [400, 404]),
    "trailers": (POST + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nContent-Length: 9\r\nHost: x\r\n\r\n", [400, 404]),
    "empty line before": (b"\r\n" + GET + b"\r\n", [200, 404]),
    "body of a GET": (GET + b"Content-Length: %d\r\n\r\n" % len(SECOND) + SECOND, [200, 404]),
    "chunked body of a GET": (GET + CHUNKED + b"\r\n" + INSIDE, [200, 404]),
    "body of what is at no path": (b"POST /none HTTP/1.1\r\nHost: b\r\n" + CHUNKED + b"\r\n" + INSIDE, [404]),
    "no more after HTTP/1.0": (b"GET /redfish/v1/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", [200]),
    "no more after close": (GET + b"Connection: close\r\n\r\n", [200]),
    "no more after close among others": (GET + b"Connection: TE,close\r\n\r\n", [200]),
    "no more after close in a second line": (GET + b"Connection: x\r\nConnection:\tCLOSE , y\r\n\r\n", [200]),
    "what is only like close": (GET + b"Connection: closed, xclose\r\n\r\n", [200, 404]),
    "leave to go on, with no body": (GET + b"Expect: 100-continue\r\n\r\n", [200, 404]),
    "leave to go on, with no length": (POST + b"Expect: 100-continue\r\n\r\n", [400, 404]),
    "expectation that is not known": (GET + b"Expect: a-pony\r\n\r\n", [200, 404]),
    "upgrade": (GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n", [200, 404]),
    "upgrade to a socket": (GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", [200, 404]),
    # The first line.
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "HTTP/0.9": (b"GET /redfish/v1/\r\n\r\n", [400]),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: bmc\r\n\r\n", [400]),
    "http/1.1": (b"GET / http/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "HTTP/01.1": (b"GET / HTTP/01.1\r\nHost: bmc\r\n\r\n", [400]),
    "no version": (b"GET / \r\nHost: bmc\r\n\r\n", [400]),
    "no target": (b"GET  HTTP/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "tabs for spaces": (b"GET\t/\tHTTP/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "space at the end": (b"GET / HTTP/1.1 \r\nHost: bmc\r\n\r\n", [400]),
    "space at the beginning": (b" GET / HTTP/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "space in the target": (b"GET /a b HTTP/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "method that is no word": (b"GE(T / HTTP/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "NUL in the method": (b"G\0T / HTTP/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "NUL in the target": (b"GET /\0 HTTP/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "CR in the target": (b"GET /\r HTTP/1.1\r\nHost: bmc\r\n\r\n", [400]),
    "LF alone": (b"GET / HTTP/1.1\nHost: bmc\n\n", [400]),
    "LF alone in the first line": (b"GET / HTTP/1.1\nHost: bmc\r\n\r\n", [400]),
    "CR alone": (b"GET / HTTP/1.1\rHost: bmc\r\r", [400]),
    "CR before CRLF": (b"GET / HTTP/1.1\r\r\nHost: bmc\r\n\r\n", [400]),
    "CR CR LF at the end": (GET + b"\r\r\n", [400]),
    "two empty lines before": (b"\r\n\r\n" + GET + b"\r\n", [400]),
    "octets of TLS": (b"\x16\x03\x01\x02\0\x01\0\r\n", [400]),
    "target outside ASCII": (b"GET /\x80 HTTP/1.1\r\nHost: bmc\r\n\r\n", [400, 404]),
    "target of a tunnel": (b"CONNECT bmc:443 HTTP/1.1\r\nHost: bmc\r\n\r\n", [400, 404]),
    "authority for a target": (b"GET bmc:443 HTTP/1.1\r\nHost: bmc\r\n\r\n", [400, 404]),
    "absolute target": (b"GET HTTPS://other:1/redfish/v1/?a HTTP/1.1\r\nHost: bmc\r\n\r\n", [200, 404]),
    "absolute target of nobody": (b"GET http:///redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n", [400, 404]),
    "absolute target with a user": (b"GET http://a@b/redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n", [400, 404]),
    "absolute target of another scheme": (b"GET file:///etc/passwd HTTP/1.1\r\nHost: bmc\r\n\r\n", [400, 404]),
    "target without a slash": (b"GET redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n", [400, 404]),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: bmc\r\n\r\n", [404, 404]),
    "asterisk with GET": (b"GET * HTTP/1.1\r\nHost: bmc\r\n\r\n", [400, 404]),
    "target without end": (b"GET /" + b"a" * 70_000, [414]),
    "target that is too long": (b"GET /" + b"a" * 8_192 + b" HTTP/1.1\r\nHost: bmc\r\n\r\n", [414]),
    "method without end": (b"A" * 70_000, [414]),
    # Headers.
    "header without a colon": (GET + b"no colon\r\n\r\n", [400]),
    "header without a name": (GET + b": x\r\n\r\n", [400]),
    "space in a name": (GET + b"X Y: 1\r\n\r\n", [400]),
    "NUL in a name": (GET + b"X\0Y: 1\r\n\r\n", [400]),
    "NUL in a value": (GET + b"X: a\0b\r\n\r\n", [400]),
    "CR in a value": (GET + b"X: a\rb\r\n\r\n", [400]),
    "LF in a value": (GET + b"X: a\nb\r\n\r\n", [400]),
    "header without end": (GET + b"X: " + b"a" * 70_000, [431]),
    "a million tiny headers": (GET + b"a:\r\n" * 1_000_000, [431]),
    "headers without end": (GET + b"X: abcdefgh\r\n" * 1_000, [431]),
    "no Host": (b"GET /redfish/v1/ HTTP/1.1\r\n\r\n", [400, 404]),
    "two Hosts": (GET + b"Host: bmc\r\n\r\n", [400, 404]),
    "empty Host": (b"GET /redfish/v1/ HTTP/1.1\r\nHost:\r\n\r\n", [200, 404]),
    "IPv6 Host": (b"GET /redfish/v1/ HTTP/1.1\r\nHost: [fe80::1]:443\r\n\r\n", [200, 404]),
    **{
        f"Host {host!r}": (b"GET /redfish/v1/ HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", [400, 404])
        for host in (b"a b", b"a/b", b"a@b", b"a:b", b"[a", b"a\x80", b"a#b", b"<a>")
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a secure pair whose plain listener is anonymous; what it logged is clean at the end."""
    directory = tmp_path_factory.mktemp("hostile")
    with running_secure_pair(directory, "--anonymous-loopback", "--requests-per-s", "1000000") as running:
        with connect(running, "https") as stream:
            assert [status for status, _ in said(stream, [GET + b"Connection: close\r\n\r\n"])] == [200]
        before = status_kib(running.proxy, "VmHWM")
        yield running
        assert status_kib(running.proxy, "VmHWM") - before < MEMORY_KIB
        for process in (running.proxy, running.agent):
            assert_log_is_clean(process)


@pytest.fixture(scope="module")
def auth(pair: SecurePair) -> bytes:
    """Return the header of a session."""
    return pair.token()[1].encode() + b"\r\n"


@pytest.fixture(scope="module")
def client(pair: SecurePair) -> Iterator[socket.socket]:
    """Yield the connection of another client, on which it asks between all attacks."""
    with connect(pair, "https", "127.0.0.2") as stream:
        yield stream


def is_served(client: socket.socket) -> bool:
    """Return whether the other client is answered."""
    client.sendall(GET + b"\r\n")
    received = b""
    while b"\r\n\r\n" not in received or not answers_in(received)[0][1].endswith(b"}"):
        received += client.recv(65_536)
    return answers_in(received)[0][0] == 200


@pytest.mark.parametrize("listener", ["http", "https"])
@pytest.mark.parametrize("case", CASES)
def test_framing(pair: SecurePair, auth: bytes, client: socket.socket, case: str, listener: str) -> None:
    """Each case has its answers and no others, however its octets are split, and nobody else notices."""
    octets, statuses = CASES[case]
    octets = octets.replace(b"{auth}", auth if listener == "https" else b"") + SECOND
    with connect(pair, listener) as stream:
        assert [status for status, _ in said(stream, [octets])] == statuses
    if len(octets) < SHORT and (SAYS_ALL or listener == "http"):
        with connect(pair, listener) as stream:
            assert [
                status for status, _ in said(stream, (octets[at : at + 1] for at in range(len(octets))))
            ] == statuses
    assert is_served(client)


def with_body(head: bytes, body: bytes) -> bytes:
    """Return a request that is the last one on its connection."""
    return head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("case", BODIES)
def test_csr_body(pair: SecurePair, client: socket.socket, case: str) -> None:
    """Both routes give each body its status, with a code and nothing of the body."""
    body, status = BODIES[case]
    for head in (POST, IBM):
        with connect(pair, "http") as stream:
            [(told, answer)] = said(stream, [with_body(head.replace(b"{auth}", b""), body)])
        assert told == status, head
        if status != 200:
            problem = json.loads(answer)
            code = problem["Code"] if head == IBM else problem["data"]["code"]
            assert code == ("csr.too_large" if status == 413 else "csr.malformed")
            assert len(answer) < 1_000
    assert is_served(client)


@pytest.mark.parametrize("case", LOGINS)
def test_login_body(pair: SecurePair, client: socket.socket, case: str) -> None:
    """A login that cannot be one is refused like any wrong one, or as no login."""
    body, status = LOGINS[case]
    with connect(pair, "http") as stream:
        assert [told for told, _ in said(stream, [with_body(LOGIN, body)])] == [status]
    assert is_served(client)
