"""A request's deadline: what it counts, what an agent is told of it, and that it holds whatever is waited for."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.csrs import make_csr, pem
from support.edges import PASSWORD, Spoken, TestEdge, edge_in
from support.run_log import secret
from support.steered_agents import World
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.errors import AgentTimeout
from bmc_proxy.pem import to_pem
from bmc_proxy.server.request import REPLY_S
from protocol.records import SignCsr

BODY = json.dumps({"CsrString": pem(make_csr())}).encode()
HEADER = (
    b"POST /ibm/v1/Host/Actions/SignCSR HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n" % len(BODY)
)
BASIC = b"Authorization: Basic " + base64.b64encode(b"root:" + secret(PASSWORD).encode()) + b"\r\n"
ROOT = b"GET /ibm/v1/Host/Certificate/root HTTP/1.1\r\nHost: bmc\r\n\r\n"


@pytest.mark.parametrize(
    ("left_s", "told_ms"), [(300.0, 299_750), (30.0, 29_750), (2.5, 2_250), (1.0, 900), (0.01, 9), (0.0012, 1)]
)
def test_deadline_for_an_agent(left_s: float, told_ms: int) -> None:
    """An agent is told of what is left less a quarter of a second, or a tenth where that is less."""
    assert Deadline.after(Clock(), left_s).for_agent_ms() == told_ms


@pytest.mark.parametrize("left_s", [0.0011, 0.0, -1.0])
def test_deadline_that_is_over_for_an_agent(left_s: float) -> None:
    """Less than a millisecond is nothing."""
    with pytest.raises(AgentTimeout):
        Deadline.after(Clock(), left_s).for_agent_ms()


@pytest.mark.parametrize("ends_after_s", [1.999, 2.001])
def test_deadline_limits_work(ends_after_s: float) -> None:
    """What is there before the deadline is taken; what is not is cancelled at it."""
    clock, work = Clock(), Deferred[str]()
    ended: list[Any] = []
    clock.callLater(ends_after_s, lambda: None if work.called else work.callback("done"))
    Deferred.fromCoroutine(Deadline.after(clock, 2.0).limit(work)).addBoth(ended.append)
    clock.pump([0.001] * 1_998)
    assert ended == []
    clock.pump([0.001] * 4)

    if ends_after_s < 2.0:
        assert ended == ["done"]
    else:
        assert ended[0].type is AgentTimeout


class Hashing:
    """A thread that checks a password when the test says so."""

    def __init__(self) -> None:
        self.wanted: list[Callable[[], None]] = []

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.wanted.append(lambda: done.callback(work(*arguments)))
        return done


class Edge:
    """The HTTP edge before two agents."""

    def __init__(self, directory: Path) -> None:
        self.world = World()
        self.hashing = Hashing()
        self._directory = directory
        self._edges: list[TestEdge] = []

    def connect(self, *, is_anonymous: bool = True) -> Spoken:
        """Connect to a listener with or without login."""
        edge = edge_in(
            self._directory,
            is_anonymous=is_anonymous,
            clock=self.world.clock,
            links=[each.link for each in self.world.steered],
            hashing=self.hashing,
        )
        self._edges.append(edge)
        return edge.connect()

    def end(self) -> None:
        """Stop what looks after connections."""
        for edge in self._edges:
            edge.site.drain()
            edge.site.abandon()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    """Return an edge before two agents."""
    made = Edge(tmp_path)
    yield made
    made.end()


def told_ms(edge: Edge) -> list[int]:
    """Return the deadlines that the agents were told, in their order."""
    edge.world.hear()
    heard = [record for each in edge.world.steered for record in each.heard]
    return [record.deadline_ms for record in heard if isinstance(record, SignCsr)]


def test_slow_body_uses_the_time_up(edge: Edge) -> None:
    """The deadline is counted from the header's end: what the body took is not there for the agents."""
    spoken = edge.connect()
    spoken.say(HEADER[:20])
    edge.world.advance(5.0)
    spoken.say(HEADER[20:] + b"\r\n")
    edge.world.advance(20.0)
    spoken.say(BODY)

    assert told_ms(edge) == [round((10.0 - REPLY_S - 0.25) * 1000)]


def test_password_check_uses_the_time_up(edge: Edge) -> None:
    """So is what a login took, and its turn."""
    spoken = edge.connect(is_anonymous=False)
    spoken.say(HEADER + BASIC + b"\r\n" + BODY)
    edge.world.advance(12.0)
    edge.hashing.wanted.pop()()

    assert told_ms(edge) == [round((18.0 - REPLY_S - 0.25) * 1000)]


@pytest.mark.parametrize("waits_for", ["a password check", "an agent", "a return"])
def test_request_is_answered_at_its_deadline(edge: Edge, waits_for: str) -> None:
    """Whatever a request waits for, at its deadline it gets 503 with Retry-After, once; not before."""
    spoken = edge.connect(is_anonymous=waits_for != "a password check")
    spoken.say(HEADER + (BASIC if waits_for == "a password check" else b"") + b"\r\n")
    edge.world.advance(28.5)
    spoken.say(BODY)
    if waits_for == "a return":
        for agent in edge.world.steered:
            agent.lose()
    edge.world.advance(1.4)
    assert spoken.raw_answers() == []
    edge.world.advance(0.11)

    [(status, headers, body)] = spoken.answers()
    assert (status, body["Code"]) == (503, "agent.timeout")
    assert int(headers["retry-after"]) > 0
    edge.world.advance(5.0)
    assert spoken.raw_answers() == []


def test_body_at_the_last_moment(edge: Edge) -> None:
    """Where the body took all the time, no agent is asked and the answer is there at once."""
    spoken = edge.connect()
    spoken.say(HEADER + b"\r\n")
    edge.world.advance(29.96)
    spoken.say(BODY)

    [(status, _, body)] = spoken.answers()
    assert (status, body["Code"]) == (503, "agent.timeout")
    assert told_ms(edge) == []


def test_root_where_no_agent_answers_in_time(edge: Edge, tmp_path: Path) -> None:
    """What is kept of the last root is answered when no agent did, within the deadline."""
    (tmp_path / "root.pem").write_text(to_pem(b"\x30\x09" + 3 * b"\x02\x01\x01"))
    spoken = edge.connect()
    spoken.say(ROOT)
    edge.world.advance(30.0 - REPLY_S - 0.001)
    assert spoken.raw_answers() == []
    edge.world.advance(0.002)
    [(status, headers, body)] = spoken.answers()
    assert (status, list(body)) == (200, ["Certificate"])
    assert "age" in headers


def test_hmc_hangs_up_between_two_agents(edge: Edge) -> None:
    """A connection that is closed cancels the request at the agent where it is by then."""
    spoken = edge.connect()
    spoken.say(HEADER + b"\r\n" + BODY)
    first, second = edge.world.steered
    first.hear()
    first.lose()
    second.hear()
    assert len(second.asked) == 1
    spoken.channel.connectionLost()
    second.hear()

    assert len(second.cancelled) == 1
