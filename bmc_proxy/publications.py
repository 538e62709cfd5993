"""What the agents publish for whoever verifies certificates: CRLs, CA certificates, OCSP responses.

CRLs and CA certificates are kept here, within bounds, and handed out without a word to an agent until one says that
there is something new, connects anew, or the time of the next update comes. Nothing in here judges what they say.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.agent_client import Agents, published_by
from bmc_proxy.agent_link import AgentLink
from bmc_proxy.deadline import Deadline
from bmc_proxy.errors import (
    AgentBusy,
    AgentFailed,
    AgentTimeout,
    AgentUnavailable,
    ExchangeError,
    NothingThere,
    NotPublished,
)
from bmc_proxy.fetching import Fetching, Publication
from protocol.records import PublicationKind

# What is kept, and beside it what is being fetched.
ENTRIES_LIMIT = 16
OCTETS_LIMIT = 32 * 1024 * 1024
PUBLICATION_LIMIT = 16 * 1024 * 1024
FETCHES_LIMIT = 16
# Strangers ask for OCSP; most of what an agent takes at once is for signing.
OCSP_AT_ONCE = 16
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
        now: seconds since 1970-01-01 UTC.
        deadline_s: how long a fetch may take, for however many wait for it.
    """

    def __init__(self, agents: Agents, now: Callable[[], float], deadline_s: float) -> None:
        self._agents = agents
        self._now = now
        self._deadline_s = deadline_s
        self._news = 0
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._waiting: dict[_Key, list[Deferred[Publication]]] = {}
        self._reserved = 0
        self._ocsp_under_way = 0

    async def crl(self, generation: int, deadline: Deadline) -> Publication:
        """Return the CRL of a root generation's issuer.

        Raises:
            ExchangeError: NothingThere where there is none; AgentUnavailable, AgentBusy or AgentTimeout where the agent
                cannot be asked and none is kept whose next update lies ahead; AgentFailed.
        """
        return await self._get((PublicationKind.CRL, generation), deadline)

    async def ca_certificates(self, generation: int, deadline: Deadline) -> Publication:
        """Return the CA certificates of a root generation. Raises as `crl` does."""
        return await self._get((PublicationKind.CA_CERTIFICATES, generation), deadline)

    async def ocsp(self, request: bytes, deadline: Deadline) -> OcspResponse:
        """Return the response to an OCSP request of 1 to `MAX_OCSP_REQUEST` octets.

        Raises:
            ExchangeError: NothingThere where no agent has a responder; any of the agent's failures.
        """
        if self._ocsp_under_way >= OCSP_AT_ONCE:
            raise AgentBusy
        self._ocsp_under_way += 1
        try:
            answer = await self._agents.ocsp(request, deadline)
        except NotPublished as error:
            raise NothingThere from error
        finally:
            self._ocsp_under_way -= 1
        return OcspResponse(answer.response, answer.expires_ms / 1000 if answer.expires_ms else None)

    def look_anew(self) -> None:
        """An agent said that there is something new, or may have something new: what is kept is asked for again."""
        self._news += 1

    async def _get(self, key: _Key, deadline: Deadline) -> Publication:
        kept = self._kept.get(key)
        if kept is not None and self._is_current(kept):
            self._kept.move_to_end(key)
            return kept.publication
        if kept is None and 0 < self._agents.root_generation < key[1]:
            raise NothingThere  # whoever counts upwards costs the agent nothing
        try:
            return await deadline.limit(self._fetched(key, deadline.clock))
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

    # One fetch at a time of each publication, for all who wait for it

    def _fetched(self, key: _Key, clock: IReactorTime) -> Deferred[Publication]:
        """Join the fetch that is under way, or begin one. Who gives up changes nothing for it."""
        waiting = self._waiting.get(key)
        is_first = waiting is None
        if waiting is None:
            if len(self._waiting) >= FETCHES_LIMIT:
                raise AgentBusy
            waiting = self._waiting[key] = []
        mine: Deferred[Publication] = Deferred(waiting.remove)
        waiting.append(mine)
        if is_first:
            # Not the first one's deadline: others may have more time.
            deadline = Deadline.after(clock, self._deadline_s)
            Deferred.fromCoroutine(self._fetch(key, deadline)).addCallbacks(
                partial(self._tell, key), partial(self._tell_failure, key)
            )
        return mine

    def _tell(self, key: _Key, publication: Publication) -> None:
        waiting = self._waiting.pop(key)
        while waiting:  # whoever is told may make another give up
            waiting.pop(0).callback(publication)

    def _tell_failure(self, key: _Key, failure: Failure) -> None:
        waiting = self._waiting.pop(key)
        if not waiting and not failure.check(ExchangeError):
            _log.failure("a fetch that nobody waits for failed", failure)
        while waiting:
            waiting.pop(0).errback(failure)

    async def _fetch(self, key: _Key, deadline: Deadline) -> Publication:
        news = self._news
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
