"""One HTTP connection: limits on what its requests' heads hold and on how long they take to arrive, one at a time.

Theory of operation. Octets that are not read yet are in `_buffer`. Between two requests they are a head's; then they
are a body's, which goes to the request as it comes; once that is whole they wait until it is answered. What chunks hold
is decoded a piece in each turn of the reactor, and nothing is read meanwhile. Once a request is refused for good the
rest of what its client sends is dropped (`lingering`).
"""

import secrets
from collections.abc import Callable
from typing import cast

from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IPushProducer, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from bmc_proxy.api import errors as api_errors
from bmc_proxy.api.types import Problem
from bmc_proxy.auth.client_certificates import ClientCertificate
from bmc_proxy.http1.chunked import ChunksMalformed, FramingTooLarge
from bmc_proxy.http1.request_head import Head, HeadReader, HeadRefused
from bmc_proxy.server.body_producer import Pouring
from bmc_proxy.server.context import Listener
from bmc_proxy.server.lingering import LINGER_S, Lingering
from bmc_proxy.server.refusal import refusal
from bmc_proxy.server.request import HEADER_LIMIT, ExchangeRequest
from runtime import endpoints
from runtime.limits.crowd import Member
from runtime.limits.token_bucket import source_of
from runtime.tls import failure_text, is_tls, is_tls_failure, refused_certificate
from runtime.transport import Wire, close_own_direction, limit_unsent

# From the connection, or from a request's first octet: TLS handshake and header; then the body.
HEADER_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 60.0
# A body that is written at the client's pace: so long, and a second more for each so many octets.
ANSWER_TIMEOUT_S = 30.0
LEAST_OCTETS_PER_S = 64 * 1024
# How long a peer may take to read its last answer and to close.
LAST_WORD_S = 3.0
# So much of an answer waits in the kernel, and as much in the transport: the transport is emptied by so much being
# taken, so a pause for longer than this means that the client reads more slowly than LEAST_OCTETS_PER_S.
UNSENT_OCTETS = 64 * 1024
STALLED_AFTER_S = 2.0
# So many reads any request may take; the source's allowance pays for the others.
FREE_READS = 16
# So much is read of what is pipelined behind a request that is being answered: so it is known when the client hangs up.
READ_AHEAD_OCTETS = 16 * 1024


