"""What the agents publish, as the proxy fetches, keeps and hands it out; on a clock that the test moves."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import LogWatch
from support.pki_world import CRL, DEADLINE_S, Outcome, World
from support.publishing_agents import NOT_FOUND, part_of
from twisted.internet.defer import CancelledError

from bmc_proxy.errors import AgentBusy, AgentFailed, AgentTimeout, AgentUnavailable, NothingThere
from bmc_proxy.pki_cache import (
    ASKERS_WAITING,
    ENTRIES_LIMIT,
    FETCHES_AT_ONCE,
    OCSP_AT_ONCE,
    OVERDUE_RECHECK_S,
    PUBLICATION_LIMIT,
    OcspResponse,
)
from bmc_proxy.pki_fetch import TRIES, Publication
from protocol.errors import ErrorCode
from protocol.records import (
    MAX_PART,
    Answer,
    Error,
    GetPublished,
    OcspAnswer,
    PublicationKind,
    Published,
    Request,
)
from runtime.limits.networks import path_of


@pytest.fixture
def world() -> Iterator[World]:
    """Return an agent and a proxy that are connected, on a clock; no timer is left at the end."""
    made = World()
    yield made
    if made.agent.link.connected:
        made.agent.lose()
    assert made.clock.getDelayedCalls() == []


@pytest.mark.parametrize("size", [1, MAX_PART, MAX_PART + 1, 2 * MAX_PART + 5])
def test_crl_of_many_parts(world: World, size: int) -> None:
    """A CRL is fetched part by part, each where the one before ended, and then handed out without a question."""
    world.publish(CRL[:size])

    assert world.get() == Publication(CRL[:size], None, 1)
    assert world.agent.offsets() == list(range(0, size, MAX_PART))
    assert world.get() == Publication(CRL[:size], None, 1)
    assert world.agent.asked == []


def test_ca_certificates_beside_the_crl(world: World) -> None:
    """The two kinds, and the generations, are asked for and kept apart."""
    world.publish()
    world.get(1)
    world.get(2)
    certificates = Outcome(world.publications.ca_certificates(1, path_of("unix"), world.deadline))
    world.agent.settle()

    assert certificates.value == Publication(CRL, None, 1)
    asked = {(each.kind, each.root_generation) for each in world.agent.asked if isinstance(each, GetPublished)}
    assert asked == {(PublicationKind.CRL, 1), (PublicationKind.CRL, 2), (PublicationKind.CA_CERTIFICATES, 1)}


@pytest.mark.parametrize("change", ["version", "total", "gone"])
def test_crl_that_changes_while_it_is_fetched(world: World, change: str) -> None:
    """What changes between two parts is begun anew, and no part of the old one is in the new one."""
    new = bytes(reversed(CRL[:-1]))

    def answer(asked: Request) -> Answer:
        assert isinstance(asked, GetPublished)
        if len(world.agent.asked) < 2:
            return part_of(asked, CRL)
        if change == "gone" and len(world.agent.asked) == 2:
            return NOT_FOUND
        return part_of(asked, new, 1 if change == "total" else 2)

    world.agent.answer = answer

    assert world.get().der == new
    assert world.agent.offsets() == [0, MAX_PART, 0, MAX_PART, 2 * MAX_PART]


def test_crl_that_changes_all_the_time(world: World) -> None:
    """What changes with each part is given up after some tries, as busy."""

    def answer(asked: Request) -> Answer:
        assert isinstance(asked, GetPublished)
        return part_of(asked, CRL, len(world.agent.asked))

    world.agent.answer = answer

    assert world.get() is AgentBusy
    assert world.agent.offsets() == [0, MAX_PART] * TRIES


LIES: dict[str, dict[str, Any]] = {
    "another kind": {"kind": PublicationKind.CA_CERTIFICATES},
    "another generation": {"root_generation": 2},
    "another offset": {"offset": 1},
    "four gigabytes": {"total": 2**32 - 1},
    "an octet over the limit": {"total": PUBLICATION_LIMIT + 1},
    "nothing new to nobody": {"total": 0, "offset": 0, "part": b""},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_agent_that_lies(world: World, log_watch: LogWatch, lie: dict[str, Any]) -> None:
    """An answer that cannot be right is a failure of the agent's; nothing more is fetched, and nothing is kept."""
    log_watch.expect_error("agent publishes more than is taken")

    def answer(asked: Request) -> Answer:
        assert isinstance(asked, GetPublished)
        return replace(part_of(asked, CRL), **lie)

    world.agent.answer = answer

    assert world.get() is AgentFailed
    assert world.agent.offsets() == [0]
    world.publish()
    assert world.get().der == CRL


