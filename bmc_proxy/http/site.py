"""The HTTP edge: limits on what is read, routing to the dialects, and writing what they answer.

`twisted.web` parses; it has no limit on bodies, so `ExchangeRequest` counts octets as they come and answers 413 at the
first one too many. It then reads a bounded rest and throws it away, because a client that is cut off in mid-sentence
sees a reset instead of the answer.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, cast

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, HTTPFactory, Request, datetimeToString

from bmc_proxy.errors import ExchangeError
from bmc_proxy.exchange import Requester
from bmc_proxy.http import problems
from bmc_proxy.http.call import Call, Dialect, Handler, Problem, Reply
from runtime.transport import Wire

HEADER_LIMIT = 8 * 1024
BODY_LIMIT = 64 * 1024
DISCARD_LIMIT = 1024 * 1024
IDLE_TIMEOUT_S = 60
LENGTH_DIGITS = 18
IDEMPOTENCY_KEY_LIMIT = 255

_FIXED_HEADERS = {
    b"Content-Type": b"application/json",
    b"Cache-Control": b"no-store",
    b"X-Content-Type-Options": b"nosniff",
}

_log = Logger()


class ExchangeRequest(Request):
    """One request, from its headers to its answer."""

    channel: "ExchangeChannel"

    def __init__(self, channel: "ExchangeChannel", queued: object = False) -> None:
        super().__init__(channel, queued)
        self.request_id = secrets.token_hex(8)
        self._site: ExchangeSite = channel.site
        self._started_at = self._site.reactor.seconds()
        self._body = bytearray()
        self._discarded: int | None = None
        self._work: Deferred[None] | None = None
        self._told: dict[str, str] = {}
        self.is_whole = False

    # While it comes in

    def parseCookies(self) -> None:
        """Cookies mean nothing here."""

    def gotLength(self, length: int | None) -> None:
        """The headers are here; `length` is what they announce, None for a chunked body."""
        if length is not None and length > BODY_LIMIT:
            self._refuse_body()

    def handleContentChunk(self, data: bytes) -> None:
        """A part of the body is here."""
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > DISCARD_LIMIT:
                self.channel.loseConnection()
            return
        self._body += data
        if len(self._body) > BODY_LIMIT:
            self._refuse_body()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The request is here whole. Replaces Twisted's own, which parses query and forms that nobody asks for."""
        self.is_whole = True
        self.method, self.uri, self.clientproto = command, path, version
        self.path = _path_of(path)
        if self._discarded is not None:
            self.finish()
            return
        # Nothing is written once the client has hung up, and what was begun for it is given up.
        self.notifyFinish().addErrback(self._hung_up)
        self._work = Deferred.fromCoroutine(self._answer())
        self._work.addErrback(self._failed)

    def _refuse_body(self) -> None:
        self._discarded = 0
        self._body.clear()
        # Nobody waits for a permission to send what is thrown away.
        self.requestHeaders.removeHeader(b"Expect")
        self.channel.persistent = False
        self.method, self.uri, self.clientproto = self.channel.request_line()
        self.path = _path_of(self.uri)
        self._tell(problems.body_too_large(BODY_LIMIT))

    # Once it is here

    async def _answer(self) -> None:
        found = self._route()
        if isinstance(found, Problem):
            self._tell(found)
        else:
            try:
                self._write(await found(self._call()), "ok")
            except ExchangeError as error:
                self._tell(problems.from_error(error))
        self.finish()

    def _route(self) -> Handler | Problem:
        # RFC 9112, 3.2: exactly one Host, from HTTP/1.1 on.
        hosts = self.requestHeaders.getRawHeaders(b"Host", [])
        if len(hosts) > 1 or (not hosts and self.clientproto == b"HTTP/1.1"):
            return problems.not_http()
        methods = self._site.routes.get(self.path)
        if methods is None:
            return problems.not_found()
        method = self.method.decode("ascii", "replace")
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = [*methods, "HEAD"] if "GET" in methods else [*methods]
            return problems.method_not_allowed(", ".join(allowed))
        content_type = self.getHeader(b"Content-Type")
        if self.method == b"POST" and content_type is not None and not _is_json(content_type):
            return problems.wrong_content_type()
        keys = self.requestHeaders.getRawHeaders(b"Idempotency-Key", [])
        if len(keys) > 1 or any(not 0 < len(key) <= IDEMPOTENCY_KEY_LIMIT or not key.isascii() for key in keys):
            return problems.bad_idempotency_key(IDEMPOTENCY_KEY_LIMIT)
        return handler

    def _call(self) -> Call:
        key = self.getHeader(b"Idempotency-Key")
        requester = Requester("anonymous", "anonymous-loopback", _host(self.client))
        return Call(self.request_id, requester, bytes(self._body), key.decode() if key else None, self._told)

    def _hung_up(self, _failure: Failure) -> None:
        if self._work is not None:
            self._work.cancel()

    def _failed(self, failure: Failure) -> None:
        """The client hung up, or there is a bug in here."""
        if isinstance(failure.value, CancelledError) and self._disconnected:
            self._log_request("client hung up")
            return
        _log.failure("request failed", failure, request_id=self.request_id)
        if not self._disconnected and not self.startedWriting:
            self._tell(problems.failed())
            self.finish()

    def _tell(self, problem: Problem) -> None:
        self._write(self._site.dialect_for(self.path).word(problem, self.request_id), problem.code)

    def _write(self, reply: Reply, code: str) -> None:
        body = json.dumps(reply.body, separators=(",", ":"), ensure_ascii=False).encode()
        self.setResponseCode(reply.status)
        headers = self.responseHeaders
        for name, value in _FIXED_HEADERS.items():
            headers.setRawHeaders(name, [value])
        headers.setRawHeaders(b"Date", [datetimeToString(self._site.reactor.seconds())])
        headers.setRawHeaders(b"X-Request-Id", [self.request_id.encode()])
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        if not self.channel.persistent:
            headers.setRawHeaders(b"Connection", [b"close"])
        for header, text in reply.headers.items():
            headers.setRawHeaders(header, [text])
        self.write(body)
        self._log_request(code)

    def _log_request(self, code: str) -> None:
        # The path only where it is one of ours: anything else is a stranger's text.
        _log.info(
            "request",
            request_id=self.request_id,
            method=self.method.decode("ascii", "replace")[:16],
            path=self.path.decode("ascii", "replace") if self.path in self._site.routes else "-",
            status=self.code if self.startedWriting else None,
            code=code,
            address=_host(self.client),
            **self._told,
            took_ms=round((self._site.reactor.seconds() - self._started_at) * 1000, 1),
        )


