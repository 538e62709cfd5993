"""Fetching what an agent publishes, part by part, however the agent answers."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.errors import AgentBusy, AgentFailed, NotPublished
from protocol.records import GetPublished, PublicationKind, Published

# What changes between its parts is begun anew; a CRL does not change that often.
TRIES = 4

Ask = Callable[[GetPublished], Awaitable[Published]]


@dataclass(frozen=True, slots=True)
class Publication:
    """What an agent publishes.

    Attributes:
        der: a CRL, or certificates in a certs-only CMS message.
        next_update: when there will be a new one, in seconds since 1970-01-01 UTC; None where no time is set.
        version: another one for other octets.
    """

    der: bytes
    next_update: float | None
    version: int


class Fetching:
    """One fetch.

    Args:
        ask: asks the agent for one part.
        deadline: of the whole.
        reserve: is told how many octets are to come, before they do, and raises where they are too many.
    """

    def __init__(self, ask: Ask, deadline: Deadline, reserve: Callable[[int], None]) -> None:
        self._ask = ask
        self._deadline = deadline
        self._reserve = reserve

    async def run(self, kind: PublicationKind, root_generation: int, known: Publication | None) -> Publication:
        """Return what is published now; where that is `known`, its octets are not fetched again.

        Raises:
            ExchangeError: as `AgentLink.ask` does, and AgentFailed where the answers do not fit together, AgentBusy
                where they change too often.
        """
        for _ in range(TRIES):
            found = await self._try(kind, root_generation, known)
            if found is not None:
                return found
        raise AgentBusy

    async def _try(self, kind: PublicationKind, root_generation: int, known: Publication | None) -> Publication | None:
        """Return the whole, or None where it changed meanwhile."""
        known_version = known.version if known is not None else 0

        async def part_at(offset: int) -> Published:
            left_ms = self._deadline.for_agent_ms()
            part = await self._ask(GetPublished(left_ms, kind, root_generation, known_version, offset))
            if (part.kind, part.root_generation) != (kind, root_generation):
                raise _wrong()
            return part

        first = part = await part_at(0)
        next_update = first.next_update_ms / 1000 if first.next_update_ms else None
        if not first.total:
            if known is None or first.version != known.version:
                raise _wrong()
            return Publication(known.der, next_update, known.version)
        self._reserve(first.total)
        whole = bytearray()
        while True:
            if part.offset != len(whole):
                raise _wrong()
            whole += part.part
            if len(whole) == first.total:
                return Publication(bytes(whole), next_update, first.version)
            try:
                part = await part_at(len(whole))
            except NotPublished:
                return None
            if (part.version, part.total) != (first.version, first.total):
                return None


def _wrong() -> AgentFailed:
    return AgentFailed("The host's answer cannot be right. Nothing is wrong with the request.")
