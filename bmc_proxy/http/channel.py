"""One HTTP connection: limits on what its requests' headers hold and on how long they take to arrive."""

import json
import secrets
from collections.abc import Callable
from typing import cast

from twisted.internet.interfaces import IDelayedCall, IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from zope.interface import implementer

from bmc_proxy.http import problems
from bmc_proxy.http.call import Problem
from bmc_proxy.http.chunks import ChunkedBody, ChunksMalformed, FramingTooLarge, has_bare_line_break
from bmc_proxy.http.crowd import Member
from bmc_proxy.http.edge import Listener
from bmc_proxy.http.headers import FIXED_HEADERS
from bmc_proxy.http.request import ExchangeRequest
from bmc_proxy.http.targets import path_of
from bmc_proxy.sources import source_of
from runtime import endpoints
from runtime.tls import failure_text, is_tls_failure, peer_certificate
from runtime.transport import Wire

HEADER_LIMIT = 8 * 1024
# From the connection, or from a request's first octet: TLS handshake and header; then the body.
HEADER_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 60
# A body that is written at the client's pace: so long, and a second more for each so many octets.
ANSWER_TIMEOUT_S = 30.0
LEAST_OCTETS_PER_S = 64 * 1024
# How long a peer may take to read its last answer and to close.
LAST_WORD_S = 3.0
LENGTH_DIGITS = 18


