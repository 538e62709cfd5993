"""Threads that sign, for keys whose signatures take longer than handing them over."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

_Who = TypeVar("_Who")


class Signers(Generic[_Who]):
    """Threads for one pace of keys, which are made when the first one signs.

    Args:
        done: told, in any of the threads, for whom calls were made, and what each returned or raised.
        at_once: how many threads.
        turn_s: how long a thread may keep what it made, while it makes more.
    """

    def __init__(self, done: Callable[[Sequence[tuple[_Who, Any]]], None], at_once: int, turn_s: float) -> None:
        self._done = done
        self._at_once = at_once
        self._turn_s = turn_s
        self._calls: queue.SimpleQueue[tuple[_Who, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def put(self, who: _Who, call: Callable[[], Any]) -> None:
        """Make a call for somebody, in its turn. To be called in one thread alone."""
        if not self._threads:
            try:
                self._start()
            except RuntimeError as error:  # the system lets this process have no more threads
                if not self._threads:
                    self._done([(who, error)])
                    return
        self._calls.put((who, call))

    def stop(self) -> None:
        """End the threads, which have nothing to do any more."""
        self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        for _ in range(self._at_once):
            thread = threading.Thread(target=self._work, name="signing")
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        found = self._calls.get()
        while found is not None:
            ends_at = time.monotonic() + self._turn_s
            made = []
            while found is not None:
                who, call = found
                made.append((who, attempt(call)))
                if time.monotonic() >= ends_at:
                    break
                try:
                    found = self._calls.get_nowait()
                except queue.Empty:
                    break
            self._done(made)
            found = None if found is None else self._calls.get()
        self._calls.put(None)  # for the next thread


def attempt(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or what it raises."""
    try:
        return call()
    except BaseException as error:  # noqa: BLE001  # it is raised where the result is waited for
        return error
