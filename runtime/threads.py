"""Threads for blocking work, which do not keep a process from ending."""

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from runtime.lifecycle import Reactor, within


class Workers:
    """A bounded number of threads.

    Args:
        reactor: gets the results.
        threads: how many.
        name: of the threads.
    """

    def __init__(self, reactor: Reactor, threads: int, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, threads, name=name)
        self._pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]  # it makes threads

    def start(self) -> None:
        """Take work from now on."""
        self._pool.start()

    def run(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run a blocking callable in a thread; return a Deferred of its result."""
        done: Deferred[Any] = deferToThreadPool(self._reactor, self._pool, work, *arguments)
        return done

    async def stop(self, limit_s: float) -> bool:
        """Wait for work under way, at most so long; return False where some goes on."""
        if not self._pool.started:
            return True
        stopped: Deferred[None] = Deferred()

        def stop() -> None:
            self._pool.stop()
            self._reactor.callFromThread(lambda: None if stopped.called else stopped.callback(None))

        Thread(target=stop, daemon=True).start()
        return await within(self._reactor, limit_s, stopped)
