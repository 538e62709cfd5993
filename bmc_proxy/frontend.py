"""The front: what faces clients and agents, in each process that serves; who is let in is somebody else's to say."""

import gc
import socket
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from bmc_proxy import https
from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.pool import Agents
from bmc_proxy.agents.queue import Door
from bmc_proxy.api.ibm import Ibm
from bmc_proxy.api.openbmc_rest import Phosphor
from bmc_proxy.api.pki import Pki
from bmc_proxy.api.redfish import Redfish
from bmc_proxy.api.router import Router
from bmc_proxy.api.types import Dialect
from bmc_proxy.auth.account_service import Administration
from bmc_proxy.auth.authenticator import Access
from bmc_proxy.auth.client_certificates import ClientCertificate, ClientCertificates
from bmc_proxy.config import Config
from bmc_proxy.errors import ExchangeError
from bmc_proxy.listeners import is_anonymous_at
from bmc_proxy.notices import not_usable
from bmc_proxy.pki_cache import Publications
from bmc_proxy.root_cache import RootCache
from bmc_proxy.server.context import Allowances, Edge, body_room
from bmc_proxy.server.site import ExchangeSite
from bmc_proxy.signing import Exchange
from protocol.records import Role
from runtime.descriptions import has_tls
from runtime.endpoints import client_endpoint, connect_with_tls
from runtime.errors import StartError
from runtime.fd_limit import connections_within
from runtime.files import FileRefused
from runtime.lifecycle import DRAIN_S, Reactor, within
from runtime.limits.crowd import Crowd
from runtime.log_throttle import Sparse
from runtime.reload import Reloadable, channel_reloadable
from runtime.tls import TlsFactory
from runtime.transport import make_hello, new_boot_id

if TYPE_CHECKING:
    from bmc_proxy.auth.client_status import ClientStatus

# New objects until the garbage collector looks for cycles among them.
GC_THRESHOLD = 7_000

_log = Logger()


