"""A worker: it serves HTTP and asks the agents; what there is once it asks of the first process."""

import os
import signal
import socket
import sys
import time
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorSocket
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.auth.accounts import AccountStore, AccountsUnusable
from bmc_proxy.auth.authenticator import Access
from bmc_proxy.auth.sessions import Session
from bmc_proxy.config import Config
from bmc_proxy.errors import ExchangeError
from bmc_proxy.frontend import Front
from bmc_proxy.notices import not_usable
from bmc_proxy.workers.ipc import Pipe, PipeBroken
from bmc_proxy.workers.messages import (
    Confirm,
    Done,
    Drain,
    EndSession,
    Failed,
    Listen,
    Record,
    RecordRefused,
    Reload,
    SessionEnded,
    SessionIs,
    SetUp,
)
from bmc_proxy.workers.process import PIPE_DESCRIPTOR
from bmc_proxy.workers.rpc_client import AskedAdministration, AskedEntrance
from bmc_proxy.workers.session_replica import Replica
from bmc_proxy.workers.session_table import USED_EVERY_S
from bmc_proxy.workers.shared_log import start_shared_logging
from bmc_proxy.workers.worker_config import config_from_json
from runtime.errors import StartError
from runtime.lifecycle import Reactor

_log = Logger()


class WorkerReactor(Reactor, IReactorSocket):
    """What a worker asks of the reactor."""


class Worker:
    """What a worker process runs.

    Args:
        reactor: runs it.

    Attributes:
        status: to exit with.
    """

    def __init__(self, reactor: WorkerReactor) -> None:
        self._reactor = reactor
        self._pipe = Pipe(self)
        self._replica: Replica | None = None
        self._front: Front | None = None
        self._options: tuple[str, ...] = ()
        self._ports: list[IListeningPort] = []
        self._telling: Deferred[Record] | None = None
        self._is_ending = False
        self._has_ended = False
        self.status = 0

    def begin(self) -> None:
        """Take up the pipe."""
        factory: Any = Factory.forProtocol(lambda: self._pipe)
        self._reactor.adoptStreamConnection(PIPE_DESCRIPTOR, socket.AF_UNIX, factory)
        os.close(PIPE_DESCRIPTOR)

    # As the pipe's party

    def told(self, record: Record) -> None:
        """Take what the first process tells."""
        if self._replica is None or self._front is None:
            raise RecordRefused(f"{type(record).__name__} before all else")
        match record:
            case SessionIs():
                self._replica.learn(record)
            case SessionEnded():
                self._replica.forget(record.id)
            case Reload():
                self._front.reload()
            case _:
                raise RecordRefused(f"{type(record).__name__} is nothing that the first process tells")

    async def asked(self, record: Record) -> Record:
        """Do what the first process asks."""
        match record:
            case SetUp() if self._front is None:
                if not self._set_up(record):
                    return Failed()
            case Listen() if self._front is not None and not self._ports:
                self._listen(self._front)
            case Confirm():
                pass
            case Drain():
                self._drain()
            case _:
                raise RecordRefused(f"{type(record).__name__} is nothing that the first process asks")
        return Done()

    def pipe_lost(self, reason: str) -> None:
        """Nobody is there any more who knows the sessions: nothing is served from now on."""
        if not self._is_ending:
            _log.error("the first process is gone", reason=reason)
        self._end(1)

    def _set_up(self, told: SetUp) -> bool:
        """Build everything; return False, and end, where that cannot be."""
        config = config_from_json(told.config)
        start_shared_logging(told.log_format, worker=told.worker)
        self._options = told.listeners
        try:
            accounts = AccountStore(config.state_dir, partial(not_usable, "accounts"))
            front = Front(self._reactor, config, is_alone=False, is_replacement=told.is_replacement)
            front.load_certificates()
        except (AccountsUnusable, StartError) as error:
            _log.error("cannot start", reason=str(error))
            self._end(1)
            return False
        self._build(config, accounts, front)
        return True

    def _build(self, config: Config, accounts: AccountStore, front: Front) -> None:
        replica = self._replica = Replica(time.monotonic, config.session_idle_s, self._end_session)
        entrance = AskedEntrance(self._pipe, accounts, replica.find)
        access = Access(accounts, replica, entrance, front.client_certificates)
        front.build(access, AskedAdministration(self._pipe, accounts, has_passwords=config.checker == "accounts"))
        self._front = front
        looking = LoopingCall(self._tell_used)
        looking.clock = self._reactor
        looking.start(USED_EVERY_S, now=False)

    def _listen(self, front: Front) -> None:
        for descriptor, option in enumerate(self._options, PIPE_DESCRIPTOR + 1):
            os.set_blocking(descriptor, False)
            with socket.socket(fileno=os.dup(descriptor)) as known:
                family = known.family
            port = self._reactor.adoptStreamPort(descriptor, family, cast(Any, front.factory(option)))
            os.close(descriptor)
            self._ports.append(port)
        front.connect()

    # Sessions

    def _end_session(self, session: Session) -> None:
        """Tell of a session that its account does not let in any more; here it has ended."""
        asking = Deferred.fromCoroutine(self._pipe.ask_for(EndSession(session.id, None, session.address), Done))
        asking.addErrback(_given_up)

    def _tell_used(self) -> None:
        """Tell which sessions were used, unless the last word is still on its way."""
        if self._telling is not None or self._replica is None or not (used := self._replica.take_used()):
            return

        def told(_result: object) -> None:
            self._telling = None

        self._telling = Deferred.fromCoroutine(self._pipe.ask_for(used, Done))
        self._telling.addErrback(_given_up).addBoth(told)

    # The end

    def _drain(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._accept_no_more()
            stopped = maybeDeferred(lambda: None) if self._front is None else Deferred.fromCoroutine(self._front.stop())
            stopped.addErrback(self._failed).addBoth(lambda _: self._end(0))

    def _accept_no_more(self) -> None:
        """Leave the listening sockets alone; they close with the process.

        Where Twisted stops listening, it also shuts a TCP socket down, and removes a unix socket from its directory.
        Both are the first process's to do, or nobody's, where they are systemd's.
        """
        for port in self._ports:
            cast(Any, port).stopReading()

    def _failed(self, failure: Failure) -> None:
        _log.failure("stop failed", failure)

    def _end(self, status: int) -> None:
        if not self._has_ended:
            self._is_ending = self._has_ended = True
            self.status = status
            self._accept_no_more()
            self._reactor.stop()


def _given_up(failure: Failure) -> None:
    """The first process ends, or is overloaded: it will know by its own."""
    failure.trap(PipeBroken, ExchangeError)


def main() -> None:
    """Run a worker; the first process alone starts one, and ends it over the pipe."""
    # A terminal and systemd send signals to all processes at once; the first one passes on what they mean.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    from twisted.internet import reactor

    the_reactor = cast(WorkerReactor, reactor)
    the_reactor.seconds = time.monotonic  # type: ignore[method-assign]  # as runtime.lifecycle has it
    worker = Worker(the_reactor)
    the_reactor.callWhenRunning(worker.begin)
    cast(Any, the_reactor).run(installSignalHandlers=False)
    sys.exit(worker.status)
