"""One HTTP request: judged when its headers are here, answered when its body is.

Who asks, and whether it may, is judged before the body is looked at. `twisted.web` parses; it has no limit on bodies,
so octets are counted as they come. What is refused while its body still comes is answered at once, and a bounded rest
is read and thrown away, because a client that is cut off in mid-sentence sees a reset instead of the answer.
"""

import json
import secrets
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString

from bmc_proxy.accounts import ANONYMOUS
from bmc_proxy.callers import Caller, anonymous
from bmc_proxy.deadline import Deadline
from bmc_proxy.errors import ExchangeError, TooManyRequests
from bmc_proxy.http import problems
from bmc_proxy.http.call import CSR_BODY_LIMIT, Call, Problem, Reply, Route
from bmc_proxy.http.edge import Channel
from bmc_proxy.http.headers import FIXED_HEADERS, credentials_in, is_cross_site, names_etag
from bmc_proxy.http.pouring import Pouring
from bmc_proxy.http.room import Holding
from bmc_proxy.http.targets import is_host, is_target, path_of
from bmc_proxy.sources import source_of

DISCARD_LIMIT = 1024 * 1024
IDEMPOTENCY_KEY_LIMIT = 255
# Before the deadline: what a use case knows when it gives up, such as the last root, is still answered.
REPLY_S = 0.05
# Methods whose body says what it is; a GET may carry a Content-Type that means nothing.
_WITH_BODY = (b"POST", b"PATCH", b"PUT")

_Result = TypeVar("_Result")

_log = Logger()


