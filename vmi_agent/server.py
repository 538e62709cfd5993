"""The agent's side of the channel: one `AgentChannel` per connection, all sharing one `AgentServer`."""

from collections.abc import Callable
from functools import partial
from hashlib import sha256

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from protocol.errors import ErrorCode
from protocol.events import Event, PeerFailed, PeerReady, RequestCancelled, RequestReceived
from protocol.liveness import Timeouts
from protocol.records import Answer, Error, Hello, SignCsr, Signed
from runtime.transport import ChannelTransport
from vmi_agent.admission import Admission
from vmi_agent.dispatch import Dispatch
from vmi_agent.errors import NotWanted

BUSY_RETRY_AFTER_MS = 1_000

_log = Logger()

InThread = Callable[..., Deferred[Answer]]


class _Wanted:
    """Whether somebody still waits for one request's answer; read from worker threads."""

    def __init__(self, clock: IReactorTime, deadline: float) -> None:
        self._clock = clock
        self._deadline = deadline
        self.cancelled = False

    def check(self) -> None:
        """Raise NotWanted where the deadline passed or the asker cancelled."""
        if self.cancelled:
            raise NotWanted(ErrorCode.CANCELLED)
        if self._clock.seconds() >= self._deadline:
            raise NotWanted(ErrorCode.DEADLINE)


class AgentChannel(ChannelTransport):
    """One proxy's connection."""

    def __init__(self, server: "AgentServer", hello: Hello) -> None:
        super().__init__(server.clock, hello, server.timeouts)
        self._server = server
        self._under_way: dict[int, _Wanted] = {}

    def connectionMade(self) -> None:
        super().connectionMade()
        self._server.channels.add(self)

    def event_received(self, event: Event) -> None:
        match event:
            case RequestReceived(request_id, SignCsr() as record):
                self._sign(request_id, record)
            case RequestReceived(request_id):
                self.connection.answer(request_id, self._server.dispatch.chain())
            case RequestCancelled(request_id):
                self._under_way[request_id].cancelled = True
            case PeerReady(hello):
                _log.info("proxy connected", peer=self.peer_address, boot_id=hello.boot_id.hex())
            case PeerFailed(error):
                _log.warn("proxy refused us", peer=self.peer_address, code=error.code.name, reason=error.text)

    def connection_over(self, reason: str) -> None:
        for wanted in self._under_way.values():
            wanted.cancelled = True
        self._server.channels.discard(self)
        if self.connection.peer is not None:
            _log.info("proxy disconnected", peer=self.peer_address, reason=reason)

    def _sign(self, request_id: int, record: SignCsr) -> None:
        server = self._server
        csr_sha256 = sha256(record.csr).digest()
        question = (record.user, csr_sha256)
        wanted = _Wanted(self.clock, self.clock.seconds() + record.deadline_ms / 1000)
        started_at = self.clock.seconds()

        def start() -> None:
            work = server.in_thread(server.dispatch.sign, record, csr_sha256, wanted.check)
            work.addCallback(finished).addErrback(partial(_log.failure, "answering failed"))

        def finished(answer: Answer) -> None:
            server.left(question)
            del self._under_way[request_id]
            outcome = "signed" if isinstance(answer, Signed) else "not signed"
            code = answer.code.name if isinstance(answer, Error) else "OK"
            _log.info(
                outcome,
                code=code,
                user=record.user,
                method=record.method,
                address=record.address,
                csr_sha256=csr_sha256.hex(),
                took_ms=round((self.clock.seconds() - started_at) * 1000, 1),
            )
            if not self.connection.closed:
                self.connection.answer(request_id, answer)
                self.flush()

        self._under_way[request_id] = wanted
        if not server.admission.enter(question, start):
            del self._under_way[request_id]
            text = "The agent has as many requests as it takes."
            self.connection.answer(request_id, Error(ErrorCode.BUSY, True, BUSY_RETRY_AFTER_MS, text))


class AgentServer(ServerFactory):
    """Makes an `AgentChannel` for each connection.

    Args:
        clock: the reactor, or a `Clock`.
        dispatch: answers.
        make_hello: returns the HELLO to say now.
        in_thread: runs a blocking callable off the reactor thread and returns a Deferred of its result.
        max_requests: how many may be under way over all connections.
        max_channels: how many connections are kept; one more is closed at once.
    """

    noisy = False

    def __init__(
        self,
        clock: IReactorTime,
        dispatch: Dispatch,
        make_hello: Callable[[], Hello],
        in_thread: InThread,
        max_requests: int,
        max_channels: int = 64,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.clock = clock
        self.dispatch = dispatch
        self.in_thread = in_thread
        self.timeouts = timeouts or Timeouts()
        self.admission = Admission(max_requests)
        self.channels: set[AgentChannel] = set()
        self._make_hello = make_hello
        self._max_channels = max_channels
        self._idle: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> AgentChannel | None:
        if len(self.channels) >= self._max_channels:
            _log.warn("connection refused", peer=str(addr), reason=f"{self._max_channels} connections are open")
            return None
        return AgentChannel(self, self._make_hello())

    def left(self, question: tuple[str, bytes]) -> None:
        """A request is answered."""
        self.admission.leave(question)
        if self._idle is not None and self.admission.admitted == 0:
            idle, self._idle = self._idle, None
            # Not at once: the answer that made the agent idle is written first.
            self.clock.callLater(0, idle.callback, None)

    def drain(self) -> Deferred[None]:
        """Tell every proxy to send nothing new; the Deferred fires when nothing is under way any more."""
        for channel in self.channels:
            channel.connection.drain()
            channel.flush()
        done: Deferred[None] = Deferred()
        if self.admission.admitted:
            self._idle = done
        else:
            done.callback(None)
        return done

    def disconnect(self) -> None:
        """Close every connection."""
        for channel in list(self.channels):
            channel.disconnect()