class ExchangeChannel(HTTPChannel):
    """One HTTP connection."""

    requestFactory = ExchangeRequest  # type: ignore[assignment]  # narrower, and only ever made for this channel
    site: "ExchangeSite"
    # Ours counts the header's octets itself, to answer 431 where Twisted would answer a bare 400.
    totalHeadersSize = 2 * HEADER_LIMIT
    maxHeaders = HEADER_LIMIT
    MAX_LENGTH = HEADER_LIMIT
    _header_octets = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.channels.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.site.channel_lost(self)

    def drain(self) -> None:
        """Close now where no whole request is under way, else after its answer."""
        self.persistent = False
        if not any(request.is_whole for request in self.requests):
            self.loseConnection()

    def lineReceived(self, line: bytes) -> None:
        """A line of the header is here."""
        self._header_octets += len(line) + len(b"\r\n")
        if self._header_octets > HEADER_LIMIT:
            self._refuse(problems.header_too_large(HEADER_LIMIT))
        else:
            super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        """One line alone is over the limit."""
        self._refuse(problems.header_too_large(HEADER_LIMIT))

    def allHeadersReceived(self) -> None:
        """The header is here whole."""
        self._header_octets = 0
        super().allHeadersReceived()
        if self.site.draining:
            self.persistent = False

    def headerReceived(self, line: bytes) -> bool:
        """One header is here. Twisted reads a Content-Length of any number of digits, which Python refuses."""
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and len(value.strip()) > LENGTH_DIGITS:
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(super().headerReceived(line))

    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Return method, target and version of the request that is coming in; before its first line, empty ones.

        Twisted hands them out only with the whole body, which is too late for one that is refused while it streams.
        """
        return getattr(self, "_command", b""), getattr(self, "_path", b""), getattr(self, "_version", b"HTTP/1.1")

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Twisted found the request not to be HTTP; its own answer has no body."""
        self._refuse(problems.not_http())

    def _refuse(self, problem: Problem) -> None:
        _, target, _ = self.request_line()
        request_id = secrets.token_hex(8)
        reply = self.site.dialect_for(_path_of(target)).word(problem, request_id)
        body = json.dumps(reply.body, separators=(",", ":")).encode()
        head = [f"HTTP/1.1 {reply.status} {problems.reason(reply.status)}".encode()]
        head += [name + b": " + value for name, value in _FIXED_HEADERS.items()]
        head += [b"X-Request-Id: " + request_id.encode(), b"Content-Length: %d" % len(body), b"Connection: close"]
        cast(Wire, self.transport).write(b"\r\n".join(head) + b"\r\n\r\n" + body)
        address = _host(self.getPeer())
        _log.info("request refused", request_id=request_id, status=reply.status, code=problem.code, address=address)
        self.loseConnection()