def test_agent_that_lies_in_a_later_part(world: World) -> None:
    """An offset that is not the one that was asked for is found in every part."""

    def answer(asked: Request) -> Answer:
        assert isinstance(asked, GetPublished)
        return part_of(replace(asked, offset=0), CRL)

    world.agent.answer = answer

    assert world.get() is AgentFailed


def test_agent_that_says_nothing_new_of_another_version(world: World) -> None:
    """`Nothing new` must be about the version that is kept here."""
    world.publish(version=3)
    world.get()
    world.agent.tell_status(20, 2)
    world.agent.answer = lambda _: Published(PublicationKind.CRL, 1, 4, 0, 0, 0, b"")

    assert world.get() is AgentFailed


def test_crl_at_the_limit(world: World) -> None:
    """As much as the limit says is fetched, and two of them may be under way; a third is busy, until one is over."""
    part = bytes(MAX_PART)

    def answer(asked: Request) -> Answer | None:
        assert isinstance(asked, GetPublished)
        if asked.offset:
            return None
        return Published(asked.kind, asked.root_generation, 1, 0, PUBLICATION_LIMIT, 0, part)

    world.agent.answer = answer
    first, second = world.ask(1), world.ask(2)
    world.agent.settle()

    assert (first.failure, second.failure) == (None, None)
    assert world.agent.offsets() == [0, 0, MAX_PART, MAX_PART]
    assert world.get(3) is AgentBusy
    world.agent.lose()
    assert (first.failure, second.failure) == (AgentUnavailable, AgentUnavailable)
    world.agent.connect()
    third = world.ask(3)
    world.agent.settle()
    assert third.failure is None
    world.agent.lose()


def test_cache_at_its_limit_of_entries(world: World) -> None:
    """Sixteen publications are kept; with one more the one that was not asked for longest goes."""
    world.publish(b"crl")
    for generation in range(1, ENTRIES_LIMIT + 1):
        world.get(generation)
    world.get(1)
    assert len(world.agent.offsets()) == ENTRIES_LIMIT
    world.get(ENTRIES_LIMIT + 1)
    world.agent.asked.clear()

    world.get(1)
    assert world.agent.asked == []
    world.get(2)
    assert world.agent.offsets() == [0]


def test_cache_at_its_limit_of_octets(world: World) -> None:
    """Two of the largest publications are kept; with one octet more the older one goes."""
    world.publish(bytes(PUBLICATION_LIMIT))
    world.get(1)
    world.get(2)
    world.agent.asked.clear()
    world.get(1)
    world.get(2)
    assert world.agent.asked == []

    world.publish(b"0")
    world.get(3)
    world.agent.asked.clear()
    world.get(2)
    assert world.agent.asked == []
    world.get(1)
    assert world.agent.offsets() == [0]


def test_fetch_is_shared(world: World) -> None:
    """Whoever asks for what is being fetched waits for the same octets, and one who gives up disturbs nobody."""
    world.publish()
    askers = [world.ask() for _ in range(5)]
    askers[0].deferred.cancel()
    world.agent.settle()

    assert askers[0].failure is CancelledError
    assert {asker.value for asker in askers[1:]} == {Publication(CRL, None, 1)}
    assert world.agent.offsets() == [0, MAX_PART, 2 * MAX_PART]


