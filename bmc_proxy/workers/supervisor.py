"""Composition root of the first process of several: it listens, and has what there is once; the workers serve."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall

from bmc_proxy import https, root_cache
from bmc_proxy.auth.accounts import AccountStore, AccountsUnusable
from bmc_proxy.auth.services import Desk
from bmc_proxy.config import Config
from bmc_proxy.listeners import Listeners
from bmc_proxy.notices import not_usable
from bmc_proxy.workers.messages import Record, Reload, SetUp
from bmc_proxy.workers.pool import Crew
from bmc_proxy.workers.process import SharingReactor
from bmc_proxy.workers.rpc_server import Answers
from bmc_proxy.workers.session_table import SharedSessions, to_record
from bmc_proxy.workers.worker_config import config_to_json, share_of
from runtime import reload, state_dir
from runtime.descriptions import has_tls
from runtime.endpoints import client_endpoint, describe
from runtime.errors import StartError
from runtime.files import FileRefused, remove_leftovers
from runtime.lifecycle import DRAIN_S
from runtime.reload import Reloadable, channel_reloadable

# A worker may take all of the drain, and a moment to close.
WORKERS_END_S = DRAIN_S + 0.8
# How long it may take until no worker accepts connections any more.
NO_MORE_S = 0.5
# How often it is looked for sessions that are idle.
LOOK_EVERY_S = 1.0


class FirstProcess:
    """The process that was started, where several serve.

    Args:
        reactor: runs it.
        config: judged already.
        log_format: of the workers' log lines.

    Raises:
        ConfigError: an endpoint is not one.
    """

    def __init__(self, reactor: SharingReactor, config: Config, log_format: str) -> None:
        self._reactor = reactor
        self._config = config
        self._log_format = log_format
        self._listeners = Listeners(reactor, config)
        for each in config.agent:
            client_endpoint(reactor, "--agent", each)  # judged here, where a mistake can be reported
        self._ports: list[IListeningPort] = []
        self._lock: state_dir.StateDirLock | None = None
        self._https: Reloadable | None = None
        self._channel: Reloadable | None = None
        self._desk: Desk | None = None
        self._crew: Crew | None = None
        self._looking: LoopingCall | None = None
        self._looking_at_certificates: LoopingCall | None = None

    async def start(self) -> dict[str, object]:
        """Open the state directory and the listeners, and start the workers, which accept connections."""
        config = self._config
        self._lock = state_dir.claim(config.state_dir)
        remove_leftovers(config.state_dir / root_cache.FILE_NAME)
        try:
            accounts = AccountStore(config.state_dir, partial(not_usable, "accounts"))
            if config.https_at is not None:
                # Made here where one is due; the workers read it.
                self._https = https.https_reloadable(config, is_alone=True)
            if config.client_ca is not None:
                from bmc_proxy.auth.client_status import load

                load(config)  # judged here, where a mistake can be reported; the workers keep it
            if any(map(has_tls, config.agent)):
                self._channel = channel_reloadable(config.state_dir)
        except (AccountsUnusable, FileRefused) as error:
            raise StartError(str(error)) from error
        sessions = SharedSessions(time.monotonic, config.session_idle_s, self._tell, self._confirm)
        desk = self._desk = Desk(self._reactor, config, accounts, sessions)
        desk.open()
        addresses: dict[str, object] = {}
        for option in self._listeners.options:
            port = await self._listeners.open(option, Factory())
            cast(Any, port).stopReading()  # before anything can be accepted: the workers do that
            self._ports.append(port)
            addresses[option] = describe(port.getHost())
        crew = self._crew = Crew(
            self._reactor,
            self._set_ups(),
            self._listening,
            Answers(desk, sessions).answer,
            lambda: map(to_record, sessions.all()),
        )
        self._looking = LoopingCall(sessions.all)
        self._looking.clock = self._reactor
        self._looking.start(LOOK_EVERY_S, now=False)
        self._looking_at_certificates = LoopingCall(self._look_at_certificates)
        self._looking_at_certificates.clock = self._reactor
        self._looking_at_certificates.start(reload.LOOK_EVERY_S, now=False)
        await crew.start()
        return {**addresses, "agents": list(config.agent), "workers": config.workers}

    async def stop(self) -> None:
        """Take no new connection, let the workers finish what is under way, then close everything."""
        if self._crew is not None:
            # Before the sockets are closed for all: a worker that still reads them would take that for a fault.
            await self._crew.drain(NO_MORE_S)
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self._desk is not None:
            self._desk.refuse()
        if self._crew is not None:
            await self._crew.end(WORKERS_END_S - NO_MORE_S)
        for each in (self._looking, self._looking_at_certificates):
            if each is not None:
                each.stop()
        if self._desk is not None:
            await self._desk.close()
        if self._lock is not None:
            self._lock.release()

    def reload(self) -> None:
        """Make the certificate of HTTPS again where it is due, and have the workers take theirs."""
        for each in (self._https, self._channel):
            if each is not None:
                each.reload()
        self._tell(Reload())

    def _look_at_certificates(self) -> None:
        """Renew what is due, have the workers take it, and warn of what is not valid or soon no more."""
        if self._channel is not None:
            self._channel.look()
        if self._https is not None and self._https.look():
            self._tell(Reload())

    def _set_ups(self) -> list[SetUp]:
        config = config_to_json(share_of(self._config))
        options = tuple(self._listeners.options)
        return [
            SetUp(number, self._log_format, config, options, False) for number in range(1, self._config.workers + 1)
        ]

    def _listening(self) -> Sequence[int]:
        return [cast(Any, port).fileno() for port in self._ports]

    def _tell(self, record: Record) -> None:
        if self._crew is not None:
            self._crew.tell(record)

    async def _confirm(self) -> None:
        if self._crew is not None:
            await self._crew.confirm()
