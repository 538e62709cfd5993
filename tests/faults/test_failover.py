"""One request at several agents: repeated, waited for, given up; in memory, on a clock that the test moves."""

import hashlib
from collections.abc import Iterator

import pytest
from conftest import LogWatch
from support.agents import Time, always, issuing, request
from support.chains import ROOT
from support.csrs import make_csr
from support.steered_agents import Asked, World
from twisted.internet.defer import CancelledError

from bmc_proxy.agents.balancer import WAITING_LIMIT
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.retry import BREAKS_LIMIT, RETURN_S, most_telling
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
from protocol.records import Answer, Chain, Error, OcspAnswer, SignCsr, Signed

CSR = make_csr()
CHAIN = Chain(1, (ROOT.der(),))
DRAINING = Error(ErrorCode.DRAINING, True, 0, "")
BUSY = Error(ErrorCode.BUSY, True, 700, "")
DEADLINE = Error(ErrorCode.DEADLINE, True, 0, "")
FAILED = Error(ErrorCode.FAILED, True, 0, "")
FAILED_FOR_GOOD = Error(ErrorCode.FAILED, False, 0, "")
WEAK_KEY = Error(ErrorCode.CSR_WEAK_KEY, False, 0, "")
CONFLICT = Error(ErrorCode.REQUEST_CONFLICT, False, 0, "")
NOT_FOUND = Error(ErrorCode.NOT_FOUND, False, 0, "")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """Return the answer to `CSR`."""
    with issuing(tmp_path_factory.mktemp("ca"), Time()) as (opened, _):
        chain = opened.issue(request(CSR), always).chain
    return Signed(hashlib.sha256(CSR).digest(), 1, chain)


@pytest.fixture
def world() -> Iterator[World]:
    """Return two agents; nothing goes on at the end."""
    made = World()
    yield made
    made.end()


def told(asked: Asked) -> type[BaseException] | None:
    """Return what a request ended with, once; None for a certificate."""
    assert asked.ends == 1
    return None if asked.failure is None else type(asked.failure)


# Repeated


def test_request_whose_connection_breaks(world: World, signed: Signed, log_watch: LogWatch) -> None:
    """It is asked of the other agent at once, and that one's answer is the answer."""
    asked = world.sign(CSR)
    assert world.asked_now() == [1, 0]
    world.steered[0].lose()
    assert world.asked_now()[1] == 1
    world.steered[1].answer(signed)

    assert asked.value == signed
    assert told(asked) is None
    assert log_watch.texts().count("request repeated at another agent") == 1


@pytest.mark.parametrize("answer", [DRAINING, BUSY, DEADLINE, FAILED], ids=lambda error: error.code.name)
def test_request_that_an_agent_did_not_carry_out(world: World, signed: Signed, answer: Answer) -> None:
    """What may be repeated is asked of the other agent."""
    asked = world.sign(CSR)
    world.steered[0].answer(answer)
    world.steered[1].answer(signed)

    assert asked.value == signed
    assert told(asked) is None


def test_request_with_an_answer_that_cannot_be_right(world: World, signed: Signed, log_watch: LogWatch) -> None:
    """An answer for another CSR is no answer; the other agent is asked."""
    log_watch.expect_error("agent answered for another CSR")
    asked = world.sign(CSR)
    world.steered[0].answer(Signed(bytes(32), 1, signed.chain))
    world.steered[1].answer(signed)

    assert asked.value == signed
    assert world.steered[0].link.is_ailing


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (WEAK_KEY, RequestRefused),
        (CONFLICT, RequestRefused),
        (FAILED_FOR_GOOD, AgentFailed),
        (NOT_FOUND, NotPublished),
    ],
    ids=lambda each: each.code.name if isinstance(each, Error) else None,
)
def test_request_that_was_judged(world: World, answer: Answer, error: type[ExchangeError]) -> None:
    """What no agent would answer otherwise is asked of no other agent."""
    asked = world.sign(CSR)
    world.steered[0].answer(answer)

    assert told(asked) is error
    assert world.steered[1].heard == []


