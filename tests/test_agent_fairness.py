"""The agent's places for OCSP: fair between its connections, as those for CSRs are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from agents import Time, open_agent
from octets import AGENT_HELLO, encode, sent_records
from test_agent_channel import code_of, connected, server_of
from twisted.internet.defer import Deferred

from protocol.records import GetOcsp, OcspAnswer
from vmi_agent.server import OCSP_AT_ONCE, OCSP_WAITING


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