class Refused(Exception):
    """The request gets this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


class ExchangeRequest(Request):
    """One request, from its headers to its answer."""

    channel: Channel  # type: ignore[assignment]  # narrower than Twisted's, so that it stands above the connection

    def __init__(self, channel: Channel, queued: object = False) -> None:
        super().__init__(channel, queued)  # type: ignore[arg-type]  # it is an HTTPChannel
        self.request_id = secrets.token_hex(8)
        self._listener = channel.listener
        self._edge = channel.listener.edge
        self._started_at = self._edge.reactor.seconds()
        self.address = channel.address
        self._body = bytearray()
        self._body_limit = CSR_BODY_LIMIT
        self._holding = Holding(source_of(self.address), self._make_room)
        self._is_given_up = False
        self._has_room = True
        self._discarded = 0
        self._awaiting_body: Deferred[None] | None = None
        self._work: Deferred[None] | None = None
        self._caller: Caller | None = None
        self._told: dict[str, str] = {}
        self._is_pouring = False
        self.is_answered = False
        self.is_whole = False

    @property
    def is_known(self) -> bool:
        """Whether somebody asks who logged in."""
        return self._caller is not None and self._caller.user != ANONYMOUS

    # While it comes in

    def parseCookies(self) -> None:
        """Cookies are read with the other credentials."""

    def gotLength(self, length: int | None) -> None:
        """The headers are here; `length` is what they announce, None for a chunked body."""
        self.method, self.uri, self.clientproto = self.channel.request_line()
        self.path = path_of(self.uri)
        self._announced = length
        # From here on all waits count: for a password's turn, for the body, for one agent after the other.
        self._deadline = Deadline.after(self._edge.reactor, self._edge.deadline_s)
        # Nothing is written once the client has hung up, and what was begun for it is given up.
        self.notifyFinish().addErrback(self._hung_up).addBoth(self._leave_room)
        self._work = Deferred.fromCoroutine(self._answer())
        self._work.addErrback(self._failed)

    def handleContentChunk(self, data: bytes) -> None:
        """A part of the body is here."""
        if self.is_answered or self._is_given_up:
            self._discarded += len(data)
            if self._discarded > DISCARD_LIMIT:
                self.channel.loseConnection()
            return
        if len(self._body) + len(data) > self._body_limit:
            self._give_up_body()
        elif self._edge.room.take(self._holding, len(data)):
            self._body += data
        else:
            self._make_room()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The request is here whole. Replaces Twisted's own, which parses query and forms that nobody asks for."""
        self.is_whole = True
        self._holding.give_up = None
        if self.is_answered:
            self.finish()
        elif self._awaiting_body is not None:
            self._awaiting_body.callback(None)

    def _make_room(self) -> None:
        """The body is not kept, for those of others."""
        self._has_room = False
        self._give_up_body()

    def _give_up_body(self) -> None:
        """Keep nothing of the body, and refuse the request for it."""
        self._is_given_up = True
        self._body.clear()
        self._edge.room.release(self._holding)
        self.channel.persistent = False
        if self._awaiting_body is not None:
            waiting, self._awaiting_body = self._awaiting_body, None
            waiting.callback(None)

    # From its headers on

    async def _answer(self) -> None:
        try:
            self._write(await self._reply(), "ok")
        except Refused as refused:
            self._tell(refused.problem)
        except ExchangeError as error:
            self._tell(problems.from_error(error))
        if self.is_whole and not self._is_pouring and not self.finished:
            self.finish()

    async def _reply(self) -> Reply:
        # RFC 9112, 3.2: exactly one Host, from HTTP/1.1 on, and a target of a form that is there.
        hosts = self.requestHeaders.getRawHeaders(b"Host", [])
        is_hosted = (len(hosts) == 1 and is_host(hosts[0])) or (not hosts and self.clientproto == b"HTTP/1.0")
        if not is_hosted or not is_target(self.method, self.uri):
            self._charge(None)
            raise Refused(problems.not_http())
        found = self._edge.router.find(self.method.decode("latin-1"), self.path)
        if isinstance(found, Problem):
            self._charge(None)
            raise Refused(found)
        route = found.route
        self._caller = await self._admit(route, found.argument)
        content_type = self.getHeader(b"Content-Type")
        if self.method in _WITH_BODY and content_type is not None and not _is_of(content_type, route.content_type):
            raise Refused(problems.wrong_content_type(route.content_type))
        key = self._idempotency_key()
        await self._whole_body(route)
        if self._caller is not None and route.needs is not None:
            # The body took its time: whoever was let in may have been thrown out since.
            self._caller = self._edge.access.still(self._caller)
            route.admit(self._caller, found.argument)
        call = Call(
            self.request_id,
            self._caller,
            self.address,
            bytes(self._body),
            key,
            found.argument,
            self._told,
            self._deadline.earlier(REPLY_S),
            self.channel,
        )
        reply = await self._in_time(route.answer(call))
        if "ETag" in reply.headers and names_etag(self.requestHeaders, reply.headers["ETag"]):
            return replace(reply, status=304, body=b"")
        return reply

    async def _admit(self, route: Route, argument: str) -> Caller | None:
        """Return who asks, once it may ask this, and this often."""
        headers = self.requestHeaders
        credentials = credentials_in(headers, self.method, self.channel.certificate_user)
        caller = self._edge.access.known(credentials, self.address)
        # A page in a browser on this machine is not whom the anonymous listener is for.
        is_anonymous = self._listener.is_anonymous and not headers.hasHeader(b"Origin")
        if caller is None and credentials.basic is None and is_anonymous:
            caller = anonymous(self.address)
        self._charge(caller)
        if credentials.writes and is_cross_site(headers):
            raise Refused(problems.cross_site())
        if route.needs is None:
            return caller
        if caller is None:
            caller = await self._in_time(self._edge.access.caller(credentials, self.address))
        route.admit(caller, argument)
        return caller

    def _charge(self, caller: Caller | None) -> None:
        wait_s = self._edge.allowances.take(source_of(self.address), is_known=caller is not None)
        if wait_s > 0:
            raise TooManyRequests(wait_s)

    def _idempotency_key(self) -> str | None:
        keys = self.requestHeaders.getRawHeaders(b"Idempotency-Key", [])
        if len(keys) > 1 or any(not 0 < len(key) <= IDEMPOTENCY_KEY_LIMIT or not key.isascii() for key in keys):
            raise Refused(problems.bad_idempotency_key(IDEMPOTENCY_KEY_LIMIT))
        return keys[0].decode() if keys else None

    async def _whole_body(self, route: Route) -> None:
        """Wait until the body is here."""
        self._body_limit = route.body_limit
        if max(len(self._body), self._announced or 0) > self._body_limit:
            self._give_up_body()
        if not self.is_whole and not self._is_given_up:
            self._awaiting_body = Deferred()
            await self._awaiting_body
        if not self._has_room:
            raise Refused(problems.no_room())
        if self._is_given_up:
            raise Refused(problems.body_too_large(route.too_large, self._body_limit))

    async def _in_time(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Give up at the deadline, whatever is waited for: an agent, or a turn to have a password checked."""
        return await self._deadline.limit(Deferred.fromCoroutine(work))

    def _leave_room(self, _: object) -> None:
        self._edge.room.release(self._holding)

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
            if self.is_whole:
                self.finish()

    # The answer

    def _tell(self, problem: Problem) -> None:
        headers = dict(problem.headers)
        # Whoever is asked by a browser's script is not to show the browser's own dialog.
        if problem.status == 401 and not self.requestHeaders.hasHeader(b"X-Requested-With"):
            headers["WWW-Authenticate"] = 'Basic realm="BMC", charset="UTF-8"'
        reply = self._edge.router.dialect_for(self.path).word(problem, self.request_id)
        self._write(replace(reply, headers={**reply.headers, **headers}), problem.code)

    def _write(self, reply: Reply, code: str) -> None:
        self.is_answered = True
        if not self.is_whole:
            # The body is not waited for: nobody needs a permission to send what is thrown away.
            self.requestHeaders.removeHeader(b"Expect")
            if self._announced is None or self._announced > self._body_limit:
                self.channel.persistent = False
        body = reply.body
        if not isinstance(body, bytes):
            body = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        self.setResponseCode(reply.status)
        headers = self.responseHeaders
        for name, value in FIXED_HEADERS.items():
            headers.setRawHeaders(name, [value])
        headers.setRawHeaders(b"Date", [datetimeToString()])
        headers.setRawHeaders(b"X-Request-Id", [self.request_id.encode()])
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        if not self.channel.persistent:
            headers.setRawHeaders(b"Connection", [b"close"])
        for header, text in (*self._edge.router.dialect_for(self.path).headers.items(), *reply.headers.items()):
            headers.setRawHeaders(header, [text])
        if reply.cookies:
            headers.setRawHeaders(b"Set-Cookie", [cookie.encode() for cookie in reply.cookies])
        if reply.status == 304:
            # RFC 9110, 15.4.5 and 8.6: these would be about a body that is not sent.
            headers.removeHeader(b"Content-Type")
            headers.removeHeader(b"Content-Length")
        if isinstance(reply.body, bytes) and body and self.method != b"HEAD":
            self._pour(body)
        else:
            self.write(body)
        self._log_request(code)

    def _pour(self, body: bytes) -> None:
        """Write a body at the pace at which it is read, so that however many read slowly it is in memory once."""
        self._is_pouring = True
        self.channel.expect_taken(len(body))
        pouring = Pouring(body, self.write, self._poured)
        self.registerProducer(pouring, True)
        if not self.channel.is_choked:
            pouring.resumeProducing()

    def _poured(self) -> None:
        self._is_pouring = False
        self.unregisterProducer()
        self.finish()

    def _log_request(self, code: str) -> None:
        is_strangers = self._caller is None
        log = self._edge.tell_of_stranger if is_strangers or code == "http.too_many_requests" else _log.info
        log(
            "request",
            request_id=self.request_id,
            method=self.method.decode("ascii", "replace")[:16],
            path=self._edge.router.pattern_of(self.path),
            status=self.code if self.startedWriting else None,
            code=code,
            address=self.address,
            **({} if self._caller is None else {"user": self._caller.user, "known_by": self._caller.method}),
            **self._told,
            took_ms=round((self._edge.reactor.seconds() - self._started_at) * 1000, 1),
        )


def _is_of(content_type: bytes, wanted: str) -> bool:
    """Return whether a Content-Type is this one, whatever its parameters say."""
    return content_type.partition(b";")[0].strip().lower() == wanted.encode()
