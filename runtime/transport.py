"""The Twisted half of a `Connection`: octets between it and a transport, and a clock for its timers.

Both processes subclass `ChannelTransport` and implement `event_received` and `connection_over`.
"""

import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, cast
from typing import Protocol as Interface

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    ISystemHandle,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from protocol.connection import Connection
from protocol.errors import RemoteProtocolError
from protocol.events import Event, FramesPassed
from protocol.keepalive import Timeouts
from protocol.records import Hello, Role
from runtime import channel_credentials
from runtime.endpoints import describe
from runtime.tls import failure_text, is_tls
from runtime.unix_peer import stranger_at

# How long a peer that broke the protocol may take to read the ERROR that tells it so.
LAST_WORD_S = 1.0
# So many octets of answers are written before the next event is taken, however much was read at once.
WRITE_AT_ONCE = 128 * 1024
# So many events are acted on in one turn of the reactor; a read may bring thousands.
EVENTS_AT_ONCE = 256

_log = Logger()


def new_boot_id() -> bytes:
    """Return 16 random octets that name this run of the process."""
    return os.urandom(16)


def make_hello(
    role: Role, boot_id: bytes, window: int = 0, max_record: int = 1 << 20, root_generation: int = 0
) -> Hello:
    """Return the HELLO that this process says now."""
    return Hello(role, window, max_record, boot_id, time.time_ns() // 1_000_000, root_generation)


class Wire(Interface):
    """What a stream transport of Twisted's can do, as far as it is needed here (TCP, unix sockets and TLS alike)."""

    def write(self, data: bytes) -> None: ...
    def getPeer(self) -> IAddress: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...


def limit_unsent(transport: ITransport, octets: int) -> None:
    """Have the kernel keep no more than about so many octets that the peer has no room for (tcp(7)).

    Without it a send buffer grows to megabytes, which is memory that no limit of ours counts, and it is seen late and
    in large steps how fast the peer reads.
    """
    lowest: Any = transport.transport if isinstance(transport, TLSMemoryBIOProtocol) else transport
    handle = lowest.getHandle() if ISystemHandle.providedBy(lowest) else None
    # Twisted's unix sockets say that they are TCP's, and this option is refused on them.
    if isinstance(handle, socket.socket) and handle.family in (socket.AF_INET, socket.AF_INET6):
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, octets)


def close_own_direction(transport: ITransport) -> None:
    """Send what is written and then no more; what the client sends is still read."""
    if is_tls(transport):
        transport.loseConnection()  # sends close_notify, and reads on until the client's
    else:
        cast(ITCPTransport, transport).loseWriteConnection()