@implementer(IHandshakeListener, IPushProducer)
class ExchangeChannel(Protocol):
    """One HTTP connection.

    Args:
        listener: the site that made it.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.address = ""
        self.source = ""
        self.certificate: ClientCertificate | None = None
        self.is_tls = False
        self.persistent = True
        # Since when what was written is not taken; None where it is.
        self._choked_at: float | None = None
        self._buffer = b""
        self._head = HeadReader(HEADER_LIMIT)
        self._request: ExchangeRequest | None = None
        self._reads = 0  # for one request
        self._pouring: Pouring | None = None
        self._is_reading = True
        # Between two requests: the next one waits for its turn, or until the last answer is taken.
        self._is_waiting = False
        self._turn: IDelayedCall | None = None
        # When what is being received must be here, or the next request must begin; None while one is served.
        self._due: float | None = None
        self._limit_s = HEADER_TIMEOUT_S
        self._is_idle = False
        self._is_over = False
        self._lingering: Lingering | None = None
        self._leave_crowd: Callable[[], None] | None = None

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            limit_unsent(self.transport, UNSENT_OCTETS)
        self._wire = cast(Wire, self.transport)
        self._wire.registerProducer(self, True)
        self.address = endpoints.source_of(self._wire.getPeer())
        self.source = source_of(self.address)
        self.is_tls = is_tls(self.transport)
        self._can_speak = not self.is_tls
        self._expect_within(HEADER_TIMEOUT_S)
        self._leave_crowd = self.listener.edge.crowd.enter(Member(self.source, self._worth, self._end_for_another))

    def handshakeCompleted(self) -> None:
        """TLS is up: by now OpenSSL accepted the client's certificate, if there is one."""
        self._can_speak = True
        try:
            self.certificate = self.listener.edge.certificate_of(self.transport)
        except Exception as error:  # noqa: BLE001  # however odd a CA's certificate is, it then names nobody
            reason = f"its client certificate cannot be read: {type(error).__name__}"
            self.listener.edge.tell_of_stranger("certificate names nobody", address=self.address, reason=reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        text = failure_text(self.transport, reason)
        if is_tls_failure(text):
            verdict = refused_certificate(self.transport)
            told = {} if verdict is None else {"subject": verdict.subject, "serial": verdict.serial}
            self.listener.edge.tell_of_stranger("TLS refused", address=self.address, reason=text, **told)
        self._is_over = True
        if self._request is not None:
            self._request.connection_lost()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self._leave_crowd is not None:
            self._leave_crowd()
        self.listener.channel_lost(self)

    def drain(self) -> None:
        """Close now where no whole request is under way, else after its answer."""
        self.persistent = False
        if self._request is None or not self._request.body.is_whole:
            self._close()

    def abandon(self) -> None:
        """Cut off at once."""
        self._wire.abortConnection()

    def look(self, now: float) -> None:
        """End the connection if what is being received should be here by now."""
        if self._due is None or now < self._due:
            return
        if self._is_over or not self._can_speak or (self._request is not None and self._request.is_answered):
            self._due = None
            self._wire.abortConnection()
        elif self._is_idle:
            self.loseConnection()
        else:
            self._refuse(api_errors.too_slow(self._limit_s))

    def _expect_within(self, limit_s: float) -> None:
        self._is_idle = False
        self._limit_s = limit_s
        self._due = self.listener.edge.now() + limit_s

    def _worth(self) -> float:
        """Return what `Member.worth` says."""
        if self._choked_at is not None:
            choked_s = self.listener.edge.now() - self._choked_at
            if choked_s > STALLED_AFTER_S:
                return -choked_s
        if self._request is None or self._is_over:
            return 0
        return 2 if self._request.body.is_whole else int(self._request.is_known)

    def _end_for_another(self) -> None:
        self.listener.edge.tell_of_stranger("connection ended", address=self.address, reason="its place is needed")
        self._wire.abortConnection()

    def _close(self) -> None:
        if self._can_speak:
            self.loseConnection()
        else:
            self._wire.abortConnection()

    def loseConnection(self) -> None:
        """Close once all is written; cut off where the peer does not take it, or does not end TLS on its side."""
        self._end(LAST_WORD_S)
        self._wire.loseConnection()

    def _linger(self) -> None:
        """Close this side, and drop what the client still sends until it closes its own."""
        self._read_on(True)
        self._end(LINGER_S)
        assert self.transport is not None  # it is connected
        close_own_direction(self.transport)

    def _end(self, limit_s: float) -> None:
        self._is_over = True
        self._buffer = b""
        self._lingering = Lingering(self.listener.edge.now(), limit_s)
        self._due = self._lingering.due
        # A producer that stays registered would keep the transport waiting for it.
        self._wire.unregisterProducer()

    def _drop(self, octets: int) -> None:
        """Octets came after the end."""
        lingering = self._lingering
        if lingering is not None and lingering.drop(octets, self.listener.edge.now()):
            self._due = lingering.due
        else:
            self._wire.abortConnection()

    # Answers: as fast as they are taken

    @property
    def is_choked(self) -> bool:
        """Whether what was written is not taken."""
        return self._choked_at is not None

    def write(self, octets: bytes) -> None:
        """Write a part of an answer, or all of it."""
        if not self._is_over:
            self._wire.write(octets)

    def pour(self, pouring: Pouring, octets: int) -> None:
        """Let an answer of this size be written as fast as it is read: reading it slowly is an end."""
        self._expect_within(ANSWER_TIMEOUT_S + octets / LEAST_OCTETS_PER_S)
        self._pouring = pouring
        if not self.is_choked:
            pouring.resumeProducing()

    def pauseProducing(self) -> None:
        """What was written is not taken."""
        self._choked_at = self.listener.edge.now()
        if self._pouring is not None:
            self._pouring.pauseProducing()
        if self._request is None or not self._request.body.is_whole:
            self._read_on(False)

    def resumeProducing(self) -> None:
        """What was written is taken."""
        self._choked_at = None
        if self._pouring is not None:
            self._pouring.resumeProducing()
        if self._is_waiting:
            self._settle()
        elif self._request is None or not self._request.body.is_whole:
            self._read_on(True)

    def stopProducing(self) -> None:
        """Nothing more can be written."""
        if self._pouring is not None:
            self._pouring.stopProducing()

    def _read_on(self, is_reading: bool) -> None:
        """Take octets from the peer from now on, or let them wait where it sends them from."""
        if is_reading is self._is_reading or self._is_over:
            return
        self._is_reading = is_reading
        if is_reading:
            self._wire.resumeProducing()
        else:
            self._wire.pauseProducing()

    # Pipelines: one request in each turn of the reactor, so that whoever sends a thousand at once delays nobody, and
    # none while the answers to those before are not taken.

    def request_done(self) -> None:
        """The request is answered to its end; the next one has its own time, and its own turn."""
        if self._is_over:
            return
        is_whole = self._request is None or self._request.body.is_whole
        self._request = self._pouring = None
        self._reads = 0
        self._head = HeadReader(HEADER_LIMIT)
        if not self.persistent:
            if is_whole:
                self.loseConnection()
            else:
                self._linger()
            return
        self._expect_within(IDLE_TIMEOUT_S)
        self._is_idle = True
        self._settle()

    def _settle(self) -> None:
        """Wait until answers are taken, then for the turn of what is here already; read nothing meanwhile."""
        if self._is_over:
            return
        self._is_waiting = bool(self._buffer) or self.is_choked
        self._read_on(not self._is_waiting)
        if self._buffer and not self.is_choked and self._turn is None:
            self._turn = self.listener.edge.reactor.callLater(0, self._take_turn)

    def _has_to_wait(self) -> bool:
        """Return whether the source is out of reads; what comes until it has one again is read all at once."""
        wait_s = self.listener.edge.allowances.take_read(self.source)
        if wait_s > 0 and self._turn is None:
            self._is_waiting = True
            self._read_on(False)
            self._turn = self.listener.edge.reactor.callLater(wait_s, self._take_turn)
        return self._is_waiting

    def _take_turn(self) -> None:
        self._turn = None
        if not self._is_over and not self.is_choked:
            self._is_waiting = False
            self._read_on(True)
            if self._buffer:
                self.dataReceived(b"")

    # What comes in

    def dataReceived(self, data: bytes) -> None:
        """Octets are here; the first ones after an answer are the next request's, after the end they are nobody's."""
        if self._is_over:
            self._drop(len(data))
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self._is_waiting:
            return
        self._reads += 1
        if self._reads > FREE_READS and self._has_to_wait():
            return
        if self._request is None:
            if self._is_idle:
                self._expect_within(HEADER_TIMEOUT_S)
            self._read_head()
        elif not self._request.body.is_whole:
            self._read_body(self._request)
        elif len(self._buffer) > READ_AHEAD_OCTETS:
            self._read_on(False)

    def _read_head(self) -> None:
        reader = self._head
        try:
            read = reader.read(self._buffer)
        except HeadRefused as refused:
            self._refuse(refused.problem)
            return
        self._buffer = self._buffer[read:]
        if reader.is_whole:
            assert reader.head is not None  # it begins with one
            self._begin(reader.head)

    def _begin(self, head: Head) -> None:
        """The head is here whole, and perhaps the body."""
        self.persistent = head.keeps_alive and not self.listener.draining
        request = self._request = ExchangeRequest(self, head)
        length = head.length
        if length and length <= len(self._buffer):
            self._buffer = request.body.read(self._buffer)
        if request.body.is_whole:
            self._due = None
            request.begin()
            return
        self._expect_within(BODY_TIMEOUT_S)
        request.begin()
        if self._buffer and not self._is_over:
            self._read_body(request)

    def _read_body(self, request: ExchangeRequest) -> None:
        """Read a piece of the body; the next piece of a chunked one has its own turn."""
        body = request.body
        try:
            rest = body.read(self._buffer)
        except ChunksMalformed:
            self._refuse(api_errors.not_http())
            return
        except FramingTooLarge:
            self._refuse(api_errors.header_too_large(HEADER_LIMIT))
            return
        if self._is_over:
            return  # it was one octet too many
        self._buffer = rest
        if body.is_whole:
            self._due = None
            request.end()
        elif body.is_given_up:
            # Whether it is refused for its size or for who asks is known soon. Until then nothing is read.
            self._buffer = b""
            self._due = None
            self._read_on(False)
        elif rest:
            self._settle()

    def _refuse(self, problem: Problem) -> None:
        """Answer what is no request, and close; once."""
        if self._is_over:
            return
        self._is_over = True
        edge, request = self.listener.edge, self._request
        wait_s = edge.allowances.take(self.source, is_known=False)
        if wait_s > 0 or (request is not None and request.is_answered):
            self.loseConnection()
            return
        request_id = secrets.token_hex(8)
        self._wire.write(refusal(edge.router, self._head.head, problem, request_id))
        edge.tell_of_stranger(
            "request refused", request_id=request_id, status=problem.status, code=problem.code, address=self.address
        )
        if problem.status == 408 and request is None:
            self.loseConnection()  # nothing is under way to this side
        else:
            self._linger()