@implementer(IHandshakeListener)
class ExchangeChannel(HTTPChannel):
    """One HTTP connection."""

    requestFactory = ExchangeRequest  # type: ignore[assignment]  # narrower, and only ever made for this channel
    listener: Listener
    # Ours counts the header's octets itself, to answer 431 where Twisted would answer a bare 400.
    totalHeadersSize = 2 * HEADER_LIMIT
    maxHeaders = HEADER_LIMIT
    MAX_LENGTH = HEADER_LIMIT
    address = ""
    certificate_user: str | None = None
    is_choked = False
    _header_octets = 0
    # When what is being received must be here; None while nothing is.
    _due: float | None = None
    _limit_s = HEADER_TIMEOUT_S
    _is_over = False
    _leave_crowd: Callable[[], None] | None = None
    _turn: IDelayedCall | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self.address = endpoints.source_of(self.getPeer())
        self._can_speak = not isinstance(self.transport, TLSMemoryBIOProtocol)
        self._expect_within(HEADER_TIMEOUT_S)
        member = Member(source_of(self.address), self._worth, self._end_for_another)
        self._leave_crowd = self.listener.edge.crowd.enter(member)

    def handshakeCompleted(self) -> None:
        """TLS is up: by now OpenSSL accepted the client's certificate, if there is one."""
        self._can_speak = True
        try:
            certificate = peer_certificate(self.transport)
            self.certificate_user = None if certificate is None else self.listener.edge.user_of(certificate)
        except Exception as error:  # noqa: BLE001  # however odd a CA's certificate is, it then names nobody
            reason = f"its client certificate cannot be read: {type(error).__name__}"
            self.listener.edge.tell_of_stranger("certificate names nobody", address=self.address, reason=reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        text = failure_text(self.transport, reason)
        if is_tls_failure(text):
            self.listener.edge.tell_of_stranger("TLS refused", address=self.address, reason=text)
        super().connectionLost(reason)
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self._leave_crowd is not None:
            self._leave_crowd()
        self.listener.channel_lost(self)

    def drain(self) -> None:
        """Close now where no whole request is under way, else after its answer."""
        self.persistent = False
        if not any(request.is_whole for request in self.requests):
            self._close()

    def abandon(self) -> None:
        """Cut off at once."""
        cast(Wire, self.transport).abortConnection()

    def look(self, now: float) -> None:
        """End the connection if what is being received should be here by now."""
        if self._due is None or now < self._due:
            return
        if self._is_over or not self._can_speak or any(request.is_answered for request in self.requests):
            self._due = None
            cast(Wire, self.transport).abortConnection()
        else:
            self._refuse(problems.too_slow(self._limit_s))

    def _expect_within(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._due = self.listener.edge.now() + limit_s

    def _worth(self) -> int:
        """Return what `Member.worth` says."""
        if any(request.is_whole for request in self.requests):
            return 2
        return int(any(request.is_known for request in self.requests))

    def _end_for_another(self) -> None:
        self.listener.edge.tell_of_stranger("connection ended", address=self.address, reason="its place is needed")
        cast(Wire, self.transport).abortConnection()

    def _close(self) -> None:
        if self._can_speak:
            self.loseConnection()
        else:
            cast(Wire, self.transport).abortConnection()

    def loseConnection(self) -> None:
        """Close once all is written; cut off where the peer does not take it, or does not end TLS on its side."""
        self._is_over = True
        self._expect_within(LAST_WORD_S)
        super().loseConnection()

    def expect_taken(self, octets: int) -> None:
        """An answer of this size is about to be written as fast as it is read: reading it slowly is an end."""
        self._expect_within(ANSWER_TIMEOUT_S + octets / LEAST_OCTETS_PER_S)

    def pauseProducing(self) -> None:
        """What was written is not taken."""
        self.is_choked = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """What was written is taken."""
        self.is_choked = False
        super().resumeProducing()
        self._settle()

    # Pipelines: one request in each turn of the reactor, so that whoever sends a thousand at once delays nobody, and
    # none while the answers to those before are not taken. Twisted would answer all that it has read in one go.

    def requestDone(self, request: Request) -> None:
        """A request is answered to its end; the next one has its own time, and its own turn."""
        self.paused = True
        super().requestDone(request)
        if not self._is_over:
            self._due = None
            self._settle()

    def _settle(self) -> None:
        """Between two requests: wait until answers are taken, then for the turn of what is here already."""
        if self._is_over or not self.paused:
            return
        if not self._buffer and not self.is_choked:
            self.paused = False
            return
        self._networkProducer.pauseProducing()
        if not self.is_choked and self._turn is None:
            self._turn = self.callLater(0, self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        if self._is_over or self.is_choked:
            return
        self.paused = False
        self._networkProducer.resumeProducing()
        self.dataReceived(b"")

    # What Twisted's parser calls

    def dataReceived(self, data: bytes) -> None:
        """Octets are here; the first ones after an answer are the next request's, after the end they are nobody's."""
        if self._is_over:
            return
        if self._due is None and not self.requests and not self.paused:
            self._expect_within(HEADER_TIMEOUT_S)
        super().dataReceived(data)
        if self.line_mode and not self.paused and not self._is_over and has_bare_line_break(self._buffer):
            # It would wait for a CRLF that whoever ends lines otherwise never sends (RFC 9112, 2.2).
            self._respondToBadRequestAndDisconnect()

    def lineReceived(self, line: bytes) -> None:
        """A line of the header is here."""
        if self._due is None:
            self._expect_within(HEADER_TIMEOUT_S)
        self._header_octets += len(line) + len(b"\r\n")
        if self._header_octets > HEADER_LIMIT:
            self.lineLengthExceeded(line)
        elif line.startswith((b" ", b"\t")) or b"\r" in line or b"\n" in line:
            # Folded as long ago (RFC 9112, 5.2), or with a line break that is none: others see other headers in it.
            self._respondToBadRequestAndDisconnect()
        else:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        """A part of the body is here."""
        try:
            super().rawDataReceived(data)
        except ChunksMalformed:
            self._respondToBadRequestAndDisconnect()
        except FramingTooLarge:
            self._refuse(problems.header_too_large(HEADER_LIMIT))

    def lineLengthExceeded(self, line: bytes) -> None:
        """The header is over the limit, perhaps with its first line already (RFC 9112, 3)."""
        _, target, _ = self.request_line()
        self._refuse(problems.header_too_large(HEADER_LIMIT) if target else problems.target_too_long(HEADER_LIMIT))

    def allHeadersReceived(self) -> None:
        """The header is here whole."""
        self._header_octets = 0
        self._expect_within(BODY_TIMEOUT_S)
        super().allHeadersReceived()
        if self.listener.draining:
            self.persistent = False

    def allContentReceived(self) -> None:
        """The request is here whole."""
        self._due = None
        super().allContentReceived()

    def headerReceived(self, line: bytes) -> bool:
        """One header is here. Twisted reads a Content-Length of any number of digits, which Python refuses, and
        "identity" as a coding, which RFC 9112 has no more; its chunks are read by ours.
        """
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and len(value.strip()) > LENGTH_DIGITS:
            self._respondToBadRequestAndDisconnect()
            return False
        if name.lower() != b"transfer-encoding":
            return bool(super().headerReceived(line))
        # RFC 9112, 6.1: whoever speaks HTTP/1.0 knows no codings, and may have sent on what it did not understand.
        if value.strip(b" \t").lower() != b"chunked" or self._version == b"HTTP/1.0":
            self._refuse(problems.unknown_coding() if _ends_in_chunks(value) else problems.not_http())
            return False
        if not super().headerReceived(line):
            return False
        take = self.requests[-1].handleContentChunk
        self._transferDecoder = ChunkedBody(take, self._finishRequestBody, HEADER_LIMIT)
        return True

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Return whether the connection outlives this request. Twisted takes `close, x` to be one word."""
        options = b",".join(request.requestHeaders.getRawHeaders(b"Connection", [])).lower().split(b",")
        return version == b"HTTP/1.1" and b"close" not in (option.strip(b" \t") for option in options)

    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Return method, target and version of the request that is coming in; before its first line, empty ones.

        Twisted hands them out only with the whole body, which is too late for one that is refused while it streams.
        """
        return getattr(self, "_command", b""), getattr(self, "_path", b""), getattr(self, "_version", b"HTTP/1.1")

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Twisted found the request not to be HTTP; its own answer has no body."""
        self._refuse(problems.not_http())

    def _refuse(self, problem: Problem) -> None:
        """Answer without a request, and close; once."""
        if self._is_over:
            return
        self._is_over = True
        wait_s = self.listener.edge.allowances.take(source_of(self.address), is_known=False)
        if wait_s > 0 or any(request.is_answered for request in self.requests):
            self.loseConnection()
            return
        _, target, _ = self.request_line()
        request_id = secrets.token_hex(8)
        dialect = self.listener.edge.router.dialect_for(path_of(target))
        reply = dialect.word(problem, request_id)
        body = json.dumps(reply.body, separators=(",", ":")).encode()
        head = [f"HTTP/1.1 {reply.status} {problems.reason(reply.status)}".encode()]
        head += [name + b": " + value for name, value in FIXED_HEADERS.items()]
        head += [f"{name}: {value}".encode() for name, value in dialect.headers.items()]
        head += [b"X-Request-Id: " + request_id.encode(), b"Content-Length: %d" % len(body), b"Connection: close"]
        cast(Wire, self.transport).write(b"\r\n".join(head) + b"\r\n\r\n" + body)
        self.listener.edge.tell_of_stranger(
            "request refused", request_id=request_id, status=reply.status, code=problem.code, address=self.address
        )
        self.loseConnection()


def _ends_in_chunks(codings: bytes) -> bool:
    """Return whether codings that are not known to this proxy leave no doubt where the body ends (RFC 9112, 6.1)."""
    *others, last = (coding.strip(b" \t").lower() for coding in codings.split(b","))
    return last == b"chunked" and b"chunked" not in others and all(others) and bool(others)