@implementer(IHandshakeListener, IPushProducer)
class ChannelTransport(Protocol, ABC):
    """One connection of the channel on a Twisted transport.

    Reading stops while the peer does not read what it is sent, so a peer cannot make this side pile up answers.

    Args:
        clock: the reactor, or a `Clock`.
        hello: what this side says first.
        timeouts: see `protocol.keepalive.Timeouts`.
        uids: who may be at the other end of a unix socket; None for this process's own user.
    """

    connection: Connection
    wire: Wire

    def __init__(
        self, clock: IReactorTime, hello: Hello, timeouts: Timeouts, uids: Collection[int] | None = None
    ) -> None:
        self.clock = clock
        self.peer_address = ""
        self._uids = uids
        self._hello = hello
        self._timeouts = timeouts
        self._timer: IDelayedCall | None = None
        self._paused = False
        # The rest of what was read waits for its turn.
        self._rest: IDelayedCall | None = None

    @abstractmethod
    def event_received(self, event: Event) -> None:
        """Act on an event. Records may be sent through `self.connection`; they leave with the end of the read."""

    def refused(self, reason: str, **fields: str) -> None:
        """The peer is a stranger, or broke the protocol; `reason` and the fields are for the log."""
        _log.warn("channel peer refused", peer=self.peer_address, reason=reason, **fields)

    @abstractmethod
    def connection_over(self, reason: str) -> None:
        """The connection is gone for good; `reason` is for the log."""

    def flush(self) -> None:
        """Write what the connection has to send. Call after sending outside of `event_received`."""
        data = self.connection.data_to_send()
        if data:
            self.wire.write(data)
        if not self.connection.closed:
            self._set_timer()  # once it is closed the only timer is the one that cuts it off

    # Twisted's side

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.wire = cast(Wire, self.transport)
        self.peer_address = describe(self.wire.getPeer())
        if not is_tls(self.transport):
            self.wire.registerProducer(self, True)
        self.connection = Connection(self._hello, self.clock.seconds(), self._timeouts)
        stranger = stranger_at(self.transport, self._uids)
        if stranger is not None:
            self.refused(f"uid {stranger} is not let in")
            self.connection.close()
            self.wire.abortConnection()
            return
        # Over TLS what is written now waits for the end of the handshake, so a stranger gets not even a HELLO.
        self.flush()

    def handshakeCompleted(self) -> None:
        """TLS is up. A producer that was registered before would be told to pause, and with it the handshake."""
        self.wire.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        connection = self.connection
        if connection.closed:
            return
        connection.receive_data(data, self.clock.seconds())
        if self._rest is None:
            self._take_events()

    def take_rest(self) -> None:
        """Act on more of what was read before; read on once that is all."""
        self._rest = None
        if not self.connection.closed and not self._paused:
            self._take_events()
            self._read_on()

    def _take_events(self) -> None:
        """Act on what was received, as long as the peer takes what it is sent and others are not kept waiting."""
        connection = self.connection
        events = 0
        try:
            while not self._paused and (event := connection.next_event()) is not None:
                events += 1
                if isinstance(event, FramesPassed) or events == EVENTS_AT_ONCE:
                    self._rest = self.clock.callLater(0, self.take_rest)
                    self.wire.pauseProducing()
                if isinstance(event, FramesPassed):
                    break
                self.event_received(event)
                if self._rest is not None:
                    break
                if connection.octets_to_send > WRITE_AT_ONCE:
                    self.flush()  # upon which the transport may say that it is enough
        except RemoteProtocolError as error:
            self._give_up(error)
            return
        self.flush()
        if connection.closed:
            self._close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connection.close()
        self._stop_timer()
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        self.connection_over(failure_text(self.transport, reason, channel_credentials.ADVICE))

    def pauseProducing(self) -> None:
        """The peer does not read: stop reading from it, and acting on what it sent."""
        self._paused = True
        self.wire.pauseProducing()

    def resumeProducing(self) -> None:
        """The peer reads again: go on with what it sent before, then with what it sends."""
        self._paused = False
        if self._rest is not None:
            return
        if not self.connection.closed:
            self._take_events()
        self._read_on()

    def _read_on(self) -> None:
        """Read more once nothing stands in its way."""
        if not self._paused and self._rest is None:
            self.wire.resumeProducing()

    def stopProducing(self) -> None:
        """The transport is closing; `connectionLost` follows."""

    # Timers

    def _set_timer(self) -> None:
        due = self.connection.next_timer()
        if due is not None and (self._timer is None or due < self._timer.getTime()):
            # A timer that is too early is left alone: it finds nothing due and sets itself anew, which is cheaper than
            # moving it with every read.
            self._stop_timer()
            self._timer = self.clock.callLater(max(0.0, due - self.clock.seconds()), self._timer_due)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timer_due(self) -> None:
        self._timer = None
        try:
            self.connection.handle_timer(self.clock.seconds())
        except RemoteProtocolError as error:
            self._give_up(error)
            return
        self.flush()

    # The end

    def _give_up(self, error: RemoteProtocolError) -> None:
        self.refused(error.text, code=error.code.name)
        self.flush()
        self._close()

    def _close(self) -> None:
        self._stop_timer()
        self._timer = self.clock.callLater(LAST_WORD_S, self._abort)
        # A producer that stays registered would keep loseConnection waiting for it.
        self.wire.unregisterProducer()
        self.wire.loseConnection()

    def _abort(self) -> None:
        self._timer = None
        self.wire.abortConnection()

    def disconnect(self) -> None:
        """Close from this side, after what is already written and, where answers are owed, an ERROR that says so."""
        self.connection.leave()
        self.flush()
        self._close()
