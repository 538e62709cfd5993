"""Strangers on the channel add a bounded number of rows to the audit, and how many were left out is recorded."""

from collections.abc import Mapping
from pathlib import Path

from support.agents import Agent, Time, open_agent
from support.octets import AGENT_HELLO
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from vmi_agent.ledger.audit.strangers import ROWS_A_DAY, ROWS_AT_ONCE, StrangerAudit
from vmi_agent.server import AgentServer

DAY_S = 86_400


class Rows:
    """What would be in the audit, with the time of each row."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.rows: list[tuple[float, str, Mapping[str, object]]] = []

    def note(self, event: str, fields: Mapping[str, object]) -> None:
        """Take a row."""
        self.rows.append((self.clock.seconds(), event, fields))

    def most_in_a_day(self) -> int:
        """Return the largest number of rows in any 24 hours."""
        times = [at for at, _, _ in self.rows]
        return max(sum(begin <= at < begin + DAY_S for at in times) for begin in times)

    def told(self, event: str) -> int:
        """Return how many events of a name the rows stand for."""
        return sum(1 + int(str(fields.get("left_out_before", 0))) for _, name, fields in self.rows if name == event)


def test_rows_of_strangers_in_a_day() -> None:
    """One a second for three days: no 24 hours have more rows than the limit, and each event is counted once."""
    written = Rows()
    audit = StrangerAudit(written.note, written.clock.seconds)
    for number in range(3 * DAY_S):
        audit("channel peer refused" if number % 2 else "connection refused", peer="tcp:192.0.2.1:1")
        written.clock.advance(1)
    audit.finish()
    _, last, fields = written.rows[-1]
    left_out = fields["left_out"]

    assert ROWS_A_DAY * 0.99 <= written.most_in_a_day() <= ROWS_A_DAY
    assert last == "strangers left out"
    assert isinstance(left_out, dict)
    for event in ("channel peer refused", "connection refused"):
        assert written.told(event) + left_out[event] == 3 * DAY_S / 2


def test_rows_of_strangers_on_both_sides_of_the_limit() -> None:
    """The first hundred at once are recorded, the next one is counted; a row that is due again tells of it."""
    written = Rows()
    audit = StrangerAudit(written.note, written.clock.seconds)
    for _ in range(ROWS_AT_ONCE):
        audit("channel peer refused")
    assert len(written.rows) == ROWS_AT_ONCE
    audit("channel peer refused", left_out_before=7)
    written.clock.advance(95)
    audit("channel peer refused")
    assert len(written.rows) == ROWS_AT_ONCE
    written.clock.advance(2)
    audit("channel peer refused")
    assert [fields for _, _, fields in written.rows[ROWS_AT_ONCE:]] == [{"left_out_before": 9}]
    audit.finish()
    assert len(written.rows) == ROWS_AT_ONCE + 1


def server_of(agent: Agent, written: Rows) -> AgentServer:
    """Return an agent's server on a clock that stands."""
    return AgentServer(written.clock, agent.dispatch, lambda: AGENT_HELLO, Deferred, Deferred, 1, 1, note=written.note)


def test_strangers_that_connect_all_day(tmp_path: Path) -> None:
    """Whatever reaches the audit of those that are not let in goes through the one quota."""
    written = Rows()
    with open_agent(tmp_path, Time()) as agent:
        server = server_of(agent, written)
        for number in range(2 * ROWS_A_DAY):
            peer = IPv4Address("TCP", f"192.0.2.{number % 200}", 1000)
            channel = server.buildProtocol(peer)
            assert channel is not None
            channel.makeConnection(StringTransport(peerAddress=peer))  # type: ignore[no-untyped-call]  # Twisted has not typed it
            channel.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
            channel.connectionLost()
            written.clock.advance(DAY_S / (2 * ROWS_A_DAY))
        server.stranger_audit.finish()

    assert written.most_in_a_day() <= ROWS_A_DAY
    assert {event for _, event, _ in written.rows} == {"channel peer refused", "strangers left out"}
    left_out = written.rows[-1][2]["left_out"]
    assert isinstance(left_out, dict)
    assert written.told("channel peer refused") + left_out["channel peer refused"] == 2 * ROWS_A_DAY
