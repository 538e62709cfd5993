"""The agent's side of the channel: one `AgentChannel` per connection, all sharing one `AgentServer`."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.events import Event, PeerFailed, PeerReady, RequestCancelled, RequestReceived
from protocol.keepalive import Timeouts
from protocol.records import Answer, Error, GetOcsp, GetPublished, Hello, SignCsr
from runtime.endpoints import describe, source_of
from runtime.limits.admission import Admission, Entrant
from runtime.limits.connection_limiter import Doorway, Stranger
from runtime.limits.networks import site_of
from runtime.log_throttle import Sparse
from runtime.tls import is_tls_failure, peer_certificate, sha256_of
from runtime.transport import ChannelTransport
from vmi_agent.errors import NotWanted
from vmi_agent.handlers import Dispatch, Outcome, cancelled, failed
from vmi_agent.ledger.audit.strangers import StrangerAudit

BUSY_RETRY_AFTER_MS = 1_000
LONGEST_RETRY_AFTER_MS = 60_000
# Anybody may ask for a certificate's status; it has threads of its own, and no more of them.
OCSP_AT_ONCE = 16
OCSP_WAITING = 64

_log = Logger()

# Both take a callable and its arguments, and return at once a Deferred of its result, or of what its coroutine returns.
InThread = Callable[..., Deferred[Any]]
AsWalk = Callable[..., Deferred[Any]]


class _Wanted:
    """Whether somebody still waits for one request's answer; `check` is for other threads.

    Attributes:
        admission: where the request may have to wait.
        entrant: the request as it stands there.
    """

    entrant: Entrant

    def __init__(self, clock: IReactorTime, deadline: float, admission: Admission) -> None:
        self._clock = clock
        self._deadline = deadline
        self.admission = admission
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
        super().__init__(server.clock, hello, server.timeouts, server.uids)
        self._server = server
        self._under_way: dict[int, _Wanted] = {}  # by request id, of what may have to wait
        self._leave_doorway: Callable[[], None] = lambda: None

    def connectionMade(self) -> None:
        server = self._server
        super().connectionMade()
        server.channels.add(self)
        if not self.connection.closed:  # a user who is not let in takes no place
            stranger = Stranger(site_of(source_of(self.wire.getPeer())), self.clock.seconds(), self._cut)
            self._leave_doorway = server.doorway.enter(stranger)

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self._server.look_whether_drained()

    def take_rest(self) -> None:
        super().take_rest()
        self._server.look_whether_drained()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        self._server.look_whether_drained()

    def event_received(self, event: Event) -> None:
        match event:
            case RequestReceived(request_id, SignCsr() as record):
                self._sign(request_id, record)
            case RequestReceived(request_id, GetPublished() as record):
                self._answer(request_id, self._server.dispatch.published(record))
            case RequestReceived(request_id, GetOcsp() as record):
                self._ocsp(request_id, record)
            case RequestReceived(request_id):
                self._answer(request_id, self._server.dispatch.chain())
            case RequestCancelled(request_id):
                self._cancel(request_id)
            case PeerReady(hello):
                self._leave_doorway()
                certificate = peer_certificate(self.transport)
                shown = {} if certificate is None else {"certificate_sha256": sha256_of(certificate)}
                fields = {"peer": self.peer_address, "boot_id": hello.boot_id.hex(), **shown}
                _log.info("proxy connected", **fields)
                self._server.note("proxy connected", **fields)
                self._tell_of_newer_root()
            case PeerFailed(error):
                _log.warn("proxy refused us", peer=self.peer_address, code=error.code.name, reason=error.text)

    def _tell_of_newer_root(self) -> None:
        """Say STATUS where the CA was rotated between the HELLO of this side and the peer's."""
        now = self._server.make_hello()
        if now.root_generation != self._hello.root_generation:
            self.connection.tell_status(now.root_generation, self._server.crl_number)

    def connection_over(self, reason: str) -> None:
        for request_id in list(self._under_way):
            self._cancel(request_id)
        self._leave_doorway()
        if self.connection.peer is not None:
            _log.info("proxy disconnected", peer=self.peer_address, reason=reason)
            self._server.note("proxy disconnected", peer=self.peer_address, reason=reason)
        elif is_tls_failure(reason):
            self.refused(reason)
        self._server.channel_over(self)  # last: it may be what the end of the process waits for

    def refused(self, reason: str, **fields: str) -> None:
        self._server.tell_of_stranger("channel peer refused", peer=self.peer_address, reason=reason, **fields)

    def _cut(self) -> None:
        self.refused("no HELLO yet, and its place is needed")
        self.wire.abortConnection()

    def _sign(self, request_id: int, record: SignCsr) -> None:
        server = self._server
        csr_sha256 = sha256(record.csr).digest()
        started_at = self.clock.seconds()
        deadline = started_at + record.deadline_ms / 1000
        wanted = _Wanted(self.clock, deadline, server.admission)

        def start() -> None:
            work = server.as_walk(server.dispatch.sign, record, csr_sha256, wanted.check)
            work.addErrback(_as_failed).addCallback(finished).addErrback(partial(_log.failure, "answering failed"))

        def finished(outcome: Outcome) -> None:
            self._leave(request_id)
            _log.info(
                outcome.event,
                **outcome.fields,
                user=record.user,
                method=record.method,
                address=record.address,
                csr_sha256=csr_sha256.hex(),
                took_ms=round((self.clock.seconds() - started_at) * 1000, 1),
                proxy_waits=not self.connection.closed,
            )
            self._answer(request_id, outcome.answer)
            self.flush()
            server.look_whether_drained()

        # Each question is a branch of its own: what repeats one under way waits for it and holds nobody else up.
        path = (self, record.address, record.user, csr_sha256)
        question = (record.user, csr_sha256)
        refuse = partial(self._refuse, request_id)
        self._enter(request_id, wanted, Entrant(path, len(record.csr), deadline, start, refuse, question))

    def _enter(self, request_id: int, wanted: _Wanted, entrant: Entrant) -> None:
        wanted.entrant = entrant
        self._under_way[request_id] = wanted
        wanted.admission.enter(entrant)

    def _leave(self, request_id: int) -> None:
        wanted = self._under_way.pop(request_id)
        wanted.admission.leave(wanted.entrant)

    def _refuse(self, request_id: int, wait_s: float) -> None:
        del self._under_way[request_id]
        self._answer(request_id, _busy(wait_s))
        self.flush()  # it may be another connection's request that takes the place of this one

    def _cancel(self, request_id: int) -> None:
        """Nobody waits for this answer any more: a request that has not begun never does."""
        wanted = self._under_way.get(request_id)
        if wanted is None:
            return  # it is one whose answer takes no time
        wanted.cancelled = True
        if wanted.admission.withdraw(wanted.entrant):
            del self._under_way[request_id]
            self._answer(request_id, cancelled())

    def _ocsp(self, request_id: int, record: GetOcsp) -> None:
        server = self._server
        deadline = self.clock.seconds() + record.deadline_ms / 1000
        wanted = _Wanted(self.clock, deadline, server.ocsp_admission)

        def start() -> None:
            work = server.in_thread(server.dispatch.ocsp, record)
            work.addErrback(lambda failure: _as_failed(failure).answer)
            work.addCallback(finished).addErrback(partial(_log.failure, "answering failed"))

        def finished(answer: Answer) -> None:
            self._leave(request_id)
            self._answer(request_id, answer)
            self.flush()
            server.look_whether_drained()

        # What is asked twice at once is worked on once: the second one finds the answer of the first.
        path, refuse = (self, record.request), partial(self._refuse, request_id)
        entrant = Entrant(path, len(record.request), deadline, start, refuse, question=record.request)
        self._enter(request_id, wanted, entrant)

    def _answer(self, request_id: int, answer: Answer) -> None:
        if self.connection.closed:
            return  # the proxy is gone; what was recorded is kept for its retry
        try:
            self.connection.answer(request_id, answer)
        except LocalProtocolError as error:
            _log.error("answer does not fit", peer=self.peer_address, reason=error.text)
            text = "The answer is larger than the asker takes."
            self.connection.answer(request_id, Error(ErrorCode.FAILED, False, 0, text))


