"""The use cases that the dialects call. None of them knows a dialect, HTTP, or how the channel is carried."""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import lru_cache

from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.pool import Agents, chain_of
from bmc_proxy.agents.queue import Door
from bmc_proxy.auth.accounts import AGENT_ITSELF, ANONYMOUS
from bmc_proxy.errors import AgentTimeout, AgentUnavailable, Forbidden
from bmc_proxy.pem import to_pem
from bmc_proxy.root_cache import RootCache
from protocol.records import NO_IDEMPOTENCY_KEY, Chain, SignCsr
from runtime.limits.networks import path_of

# Of a few CAs, whose certificates come with every answer and do not change.
_ca_to_pem = lru_cache(8)(to_pem)


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks: the account, how it is known, and where the request came from; at most 256 octets each.

    Attributes:
        connection: one of those that it has with us; takes turns with the others.
    """

    user: str
    method: str
    address: str
    connection: Hashable = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Root:
    """The trust anchor in PEM; `age_s` is set where no agent could be asked and this is the last one received."""

    pem: str
    age_s: int | None = None


class Exchange:
    """What this proxy does.

    Args:
        agents: who signs.
        door: where CSRs wait for them.
        roots: the last root received.
        deadline_s: how long what nobody asked for may take.
    """

    def __init__(self, agents: Agents, door: Door, roots: RootCache, deadline_s: float) -> None:
        self._agents = agents
        self._door = door
        self._roots = roots
        self._deadline_s = deadline_s
        self.root_generation: int | None = None  # of the last root that an agent presented to this process

    async def sign_csr(
        self, der: bytes, requester: Requester, idempotency_key: str | None, deadline: Deadline
    ) -> list[str]:
        """Return the chain for a CSR, each certificate in PEM: leaf, issuing CA if there is one, root.

        Args:
            der: the CSR.
            idempotency_key: the requester's own; the same one gets the same certificate. Those of callers without
                login are told apart by the CSR.
            deadline: by when.

        Raises:
            ExchangeError: any of its family.
        """
        record = SignCsr(
            deadline_ms=deadline.for_agent_ms(),
            idempotency_key=_key_octets(idempotency_key, der if requester.user == ANONYMOUS else b""),
            user=requester.user,
            method=requester.method,
            address=requester.address,
            csr=der,
        )
        if requester.user == AGENT_ITSELF:
            raise Forbidden(
                "An account of this name may not have CSRs signed: the agent records its own acts under it."
            )
        path = (*path_of(requester.address), requester.user, requester.connection)
        async with self._door.turn(path, len(der), deadline):
            signed = await self._agents.sign(record, deadline)
        leaf, *others = signed.chain
        return [to_pem(leaf), *map(_ca_to_pem, others)]

    async def root(self, deadline: Deadline) -> Root:
        """Return the trust anchor, from an agent if one can be asked, else the last one received.

        Raises:
            ExchangeError: no agent can be asked and none was ever received.
        """
        try:
            chain = await self._agents.chain(deadline)
        except (AgentUnavailable, AgentTimeout):
            last = self._roots.last()
            if last is None:
                raise
            return Root(*last)
        return Root(self._keep_root(chain))

    async def learn_root(self, link: AgentLink) -> None:
        """Ask an agent that has just connected, or has another root, for it, so that it can be told when it is away.

        Raises:
            ExchangeError: it could not be asked.
        """
        chain = await chain_of(link, Deadline.after(link.clock, self._deadline_s))
        self._keep_root(chain)

    def _keep_root(self, chain: Chain) -> str:
        pem = _ca_to_pem(chain.chain[-1])
        self._roots.received(pem)
        self.root_generation = chain.root_generation
        return pem


def _key_octets(key: str | None, scope: bytes) -> bytes:
    """Return an idempotency key as the agent takes it.

    Args:
        key: the requester's own.
        scope: of those keys; nothing where the requester is somebody who has them all to itself. All who ask without
            login are one requester to the agent, so each of their keys counts with its CSR alone.
    """
    if not key:
        return NO_IDEMPOTENCY_KEY
    return hashlib.sha256(hashlib.sha256(scope).digest() * bool(scope) + key.encode()).digest()[:16]
