"""Wrong passwords from 140 addresses at once, against the real processes: the administrator gets in all the same."""

import asyncio
import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from support.processes import PASSWORDS, SecurePair, port_of, running_secure_pair
from support.run_log import secret

SOURCES = [f"127.0.{1 + number % 2}.{1 + number // 2}" for number in range(140)]
CONNECTIONS_EACH = 3
LOGINS = 6
# Checks of others that may end between a login's request and its answer. One or two are due; the rest is what was
# answered before and not read yet. A queue in the order of arrival would have hundreds.
OTHERS = 40
ACCOUNTS = "/redfish/v1/AccountService/Accounts"


class Flood:
    """Wrong passwords for ever new names, until the end of the `async with`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: Counter[int] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_full = asyncio.Event()

    async def _send(self, source: str) -> None:
        while True:
            status = 0
            with suppress(OSError):  # its connection was refused, or ended for another one
                status = await ask(self.port, source, f"n{os.urandom(4).hex()}", "wrong-password")
            self.answers[status] += 1
            if self.answers[429] > len(SOURCES):
                self._is_full.set()
            if status != 401:
                await asyncio.sleep(0.2)  # so that 420 clients in one thread leave time for the others

    async def __aenter__(self) -> "Flood":
        self._tasks = [asyncio.create_task(self._send(source)) for source in SOURCES * CONNECTIONS_EACH]
        await self._is_full.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def request(port: int, source: str, head: str, body: str = "") -> tuple[int, str]:
    """Send one request from an address; return the answer's status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        lines = [head, "Host: bmc", "Connection: close", f"Content-Length: {len(body)}", "", body]
        writer.write("\r\n".join(lines).encode())
        answer = (await reader.read()).decode()
    finally:
        writer.close()
    if not answer:
        raise ConnectionResetError
    return int(answer[9:12]), answer.partition("\r\n\r\n")[2]


async def ask(port: int, source: str, user: str, password: str) -> int:
    """Ask for something with Basic credentials; return the status."""
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    return (await request(port, source, f"GET {ACCOUNTS} HTTP/1.1\r\nAuthorization: Basic {basic}"))[0]


async def log_in_beside_flood(pair: SecurePair, sources: Iterator[str]) -> tuple[list[int], list[int]]:
    """Log in from these addresses; return the statuses, and how many checks of the flood ended meanwhile."""
    port = port_of(pair.plain_url)
    statuses, others = [], []
    async with Flood(port) as flood:
        for source, _ in zip(sources, range(LOGINS), strict=False):
            before = flood.answers[401]
            statuses.append(await ask(port, source, "root", PASSWORDS["root"]))
            others.append(flood.answers[401] - before)
    return statuses, others


@pytest.fixture(params=[(), ("--workers", "2")], ids=["one process", "two workers"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SecurePair]:
    """Yield a pair whose proxy takes passwords on a plain listener."""
    with running_secure_pair(tmp_path, *request.param) as running:
        yield running


def test_administrator_logs_in_beside_a_flood(pair: SecurePair) -> None:
    """From one address again and again, and from addresses and networks that were never seen: next after one check."""
    for sources in (iter(["127.0.0.4"] * LOGINS), (f"127.7.{number}.4" for number in count())):
        statuses, others = asyncio.run(log_in_beside_flood(pair, sources))
        assert statuses == [200] * LOGINS
        assert max(others) <= OTHERS


def test_accounts_are_changed_beside_a_flood(pair: SecurePair) -> None:
    """A new account, its new password and its removal are as quick, for an administrator with a session."""
    port = port_of(pair.plain_url)
    token = pair.token("root")[1]
    account = f"{ACCOUNTS}/late"
    changes = [
        (f"POST {ACCOUNTS}", {"UserName": "late", "Password": secret("a-password-of-late"), "RoleId": "ReadOnly"}),
        (f"PATCH {account}", {"Password": secret("another-of-late")}),
        (f"DELETE {account}", {}),
    ]

    async def change() -> tuple[list[int], int]:
        async with Flood(port) as flood:
            before = flood.answers[401]
            statuses = []
            for head, body in changes:
                lines = f"{head} HTTP/1.1\r\n{token}\r\nContent-Type: application/json"
                statuses.append((await request(port, "127.0.0.4", lines, json.dumps(body)))[0])
            return statuses, flood.answers[401] - before

    statuses, others = asyncio.run(change())
    assert statuses == [201, 200, 200]
    assert others <= len(changes) * OTHERS
