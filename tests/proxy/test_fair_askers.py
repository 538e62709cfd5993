"""Those that ask an agent for something take turns: a quiet one is served beside a flood of any size."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.pki_world import DEADLINE_S, Outcome, World
from support.publishing_agents import HELLO, NOT_FOUND
from twisted.internet.defer import CancelledError

from bmc_proxy.agents.pool import Agents
from bmc_proxy.agents.queue import Door
from bmc_proxy.errors import AgentBusy, NothingThere
from bmc_proxy.pki_cache import ASKERS_WAITING, FETCHES_AT_ONCE, OCSP_AT_ONCE
from bmc_proxy.root_cache import RootCache
from bmc_proxy.signing import Exchange, Requester
from protocol.errors import ErrorCode
from protocol.records import Error, GetPublished, OcspAnswer, PublicationKind, SignCsr
from runtime.limits.networks import path_of

QUIET = "203.0.113.1"
GENERATIONS = HELLO.root_generation
FLOODS = {
    "one address": ["198.51.100.1"],
    "one network": [f"198.51.100.{number}" for number in range(140)],
    "one /48": [f"2001:db8:0:{number:x}::1" for number in range(140)],
}


@pytest.fixture
def world() -> Iterator[World]:
    """Yield an agent that is silent, and a proxy that is connected to it."""
    made = World()
    made.agent.answer = lambda _: None
    yield made
    if made.agent.link.connected:
        made.agent.lose()
    assert made.clock.getDelayedCalls() == []


def flood_ocsp(world: World, sources: list[str]) -> list[Outcome]:
    """Fill all places with OCSP requests, several times over."""
    count = 3 * (OCSP_AT_ONCE + ASKERS_WAITING)
    asked = [world.ask_ocsp(b"flood", sources[number % len(sources)]) for number in range(count)]
    world.agent.settle()
    assert world.agent.ocsp_asked() == [b"flood"] * OCSP_AT_ONCE
    return asked


@pytest.mark.parametrize("sources", FLOODS.values(), ids=FLOODS.keys())
def test_quiet_asker_of_ocsp_is_next_but_one(world: World, sources: list[str]) -> None:
    """A request from another network displaces one of the flood and is at the agent after two answers at most."""
    flood = flood_ocsp(world, sources)
    quiet = world.ask_ocsp(b"quiet", QUIET)
    for _ in range(2):
        next(each for each in flood if not each.deferred.called).deferred.cancel()
    world.agent.settle()

    assert b"quiet" in world.agent.ocsp_asked()
    assert quiet.failure is None
    refused = [each.failure for each in flood].count(AgentBusy)
    assert refused == len(flood) - OCSP_AT_ONCE - ASKERS_WAITING + 1


def test_ocsp_that_waits_is_answered(world: World) -> None:
    """What waited for a slot is asked of the agent and gets its answer."""
    asked = [world.ask_ocsp(asker=f"192.0.2.{number}") for number in range(2 * OCSP_AT_ONCE)]
    world.agent.settle()
    for _ in asked:
        world.agent.answer_oldest(OcspAnswer(0, b"response"))

    assert all(each.value.der == b"response" for each in asked)


def flood_fetches(world: World, sources: list[str]) -> list[Outcome]:
    """Ask for all CRLs that there may be, in the order of their generations."""
    asked = [world.ask(generation, sources[generation % len(sources)]) for generation in range(1, GENERATIONS + 1)]
    world.agent.settle()
    assert fetched(world) == list(range(1, FETCHES_AT_ONCE + 1))
    return asked


def fetched(world: World) -> list[int]:
    """Return, and forget, the generations of the CRLs that the agent was asked for."""
    asked, world.agent.asked = world.agent.asked, []
    crls = [each for each in asked if isinstance(each, GetPublished) and each.kind is PublicationKind.CRL]
    return [each.root_generation for each in crls]


@pytest.mark.parametrize("sources", FLOODS.values(), ids=FLOODS.keys())
@pytest.mark.parametrize("generation", [FETCHES_AT_ONCE + 1, GENERATIONS])
def test_quiet_asker_of_a_publication_is_next_but_one(world: World, sources: list[str], generation: int) -> None:
    """Its fetch begins after two answers at most, also where a flood waits for the same publication, as its last."""
    flood_fetches(world, sources)
    quiet = world.ask(generation, QUIET)
    for _ in range(2):
        world.agent.answer_oldest(NOT_FOUND)

    assert generation in fetched(world)
    assert quiet.failure is None


def test_publication_that_many_wait_for_is_fetched_once(world: World) -> None:
    """All that wait for a fetch get the result of the one that begins; an asker that gave up is left out."""
    flood = flood_fetches(world, FLOODS["one network"])
    waiting = [world.ask(GENERATIONS, f"203.0.113.{number}") for number in range(5)]
    waiting[0].deferred.cancel()
    for _ in flood:
        world.agent.answer_oldest(NOT_FOUND)

    assert sorted(fetched(world)) == list(range(FETCHES_AT_ONCE + 1, GENERATIONS + 1))
    assert {each.failure for each in (*flood, *waiting[1:])} == {NothingThere}
    assert waiting[0].failure is CancelledError


def test_last_asker_that_gives_up_takes_its_fetch_along(world: World) -> None:
    """A fetch that has not begun and that no asker waits for is not made; asked for again, it is."""
    flood_fetches(world, FLOODS["one address"])
    others = GENERATIONS - FETCHES_AT_ONCE
    certificates = partial(world.publications.ca_certificates, 1, path_of(QUIET))
    Outcome(certificates(world.deadline)).deferred.cancel()
    for _ in range(GENERATIONS):
        world.agent.answer_oldest(NOT_FOUND)
    assert len(world.agent.asked) == others
    again = Outcome(certificates(world.deadline))
    world.agent.settle()
    assert len(world.agent.asked) == others + 1
    world.agent.answer_oldest(NOT_FOUND)

    assert again.failure is NothingThere


def test_asker_past_the_places_is_refused_alone(world: World) -> None:
    """Where too many wait the longest branch loses askers, and the others that wait for the same publication do not."""
    flood = flood_fetches(world, FLOODS["one address"])
    quiet = world.ask(GENERATIONS, QUIET)
    more = [world.ask(GENERATIONS, "198.51.100.1") for _ in range(2 * ASKERS_WAITING)]
    refused = [each.failure for each in (*flood, *more)].count(AgentBusy)
    assert refused == len(flood) + len(more) - FETCHES_AT_ONCE - (ASKERS_WAITING - 1)
    for _ in flood:
        world.agent.answer_oldest(NOT_FOUND)

    assert fetched(world).count(GENERATIONS) == 1
    assert quiet.failure is NothingThere
    assert {each.failure for each in more} == {AgentBusy, NothingThere}


@pytest.mark.parametrize("sources", FLOODS.values(), ids=FLOODS.keys())
def test_quiet_requester_is_next_but_one(world: World, tmp_path: Path, sources: list[str]) -> None:
    """A CSR from another network is at the agent after two answers, whatever sources of one network ask with it."""
    agents = Agents([world.agent.link])
    door = Door(world.clock, agents, limit=50)
    agents.on_room = door.look
    exchange = Exchange(agents, door, RootCache(tmp_path, world.now, world.now, lambda _reason: None), DEADLINE_S)

    def sign(user: str, address: str, connection: int) -> Outcome:
        requester = Requester(user, "basic", address, connection)
        return Outcome(exchange.sign_csr(b"csr", requester, None, world.deadline))

    flood = [sign("flood", sources[number % len(sources)], number) for number in range(300)]
    world.agent.settle()
    quiet = sign("quiet", QUIET, 300)
    for _ in range(2):
        world.agent.answer_oldest(Error(ErrorCode.CSR_POLICY, False, 0, "no"))

    assert [each.user for each in world.agent.asked if isinstance(each, SignCsr)].count("quiet") == 1
    assert quiet.failure is None
    assert AgentBusy in [each.failure for each in flood]
    for each in (*flood, quiet):
        each.deferred.cancel()
