"""Fuzz target: an asker and an agent that talk to each other, driven into deep states; one may be made to misbehave.

The input is a list of moves: ask, cancel, answer, drain, let time pass, deliver so many octets. Both ends keep the
protocol, so until a move bends it neither finds fault with the other but for slowness, each request reaches the agent
once and as it was asked, each answer comes back once and as it was given, and in the end nothing is owed. Other moves
put valid records and frames where they do not belong, or spoil octets on the way: from then on at most one answer per
request id comes, the window holds, what is held is bounded, and an end that found fault stays silent.
"""

import sys

import atheris
from choices import Choices

with atheris.instrument_imports(include=["protocol"]):
    from protocol.assembly import split_record
    from protocol.codec import encode_record
    from protocol.connection import Connection
    from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
    from protocol.events import (
        AnswerReceived,
        Event,
        LateAnswer,
        PeerDraining,
        PeerFailed,
        RequestCancelled,
        RequestReceived,
    )
    from protocol.frames import MAX_LENGTH, Frame, encode_frame
    from protocol.records import (
        Answer,
        Cancel,
        Chain,
        Drain,
        Error,
        GetChain,
        GetOcsp,
        GetPublished,
        Hello,
        OcspAnswer,
        Ping,
        Pong,
        PublicationKind,
        Published,
        Record,
        Request,
        Role,
        SignCsr,
        Signed,
        Status,
    )

WINDOW = 3
MAX_RECORD = 150_000
MAX_MOVES = 200
# Within one frame, over several, at its limit, and over what the peer takes.
SIZES = (1, 100, 65_000, 65_536, 65_537, 131_072, 149_000, MAX_RECORD)


def hello(role: Role) -> Hello:
    """Return a HELLO with limits that are soon reached."""
    return Hello(role, WINDOW if role is Role.AGENT else 0, MAX_RECORD, bytes(16), 0, 1)


def frames_of(record: Record, request_id: int) -> list[Frame]:
    """Return the frames of a record."""
    code, payload = encode_record(record)
    return list(split_record(code, request_id, payload))


class End:
    """One end of the conversation, and what it has been told.

    Attributes:
        incoming: octets that are on their way to it.
        events: of request ids: how often each came.
    """

    def __init__(self, role: Role) -> None:
        self.connection = Connection(hello(role), now=0.0)
        self.incoming = bytearray()
        self.fault: RemoteProtocolError | None = None
        self.requests: dict[int, Request] = {}
        self.answered: set[int] = set()
        self.draining = self.peer_failed = False

    def take(self, octets: bytes, now: float) -> None:
        """Let octets arrive."""
        was_closed = self.connection.closed
        self.connection.receive_data(octets, now)
        try:
            while (event := self.connection.next_event()) is not None:
                assert not was_closed, "an event of a connection that is closed"
                self._note(event)
        except RemoteProtocolError as fault:
            assert not was_closed, "a fault of a connection that is closed"
            self.fault = fault
        assert self.connection.held_octets <= MAX_RECORD + MAX_LENGTH + 4 + len(octets)
        granted = self.connection.peer.window if self.connection.peer is not None else 0
        assert self.connection.unanswered <= max(WINDOW, granted)  # what passes between them may have been changed

    def pass_time(self, now: float) -> None:
        """Let the clock be read."""
        try:
            self.connection.handle_timer(now)
        except RemoteProtocolError as fault:
            assert fault.code is ErrorCode.TOO_SLOW
            self.fault = fault

    def _note(self, event: Event) -> None:
        match event:
            case RequestReceived(request_id, record):
                assert request_id not in self.requests, "a request came twice"
                self.requests[request_id] = record
            case AnswerReceived(request_id) | LateAnswer(request_id):
                assert request_id not in self.answered, "an answer came twice"
                self.answered.add(request_id)
                self.received(event)
            case RequestCancelled(request_id):
                assert request_id in self.requests
            case PeerDraining():
                self.draining = True
            case PeerFailed():
                self.peer_failed = True

    def received(self, event: AnswerReceived | LateAnswer) -> None:
        """An answer is here; for the asker to look at."""
        raise AssertionError("an answer came to the agent")


