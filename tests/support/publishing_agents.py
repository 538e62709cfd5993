"""Agents that publish what a test tells them to, in memory: a real link and a real connection, no socket."""

from collections.abc import Callable
from dataclasses import replace

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from bmc_proxy.agents.connection import AgentLink, ProxyChannel
from protocol.connection import Connection
from protocol.errors import ErrorCode
from protocol.events import RequestReceived
from protocol.records import MAX_PART, Answer, Error, GetOcsp, GetPublished, Published, Request
from support.octets import AGENT_HELLO, ASKER_HELLO

NOT_FOUND = Error(ErrorCode.NOT_FOUND, False, 0, "nothing here")
HELLO = replace(AGENT_HELLO, window=64, root_generation=20)


def part_of(
    asked: GetPublished, der: bytes, version: int = 1, next_update_ms: int = 0, size: int = MAX_PART
) -> Published:
    """Return the part that is asked for, as an honest agent does."""
    known = asked.known_version == version
    total, part = (0, b"") if known else (len(der), der[asked.offset : asked.offset + size])
    offset = 0 if known else asked.offset
    return Published(asked.kind, asked.root_generation, version, next_update_ms, total, offset, part)


class PublishingAgent:
    """An agent and the link to it; it answers when it is told to.

    Args:
        clock: of the link.
        answer: what it answers; None for nothing at all.
    """

    def __init__(self, clock: Clock, answer: Callable[[Request], Answer | None] = lambda _: NOT_FOUND) -> None:
        self.answer = answer
        self.asked: list[Request] = []
        self._unanswered: list[int] = []
        self.news = 0
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", 1)
        self.link = AgentLink(clock, endpoint, "agent", lambda: ASKER_HELLO, self._new, on_status=self._new)
        self.on_news: Callable[[], None] = lambda: None
        self.connect()

    def _new(self, _link: AgentLink) -> None:
        self.news += 1
        if self.news > 1:
            self.on_news()

    def connect(self) -> None:
        """Make a connection, up to both HELLOs."""
        self._channel = ProxyChannel(self.link, ASKER_HELLO)
        self._transport = StringTransport()
        self._channel.makeConnection(self._transport)  # type: ignore[no-untyped-call]  # Twisted has not typed it
        self._agent = Connection(HELLO, now=0.0)
        self._unanswered.clear()
        self.settle()

    def lose(self) -> None:
        """Break the connection."""
        self._channel.connectionLost()

    def tell_status(self, root_generation: int, crl_number: int) -> None:
        """Say that something changed."""
        self._agent.tell_status(root_generation, crl_number)
        self.settle()

    def settle(self) -> None:
        """Let everything arrive and be answered, until nothing more is said."""
        while True:
            to_agent = self._transport.value()
            self._transport.clear()
            self._agent.receive_data(to_agent, now=0.0)
            while (event := self._agent.next_event()) is not None:
                if isinstance(event, RequestReceived):
                    self.asked.append(event.record)
                    answer = self.answer(event.record)
                    if answer is None:
                        self._unanswered.append(event.request_id)
                    else:
                        self._agent.answer(event.request_id, answer)
            to_proxy = self._agent.data_to_send()
            if to_proxy:
                self._channel.dataReceived(to_proxy)
            if not to_agent and not to_proxy:
                return

    def answer_oldest(self, answer: Answer) -> None:
        """Answer the oldest request that was not answered when it came, and let what follows from that arrive."""
        self._agent.answer(self._unanswered.pop(0), answer)
        self.settle()

    def offsets(self) -> list[int]:
        """Return, and forget, the offsets that were asked for."""
        asked, self.asked = self.asked, []
        return [each.offset for each in asked if isinstance(each, GetPublished)]

    def ocsp_asked(self) -> list[bytes]:
        """Return, and forget, the OCSP requests that came."""
        asked, self.asked = self.asked, []
        return [each.request for each in asked if isinstance(each, GetOcsp)]
