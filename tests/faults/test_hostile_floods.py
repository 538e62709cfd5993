"""Floods against the real process: connections that never ask, bodies that never end, pipelines that nobody reads.

Beside each of them a client from another source asks on new connections, and is answered every time. VMI_FLOOD=10000
opens as many connections as that (2,000 without it, and never more than the limit of open files allows, which is
printed). VMI_HOSTILE=all also waits for bodies that drip, which takes half a minute.
"""

import json
import os
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
from support.csrs import make_csr, pem
from support.processes import IBM_ROOT, IBM_SIGN_CSR, SecurePair, basic, curl, port_of, running_secure_pair
from support.raw_http import answers_in, assert_log_is_clean, connect, cpu_s, descriptors, said, status_kib

from runtime.fd_limit import RESERVED

WANTED = int(os.environ.get("VMI_FLOOD", "2000"))
SOURCES = 25
# Descriptors of this process that are no flood's.
SPARE = 500
# What a connection may take, half of them with TLS, beside what the process had at once.
CONNECTION_KIB = 64
BASE_KIB = 24 * 1024

CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSING = b"Connection: close\r\n"
GET = b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n"
HALF = b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\nX-Half: "
SIGN = b"POST " + IBM_SIGN_CSR.encode() + b" HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/json\r\n"
# The first octets of a ClientHello of 512 octets.
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20)


