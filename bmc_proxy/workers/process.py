"""One worker as the first process sees it: started, set up, asked to confirm, ended."""

import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorProcess, IReactorSocket
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.python.failure import Failure

from bmc_proxy.errors import ExchangeError
from bmc_proxy.workers.ipc import Pipe, PipeBroken
from bmc_proxy.workers.messages import Confirm, Done, Drain, Listen, Record, RecordRefused, SessionIs, SetUp
from runtime.lifecycle import Reactor

# From exec to listening; a slow machine takes seconds for the imports.
START_S = 60.0
# A worker that does not confirm within this time is killed: until then nobody is told that a session ended.
CONFIRM_S = 5.0
# The descriptors that a worker inherits: the pipe, and the listening sockets from the next one on.
PIPE_DESCRIPTOR = 3


class SharingReactor(Reactor, IReactorProcess, IReactorSocket):
    """What the first process asks of the reactor."""


class WorkerProcess(ProcessProtocol):
    """One process, from its start to its end.

    Args:
        reactor: starts it.
        number: of its place, from 1 on.
        answer: answers its questions.
        ended: is told, once, when the process is gone, and why.

    Attributes:
        pid: of the process; 0 before its start.
        serves: it may be accepting connections, so it is waited for where a session ends.
    """

    transport: IProcessTransport

    def __init__(
        self,
        reactor: SharingReactor,
        number: int,
        answer: Callable[[Record], Awaitable[Record]],
        ended: Callable[["WorkerProcess", str], None],
    ) -> None:
        self._reactor = reactor
        self._answer = answer
        self._tell_end = ended
        self._reason: str | None = None
        self._pipe = Pipe(self)
        self._waiting: list[Callable[[], None]] = []
        self._has_ended = False
        self.number = number
        self.pid = 0
        self.serves = False

    async def start(self, set_up: SetUp, listening: Sequence[int], sessions: Iterable[SessionIs]) -> None:
        """Start the process; return when it accepts connections.

        Args:
            set_up: what it is.
            listening: the descriptors of the listening sockets.
            sessions: that live. Those that begin from now on it is told as the others are.

        Raises:
            PipeBroken: it ended, or took too long.
        """
        self._spawn(listening)
        timer = self._reactor.callLater(START_S, self.kill, f"not ready within {START_S:.0f} s")
        try:
            ready = self._pipe.ask_for(set_up, Done)
            set_up_done = Deferred.fromCoroutine(ready)
            for session in sessions:
                self.tell(session)
            await set_up_done
            # Whatever it was told before is ahead of this in the pipe; for the rest it is waited for.
            self.serves = True
            await self._pipe.ask_for(Listen(), Done)
        finally:
            if timer.active():
                timer.cancel()

    def tell(self, record: Record) -> None:
        """Send what needs no answer."""
        self._pipe.tell(record)

    def confirm(self) -> Deferred[None]:
        """Return what fires when it has taken all that it was told so far, or is dead."""
        done: Deferred[None] = Deferred()
        timer: IDelayedCall = self._reactor.callLater(CONFIRM_S, self.kill, f"no word for {CONFIRM_S:.0f} s")

        def settled() -> None:
            if timer.active():
                timer.cancel()
            if not done.called:
                done.callback(None)

        def confirmed(_answer: Done) -> None:
            settled()

        def unconfirmed(failure: Failure) -> None:
            failure.trap(PipeBroken, ExchangeError)
            self.kill("it does not confirm")
            if self._has_ended:
                settled()
            else:
                self._waiting.append(settled)

        Deferred.fromCoroutine(self._pipe.ask_for(Confirm(), Done)).addCallbacks(confirmed, unconfirmed)
        return done

    async def drain(self) -> None:
        """Have it finish what is under way, and end; return when it accepts no more connections, or is dead."""
        with suppress(PipeBroken, ExchangeError):
            await self._pipe.ask_for(Drain(), Done)

    def kill(self, reason: str) -> None:
        """End it at once."""
        self._reason = self._reason or reason
        if not self.pid and not self._has_ended:
            self._gone("never started")
        elif not self._has_ended:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess("KILL")

    # As the pipe's party

    def told(self, record: Record) -> None:
        """A worker tells nothing that it is not asked."""
        raise RecordRefused(f"{type(record).__name__} is nothing that a worker tells")

    async def asked(self, record: Record) -> Record:
        """Answer."""
        return await self._answer(record)

    def pipe_lost(self, reason: str) -> None:
        """It is ending, or speaks nonsense."""
        self.kill(reason)

    # As a process

    def processEnded(self, reason: Failure) -> None:
        self._gone(reason.getErrorMessage())

    def _gone(self, how: str) -> None:
        self._has_ended = True
        self.serves = False
        told = [] if self._reason is None else [self._reason]
        waiting, self._waiting = self._waiting, []
        self._pipe.end()
        for settled in waiting:
            settled()
        self._tell_end(self, ": ".join([*told, how]))

    def _spawn(self, listening: Sequence[int]) -> None:
        ours, theirs = socket.socketpair()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            descriptors = {0: null, 1: 1, 2: 2, PIPE_DESCRIPTOR: theirs.fileno()}
            descriptors |= {PIPE_DESCRIPTOR + 1 + index: each for index, each in enumerate(listening)}
            # -P: the current directory is no place to take modules from.
            words = [sys.executable, "-P", "-m", "bmc_proxy.workers"]
            spawned = self._reactor.spawnProcess(self, words[0], words, env=None, childFDs=descriptors)
            assert spawned is not None
            self.pid = spawned.pid or 0
            ours.setblocking(False)
            factory: Any = Factory.forProtocol(lambda: self._pipe)
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        finally:
            os.close(null)
            theirs.close()
            ours.close()
