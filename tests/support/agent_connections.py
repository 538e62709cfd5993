"""Connections to an agent server of our own, in memory."""

from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from protocol.records import Error, Hello
from support.octets import ASKER_HELLO, encode
from vmi_agent.handlers import Dispatch
from vmi_agent.server import AgentChannel, AgentServer, InThread


def code_of(answer: object) -> str:
    """Return an answer's error code, or "SIGNED"."""
    return answer.code.name if isinstance(answer, Error) else type(answer).__name__.upper()


def server_of(dispatch: Dispatch, hello: Hello, in_thread: InThread = Deferred) -> AgentServer:
    """Return an agent in memory, whose threads do nothing unless they are given."""
    return AgentServer(Clock(), dispatch, lambda: hello, in_thread, in_thread, at_once=1, max_requests=1)


def connected(server: AgentServer) -> tuple[AgentChannel, StringTransport]:
    """Return a connection to it after both HELLOs."""
    transport = StringTransport()
    channel = server.buildProtocol(transport.getPeer())
    assert channel is not None
    channel.makeConnection(transport)  # type: ignore[no-untyped-call]  # Twisted has not typed it
    channel.dataReceived(encode(replace(ASKER_HELLO, max_record=65_536)))
    transport.clear()
    return channel, transport
