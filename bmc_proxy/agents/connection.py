"""The asker's side of the channel to one agent: a connection that restores itself, requests in flight, deadlines.

Whether the agent can be asked is known at any moment, so nobody has to wait to find out.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from random import SystemRandom

from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.health import Health, after_answer, after_failure
from bmc_proxy.errors import (
    AgentBusy,
    AgentFailed,
    AgentTimeout,
    AgentUnavailable,
    ExchangeError,
    NotPublished,
    RequestRefused,
)
from protocol.errors import ErrorCode
from protocol.events import (
    AnswerReceived,
    Event,
    LateAnswer,
    PeerDraining,
    PeerFailed,
    PeerReady,
    StatusReceived,
)
from protocol.keepalive import Timeouts
from protocol.records import Answer, Chain, Error, Hello, OcspAnswer, Published, Request, Signed, Status
from runtime.clock import BACK_DATE, utc_now
from runtime.transport import ChannelTransport

# Every quarter of a second at first: requests may be waiting for an agent that restarts.
FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 3.0
RETRY_FACTOR = 1.3
# An agent cannot send a client away for longer.
LONGEST_RETRY_AFTER_MS = 60_000

_REFUSALS = frozenset(
    {
        ErrorCode.CSR_BLOCKED_KEY,
        ErrorCode.CSR_MALFORMED,
        ErrorCode.CSR_TOO_LARGE,
        ErrorCode.CSR_BAD_SIGNATURE,
        ErrorCode.CSR_WEAK_KEY,
        ErrorCode.CSR_POLICY,
        ErrorCode.REQUEST_CONFLICT,
    }
)

_log = Logger()
_chance = SystemRandom().random


class ProxyChannel(ChannelTransport):
    """One connection to an agent. What is pending is bounded by the window that the agent grants."""

    def __init__(self, link: "AgentLink", hello: Hello) -> None:
        super().__init__(link.clock, hello, link.timeouts, link.uids)
        self._link = link
        self._pending: dict[int, Deferred[Answer]] = {}

    def ask(self, record: Request) -> Deferred[Answer]:
        """Send a request for which there is room. Cancelling the Deferred cancels the request at the agent."""
        request_id = self.connection.ask(record)

        def cancel(_deferred: Deferred[Answer]) -> None:
            del self._pending[request_id]
            self.connection.cancel(request_id)
            self.flush()

        answer: Deferred[Answer] = Deferred(cancel)
        self._pending[request_id] = answer
        # Not `flush`: what is asked brings no timer nearer.
        self.wire.write(self.connection.data_to_send())
        return answer

    def connectionMade(self) -> None:
        self._link.channel_open(self)
        super().connectionMade()

    def event_received(self, event: Event) -> None:
        match event:
            case AnswerReceived(request_id, record):
                had_room = self.connection.room > 1
                self._pending.pop(request_id).callback(record)
                self._link.place_is_free(had_room=had_room)
            case LateAnswer():
                _log.info("late answer dropped", agent=self.peer_address, late_answers=self.connection.late_answers)
                self._link.place_is_free(had_room=self.connection.room > 1)
            case PeerReady(hello):
                self._link.channel_ready(self, hello)
            case StatusReceived(status):
                self._link.status_received(status)
            case PeerDraining():
                _log.info("agent draining", agent=self.peer_address)
                self._link.on_room()
            case PeerFailed(error):
                _log.warn("agent refused us", agent=self.peer_address, code=error.code.name, reason=error.text)

    def connection_over(self, reason: str) -> None:
        pending, self._pending = self._pending, {}
        self._link.channel_over(self, reason)
        for answer in pending.values():
            answer.errback(AgentUnavailable("The connection to the host broke. Try again with the same CSR."))


class _ChannelFactory(Factory):
    """Makes the link's channels."""

    noisy = False

    def __init__(self, make_channel: Callable[[], ProxyChannel]) -> None:
        self._make_channel = make_channel

    def buildProtocol(self, addr: IAddress | None) -> ProxyChannel:
        return self._make_channel()


