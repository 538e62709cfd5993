"""What every test gets: a watch over the log and over forgotten Deferreds."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.documents import Running, run_local
from support.run_log import LINES, secrets_in
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer


@implementer(ILogObserver)
class LogWatch:
    """What was logged during one test."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        self._expected: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)

    def expect_error(self, text: str) -> None:
        """Let errors pass whose event text holds this."""
        self._expected.append(text)

    def texts(self) -> list[str]:
        """Return all event texts so far."""
        return [formatEvent(event) for event in self.events]

    def lines(self) -> list[str]:
        """Return all events so far, with their fields."""
        fields = ({name: event[name] for name in event if not name.startswith("log_")} for event in self.events)
        return [f"{text} {told}" for text, told in zip(self.texts(), fields, strict=True)]

    def unexpected_errors(self) -> list[str]:
        """Return what a test must answer for: errors and failures that it did not announce."""
        found = []
        for event in self.events:
            text = formatEvent(event)
            is_error = event.get("log_level", LogLevel.info) >= LogLevel.error or "log_failure" in event
            if is_error and not any(expected in text for expected in self._expected):
                failure = event.get("log_failure")
                found.append(text + ("\n" + failure.getTraceback() if failure is not None else ""))
        return found


@pytest.fixture(autouse=True)
def log_watch() -> Iterator[LogWatch]:
    """Fail a test during which an error was logged or a failed Deferred was dropped."""
    watch = LogWatch()
    globalLogPublisher.addObserver(watch)
    try:
        yield watch
        # A Deferred that failed and was forgotten logs its failure when it is collected.
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(watch)
        LINES.extend(watch.lines())
    errors = watch.unexpected_errors()
    if errors:
        pytest.fail("logged during the test:\n" + "\n".join(errors), pytrace=False)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """Run both processes as `make run` does, until the end of the test."""
    with run_local(tmp_path) as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def logs_hold_no_secret() -> Iterator[None]:
    """Fail the run if a secret was logged: each of several test processes looks at its own lines."""
    yield
    found = secrets_in("".join(LINES))
    if found:
        pytest.fail(f"logged during the run: {sorted(set(found))}", pytrace=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests to the end that look at what all others left behind."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_collection_finish() -> None:
    """Leave all that is there by now out of the collections between tests, which then take no time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn a skip into a failure on CI: what is skipped there is tested nowhere."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped:  # type: ignore[attr-defined]  # what pytest sends in
        report.outcome = "failed"  # type: ignore[attr-defined]
        report.longrepr = f"skipped on CI: {report.longrepr}"  # type: ignore[attr-defined]
    return report
