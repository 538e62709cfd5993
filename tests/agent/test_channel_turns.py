"""Frames by the thousand in one read: they are acted on in turns, so nobody else waits for all of them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.agents import Time, open_agent
from support.octets import AGENT_HELLO, ASKER_HELLO, encode, sent_records
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from protocol.connection import FRAMES_AT_ONCE, Connection
from protocol.events import FramesPassed, PeerReady
from protocol.records import Cancel, GetChain, Ping, Record
from runtime.transport import EVENTS_AT_ONCE
from vmi_agent.server import AgentChannel, AgentServer

COUNT = 3_000


class Agent:
    """An agent's channel in memory, after both HELLOs, on a clock that the test moves."""

    def __init__(self, server: AgentServer, clock: Clock) -> None:
        self.clock = clock
        self.transport = StringTransport()
        channel = server.buildProtocol(self.transport.getPeer())
        assert channel is not None
        self.channel: AgentChannel = channel
        channel.makeConnection(self.transport)  # type: ignore[no-untyped-call]  # Twisted has not typed it
        channel.dataReceived(encode(ASKER_HELLO))
        self.answered()

    def answered(self) -> int:
        """Return how many records it has sent since the last call."""
        octets = self.transport.value()
        self.transport.clear()
        return len(sent_records(octets))

    @property
    def is_read(self) -> bool:
        """Whether more is read from the peer."""
        return self.transport.producerState == "producing"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """Yield an agent's channel."""
    clock = Clock()
    with open_agent(tmp_path, Time()) as made:
        hello = replace(AGENT_HELLO, window=10)
        server = AgentServer(clock, made.dispatch, lambda: hello, Deferred, Deferred, at_once=1, max_requests=1)
        yield Agent(server, clock)


def many(record: Record) -> bytes:
    """Return many frames of a record: with rising request ids where it is a request, else with the same."""
    is_request = isinstance(record, GetChain)
    return b"".join(encode(record, number if is_request else 0) for number in range(1, COUNT + 1))


@pytest.mark.parametrize("record", [GetChain(1000), Ping(7)], ids=["requests", "pings"])
def test_frames_have_turns(agent: Agent, record: Record) -> None:
    """What is answered at once is bounded, nothing is read meanwhile, and in the end all have their answer."""
    agent.channel.dataReceived(many(record))
    at_once = agent.answered()
    assert 0 < at_once <= max(FRAMES_AT_ONCE, EVENTS_AT_ONCE)
    assert not agent.is_read

    agent.clock.advance(0)
    assert at_once + agent.answered() == COUNT
    assert agent.is_read
    agent.channel.connectionLost()


def test_octets_that_come_between_two_turns(agent: Agent) -> None:
    """What a transport still delivers after it was told to pause has its turn behind what came before."""
    agent.channel.dataReceived(many(Ping(7)))
    agent.channel.dataReceived(encode(GetChain(1000), 1))
    agent.clock.advance(0)
    assert agent.answered() == COUNT + 1
    agent.channel.connectionLost()


def test_connection_that_is_lost_between_two_turns(agent: Agent) -> None:
    """The rest of what came is nobody's, and leaves no call behind."""
    agent.channel.dataReceived(many(Ping(7)))
    at_once = agent.answered()
    agent.channel.connectionLost()
    agent.clock.advance(0)
    assert at_once + agent.answered() <= FRAMES_AT_ONCE
    assert agent.clock.getDelayedCalls() == []


def test_reader_that_stops_between_two_turns(agent: Agent) -> None:
    """Where the peer does not take its answers the turn is skipped; once it takes them the rest follows."""
    agent.channel.dataReceived(many(Ping(7)))
    answered = agent.answered()
    agent.channel.pauseProducing()
    agent.clock.advance(0)
    assert agent.answered() == 0
    assert not agent.is_read
    agent.channel.resumeProducing()
    agent.clock.advance(0)
    assert answered + agent.answered() == COUNT
    assert agent.is_read
    agent.channel.connectionLost()


def test_frames_without_an_event_are_counted() -> None:
    """CANCELs of what nobody asked bring an event each so many frames, and none are lost."""
    connection = Connection(AGENT_HELLO, now=0.0)
    connection.receive_data(encode(ASKER_HELLO) + encode(Cancel(), 5) * FRAMES_AT_ONCE * 3, now=0.0)
    events = []
    while (event := connection.next_event()) is not None:
        events.append(event)
    assert [type(each) for each in events] == [PeerReady, FramesPassed, FramesPassed, FramesPassed]
