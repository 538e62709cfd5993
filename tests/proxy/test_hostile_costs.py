"""What hostile octets cost, in memory: everything that costs more than its octets do has a limit that counts it.

Work is counted, not timed: decoding steps, octets that are looked at, reads that are let in, turns of the reactor.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.edges import Spoken, TestEdge, Wire, edge_in
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from bmc_proxy.api.csr_body import PUNCTUATION_LIMIT, csr_text
from bmc_proxy.api.types import CSR_BODY_LIMIT, LOGIN_BODY_LIMIT
from bmc_proxy.errors import CsrBodyMalformed
from bmc_proxy.http1.chunked import ChunkedBody
from bmc_proxy.http1.request_head import HeadReader
from bmc_proxy.server.connection import FREE_READS
from bmc_proxy.server.context import BURST_S, READS_PER_REQUEST, Allowances
from bmc_proxy.server.lingering import DISCARD_LIMIT, LEAST_DISCARD, LINGER_IDLE_S, LINGER_S
from bmc_proxy.server.request import HEADER_LIMIT
from bmc_proxy.server.request_body import DECODE_AT_ONCE, FRAMING_ALLOWANCE, LEAST_CHARGE, RequestBody
from runtime.limits.byte_quota import BodyRoom

GET = b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n"
LOGIN = b"POST /login HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/json\r\n"
SIGN = b"POST /ibm/v1/Host/Actions/SignCSR HTTP/1.1\r\nHost: bmc\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
TINY = b"1\r\n \r\n"
LAST = b"0\r\n\r\n"


class Paused(Wire):
    """A wire that shows whether it is read."""

    is_read = True

    def pauseProducing(self) -> None:
        """Read no more."""
        self.is_read = False

    def resumeProducing(self) -> None:
        """Read on."""
        self.is_read = True


class Turns(Clock):
    """A clock that counts the turns that are asked for."""

    taken = 0

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:
        """Call later, and count what is to be called in the next turn."""
        self.taken += delay == 0
        return super().callLater(delay, callable, *args, **kw)


class Watched(bytes):
    """Octets that know how much of them was searched."""

    searched = 0

    def find(self, *wanted: object) -> int:
        """Search, and count."""
        begin = wanted[1] if len(wanted) > 1 else 0
        assert isinstance(begin, int)
        Watched.searched += len(self) - begin
        return super().find(*wanted)  # type: ignore[arg-type]  # as they came

    def __radd__(self, other: bytes) -> "Watched":
        return Watched(bytes(other) + bytes(self))

    def __getitem__(self, at: object) -> "Watched":  # type: ignore[override]  # only slices are taken of it
        return Watched(super().__getitem__(at))  # type: ignore[call-overload]  # as above


@pytest.fixture
def edge(tmp_path: Path) -> TestEdge:
    """Return an edge that answers as often as anybody asks."""
    return edge_in(tmp_path, requests_per_s=1_000_000, is_anonymous=True)


def paused(edge: TestEdge, host: str = "192.0.2.9") -> tuple[Spoken, Paused]:
    """Connect by a wire that is watched."""
    address = IPv4Address("TCP", host, 40_000)
    channel = edge.site.buildProtocol(address)
    wire = Paused(peerAddress=address)  # type: ignore[no-untyped-call]  # Twisted has not typed it
    channel.makeConnection(wire)
    return Spoken(channel, wire, edge.clock), wire


def held_by(spoken: Spoken) -> int:
    """Return how many octets a connection holds that are not read yet."""
    channel: Any = spoken.channel
    return len(channel._buffer)


def statuses(spoken: Spoken) -> list[int]:
    """Return the statuses of the answers that are new."""
    return [status for status, _, _ in spoken.raw_answers()]


# Chunks


@pytest.mark.parametrize("step", [1, 7, 65_536])
def test_chunks_take_a_step_for_several_octets(step: int) -> None:
    """However small chunks are and however they are split, each is read in three steps at most, and one a read."""
    octets = TINY * 2_000
    body = ChunkedBody(lambda _: None, lambda _: None, HEADER_LIMIT)
    reads = [octets[at : at + step] for at in range(0, len(octets), step)]
    for read in reads:
        body.dataReceived(read)
    assert body.steps <= 3 * 2_000 + len(reads)


def test_line_that_drips_is_searched_once() -> None:
    """An octet of a size line or of a header is looked at twice at most, however many reads bring the line."""
    line = b"1;" + b"a" * 4_000
    Watched.searched = 0
    body = ChunkedBody(lambda _: None, lambda _: None, HEADER_LIMIT)
    for at in range(len(line)):
        body.dataReceived(Watched(line[at : at + 1]))
    assert len(line) - 1 <= Watched.searched <= 2 * len(line)

    header = b"GET / HTTP/1.1\r\nHost: bmc\r\nX: " + b"a" * 4_000
    Watched.searched, reader, held = 0, HeadReader(HEADER_LIMIT), b""
    for at in range(len(header)):
        held += header[at : at + 1]
        held = held[reader.read(Watched(held)) :]
    assert len(header) <= Watched.searched <= 3 * len(header)


@pytest.mark.parametrize(("head", "limit"), [(LOGIN, LOGIN_BODY_LIMIT), (SIGN, CSR_BODY_LIMIT)])
def test_framing_counts_as_the_body_does(edge: TestEdge, head: bytes, limit: int) -> None:
    """So many octets of the wire may carry a body; past them it is refused, and the rest is dropped."""
    within = (limit + FRAMING_ALLOWANCE - len(LAST)) // len(TINY)
    spoken = edge.connect()
    spoken.say(head + CHUNKED + TINY * within + LAST)
    assert statuses(spoken) == [400]  # white space is no JSON

    spoken = edge.connect()
    spoken.say(head + CHUNKED + TINY * (within + 1) + LAST)
    assert statuses(spoken) == [413]
    assert spoken.wire.is_half_closed
    assert spoken.wire.connected


@pytest.mark.parametrize(("octets", "status"), [(CSR_BODY_LIMIT, 400), (CSR_BODY_LIMIT + 1, 413)])
@pytest.mark.parametrize("size", [64, 4_096, 65_536])
def test_payload_has_its_own_limit(edge: TestEdge, octets: int, status: int, size: int) -> None:
    """Chunks of a usual size do not take anything from the 64 KiB that a body may have."""
    spoken = edge.connect()
    parts = [min(size, octets - at) for at in range(0, octets, size)]
    spoken.say(SIGN + CHUNKED + b"".join(b"%x\r\n%b\r\n" % (part, b" " * part) for part in parts) + LAST)
    assert statuses(spoken) == [status]


def test_four_kilobytes_in_chunks_of_one_octet(edge: TestEdge) -> None:
    """A client that writes its CSR an octet at a time is served, also where each chunk is a read of its own."""
    for step in (65_536, len(TINY)):
        octets = SIGN + CHUNKED + TINY * 4_096 + LAST
        spoken = edge.connect()
        for at in range(0, len(octets), step):
            spoken.say(octets[at : at + step])
        assert statuses(spoken) == [400]


def test_chunks_are_decoded_a_piece_in_each_turn(tmp_path: Path) -> None:
    """Of a large read a piece is decoded at once; the rest has its turns, and until then nothing more is read."""
    turns = Turns()
    edge = edge_in(tmp_path, requests_per_s=1_000_000, is_anonymous=True, clock=turns)
    spoken, wire = paused(edge)
    other = edge.connect("192.0.2.2")
    octets = SIGN + CHUNKED + TINY * 10_000 + LAST
    spoken.channel.dataReceived(octets)
    assert not wire.is_read

    # Whoever asks meanwhile has its turn before the rest of the body.
    found: list[tuple[list[int], list[int]]] = []

    def ask() -> None:
        other.channel.dataReceived(GET)
        found.append((statuses(other), statuses(spoken)))

    turns.callLater(0, ask)
    turns.taken = 0
    edge.clock.advance(0)
    assert found == [([200], [])]
    assert statuses(spoken) == [400]
    assert turns.taken == len(octets) // DECODE_AT_ONCE - 1
    assert wire.is_read


# After a refusal


def test_what_follows_a_refusal_is_dropped_within_bounds(edge: TestEdge) -> None:
    """It is counted, a small read as 1 KiB, and not looked at: no chunk that is none is noticed; then it is cut off."""
    for part in (b"no chunk at all\n" * 4_096, b"x"):
        spoken = edge.connect()
        spoken.say(LOGIN + CHUNKED + TINY * 4_000)
        assert statuses(spoken) == [413]
        reads = DISCARD_LIMIT // max(LEAST_DISCARD, len(part))
        for _ in range(reads):
            spoken.say(part)
        assert spoken.wire.connected
        spoken.say(part)
        assert not spoken.wire.connected
        assert statuses(spoken) == []


@pytest.mark.parametrize("silence_s", [LINGER_IDLE_S, 1.0])
def test_client_that_does_not_close_is_cut_off(edge: TestEdge, silence_s: float) -> None:
    """After its last answer a client has 3 s to end its side, or 30 s in all where it still sends."""
    spoken = edge.connect()
    spoken.say(LOGIN + CHUNKED + TINY * 4_000)
    limit_s = LINGER_IDLE_S if silence_s == LINGER_IDLE_S else LINGER_S
    for _ in range(round(limit_s / silence_s) - 1):
        edge.clock.advance(silence_s)
        spoken.say(b"x")
        assert spoken.wire.connected
    edge.clock.pump([1.0] * round(silence_s + 2))
    assert not spoken.wire.connected


def test_malformed_chunks_are_answered_before_the_end(edge: TestEdge) -> None:
    """The 400 for chunks that are none is not lost to a reset: this side ends first."""
    spoken = edge.connect()
    spoken.say(SIGN + CHUNKED + b"xyz\r\n" + b"x" * 60_000)
    assert statuses(spoken) == [400]
    assert spoken.wire.is_half_closed
    assert spoken.wire.connected
    assert not spoken.wire.disconnecting


# What costs more than its octets


@pytest.mark.parametrize(("spare", "is_kept"), [(0, True), (-1, False)])
def test_small_reads_take_more_of_the_room(spare: int, is_kept: bool) -> None:
    """A body within its limit is kept, octet by octet, and takes 16 octets of the room for each read."""
    octets = CSR_BODY_LIMIT
    body = RequestBody(BodyRoom(octets * LEAST_CHARGE + spare), "192.0.2.1", octets, HEADER_LIMIT, lambda: None)
    for _ in range(octets):
        body.read(b" ")

    assert body.is_whole
    assert (body.is_given_up, body.had_room) == (not is_kept, is_kept)
    assert len(body.octets) == octets * is_kept


def test_reads_are_the_sources(tmp_path: Path) -> None:
    """Past its allowance of reads nothing of a source is read for a while, and then all at once; others are served."""
    edge = edge_in(tmp_path, requests_per_s=10)
    allowed = FREE_READS + 10 * READS_PER_REQUEST * round(BURST_S)
    spoken, wire = paused(edge)
    for _ in range(allowed):
        spoken.say(b"G" if wire.is_read else b"")
    assert wire.is_read
    assert held_by(spoken) == allowed
    spoken.say(b"G")
    assert not wire.is_read
    edge.connect("192.0.2.2").say(GET)

    # What is in flight already is kept, and brings no further reads.
    spoken.say(b"G" * 100)
    edge.clock.advance(1 / (10 * READS_PER_REQUEST))
    assert held_by(spoken) == allowed + 101

    # A request that comes in a usual number of reads needs none.
    same = edge.connect("192.0.2.9")
    same.say(GET)
    assert statuses(same) == [200]


def test_refusals_are_counted(tmp_path: Path) -> None:
    """A source that keeps asking for more than it may loses its connection with a refusal after some."""
    edge = edge_in(tmp_path, requests_per_s=10)
    spoken = edge.connect()
    spoken.say(GET * 100)
    answers = spoken.raw_answers()
    served = [headers for status, headers, _ in answers if status == 200]
    refused = [headers for status, headers, _ in answers if status == 429]
    assert len(served) == 2
    assert len(refused) == 10 * BURST_S + 1
    assert ["connection" in headers for headers in refused] == [False] * 20 + [True]
    assert spoken.wire.disconnecting

    # On the next one it is told at once, and another source knows nothing of it.
    again, other = edge.connect(), edge.connect("192.0.2.2")
    again.say(GET * 2)
    other.say(GET)
    assert (statuses(again), statuses(other)) == ([429], [200])


def test_refusals_come_back() -> None:
    """They are given as often as requests of a known caller."""
    now = [0.0]
    allowances = Allowances(lambda: now[0], 10)
    assert [allowances.may_be_refused("a") for _ in range(21)] == [True] * 20 + [False]
    now[0] = 0.1
    assert [allowances.may_be_refused("a") for _ in range(2)] == [True, False]


def test_structure_of_json_is_counted() -> None:
    """A body of thousands of lists is not read into objects; a string with as many commas is taken."""
    text = "," * PUNCTUATION_LIMIT
    assert csr_text(b'{"CsrString":"%b"}' % text[:-1].encode()) == text[:-1]
    with pytest.raises(CsrBodyMalformed, match="not JSON"):
        csr_text(b'{"CsrString":"%b"}' % text.encode())
    with pytest.raises(CsrBodyMalformed, match="not JSON"):
        csr_text(b'{"data":[' + b"[]," * PUNCTUATION_LIMIT + b"0]}")


# Clients that take nothing


def test_client_that_takes_nothing_and_sends_on(edge: TestEdge) -> None:
    """Once the wire is full of answers nothing is read, whatever is sent, and in the end it is cut off."""
    spoken, wire = paused(edge)
    spoken.channel.pauseProducing()  # type: ignore[attr-defined]  # as a full transport does
    spoken.say(GET * 100)
    spoken.say(SIGN + b"Content-Length: 60000\r\n\r\n")
    assert not wire.is_read
    assert len(statuses(spoken)) <= 1
    edge.clock.pump([1.0] * 70)
    assert not wire.connected
