"""One HTTP request: judged when its headers are here, answered when its body is.

Who asks, and whether it may, is judged before the body is looked at. Octets are counted as they come. What is refused
while its body still comes is answered at once, and a bounded rest is read and thrown away, because a client that is cut
off in mid-sentence sees a reset instead of the answer.
"""

import json
import os
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.accounts import ANONYMOUS
from bmc_proxy.callers import Caller, anonymous
from bmc_proxy.deadline import Deadline
from bmc_proxy.errors import ExchangeError, TooManyRequests
from bmc_proxy.http import problems
from bmc_proxy.http.answers import answer_head
from bmc_proxy.http.call import CSR_BODY_LIMIT, Call, Problem, Reply, Route
from bmc_proxy.http.edge import Channel
from bmc_proxy.http.headers import credentials_in, is_cross_site, is_forwarded
from bmc_proxy.http.heads import Head
from bmc_proxy.http.pouring import Pouring
from bmc_proxy.http.preconditions import NONE, preconditions_in
from bmc_proxy.http.room import Holding
from bmc_proxy.http.targets import is_host, path_of

DISCARD_LIMIT = 1024 * 1024
IDEMPOTENCY_KEY_LIMIT = 255
# Before the deadline: what a use case knows when it gives up, such as the last root, is still answered.
REPLY_S = 0.05
# Methods whose body says what it is; a GET may carry a Content-Type that means nothing.
_WITH_BODY = (b"POST", b"PATCH", b"PUT")

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

_Result = TypeVar("_Result")

_log = Logger()


