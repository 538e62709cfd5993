"""Known sources: from where somebody logged in to an account before, over restarts of the proxy.

They get their turn, and a try, whatever strangers do (see `lockout` and `work_queue`), and no other privilege.
`STATE/known-sources.json` holds names and addresses and no secret. It is written some time after a new source logged
in, not with each login.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from runtime.files import FileRefused, read_secret, remove_leftovers, replace_file
from runtime.limits.networks import is_source

FILE_NAME = "known-sources.json"
SOURCES_PER_ACCOUNT = 32
FILE_LIMIT = 256 * 1024
FIRST_WRITE_S = 1.0
WRITE_EVERY_S = 60.0
_VERSION = 1


class KnownSources:
    """The latest sources of each account's logins, up to `SOURCES_PER_ACCOUNT` of each.

    Attributes:
        on_change: called where a source was added or forgotten.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._sources: dict[str, OrderedDict[str, None]] = {}  # the latest last

    def has(self, name: str, source: str) -> bool:
        """Return whether somebody logged in to the account from there."""
        return source in self._sources.get(name, ())

    def add(self, name: str, source: str) -> None:
        """Note a login; the account exists, so that there are as many names as accounts."""
        sources = self._sources.setdefault(name, OrderedDict())
        is_new = source not in sources
        sources[source] = None
        sources.move_to_end(source)
        if len(sources) > SOURCES_PER_ACCOUNT:
            sources.popitem(last=False)
        if is_new:
            self.on_change()

    def keep(self, names: Collection[str]) -> None:
        """Forget the sources of every other account: it was removed."""
        gone = self._sources.keys() - set(names)
        for name in gone:
            del self._sources[name]
        if gone:
            self.on_change()

    def forget(self, name: str) -> None:
        """Forget the sources of one account."""
        self.keep(self._sources.keys() - {name})

    def to_json(self) -> bytes:
        """Return what `read` takes."""
        sources = {name: list(each) for name, each in self._sources.items()}
        return (json.dumps({"version": _VERSION, "sources": sources}, indent=2) + "\n").encode()

    def read(self, content: bytes) -> None:
        """Take what `to_json` returned. Raises ValueError, and takes nothing, for anything else."""
        if len(content) > FILE_LIMIT:
            raise ValueError(f"it is over {FILE_LIMIT} octets long")
        try:
            stored = json.loads(content)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        if not isinstance(stored, dict) or stored.get("version") != _VERSION:
            raise ValueError(f"it is not of version {_VERSION}")
        named = stored.get("sources")
        if not isinstance(named, dict) or not all(map(_are_sources, named.values())):
            raise ValueError("it holds something else than lists of sources")
        self._sources = {name: OrderedDict.fromkeys(sources) for name, sources in named.items()}


class KnownSourcesFile:
    """Keeps them on disk.

    Args:
        clock: the reactor, or a `Clock`.
        state_dir: where the file is, or will be.
        in_thread: runs a blocking callable off the reactor's thread.
        report: called, once until it works again, with why the file cannot be read or written. One that cannot be read
            counts as missing, and is replaced with the next change.
    """

    def __init__(
        self,
        clock: IReactorTime,
        state_dir: Path,
        in_thread: Callable[..., Deferred[Any]],
        report: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._path = state_dir / FILE_NAME
        self._in_thread = in_thread
        self._report = report
        self._has_reported = False
        self._timer: IDelayedCall | None = None
        self._write_from = 0.0
        self._is_closed = False
        self.sources = KnownSources()

    def load(self, names: Collection[str]) -> None:
        """Read the file, as far as it is about accounts of these names, and write changes from now on. Never raises."""
        remove_leftovers(self._path)
        self.sources.on_change = self._changed
        content = _content_of(self._path, self._report)
        if content is None:
            return
        try:
            self.sources.read(content)
        except ValueError as error:
            self._report(f"{self._path}: {error}. It is replaced with the next login from a new address.")
        self.sources.keep(names)

    def close(self) -> None:
        """Write what is not written yet, at once."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            try:
                replace_file(self._path, self.sources.to_json())
            except OSError as error:
                self._report(f"{self._path}: {error.strerror}")

    def _changed(self) -> None:
        if self._timer is None and not self._is_closed:
            wait_s = max(FIRST_WRITE_S, self._write_from - self._clock.seconds())
            self._timer = self._clock.callLater(wait_s, self._write)

    def _write(self) -> None:
        self._timer = None
        self._write_from = self._clock.seconds() + WRITE_EVERY_S
        writing = self._in_thread(replace_file, self._path, self.sources.to_json())
        writing.addCallbacks(self._written, self._not_written)

    def _written(self, _result: None) -> None:
        self._has_reported = False

    def _not_written(self, failure: Failure) -> None:
        failure.trap(OSError)
        if not self._has_reported:
            self._report(f"{self._path}: {getattr(failure.value, 'strerror', None)}")
        self._has_reported = True
        self._changed()  # once more, when it may be


def forget_on_disk(state_dir: Path, name: str) -> None:
    """Forget the sources of an account that was removed while no proxy runs; a running one forgets them by itself.

    What cannot be read or written stays as it is: the proxy's next start says why.
    """
    path, sources = state_dir / FILE_NAME, KnownSources()
    content = _content_of(path, lambda _reason: None)
    if content is None:
        return
    before = content
    try:
        sources.read(content)
        sources.forget(name)
        if sources.to_json() != before:
            replace_file(path, sources.to_json())
    except (OSError, ValueError):
        return


def _content_of(path: Path, report: Callable[[str], None]) -> bytes | None:
    try:
        return read_secret(path)
    except FileNotFoundError:
        return None
    except FileRefused as error:
        report(str(error))
    except OSError as error:
        report(f"{path}: {error.strerror}")
    return None


def _are_sources(sources: object) -> bool:
    return (
        isinstance(sources, list)
        and len(sources) <= SOURCES_PER_ACCOUNT
        and all(isinstance(each, str) and (each == "unix" or is_source(each)) for each in sources)
    )
