"""Composition root of the proxy: builds the parts, starts and stops them."""

import gc
import socket
import time
import uuid
from functools import partial

from cryptography.x509 import Certificate
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger

from bmc_proxy import https
from bmc_proxy.access import Access
from bmc_proxy.accounts import AccountStore, AccountsUnusable
from bmc_proxy.administration import Administration
from bmc_proxy.agent_client import Agents
from bmc_proxy.agent_link import AgentLink
from bmc_proxy.checkers import AccountChecker, PamChecker
from bmc_proxy.config import Config
from bmc_proxy.door import Door
from bmc_proxy.errors import ExchangeError
from bmc_proxy.exchange import Exchange
from bmc_proxy.http.call import Dialect
from bmc_proxy.http.crowd import Crowd
from bmc_proxy.http.edge import Allowances, Edge, body_room
from bmc_proxy.http.ibm import Ibm
from bmc_proxy.http.phosphor import Phosphor
from bmc_proxy.http.pki import Pki
from bmc_proxy.http.redfish import Redfish
from bmc_proxy.http.routes import Router
from bmc_proxy.http.site import ExchangeSite
from bmc_proxy.logins import Logins
from bmc_proxy.publications import Publications
from bmc_proxy.root_cache import RootCache
from bmc_proxy.sessions import Sessions
from bmc_proxy.turns import Turns
from protocol.records import Role
from runtime import channel_tls, state_dir
from runtime.descriptions import has_tls, is_local, without_tls
from runtime.descriptors import connections_within
from runtime.endpoints import client_endpoint, connect_with_tls, describe, listen, server_endpoint
from runtime.errors import StartError
from runtime.files import FileRefused
from runtime.lifecycle import DRAIN_S, Reactor, within
from runtime.reload import Reloadable
from runtime.sparse import Sparse
from runtime.tls import TlsFactory
from runtime.transport import make_hello, new_boot_id
from runtime.workers import Workers

# PAM waits: for a directory, or after a wrong password.
PAM_THREADS = 8
# What is left of the ten seconds of a stop, for each kind of work.
WORKERS_S = 0.4
# New objects until the garbage collector looks for cycles among them.
GC_THRESHOLD = 7_000

_log = Logger()