def test_fetch_that_nobody_waits_for(world: World) -> None:
    """A fetch goes on when all have given up; its result is kept, and its failure is nobody's."""
    world.publish()
    world.ask().deferred.cancel()
    world.agent.settle()
    world.agent.asked.clear()
    assert world.get().der == CRL
    assert world.agent.asked == []

    world.agent.answer = lambda _: None
    given_up = world.ask(2)
    given_up.deferred.cancel()
    world.agent.lose()
    assert given_up.failure is CancelledError


def test_fetches_at_their_limit(world: World) -> None:
    """Sixteen publications are fetched at a time; the next one waits, and begins when one has ended."""
    world.agent.answer = lambda _: None
    waiting = [world.ask(generation) for generation in range(1, FETCHES_AT_ONCE + 2)]
    world.agent.settle()
    assert len(world.agent.offsets()) == FETCHES_AT_ONCE
    waiting.append(world.ask(1))
    world.agent.lose()

    assert {each.failure for each in waiting} == {AgentUnavailable}


def test_fetch_that_drips(world: World) -> None:
    """The deadline is for the whole, however many parts an agent makes of it."""

    def drip(asked: Request) -> Answer:
        assert isinstance(asked, GetPublished)
        world.clock.advance(1.0)
        return part_of(asked, CRL, size=1)

    world.agent.answer = drip

    assert world.get() is AgentTimeout
    assert world.agent.offsets() == list(range(int(DEADLINE_S)))


def test_status_leads_to_a_question(world: World) -> None:
    """After STATUS the agent is asked once with the version that is kept, and its octets come only if it is another."""
    world.publish(version=7)
    world.get()
    world.agent.asked.clear()

    world.agent.tell_status(20, 2)
    assert world.agent.asked == []
    assert world.get().der == CRL
    [asked] = world.agent.asked
    assert isinstance(asked, GetPublished)
    assert asked.known_version == 7
    world.agent.asked.clear()
    world.get()
    assert world.agent.asked == []

    world.publish(b"new", version=8)
    assert world.get().der == CRL
    world.agent.tell_status(20, 3)
    assert world.get() == Publication(b"new", None, 8)


def test_status_during_a_fetch(world: World) -> None:
    """What was begun before the STATUS may be old: the next asker has it looked at again."""
    world.publish()
    early = world.ask()
    world.publications.look_anew()
    world.agent.settle()
    assert early.value.version == 1
    world.publish(b"new", version=2)

    assert world.get().version == 2


def test_new_connection_leads_to_a_question(world: World) -> None:
    """While nobody was connected anything may have changed."""
    world.publish()
    world.get()
    world.agent.lose()
    world.publish(b"new", version=2)
    assert world.get().version == 1
    world.agent.connect()

    assert world.get().version == 2


def test_next_update_passes(world: World) -> None:
    """Up to the next update what is kept is handed out; from then on the agent is asked."""
    world.publish(next_update=100.0)
    world.get()
    world.publish(b"new", version=2, next_update=200.0)
    world.agent.asked.clear()
    for seconds in [5.0] * 19 + [4.9]:
        world.clock.advance(seconds)
        world.agent.settle()
    assert world.get().version == 1

    world.clock.advance(0.1)
    assert world.get().version == 2
    assert world.agent.offsets() == [0]


def test_agent_that_is_late_with_its_update(world: World) -> None:
    """Where the agent has nothing newer than what is overdue it is asked again every ten seconds, and not each time."""
    world.publish(next_update=-1.0)
    world.get()
    world.agent.asked.clear()
    world.clock.advance(OVERDUE_RECHECK_S - 0.1)
    assert world.get().version == 1
    assert world.agent.asked == []

    world.clock.advance(0.1)
    assert world.get().version == 1
    assert world.agent.offsets() == [0]


