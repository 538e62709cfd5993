"""One HTTP request: judged when its headers are here, answered when its body is.

Who asks, and whether it may, is judged before the body is looked at. Octets of the wire are counted as they come, so
framing counts as well. What is refused while its body still comes is answered at once, and the channel then drops a
bounded rest (`lingering`).
"""

import json
import os
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.api import errors as api_errors
from bmc_proxy.api.headers import credentials_in, is_cross_site, is_forwarded
from bmc_proxy.api.preconditions import NONE, preconditions_in
from bmc_proxy.api.types import Call, Problem, Reply, Route
from bmc_proxy.auth.accounts import ANONYMOUS
from bmc_proxy.auth.principal import Caller, anonymous
from bmc_proxy.errors import ExchangeError, TooManyRequests
from bmc_proxy.http1.request_head import Head
from bmc_proxy.http1.request_target import is_host, path_of
from bmc_proxy.http1.response_head import answer_head
from bmc_proxy.server.body_producer import Pouring
from bmc_proxy.server.context import Channel
from bmc_proxy.server.request_body import RequestBody

HEADER_LIMIT = 8 * 1024
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
        body: what comes behind the head.
        is_answered: its answer is written, or is being written.
    """

    def __init__(self, channel: Channel, head: Head) -> None:
        self.channel = channel
        self.head = head
        # Empty for a target of no form that is taken, which is refused.
        self.path = path_of(head.method, head.target) or b""
        self.request_id = os.urandom(8).hex()
        self.is_answered = False
        edge = self._edge = channel.listener.edge
        self._started_at = edge.reactor.seconds()
        # From here on all waits count: for a password's turn, for the body, for one agent after the other.
        self._deadline = Deadline(edge.reactor, self._started_at + edge.deadline_s)
        self.body = RequestBody(edge.room, channel.source, head.length, HEADER_LIMIT, self._body_given_up)
        self._is_invited = not head.expects_continue
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

    def begin(self) -> None:
        """Judge it, and answer once its body is here."""
        self._work = Deferred.fromCoroutine(self._answer())
        self._work.addErrback(self._failed)

    def end(self) -> None:
        """The body is here whole."""
        if self.is_answered:
            self._finish_if_due()
        else:
            self._stop_waiting()

    def connection_lost(self) -> None:
        """The client hung up: nothing is written any more, and what was begun for it is given up."""
        self._is_hung_up = self._is_over = True
        if self._work is not None:
            self._work.cancel()
        self.body.release()

    def _body_given_up(self) -> None:
        """The request is refused for its body, once nothing else refuses it."""
        self.channel.persistent = False
        self._stop_waiting()

    def _stop_waiting(self) -> None:
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
            self._tell(api_errors.from_error(error))
        self._finish_if_due()

    async def _reply(self) -> Reply:
        # RFC 9112, 3.2: exactly one Host, from HTTP/1.1 on, and a target of a form that is there.
        head = self.head
        hosts = head.values(b"host")
        is_hosted = (len(hosts) == 1 and is_host(hosts[0])) or (not hosts and head.version == b"HTTP/1.0")
        if not is_hosted or not self.path:
            self._charge(None)
            raise Refused(api_errors.not_http())
        found = self._edge.router.find(head.method, self.path)
        if isinstance(found, Problem):
            self._charge(None)
            raise Refused(found)
        route = found.route
        self._caller = await self._admit(route, found.argument)
        types = head.values(b"content-type")
        if types and head.method in _WITH_BODY and not _is_of(types[-1], route.content_type):
            raise Refused(api_errors.wrong_content_type(route.content_type))
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
            bytes(self.body.octets),
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
                raise Refused(api_errors.unmodified())
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
            raise Refused(api_errors.cross_site())
        if route.needs is None:
            return caller
        if caller is None:
            caller = await self._in_time(self._edge.access.caller(credentials, address))
        route.admit(caller, argument)
        return caller

    def _charge(self, caller: Caller | None) -> None:
        allowances, source = self._edge.allowances, self.channel.source
        wait_s = allowances.take(source, is_known=caller is not None)
        if wait_s > 0:
            if not allowances.may_be_refused(source):
                self.channel.persistent = False
            raise TooManyRequests(wait_s)

    def _idempotency_key(self) -> str | None:
        keys = self.head.values(b"idempotency-key")
        if not keys:
            return None
        if len(keys) > 1 or any(not 0 < len(key) <= IDEMPOTENCY_KEY_LIMIT or not key.isascii() for key in keys):
            raise Refused(api_errors.bad_idempotency_key(IDEMPOTENCY_KEY_LIMIT))
        return keys[0].decode()

    async def _whole_body(self, route: Route) -> bool:
        """Wait until the body is here; return whether it was not."""
        body = self.body
        body.limit = route.body_limit
        if max(len(body.octets), self.head.length or 0) > body.limit:
            body.give_up()
        has_to_wait = not body.is_whole and not body.is_given_up
        if has_to_wait:
            self._invite()
            self._awaiting_body = Deferred()
            await self._awaiting_body
        if not body.had_room:
            raise Refused(api_errors.no_room())
        if body.is_given_up:
            raise Refused(api_errors.body_too_large(route.too_large, body.limit))
        return has_to_wait

    def _invite(self) -> None:
        """Ask for the body where the client waits for that: nothing in the head refuses it (RFC 9110, 10.1.1)."""
        if not self._is_invited and not self.body.charged:
            self.channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._is_invited = True

    async def _in_time(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Give up at the deadline, whatever is waited for: an agent, or a turn to have a password checked."""
        return await self._deadline.give_up(work, self._give_up)

    def _give_up(self) -> None:
        assert self._work is not None  # it is what waits
        self._work.cancel()

    def _finish_if_due(self) -> None:
        """End once the answer is written to its end, and nothing more of the request comes or matters."""
        if self._is_over or not self.is_answered or self._is_pouring:
            return
        if self.body.is_whole or not self.channel.persistent:
            self._is_over = True
            self.channel.request_done()

    def _failed(self, failure: Failure) -> None:
        """The client hung up, or there is a bug in here."""
        if isinstance(failure.value, CancelledError) and self._is_hung_up:
            self._log_request("client hung up")
            return
        _log.failure("request failed", failure, request_id=self.request_id)
        if not self._is_hung_up and not self.is_answered:
            self._tell(api_errors.failed())
            self._finish_if_due()

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
        head, channel, body = self.head, self.channel, self.body
        body.release()
        # Without an invitation the client sends its body or does not: where the next request begins is not known.
        is_uncertain = head.length is None or head.length > body.limit or not (self._is_invited or body.charged)
        if not body.is_whole and is_uncertain:
            channel.persistent = False
        content = reply.body if isinstance(reply.body, bytes) else _to_json(reply.body).encode()
        dialect = self._edge.router.dialect_for(self.path)
        octets = answer_head(
            head.version,
            reply.status,
            self.request_id,
            len(content),
            {**dialect.headers, **reply.headers},
            closes=not channel.persistent,
            cookies=reply.cookies,
        )
        if not content or head.method == b"HEAD" or reply.status == 304:
            channel.write(octets)
        elif content is reply.body:
            channel.write(octets)
            self._is_pouring = True
            channel.pour(Pouring(content, channel.write, self._poured), len(content))
        else:
            channel.write(octets + content)
        self._log_request(code)

    def _poured(self) -> None:
        """The last of the answer is written."""
        self._is_pouring = False
        self._finish_if_due()

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
