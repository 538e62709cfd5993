"""Agents that do what a test says and nothing else, in memory: real links and real connections, no socket."""

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from bmc_proxy.agents.connection import AgentLink, ProxyChannel
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.pool import Agents
from bmc_proxy.agents.retry import RETURN_S
from protocol.connection import Connection
from protocol.events import RequestCancelled, RequestReceived
from protocol.records import Answer, Request
from support.agents import request
from support.octets import AGENT_HELLO, ASKER_HELLO


class SteeredAgent:
    """An agent and the link to it.

    Attributes:
        asked: what it was asked over this connection and has not answered, oldest first, by request id.
        heard: what it was asked ever.
        cancelled: the request ids of which it was told that nobody waits.
        is_stopped: it hears nothing and says nothing, while its connection stays open.
    """

    def __init__(self, clock: Clock, name: str, window: int = 8) -> None:
        self.clock = clock
        self.window = window
        self.asked: dict[int, Request] = {}
        self.heard: list[Request] = []
        self.cancelled: list[int] = []
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", 1)
        self.link = AgentLink(clock, endpoint, name, lambda: ASKER_HELLO, lambda _link: None)
        self.is_up = self.is_stopped = False
        self.connect()

    def connect(self) -> None:
        """Make a connection, up to both HELLOs."""
        self._channel = ProxyChannel(self.link, ASKER_HELLO)
        self._transport = StringTransport()
        self._channel.makeConnection(self._transport)  # type: ignore[no-untyped-call]  # Twisted has not typed it
        self._agent = Connection(replace(AGENT_HELLO, window=self.window), now=self.clock.seconds())
        self.asked.clear()
        self.is_up = True
        self.hear()

    def lose(self) -> None:
        """Break the connection."""
        self.is_up = False
        self._channel.connectionLost()

    def drain(self) -> None:
        """Say that nothing new is taken over this connection."""
        self._agent.drain(self.clock.seconds())
        self.hear()

    def hear(self) -> None:
        """Let everything arrive that either side has said."""
        while self.is_up and not self.is_stopped:
            to_agent = self._transport.value()
            self._transport.clear()
            self._agent.receive_data(to_agent, now=self.clock.seconds())
            while (event := self._agent.next_event()) is not None:
                match event:
                    case RequestReceived(request_id, record):
                        self.asked[request_id] = record
                        self.heard.append(record)
                    case RequestCancelled(request_id):
                        self.cancelled.append(request_id)
            to_proxy = self._agent.data_to_send()
            if to_proxy:
                self._channel.dataReceived(to_proxy)
            if not to_agent and not to_proxy:
                return

    def answer(self, answer: Answer, *, newest: bool = False) -> None:
        """Answer what was asked first, or last, and is not answered."""
        self.hear()
        request_id = (max if newest else min)(self.asked)
        del self.asked[request_id]
        self._agent.answer(request_id, answer)
        self.hear()


class Asked:
    """What becomes of a request.

    Attributes:
        ends: how often it ended: once, and never twice.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.value: Any = None
        self.failure: BaseException | None = None
        self.ends = 0
        self.deferred = Deferred.fromCoroutine(coroutine)
        self.deferred.addCallbacks(self._got, self._failed)

    def _got(self, value: Any) -> None:
        self.value = value
        self.ends += 1

    def _failed(self, failure: Failure) -> None:
        self.failure = failure.value
        self.ends += 1


class World:
    """A proxy's agents, on a clock that the test moves.

    Args:
        count: how many there are.
        window: of each.
    """

    def __init__(self, count: int = 2, window: int = 8) -> None:
        self.clock = Clock()
        self.steered = [SteeredAgent(self.clock, f"agent {number}", window) for number in range(count)]
        self.agents = Agents([each.link for each in self.steered])

    def advance(self, seconds: float) -> None:
        """Let time pass, while the agents hear what is said and answer a PING."""
        while seconds > 0:
            self.clock.advance(min(seconds, 1.0))
            seconds -= 1.0
            self.hear()

    def hear(self) -> None:
        """Let everything arrive."""
        for each in self.steered:
            each.hear()

    def sign(self, csr: bytes, deadline_s: float = 30.0) -> Asked:
        """Have a CSR signed; the agent that is asked hears of it."""
        deadline = Deadline.after(self.clock, deadline_s)
        asked = Asked(self.agents.sign(request(csr), deadline))
        self.hear()
        return asked

    def asked_now(self) -> list[int]:
        """Return how many requests each agent owes an answer."""
        self.hear()
        return [len(each.asked) for each in self.steered]

    def end(self) -> None:
        """Break all connections; nothing may go on after that."""
        for each in self.steered:
            if each.is_up:
                each.lose()
        self.clock.advance(RETURN_S)
        assert self.clock.getDelayedCalls() == []
