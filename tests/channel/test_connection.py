"""Connection: what each role does with each record, its window, its timers."""

import pytest
from support.octets import (
    AGENT_HELLO,
    ASKER_HELLO,
    SIGN,
    connection,
    encode,
    events_of,
    feed,
    frame,
    ready,
    sent_records,
)

from protocol.connection import Connection
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.events import (
    AnswerReceived,
    Event,
    LateAnswer,
    PeerDraining,
    PeerFailed,
    PeerReady,
    RequestCancelled,
    RequestReceived,
    StatusReceived,
)
from protocol.records import (
    Cancel,
    Chain,
    Drain,
    Error,
    GetChain,
    GetOcsp,
    GetPublished,
    OcspAnswer,
    Ping,
    Pong,
    PublicationKind,
    Published,
    Record,
    Request,
    Role,
    Signed,
    Status,
)

SIGNED = Signed(b"s" * 32, 1, (b"leaf", b"root"))
CHAIN = Chain(1, (b"root",))
GET_CRL = GetPublished(5, PublicationKind.CRL, 1, 0, 0)
CRL = Published(PublicationKind.CRL, 1, 7, 0, 3, 0, b"crl")
GET_OCSP, OCSP = GetOcsp(5, b"request"), OcspAnswer(0, b"response")
BUSY = Error(ErrorCode.BUSY, True, 1000, "more than 2 requests under way on this connection")
GONE = Error(ErrorCode.FAILED, True, 0, "gone")

# (role, what the connection did before, what comes in, the events of it, what is sent because of it)
Case = tuple[Role, list[tuple[int, Record]], tuple[int, Record], list[Event], list[tuple[int, Record]]]
ASKED_TWICE: list[tuple[int, Record]] = [(1, SIGN), (2, GetChain(5))]
ASKED_FOR_PUBLISHED: list[tuple[int, Record]] = [(1, GET_CRL), (2, GET_OCSP)]
CASES: dict[str, Case] = {
    "agent gets PING": (Role.AGENT, [], (0, Ping(7)), [], [(0, Pong(7))]),
    "asker gets PING": (Role.ASKER, [], (0, Ping(7)), [], [(0, Pong(7))]),
    "agent gets SIGN_CSR": (Role.AGENT, [], (1, SIGN), [RequestReceived(1, SIGN)], []),
    "agent gets GET_CHAIN": (Role.AGENT, [], (9, GetChain(5)), [RequestReceived(9, GetChain(5))], []),
    "agent gets GET_PUBLISHED": (Role.AGENT, [], (1, GET_CRL), [RequestReceived(1, GET_CRL)], []),
    "agent gets GET_OCSP": (Role.AGENT, [], (1, GET_OCSP), [RequestReceived(1, GET_OCSP)], []),
    "agent gets a second request": (Role.AGENT, [(1, SIGN)], (2, SIGN), [RequestReceived(2, SIGN)], []),
    "agent gets one over the window": (Role.AGENT, ASKED_TWICE, (3, SIGN), [], [(3, BUSY)]),
    "agent gets CANCEL": (Role.AGENT, [(1, SIGN)], (1, Cancel()), [RequestCancelled(1)], []),
    "agent gets CANCEL for what it does not know": (Role.AGENT, [], (8, Cancel()), [], []),
    "agent gets ERROR": (Role.AGENT, [], (0, GONE), [PeerFailed(GONE)], []),
    "asker gets ERROR": (Role.ASKER, [], (0, GONE), [PeerFailed(GONE)], []),
    "asker gets SIGNED": (Role.ASKER, ASKED_TWICE, (1, SIGNED), [AnswerReceived(1, SIGNED)], []),
    "asker gets CHAIN first": (Role.ASKER, ASKED_TWICE, (2, CHAIN), [AnswerReceived(2, CHAIN)], []),
    "asker gets ERROR for a request": (Role.ASKER, ASKED_TWICE, (2, GONE), [AnswerReceived(2, GONE)], []),
    "asker gets PUBLISHED": (Role.ASKER, ASKED_FOR_PUBLISHED, (1, CRL), [AnswerReceived(1, CRL)], []),
    "asker gets OCSP_ANSWER": (Role.ASKER, ASKED_FOR_PUBLISHED, (2, OCSP), [AnswerReceived(2, OCSP)], []),
    "asker gets STATUS": (Role.ASKER, [], (0, Status(2, 9)), [StatusReceived(Status(2, 9))], []),
    "asker gets DRAIN": (Role.ASKER, [], (0, Drain()), [PeerDraining()], []),
}


