"""Health and choice: who is asked first, and that nobody is shut out."""

import pytest
from support.steered_agents import World

from bmc_proxy.agents.balancer import HEDGED_SHARE, Choice
from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.health import FIRST_PAUSE_S, JITTER, LONGEST_PAUSE_S, Health, after_answer, after_failure
from bmc_proxy.errors import AgentBusy, AgentUnavailable
from protocol.errors import ErrorCode
from protocol.records import Error

BUSY = Error(ErrorCode.BUSY, True, 0, "")
CANCELLED = Error(ErrorCode.CANCELLED, True, 0, "")


def anyone(_link: AgentLink) -> bool:
    """Any agent may be asked."""
    return True


def test_pause_doubles_up_to_its_limit() -> None:
    """Each failure right after a pause doubles it; at the limit it stays."""
    health, now, pauses = Health(), 100.0, []
    for _ in range(8):
        health = after_failure(health, now, chance=0.5)
        pauses.append(health.until - now)
        now = health.until
    assert pauses == [FIRST_PAUSE_S, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 1 - JITTER), (1.0, 1 + JITTER)])
def test_pause_is_jittered(chance: float, factor: float) -> None:
    """By chance a pause is shorter or longer; it ends when it says, and not before."""
    health = after_failure(Health(), 10.0, chance)

    assert health.until == 10.0 + FIRST_PAUSE_S * factor
    assert health.is_ailing(health.until - 0.001)
    assert not health.is_ailing(health.until)


def test_failures_during_a_pause_count_once() -> None:
    """What fails together, as with a connection, is one failure."""
    health = after_failure(Health(), 0.0, 0.5)

    assert after_failure(health, 0.5, 0.5) == health


def test_answer_ends_what_was_only_after_the_pause() -> None:
    """An answer during the pause changes nothing; one after it lets the next failure begin anew."""
    health = after_failure(after_failure(Health(), 0.0, 0.5), 1.0, 0.5)

    assert after_answer(health, 2.0) == health
    assert after_answer(health, 3.0) == Health()


def test_choice_is_the_one_with_the_fewest_answers_to_give() -> None:
    """Requests go where the fewest are; without room nobody is asked."""
    world = World(count=2, window=2)
    for expected in ([1, 0], [1, 1], [2, 1], [2, 2]):
        world.sign(b"csr")
        assert world.asked_now() == expected
    refused = world.sign(b"csr")

    assert isinstance(refused.failure, AgentBusy)
    assert world.agents.room == 0
    world.end()


def test_choice_asks_who_ails_last_but_asks() -> None:
    """An agent that failed is passed over for a while, however idle it is, unless it is the only one."""
    world = World(count=2, window=2)
    choice = Choice([each.link for each in world.steered])
    first, second = choice.links
    first.failed()
    world.sign(b"csr")
    assert choice.best(anyone) is second
    world.sign(b"csr")
    assert choice.best(anyone) is first
    assert choice.spare(anyone) is None

    world.advance(FIRST_PAUSE_S * (1 + JITTER))
    assert choice.spare(anyone) is first
    world.end()


def test_choice_spares_a_share_of_what_is_under_way() -> None:
    """However many are slow, only a share of the requests is at two agents; one always may be."""
    world = World()
    choice = Choice([each.link for each in world.steered])
    for under_way in (1, 8, 24):
        allowed = max(1, int(under_way * HEDGED_SHARE))
        choice.under_way, choice.hedged = under_way, allowed - 1
        assert choice.spare(anyone) is not None
        choice.hedged = allowed
        assert choice.spare(anyone) is None
    world.end()


def test_choice_without_a_connection() -> None:
    """Where no agent is connected, or the only one drains, that is known at once."""
    world = World(count=2)
    world.steered[0].lose()
    world.steered[1].drain()
    refused = world.sign(b"csr")

    assert isinstance(refused.failure, AgentUnavailable)
    world.end()


def test_lost_connection_counts_as_a_failure_but_not_after_drain() -> None:
    """An agent whose connection breaks ails for a while; one that took its leave does not."""
    world = World(count=2)
    world.steered[0].lose()
    world.steered[1].drain()
    world.steered[1].lose()

    assert [each.link.is_ailing for each in world.steered] == [True, False]


def test_room_is_told_of() -> None:
    """`on_room` is called when an agent connects or is lost, and when a full one takes requests again; not more."""
    world, told = World(count=2, window=2), list[int]()
    world.agents.on_room = lambda: told.append(world.agents.room)
    first, second = world.steered
    for _ in range(4):
        world.sign(b"csr", deadline_s=60.0)
    first.answer(BUSY)
    assert told == [1]
    first.answer(BUSY)
    assert told == [1]
    second.lose()
    second.connect()
    assert told == [1, 2, 2]  # what was at it went to the other one
    world.end()


def test_place_of_a_cancelled_request_is_told_of_when_it_is_free() -> None:
    """Whoever hangs up leaves the place taken until the agent has answered."""
    world, told = World(count=1, window=1), list[int]()
    world.agents.on_room = lambda: told.append(world.agents.room)
    asked = world.sign(b"csr")
    asked.deferred.cancel()
    world.hear()
    assert (told, world.agents.room) == ([], 0)
    world.steered[0].answer(CANCELLED)
    assert (told, world.agents.room) == ([1], 1)
    world.end()
