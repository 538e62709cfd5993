"""The agent's places: for OCSP fair between its connections, and before HELLO between sites."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from support.agent_connections import code_of, connected, server_of
from support.agents import Time, open_agent
from support.octets import AGENT_HELLO, encode, sent_records
from twisted.internet.address import IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransportWithDisconnection

from protocol.records import GetOcsp, OcspAnswer
from runtime.limits.connection_limiter import LIMIT, LIMIT_PER_SOURCE
from vmi_agent.server import OCSP_AT_ONCE, OCSP_WAITING, AgentChannel, AgentServer


def test_ocsp_of_a_quiet_connection_is_next_but_one(tmp_path: Path) -> None:
    """A connection that fills all places loses its last request to another one's, which is worked on after two ends."""
    working: list[tuple[bytes, Deferred[Any]]] = []

    def in_thread(_work: object, record: GetOcsp, *_: object) -> Deferred[Any]:
        working.append((record.request, Deferred()))
        return working[-1][1]

    count = OCSP_AT_ONCE + OCSP_WAITING
    with open_agent(tmp_path, Time()) as agent:
        server = server_of(agent.dispatch, replace(AGENT_HELLO, window=count), in_thread)
        (flooding, flood), (asking, quiet) = connected(server), connected(server)
        for number in range(1, count + 1):
            flooding.dataReceived(encode(GetOcsp(1000, b"flood %d" % number), number))
        assert sent_records(flood.value()) == []
        asking.dataReceived(encode(GetOcsp(1000, b"quiet"), 1))
        assert [(number, code_of(each)) for number, each in sent_records(flood.value())] == [(count, "BUSY")]
        assert sent_records(quiet.value()) == []
        for _, done in working[:2]:
            done.callback(OcspAnswer(0, b"response"))

        assert b"quiet" in [request for request, _ in working]
        for channel in (flooding, asking):
            channel.connectionLost()


def test_strangers_of_one_site_cut_each_other(tmp_path: Path) -> None:
    """However many addresses of a /56 connect and say nothing, a proxy that is about to say HELLO is let alone."""
    with open_agent(tmp_path, Time()) as agent:
        server = server_of(agent.dispatch, AGENT_HELLO)
        honest = connect_from(server, "2001:db8:1::1")
        others = [connect_from(server, f"2001:db8:0:{number:x}::{number:x}") for number in range(2 * LIMIT)]

        assert honest is not None
        assert not honest.connection.closed
        assert sum(each is not None for each in others) == LIMIT_PER_SOURCE
        for channel in (honest, *others):
            if channel is not None:
                channel.connectionLost()


def connect_from(server: AgentServer, host: str) -> AgentChannel | None:
    """Connect from an address, up to HELLO; return None where that is refused."""
    address = IPv6Address("TCP", host, 40_000)
    channel = server.buildProtocol(address)
    if channel is not None:
        channel.makeConnection(StringTransportWithDisconnection(peerAddress=address))  # type: ignore[no-untyped-call]  # Twisted has not typed it
    return channel
