"""Composition root of the proxy in one process: builds the parts, starts and stops them."""

import time
from functools import partial

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall

from bmc_proxy.auth.accounts import AccountStore, AccountsUnusable
from bmc_proxy.auth.authenticator import Access
from bmc_proxy.auth.services import Desk
from bmc_proxy.auth.sessions import Sessions
from bmc_proxy.config import Config
from bmc_proxy.frontend import Front
from bmc_proxy.listeners import Listeners
from bmc_proxy.notices import not_usable
from runtime import state_dir
from runtime.endpoints import describe
from runtime.errors import StartError
from runtime.lifecycle import Reactor
from runtime.reload import LOOK_EVERY_S


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
        self._listeners = Listeners(reactor, config)
        self._front = Front(reactor, config, is_alone=True)
        self._ports: list[IListeningPort] = []
        self._lock: state_dir.StateDirLock | None = None
        self._desk: Desk | None = None
        self._looking: LoopingCall | None = None

    async def start(self) -> dict[str, object]:
        """Open the state directory, listen, and begin to connect to the agents."""
        config = self._config
        self._lock = state_dir.claim(config.state_dir)
        try:
            accounts = AccountStore(config.state_dir, partial(not_usable, "accounts"))
        except AccountsUnusable as error:
            raise StartError(str(error)) from error
        self._front.load_certificates()
        sessions = Sessions(time.monotonic, config.session_idle_s)
        desk = self._desk = Desk(self._reactor, config, accounts, sessions)
        self._front.build(
            Access(accounts, sessions, desk.entrance, self._front.client_certificates), desk.administration
        )
        desk.open()
        addresses: dict[str, object] = {}
        for option in self._listeners.options:
            port = await self._listeners.open(option, self._front.factory(option))
            self._ports.append(port)
            addresses[option] = describe(port.getHost())
        self._looking = LoopingCall(self._front.look_at_certificates)
        self._looking.clock = self._reactor
        self._looking.start(LOOK_EVERY_S, now=False)
        self._front.connect()
        return {**addresses, "agents": list(config.agent)}

    async def stop(self) -> None:
        """Take no new connection, let requests under way finish, then close everything."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self._looking is not None:
            self._looking.stop()
        if self._desk is not None:
            self._desk.refuse()
        await self._front.stop()
        if self._desk is not None:
            await self._desk.close()
        if self._lock is not None:
            self._lock.release()

    def reload(self) -> None:
        """Take the certificates of HTTPS and of the channel anew."""
        self._front.reload()