class Asker(End):
    """The asker, and what the channel owes it."""

    def __init__(self) -> None:
        super().__init__(Role.ASKER)
        self.asked: dict[int, Request] = {}
        self.cancelled: set[int] = set()
        self.answers: dict[int, Answer] = {}

    def received(self, event: AnswerReceived | LateAnswer) -> None:
        """An answer is here: to a request that was asked, late only where it was cancelled."""
        assert event.request_id in self.asked
        assert (event.request_id in self.cancelled) == isinstance(event, LateAnswer)
        if isinstance(event, AnswerReceived):
            self.answers[event.request_id] = event.record


class Conversation:
    """The two ends, the clock, and what an honest channel would have done."""

    def __init__(self) -> None:
        self.asker, self.agent = Asker(), End(Role.AGENT)
        self.given: dict[int, Answer] = {}
        self.now = 0.0
        self.honest = True
        self.collect()

    def collect(self) -> None:
        """Put what both ends want to send on its way."""
        self.agent.incoming += self.asker.connection.data_to_send()
        self.asker.incoming += self.agent.connection.data_to_send()

    def move(self, choices: Choices) -> None:
        """Make one move."""
        connections = self.asker.connection, self.agent.connection
        match choices.number() % 16:
            case 0 | 1 | 2:
                self.ask(choices)
            case 3:
                if self.asker.asked:
                    request_id = choices.one_of(sorted(self.asker.asked))
                    if request_id not in self.asker.answered and not connections[0].closed:
                        self.asker.cancelled.add(request_id)
                    connections[0].cancel(request_id)
            case 4 | 5 | 6:
                self.answer(choices)
            case 7 | 8:
                self.deliver(self.agent, choices)
            case 9 | 10:
                self.deliver(self.asker, choices)
            case 11:
                connections[1].tell_status(choices.number(8), choices.number(8))
            case 12:
                connections[1].drain(self.now)
            case 13:
                self.now += choices.number() / 10
                self.asker.pass_time(self.now)
                self.agent.pass_time(self.now)
            case 14:
                self.deliver_all()
            case _:
                self.honest = False
                self.misbehave(choices)
        self.collect()

    def ask(self, choices: Choices) -> None:
        """Ask something, of any size."""
        size = choices.one_of(SIZES)
        asked: tuple[Request, ...] = (
            SignCsr(1 + choices.number(), choices.octets(16).ljust(16, b"\0"), "u", "m", "a", bytes(size)),
            GetChain(1 + choices.number()),
            GetPublished(1, PublicationKind.CRL, choices.number(), choices.number(), choices.number()),
            GetOcsp(1, bytes(min(size, 4096))),
        )
        record = choices.one_of(asked)
        connection, had_room = self.asker.connection, self.asker.connection.room > 0
        try:
            self.asker.asked[connection.ask(record)] = record
            assert had_room
        except LocalProtocolError as error:
            assert (error.code is ErrorCode.BUSY) != had_room
            assert not connection.octets_to_send, "a request was refused and sent"

    def answer(self, choices: Choices) -> None:
        """Answer one of the requests that came, with what fits it or with an ERROR."""
        owed = sorted(set(self.agent.requests) - set(self.given))
        if not owed:
            return
        request_id, size = choices.one_of(owed), choices.one_of(SIZES)
        record = fitting(self.agent.requests[request_id], size) if choices.number() & 3 else refusal(choices)
        try:
            self.agent.connection.answer(request_id, record)
        except LocalProtocolError:
            assert size == MAX_RECORD or self.agent.connection.closed
            return
        self.given[request_id] = record

    def deliver(self, to: End, choices: Choices) -> None:
        """Deliver some octets."""
        count = (choices.number(), choices.number(3), len(to.incoming))[choices.number() % 3]
        octets = bytes(to.incoming[:count])
        del to.incoming[:count]
        to.take(octets, self.now)

    def deliver_all(self) -> None:
        """Deliver all that is on its way, and what that leads to."""
        while self.agent.incoming or self.asker.incoming:
            for end in (self.agent, self.asker):
                octets = bytes(end.incoming)
                end.incoming.clear()
                end.take(octets, self.now)
            self.collect()

    def misbehave(self, choices: Choices) -> None:
        """Have an end receive what its peer never sent."""
        to = choices.one_of((self.agent, self.asker))
        request_id = choices.one_of((0, 1, 2, 3, 4, 5, 100, 2**64 - 1))
        frames = frames_of(stray(choices), request_id)
        match choices.number() % 5:
            case 0 | 1:
                to.incoming += b"".join(map(encode_frame, frames))
            case 2:
                frame = Frame(frames[0].type, request_id, choices.short(), more=choices.number() & 1 == 1)
                to.incoming += encode_frame(frame)
            case 3 if to.incoming:
                to.incoming[choices.number(3) % len(to.incoming)] ^= 1 << (choices.number() & 7)
            case _:
                to.incoming += choices.short()

    def settle(self) -> None:
        """End an honest conversation: answer what is owed, deliver everything, and find nothing left over."""
        self.deliver_all()
        for request_id in sorted(set(self.agent.requests) - set(self.given)):
            self.given[request_id] = fitting(self.agent.requests[request_id], 1)
            self.agent.connection.answer(request_id, self.given[request_id])
        self.collect()
        self.deliver_all()
        asker, agent = self.asker, self.agent
        assert agent.requests == asker.asked
        assert asker.answered == set(asker.asked)
        assert set(asker.answers) == asker.answered - asker.cancelled
        assert all(self.given[request_id] == record for request_id, record in asker.answers.items())
        assert asker.connection.unanswered == agent.connection.unanswered == 0
        assert asker.connection.held_octets == agent.connection.held_octets == 0
        assert asker.connection.late_answers == len(asker.cancelled)
        assert asker.draining == agent.connection.draining == agent.connection.drained
        assert not asker.peer_failed
        assert not agent.peer_failed