class Refused(Exception):
    """The request gets this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


class ExchangeRequest:
    """One request, from its headers to its answer.

    Args:
        channel: its connection.
        head: its request line and headers.

    Attributes:
        is_whole: its body is here.
        is_answered: its answer is written, or is being written.
    """

    def __init__(self, channel: Channel, head: Head) -> None:
        self.channel = channel
        self.head = head
        # Empty for a target of no form that is taken, which is refused.
        self.path = path_of(head.method, head.target) or b""
        self.request_id = os.urandom(8).hex()
        self.is_whole = False
        self.is_answered = False
        edge = self._edge = channel.listener.edge
        self._started_at = edge.reactor.seconds()
        # From here on all waits count: for a password's turn, for the body, for one agent after the other.
        self._deadline = Deadline(edge.reactor, self._started_at + edge.deadline_s)
        self._body = bytearray()
        self._body_limit = CSR_BODY_LIMIT
        self._holding = Holding(channel.source, self._make_room)
        self._is_given_up = False
        self._has_room = True
        self._discarded = 0
        self._awaiting_body: Deferred[None] | None = None
        self._work: Deferred[None] | None = None
        self._caller: Caller | None = None
        self._told: dict[str, str] = {}
        self._status: int | None = None
        self._is_pouring = False
        self._is_over = False
        self._is_hung_up = False

    @property
    def is_known(self) -> bool:
        """Whether somebody asks who logged in."""
        return self._caller is not None and self._caller.user != ANONYMOUS

    # While it comes in

    def begin(self, body: bytes | None = None) -> None:
        """Judge it, and answer once it is here whole.

        Args:
            body: all of it, where it is here already.
        """
        if body is not None:
            if body:
                self.take(body)
            self._is_here()
        self._work = Deferred.fromCoroutine(self._answer())
        self._work.addErrback(self._failed)

    def take(self, data: bytes) -> None:
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

    def end(self) -> None:
        """The request is here whole."""
        self._is_here()
        if self.is_answered:
            self._finish()
        elif self._awaiting_body is not None:
            self._awaiting_body.callback(None)

    def connection_lost(self) -> None:
        """The client hung up: nothing is written any more, and what was begun for it is given up."""
        self._is_hung_up = self._is_over = True
        if self._work is not None:
            self._work.cancel()
        self._edge.room.release(self._holding)

    def _is_here(self) -> None:
        self.is_whole = True
        self._holding.give_up = None

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
        if self.is_whole and not self._is_pouring:
            self._finish()

    async def _reply(self) -> Reply:
        # RFC 9112, 3.2: exactly one Host, from HTTP/1.1 on, and a target of a form that is there.
        head = self.head
        hosts = head.values(b"host")
        is_hosted = (len(hosts) == 1 and is_host(hosts[0])) or (not hosts and head.version == b"HTTP/1.0")
        if not is_hosted or not self.path:
            self._charge(None)
            raise Refused(problems.not_http())
        found = self._edge.router.find(head.method, self.path)
        if isinstance(found, Problem):
            self._charge(None)
            raise Refused(found)
        route = found.route
        self._caller = await self._admit(route, found.argument)
        types = head.values(b"content-type")
        if types and head.method in _WITH_BODY and not _is_of(types[-1], route.content_type):
            raise Refused(problems.wrong_content_type(route.content_type))
        key = self._idempotency_key()
        has_waited = await self._whole_body(route)
        if has_waited and self._caller is not None and route.needs is not None:
            # The body took its time: whoever was let in may have been thrown out since.
            self._caller = self._edge.access.still(self._caller)
            route.admit(self._caller, found.argument)
        call = Call(
            self.request_id,
            self._caller,
            self.channel.address,
            bytes(self._body),
            key,
            found.argument,
            self._told,
            self._deadline.earlier(REPLY_S),
            self.channel,
            preconditions_in(head.values(b"if-match"), head.values(b"if-none-match")),
        )
        return await self._under_conditions(route, call)

    async def _under_conditions(self, route: Route, call: Call) -> Reply:
        """Answer where If-Match and If-None-Match allow (RFC 9110, 13.2.2)."""
        conditions = call.preconditions
        if self.head.method in (b"GET", b"HEAD"):
            reply = await self._in_time(route.answer(call))
            return replace(reply, status=304, body=b"") if conditions.exclude(reply.headers.get("ETag")) else reply
        if conditions is not NONE:
            # What has no version that could be named is never the one that If-Match asks for.
            etag = None if route.etag is None else await self._in_time(route.etag(call))
            if conditions.exclude(etag):
                raise Refused(problems.unmodified())
        return await self._in_time(route.answer(call))

    async def _admit(self, route: Route, argument: str) -> Caller | None:
        """Return who asks, once it may ask this, and this often."""
        head, address = self.head, self.channel.address
        credentials = credentials_in(head, self.channel.certificate)
        caller = self._edge.access.known(credentials, address)
        if caller is None and credentials.basic is None and self.channel.listener.is_anonymous:
            # The anonymous listener is neither for a page in a browser, nor for a reverse proxy's clients.
            if is_forwarded(head):
                self._told["anonymous"] = "no: forwarded by a proxy"
            elif b"origin" not in head:
                caller = anonymous(address)
        self._charge(caller)
        if credentials.writes and is_cross_site(head, is_tls=self.channel.is_tls):
            raise Refused(problems.cross_site())
        if route.needs is None:
            return caller
        if caller is None:
            caller = await self._in_time(self._edge.access.caller(credentials, address))
        route.admit(caller, argument)
        return caller

    def _charge(self, caller: Caller | None) -> None:
        wait_s = self._edge.allowances.take(self.channel.source, is_known=caller is not None)
        if wait_s > 0:
            raise TooManyRequests(wait_s)

    def _idempotency_key(self) -> str | None:
        keys = self.head.values(b"idempotency-key")
        if not keys:
            return None
        if len(keys) > 1 or any(not 0 < len(key) <= IDEMPOTENCY_KEY_LIMIT or not key.isascii() for key in keys):
            raise Refused(problems.bad_idempotency_key(IDEMPOTENCY_KEY_LIMIT))
        return keys[0].decode()

    async def _whole_body(self, route: Route) -> bool:
        """Wait until the body is here; return whether it was not."""
        self._body_limit = route.body_limit
        if max(len(self._body), self.head.length or 0) > self._body_limit:
            self._give_up_body()
        has_to_wait = not self.is_whole and not self._is_given_up
        if has_to_wait:
            self._awaiting_body = Deferred()
            await self._awaiting_body
        if not self._has_room:
            raise Refused(problems.no_room())
        if self._is_given_up:
            raise Refused(problems.body_too_large(route.too_large, self._body_limit))
        return has_to_wait

    async def _in_time(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Give up at the deadline, whatever is waited for: an agent, or a turn to have a password checked."""
        return await self._deadline.give_up(work, self._give_up)

    def _give_up(self) -> None:
        assert self._work is not None  # it is what waits
        self._work.cancel()

    def _finish(self) -> None:
        """The answer is written to its end, and nothing more of the request comes; once."""
        if not self._is_over:
            self._is_over = True
            self._edge.room.release(self._holding)
            self.channel.request_done()

    def _failed(self, failure: Failure) -> None:
        """The client hung up, or there is a bug in here."""
        if isinstance(failure.value, CancelledError) and self._is_hung_up:
            self._log_request("client hung up")
            return
        _log.failure("request failed", failure, request_id=self.request_id)
        if not self._is_hung_up and not self.is_answered:
            self._tell(problems.failed())
            if self.is_whole:
                self._finish()

    # The answer

    def _tell(self, problem: Problem) -> None:
        headers = dict(problem.headers)
        # Whoever is asked by a browser's script is not to show the browser's own dialog.
        if problem.status == 401 and b"x-requested-with" not in self.head:
            headers["WWW-Authenticate"] = 'Basic realm="BMC", charset="UTF-8"'
        reply = self._edge.router.dialect_for(self.path).word(problem, self.request_id)
        self._write(replace(reply, headers={**reply.headers, **headers}), problem.code)

    def _write(self, reply: Reply, code: str) -> None:
        if self._is_hung_up:
            return
        self.is_answered = True
        self._status = reply.status
        head, channel = self.head, self.channel
        if not self.is_whole and (head.length is None or head.length > self._body_limit):
            channel.persistent = False
        body = reply.body if isinstance(reply.body, bytes) else _to_json(reply.body).encode()
        dialect = self._edge.router.dialect_for(self.path)
        octets = answer_head(
            head.version,
            reply.status,
            self.request_id,
            len(body),
            {**dialect.headers, **reply.headers},
            closes=not channel.persistent,
            cookies=reply.cookies,
        )
        if not body or head.method == b"HEAD" or reply.status == 304:
            channel.write(octets)
        elif body is reply.body:
            channel.write(octets)
            self._is_pouring = True
            channel.pour(Pouring(body, channel.write, self._poured), len(body))
        else:
            channel.write(octets + body)
        self._log_request(code)

    def _poured(self) -> None:
        """The last of the answer is written."""
        self._is_pouring = False
        self._finish()

    def _log_request(self, code: str) -> None:
        is_strangers = self._caller is None
        log = self._edge.tell_of_stranger if is_strangers or code == "http.too_many_requests" else _log.info
        log(
            "request",
            request_id=self.request_id,
            method=self.head.method.decode("ascii", "replace")[:16],
            path=self._edge.router.pattern_of(self.path),
            status=self._status,
            code=code,
            address=self.channel.address,
            **({} if self._caller is None else {"user": self._caller.user, "known_by": self._caller.method}),
            **self._told,
            took_ms=round((self._edge.reactor.seconds() - self._started_at) * 1000, 1),
        )


def _is_of(content_type: bytes, wanted: str) -> bool:
    """Return whether a Content-Type is this one, whatever its parameters say."""
    return content_type.partition(b";")[0].strip().lower() == wanted.encode()