def test_agent_away(world: World) -> None:
    """While no agent is connected the last CRL is handed out up to its next update, and nothing after it."""
    world.publish(next_update=100.0)
    world.get()
    world.publications.look_anew()
    world.agent.lose()
    world.clock.advance(99.9)
    assert world.get().der == CRL

    world.clock.advance(0.1)
    assert world.get() is AgentUnavailable
    assert world.get(2) is AgentUnavailable


def test_agent_away_and_no_next_update(world: World) -> None:
    """What has no next update is handed out for as long as it is kept."""
    world.publish()
    world.get()
    world.publications.look_anew()
    world.agent.lose()
    world.clock.advance(1e7)

    assert world.get().der == CRL


@pytest.mark.parametrize(
    ("code", "without", "kept"),
    [
        (ErrorCode.BUSY, AgentBusy, CRL),
        (ErrorCode.DEADLINE, AgentTimeout, CRL),
        (ErrorCode.DRAINING, AgentUnavailable, CRL),
        (ErrorCode.FAILED, AgentFailed, AgentFailed),
        (ErrorCode.CSR_POLICY, AgentFailed, AgentFailed),
        (ErrorCode.NOT_FOUND, NothingThere, NothingThere),
        (ErrorCode.UNSUPPORTED, NothingThere, NothingThere),
    ],
)
def test_agent_that_refuses(world: World, code: ErrorCode, without: type[Exception], kept: object) -> None:
    """An agent that cannot answer now is as good as away; one that has nothing, or does not know, has it not."""

    def refuse(_: Request) -> Answer:
        return Error(code, True, 0, "")

    world.agent.answer = refuse
    assert world.get() is without
    world.publish()
    world.get()
    world.agent.tell_status(20, 2)
    world.agent.answer = refuse

    found = world.get()
    assert (found.der if isinstance(found, Publication) else found) == kept


def test_what_is_not_published_any_more_is_forgotten(world: World) -> None:
    """Once the agent says that there is none, none is handed out, the agent gone or not."""
    world.publish()
    world.get()
    world.agent.tell_status(20, 2)
    world.agent.answer = lambda _: NOT_FOUND
    assert world.get() is NothingThere
    world.agent.lose()

    assert world.get() is AgentUnavailable


def test_generation_that_is_to_come(world: World) -> None:
    """A generation over the agent's is not asked for; once the agent tells of it, it is."""
    world.publish()
    assert world.get(21) is NothingThere
    assert world.agent.asked == []
    assert world.get(20).der == CRL

    world.agent.tell_status(21, 2)
    assert world.get(21).der == CRL


def test_ocsp(world: World) -> None:
    """An OCSP request is asked of the agent each time; its response comes with its time."""
    world.agent.answer = lambda _: OcspAnswer(5_000, b"response")
    asked = [world.ask_ocsp() for _ in range(2)]
    world.agent.settle()

    assert [each.value for each in asked] == [OcspResponse(b"response", 5.0)] * 2
    assert world.agent.ocsp_asked() == [b"request"] * 2


def test_ocsp_at_its_limit(world: World) -> None:
    """Sixteen OCSP requests are at the agent and 64 wait; one more is busy, and one that is given up makes room."""
    world.agent.answer = lambda _: None
    waiting = [world.ask_ocsp() for _ in range(OCSP_AT_ONCE + ASKERS_WAITING)]
    world.agent.settle()
    assert len(world.agent.ocsp_asked()) == OCSP_AT_ONCE
    assert world.ask_ocsp().failure is AgentBusy

    waiting[-1].deferred.cancel()
    another = world.ask_ocsp()
    assert another.failure is None
    waiting[0].deferred.cancel()
    world.agent.settle()
    assert len(world.agent.ocsp_asked()) == 1
    world.agent.lose()
    assert another.failure is AgentUnavailable
