"""How a connection ends that the agent drains: who is refused, who is given up, and who gets a last word."""

import signal
import socket
from pathlib import Path

import pytest
from support.agents import Time, open_agent, request
from support.csrs import make_csr
from support.octets import AGENT_HELLO, ASKER_HELLO, SIGN, connection, encode, feed, ready, sent_records
from support.processes import port_of, start_agent
from support.raw_asker import PATIENCE_S
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from protocol.connection import DRAINING_RETRY_AFTER_MS, Connection
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.events import PeerFailed
from protocol.records import Drain, Error, GetChain, Ping, Pong, Role, Signed
from runtime.transport import LAST_WORD_S
from vmi_agent.server import AgentServer

SIGNED = Signed(b"s" * 32, 1, (b"leaf", b"root"))


def draining(*, with_request: bool, is_heard: bool) -> Connection:
    """Return an agent's connection after DRAIN, with or without a request that it owes, and with or without PONG."""
    agent = ready(Role.AGENT)
    if with_request:
        feed(agent, encode(SIGN, 1), one_by_one=False)
    agent.drain(0.0)
    if is_heard:
        feed(agent, encode(Pong(1)), one_by_one=False)
    agent.data_to_send()
    return agent


def test_request_behind_the_pong() -> None:
    """It is answered with DRAINING at once, and the drain does not wait for it."""
    agent = draining(with_request=False, is_heard=True)

    assert feed(agent, encode(GetChain(5), 1), one_by_one=False) == []

    refused = Error(ErrorCode.DRAINING, True, DRAINING_RETRY_AFTER_MS, "the agent is ending")
    assert sent_records(agent.data_to_send()) == [(1, refused)]
    assert agent.drained


def test_pong_of_the_drain_is_late() -> None:
    """The PING behind a DRAIN has 5 s for its PONG, as every PING has."""
    agent = draining(with_request=True, is_heard=False)
    assert agent.next_timer() == 5.0

    with pytest.raises(RemoteProtocolError) as fault:
        agent.handle_timer(5.0)

    assert fault.value.code is ErrorCode.TOO_SLOW
    assert agent.closed


@pytest.mark.parametrize(("with_request", "is_heard"), [(True, True), (True, False), (False, False)])
def test_leave_with_something_owing(with_request: bool, is_heard: bool) -> None:
    """An asker that waits for an answer, or has not taken the DRAIN in, gets an ERROR that says why it is left."""
    agent, asker = draining(with_request=with_request, is_heard=is_heard), ready(Role.ASKER)

    agent.leave()

    text = f"the agent ends, {int(with_request)} requests without an answer"
    error = Error(ErrorCode.DRAINING, True, DRAINING_RETRY_AFTER_MS, text)
    assert feed(asker, agent.data_to_send(), one_by_one=False) == [PeerFailed(error)]
    assert agent.closed
    assert asker.closed


def test_leave_with_nothing_owing() -> None:
    """There is nothing to say to an asker that is drained, to a peer without HELLO, or from an asker; nor twice."""
    asking = ready(Role.ASKER)
    asking.ask(SIGN)
    asking.data_to_send()
    left = draining(with_request=True, is_heard=True)
    left.leave()
    left.data_to_send()
    for each in (draining(with_request=False, is_heard=True), connection(Role.AGENT), asking, left):
        each.leave()
        assert each.data_to_send() == b""
        assert each.closed


def test_agent_that_ends_while_it_signs(tmp_path: Path) -> None:
    """Where the time for the drain is over, the proxy whose request is not answered is told so; then it is cut."""
    clock, transport = Clock(), StringTransport()
    with open_agent(tmp_path, Time()) as agent:
        server = AgentServer(
            clock, agent.dispatch, lambda: AGENT_HELLO, Deferred, lambda *_: Deferred(), at_once=1, max_requests=1
        )
        channel = server.buildProtocol(transport.getPeer())
        assert channel is not None
        channel.makeConnection(transport)  # type: ignore[no-untyped-call]  # Twisted has not typed it
        channel.dataReceived(encode(ASKER_HELLO) + encode(request(make_csr()), 1))
        transport.clear()
        drained = server.drain()
        channel.dataReceived(encode(Pong(1)))
        assert sent_records(transport.value()) == [(0, Drain()), (0, Ping(1))]
        assert not drained.called
        transport.clear()

        server.disconnect()

        [(request_id, error)] = sent_records(transport.value())
        assert isinstance(error, Error)
        assert (request_id, error.code) == (0, ErrorCode.DRAINING)
        assert transport.disconnecting
        clock.advance(LAST_WORD_S)
        assert transport.disconnected
        channel.connectionLost()


def test_agent_whose_asker_ignores_the_drain(tmp_path: Path) -> None:
    """An asker that neither sends the PONG nor stops asking is told TOO_SLOW, and holds the end up no longer."""
    with start_agent(tmp_path) as process:
        port = port_of(process.wait_for("ready")["listen"][0])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as stream:
            stream.sendall(encode(ASKER_HELLO) + encode(GetChain(1000), 1))
            received = b""
            while len(received) < len(encode(AGENT_HELLO)) + 100:  # the HELLO and more: the chain
                received += stream.recv(65_536)
            process._process.send_signal(signal.SIGTERM)
            process.wait_for("stopping")
            stream.sendall(encode(GetChain(1000), 2))
            while data := stream.recv(65_536):
                received += data

        *_, (request_id, last) = sent_records(received)
        assert isinstance(last, Error)
        assert (request_id, last.code) == (0, ErrorCode.TOO_SLOW)
        assert process.wait() == 0
