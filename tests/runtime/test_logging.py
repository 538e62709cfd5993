"""Log lines: one event, one line, in both formats."""

import io
import json
import subprocess
import sys

import pytest
from twisted.logger import Logger, LogPublisher

from runtime.logging import LineObserver


def lines(as_json: bool, namespace: str = "vmi_agent.test") -> tuple[Logger, io.StringIO]:
    """Return a logger whose events are written to the buffer beside it."""
    out = io.StringIO()
    return Logger(namespace, observer=LogPublisher(LineObserver(out, as_json))), out


def test_json_line_has_event_and_fields() -> None:
    """A JSON line is one object with time, level, source, event and the event's own fields."""
    log, out = lines(as_json=True)
    log.info("signed", code="OK", took_ms=1.5)

    [line] = out.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    assert event == {"level": "info", "source": "vmi_agent.test", "event": "signed", "code": "OK", "took_ms": 1.5}


def test_text_line_has_event_and_fields() -> None:
    """A text line reads in the same order."""
    log, out = lines(as_json=False)
    log.warn("agent lost", agent="tcp:127.0.0.1:7700")

    assert out.getvalue().endswith("Z warn vmi_agent.test agent lost agent=tcp:127.0.0.1:7700\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_value_cannot_forge_a_line(as_json: bool) -> None:
    """A value with line breaks or terminal controls stays inside its line."""
    log, out = lines(as_json)
    log.info("signed", user="a\n2026 info forged\r\x1b[2J\x00\x9b\u202e\u2028\u200b")

    [line] = out.getvalue().splitlines()
    assert line.isprintable()


@pytest.mark.parametrize("as_json", [False, True])
def test_failure_is_written_with_its_traceback(as_json: bool) -> None:
    """A failure's traceback is in the log, and nowhere else."""
    log, out = lines(as_json)
    try:
        raise ValueError("broken\x1b[2J")
    except ValueError:
        log.failure("request failed")

    assert "Traceback" in out.getvalue()
    assert "ValueError: broken" in out.getvalue()
    assert all(line.isprintable() for line in out.getvalue().splitlines())


def test_libraries_are_heard_from_warn_up() -> None:
    """What libraries say at level info is left out, what they warn of is not; debug is left out for all."""
    log, out = lines(as_json=True, namespace="twisted.something")
    ours, ours_out = lines(as_json=True)
    log.info("starting")
    log.warn("odd")
    ours.debug("detail")

    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["odd"]
    assert ours_out.getvalue() == ""


def test_library_that_warns_is_logged_as_an_event() -> None:
    """What Python would print as two lines of its own is one event, whichever the format."""
    source = [
        "import warnings",
        "from runtime.logging import start_logging",
        "start_logging('json')",
        "warnings.warn('an odd length', UserWarning)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(source)], capture_output=True, text=True, check=True)

    [line] = done.stderr.splitlines()
    event = json.loads(line)
    assert (event["event"], event["reason"], event["category"]) == ("a library warns", "an odd length", "UserWarning")
