"""Clients that do not take their answers: they keep their places only as long as nobody else needs one."""

import json
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread

import pytest
from support.edges import Spoken, edge_in
from support.hostile_agents import fetched, hostile_agent, proxy_to
from support.processes import Process, port_of
from support.raw_http import assert_log_is_clean
from twisted.internet.task import Clock

from bmc_proxy.server.connection import STALLED_AFTER_S
from runtime.limits.crowd import Crowd, Member

CRL = bytes(at % 251 for at in range(4_000_000))
GET = b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n"
GET_CRL = b"GET /pki/1.crl HTTP/1.1\r\nHost: bmc\r\n\r\n"
LIMIT = 8
PATIENCE_S = 30.0


class Places:
    """A crowd with room for four, two of a source, and what was ended in it."""

    def __init__(self) -> None:
        self.crowd = Crowd(4)
        self.ended: list[str] = []
        self.worths: dict[str, float] = {}

    def enter(self, name: str, source: str, worth: float) -> bool:
        """Enter if there is room; what it is worth may change."""
        if not self.crowd.has_room_for(source):
            return False
        self.worths[name] = worth
        self.crowd.enter(Member(source, lambda: self.worths[name], lambda: self.ended.append(name)))
        return True


def test_longest_stall_ends_first() -> None:
    """Of the largest source the one that has taken nothing for the longest ends first, before what idles."""
    places = Places()
    for name, source, worth in (("idle", "a", 0), ("short", "a", -2.5), ("long", "b", -9), ("busy", "b", 2)):
        assert places.enter(name, source, worth)
    assert places.enter("c", "c", 2)
    assert places.enter("d", "d", 2)
    assert places.ended == ["short", "long"]


def test_source_makes_room_for_itself_by_its_stalled_ones() -> None:
    """A source that has all of its places gets another one for a connection that takes nothing, for no other."""
    places = Places()
    assert places.enter("first", "a", 0)
    assert places.enter("second", "a", 2)
    assert not places.enter("third", "a", 2)
    places.worths["second"] = -3.0
    assert places.enter("third", "a", 2)
    assert places.ended == ["second"]


def choke(spoken: Spoken) -> None:
    """Say that what was written is not taken, as a full transport does."""
    spoken.channel.pauseProducing()  # type: ignore[attr-defined]  # it is a producer


@pytest.mark.parametrize("asked", [GET, b"", GET * 50])
def test_connection_is_worth_nothing_while_it_takes_nothing(tmp_path: Path, asked: bytes) -> None:
    """From 2 s without anything being taken on a connection makes room; once it is taken it does not any more."""
    clock = Clock()
    edge = edge_in(tmp_path, limit=2, requests_per_s=1_000_000, clock=clock)
    spoken = edge.connect("192.0.2.1")
    spoken.say(asked)
    choke(spoken)
    crowd = edge.site.edge.crowd
    [member] = crowd._sources["192.0.2.1"].values()
    clock.advance(STALLED_AFTER_S)
    assert member.worth() >= 0
    clock.advance(0.5)
    assert member.worth() == -(STALLED_AFTER_S + 0.5)
    spoken.channel.resumeProducing()  # type: ignore[attr-defined]  # it is a producer
    assert member.worth() >= 0


# Real sockets


def connect(url: str, source: str) -> socket.socket:
    """Connect from an address, with little room for what is received."""
    stream = socket.socket()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    stream.settimeout(PATIENCE_S)
    stream.bind((source, 0))
    stream.connect(("127.0.0.1", port_of(url)))
    if not url.startswith("https"):
        return stream
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(stream)


def is_served(url: str, source: str) -> bool:
    """Ask once on a new connection; return whether there was an answer."""
    with suppress(OSError), connect(url, source) as stream:
        stream.sendall(GET)
        return stream.recv(12) == b"HTTP/1.1 200"
    return False


def is_served_soon(url: str, source: str) -> bool:
    """Ask again and again; return whether there was an answer in the end."""
    give_up_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_at:
        if is_served(url, source):
            return True
    return False


def ended(process: Process) -> int:
    """Return how many connections the proxy has ended because their place was needed."""
    return sum(json.loads(line)["event"] == "connection ended" for line in process.lines)


@pytest.mark.parametrize("asked", [GET_CRL, GET * 1_000], ids=["CRL", "pipeline"])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
def test_readers_that_stopped_fill_the_limit(tmp_path: Path, is_tls: bool, asked: bytes) -> None:
    """Where clients that read nothing have all places, another one is served, and so is one of their own source."""
    options = ["--max-connections", str(LIMIT), "--requests-per-s", "100000"]
    with hostile_agent(lambda _: None) as agent, ExitStack() as streams:
        agent.crl = CRL
        with proxy_to(agent, tmp_path, *options) as (proxy, plain, https):
            url = https if is_tls else plain
            assert fetched(f"{plain}/pki/1.crl") == CRL
            for number in range(LIMIT):
                stream = streams.enter_context(connect(url, f"127.0.2.{number % 2 + 1}"))
                stream.sendall(asked)
                assert stream.recv(12) == b"HTTP/1.1 200"

            assert is_served_soon(url, "127.0.2.3")
            assert is_served_soon(url, "127.0.2.1")
            proxy.wait_for("connection ended")
            assert ended(proxy) <= LIMIT
            assert_log_is_clean(proxy)


def test_readers_that_drip_fill_the_limit(tmp_path: Path) -> None:
    """Clients that read a few kilobytes a second make room as those do that read nothing."""
    is_over = Event()

    def drip(stream: socket.socket) -> None:
        with suppress(OSError):
            while not is_over.wait(0.2) and stream.recv(1_024):
                pass

    with hostile_agent(lambda _: None) as agent, ExitStack() as streams:
        agent.crl = CRL
        with proxy_to(agent, tmp_path, "--max-connections", str(LIMIT)) as (proxy, plain, _):
            assert fetched(f"{plain}/pki/1.crl") == CRL
            for number in range(LIMIT):
                stream = streams.enter_context(connect(plain, f"127.0.2.{number % 2 + 1}"))
                stream.sendall(GET_CRL)
                assert stream.recv(12) == b"HTTP/1.1 200"
                Thread(target=drip, args=(stream,), daemon=True).start()

            assert is_served_soon(plain, "127.0.2.3")
            proxy.wait_for("connection ended")
            is_over.set()


def test_reader_that_keeps_pace_keeps_its_place(tmp_path: Path) -> None:
    """A client that takes its answer as it comes has all of it, though others want its place meanwhile."""
    with hostile_agent(lambda _: None) as agent, ExitStack() as streams:
        agent.crl = CRL
        with proxy_to(agent, tmp_path, "--max-connections", "2") as (_, plain, _):
            assert fetched(f"{plain}/pki/1.crl") == CRL
            reader = streams.enter_context(connect(plain, "127.0.2.1"))
            other = streams.enter_context(connect(plain, "127.0.2.2"))
            for stream in (other, reader):
                stream.sendall(GET_CRL)
            received = bytearray()
            while len(received) < len(CRL):
                data = reader.recv(65_536)
                assert data
                received += data
                if len(received) // 1_000_000 != (len(received) - len(data)) // 1_000_000:
                    is_served(plain, "127.0.2.3")
            assert received.partition(b"\r\n\r\n")[2].startswith(CRL[:1_000])