class AgentLink:
    """One agent: a connection that is made again, with growing and jittered pauses, whenever it is lost.

    Args:
        clock: the reactor, or a `Clock`.
        endpoint: where the agent listens; `name` is that for the log.
        make_hello: returns the HELLO to say now.
        on_ready: called with this link each time a connection can be used.
        on_status: called with this link each time its agent says that it has another root or another CRL.
        uids: who may listen on a unix socket; None for this process's own user.

    Attributes:
        root_generation: the last one that the agent told of.
        connections: how many there were that could be used.
        health: how the agent did lately.
        on_room: called each time the agent takes requests again, after `on_ready`, or after its window was full; and
            each time that it takes none any more.
    """

    def __init__(
        self,
        clock: IReactorTime,
        endpoint: IStreamClientEndpoint,
        name: str,
        make_hello: Callable[[], Hello],
        on_ready: Callable[["AgentLink"], None],
        timeouts: Timeouts | None = None,
        uids: Collection[int] | None = None,
        on_status: Callable[["AgentLink"], None] = lambda _link: None,
    ) -> None:
        self.root_generation = 0
        self.connections = 0
        self.health = Health()
        self.on_room: Callable[[], None] = lambda: None
        self.clock = clock
        self.name = name
        self.uids = uids
        self.timeouts = timeouts or Timeouts()
        self._on_ready = on_ready
        self._on_status = on_status
        self._open: ProxyChannel | None = None
        self._channel: ProxyChannel | None = None  # the same, once it said HELLO
        # Connections in a row that ended before a HELLO: to the service they were no failures.
        self._futile = 0
        self._told = ""
        pause_s = backoffPolicy(FIRST_RETRY_S, LONGEST_RETRY_S, RETRY_FACTOR)
        self._service = ClientService(
            endpoint,
            _ChannelFactory(lambda: ProxyChannel(self, make_hello())),
            retryPolicy=lambda attempts: pause_s(max(attempts, self._futile)),
            clock=clock,
        )

    def start(self) -> None:
        """Begin to connect, for as long as it takes."""
        self._service.startService()
        self._tell_first_failure()

    async def stop(self) -> None:
        """Give the connection up for good."""
        stopped = self._service.stopService()
        if self._open is not None:
            self._open.disconnect()
        await stopped

    @property
    def connected(self) -> bool:
        """Whether an agent is there that has said HELLO and is not about to leave."""
        if self._channel is None:
            return False
        connection = self._channel.connection
        return not (connection.draining or connection.closed)

    @property
    def room(self) -> int:
        """How many more requests the agent takes at this moment."""
        return self._channel.connection.room if self._channel else 0

    @property
    def unanswered(self) -> int:
        """How many answers the agent owes."""
        return self._channel.connection.unanswered if self._channel else 0

    @property
    def is_ailing(self) -> bool:
        """Whether others are to be asked first."""
        return self.health.is_ailing(self.clock.seconds())

    def failed(self) -> None:
        """The agent did not do what it is there for."""
        self.health = after_failure(self.health, self.clock.seconds(), _chance())

    async def ask(self, record: Request, deadline: Deadline) -> Signed | Chain | Published | OcspAnswer:
        """Return the agent's answer; the record goes out with what is left of the deadline.

        Raises:
            ExchangeError: AgentUnavailable, AgentBusy, AgentTimeout, AgentFailed, NotPublished or RequestRefused.
        """
        channel = self._channel
        if channel is None or not self.connected:
            raise AgentUnavailable
        if channel.connection.room <= 0:
            raise AgentBusy
        left_ms = deadline.for_agent_ms()
        if record.deadline_ms != left_ms:
            record = replace(record, deadline_ms=left_ms)
        answer = await deadline.limit(channel.ask(record))
        if not isinstance(answer, Error):
            self.health = after_answer(self.health, self.clock.seconds())
            return answer
        error = _as_exception(answer)
        if isinstance(error, AgentFailed) and not isinstance(error, NotPublished):
            self.failed()
        raise error

    # Told by the channel

    def channel_open(self, channel: ProxyChannel) -> None:
        """There is a connection; whether an agent is at its end is not known yet."""
        self._open = channel

    def channel_ready(self, channel: ProxyChannel, hello: Hello) -> None:
        """The agent said HELLO."""
        self._channel = channel
        self.connections += 1
        self.root_generation = hello.root_generation
        self._futile = 0
        self._told = ""
        _log.info("agent connected", agent=self.name, root_generation=hello.root_generation, window=hello.window)
        ahead_s = round(hello.clock_ms / 1000 - utc_now().timestamp())
        if abs(ahead_s) > BACK_DATE.total_seconds():
            _log.warn("clocks differ: set the wrong one", agent=self.name, agent_ahead_s=ahead_s)
        self._on_ready(self)
        self.place_is_free(had_room=False)

    def place_is_free(self, *, had_room: bool) -> None:
        """The agent takes one more request than before."""
        if not had_room and self.room > 0:
            self.on_room()

    def status_received(self, status: Status) -> None:
        """The agent said that something changed."""
        self.root_generation = status.root_generation
        self._on_status(self)
        told = {"root_generation": status.root_generation, "crl_number": status.crl_number}
        _log.info("agent has news", agent=self.name, **told)

    def channel_over(self, channel: ProxyChannel, reason: str) -> None:
        """A connection ended."""
        self._open = None
        if self._channel is channel:
            if not channel.connection.draining:
                self.failed()
            self._channel = None
            self.on_room()
            if self._service.running:
                _log.warn("agent lost", agent=self.name, reason=reason)
                # Not at once: the service hears of the loss after its channel does.
                self.clock.callLater(0, self._tell_first_failure)
        elif self._service.running:
            self._futile += 1
            if reason != self._told:
                self._told = reason
                _log.warn("agent not there, trying on", agent=self.name, reason=reason)

    def _tell_first_failure(self) -> None:
        """Say once, not at each attempt, that the agent is not there."""

        def failed(failure: Failure) -> None:
            if self._service.running:
                _log.warn("agent not there, trying on", agent=self.name, reason=failure.getErrorMessage())

        self._service.whenConnected(failAfterFailures=1).addErrback(failed)


def _as_exception(error: Error) -> ExchangeError:
    if error.code in _REFUSALS:
        return RequestRefused(error.code, error.text)
    retry_after_ms = min(error.retry_after_ms, LONGEST_RETRY_AFTER_MS)
    match error.code:
        # An agent that is older than the question does not know its type.
        case ErrorCode.NOT_FOUND | ErrorCode.UNSUPPORTED:
            return NotPublished()
        case _ if not error.retryable:
            return AgentFailed(repeatable=False)
        case ErrorCode.BUSY:
            return AgentBusy(retry_after_ms)
        case ErrorCode.DEADLINE | ErrorCode.CANCELLED:
            return AgentTimeout(retry_after_ms=retry_after_ms)
        case ErrorCode.DRAINING:
            return AgentUnavailable(retry_after_ms=retry_after_ms)
        case _:
            return AgentFailed(retry_after_ms=retry_after_ms)
