"""Blocking work in threads that take a step only when the test says so, and stop where it wants to look."""

import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class Crashed(BaseException):
    """The process that this thread is part of is gone; nothing in it goes on."""


class Work(threading.Thread):
    """One blocking call, begun with the first step, over with the last.

    Attributes:
        done: fires with what the call returned, or fails with what it raised, in the thread of whoever took the step.
        at: where it waits.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.done: Deferred[Any] = Deferred()
        self.at = "its beginning"
        self._call = call
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._is_crashed = False
        self._result: object = None
        self.start()

    def run(self) -> None:
        """Make the call, as the test lets it."""
        try:
            self._wait()
            self._result = self._call()
        except Crashed:
            pass
        except BaseException:  # noqa: BLE001  # whatever it is goes where the call's owner looks for it
            self._result = Failure()
        self.at = ""
        self._stopped.release()

    def step(self) -> bool:
        """Let it go on to where it stops next; return whether that was the end."""
        self._go.release()
        self._stopped.acquire()
        if self.at:
            return False
        self.join()
        self.done.callback(self._result)  # a Failure fails it
        return True

    def crash(self) -> None:
        """End it where it is; nobody hears of it."""
        self._is_crashed = True
        self._go.release()
        self.join()

    def _wait(self) -> None:
        self._go.acquire()
        if self._is_crashed:
            raise Crashed

    def stop_at(self, place: str) -> None:
        """Stop here until the next step; called in the thread itself."""
        self.at = place
        self._stopped.release()
        self._wait()


def stop_at(place: str) -> None:
    """Stop the thread that calls this, if it is one of ours."""
    thread = threading.current_thread()
    if isinstance(thread, Work):
        thread.stop_at(place)
