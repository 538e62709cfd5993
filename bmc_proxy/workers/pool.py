"""The crew: all the workers; whoever dies is replaced, after a pause that grows with each that did not live long."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.errors import ExchangeError
from bmc_proxy.workers.ipc import PipeBroken
from bmc_proxy.workers.messages import Record, SessionIs, SetUp
from bmc_proxy.workers.process import SharingReactor, WorkerProcess
from runtime.errors import StartError
from runtime.lifecycle import within

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# Who lived so long is replaced after the first pause again.
LONG_LIFE_S = 60.0

_log = Logger()


class Crew:
    """The workers of one proxy.

    Args:
        reactor: runs it.
        set_ups: what each of them is.
        listening: returns the descriptors of the listening sockets.
        answer: answers their questions.
        sessions: returns the sessions that live.
    """

    def __init__(
        self,
        reactor: SharingReactor,
        set_ups: Sequence[SetUp],
        listening: Callable[[], Sequence[int]],
        answer: Callable[[Record], Awaitable[Record]],
        sessions: Callable[[], Iterable[SessionIs]],
    ) -> None:
        self._reactor = reactor
        self._set_ups = {each.worker: each for each in set_ups}
        self._listening = listening
        self._answer = answer
        self._sessions = sessions
        self._workers: dict[int, WorkerProcess] = {}  # those that live, by number
        self._began_at: dict[int, float] = {}
        self._pauses_s = dict.fromkeys(self._set_ups, FIRST_PAUSE_S)
        self._to_come: dict[int, IDelayedCall] = {}
        self._is_stopping = False
        self._has_started = False
        self._all_gone: Deferred[None] | None = None

    async def start(self) -> None:
        """Start all; return when all accept connections. Raises StartError where one of them cannot."""
        try:
            await gatherResults([Deferred.fromCoroutine(self._start(number)) for number in self._set_ups], True)
        except Exception as error:
            cause = getattr(getattr(error, "subFailure", None), "value", error)
            if isinstance(cause, OSError):
                raise StartError(f"a worker process cannot start: {cause.strerror}") from error
            if not isinstance(cause, PipeBroken):
                raise
            raise StartError("a worker process cannot start; the lines before this one say why") from error
        self._has_started = True

    def tell(self, record: Record) -> None:
        """Tell every worker, those that are starting as well."""
        for worker in self._workers.values():
            worker.tell(record)

    async def confirm(self) -> None:
        """Wait until every worker that serves has taken all that it was told so far, or is dead."""
        for confirmed in [worker.confirm() for worker in self._workers.values() if worker.serves]:
            await confirmed

    async def drain(self, limit_s: float) -> None:
        """Have all of them finish what is under way, and end; return when none accepts connections any more.

        Args:
            limit_s: after which whoever said nothing is not waited for.
        """
        self._is_stopping = True
        for timer in self._to_come.values():
            timer.cancel()
        drained = [Deferred.fromCoroutine(worker.drain()) for worker in self._workers.values()]
        await within(self._reactor, limit_s, gatherResults(drained, consumeErrors=True))

    async def end(self, limit_s: float) -> None:
        """Wait until all have ended; kill after so long whoever has not."""
        if self._workers and not await within(self._reactor, limit_s, self._none_left()):
            for worker in list(self._workers.values()):
                worker.kill("it did not end")
            if self._workers:
                await self._none_left()

    def _none_left(self) -> Deferred[None]:
        self._all_gone = Deferred()
        return self._all_gone

    async def _start(self, number: int) -> None:
        worker = WorkerProcess(self._reactor, number, self._answer, self._ended)
        self._workers[number] = worker
        self._began_at[number] = self._reactor.seconds()
        set_up = replace(self._set_ups[number], is_replacement=self._has_started)
        await worker.start(set_up, self._listening(), self._sessions())
        _log.info("worker ready", worker=number, pid=worker.pid)

    def _ended(self, worker: WorkerProcess, reason: str) -> None:
        number = worker.number
        del self._workers[number]
        if self._is_stopping:
            if not self._workers and self._all_gone is not None and not self._all_gone.called:
                self._all_gone.callback(None)
            return
        if not self._has_started:
            _log.error("worker ended", worker=number, pid=worker.pid, reason=reason)
            return
        if self._reactor.seconds() - self._began_at[number] >= LONG_LIFE_S:
            self._pauses_s[number] = FIRST_PAUSE_S
        pause_s = self._pauses_s[number]
        self._pauses_s[number] = min(LONGEST_PAUSE_S, 2 * pause_s)
        _log.error("worker ended", worker=number, pid=worker.pid, reason=reason, next_in_s=pause_s)
        self._to_come[number] = self._reactor.callLater(pause_s, self._replace, number)

    def _replace(self, number: int) -> None:
        del self._to_come[number]
        Deferred.fromCoroutine(self._start(number)).addErrback(self._not_replaced, number)

    def _not_replaced(self, failure: Failure, number: int) -> None:
        """The end of a process is told where it ends; where there is none yet, the next try may do better."""
        if failure.check(PipeBroken, ExchangeError) is None:
            _log.failure("worker not started", failure, worker=number)
            if number in self._workers:
                self._workers[number].kill("it could not be started")
