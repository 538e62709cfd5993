"""Composition root of the proxy: builds the parts, starts and stops them."""

import time
from functools import partial

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.agent_client import AgentLink, Agents
from bmc_proxy.config import Config
from bmc_proxy.errors import ExchangeError
from bmc_proxy.exchange import Exchange
from bmc_proxy.http.ibm import Ibm
from bmc_proxy.http.phosphor import Phosphor
from bmc_proxy.http.site import ExchangeSite
from bmc_proxy.root_cache import RootCache
from protocol.records import Role
from runtime import state_dir
from runtime.endpoints import client_endpoint, describe, listen_locally, server_endpoint
from runtime.lifecycle import DRAIN_S, Reactor, within
from runtime.transport import make_hello, new_boot_id

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
        assert config.http is not None  # Config refuses it
        self._reactor = reactor
        self._config = config
        self._http = server_endpoint(reactor, "--http", config.http)
        hello = partial(make_hello, Role.ASKER, new_boot_id())
        self._agents = Agents(
            [
                AgentLink(reactor, client_endpoint(reactor, "--agent", each), each, hello, self._agent_ready)
                for each in config.agents
            ]
        )
        self._ports: list[IListeningPort] = []
        self._lock: state_dir.StateDirLock | None = None
        self._exchange: Exchange | None = None
        self._site: ExchangeSite | None = None

    async def start(self) -> dict[str, object]:
        """Open the state directory, listen, and begin to connect to the agents."""
        config = self._config
        self._lock = state_dir.claim(config.state_dir)
        roots = RootCache(config.state_dir, time.time, _root_cache_failed)
        self._exchange = Exchange(self._agents, roots, config.deadline_s)
        self._site = ExchangeSite(self._reactor, [Phosphor(self._exchange), Ibm(self._exchange)])
        assert config.http is not None  # Config refuses it
        self._ports.append(await listen_locally(self._http, self._site, config.http))
        self._agents.start()
        _log.warn("no access control yet: whoever reaches the loopback listener may sign")
        return {"http": describe(self._ports[0].getHost()), "agents": list(config.agents)}

    async def stop(self) -> None:
        """Take no new connection, let requests under way finish, then close everything."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self._site is not None and not await within(self._reactor, DRAIN_S, self._site.drain()):
            _log.warn("requests abandoned at the end of the drain")
        await self._agents.stop()
        if self._lock is not None:
            self._lock.release()

    def _agent_ready(self, link: AgentLink) -> None:
        assert self._exchange is not None  # links start after it was made
        learning = Deferred.fromCoroutine(self._exchange.learn_root(link))

        def failed(failure: Failure) -> None:
            if not isinstance(failure.value, ExchangeError):
                _log.failure("learning the root failed", failure)
            else:
                _log.warn("root not learned", agent=link.name, reason=failure.getErrorMessage())

        learning.addErrback(failed)


def _root_cache_failed(reason: str) -> None:
    _log.warn("stored root not usable", reason=reason)
