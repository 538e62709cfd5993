"""All agents of this proxy: what can be asked of them, and whether an answer can be one to the question."""

import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from bmc_proxy.agents.balancer import Choice
from bmc_proxy.agents.chain import Certificate, NoChain, read_authorities
from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.retry import RETURN_S, Attempts
from bmc_proxy.errors import AgentFailed, RequestRefused
from protocol.records import Chain, GetChain, GetOcsp, GetPublished, OcspAnswer, Published, SignCsr, Signed
from runtime.asn1.der import DerError, csr_subject_and_key
from runtime.log_throttle import Sparse

_Answer = TypeVar("_Answer")

_log = Logger()


class Agents:
    """All agents of this proxy.

    A request that finds none connected, or none with room, is refused at once. One that was begun is carried on as
    `Attempts` says, until its deadline.

    Attributes:
        on_room: called when an agent takes requests again, as it connected or its window was full, and when one takes
            no more. Requests that were begun before come first.
    """

    def __init__(self, links: Sequence[AgentLink]) -> None:
        self.on_room: Callable[[], None] = lambda: None
        self._links = links
        self._choice = Choice(links)
        self._choice.on_room = lambda: self.on_room()
        self._tell = Sparse(_log.warn, time.monotonic)

    def start(self) -> None:
        """Begin to connect to all of them."""
        for link in self._links:
            link.start()

    async def stop(self) -> None:
        """Give all connections up."""
        await gatherResults([Deferred.fromCoroutine(link.stop()) for link in self._links])

    @property
    def root_generation(self) -> int:
        """The newest root generation that a connected agent told of; 0 where none is connected."""
        return max((link.root_generation for link in self._links if link.connected), default=0)

    @property
    def connected(self) -> int:
        """How many agents are connected."""
        return self._choice.connected

    @property
    def room(self) -> int:
        """How many more requests the agents take at this moment."""
        return self._choice.room

    async def sign(self, record: SignCsr, deadline: Deadline) -> Signed:
        """Have a CSR signed. Raises as `Attempts.run` does.

        Args:
            record: goes out with what is left of the deadline.
        """
        return await self._attempt(partial(_signed_by, record, deadline), deadline, patience_s=RETURN_S)

    async def chain(self, deadline: Deadline) -> Chain:
        """Ask one of the agents for its chain. Raises as `Attempts.run` does."""
        return await self._attempt(partial(chain_of, deadline=deadline), deadline)

    async def ocsp(self, request: bytes, deadline: Deadline) -> OcspAnswer:
        """Ask one of the agents for an OCSP response. Raises as `Attempts.run` does, but for RequestRefused."""
        return await self._attempt(partial(_ocsp_by, request, deadline), deadline)

    async def work_with_one(
        self, work: Callable[[AgentLink], Coroutine[Any, Any, _Answer]], deadline: Deadline
    ) -> _Answer:
        """Do what takes several questions to one agent; from the start with another one where that cannot answer.

        Raises:
            ExchangeError: as `Attempts.run` does.
        """
        return await self._attempt(work, deadline, may_hedge=False)

    async def _attempt(
        self,
        work: Callable[[AgentLink], Coroutine[Any, Any, _Answer]],
        deadline: Deadline,
        *,
        patience_s: float = 0.0,
        may_hedge: bool = True,
    ) -> _Answer:
        return await Attempts(
            self._choice, work, deadline, self._tell, patience_s=patience_s, may_hedge=may_hedge
        ).run()


async def chain_of(link: AgentLink, deadline: Deadline) -> Chain:
    """Ask this agent for its chain. Raises as `AgentLink.ask` does, and AgentFailed where the answer is no chain."""
    answer = await link.ask(GetChain(deadline.for_agent_ms()), deadline)
    assert isinstance(answer, Chain)  # the connection lets no other answer through
    try:
        read_authorities(answer.chain)
    except (NoChain, DerError) as error:
        _log.error("agent's certificates are no chain", agent=link.name, reason=str(error))
        link.failed()
        raise AgentFailed from error
    return answer


async def published_by(link: AgentLink, deadline: Deadline, record: GetPublished) -> Published:
    """Ask this agent for a part of what it publishes. Raises as `AgentLink.ask` does, but for RequestRefused."""
    try:
        answer = await link.ask(record, deadline)
    except RequestRefused as error:
        raise AgentFailed from error
    assert isinstance(answer, Published)  # the connection lets no other answer through
    return answer


async def _ocsp_by(request: bytes, deadline: Deadline, link: AgentLink) -> OcspAnswer:
    try:
        answer = await link.ask(GetOcsp(deadline.for_agent_ms(), request), deadline)
    except RequestRefused as error:
        raise AgentFailed from error
    assert isinstance(answer, OcspAnswer)  # the connection lets no other answer through
    return answer


async def _signed_by(record: SignCsr, deadline: Deadline, link: AgentLink) -> Signed:
    answer = await link.ask(record, deadline)
    assert isinstance(answer, Signed)  # the connection lets no other answer through
    csr_sha256 = sha256(record.csr)
    try:
        _check_signed(answer, record.csr, csr_sha256.digest())
    except (NoChain, DerError) as error:
        text = "agent answered for another CSR" if isinstance(error, _OtherCsr) else "agent's certificates are no chain"
        _log.error(text, agent=link.name, csr_sha256=csr_sha256.hexdigest(), reason=str(error))
        link.failed()
        raise AgentFailed from error
    return answer


class _OtherCsr(NoChain):
    """The answer is to another CSR."""


def _check_signed(signed: Signed, csr: bytes, csr_sha256: bytes) -> None:
    """Check that an answer names this CSR, that its leaf carries this CSR's subject and key, and that it is a chain.

    Raises:
        NoChain, DerError: it is not so; `_OtherCsr` where it is about the CSR.
    """
    if signed.csr_sha256 != csr_sha256:
        raise _OtherCsr("another hash")
    leaf = Certificate.read(signed.chain[0])
    if (leaf.subject, leaf.key_info) != csr_subject_and_key(csr):
        raise _OtherCsr("another subject or key")
    leaf.check_issued_by(read_authorities(signed.chain[1:]))
