"""What docs/protocol.md says of an asker beyond single records: whom it asks again, and what it makes of odd peers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import LogWatch
from support.agents import request
from support.csrs import make_csr
from support.octets import AGENT_HELLO, ASKER_HELLO, encode, sent_records
from support.processes import port_of, start_agent
from support.raw_asker import RawAsker
from support.steered_agents import World
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from bmc_proxy.agents.connection import LONGEST_RETRY_AFTER_MS, AgentLink, ProxyChannel
from bmc_proxy.agents.retry import RETURN_S
from bmc_proxy.api.errors import BUSY_RETRY_AFTER_S, UNAVAILABLE_RETRY_AFTER_S, from_error
from bmc_proxy.errors import AgentBusy, AgentFailed, AgentTimeout, AgentUnavailable, ExchangeError
from protocol.errors import ErrorCode
from protocol.records import Error, Ping, SignCsr, Signed, Status
from runtime.transport import LAST_WORD_S

CSR = make_csr()
REPEATABLE = {
    ErrorCode.BUSY: AgentBusy,
    ErrorCode.DEADLINE: AgentTimeout,
    ErrorCode.CANCELLED: AgentTimeout,
    ErrorCode.DRAINING: AgentUnavailable,
    ErrorCode.FAILED: AgentFailed,
    ErrorCode.BAD_RECORD: AgentFailed,
    ErrorCode.TOO_SLOW: AgentFailed,
}


@pytest.fixture
def world() -> Iterator[World]:
    """Return two agents; nothing goes on at the end."""
    made = World()
    yield made
    made.end()


@pytest.mark.parametrize("code", REPEATABLE)
def test_error_that_is_retryable(code: ErrorCode, world: World) -> None:
    """The other agent is asked; where that one says the same, the client is told what happened, and to come back."""
    asked = world.sign(CSR)
    for each in world.steered:
        each.answer(Error(code, True, 12_001, ""))
    world.advance(RETURN_S)  # in which one that drains may be back

    assert isinstance(asked.failure, ExchangeError)
    assert type(asked.failure) is REPEATABLE[code]
    assert from_error(asked.failure).headers == {"Retry-After": "13"}


@pytest.mark.parametrize("code", REPEATABLE)
def test_error_that_is_not_retryable(code: ErrorCode, world: World) -> None:
    """Whatever its code, no other agent is asked, and the client is not told to come back."""
    asked = world.sign(CSR)
    world.steered[0].answer(Error(code, False, 12_001, ""))

    assert isinstance(asked.failure, AgentFailed)
    assert world.asked_now() == [0, 0]
    problem = from_error(asked.failure)
    assert (problem.status, problem.headers) == (502, {})


@pytest.mark.parametrize(
    ("code", "retry_after_ms", "header"),
    [
        (ErrorCode.BUSY, 0, BUSY_RETRY_AFTER_S),
        (ErrorCode.BUSY, 1_000, 1),
        (ErrorCode.BUSY, 1_001, 2),
        (ErrorCode.BUSY, LONGEST_RETRY_AFTER_MS, 60),
        (ErrorCode.BUSY, 2**32 - 1, 60),
        (ErrorCode.FAILED, 0, None),
        (ErrorCode.FAILED, 1, 1),
        (ErrorCode.FAILED, 2**32 - 1, 60),
        (ErrorCode.DRAINING, 1_000, UNAVAILABLE_RETRY_AFTER_S),
        (ErrorCode.DRAINING, 2**32 - 1, 60),
        (ErrorCode.DEADLINE, 6_000, 6),
    ],
)
def test_retry_after_that_an_agent_gives(code: ErrorCode, retry_after_ms: int, header: int | None) -> None:
    """It reaches the client in whole seconds, rounded up, not under the proxy's own and not over a minute."""
    world = World(count=1)
    asked = world.sign(CSR)
    world.steered[0].answer(Error(code, True, retry_after_ms, ""))
    world.advance(RETURN_S)

    assert isinstance(asked.failure, ExchangeError)
    assert from_error(asked.failure).headers.get("Retry-After") == (None if header is None else str(header))
    world.end()


def test_agent_with_a_window_of_none() -> None:
    """An agent may grant a window of 0: it is connected, and busy."""
    world = World(count=1, window=0)
    asked = world.sign(CSR)

    assert type(asked.failure) is AgentBusy
    assert world.steered[0].link.connected
    world.end()