def test_agent_that_answered_is_not_asked_again(world: World) -> None:
    """Not even over a new connection: once each of them answered, that is the end."""
    asked = world.sign(CSR)
    first, second = world.steered
    first.answer(FAILED)
    first.lose()
    first.connect()
    second.answer(FAILED)

    assert told(asked) is AgentFailed
    assert (len(first.heard), len(second.heard)) == (1, 1)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ((BUSY, FAILED), AgentBusy),
        ((FAILED, BUSY), AgentBusy),
        ((FAILED, DEADLINE), AgentTimeout),
        ((DRAINING, FAILED), AgentFailed),
    ],
    ids=lambda each: "-".join(one.code.name for one in each) if isinstance(each, tuple) else None,
)
def test_request_that_no_agent_carried_out(
    world: World, answers: tuple[Error, Error], error: type[ExchangeError]
) -> None:
    """The HMC is told what says most, whichever agent it came from."""
    asked = world.sign(CSR)
    for agent, answer in zip(world.steered, answers, strict=True):
        agent.answer(answer)
    world.advance(RETURN_S)

    assert told(asked) is error


def test_most_telling_of_busy_agents() -> None:
    """Of agents that are busy the HMC is told when the first of them has room."""
    errors = [AgentUnavailable(), AgentBusy(3000), AgentBusy(700), AgentFailed()]

    assert most_telling(errors) is errors[2]


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_reading_fails_over(world: World, lost: int) -> None:
    """A chain and an OCSP response are asked of the other agent; nobody waits for one that is away."""
    deadline = Deadline.after(world.clock, 30.0)
    chain = Asked(world.agents.chain(deadline))
    ocsp = Asked(world.agents.ocsp(b"request", deadline))
    first, second = world.steered
    world.hear()
    if lost & 1:
        first.lose()
    if lost & 2:
        second.lose()
    if lost == 3:
        assert {told(chain), told(ocsp)} == {AgentUnavailable}
        return
    asked_of = second if lost == 1 else first
    world.hear()
    for record in list(asked_of.asked.values()):
        asked_of.answer(CHAIN if type(record).__name__ == "GetChain" else OcspAnswer(0, b"response"))

    assert (chain.value, ocsp.value) == (CHAIN, OcspAnswer(0, b"response"))


# Waited for


def test_only_agent_restarts(signed: Signed) -> None:
    """A request under way waits for its agent to come back and is asked again, with what is left of its time."""
    world = World(count=1)
    [agent] = world.steered
    asked = world.sign(CSR)
    agent.lose()
    world.advance(1.5)
    agent.connect()
    agent.answer(signed)

    assert asked.value == signed
    before, after = agent.heard
    assert isinstance(before, SignCsr)
    assert isinstance(after, SignCsr)
    assert (before.deadline_ms, after.deadline_ms) == (29_750, 28_250)
    world.end()


def test_only_agent_stays_away() -> None:
    """After two seconds, and not before, the request is told."""
    world = World(count=1)
    asked = world.sign(CSR)
    world.steered[0].lose()
    world.advance(RETURN_S - 0.001)
    assert asked.ends == 0
    world.advance(0.002)

    assert told(asked) is AgentUnavailable
    world.end()


def test_agent_restarts_again_and_again() -> None:
    """All waits of a request together are no longer than one may be, and it brings down so many connections at most."""
    world = World(count=1)
    [agent] = world.steered
    slow = world.sign(CSR)
    for _ in range(2):
        agent.lose()
        world.advance(0.75)
        agent.connect()
        agent.hear()
    agent.lose()
    agent.connect()
    assert told(slow) is AgentUnavailable
    assert len(agent.heard) == BREAKS_LIMIT
    world.end()

    world = World(count=1)
    asked = world.sign(CSR)
    world.steered[0].lose()
    world.advance(1.5)
    world.steered[0].connect()
    world.steered[0].lose()
    world.advance(0.499)
    assert asked.ends == 0
    world.advance(0.002)
    assert told(asked) is AgentUnavailable
    world.end()