@pytest.fixture(scope="module")
def connections() -> int:
    """Return how many connections this machine lets a flood have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = hard if soft != resource.RLIM_INFINITY else WANTED + SPARE
    if allowed < soft or soft < WANTED + SPARE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(allowed, WANTED + SPARE), hard))
    found = min(WANTED, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE)
    print(f"{found} connections of {WANTED} wanted")
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, connections: int) -> Iterator[SecurePair]:
    """Yield a secure pair with room for the flood; what it logged is clean at the end."""
    options = ["--anonymous-loopback", "--max-connections", str(connections + 100), "--requests-per-s", "100000"]
    with running_secure_pair(tmp_path_factory.mktemp("floods"), *options) as running:
        assert_served(running)
        yield running
        for process in (running.proxy, running.agent):
            assert_log_is_clean(process)


def statuses(pair: SecurePair, listener: str) -> list[int]:
    """Have the other client ask on a new connection; return what it is answered."""
    with connect(pair, listener, "127.0.0.2") as stream:
        return [status for status, _ in said(stream, [GET + CLOSING + b"\r\n"])]


def assert_served(pair: SecurePair) -> None:
    """The other client asks on new connections, and is answered."""
    for listener in ("http", "https"):
        assert statuses(pair, listener) == [200]


def signed(pair: SecurePair) -> int:
    """Have a CSR signed for the other client; return the status."""
    body = b'{"CsrString":"%b"}' % pem(make_csr()).encode()
    with connect(pair, "http", "127.0.0.2") as stream:
        [(status, _)] = said(stream, [SIGN + CLOSING + b"Content-Length: %d\r\n\r\n" % len(body) + body])
    return status


def is_down_to(pair: SecurePair, count: int) -> bool:
    """Ask until the proxy has no more descriptors than this; it learns of closed connections one after the other."""
    for _ in range(200):
        if descriptors(pair.proxy) <= count:
            assert_served(pair)
            return True
        statuses(pair, "http")  # which there may be no descriptor for as yet
    return False


def flood(pair: SecurePair, connections: int) -> None:
    """Open connections of three kinds from many sources, ask beside them, and close them all."""
    with ExitStack() as stack:
        for number in range(connections):
            kind = number % 3
            stream = connect_plainly(pair, "https" if kind == 2 else "http", f"127.0.1.{number % SOURCES + 1}")
            stack.enter_context(stream)
            # What asked once may idle for a minute, the others have ten seconds.
            stream.sendall((GET + b"\r\n", HALF, HALF_HELLO)[kind])
            if number % 100 == 0:
                assert_served(pair)
        print(f"{descriptors(pair.proxy)} descriptors, {status_kib(pair.proxy, 'VmRSS')} KiB")
        assert signed(pair) == 200


def connect_plainly(pair: SecurePair, listener: str, source: str) -> socket.socket:
    """Connect without beginning TLS."""
    port = port_of(pair.url if listener == "https" else pair.plain_url)
    return socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))


def test_flood_of_connections(pair: SecurePair, connections: int) -> None:
    """Idle ones, half headers and half handshakes harm nobody, and leave neither descriptors nor memory behind."""
    open_before, memory_before = descriptors(pair.proxy), status_kib(pair.proxy, "VmRSS")
    flood(pair, connections)
    assert is_down_to(pair, open_before)
    peak = status_kib(pair.proxy, "VmHWM")
    assert peak - memory_before < BASE_KIB + connections * CONNECTION_KIB

    flood(pair, connections // 4)
    assert is_down_to(pair, open_before)
    # What the first flood took is used again: the second one needs nothing.
    assert status_kib(pair.proxy, "VmHWM") - peak < BASE_KIB // 3


def test_flood_of_bodies_without_end(pair: SecurePair, connections: int) -> None:
    """Bodies that stop short of their end take no more than there is room for; a small one beside them is signed."""
    before = status_kib(pair.proxy, "VmRSS")
    count = min(connections, 500)
    with ExitStack() as stack:
        for number in range(count):
            stream = stack.enter_context(connect(pair, "http", f"127.0.1.{number % 5 + 1}"))
            stream.sendall(SIGN + b"Content-Length: 65000\r\n\r\n" + b" " * 64_000)
            if number % 100 == 0:
                assert signed(pair) == 200
        assert status_kib(pair.proxy, "VmHWM") - before < BASE_KIB + count * 64


def test_flood_of_pipelines_that_nobody_reads(pair: SecurePair) -> None:
    """Thousands of requests on each of forty connections take what 64 KiB of answers take, and no time of others."""
    before = status_kib(pair.proxy, "VmRSS")
    requests = (GET + b"\r\n") * 1_400
    with ExitStack() as stack:
        streams = []
        for number in range(40):
            stream = stack.enter_context(connect(pair, "http", f"127.0.2.{number + 1}"))
            stream.setblocking(False)
            streams.append(stream)
        for _ in range(10):
            for stream in streams:
                try:
                    stream.send(requests)
                except BlockingIOError:
                    continue
            assert_served(pair)
    assert status_kib(pair.proxy, "VmHWM") - before < 40 * 300


def test_pipeline_that_is_read_slowly(pair: SecurePair) -> None:
    """Whoever reads a pipeline's answers a kilobyte at a time gets all of them, in order."""
    with connect(pair, "https", "127.0.2.9") as stream:
        writer = Thread(target=stream.sendall, args=((GET + b"\r\n") * 299 + GET + CLOSING + b"\r\n",))
        writer.start()
        received = b""
        while data := stream.recv(1_024):
            received += data
        writer.join()
    assert [status for status, _ in answers_in(received)] == [200] * 300
    assert_served(pair)


def drip(stream: socket.socket, octets: bytes, every_s: float) -> bytes:
    """Send an octet at a time until the other side closes, whatever it says meanwhile; return what it said."""
    stream.settimeout(every_s)
    received = b""
    for at in range(len(octets)):
        try:
            stream.sendall(octets[at : at + 1])
            data = stream.recv(65_536)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
            return received
        if not data:
            return received
        received += data
    raise AssertionError("nobody minds")


