"""Clients of a proxy with several workers, each of which knows whom it talks to."""

import json
import os
import select
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from support.processes import (
    PASSWORDS,
    START_S,
    Process,
    SecurePair,
    port_of,
)
from support.run_log import secret

SESSIONS = "/redfish/v1/SessionService/Sessions"
ACCOUNT = "/redfish/v1/AccountService/Accounts"
WORKERS = 3
# What one address may ask is not what is tested here.
PLENTY = ("--requests-per-s", "1000000")
# So many connections are tried until each worker was met.
TRIES = 400


class Client:
    """One connection to one worker, kept alive."""

    def __init__(self, pair: SecurePair) -> None:
        context = ssl.create_default_context(cafile=str(pair.proxy_state / "https.pem"))
        stream = socket.create_connection(("127.0.0.1", port_of(pair.url)), timeout=START_S)
        self._stream = context.wrap_socket(stream, server_hostname="127.0.0.1")

    def ask(self, method: str, path: str, token: str | None = None, body: object = None) -> tuple[int, dict[str, str]]:
        """Send a request; return status and headers of its answer."""
        octets = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: bmc", f"Content-Length: {len(octets)}"]
        lines += ["Content-Type: application/json"] * (body is not None)
        lines += [f"X-Auth-Token: {token}"] * (token is not None)
        self._stream.sendall("\r\n".join([*lines, "", ""]).encode() + octets)
        return self.answer()

    def begin(self, path: str, length: int) -> None:
        """Send the head of a POST, and return once the worker asks for its body of so many octets."""
        lines = [f"POST {path} HTTP/1.1", "Host: bmc", f"Content-Length: {length}", "Content-Type: application/json"]
        self._stream.sendall("\r\n".join([*lines, "Expect: 100-continue", "", ""]).encode())
        assert self.answer()[0] == 100

    def send(self, body: bytes) -> None:
        """Send the body of a POST that was begun, and return once the worker has read it."""
        self._stream.sendall(body)
        port = f":{self._stream.getsockname()[1]:04X}"
        give_up_at = time.monotonic() + START_S
        while True:
            # Of each end: local and remote address, state, octets to send and to be read. Tickets may wait here.
            rows = [line.split()[1:5] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            unsent = {queues[:8] for local, _, _, queues in rows if local.endswith(port)}
            unread = {queues[9:] for _, remote, _, queues in rows if remote.endswith(port)}
            if unsent == unread == {"00000000"}:
                return
            assert time.monotonic() < give_up_at, "the worker does not read"
            os.sched_yield()

    def answer(self) -> tuple[int, dict[str, str]]:
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._more()
        head, _, rest = answer.partition(b"\r\n\r\n")
        first, *others = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in others)}
        while len(rest) < int(headers.get("content-length", 0)):
            rest += self._more()
        return int(first.split()[1]), headers

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def _more(self) -> bytes:
        data = self._stream.recv(65_536)
        if not data:
            raise ConnectionError("closed")
        return data


def lines_of(proxy: Process) -> list[dict[str, Any]]:
    """Return what the proxy logged so far; each line must be whole."""
    return [json.loads(line) for line in list(proxy.lines)]


def worker_of(proxy: Process, request_id: str) -> int:
    """Return which worker answered a request."""
    while True:
        for line in lines_of(proxy):
            if line.get("request_id") == request_id:
                return int(line["worker"])
        proxy.wait_for("request")


@contextmanager
def clients(pair: SecurePair, workers: int = WORKERS) -> Iterator[dict[int, Client]]:
    """Yield one connection to each worker, by its number."""
    found: dict[int, Client] = {}
    # Of requests of strangers not all are logged.
    token = pair.token()[1].removeprefix("X-Auth-Token: ")
    with ExitStack() as stack:
        for _ in range(TRIES):
            client = Client(pair)
            stack.callback(client.close)
            _, headers = client.ask("GET", "/redfish/v1/", token)
            if found.setdefault(worker_of(pair.proxy, headers["x-request-id"]), client) is not client:
                client.close()  # a worker lets an address have so many connections and no more
            if len(found) == workers:
                break
        assert sorted(found) == list(range(1, workers + 1))
        yield found


def log_in(client: Client, user: str = "root") -> tuple[str, str]:
    """Open a session; return its token and its path."""
    status, headers = client.ask("POST", SESSIONS, body={"UserName": user, "Password": PASSWORDS[user]})
    assert status == 201
    return secret(headers["x-auth-token"]), headers["location"]


def statuses(found: dict[int, Client], token: str, path: str = SESSIONS) -> set[int]:
    """Ask all workers with a token; return the statuses."""
    return {client.ask("GET", path, token)[0] for client in found.values()}


def children_of(pid: int) -> set[int]:
    """Return the processes that a process started."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def wait_for_ends(pids: Iterable[int]) -> None:
    """Wait until none of these processes is there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                assert select.select([descriptor], [], [], START_S)[0], "it lives on"
            finally:
                os.close(descriptor)