class ExchangeSite(HTTPFactory):
    """Makes an `ExchangeChannel` for each connection.

    Args:
        reactor: the reactor, or a `Clock`.
        dialects: the first one words what belongs to none of them.
    """

    noisy = False

    def __init__(self, reactor: IReactorTime, dialects: Sequence[Dialect]) -> None:
        super().__init__(timeout=IDLE_TIMEOUT_S, reactor=reactor)
        self._dialects = [(dialect.prefix.encode(), dialect) for dialect in dialects]
        self.routes: Mapping[bytes, Mapping[str, Handler]] = {
            path.encode(): methods for dialect in dialects for path, methods in dialect.routes.items()
        }
        self.channels: set[ExchangeChannel] = set()
        self.draining = False
        self._drained: Deferred[None] | None = None

    def dialect_for(self, path: bytes) -> Dialect:
        """Return the dialect that answers for a path."""
        for prefix, dialect in self._dialects:
            if path.startswith(prefix):
                return dialect
        return self._dialects[0][1]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        channel = ExchangeChannel()
        channel.factory = self
        channel.site = self
        # As HTTPFactory does for its own channels.
        channel.callLater = self.reactor.callLater  # type: ignore[method-assign, assignment]
        channel.timeOut = IDLE_TIMEOUT_S
        return channel

    def drain(self) -> Deferred[None]:
        """Close idle connections at once and the others with their answer; fires when all are gone."""
        self.draining = True
        done: Deferred[None] = Deferred()
        self._drained = done
        for channel in list(self.channels):
            channel.drain()
        self._tell_drained()
        return done

    def channel_lost(self, channel: ExchangeChannel) -> None:
        """A connection is gone."""
        self.channels.discard(channel)
        self._tell_drained()

    def _tell_drained(self) -> None:
        if self._drained is not None and not self.channels:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def log(self, request: Request) -> None:
        """Twisted's access log is not used: `ExchangeRequest` logs each request."""


def _path_of(target: bytes) -> bytes:
    """Return the path in a request target, which may be in absolute form (RFC 9112, 3.2.2)."""
    if target[:7].lower() == b"http://":
        target = b"/" + target[7:].partition(b"/")[2]
    return target.partition(b"?")[0]


def _is_json(content_type: bytes) -> bool:
    """Return whether a Content-Type is application/json, whatever its parameters say."""
    return content_type.partition(b";")[0].strip().lower() == b"application/json"


def _host(address: IAddress) -> str:
    return "unix" if isinstance(address, UNIXAddress) else str(getattr(address, "host", "-"))