def test_drips(pair: SecurePair) -> None:
    """Headers, handshakes and bodies that come an octet at a time are ended: the first in 10 s, a body in 30 s."""
    header = HALF + b"a" * 1_000
    cases: dict[str, tuple[Callable[[], socket.socket], bytes, bytes]] = {
        "header": (partial(begun_at, pair, "http", b""), header, b"HTTP/1.1 408 "),
        "header in records": (partial(begun_at, pair, "https", b""), header, b"HTTP/1.1 408 "),
        "second header": (partial(begun_at, pair, "http", GET + b"\r\n"), header, b"HTTP/1.1 408 "),
        "handshake": (partial(connect_plainly, pair, "https", "127.0.0.1"), HALF_HELLO + bytes(400), b""),
    }
    if os.environ.get("VMI_HOSTILE") == "all":
        heads = {"body": SIGN + b"Content-Length: 9999\r\n\r\n", "chunks": SIGN + CHUNKED + b"\r\nfff\r\n"}
        for kind, head in heads.items():
            cases[kind] = (partial(begun_at, pair, "http", head), b" " * 999, b"HTTP/1.1 408 ")
            # Without login it is answered at once, and then ended.
            cases[f"{kind} of nobody"] = (partial(begun_at, pair, "https", head), b" " * 999, b"HTTP/1.1 401 ")
    found: dict[str, bytes] = {}

    def run(name: str, begin: Callable[[], socket.socket], octets: bytes) -> None:
        with begin() as stream:
            found[name] = drip(stream, octets, 0.2)

    threads = [Thread(target=run, args=(name, begin, octets)) for name, (begin, octets, _) in cases.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, (_, _, told) in cases.items():
        assert found[name].startswith(told), name
        assert len(answers_in(found[name])) == bool(told)
    assert_served(pair)


def begun_at(pair: SecurePair, listener: str, octets: bytes) -> socket.socket:
    """Connect, send what comes before the drip, and read its answer if there is one."""
    stream = connect(pair, listener)
    stream.sendall(octets)
    if octets.startswith(b"GET"):
        assert stream.recv(65_536).startswith(b"HTTP/1.1 200 ")
    return stream


# Descriptors


def test_fewer_descriptors_than_connections(tmp_path: Path) -> None:
    """Where the hard limit of open files is too low the proxy says so, takes fewer connections, and serves on."""
    with running_secure_pair(tmp_path, "--max-connections", "1000", open_files=400) as pair, ExitStack() as stack:
        [told] = [line for line in pair.proxy.lines if "fewer connections" in line]
        assert json.loads(told)["allowed"] == 400 - RESERVED
        for number in range(300):
            stack.enter_context(connect_plainly(pair, "http", f"127.0.1.{number % 5 + 1}"))
            if number % 50 == 0:
                assert_served(pair)
        assert descriptors(pair.proxy) < 200
        assert curl(pair.plain_url + IBM_ROOT, *basic(), "--interface", "127.0.0.2").status == 200
        assert_log_is_clean(pair.proxy)


def test_descriptors_run_out(tmp_path: Path) -> None:
    """Without any descriptor left the proxy keeps its agent, does not spin, closes who comes, and then serves again."""
    with running_secure_pair(tmp_path, "--requests-per-s", "100000") as pair:
        assert_served(pair)
        open_now = descriptors(pair.proxy)
        resource.prlimit(pair.proxy.pid, resource.RLIMIT_NOFILE, (open_now + 20, open_now + 20))
        used = cpu_s(pair.proxy)
        with ExitStack() as stack:
            streams = [
                stack.enter_context(connect_plainly(pair, "http", f"127.0.1.{number % 5 + 1}")) for number in range(200)
            ]
            # Those that found no descriptor are told at once.
            ended = sum(is_ended(stream) for stream in streams[100:])
            assert ended == 100
            assert cpu_s(pair.proxy) - used < 2
        assert is_down_to(pair, open_now)
        assert curl(pair.plain_url + IBM_ROOT, *basic()).status == 200
        assert not any('"agent lost"' in line for line in pair.proxy.lines)
        assert_log_is_clean(pair.proxy)
        assert pair.proxy.stop() == 0


def is_ended(stream: socket.socket) -> bool:
    """Return whether the other side closed."""
    try:
        return stream.recv(1) == b""
    except ConnectionResetError:
        return True
