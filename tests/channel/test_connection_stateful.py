"""Two Connections joined by a pipe that splits, delays and cuts: each request gets its own answer, once."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.octets import AGENT_HELLO, ASKER_HELLO

from protocol.connection import Connection
from protocol.errors import ErrorCode
from protocol.events import (
    AnswerReceived,
    LateAnswer,
    PeerDraining,
    PeerReady,
    RequestCancelled,
    RequestReceived,
)
from protocol.frames import MAX_PAYLOAD
from protocol.records import Answer, Error, SignCsr, Signed


def request(number: int) -> SignCsr:
    """Return a request that can be told from every other."""
    return SignCsr(1 + number, bytes(16), f"user {number}", "", "", b"csr %d" % number)


def answer_to(record: SignCsr, padding: int) -> Signed:
    """Return an answer that names its request."""
    return Signed(record.csr.ljust(32, b"."), record.deadline_ms, (b"x" * (padding + 1), record.csr))


class JoinedConnections(RuleBasedStateMachine):
    """The pipe, the two ends, and what a perfect channel would have done."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.numbers = 0
        self.connect()

    def connect(self) -> None:
        """Begin a connection; what was on the old one is lost with it."""
        self.asker = Connection(ASKER_HELLO, self.now)
        self.agent = Connection(AGENT_HELLO, self.now)
        self.to_agent, self.to_asker = bytearray(), bytearray()
        self.asked: dict[int, SignCsr] = {}
        self.cancelled: set[int] = set()
        self.at_agent: dict[int, SignCsr] = {}
        self.answers: dict[int, Answer] = {}
        self.received: dict[int, Answer] = {}
        self.late: set[int] = set()
        self.collect()

    def collect(self) -> None:
        """Put what both ends want to send on the pipe."""
        self.to_agent += self.asker.data_to_send()
        self.to_asker += self.agent.data_to_send()

    @precondition(lambda self: self.asker.room > 0)
    @rule()
    def ask(self) -> None:
        """The asker sends a request."""
        record = request(self.numbers)
        self.numbers += 1
        self.asked[self.asker.ask(record)] = record
        self.collect()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """The asker gives a request up."""
        request_id = data.draw(st.sampled_from(sorted(self.asked)))
        self.asker.cancel(request_id)
        if request_id not in self.received:
            self.cancelled.add(request_id)
        self.collect()

    @precondition(lambda self: self.at_agent)
    @rule(data=st.data(), padding=st.sampled_from([0, 10, MAX_PAYLOAD, 2 * MAX_PAYLOAD]))
    def answer(self, data: st.DataObject, padding: int) -> None:
        """The agent answers any of its requests."""
        request_id = data.draw(st.sampled_from(sorted(self.at_agent)))
        record = self.at_agent.pop(request_id)
        answer: Answer = answer_to(record, padding)
        if padding == 10:
            answer = Error(ErrorCode.FAILED, True, record.deadline_ms, "failed")
        self.agent.answer(request_id, answer)
        self.answers[request_id] = answer
        self.collect()

    @rule(octets=st.integers(1, 200_000))
    def move_to_agent(self, octets: int) -> None:
        """Some octets reach the agent."""
        part = bytes(self.to_agent[:octets])
        del self.to_agent[:octets]
        self.agent.receive_data(part, self.now)
        while (event := self.agent.next_event()) is not None:
            match event:
                case RequestReceived(request_id, SignCsr() as record):
                    assert record == self.asked[request_id]
                    assert request_id not in self.at_agent
                    self.at_agent[request_id] = record
                case RequestCancelled(request_id):
                    assert request_id in self.cancelled
                    assert request_id in self.at_agent
                case _:
                    assert isinstance(event, PeerReady)
        self.collect()

    @rule(octets=st.integers(1, 200_000))
    def move_to_asker(self, octets: int) -> None:
        """Some octets reach the asker."""
        part = bytes(self.to_asker[:octets])
        del self.to_asker[:octets]
        self.asker.receive_data(part, self.now)
        while (event := self.asker.next_event()) is not None:
            match event:
                case AnswerReceived(request_id, record):
                    assert request_id not in self.received
                    assert request_id not in self.cancelled
                    assert record == self.answers[request_id]
                    self.received[request_id] = record
                case LateAnswer(request_id):
                    assert request_id in self.cancelled - self.late
                    self.late.add(request_id)
                case _:
                    assert isinstance(event, (PeerReady, PeerDraining))
        self.collect()

    @rule()
    def drain(self) -> None:
        """The agent drains."""
        self.agent.drain(self.now)
        self.collect()

    @rule(seconds=st.floats(0.0, 4.9))
    def wait(self, seconds: float) -> None:
        """Time passes, with all octets arriving first, so that nobody is late."""
        while self.to_agent or self.to_asker:
            self.move_to_agent(200_000)
            self.move_to_asker(200_000)
        self.now += seconds
        for end in (self.asker, self.agent):
            end.handle_timer(self.now)
        self.collect()

    @rule()
    def cut(self) -> None:
        """The pipe breaks, in mid-frame or not, and is made anew."""
        self.asker.close()
        self.agent.close()
        self.connect()

    @rule()
    def settle(self) -> None:
        """With everything delivered and answered, each request has come to its end."""
        for _ in range(2):
            while self.to_agent or self.to_asker:
                self.move_to_agent(200_000)
                self.move_to_asker(200_000)
            for request_id, record in list(self.at_agent.items()):
                del self.at_agent[request_id]
                self.answers[request_id] = answer_to(record, 0)
                self.agent.answer(request_id, self.answers[request_id])
            self.collect()
        assert set(self.received) | self.late == set(self.asked)
        assert self.asker.unanswered == self.agent.unanswered == 0

    @invariant()
    def window_is_kept(self) -> None:
        """What is unanswered and what there is room for make up the window."""
        if self.asker.peer is not None and not self.asker.draining:
            assert self.asker.room + self.asker.unanswered == AGENT_HELLO.window


TestJoinedConnections = JoinedConnections.TestCase
TestJoinedConnections.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
