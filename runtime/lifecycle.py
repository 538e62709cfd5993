"""Life of a process: start, one `ready` event, run, drain on SIGTERM or SIGINT, exit status 0; SIGHUP reloads."""

import signal
import time
from typing import Any, Protocol

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from runtime.errors import StartError

# Leaves two of the ten seconds that a stop may take to closing what is open.
DRAIN_S = 8.0

_log = Logger()


class Reactor(IReactorCore, IReactorTime, IReactorFromThreads):
    """What both processes ask of the reactor."""


class Application(Protocol):
    """What a process runs."""

    async def start(self) -> dict[str, object]:
        """Bind and return the fields of the `ready` event, the real addresses among them."""

    async def stop(self) -> None:
        """Take nothing new, finish what is under way within `DRAIN_S` seconds, and release everything."""

    def reload(self) -> None:
        """Read certificates anew. What cannot be read is told in the log, and the old ones stay."""


def run(reactor: Reactor, application: Application) -> int:
    """Run the application until a signal stops the reactor.

    Returns:
        The exit status: 0 after a clean stop, 1 where the start failed (an `error` event says why).
    """
    # Twisted counts by the time of day, which somebody may set; timers are to run as they would have.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    status = 0
    is_ending = False

    def end() -> None:
        nonlocal is_ending
        if not is_ending:  # a second signal changes nothing
            is_ending = True
            reactor.stop()

    def start() -> None:
        # In place of the reactor's own, which a second signal leads into a traceback.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: reactor.callFromThread(end))
        Deferred.fromCoroutine(application.start()).addCallbacks(ready, failed)

    def ready(fields: dict[str, object]) -> None:
        _log.info("ready", **fields)

    def failed(failure: Failure) -> None:
        nonlocal status
        status = 1
        if isinstance(failure.value, StartError):
            _log.error("cannot start", reason=failure.getErrorMessage())
        else:
            _log.failure("cannot start", failure)
        end()

    def stop() -> Deferred[None]:
        if status == 0:
            _log.info("stopping")
        return Deferred.fromCoroutine(application.stop())

    def hang_up(_number: int, _frame: object) -> None:
        reactor.callFromThread(application.reload)

    signal.signal(signal.SIGHUP, hang_up)
    reactor.callWhenRunning(start)
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.run()
    return status


async def within(clock: IReactorTime, limit_s: float, work: Deferred[Any]) -> bool:
    """Wait for the work, at most so long; return False where it took longer and was cancelled."""
    try:
        await work.addTimeout(limit_s, clock)
    except TimeoutError:
        return False
    return True
