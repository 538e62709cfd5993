"""Logs: one line to stderr per event, as readable text or as JSON.

Our code logs an event word and fields, `log.info("signed", serial=…)`, never a sentence with values in it. What a field
may hold is the caller's promise: no key, password, token, cookie or body.
"""

import json
import sys
import warnings
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent, globalLogBeginner
from zope.interface import implementer

from runtime.printable import printable

_log = Logger()

_to_json = json.JSONEncoder(default=str).encode

_OUR_PACKAGES = frozenset({"bmc_proxy", "protocol", "runtime", "vmi_agent"})

# What Twisted's legacy logging adds to an event beside the fields that somebody meant.
_LEGACY_FIELDS = frozenset({"format", "isError", "message", "time", "system", "why", "failure"})


@implementer(ILogObserver)
class LineObserver:
    """Write each event of level info and above as one line; what libraries say only from level warn.

    Args:
        out: where to.
        as_json: one JSON object a line (`time`, `level`, `source`, `event`, then the event's fields), else text.
    """

    def __init__(self, out: TextIO, as_json: bool) -> None:
        self._out = out
        self._as_json = as_json

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level", LogLevel.info)
        source = event.get("log_namespace", "-")
        if level is LogLevel.debug or (level is LogLevel.info and source.partition(".")[0] not in _OUR_PACKAGES):
            return
        line: dict[str, object] = {"time": _time(event["log_time"]), "level": level.name, "source": source}
        line["event"] = _words(event)
        for name in event:
            if name[:4] != "log_" and name not in _LEGACY_FIELDS:
                line[name] = event[name]
        if "log_failure" in event:
            line["traceback"] = event["log_failure"].getTraceback()
        self.write(line)

    def write(self, line: dict[str, object]) -> None:
        """Write a line."""
        self._out.write(self.to_text(line) + "\n")
        self._out.flush()

    def to_text(self, line: dict[str, object]) -> str:
        """Return a line, without its end."""
        return _to_json(line) if self._as_json else _as_text(line)


def _time(seconds: float) -> str:
    """Return a time in UTC as RFC 3339 has it, to the millisecond."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03}Z"


@lru_cache(1)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _words(event: LogEvent) -> str:
    """Return what an event says; ours are plain words, which Twisted would parse for fields each time."""
    words = event.get("log_format")
    return words if isinstance(words, str) and "{" not in words and "}" not in words else formatEvent(event)


def start_logging(log_format: str) -> None:
    """Send all events of this process to stderr in one of `settings.LOG_FORMATS`."""
    globalLogBeginner.beginLoggingTo([LineObserver(sys.stderr, log_format == "json")], redirectStandardIO=False)
    warnings.showwarning = log_warning


def log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log what a library warns of, such as an odd length in somebody's CSR, as an event like all others."""
    _log.warn("a library warns", reason=str(message), category=category.__name__, at=f"{filename}:{lineno}")


def _as_text(line: dict[str, object]) -> str:
    fields = dict(line)
    words = [str(fields.pop(name)) for name in ("time", "level", "source", "event")]
    traceback = str(fields.pop("traceback", "")).rstrip()
    words += [f"{name}={value}" for name, value in fields.items()]
    # One event is one line in text as well: a value cannot forge a second event, nor reach into a terminal.
    return "\n    ".join(map(printable, [" ".join(words), *traceback.split("\n")] if traceback else [" ".join(words)]))
