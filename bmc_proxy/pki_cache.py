"""What the agents publish for whoever verifies certificates: CRLs, CA certificates, OCSP responses.

CRLs and CA certificates are kept here, within bounds, and handed out without a word to an agent until one says that
there is something new, connects anew, or the time of the next update comes. Nothing in here judges what they say.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.fair_slots import FairSlots
from bmc_proxy.agents.fetch_queue import FetchQueue
from bmc_proxy.agents.pool import Agents, published_by
from bmc_proxy.errors import (
    AgentBusy,
    AgentFailed,
    AgentTimeout,
    AgentUnavailable,
    NothingThere,
    NotPublished,
)
from bmc_proxy.pki_fetch import Fetching, Publication
from protocol.records import PublicationKind
from runtime.limits.fair_queue import Path

# What is kept, and beside it what is being fetched.
ENTRIES_LIMIT = 16
OCTETS_LIMIT = 32 * 1024 * 1024
PUBLICATION_LIMIT = 16 * 1024 * 1024
FETCHES_AT_ONCE = 16
# Strangers ask for OCSP; most of what an agent takes at once is for signing.
OCSP_AT_ONCE = 16
# How many askers wait in fair turns beside these, of each kind.
ASKERS_WAITING = 64
# Where the agent itself has nothing newer than what is past its next update, it is not asked with each request.
OVERDUE_RECHECK_S = 10.0

_Key = tuple[PublicationKind, int]

_log = Logger()


@dataclass(frozen=True, slots=True)
class OcspResponse:
    """An OCSP response in DER; `expires` in seconds since 1970-01-01 UTC, None where it is for this request alone."""

    der: bytes
    expires: float | None


@dataclass(frozen=True, slots=True)
class _Kept:
    """A publication, which news it is as new as, and when an agent last said that it is the current one."""

    publication: Publication
    news: int
    checked_at: float


class Publications:
    """The use cases around revocation.

    Args:
        agents: who publishes.
        clock: the reactor, or a `Clock`.
        now: seconds since 1970-01-01 UTC.
        deadline_s: how long a fetch may take, for however many wait for it.
    """

    def __init__(self, agents: Agents, clock: IReactorTime, now: Callable[[], float], deadline_s: float) -> None:
        self._agents = agents
        self._clock = clock
        self._now = now
        self._deadline_s = deadline_s
        self._news = 0
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._fetches = FetchQueue(clock.seconds, self._fetch, FETCHES_AT_ONCE, ASKERS_WAITING)
        self._ocsp_slots = FairSlots(clock.seconds, OCSP_AT_ONCE, ASKERS_WAITING)
        self._reserved = 0

    async def crl(self, generation: int, asker: Path, deadline: Deadline) -> Publication:
        """Return the CRL of a root generation's issuer.

        Args:
            asker: the branches in which it takes turns with others.

        Raises:
            ExchangeError: NothingThere where there is none; AgentUnavailable, AgentBusy or AgentTimeout where the agent
                cannot be asked and none is kept whose next update lies ahead; AgentFailed.
        """
        return await self._get((PublicationKind.CRL, generation), asker, deadline)

    async def ca_certificates(self, generation: int, asker: Path, deadline: Deadline) -> Publication:
        """Return the CA certificates of a root generation. Arguments and errors as for `crl`."""
        return await self._get((PublicationKind.CA_CERTIFICATES, generation), asker, deadline)

    async def ocsp(self, request: bytes, asker: Path, deadline: Deadline) -> OcspResponse:
        """Return the response to an OCSP request of 1 to `MAX_OCSP_REQUEST` octets.

        Args:
            asker: as for `crl`.

        Raises:
            ExchangeError: NothingThere where no agent has a responder; any of the agent's failures; AgentBusy where
                there is no room, or not before the deadline.
        """
        try:
            async with self._ocsp_slots.slot(asker, len(request), deadline):
                answer = await self._agents.ocsp(request, deadline)
        except NotPublished as error:
            raise NothingThere from error
        return OcspResponse(answer.response, answer.expires_ms / 1000 if answer.expires_ms else None)

    def look_anew(self) -> None:
        """An agent said that there is something new, or may have something new: what is kept is asked for again."""
        self._news += 1

    async def _get(self, key: _Key, asker: Path, deadline: Deadline) -> Publication:
        kept = self._kept.get(key)
        if kept is not None and self._is_current(kept):
            self._kept.move_to_end(key)
            return kept.publication
        if kept is None and 0 < self._agents.root_generation < key[1]:
            raise NothingThere  # whoever counts upwards costs the agent nothing
        try:
            return await deadline.limit(self._fetches.get(key, asker, deadline))
        except NotPublished as error:
            raise NothingThere from error
        except (AgentUnavailable, AgentBusy, AgentTimeout) as error:
            kept = self._kept.get(key)
            if kept is not None and not self._is_overdue(kept.publication):
                return kept.publication
            match error:
                case AgentUnavailable():
                    raise AgentUnavailable from error
                case AgentTimeout():
                    raise AgentTimeout("The host did not answer in time. Try again later.") from error
            raise

    def _is_overdue(self, publication: Publication) -> bool:
        return publication.next_update is not None and publication.next_update <= self._now()

    def _is_current(self, kept: _Kept) -> bool:
        if kept.news != self._news or kept.checked_at > self._now():  # then the clock was set back since
            return False
        next_update = kept.publication.next_update
        if next_update is None or self._now() < next_update:
            return True
        return kept.checked_at >= next_update and 0 <= self._now() - kept.checked_at < OVERDUE_RECHECK_S

    async def _fetch(self, key: _Key) -> Publication:
        # Not the first asker's deadline: others may have more time.
        news, deadline = self._news, Deadline.after(self._clock, self._deadline_s)
        try:
            publication = await self._agents.work_with_one(partial(self._fetch_from, key, deadline), deadline)
        except NotPublished:
            self._kept.pop(key, None)
            raise
        self._keep(key, _Kept(publication, news, self._now()))
        return publication

    async def _fetch_from(self, key: _Key, deadline: Deadline, link: AgentLink) -> Publication:
        kept = self._kept.get(key)
        reserved = 0

        def reserve(octets: int) -> None:
            nonlocal reserved
            if octets > PUBLICATION_LIMIT:
                _log.error("agent publishes more than is taken", agent=link.name, octets=octets)
                raise AgentFailed("What the host publishes is larger than is taken here.")
            self._reserved -= reserved
            reserved = 0
            if self._reserved + octets > OCTETS_LIMIT:
                raise AgentBusy
            reserved = octets
            self._reserved += octets

        fetching = Fetching(partial(published_by, link, deadline), deadline, reserve)
        try:
            return await fetching.run(*key, kept.publication if kept is not None else None)
        finally:
            self._reserved -= reserved

    def _keep(self, key: _Key, kept: _Kept) -> None:
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > ENTRIES_LIMIT or self._octets_kept() > OCTETS_LIMIT:
            self._kept.popitem(last=False)

    def _octets_kept(self) -> int:
        return sum(len(each.publication.der) for each in self._kept.values())