class Front:
    """The edge, and the agents behind it.

    Args:
        reactor: runs it.
        config: judged already.
        is_alone: no other process serves from the same state directory.
        is_replacement: of a worker that ended, while others serve.

    Raises:
        ConfigError: an agent's endpoint is not one.
    """

    def __init__(self, reactor: Reactor, config: Config, *, is_alone: bool, is_replacement: bool = False) -> None:
        self._reactor = reactor
        self._is_replacement = is_replacement
        self._config = config
        self._is_alone = is_alone
        self._agent_endpoints = [client_endpoint(reactor, "--agent", each) for each in config.agent]
        self._sites: list[ExchangeSite] = []
        self._agents: Agents | None = None
        self._learning: set[AgentLink] = set()
        self._https: Reloadable | None = None
        self._channel: Reloadable | None = None
        self._client_status: ClientStatus | None = None
        self._agent_links: list[AgentLink] = []

    @property
    def client_certificates(self) -> ClientCertificates | None:
        """What judges client certificates; None where they let nobody in."""
        return None if self._client_status is None else self._client_status.certificates

    def load_certificates(self) -> None:
        """Take the certificates of HTTPS and of the channel, and those of client CAs. Raises StartError."""
        config = self._config
        try:
            if config.https_at is not None:
                self._https = https.https_reloadable(config, is_alone=self._is_alone)
            if any(map(has_tls, config.agent)):
                self._channel = channel_reloadable(config.state_dir, warns=self._is_alone)
            if config.client_ca is not None:
                # A BMC has little memory: what reads CRLs is there only where it is needed.
                from bmc_proxy.auth.client_status import ClientStatus

                self._client_status = ClientStatus(
                    self._reactor, config, is_alone=self._is_alone, is_replacement=self._is_replacement
                )
        except FileRefused as error:
            raise StartError(str(error)) from error

    def build(self, access: Access, administration: Administration) -> None:
        """Build it, with certificates loaded.

        Args:
            access: says who asks.
            administration: of accounts.
        """
        config = self._config
        self._agent_links = self._links()
        self._agents = Agents(self._agent_links)
        door = Door(self._reactor, self._agents, config.max_waiting)
        self._agents.on_room = door.look
        if self._client_status is not None:
            self._client_status.start(door)
        report = partial(not_usable, "stored root")
        roots = RootCache(config.state_dir, time.time, time.monotonic, report, is_alone=self._is_alone)
        self._exchange = Exchange(self._agents, door, roots, config.deadline_s)
        self._publications = Publications(self._agents, self._reactor, time.time, config.deadline_s)
        self._edge = self._new_edge(access, administration)

    def factory(self, option: str) -> IProtocolFactory:
        """Return what makes the connections of one of the listeners."""
        site = ExchangeSite(self._edge, is_anonymous=is_anonymous_at(self._config, option))
        self._sites.append(site)
        if option != "https":
            plain: IProtocolFactory = site
            return plain
        assert self._https is not None  # loaded where there is this listener
        factory: IProtocolFactory = TlsFactory(self._https.context, site, writes_whole=True)
        return factory

    def connect(self) -> None:
        """Begin to connect to the agents."""
        assert self._agents is not None  # it is built
        self._agents.start()
        _settle_memory()

    async def stop(self) -> None:
        """Let requests under way finish, with nobody listening any more, then close everything."""
        drained = gatherResults([site.drain() for site in self._sites], consumeErrors=True)
        if not await within(self._reactor, DRAIN_S, drained):
            _log.warn("requests abandoned at the end of the drain")
            for site in self._sites:
                site.abandon()
        if self._agents is not None:
            await self._agents.stop()
        if self._client_status is not None:
            await self._client_status.stop()

    def reload(self) -> None:
        """Take the certificates of HTTPS and of the channel anew."""
        for each in (self._https, self._channel):
            if each is not None:
                each.reload()
        if self._client_status is not None:
            self._client_status.reload(self._agent_links)

    def look_at_certificates(self) -> None:
        """Renew what is due, and warn of what is not valid or soon no more."""
        for each in (self._https, self._channel):
            if each is not None:
                each.look()

    def _links(self) -> list[AgentLink]:
        hello = partial(make_hello, Role.ASKER, new_boot_id())
        links = []
        for description, plain in zip(self._config.agent, self._agent_endpoints, strict=True):
            endpoint = plain
            if has_tls(description):
                assert self._channel is not None  # made where any agent needs it
                endpoint = connect_with_tls(plain, self._channel.context)
            links.append(
                AgentLink(
                    self._reactor,
                    endpoint,
                    description,
                    hello,
                    self._agent_ready,
                    uids=self._config.uids,
                    on_status=self._agent_status,
                )
            )
        return links

    def _new_edge(self, access: Access, administration: Administration) -> Edge:
        """Build what the listeners share."""
        config = self._config
        # By the name that the machine knows itself by: no start waits for a name server.
        service_uuid = str(uuid.uuid5(uuid.NAMESPACE_DNS, socket.gethostname()))
        dialects: list[Dialect] = [
            Phosphor(self._exchange, access),
            Ibm(self._exchange),
            Redfish(access, administration, service_uuid),
            Pki(self._publications, time.time),
        ]
        field = config.client_user
        connections = connections_within(config.max_connections)
        if connections < config.max_connections:
            _log.warn(
                "fewer connections than configured: raise this process's limit of open files (ulimit -n, LimitNOFILE)",
                configured=config.max_connections,
                allowed=connections,
            )

        def certificate_of(transport: object) -> ClientCertificate | None:
            return https.client_certificate_of(transport, field)

        return Edge(
            reactor=self._reactor,
            now=time.monotonic,
            router=Router(dialects),
            access=access,
            crowd=Crowd(connections),
            room=body_room(connections),
            allowances=Allowances(time.monotonic, config.requests_per_s),
            certificate_of=certificate_of,
            tell_of_stranger=Sparse(_log.info, time.monotonic),
            deadline_s=config.deadline_s,
        )

    def _agent_ready(self, link: AgentLink) -> None:
        self._publications.look_anew()
        self._look_at_crls(link)
        self._begin_learning(link)

    def _agent_status(self, link: AgentLink) -> None:
        self._publications.look_anew()
        self._look_at_crls(link)
        if link.root_generation != self._exchange.root_generation:
            self._begin_learning(link)

    def _look_at_crls(self, link: AgentLink) -> None:
        if self._client_status is not None:
            self._client_status.look(link)

    def _begin_learning(self, link: AgentLink) -> None:
        if link not in self._learning:
            self._learning.add(link)
            learning = Deferred.fromCoroutine(self._learn_root(link))
            learning.addErrback(partial(_log.failure, "learning the root failed"))

    async def _learn_root(self, link: AgentLink) -> None:
        """Ask an agent for its root, and once more where it told of another one meanwhile."""
        asked_at = None
        try:
            while link.connected and link.root_generation != asked_at:
                asked_at = link.root_generation
                await self._exchange.learn_root(link)
            _log.info("root learned", agent=link.name, root_generation=self._exchange.root_generation)
        except ExchangeError as error:
            _log.warn("root not learned", agent=link.name, reason=error.text)
        finally:
            self._learning.discard(link)


def _settle_memory() -> None:
    """Let the garbage collector pass over what a start has made, which stays as long as the process.

    Without this each of its full rounds looks at a hundred thousand objects of the libraries, and a request in every
    few hundred waits for one. Rounds are ten times rarer as well: what requests leave goes by reference count, and
    cycles are left by what fails.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 10)