def test_status_whose_numbers_fall() -> None:
    """They are taken as they are, each time: what is kept may be out of date."""
    clock, told = Clock(), []
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", 1)
    link = AgentLink(
        clock,
        endpoint,
        "agent",
        lambda: ASKER_HELLO,
        lambda _: None,
        on_status=lambda each: told.append(each.root_generation),
    )
    channel = ProxyChannel(link, ASKER_HELLO)
    channel.makeConnection(StringTransport())  # type: ignore[no-untyped-call]  # Twisted has not typed it
    channel.dataReceived(encode(replace(AGENT_HELLO, root_generation=7)))
    for status in (Status(9, 9), Status(9, 9), Status(3, 1)):
        channel.dataReceived(encode(status))

    assert told == [9, 9, 3]
    assert link.root_generation == 3
    channel.connectionLost()


def test_peer_that_does_not_read(log_watch: LogWatch) -> None:
    """It is not read from either, so it is silent: 20 s later it is given up, and cut with what it did not take."""
    clock, transport = Clock(), StringTransport()
    link = AgentLink(clock, TCP4ClientEndpoint(reactor, "127.0.0.1", 1), "agent", lambda: ASKER_HELLO, lambda _: None)
    channel = ProxyChannel(link, ASKER_HELLO)
    channel.makeConnection(transport)  # type: ignore[no-untyped-call]  # Twisted has not typed it
    channel.dataReceived(encode(AGENT_HELLO))
    transport.clear()

    channel.pauseProducing()
    channel.dataReceived(encode(Ping(1)))  # what was read already is not acted on
    assert transport.producerState == "paused"
    clock.advance(15.0)
    clock.advance(5.0)

    [(_, ping), (_, error)] = sent_records(transport.value())
    assert ping == Ping(1)
    assert isinstance(error, Error)
    assert error.code is ErrorCode.TOO_SLOW
    assert log_watch.texts().count("channel peer refused") == 1
    assert not transport.disconnected
    clock.advance(LAST_WORD_S)
    assert transport.disconnected
    channel.connectionLost()


def test_requester_that_an_agent_refuses(world: World) -> None:
    """Nobody else is asked, the client is not told to come back, and the connection goes on."""
    asked = [world.sign(CSR)]
    world.steered[0].answer(Error(ErrorCode.BAD_RECORD, False, 0, ""))
    asked.append(world.sign(CSR))

    assert type(asked[0].failure) is AgentFailed
    assert sum(world.asked_now()) == 1
    assert request(CSR).requester_fault is None


@pytest.mark.parametrize("text", ["jörg", "日本", "a b", "o\u0308", "😀", "vmi-agent-2"])
def test_requester_of_printable_characters(text: str) -> None:
    """Letters, marks, numbers, punctuation, symbols and the space are taken."""
    assert replace(request(CSR), user=text, method=text, address=text).requester_fault is None


@pytest.mark.parametrize(
    "text", ["\0", "\x1b", "\x7f", "\x85", "\u00a0", "\u200d", "\u202e", "\u2028", "\ue000", "\u0378"]
)
@pytest.mark.parametrize("field", ["user", "method", "address"])
def test_requester_of_other_characters(field: str, text: str) -> None:
    """Control, format, private and unassigned characters are refused, and every space but the one, in each field."""
    values = {name: "a" + text * (name == field) for name in ("user", "method", "address")}
    record = SignCsr(1, bytes(16), **values, csr=CSR)

    assert record.requester_fault == "a control, format or unassigned character in user, method or address"


@pytest.mark.parametrize("user", ["vmi-agent", "VMI-AGENT", "Vmi-Agent"])
def test_requester_that_is_called_as_the_agent(user: str) -> None:
    """The name under which the agent's own deeds are recorded is nobody's."""
    assert replace(request(CSR), user=user).requester_fault == "the user vmi-agent is the agent itself"


def test_requester_at_a_real_agent(tmp_path: Path) -> None:
    """Each such request is answered, nothing of it reaches ledger or log, and the next one is signed."""
    users = ["a\x1b[2J", "vmi-agent", "hmc1"]
    with start_agent(tmp_path) as process:
        with RawAsker(port_of(process.wait_for("ready")["listen"][0])) as asker:
            ids = asker.ask(*(request(CSR, user=user) for user in users))
            answers = asker.answers(3)
        process.wait_for("proxy disconnected")

    codes = [answer.code if isinstance(answer, Error) else type(answer) for answer in map(answers.__getitem__, ids)]
    assert codes == [ErrorCode.BAD_RECORD, ErrorCode.BAD_RECORD, Signed]
    assert sum("signed" in line for line in process.lines) == 1
    assert not [line for line in process.lines if "[2J" in line]
