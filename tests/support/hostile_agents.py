"""Agents that do not keep to the rules, on real sockets, for tests of the proxy."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.connection import Connection
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.events import RequestReceived
from protocol.records import (
    MAX_PART,
    Answer,
    Chain,
    Error,
    GetChain,
    GetOcsp,
    GetPublished,
    Hello,
    OcspAnswer,
    Published,
    SignCsr,
)
from support import chains
from support.needs import need
from support.octets import AGENT_HELLO
from support.processes import Process, port_of, start_proxy

ROOT = chains.ROOT.der()

# What an agent answers to a SIGN_CSR; None for nothing at all.
Behaviour = Callable[[SignCsr], Answer | None]


class HostileAgent:
    """Accepts connections one after the other, gives a root, publishes a CRL, answers SIGN_CSR as told."""

    def __init__(self, behaviour: Behaviour, hello: Hello = AGENT_HELLO) -> None:
        self._behaviour = behaviour
        self._hello = hello
        self.chain = Chain(1, (ROOT,))
        self.crl: bytes | None = None
        self.crl_version = 1
        self.asked_for: list[GetPublished] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked = threading.Event()
        self._held: list[tuple[Connection, int, SignCsr]] = []
        self._stream: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            with stream:
                self._stream = stream
                self._serve(stream)

    def _serve(self, stream: socket.socket) -> None:
        connection = self._connection = Connection(self._hello, time.monotonic())
        stream.sendall(connection.data_to_send())
        try:
            while data := stream.recv(65_536):
                connection.receive_data(data, time.monotonic())
                while (event := connection.next_event()) is not None:
                    if isinstance(event, RequestReceived):
                        self._answer(connection, event)
                stream.sendall(connection.data_to_send())
        except (OSError, RemoteProtocolError):
            return

    def _answer(self, connection: Connection, event: RequestReceived) -> None:
        match event.record:
            case GetChain():
                connection.answer(event.request_id, self.chain)
            case GetPublished() as record:
                self.asked_for.append(record)
                connection.answer(event.request_id, self._published(record))
            case GetOcsp(_, request):
                connection.answer(event.request_id, OcspAnswer(0, b"response to " + request))
            case SignCsr() as record:
                answer = self._behaviour(record)
                if answer is None:
                    self._held.append((connection, event.request_id, record))
                else:
                    connection.answer(event.request_id, answer)
                self.asked.set()

    def _published(self, record: GetPublished) -> Answer:
        if self.crl is None:
            return Error(ErrorCode.NOT_FOUND, False, 0, "nothing here")
        part = self.crl[record.offset : record.offset + MAX_PART]
        total, offset = len(self.crl), record.offset
        if record.known_version == self.crl_version:
            total, offset, part = 0, 0, b""
        return Published(record.kind, record.root_generation, self.crl_version, 0, total, offset, part)

    def tell_status(self, root_generation: int, crl_number: int) -> None:
        """Say that something changed."""
        assert self._stream is not None
        self._connection.tell_status(root_generation, crl_number)
        self._stream.sendall(self._connection.data_to_send())

    def answer_held(self, answer: Callable[[SignCsr], Answer]) -> None:
        """Answer what was not answered so far."""
        held, self._held = self._held, []
        for connection, request_id, record in held:
            connection.answer(request_id, answer(record))
            assert self._stream is not None
            self._stream.sendall(connection.data_to_send())

    def cut(self) -> None:
        """Break the connection."""
        assert self._stream is not None
        self._stream.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the agent and its connection. Once more changes nothing."""
        if self._listener.fileno() < 0:
            return
        # Only a shutdown wakes a thread that is blocked in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._stream is not None and self._stream.fileno() >= 0:
            self._stream.shutdown(socket.SHUT_RDWR)
        self._thread.join()


@contextmanager
def hostile_agent(behaviour: Behaviour, hello: Hello = AGENT_HELLO) -> Iterator[HostileAgent]:
    """Run such an agent until the end of the `with`."""
    agent = HostileAgent(behaviour, hello)
    try:
        yield agent
    finally:
        agent.close()


@contextmanager
def proxy_to(agent: HostileAgent, directory: Path, *options: str) -> Iterator[tuple[Process, str, str]]:
    """Run a proxy that is connected to this agent; yield it and the URLs of its listeners, plain and HTTPS."""
    endpoints = [f"tcp:127.0.0.1:{agent.port}"]
    with start_proxy(directory, endpoints, "--https", "tcp:0:interface=127.0.0.1", *options) as proxy:
        ready = proxy.wait_for("ready")
        proxy.wait_for("root learned")
        http, https = (f"{name}://127.0.0.1:{port_of(ready[name])}" for name in ("http", "https"))
        yield proxy, http, https


def fetched(url: str, *options: str) -> bytes:
    """Return what curl gets, octet for octet."""
    command = [need("curl"), "-sSf", "-m", "60", "-k", *options, url]
    return subprocess.run(command, capture_output=True, check=True).stdout
