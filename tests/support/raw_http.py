"""HTTP as octets on a blocking socket, and what the process on the other side takes meanwhile."""

import json
import os
import re
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from support.processes import Process, SecurePair, port_of

PATIENCE_S = 30.0


def connect(pair: SecurePair, listener: str, source: str = "127.0.0.1") -> socket.socket:
    """Connect to one of the proxy's listeners, "http" or "https"."""
    port = port_of(pair.url if listener == "https" else pair.plain_url)
    stream = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S, source_address=(source, 0))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls_on(stream, pair) if listener == "https" else stream


def tls_on(stream: socket.socket, pair: SecurePair) -> ssl.SSLSocket:
    """Begin TLS as the client."""
    context = ssl.create_default_context(cafile=str(pair.proxy_state / "https.pem"))
    context.check_hostname = False
    return context.wrap_socket(stream)


def said(stream: socket.socket, parts: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """Send parts, read until the other side closes; return status and body of each final answer."""
    # Whoever is refused is not read any more.
    with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        for part in parts:
            stream.sendall(part)
    return answers_in(read_to_end(stream))


def read_to_end(stream: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    received = bytearray()
    with suppress(ConnectionResetError, ssl.SSLEOFError):
        while data := stream.recv(65_536):
            received += data
    return bytes(received)


def answers_in(octets: bytes) -> list[tuple[int, bytes]]:
    """Take a stream of answers apart, by their Content-Length."""
    found = []
    while octets:
        head, end, rest = octets.partition(b"\r\n\r\n")
        assert end, head
        status = int(head.split()[1])
        if status == 100:
            octets = rest
            continue
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        assert length is not None, head
        found.append((status, rest[: int(length[1])]))
        octets = rest[int(length[1]) :]
    return found


def status_kib(process: Process, field: str) -> int:
    """Return a field of /proc/PID/status in KiB: VmRSS is what the process has in memory, VmHWM the most it had."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def descriptors(process: Process) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def cpu_s(process: Process) -> float:
    """Return how many seconds of a processor a process used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def assert_log_is_clean(process: Process) -> None:
    """No event is an error or has a traceback, and every line is an event."""
    for line in process.lines:
        event = json.loads(line)
        assert event["level"] in ("info", "warn"), line
        assert "traceback" not in event, line
