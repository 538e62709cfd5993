"""Fuzz target: any octets to the proxy's HTTP edge, as one connection sends them.

The first octet of the input chooses whether the listener is anonymous, whether the client shows a session, how the rest
is split, and whether it is said over and over. Whatever comes: nothing is logged as an error, only answers of ours come
out, no more of them than requests went in, none after the one that closes, the same ones however the octets are split,
what is held stays within its bounds, and in the end the connection is gone and has left nothing behind.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import atheris

sys.path.append(str(Path(__file__).parent.parent / "tests"))

with atheris.instrument_imports(include=["bmc_proxy.api"]):
    from support.edges import Spoken, TestEdge, edge_in
    from twisted.internet.error import ConnectionDone
    from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
    from twisted.python.failure import Failure
    from zope.interface import provider

    from bmc_proxy.api.types import CSR_BODY_LIMIT
    from bmc_proxy.http1.request_target import path_of
    from bmc_proxy.server.connection import BODY_TIMEOUT_S, HEADER_TIMEOUT_S, IDLE_TIMEOUT_S, LAST_WORD_S
    from bmc_proxy.server.request import HEADER_LIMIT

STATUSES = {200, 304, 400, 401, 403, 404, 405, 408, 413, 414, 415, 429, 431, 501, 503}
ENDS = {400, 408, 413, 414, 431, 501}
READ_AT_ONCE = 65_536
STEPS = 250
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SESSION = b"X-Auth-Token: "
# Until a connection on which nothing happens is gone for certain, in steps.
STEP_S = 6.0
SILENCE_S = max(HEADER_TIMEOUT_S, BODY_TIMEOUT_S, IDLE_TIMEOUT_S) + LAST_WORD_S


@provider(ILogObserver)
def refuse_errors(event: LogEvent) -> None:
    """Fail on what nobody may cause."""
    if event.get("log_level", LogLevel.info) >= LogLevel.error or "log_failure" in event:
        raise AssertionError(event)


def answers_in(octets: bytes, *, has_head: bool) -> list[int]:
    """Return the statuses of the answers in what was sent; each is whole and in one of our shapes."""
    statuses: list[int] = []
    is_closed = False
    while octets:
        if octets.startswith(CONTINUE):
            octets = octets.removeprefix(CONTINUE)
            continue
        assert not is_closed, "something follows the answer that closes"
        head, end, rest = octets.partition(b"\r\n\r\n")
        assert end, "an answer's header is cut"
        line, *lines = head.split(b"\r\n")
        found = re.fullmatch(rb"HTTP/1\.[01] (\d{3}) [ -~]+", line)
        assert found, "no status line"
        status = int(found[1])
        headers = {name.lower(): value for name, _, value in (each.partition(b": ") for each in lines)}
        assert len(headers) + (b"set-cookie" in headers) >= len(lines), "a header stands twice"
        length = int(headers.get(b"content-length", 0))
        is_to_head = has_head and (not rest or rest.startswith(b"HTTP/1."))
        body, octets = (b"", rest) if is_to_head else (rest[:length], rest[length:])
        assert is_to_head or len(body) == length, "an answer's body is cut"
        if body and status >= 400:
            assert b"request" in body.lower(), "a problem has no request id"
            json.loads(body)
        is_closed = headers.get(b"connection") == b"close"
        statuses.append(status)
    return statuses


def check_target(line: bytes) -> None:
    """Where a target in absolute form is taken, its path is the one that Python's own reader finds."""
    method, _, target = line.partition(b" ")
    target = target.removesuffix(b" HTTP/1.1")
    path = path_of(method, target)
    if path is None or target.startswith(b"/") or target == b"*":
        return
    try:
        found = urlsplit(target)
    except ValueError:
        return  # an IPv6 address that is none
    assert found.netloc, "a target without a host is taken"
    assert path == (found.path or b"/"), "a target is read in two ways"


class Target:
    """The edge that all inputs speak to, each on a connection of its own.

    Args:
        directory: for its state.
    """

    def __init__(self, directory: Path) -> None:
        self._edge = edge_in(directory, requests_per_s=1_000_000)
        globalLogPublisher.addObserver(refuse_errors)

    def one_input(self, data: bytes) -> None:
        """Run one input."""
        if not data:
            return
        choice, octets = data[0], data[1:]
        check_target(octets.partition(b"\r\n")[0])
        self._edge.site.is_anonymous = bool(choice & 1)
        if choice & 2:
            octets = octets.replace(b"{token}", token_at(self._edge))
        octets *= (1, 1, 3, 40)[choice >> 2 & 3]
        step = max((1, 7, 1000, READ_AT_ONCE)[choice >> 4 & 3], len(octets) // STEPS)
        whole = self._statuses(octets, READ_AT_ONCE, to_the_end=bool(choice & 64))
        if step < len(octets) <= HEADER_LIMIT:
            assert whole == self._statuses(octets, step, to_the_end=bool(choice & 64)), "the split is seen"

    def _statuses(self, octets: bytes, step: int, *, to_the_end: bool) -> list[int]:
        edge = self._edge
        spoken = edge.connect()
        for at in range(0, len(octets), step):
            spoken.say(octets[at : at + step])
            assert held_by(spoken) <= HEADER_LIMIT * 2 + CSR_BODY_LIMIT + READ_AT_ONCE
        if to_the_end:
            edge.clock.pump([STEP_S] * (round(SILENCE_S / STEP_S) + 2))
            assert not spoken.wire.connected, "a silent connection lives on"
        sent = spoken.wire.value()
        spoken.channel.connectionLost(Failure(ConnectionDone()))
        statuses = answers_in(sent, has_head=b"HEAD" in octets)
        assert STATUSES.issuperset(statuses), "an answer that is none of ours"
        refused = bool(statuses) and statuses[-1] in ENDS
        assert len(statuses) <= octets.count(b"\r\n\r\n") + refused + to_the_end, "more answers than requests"
        assert not edge.site.channels, "a connection is remembered that is gone"
        return statuses


def token_at(edge: TestEdge) -> bytes:
    """Log the one account in; return its token."""
    _, token = edge.sessions.open("root", edge.accounts.all()["root"].password_id, "192.0.2.1")
    return token.encode()


def held_by(spoken: Spoken) -> int:
    """Return how many octets a connection keeps of what came in."""
    channel: Any = spoken.channel
    bodies = [channel._request.body.octets] if channel._request is not None else []
    return sum(len(each) for each in (channel._buffer, *bodies))


def main() -> int:
    """Run the target in a child, as libFuzzer ends its process without a chance to clean up; return its status."""
    with tempfile.TemporaryDirectory() as directory:
        child = os.fork()
        if child == 0:
            atheris.Setup(sys.argv, Target(Path(directory)).one_input)
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