class ProxyApplication:
    """The proxy as a process runs it.

    Args:
        reactor: runs it.
        config: judged already.

    Raises:
        ConfigError: an endpoint is not one.
    """

    def __init__(self, reactor: Reactor, config: Config) -> None:
        self._reactor = reactor
        self._config = config
        self._endpoints = {
            option: server_endpoint(reactor, f"--{option}", description)
            for option, description in (("https", config.https_at), ("http", config.http))
            if description is not None
        }
        self._agent_endpoints = [client_endpoint(reactor, "--agent", each) for each in config.agent]
        # One thread: a hash takes a core and much memory, and signing needs both.
        self._hashing = Workers(reactor, 1, "hashing")
        self._checking = Workers(reactor, PAM_THREADS, "checking")
        self._turns = Turns()
        self._ports: list[IListeningPort] = []
        self._sites: list[ExchangeSite] = []
        self._lock: state_dir.StateDirLock | None = None
        self._agents: Agents | None = None
        self._learning: set[AgentLink] = set()
        self._https: Reloadable | None = None
        self._channel: Reloadable | None = None

    async def start(self) -> dict[str, object]:
        """Open the state directory, listen, and begin to connect to the agents."""
        config = self._config
        self._lock = state_dir.claim(config.state_dir)
        try:
            accounts = AccountStore(config.state_dir, partial(_not_usable, "accounts"))
            if "https" in self._endpoints:
                load = partial(https.https_context, config.state_dir, config.https_config)
                self._https = Reloadable("https", load)
            if any(map(has_tls, config.agent)):
                load = partial(channel_tls.channel_context, config.state_dir / channel_tls.FILE_NAME)
                self._channel = Reloadable("channel", load)
        except (AccountsUnusable, FileRefused) as error:
            raise StartError(str(error)) from error
        self._agents = Agents(self._links())
        door = Door(self._reactor, self._agents, config.max_waiting)
        self._agents.on_room = door.look
        self._exchange = Exchange(self._agents, door, self._roots(), config.deadline_s)
        self._publications = Publications(self._agents, time.time, config.deadline_s)
        edge = self._edge(accounts)
        self._hashing.start()
        self._checking.start()
        addresses = {option: await self._listen(option, edge) for option in self._endpoints}
        self._agents.start()
        _settle_memory()
        if not accounts.all():
            _log.warn("no accounts yet: add one with `bmc-proxy account add`")
        return {**addresses, "agents": list(config.agent)}

    async def stop(self) -> None:
        """Take no new connection, let requests under way finish, then close everything."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        self._turns.close()
        drained = gatherResults([site.drain() for site in self._sites], consumeErrors=True)
        if not await within(self._reactor, DRAIN_S, drained):
            _log.warn("requests abandoned at the end of the drain")
            for site in self._sites:
                site.abandon()
        if self._agents is not None:
            await self._agents.stop()
        for workers in (self._hashing, self._checking):
            if not await workers.stop(WORKERS_S):
                _log.warn("a password check or a change of accounts goes on")
        if self._lock is not None:
            self._lock.release()

    def reload(self) -> None:
        """Take the certificates of HTTPS and of the channel anew."""
        for each in (self._https, self._channel):
            if each is not None:
                each.reload()

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

    def _roots(self) -> RootCache:
        return RootCache(self._config.state_dir, time.time, partial(_not_usable, "stored root"))

    def _edge(self, accounts: AccountStore) -> Edge:
        """Build what the listeners share."""
        config = self._config
        sessions = Sessions(time.monotonic, config.session_idle_s)
        checker, is_pam = self._checker(accounts), config.checker == "pam"
        logins = Logins(accounts, checker, self._turns, time.monotonic, are_apart=is_pam)
        access = Access(accounts, sessions, logins)
        administration = Administration(accounts, logins, self._turns, self._hashing.run)
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

        def user_of(certificate: Certificate) -> str | None:
            return https.user_of(certificate, field)

        return Edge(
            reactor=self._reactor,
            now=time.monotonic,
            router=Router(dialects),
            access=access,
            crowd=Crowd(connections),
            room=body_room(connections),
            allowances=Allowances(time.monotonic, config.requests_per_s),
            user_of=user_of,
            tell_of_stranger=Sparse(_log.info, time.monotonic),
            deadline_s=config.deadline_s,
        )

    def _checker(self, accounts: AccountStore) -> ICredentialsChecker:
        if self._config.checker == "accounts":
            checker: ICredentialsChecker = AccountChecker(accounts, self._hashing.run)
            return checker
        try:
            pam: ICredentialsChecker = PamChecker(self._config.pam_service, self._checking.run)
        except ImportError as error:
            text = "--checker pam needs the extra: pip install 'vmi-certificate-exchange[pam]'"
            raise StartError(text) from error
        return pam

    async def _listen(self, option: str, edge: Edge) -> str:
        config = self._config
        endpoint: IStreamServerEndpoint = self._endpoints[option]
        description = config.https_at if option == "https" else config.http
        assert description is not None  # it has an endpoint
        is_anonymous = option == "http" and config.anonymous_loopback
        site = ExchangeSite(edge, is_anonymous=is_anonymous)
        factory: IProtocolFactory = site
        if option == "https":
            assert self._https is not None  # made with the state
            factory = TlsFactory(self._https.context, site, writes_whole=True)
        elif is_anonymous:
            _log.warn("whoever reaches the plain listener may have CSRs signed without login", http=description)
        elif not is_local(description):
            _log.warn("passwords and tokens cross the network in the clear on the plain listener", http=description)
        port = await listen(endpoint, factory, without_tls(description), locally=is_anonymous)
        self._ports.append(port)
        self._sites.append(site)
        return describe(port.getHost())

    def _agent_ready(self, link: AgentLink) -> None:
        self._publications.look_anew()
        self._begin_learning(link)

    def _agent_status(self, link: AgentLink) -> None:
        self._publications.look_anew()
        if link.root_generation != self._exchange.root_generation:
            self._begin_learning(link)

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


def _not_usable(what: str, reason: str) -> None:
    _log.warn(f"{what} not usable", reason=reason)