@pytest.mark.parametrize("one_by_one", [False, True], ids=["whole", "octet by octet"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_connection_receives(case: Case, one_by_one: bool) -> None:
    """In each state, each record gives its events and is answered as the protocol says, however it arrives."""
    role, before, (request_id, record), events, sent = case
    receiver = ready(role)
    for earlier_id, earlier in before:
        if role is Role.ASKER:
            assert isinstance(earlier, Request)
            receiver.ask(earlier)
        else:
            receiver.receive_data(encode(earlier, earlier_id), now=0.0)
            events_of(receiver)
    receiver.data_to_send()

    assert feed(receiver, encode(record, request_id), one_by_one=one_by_one) == events
    assert sent_records(receiver.data_to_send()) == sent


@pytest.mark.parametrize(("asked", "answer"), [(GET_CRL, OCSP), (GET_OCSP, CRL), (SIGN, CRL), (GetChain(5), OCSP)])
def test_answer_of_another_type(asked: Request, answer: Record) -> None:
    """An answer whose type does not fit its request ends the connection."""
    asker = ready(Role.ASKER)
    asker.ask(asked)

    [fault] = feed(asker, encode(answer, 1), one_by_one=False)

    assert isinstance(fault, RemoteProtocolError)
    assert fault.code is ErrorCode.BAD_SEQUENCE


def test_tell_status_before_hello_and_after() -> None:
    """STATUS is sent to an asker that has said HELLO, and neither before that nor on a closed connection."""
    agent = connection(Role.AGENT)
    agent.tell_status(1, 1)
    assert agent.data_to_send() == b""

    feed(agent, encode(ASKER_HELLO), one_by_one=False)
    agent.tell_status(2, 9)
    assert sent_records(agent.data_to_send()) == [(0, Status(2, 9))]

    agent.close()
    agent.tell_status(3, 10)
    assert agent.data_to_send() == b""


def test_error_before_hello() -> None:
    """A peer may give up before it says HELLO; it is not answered."""
    receiver = connection(Role.AGENT)

    assert feed(receiver, encode(GONE), one_by_one=False) == [PeerFailed(GONE)]
    assert receiver.data_to_send() == b""
    assert receiver.closed


def test_connection_says_hello_first_and_waits_for_the_peers() -> None:
    """HELLO is in the buffer from the start, there is no room before the peer's, and then as much as it grants."""
    asker = Connection(ASKER_HELLO, now=0.0)
    assert sent_records(asker.data_to_send()) == [(0, ASKER_HELLO)]
    assert asker.room == 0

    assert feed(asker, encode(AGENT_HELLO), one_by_one=False) == [PeerReady(AGENT_HELLO)]
    assert asker.room == AGENT_HELLO.window


def test_ask_numbers_requests_upwards() -> None:
    """Request ids rise by one from 1, and each request is sent under its own."""
    asker = ready(Role.ASKER)

    assert [asker.ask(SIGN), asker.ask(GetChain(5))] == [1, 2]
    assert sent_records(asker.data_to_send()) == [(1, SIGN), (2, GetChain(5))]


def test_ask_at_the_window() -> None:
    """As many requests as the agent granted may be unanswered; one more is refused here and an answer makes room."""
    asker = ready(Role.ASKER)
    asker.ask(SIGN)
    asker.ask(SIGN)
    with pytest.raises(LocalProtocolError, match="no room"):
        asker.ask(SIGN)

    feed(asker, encode(SIGNED, 2), one_by_one=False)

    assert asker.room == 1
    assert asker.ask(SIGN) == 3


def test_ask_after_drain() -> None:
    """After DRAIN there is no room, and answers still come through."""
    asker = ready(Role.ASKER)
    asker.ask(SIGN)
    feed(asker, encode(Drain()), one_by_one=False)

    with pytest.raises(LocalProtocolError, match="no room"):
        asker.ask(SIGN)
    assert feed(asker, encode(SIGNED, 1), one_by_one=False) == [AnswerReceived(1, SIGNED)]


def test_cancel_keeps_the_place_until_the_answer() -> None:
    """A cancelled request is told to the agent, counts against the window, and its answer is dropped and counted."""
    asker = ready(Role.ASKER)
    asker.ask(SIGN)
    asker.data_to_send()

    asker.cancel(1)
    asker.cancel(1)

    assert sent_records(asker.data_to_send()) == [(1, Cancel())]
    assert asker.room == 1
    assert feed(asker, encode(SIGNED, 1), one_by_one=False) == [LateAnswer(1)]
    assert (asker.late_answers, asker.room) == (1, 2)


def test_cancel_after_the_answer_sends_nothing() -> None:
    """There is nothing to cancel once the answer is here."""
    asker = ready(Role.ASKER)
    asker.ask(SIGN)
    feed(asker, encode(SIGNED, 1), one_by_one=False)
    asker.data_to_send()

    asker.cancel(1)

    assert asker.data_to_send() == b""


@pytest.mark.parametrize("record", [CHAIN, SIGNED], ids=["of another type", "a second time"])
def test_asker_gets_an_answer_that_fits_no_request(record: Record) -> None:
    """An answer of the wrong type, or a second one, ends the connection."""
    asker = ready(Role.ASKER)
    asker.ask(SIGN)
    if record is SIGNED:
        feed(asker, encode(SIGNED, 1), one_by_one=False)

    [fault] = feed(asker, encode(record, 1), one_by_one=False)

    assert isinstance(fault, RemoteProtocolError)
    assert fault.code is ErrorCode.BAD_SEQUENCE


def test_answer_is_given_once() -> None:
    """A request takes one answer; a second, or one to an unknown request, is this side's fault and sends nothing."""
    agent = ready(Role.AGENT)
    feed(agent, encode(SIGN, 4), one_by_one=False)

    agent.answer(4, SIGNED)

    assert sent_records(agent.data_to_send()) == [(4, SIGNED)]
    for request_id in (4, 5):
        with pytest.raises(LocalProtocolError, match="owed no answer"):
            agent.answer(request_id, SIGNED)
    assert agent.data_to_send() == b""


def test_answer_larger_than_the_peer_takes() -> None:
    """A record over the peer's max_record is not sent, and the request is still owed its answer."""
    agent = ready(Role.AGENT)
    feed(agent, encode(SIGN, 1), one_by_one=False)

    with pytest.raises(LocalProtocolError, match="200000"):
        agent.answer(1, Signed(bytes(32), 1, (bytes(200_000), b"root")))

    agent.answer(1, GONE)
    assert sent_records(agent.data_to_send()) == [(1, GONE)]


def test_answer_over_several_frames_arrives_whole() -> None:
    """An answer over 65,536 octets is split by one side and joined by the other."""
    agent, asker = ready(Role.AGENT), ready(Role.ASKER)
    large = Signed(bytes(32), 1, (b"\x30" * 150_000, b"root"))
    asker.ask(SIGN)
    feed(agent, asker.data_to_send(), one_by_one=False)

    agent.answer(1, large)

    assert feed(asker, agent.data_to_send(), one_by_one=False) == [AnswerReceived(1, large)]


def test_octets_to_send_are_counted() -> None:
    """What `data_to_send` would return is counted before it is taken."""
    asker = ready(Role.ASKER)
    assert asker.octets_to_send == 0

    asker.ask(SIGN)

    assert asker.octets_to_send == len(asker.data_to_send()) > 0
    assert asker.octets_to_send == 0


def test_held_octets_are_those_of_a_frame_and_a_record_that_are_not_whole() -> None:
    """Octets are held from their arrival until their record is whole, as part of a frame or of a record."""
    agent = ready(Role.AGENT)

    feed(agent, frame(0x10, 1, b"x" * 100, flags=1), one_by_one=False)
    feed(agent, frame(0x10, 2, b"y" * 50)[:20], one_by_one=False)

    assert agent.held_octets == 100 + 20


def test_nothing_is_held_behind_a_fault() -> None:
    """What came with octets that broke the protocol is dropped with the connection, not kept until its socket is."""
    agent = ready(Role.AGENT)
    agent.receive_data(encode(CHAIN, 1) + frame(0x10, 2, bytes(10_000))[:5_000], 1.0)
    with pytest.raises(RemoteProtocolError):
        events_of(agent)
    assert (agent.closed, agent.held_octets) == (True, 0)


def test_drain_is_said_once() -> None:
    """Draining twice tells the asker once; a PING follows, so that it is known when nothing more can come."""
    agent = ready(Role.AGENT)

    agent.drain(0.0)
    agent.drain(0.0)

    assert sent_records(agent.data_to_send()) == [(0, Drain()), (0, Ping(1))]


def test_drain_lasts_until_what_crossed_it_is_answered() -> None:
    """A request that was on its way when DRAIN was sent is yielded, and the drain waits for it and for the PONG."""
    agent, asker = ready(Role.AGENT), ready(Role.ASKER)
    asker.ask(SIGN)
    agent.drain(0.0)
    assert not agent.drained

    feed(agent, asker.data_to_send(), one_by_one=False)
    feed(asker, agent.data_to_send(), one_by_one=False)
    agent.answer(1, SIGNED)
    assert not agent.drained

    feed(agent, asker.data_to_send(), one_by_one=False)
    assert agent.drained


def test_drain_before_hello() -> None:
    """Where the peer has not said HELLO nothing is sent: there is nothing to wait for."""
    agent = connection(Role.AGENT)

    agent.drain(0.0)

    assert agent.data_to_send() == b""
    assert agent.drained


def test_drain_before_hello_is_said_after_it() -> None:
    """A peer whose HELLO comes while the drain goes on is told, and waited for, like any other."""
    agent, asker = connection(Role.AGENT), ready(Role.ASKER)
    agent.drain(0.0)

    events_of_hello = feed(agent, encode(ASKER_HELLO), one_by_one=False)
    asker.ask(SIGN)
    octets = agent.data_to_send()

    assert events_of_hello == [PeerReady(ASKER_HELLO)]
    assert sent_records(octets) == [(0, Drain()), (0, Ping(1))]
    assert not agent.drained
    feed(asker, octets, one_by_one=False)
    assert asker.room == 0
    feed(agent, asker.data_to_send(), one_by_one=False)
    assert not agent.drained
    agent.answer(1, SIGNED)
    assert agent.drained


def test_drain_beside_a_ping_of_the_timer() -> None:
    """A PING that is still unanswered when the drain begins does not confuse it."""
    agent, asker = ready(Role.AGENT), ready(Role.ASKER)
    agent.handle_timer(15.0)
    agent.drain(15.0)

    feed(asker, agent.data_to_send(), one_by_one=False)

    assert feed(agent, asker.data_to_send(), one_by_one=False) == []
    assert agent.drained


def test_closed_connection_is_silent() -> None:
    """After close nothing is yielded, asked or answered."""
    agent, asker = ready(Role.AGENT), ready(Role.ASKER)
    feed(agent, encode(SIGN, 1), one_by_one=False)
    asker.ask(SIGN)
    agent.close()
    asker.close()
    agent.data_to_send()

    assert feed(agent, encode(SIGN, 2), one_by_one=False) == []
    agent.handle_timer(1000.0)
    assert agent.data_to_send() == b""
    assert asker.room == 0
    assert agent.next_timer() is None
    with pytest.raises(LocalProtocolError, match="closed"):
        agent.answer(1, SIGNED)


def expire(peer: Connection, now: float) -> str:
    """Return what handling the timer at `now` leads to: "", "PING", or the fault's text."""
    try:
        peer.handle_timer(now)
    except RemoteProtocolError as fault:
        assert fault.code is ErrorCode.TOO_SLOW
        return fault.text
    return " ".join(type(record).__name__.upper() for _, record in sent_records(peer.data_to_send()))


def test_timer_for_hello() -> None:
    """A peer has 5 s for its HELLO."""
    waiting = connection(Role.AGENT)
    assert waiting.next_timer() == 5.0
    assert expire(waiting, 4.999) == ""
    assert expire(waiting, 5.0) == "no HELLO within 5 s"
    assert waiting.closed


def test_timer_for_a_frame_runs_from_its_first_octet() -> None:
    """A frame has 10 s from its first octet, however its octets drip in."""
    waiting = ready(Role.AGENT)
    octets = encode(SIGN, 1)
    for second in range(10):
        waiting.receive_data(octets[second : second + 1], now=100.0 + second)
        assert events_of(waiting) == []
    assert waiting.next_timer() == 110.0
    assert expire(waiting, 109.9) == ""
    assert expire(waiting, 110.0) == "a frame not finished within 10 s"


def test_timer_for_a_frame_begins_anew_with_each_frame() -> None:
    """A frame whose beginning came with the end of the one before has its own 10 s."""
    waiting = ready(Role.AGENT)
    first, second = encode(SIGN, 1), encode(SIGN, 2)
    waiting.receive_data(first[:5], now=100.0)
    events_of(waiting)
    waiting.receive_data(first[5:] + second[:5], now=109.0)
    events_of(waiting)
    assert waiting.next_timer() == 119.0
    waiting.receive_data(second[5:], now=118.0)
    events_of(waiting)
    assert waiting.next_timer() == 133.0


def test_timer_pings_a_silent_peer() -> None:
    """After 15 s of silence a PING goes out; its PONG starts the silence anew, and without it the peer has 5 s."""
    waiting = ready(Role.ASKER)
    assert waiting.next_timer() == 15.0
    assert expire(waiting, 15.0) == "PING"
    assert waiting.next_timer() == 20.0

    waiting.receive_data(encode(Pong(1)), now=19.0)
    assert events_of(waiting) == []
    assert waiting.next_timer() == 34.0
    assert expire(waiting, 34.0) == "PING"
    assert expire(waiting, 38.9) == ""
    assert expire(waiting, 39.0) == "no PONG within 5 s"


def test_pong_counts_once() -> None:
    """A PONG that was not asked for, or comes twice, ends the connection."""
    waiting = ready(Role.ASKER)
    assert expire(waiting, 15.0) == "PING"
    waiting.receive_data(encode(Pong(1)) * 2, now=16.0)
    with pytest.raises(RemoteProtocolError, match="Pong out of place"):
        events_of(waiting)