def fitting(request: Request, size: int) -> Answer:
    """Return an answer of the type that a request wants."""
    match request:
        case SignCsr():
            return Signed(bytes(32), 1, (bytes(size), b"root"))
        case GetChain():
            return Chain(1, (bytes(size),))
        case GetPublished(_, kind, generation):
            part = bytes(min(size, 32_768))
            return Published(kind, generation, 1, 0, len(part), 0, part)
        case GetOcsp():
            return OcspAnswer(0, bytes(min(size, 32_768)))


def refusal(choices: Choices) -> Error:
    """Return an ERROR."""
    return Error(choices.one_of(list(ErrorCode)), choices.number() & 1 == 1, choices.number(4), "no")


def stray(choices: Choices) -> Record:
    """Return a record of any type."""
    request = SignCsr(1, bytes(16), "u", "", "", choices.short())
    records: tuple[Record, ...] = (
        *(request, GetChain(1), GetPublished(1, PublicationKind.CRL, 1, 1, 1), GetOcsp(1, b"0"), Cancel()),
        *(fitting(each, 1 + choices.number()) for each in (request, GetChain(1), GetOcsp(1, b"0"))),
        *(refusal(choices), hello(Role.ASKER), hello(Role.AGENT), Ping(1), Pong(1), Drain(), Status(1, 1)),
    )
    return choices.one_of(records)


def one_input(data: bytes) -> None:
    """Run one input."""
    choices, conversation = Choices(data), Conversation()
    for _ in range(MAX_MOVES):
        if not choices:
            break
        conversation.move(choices)
    faults = [end.fault for end in (conversation.asker, conversation.agent) if end.fault is not None]
    if conversation.honest and not faults:
        conversation.settle()
    elif conversation.honest:
        assert all(fault.code is ErrorCode.TOO_SLOW for fault in faults), faults
    else:
        conversation.deliver_all()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