class AgentServer(ServerFactory):
    """Makes an `AgentChannel` for each connection.

    Args:
        clock: the reactor, or a `Clock`.
        dispatch: answers.
        make_hello: returns the HELLO to say now.
        in_thread: runs a blocking callable off the reactor's thread.
        as_walk: goes the way of a coroutine function off the reactor's thread (`walks`).
        at_once: how many are worked on at the same time.
        max_requests: how many may be under way or waiting over all connections.
        max_channels: how many connections there are of proxies that have said HELLO; one more is closed at once. The
            others are bounded by the doorway.
        uids: who may connect to a unix socket; None for this process's own user.
        note: tells the audit of a peer, without waiting for it.
    """

    noisy = False

    def __init__(
        self,
        clock: IReactorTime,
        dispatch: Dispatch,
        make_hello: Callable[[], Hello],
        in_thread: InThread,
        as_walk: AsWalk,
        at_once: int,
        max_requests: int,
        max_channels: int = 64,
        timeouts: Timeouts | None = None,
        uids: Collection[int] | None = None,
        note: Callable[[str, Mapping[str, object]], None] = lambda _event, _fields: None,
    ) -> None:
        self.uids = uids
        # Thinned as the log's lines are: who may connect could fill the ledger by doing it all day.
        self.note = Sparse(lambda event, **fields: note(event, fields), clock.seconds)
        self.clock = clock
        self.dispatch = dispatch
        self.in_thread = in_thread
        self.as_walk = as_walk
        self.timeouts = timeouts or Timeouts()
        self._at_once = min(at_once, max_requests)
        self.admission = Admission(clock.seconds, self._may_sign, max_requests - self._at_once)
        self.ocsp_admission = Admission(clock.seconds, self._may_answer_ocsp, OCSP_WAITING)
        self.channels: set[AgentChannel] = set()
        self.doorway = Doorway()
        self.stranger_audit = StrangerAudit(note, clock.seconds)
        self.tell_of_stranger = Sparse(self._tell_of_stranger, clock.seconds)
        self.make_hello = make_hello
        self.crl_number = 0
        self._max_channels = max_channels
        self._drained: Deferred[None] | None = None
        self._disconnected: Deferred[None] | None = None

    def _may_sign(self) -> bool:
        return self.admission.under_way < self._at_once

    def _may_answer_ocsp(self) -> bool:
        return self.ocsp_admission.under_way < OCSP_AT_ONCE

    def _tell_of_stranger(self, event: str, **fields: object) -> None:
        _log.warn(event, **fields)
        self.stranger_audit(event, **fields)

    def buildProtocol(self, addr: IAddress | None) -> AgentChannel | None:
        assert addr is not None  # a listening port knows it
        if sum(channel.connection.peer is not None for channel in self.channels) >= self._max_channels:
            reason = f"{self._max_channels} connections are open"
        elif not self.doorway.has_room_for(site_of(source_of(addr)), self.clock.seconds()):
            reason = "too many strangers from there"
        else:
            return AgentChannel(self, self.make_hello())
        self.tell_of_stranger("connection refused", peer=describe(addr), reason=reason)
        return None

    def tell_status(self, root_generation: int, crl_number: int) -> None:
        """Tell every proxy that has said HELLO that one of these changed. To be called on the reactor's thread."""
        self.crl_number = crl_number
        for channel in self.channels:
            channel.connection.tell_status(root_generation, crl_number)
            channel.flush()

    def drain(self) -> Deferred[None]:
        """Tell every proxy to send nothing new; fires when all that was asked is answered."""
        done: Deferred[None] = Deferred()
        self._drained = done
        for channel in self.channels:
            channel.connection.drain(self.clock.seconds())
            channel.flush()
        self.look_whether_drained()
        return done

    def look_whether_drained(self) -> None:
        """Something was received or answered, or a connection is gone: `drain` may be at its end."""
        if self._drained is not None and all(channel.connection.drained for channel in self.channels):
            drained, self._drained = self._drained, None
            drained.callback(None)

    def disconnect(self) -> Deferred[None]:
        """Close every connection after what is written to it; fires when all are gone."""
        done: Deferred[None] = Deferred()
        self._disconnected = done
        for channel in list(self.channels):
            channel.disconnect()
        self._look_whether_disconnected()
        return done

    def channel_over(self, channel: AgentChannel) -> None:
        """A connection is gone."""
        self.channels.discard(channel)
        self.look_whether_drained()
        self._look_whether_disconnected()

    def _look_whether_disconnected(self) -> None:
        if self._disconnected is not None and not self.channels:
            disconnected, self._disconnected = self._disconnected, None
            disconnected.callback(None)


def _as_failed(failure: Failure) -> Outcome:
    """Answer for a worker that ended by what no code of ours raises, such as a panic in a library."""
    _log.failure("answering failed", failure)
    return Outcome(failed("The agent failed. Its log says why."), "not signed", {"code": ErrorCode.FAILED.name})


def _busy(wait_s: float) -> Error:
    retry_after_ms = min(LONGEST_RETRY_AFTER_MS, BUSY_RETRY_AFTER_MS + round(wait_s * 1000))
    return Error(ErrorCode.BUSY, True, retry_after_ms, "The agent has as many requests as it takes.")
