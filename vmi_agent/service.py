"""Composition root of the agent: builds the parts, starts and stops them."""

from functools import partial

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from protocol.records import Role
from runtime import state_dir
from runtime.endpoints import describe, server_endpoint
from runtime.lifecycle import DRAIN_S, Reactor, StartError, within
from runtime.transport import make_hello, new_boot_id
from vmi_agent import authority
from vmi_agent.authority import Authority
from vmi_agent.config import Config
from vmi_agent.custody import DEFAULT_KEY_TYPE, CustodyError
from vmi_agent.dispatch import Dispatch
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.issuing import Issuing, utc_now
from vmi_agent.ledger import Ledger
from vmi_agent.profile import Profile
from vmi_agent.server import AgentServer

_log = Logger()


class AgentApplication:
    """The agent as a process runs it.

    Args:
        reactor: runs it.
        config: judged already.

    Raises:
        ConfigError: a --listen is not an endpoint.
    """

    def __init__(self, reactor: Reactor, config: Config) -> None:
        self._reactor = reactor
        self._config = config
        self._endpoints = [server_endpoint(reactor, "--listen", each) for each in config.listen]
        self._signers = ThreadPool(config.signers, config.signers, name="signers")
        self._ports: list[IListeningPort] = []
        self._lock: state_dir.StateDirLock | None = None
        self._ledger: Ledger | None = None
        self._server: AgentServer | None = None

    async def start(self) -> dict[str, object]:
        """Open the state directory, make the CA where there is none, and listen."""
        config = self._config
        self._lock = state_dir.claim(config.state_dir)
        try:
            ca = self._open_authority()
            self._ledger = Ledger(config.state_dir)
        except (CustodyError, LedgerUnavailable) as error:
            raise StartError(str(error)) from error
        if self._ledger.abandoned_at_start:
            _log.warn("intents without certificate closed off", count=self._ledger.abandoned_at_start)
        issuing = Issuing(ca, self._ledger, Profile(), utc_now)
        self._server = AgentServer(
            clock=self._reactor,
            dispatch=Dispatch(ca, issuing, _report),
            make_hello=partial(
                make_hello, Role.AGENT, new_boot_id(), window=config.window, root_generation=ca.generation
            ),
            in_thread=partial(deferToThreadPool, self._reactor, self._signers),
            max_requests=config.max_requests,
        )
        self._signers.start()
        for endpoint in self._endpoints:
            self._ports.append(await endpoint.listen(self._server))
        return {"listen": [describe(port.getHost()) for port in self._ports], "root_generation": ca.generation}

    async def stop(self) -> None:
        """Take no new connection, let what is under way finish, then close everything in the order of its making."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self._server is not None:
            if not await within(self._reactor, DRAIN_S, self._server.drain()):
                _log.warn("requests abandoned at the end of the drain", count=self._server.admission.admitted)
            await self._server.disconnect()  # bounded: a peer that does not read is cut off after LAST_WORD_S
        if self._signers.started:
            self._signers.stop()
        if self._ledger is not None:
            self._ledger.close()
        if self._lock is not None:
            self._lock.release()

    def _open_authority(self) -> Authority:
        if authority.exists(self._config.state_dir):
            return authority.load(self._config.state_dir)
        ca = authority.create(self._config.state_dir, DEFAULT_KEY_TYPE, utc_now())
        _log.info("CA made", root_generation=ca.generation, key_type=DEFAULT_KEY_TYPE)
        return ca


def _report(error: BaseException) -> None:
    _log.failure("request failed", Failure(error))