def test_wait_ends_at_the_deadline() -> None:
    """However long an agent may stay away, the deadline holds."""
    world = World(count=1)
    asked = world.sign(CSR, deadline_s=1.0)
    world.steered[0].lose()
    world.advance(0.999)
    assert asked.ends == 0
    world.advance(0.002)

    assert told(asked) is AgentTimeout
    world.end()


def test_new_request_does_not_wait(signed: Signed) -> None:
    """While one that was under way waits, one that comes is refused at once."""
    world = World(count=1)
    waiting = world.sign(CSR)
    world.steered[0].lose()
    refused = world.sign(CSR)

    assert told(refused) is AgentUnavailable
    assert waiting.ends == 0
    waiting.deferred.cancel()
    world.end()


def test_waiting_for_room(signed: Signed) -> None:
    """Where the other agent is full, those whose connection broke get its places as they come free, in order."""
    world = World(count=2, window=2)
    first, second = world.steered
    asked = [world.sign(CSR) for _ in range(4)]
    first.lose()
    assert world.agents.room == 0
    for _ in range(4):
        second.answer(signed)

    assert [each.value for each in asked] == [signed] * 4
    world.end()


def test_waiting_is_bounded() -> None:
    """So many wait and no more: the next one is told at once."""
    world = World(count=1, window=WAITING_LIMIT + 1)
    asked = [world.sign(CSR) for _ in range(WAITING_LIMIT + 1)]
    world.steered[0].lose()

    assert [each.ends for each in asked] == [0] * WAITING_LIMIT + [1]
    world.advance(RETURN_S)
    assert {told(each) for each in asked} == {AgentUnavailable}
    world.end()


def test_waiting_after_all_agents_answered(world: World) -> None:
    """Nobody waits where nobody is left to be asked."""
    asked = world.sign(CSR)
    first, second = world.steered
    first.lose()
    first.connect()
    second.hear()
    (second if second.asked else first).answer(BUSY)
    world.hear()
    (second if second.asked else first).answer(FAILED)

    assert told(asked) is AgentBusy


# Given up


@pytest.mark.parametrize("at", ["the first agent", "the second agent", "no agent"])
def test_hmc_hangs_up(world: World, at: str) -> None:
    """What is under way for it is cancelled, wherever it is, and nothing else is begun."""
    asked = world.sign(CSR)
    first, second = world.steered
    if at != "the first agent":
        first.lose()
        world.hear()
    if at == "no agent":
        second.lose()
    asked.deferred.cancel()
    world.hear()

    assert told(asked) is CancelledError
    assert len(first.cancelled) == (at == "the first agent")
    assert len(second.cancelled) == (at == "the second agent")
    for each in world.steered:
        if not each.is_up:
            each.connect()
    world.hear()
    assert len(first.heard) + len(second.heard) == (1 if at == "the first agent" else 2)


# In time


def test_second_agent_has_what_is_left(world: World, signed: Signed) -> None:
    """Time that passed at one agent is not given to the next one."""
    asked = world.sign(CSR, deadline_s=5.0)
    first, second = world.steered
    world.advance(1.0)
    first.lose()
    world.hear()
    [record] = second.asked.values()
    assert isinstance(record, SignCsr)
    assert record.deadline_ms == 3_750
    second.answer(signed)

    assert asked.value == signed


def test_no_agent_answers_in_time(world: World) -> None:
    """At the deadline, and not before, the request ends, and it is cancelled wherever it is."""
    asked = world.sign(CSR, deadline_s=9.0)
    world.advance(8.999)
    assert asked.ends == 0
    assert world.asked_now() == [1, 1]
    world.advance(0.002)
    world.hear()

    assert told(asked) is AgentTimeout
    assert [len(each.cancelled) for each in world.steered] == [1, 1]


@pytest.mark.parametrize("deadline_s", [0.0, 0.001])
def test_request_without_time(world: World, deadline_s: float) -> None:
    """Where nothing is left of the time no agent is asked, and the answer is there at once."""
    asked = world.sign(CSR, deadline_s=deadline_s)

    assert told(asked) is AgentTimeout
    assert [each.heard for each in world.steered] == [[], []]
