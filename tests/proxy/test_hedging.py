"""Two agents at once: when a second one is asked, who wins, and that it stays a share. In memory, on a clock."""

import hashlib
from collections.abc import Iterator

import pytest
from conftest import LogWatch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agents import Time, always, issuing, request
from support.csrs import make_csr
from support.steered_agents import Asked, SteeredAgent, World
from twisted.internet.defer import CancelledError

from bmc_proxy.agents.balancer import HEDGED_SHARE
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.retry import LOOK_AGAIN_S, SLOW_S
from bmc_proxy.errors import AgentTimeout, ExchangeError
from protocol.errors import ErrorCode
from protocol.records import Answer, Error, Signed

CSR = make_csr()
FAILED = Error(ErrorCode.FAILED, True, 0, "")
BUSY = Error(ErrorCode.BUSY, True, 0, "")
CANCELLED = Error(ErrorCode.CANCELLED, True, 0, "")
WEAK_KEY = Error(ErrorCode.CSR_WEAK_KEY, False, 0, "")


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


@pytest.mark.parametrize(("deadline_s", "slow_s"), [(30.0, SLOW_S), (9.0, 3.0)])
def test_second_agent_is_asked_where_the_first_is_slow(
    world: World, signed: Signed, log_watch: LogWatch, deadline_s: float, slow_s: float
) -> None:
    """After a third of the time, or five seconds, and not before; the first answer is the answer."""
    first, second = world.steered
    first.is_stopped = True
    asked = world.sign(CSR, deadline_s)
    world.advance(slow_s - 0.001)
    assert world.asked_now()[1] == 0
    world.advance(0.002)
    assert world.asked_now()[1] == 1
    second.answer(signed)

    assert (asked.value, asked.ends) == (signed, 1)
    assert first.link.is_ailing
    first.is_stopped = False
    first.hear()
    assert len(first.cancelled) == 1
    first.answer(signed)  # which nobody waits for any more
    assert asked.ends == 1
    assert log_watch.texts().count("request asked of a second agent as well") == 1


def test_slow_agent_answers_first_after_all(world: World, signed: Signed) -> None:
    """Whoever was asked first may win as well; then the second one is cancelled."""
    first, second = world.steered
    asked = world.sign(CSR)
    world.advance(SLOW_S + 0.1)
    assert world.asked_now() == [1, 1]
    first.answer(signed)
    second.hear()

    assert (asked.value, asked.ends) == (signed, 1)
    assert len(second.cancelled) == 1


@pytest.mark.parametrize("fault", ["failed", "broken", "busy"])
def test_one_of_two_cannot_answer(world: World, signed: Signed, fault: str) -> None:
    """The other one's answer is waited for."""
    first, second = world.steered
    asked = world.sign(CSR)
    world.advance(SLOW_S + 0.1)
    world.hear()
    if fault == "broken":
        second.lose()
    else:
        second.answer(FAILED if fault == "failed" else BUSY)
    assert asked.ends == 0
    first.answer(signed)

    assert (asked.value, asked.ends) == (signed, 1)


def test_one_of_two_judges(world: World) -> None:
    """A refusal is an answer: the other one is cancelled."""
    first, second = world.steered
    asked = world.sign(CSR)
    world.advance(SLOW_S + 0.1)
    world.hear()
    second.answer(WEAK_KEY)
    first.hear()

    assert asked.ends == 1
    assert len(first.cancelled) == 1


def test_hmc_hangs_up_on_two_agents(world: World) -> None:
    """Both are told that nobody waits."""
    asked = world.sign(CSR)
    world.advance(SLOW_S + 0.1)
    world.hear()
    asked.deferred.cancel()
    world.hear()

    assert [len(each.cancelled) for each in world.steered] == [1, 1]


def test_third_agent_where_the_second_failed(signed: Signed) -> None:
    """As long as the first is slow, another one may be asked beside it."""
    world = World(count=3)
    _, second, third = world.steered
    asked = world.sign(CSR)
    world.advance(SLOW_S + 0.1)
    world.hear()
    second.answer(FAILED)
    world.advance(LOOK_AGAIN_S)
    assert world.asked_now() == [1, 0, 1]
    third.answer(signed)

    assert (asked.value, asked.ends) == (signed, 1)
    world.end()


def test_second_agents_are_asked_for_a_share_only() -> None:
    """However many requests a stopped agent holds, a share is asked of the other at once; the rest as that answers."""
    world = World(count=2, window=64)
    first, second = world.steered
    second.lose()
    first.is_stopped = True
    many = [world.sign(CSR) for _ in range(32)]
    second.connect()
    at_once = int(32 * HEDGED_SHARE)
    world.advance(SLOW_S + 0.1)
    assert world.asked_now()[1] == at_once
    for _ in range(at_once):
        second.answer(WEAK_KEY)
    world.advance(LOOK_AGAIN_S)

    assert world.asked_now()[1] == int((32 - at_once) * HEDGED_SHARE)
    assert sum(each.ends for each in many) == at_once
    world.end()
    world.advance(30.0)
    assert [each.ends for each in many] == [1] * 32


def test_fetch_is_at_one_agent_at_a_time(world: World) -> None:
    """What takes several questions is not begun at a second agent while the first may still answer."""

    async def work(link: object) -> None:
        await world.steered[0].link.ask(request(CSR), deadline)

    deadline = Deadline.after(world.clock, 20.0)
    asked = Asked(world.agents.work_with_one(work, deadline))
    world.advance(19.9)
    assert world.asked_now() == [1, 0]
    world.advance(0.2)
    assert isinstance(asked.failure, AgentTimeout)


# Whatever happens

STEPS = ["ask", "hang up", "signed", "failed", "busy", "refused", "break", "connect", "stop", "go on", "drain", "wait"]


def take(world: World, asked: list[Asked], signed: Signed, step: str, number: int) -> None:
    """Do one of the steps, to one of the agents or requests."""
    agent: SteeredAgent = world.steered[number % len(world.steered)]
    answers: dict[str, Answer] = {"signed": signed, "failed": FAILED, "busy": BUSY, "refused": WEAK_KEY}
    match step:
        case "ask":
            asked.append(world.sign(CSR, deadline_s=4.0))
        case "hang up" if asked:
            asked[number % len(asked)].deferred.cancel()
        case "break" if agent.is_up:
            agent.lose()
        case "connect" if not agent.is_up:
            agent.is_stopped = False
            agent.connect()
        case "stop" | "go on":
            agent.is_stopped = step == "stop"
        case "drain" if agent.is_up:
            agent.drain()
        case "wait":
            world.advance(number / 10)
        case _ if step in answers and agent.is_up and not agent.is_stopped:
            agent.hear()
            if agent.asked:
                agent.answer(answers[step], newest=number % 2 == 1)
    world.hear()


@settings(deadline=None, max_examples=150)
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 20)), min_size=5, max_size=60))
def test_every_request_ends_once_within_its_deadline(signed: Signed, steps: list[tuple[str, int]]) -> None:
    """Whatever agents and HMCs do: one end for each request, by its deadline, and nothing is left over."""
    world = World(count=3, window=2)
    asked: list[Asked] = []
    for step, number in steps:
        take(world, asked, signed, step, number)
    world.advance(4.001)

    assert [each.ends for each in asked] == [1] * len(asked)
    assert all(each.value in (None, signed) for each in asked)
    assert all(each.failure is None or isinstance(each.failure, (ExchangeError, CancelledError)) for each in asked)
    choice = world.agents._choice
    assert (choice.under_way, choice.hedged, choice._waiting) == (0, 0, [])
    world.end()
