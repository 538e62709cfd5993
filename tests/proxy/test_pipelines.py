"""Pipelined requests in memory: their turns, answers that nobody takes, and room for bodies."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.edges import Spoken, TestEdge, Wire, edge_in
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from bmc_proxy.http1.chunked import ChunkedBody
from bmc_proxy.server.connection import HEADER_TIMEOUT_S
from bmc_proxy.server.context import body_room
from bmc_proxy.server.request import HEADER_LIMIT
from runtime.limits.byte_quota import BodyRoom, Holding

GET = b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n"
LOGIN = b"POST /login HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/json\r\n"
SIGN = b"POST /ibm/v1/Host/Actions/SignCSR HTTP/1.1\r\nHost: bmc\r\n"
TAKEN_AT_ONCE = 65_536


class Narrow(Wire):
    """A wire that tells its producer to wait as a socket does, and of which it is known whether it is read."""

    is_read = True

    def write(self, data: bytes) -> None:
        """Take it, and say where it was enough."""
        super().write(data)
        if len(self.value()) > TAKEN_AT_ONCE:
            assert self.producer is not None
            self.producer.pauseProducing()

    def pauseProducing(self) -> None:
        """Read no more."""
        self.is_read = False

    def resumeProducing(self) -> None:
        """Read on."""
        self.is_read = True


@pytest.fixture
def edge(tmp_path: Path) -> TestEdge:
    """Return an edge that answers as often as anybody asks."""
    return edge_in(tmp_path, requests_per_s=1_000_000, is_anonymous=True)


def narrow(edge: TestEdge) -> Spoken:
    """Connect by a narrow wire."""
    address = IPv4Address("TCP", "192.0.2.9", 40_000)
    channel = edge.site.buildProtocol(address)
    wire = Narrow(peerAddress=address)
    channel.makeConnection(wire)
    return Spoken(channel, wire, edge.clock)


def statuses(spoken: Spoken) -> list[int]:
    """Return the statuses of the answers that are new."""
    return [status for status, _, _ in spoken.raw_answers()]


def test_pipeline_has_one_request_in_each_turn(edge: TestEdge) -> None:
    """A thousand requests at once delay another connection's by no more than one."""
    many, one = edge.connect(), edge.connect("192.0.2.2")
    many.channel.dataReceived(GET * 1000)
    one.channel.dataReceived(GET)

    assert (statuses(many), statuses(one)) == ([200], [200])
    edge.clock.advance(0)
    assert statuses(many) == [200] * 999


def test_pipeline_whose_answers_are_not_taken(edge: TestEdge) -> None:
    """Once so much of answers waits to be taken nothing more is answered, nor read; when it is taken, it goes on."""
    spoken = narrow(edge)
    wire = spoken.wire
    assert isinstance(wire, Narrow)
    spoken.say(GET * 1000)
    assert len(wire.value()) < TAKEN_AT_ONCE + 2_000
    assert not wire.is_read

    answered = 0
    while not wire.is_read:
        answered += len(statuses(spoken))
        assert wire.producer is not None
        wire.producer.resumeProducing()
        edge.clock.advance(0)
        assert len(wire.value()) < TAKEN_AT_ONCE + 2_000
    assert answered + len(statuses(spoken)) == 1000


def test_answers_that_are_not_taken_with_nothing_behind_them(edge: TestEdge) -> None:
    """Where the last of many answers fills the wire, nothing more is read until they are taken."""
    spoken = narrow(edge)
    wire = spoken.wire
    assert isinstance(wire, Narrow)
    for _ in range(200):
        if wire.is_read:
            spoken.say(GET)
    assert not wire.is_read
    assert wire.producer is not None
    wire.clear()
    wire.producer.resumeProducing()
    assert wire.is_read
    spoken.say(GET)
    assert statuses(spoken) == [200]


def test_connection_that_ends_between_two_turns(edge: TestEdge) -> None:
    """What is still in the pipeline of a connection that is gone is nobody's."""
    spoken = edge.connect()
    before = len(edge.clock.getDelayedCalls())
    spoken.channel.dataReceived(GET * 3)
    spoken.channel.connectionLost(Failure(ConnectionDone()))
    assert statuses(spoken) == [200]
    assert len(edge.clock.getDelayedCalls()) == before


