"""Anchors: where the audit's chain ends, written down elsewhere, so that a whole new chain does not go unseen.

An anchor is one line of JSON: `{"at":"2026-11-23T12:00:00Z","last_id":17,"hash":"…"}`.
"""

import json
import os
import socket
from datetime import datetime
from pathlib import Path

from vmi_agent.ledger.audit.chain import START, Head

SYSLOG_TIMEOUT_S = 1.0
_AUTHPRIV_INFO = 10 * 8 + 6  # facility and severity (RFC 3164, 4.1.1)


class AnchorRefused(Exception):
    """A file does not hold anchors."""


def line_of(head: Head, now: datetime) -> str:
    """Return the anchor of a head."""
    at = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    return json.dumps({"at": at, "last_id": head.last_id, "hash": head.hash.hex()}, separators=(",", ":"))


def append_to_file(path: Path, line: str) -> None:
    """Add an anchor to a file, durably. The file is made where it is missing, for this user alone.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"--anchor-file {path}: {error.strerror}") from error


def send_to_syslog(address: str, line: str) -> None:
    """Send an anchor to a syslog daemon.

    Args:
        address: the path of a unix socket such as /dev/log, or HOST:PORT for UDP.

    Raises:
        OSError: it cannot be sent.
    """
    host, _, port = address.rpartition(":")
    line = f"<{_AUTHPRIV_INFO}>vmi-agent: audit anchor {line}"
    try:
        if address.startswith("/"):
            target: str | tuple[str, int] = address
            family = socket.AF_UNIX
        else:
            family, _, _, _, target = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]  # type: ignore[assignment]  # of the same family
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SYSLOG_TIMEOUT_S)  # a daemon that does not read stops nothing else
            sender.connect(target)
            sender.send(line.encode())
    except OSError as error:
        raise OSError(f"--anchor-syslog {address}: {error.strerror or error}") from error


def is_syslog_address(address: str) -> bool:
    """Return whether `send_to_syslog` can have this address."""
    host, _, port = address.rpartition(":")
    return address.startswith("/") or (bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536)


def read_file(path: Path) -> dict[int, bytes]:
    """Return the hash of each row that a file anchors, by the row's number.

    Raises:
        AnchorRefused: a line is no anchor, two contradict each other, or there is none.
        OSError: the file cannot be read.
    """
    anchors: dict[int, bytes] = {}
    lines = path.read_bytes().splitlines()
    if not lines:
        raise AnchorRefused(f"{path} holds no anchor")
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            last_id, digest = values["last_id"], bytes.fromhex(values["hash"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise AnchorRefused(f"{path}, line {number}, is no anchor") from error
        if type(last_id) is not int or last_id < 0 or len(digest) != len(START.hash):
            raise AnchorRefused(f"{path}, line {number}, is no anchor")
        if anchors.setdefault(last_id, digest) != digest:
            raise AnchorRefused(f"{path}, line {number}, contradicts a line before it: the chain was made anew")
    anchors.pop(0, None)  # before the first row
    return anchors
