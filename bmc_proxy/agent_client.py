"""All agents of this proxy: which of them is asked, and whether its answer can be one to the question."""

from collections.abc import Sequence
from hashlib import sha256

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from bmc_proxy.agent_link import AgentLink
from bmc_proxy.errors import AgentBusy, AgentFailed, AgentUnavailable, RequestRefused
from protocol.der import DerError, csr_subject_and_key, leaf_subject_and_key
from protocol.records import Chain, GetChain, GetOcsp, GetPublished, OcspAnswer, Published, SignCsr, Signed

_log = Logger()


class Agents:
    """All agents of this proxy."""

    def __init__(self, links: Sequence[AgentLink]) -> None:
        self._links = links

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

    async def sign(self, record: SignCsr) -> Signed:
        """Have a CSR signed by the connected agent with the fewest answers to give. Raises as `AgentLink.ask` does."""
        link = self.pick()
        answer = await link.ask(record)
        assert isinstance(answer, Signed)  # the connection lets no other answer through
        if not _is_for(answer, record.csr):
            _log.error("agent answered for another CSR", agent=link.name, csr_sha256=sha256(record.csr).hexdigest())
            raise AgentFailed
        return answer

    async def chain(self, record: GetChain) -> Chain:
        """Ask one of the agents for its chain. Raises as `AgentLink.ask` does."""
        return await chain_of(self.pick(), record)

    async def ocsp(self, record: GetOcsp) -> OcspAnswer:
        """Ask one of the agents for an OCSP response. Raises as `AgentLink.ask` does, but for RequestRefused."""
        try:
            answer = await self.pick().ask(record)
        except RequestRefused as error:
            raise AgentFailed from error
        assert isinstance(answer, OcspAnswer)  # the connection lets no other answer through
        return answer

    def pick(self) -> AgentLink:
        """Return the link to the connected agent with the fewest answers to give.

        Raises:
            AgentUnavailable, AgentBusy: there is none, or none with room.
        """
        connected = [link for link in self._links if link.connected]
        if not connected:
            raise AgentUnavailable
        with_room = [link for link in connected if link.room > 0]
        if not with_room:
            raise AgentBusy
        return min(with_room, key=lambda link: link.unanswered)


async def chain_of(link: AgentLink, record: GetChain) -> Chain:
    """Ask this agent for its chain. Raises as `AgentLink.ask` does."""
    answer = await link.ask(record)
    assert isinstance(answer, Chain)  # the connection lets no other answer through
    return answer


async def published_by(link: AgentLink, record: GetPublished) -> Published:
    """Ask this agent for a part of what it publishes. Raises as `AgentLink.ask` does, but for RequestRefused."""
    try:
        answer = await link.ask(record)
    except RequestRefused as error:
        raise AgentFailed from error
    assert isinstance(answer, Published)  # the connection lets no other answer through
    return answer


def _is_for(signed: Signed, csr: bytes) -> bool:
    """Return whether an answer names this CSR, and its leaf carries this CSR's subject and key, octet for octet."""
    try:
        same_leaf = leaf_subject_and_key(signed.chain[0]) == csr_subject_and_key(csr)
    except DerError:
        return False
    return same_leaf and signed.csr_sha256 == sha256(csr).digest()