def test_half_a_request_behind_a_whole_one(edge: TestEdge) -> None:
    """It has ten seconds, as if it had come by itself."""
    spoken = edge.connect()
    spoken.say(GET + GET[:9])
    edge.clock.pump([1.0] * (round(HEADER_TIMEOUT_S) + 2))
    assert statuses(spoken) == [200, 408]


def test_pipeline_behind_a_request_that_closes(edge: TestEdge) -> None:
    """Nothing is answered after it."""
    spoken = edge.connect()
    spoken.say(GET.replace(b"\r\n\r\n", b"\r\nConnection: x, Close\r\n\r\n") + GET * 5)
    assert statuses(spoken) == [200]
    assert spoken.wire.disconnecting


# Room for bodies


def begin_body(edge: TestEdge, host: str, octets: int) -> Spoken:
    """Send so much of a body that is larger."""
    spoken = edge.connect(host)
    spoken.say(SIGN + b"Content-Length: 65000\r\n\r\n" + b" " * octets)
    return spoken


def test_room_for_bodies_is_kept(tmp_path: Path) -> None:
    """With room for 256 KiB of bodies, who holds most of it gives up for who holds less, with 503 and the end."""
    edge = edge_in(tmp_path, limit=2 * 8, requests_per_s=1_000_000, is_anonymous=True)
    assert edge.site.edge.room.limit == 256 * 1024
    greedy = [begin_body(edge, "192.0.2.1", 60_000) for _ in range(4)]
    other = begin_body(edge, "192.0.2.2", 30_000)

    ended = [spoken for spoken in greedy if statuses(spoken) == [503]]
    assert len(ended) == 1
    assert ended[0].wire.value() == b""
    one_more = begin_body(edge, "192.0.2.1", 60_000)
    assert statuses(one_more) == [503]
    other.say(b" " * 35_000)
    assert statuses(other) == [400]
    assert edge.site.edge.room.held_octets == 3 * 60_000
    for spoken in greedy:
        spoken.channel.connectionLost(Failure(ConnectionDone()))
    assert edge.site.edge.room.held_octets == 0


def test_room_is_asked_for_in_words_and_with_retry_after(tmp_path: Path) -> None:
    """Who is refused for want of room learns when to come back."""
    edge = edge_in(tmp_path, limit=2, requests_per_s=1_000_000, is_anonymous=True)
    edge.site.edge.room.limit = 10
    [(status, headers, body)] = begin_body(edge, "192.0.2.1", 11).answers()
    assert (status, headers["retry-after"], headers["connection"], body["Code"]) == (503, "1", "close", "http.busy")


def test_room_grows_with_the_connections() -> None:
    """16 KiB for each connection that may be, and never less than four of the largest bodies take."""
    assert body_room(512).limit == 8 * 1024 * 1024
    assert body_room(2).limit == 256 * 1024


def test_body_that_is_served_is_not_given_up() -> None:
    """What is whole keeps its room, and the next largest source that is not yet whole makes some."""
    room = BodyRoom(100)
    ended: list[str] = []
    served, slow = Holding("a", None), Holding("b", None)

    def give_up() -> None:
        ended.append("slow")
        room.release(slow)

    slow.give_up = give_up
    assert room.take(served, 60)
    assert room.take(slow, 40)
    late = Holding("c", None)

    assert room.take(late, 10)
    assert ended == ["slow"]
    assert not room.take(Holding("d", None), 80)
    room.release(served)
    room.release(served)
    assert room.held_octets == 10


# Chunks


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 50))
def test_chunks_give_their_body_however_they_are_split(parts: list[bytes], step: int) -> None:
    """Chunks, extensions and trailers in, the body and what is behind it out, at any split."""
    coded = b"".join(b"%X;a=b\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nA: b\r\n\r\n"
    taken: list[bytes] = []
    behind: list[bytes] = []
    body = ChunkedBody(taken.append, behind.append, HEADER_LIMIT)
    for at in range(0, len(coded), step):
        body.dataReceived(coded[at : at + step] + (b"next" if at + step >= len(coded) else b""))

    assert b"".join(taken) == b"".join(parts)
    assert behind == [b"next"]
