"""An asker on a blocking socket, for tests that look at the channel itself."""

import socket
import time
from typing import Self

from protocol.connection import Connection
from protocol.events import AnswerReceived, Event, PeerReady
from protocol.records import Answer, Hello, Request
from support.octets import ASKER_HELLO

PATIENCE_S = 30.0


class RawAsker:
    """One connection to an agent on loopback; HELLO is exchanged when the constructor returns."""

    def __init__(self, port: int, hello: Hello = ASKER_HELLO) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.connection = Connection(hello, time.monotonic())
        self.events: list[Event] = []
        try:
            self.wait_for(PeerReady)
        except BaseException:
            self._socket.close()
            raise

    def send(self) -> None:
        """Write what the connection has to send."""
        self._socket.sendall(self.connection.data_to_send())

    def ask(self, *records: Request) -> list[int]:
        """Send requests in one write; return their request ids."""
        request_ids = [self.connection.ask(record) for record in records]
        self.send()
        return request_ids

    def receive(self) -> bool:
        """Read once and take the events; False at the end of the stream."""
        data = self._socket.recv(65_536)
        self.connection.receive_data(data, time.monotonic())
        while (event := self.connection.next_event()) is not None:
            self.events.append(event)
        self.send()
        return bool(data)

    def wait_for(self, kind: type[Event]) -> Event:
        """Return the first event of a kind."""
        while True:
            for event in self.events:
                if isinstance(event, kind):
                    return event
            assert self.receive(), f"the connection ended before {kind.__name__}"

    def answers(self, count: int) -> dict[int, Answer]:
        """Return that many answers, or as many as there are at the end of the stream, by request id."""
        while True:
            found = {event.request_id: event.record for event in self.events if isinstance(event, AnswerReceived)}
            if len(found) >= count or not self.receive():
                return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
