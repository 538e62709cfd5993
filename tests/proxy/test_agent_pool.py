"""The asker's links in this process: real TCP on loopback, a real agent behind it, and a clock that the test moves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import pytest_twisted
from support.agents import Time, open_agent, request
from support.csrs import make_csr
from support.octets import AGENT_HELLO, ASKER_HELLO, SIGN, encode, sent_records
from twisted.internet import reactor as the_reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from bmc_proxy.agents.connection import AgentLink, ProxyChannel
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.pool import Agents
from bmc_proxy.errors import AgentBusy, AgentTimeout, AgentUnavailable
from protocol.errors import ErrorCode
from protocol.keepalive import Timeouts
from protocol.records import Cancel, Drain, Error, Ping, Pong
from runtime.asn1.der import csr_subject_and_key, leaf_subject_and_key
from runtime.endpoints import server_endpoint
from runtime.lifecycle import Reactor
from runtime.transport import LAST_WORD_S
from vmi_agent.server import AgentServer

reactor = cast(Reactor, the_reactor)


@asynccontextmanager
async def agent_server(state_dir: Path) -> AsyncIterator[tuple[AgentServer, IListeningPort]]:
    """Run an agent on a free port of this process until the end of the `with`."""
    pool = ThreadPool(4, 4)
    in_thread = partial(deferToThreadPool, reactor, pool)
    with open_agent(state_dir, Time()) as agent:
        pool.start()
        server = AgentServer(
            reactor, agent.dispatch, lambda: AGENT_HELLO, in_thread, partial(in_thread, agent.go), 16, 100
        )
        port = await server_endpoint(reactor, "listen", "tcp:0:interface=127.0.0.1").listen(server)
        try:
            yield server, port
        finally:
            await maybeDeferred(port.stopListening)
            await server.drain()
            await server.disconnect()
            pool.stop()
        assert agent.failures == []


@asynccontextmanager
async def link_to(port: IListeningPort) -> AsyncIterator[AgentLink]:
    """Keep a link to an agent up until the end of the `with`; it is ready when this yields."""
    ready: Deferred[AgentLink] = Deferred()
    host = port.getHost()
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", host.port)  # type: ignore[attr-defined]  # an IPv4Address
    link = AgentLink(reactor, endpoint, "agent", lambda: ASKER_HELLO, ready.callback)
    link.start()
    try:
        await ready
        yield link
    finally:
        await link.stop()


def in_time() -> Deadline:
    """Return a deadline that no test gets to."""
    return Deadline.after(reactor, 30.0)


@pytest_twisted.ensureDeferred
async def test_link_asks_and_is_answered(tmp_path: Path) -> None:
    """Two requests in flight on one connection come back each with the certificate for its own key."""
    csrs = [make_csr(), make_csr(key="rsa2048")]
    async with agent_server(tmp_path) as (_, port), link_to(port) as link:
        agents = Agents([link])
        asked = [Deferred.fromCoroutine(agents.sign(request(csr), in_time())) for csr in csrs]
        assert (link.room, link.unanswered) == (0, 2)
        with pytest.raises(AgentBusy):
            await agents.sign(request(make_csr()), in_time())
        answers = [await each for each in asked]

        for csr, answer in zip(csrs, answers, strict=True):
            assert leaf_subject_and_key(answer.chain[0]) == csr_subject_and_key(csr)
        assert (link.room, link.unanswered) == (2, 0)


@pytest_twisted.ensureDeferred
async def test_link_without_an_agent() -> None:
    """Where nobody listens a request is refused at once, and the link tries on until it is stopped."""
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", 1)
    link = AgentLink(reactor, endpoint, "nobody", lambda: ASKER_HELLO, lambda _: None)
    link.start()
    try:
        with pytest.raises(AgentUnavailable):
            await link.ask(SIGN, in_time())
        with pytest.raises(AgentUnavailable):
            await Agents([link]).sign(SIGN, in_time())
    finally:
        await link.stop()


@pytest_twisted.ensureDeferred
async def test_link_is_restored(tmp_path: Path) -> None:
    """When the agent cuts the connection, the link comes back by itself."""
    async with agent_server(tmp_path) as (server, port):
        back: list[Deferred[AgentLink]] = [Deferred(), Deferred()]
        turns = iter(back)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)  # type: ignore[attr-defined]
        link = AgentLink(reactor, endpoint, "agent", lambda: ASKER_HELLO, lambda each: next(turns).callback(each))
        link.start()
        try:
            await back[0]
            await server.disconnect()
            await back[1]
            assert link.connected
        finally:
            await link.stop()


# One channel, with a clock that the test moves and a transport that keeps what is written


class Asked:
    """A request, and what it has failed with by now."""

    def __init__(self, asked: Deferred[object]) -> None:
        self.failure: type[BaseException] | None = None
        self.deferred = asked
        asked.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self.failure = failure.type


class Channel:
    """A ProxyChannel that has said and heard HELLO."""

    def __init__(self) -> None:
        self.clock = Clock()
        link = AgentLink(
            self.clock,
            TCP4ClientEndpoint(reactor, "127.0.0.1", 1),
            "agent",
            lambda: ASKER_HELLO,
            lambda _: None,
            Timeouts(),
        )
        self.link = link
        self.channel = ProxyChannel(link, ASKER_HELLO)
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)  # type: ignore[no-untyped-call]  # Twisted has not typed it
        self.channel.dataReceived(encode(AGENT_HELLO))
        self.transport.clear()

    def ask(self) -> Asked:
        """Ask through the link."""
        return Asked(Deferred.fromCoroutine(self.link.ask(SIGN, Deadline.after(self.clock, 30.0))))

    def sent(self) -> list[object]:
        """Return, and forget, the records that were written."""
        records = [record for _, record in sent_records(self.transport.value())]
        self.transport.clear()
        return list(records)

    def lose(self) -> None:
        """The transport is gone."""
        self.channel.connectionLost()


def test_channel_at_the_deadline() -> None:
    """At its deadline, and not before, a request fails and is cancelled at the agent; its place is kept."""
    one = Channel()
    asked = one.ask()
    one.sent()
    for _ in range(5):
        one.clock.advance(5.9)
        one.channel.dataReceived(encode(Ping(1)))
    assert asked.failure is None
    one.sent()

    one.clock.advance(0.5)

    assert asked.failure is AgentTimeout
    assert one.sent() == [Cancel()]
    assert one.link.unanswered == 1
    one.lose()


def test_channel_request_is_cancelled() -> None:
    """A request that its asker gives up is cancelled at the agent."""
    one = Channel()
    asked = one.ask()
    one.sent()

    asked.deferred.cancel()

    assert asked.failure is CancelledError
    assert one.sent() == [Cancel()]
    one.lose()


def test_channel_is_lost() -> None:
    """Every pending request fails when the connection is gone, and the link is not connected any more."""
    one = Channel()
    asked = [one.ask(), one.ask()]

    one.lose()

    assert [each.failure for each in asked] == [AgentUnavailable] * 2
    assert not one.link.connected
    assert one.clock.getDelayedCalls() == []


def test_channel_after_drain() -> None:
    """A draining agent is not asked any more; what it owes still comes."""
    one = Channel()
    asked = one.ask()
    one.channel.dataReceived(encode(Drain()))

    assert not one.link.connected
    assert one.ask().failure is AgentUnavailable
    one.channel.dataReceived(encode(Error(ErrorCode.BUSY, True, 0, ""), 1))
    assert asked.failure is AgentBusy
    one.lose()


def test_channel_pings_and_gives_up() -> None:
    """After 15 s of silence a PING is written, 5 s later the connection is closed, and cut if it does not end."""
    one = Channel()
    one.clock.advance(15.0)
    assert one.sent() == [Ping(1)]
    one.channel.dataReceived(encode(Pong(1)))
    one.clock.advance(15.0)
    assert one.sent() == [Ping(2)]

    one.clock.advance(5.0)

    [error] = one.sent()
    assert isinstance(error, Error)
    assert error.code is ErrorCode.TOO_SLOW
    assert one.transport.disconnecting
    one.channel.flush()  # as somebody does who does not know yet
    one.clock.advance(LAST_WORD_S)
    assert one.transport.disconnected
    one.lose()


def test_channel_stops_reading_while_the_peer_does_not_read() -> None:
    """While what is written is not taken, nothing is read."""
    one = Channel()
    one.channel.pauseProducing()
    assert one.transport.producerState == "paused"

    one.channel.resumeProducing()
    assert one.transport.producerState == "producing"
    one.lose()
