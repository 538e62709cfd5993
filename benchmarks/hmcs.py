"""HMCs as a load: many connections from several addresses, each request with a CSR that was never sent before.

Used by the other files of this directory. One process, one thread, so that it takes little from what it measures.
"""

import asyncio
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SIGN_CSR = "/xyz/openbmc_project/HMC/VMInterface/SignCSR"
# How long an answer is waited for: past every deadline that a proxy has.
PATIENCE_S = 60.0
NO_ANSWER = 0

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request.

    Attributes:
        status: of HTTP; 0 where the connection ended without an answer.
        took_s: from its first octet to the answer's last.
        retry_after: as it stands in the header, if it does.
    """

    status: int
    took_s: float
    retry_after: str | None
    body: bytes = field(repr=False)

    @property
    def code(self) -> str:
        """The error's code, or "ok"."""
        if self.status == NO_ANSWER:
            return "no answer"
        answer = json.loads(self.body)
        return "ok" if answer.get("status") == "ok" else str(answer["data"]["code"])


def bodies(count: int) -> list[bytes]:
    """Return request bodies with CSRs that nobody asked before."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = []
    for _ in range(count):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hmc{next(_numbers)}-{time.time_ns()}")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        made.append(json.dumps({"data": [pem]}).encode())
    return made


class Hmc:
    """One address, with as many connections as its requests need at once.

    Args:
        port: of a plain listener on loopback.
        address: from which it connects; any of 127.0.0.0/8.
    """

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self._port = port
        self._address = address
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.answers: list[Answer] = []

    async def ask(self, body: bytes) -> Answer:
        """Send one request over an idle connection or a new one; remember and return what became of it."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                status, headers, content = await self._exchange(body)
            answer = Answer(status, time.monotonic() - began, headers.get("retry-after"), content)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            answer = Answer(NO_ANSWER, time.monotonic() - began, None, b"")
        self.answers.append(answer)
        return answer

    async def _exchange(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))
        is_kept = False
        try:
            head = f"POST {SIGN_CSR} HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            content = await reader.readexactly(int(headers["content-length"]))
            is_kept = headers.get("connection") != "close"
        finally:
            if is_kept:
                self._idle.append((reader, writer))
            else:
                writer.close()
        return int(lines[0].split()[1]), headers, content

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


async def closed_loop(hmcs: Sequence[Hmc], streams: int, source: Iterator[bytes], seconds: float) -> float:
    """Let so many streams ask one request after the other; return how many were signed in a second."""
    until = time.monotonic() + seconds
    began, signed = time.monotonic(), 0

    async def stream(hmc: Hmc) -> None:
        nonlocal signed
        while time.monotonic() < until:
            answer = await hmc.ask(next(source))
            signed += answer.status == 200

    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(stream(hmcs[number % len(hmcs)]))
    return signed / (time.monotonic() - began)


async def open_loop(hmcs: Sequence[Hmc], per_s: float, source: Iterator[bytes], seconds: float) -> None:
    """Send so many requests a second, evenly, whatever becomes of them, and wait for the last answer."""
    began, sent = time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        while (now := time.monotonic() - began) < seconds:
            while sent < now * per_s:
                group.create_task(hmcs[sent % len(hmcs)].ask(next(source)))
                sent += 1
            await asyncio.sleep(min(0.005, 1 / per_s))


def endless(made: Sequence[bytes]) -> Iterator[bytes]:
    """Yield bodies that were made beforehand, then make more as they are wanted."""
    waiting = deque(made)
    while True:
        yield waiting.popleft() if waiting else bodies(1)[0]


def share(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of the values is; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def told(answers: Sequence[Answer]) -> str:
    """Return how many answers there were of each kind."""
    return ", ".join(f"{count} {code}" for code, count in Counter(each.code for each in answers).most_common())
