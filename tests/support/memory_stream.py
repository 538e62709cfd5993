"""A stream between two protocols in memory, moved and broken by the test: what TCP is to them, without a reactor."""

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IProtocol, IPushProducer
from twisted.python.failure import Failure

# Over so much that is not taken a producer is told to wait; a socket of Twisted's takes more, to the same end.
ENOUGH_OCTETS = 3_000


class End:
    """What one protocol writes to; Twisted calls it a transport.

    Attributes:
        outgoing: what was written and has not arrived.
        is_over: the protocol was told that the connection is lost.
    """

    def __init__(self, protocol: IProtocol, peer: IAddress) -> None:
        self.protocol = protocol
        self.outgoing = bytearray()
        self.is_over = False
        self.is_reading = True
        self._peer = peer
        self._producer: IPushProducer | None = None
        self._producer_waits = False
        self._is_closing = False
        self._is_aborted = False

    # What the protocol calls

    def write(self, data: bytes) -> None:
        """Send."""
        if self.is_over:
            return
        self.outgoing += data
        if self._producer is not None and len(self.outgoing) > ENOUGH_OCTETS and not self._producer_waits:
            self._producer_waits = True
            self._producer.pauseProducing()

    def getPeer(self) -> IAddress:
        """Return who is at the other end."""
        return self._peer

    def loseConnection(self) -> None:
        """Close after what is written has arrived, and once nobody is left who may write more."""
        self._is_closing = True

    def abortConnection(self) -> None:
        """Close at once."""
        self._is_aborted = True
        self.outgoing.clear()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Tell whoever writes when it is enough."""
        assert streaming
        assert self._producer is None
        self._producer = producer

    def unregisterProducer(self) -> None:
        """Tell nobody."""
        self._producer = None

    def pauseProducing(self) -> None:
        """Read nothing for now."""
        self.is_reading = False

    def resumeProducing(self) -> None:
        """Read again."""
        self.is_reading = not self._is_closing

    # What the stream calls

    def lose(self, failure: Failure) -> None:
        """Tell the protocol, once, that the connection is gone."""
        if not self.is_over:
            self.is_over = True
            self.outgoing.clear()
            self.protocol.connectionLost(failure)

    def look(self) -> None:
        """Do what Twisted would do in its next turn: close where that was asked for, let the producer go on."""
        if self._is_aborted:
            self.lose(Failure(ConnectionLost()))
        elif not self.outgoing and self._is_closing and self._producer is None:
            self.lose(Failure(ConnectionDone()))
        elif not self.outgoing and self._producer_waits:
            self._producer_waits = False
            if self._producer is not None:
                self._producer.resumeProducing()


class Stream:
    """A connection between a proxy's protocol and an agent's.

    Args:
        proxy, agent: the two protocols; they are told of the connection by `open`.
        port: of the proxy.
    """

    def __init__(self, proxy: IProtocol, agent: IProtocol, port: int) -> None:
        self.proxy = End(proxy, IPv4Address("TCP", "127.0.0.1", 7700))
        self.agent = End(agent, IPv4Address("TCP", "127.0.0.1", port))
        self._is_silent = False

    def open(self) -> None:
        """Tell both protocols."""
        for end in (self.proxy, self.agent):
            end.protocol.makeConnection(end)  # type: ignore[arg-type]  # what the channel needs of a transport
        self.look()

    def move(self, *, to_agent: bool, octets: int) -> bool:
        """Let some octets arrive, or the end of the stream behind the last of them; return whether anything did."""
        source, target = (self.proxy, self.agent) if to_agent else (self.agent, self.proxy)
        if self._is_silent or target.is_over or not (target.is_reading or source.is_over):
            return False
        part = bytes(source.outgoing[:octets])
        del source.outgoing[:octets]
        if part:
            target.protocol.dataReceived(part)
        elif source.is_over:
            target.lose(Failure(ConnectionDone()))
        self.look()
        return bool(part) or target.is_over

    def cut(self, *, agent_first: bool) -> None:
        """Break it: one end hears of it now, the other one with what it next reads."""
        (self.agent if agent_first else self.proxy).lose(Failure(ConnectionLost()))
        self.look()

    def silence(self) -> None:
        """Let nothing arrive any more, and nobody hear of it."""
        self._is_silent = True

    def lose_agent(self, arrives: int) -> None:
        """The agent's process is gone, its protocol with it; so many octets of what it wrote still arrive."""
        last = bytes(self.agent.outgoing[:arrives])
        self.agent.is_over = True
        self.agent.outgoing.clear()
        if last and self.proxy.is_reading and not (self._is_silent or self.proxy.is_over):
            self.proxy.protocol.dataReceived(last)
        self.look()

    def look(self) -> None:
        """Let both ends do what is due."""
        for end in (self.proxy, self.agent):
            if not end.is_over:
                end.look()

    @property
    def is_over(self) -> bool:
        """Neither end is left."""
        return self.proxy.is_over and self.agent.is_over
