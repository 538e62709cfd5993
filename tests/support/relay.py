"""A relay on the channel that does to a stream what a network, or whatever stands in its place, can do to it.

It is no part of the product and knows nothing of it but that a frame begins with the length of its rest. What befalls
which connection at which octet is planned (`relay_plan`), so a seed that found something finds it again, as far as two
processes and their threads let anything happen twice.
"""

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from support.relay_plan import Fault, Kind, Plan

READ_OCTETS = 65_536
REMEMBERED_OCTETS = 4_096
_LENGTH = struct.Struct(">I")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _Frames:
    """Tells the frames of a stream from each other."""

    def __init__(self) -> None:
        self._frame = bytearray()

    def take(self, octets: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the octets in parts, each with the frame that it completes; empty where it completes none."""
        while octets:
            is_counted = len(self._frame) >= _LENGTH.size
            end = _LENGTH.size + (_LENGTH.unpack_from(self._frame)[0] if is_counted else 0)
            missing = end - len(self._frame)
            part, octets = octets[:missing], octets[missing:]
            self._frame += part
            whole = b""
            if is_counted and len(self._frame) == end:
                whole = bytes(self._frame)
                self._frame.clear()
            yield part, whole


class _Direction:
    """The octets from one end of a connection to the other, moved by a thread of their own."""

    def __init__(self, connection: "_Connection", source: socket.socket, target: socket.socket) -> None:
        self.faults: deque[Fault] = deque()
        self._connection = connection
        self._source = source
        self._target = target
        self._passed = 0
        self._frames = _Frames()
        self._last = b""
        self._dripping = 0
        self._second_frame = False
        self.thread = threading.Thread(target=self._run)

    def begin(self, faults: Iterable[Fault]) -> None:
        """Count from here on, to these faults."""
        self.faults, self._passed = deque(faults), 0

    def _run(self) -> None:
        try:
            while data := self._source.recv(READ_OCTETS):
                self._take(data)
            self._connection.end(self._target)
        except OSError:
            self._connection.cut()
        self._connection.over(self)

    def _take(self, data: bytes) -> None:
        while data:
            faults = self.faults  # others may lie ahead at any moment
            ahead = faults[0].at - self._passed if faults else len(data)
            if ahead <= 0:
                data = self._befall(faults.popleft(), data)
                self._connection.relay.look_whether_spent()
                continue
            piece, data = data[:ahead], data[ahead:]
            self._passed += len(piece)
            self._connection.wait()
            self._last = (self._last + piece)[-REMEMBERED_OCTETS:]
            for part, frame in self._frames.take(piece):
                self._send(part)
                if frame and self._second_frame:
                    self._second_frame = False
                    self._send(frame)

    def _befall(self, fault: Fault, data: bytes) -> bytes:
        """Let something befall the stream before these octets; return what they are then."""
        match fault.kind:
            case Kind.DELAY:
                self._connection.relay.healed.wait(fault.seconds)
            case Kind.STALL:
                self._connection.stall(fault.seconds)
            case Kind.DRIP:
                self._dripping = fault.count
            case Kind.CUT:
                self._connection.cut()
            case Kind.RESET:
                self._connection.reset()
            case Kind.HALF_CLOSE:
                self._target.shutdown(socket.SHUT_WR)
            case Kind.SECOND_FRAME:
                self._second_frame = True
            case Kind.DUPLICATE:
                self._send(self._last[-fault.count :])
            case Kind.FLIP:
                return bytes((data[0] ^ 1 << fault.count % 8,)) + data[1:]
        return data

    def _send(self, octets: bytes) -> None:
        dripping, self._dripping = octets[: self._dripping], max(0, self._dripping - len(octets))
        for octet in dripping:
            self._target.sendall(bytes((octet,)))
        self._target.sendall(octets[len(dripping) :])


class _Connection:
    """A connection of the proxy's, and the one to the agent that stands behind it."""

    def __init__(self, relay: "Relay", to_proxy: socket.socket, to_agent: socket.socket) -> None:
        self.relay = relay
        self._ends = (to_proxy, to_agent)
        self._stalled_until = 0.0
        self._is_reset = False
        self.directions = {True: _Direction(self, to_proxy, to_agent), False: _Direction(self, to_agent, to_proxy)}
        self._moving = set(self.directions.values())
        for end in self._ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(self, faults: Iterable[Fault]) -> None:
        """Let these faults lie ahead."""
        faults = tuple(faults)
        for to_agent, direction in self.directions.items():
            direction.begin(fault for fault in faults if fault.to_agent is to_agent)

    @property
    def faults_ahead(self) -> int:
        """How many faults have not befallen it yet."""
        return sum(len(direction.faults) for direction in self.directions.values())

    def stall(self, seconds: float) -> None:
        """Let nothing pass for so long, either way."""
        self._stalled_until = time.monotonic() + seconds

    def wait(self) -> None:
        """Wait for the end of the stall, if there is one."""
        while (left_s := self._stalled_until - time.monotonic()) > 0 and not self.relay.healed.wait(left_s):
            pass

    def end(self, target: socket.socket) -> None:
        """One direction is at its end."""
        if not self._is_reset:
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End both directions, after what has passed."""
        for each in self._ends:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Tear both connections down."""
        self._is_reset = True
        for each in self._ends:
            # The reset leaves when the last thread has let go of the socket: this wakes those that read.
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                each.shutdown(socket.SHUT_RD)

    def over(self, direction: _Direction) -> None:
        """One direction moves nothing any more."""
        with self.relay.lock:
            self._moving.discard(direction)
            if self._moving:
                return
        for each in self._ends:
            each.close()
        self.relay.connection_over(self)


class Relay:
    """Listens on a port of its own and passes on to an agent's port what is said there.

    Attributes:
        port: where the proxy connects to.
        healed: set while nothing befalls anybody.
        spent: set once all of a plan has befallen.
        connected: set while a connection is there.
    """

    def __init__(self, agent_port: int) -> None:
        self.lock = threading.RLock()
        self.healed = threading.Event()
        self.spent = threading.Event()
        self.connected = threading.Event()
        self.healed.set()
        self._agent_port = agent_port
        self._connections: list[_Connection] = []
        self._threads: list[threading.Thread] = []
        self._planned: deque[tuple[Fault, ...]] = deque()
        self._refused_s: deque[float] = deque()
        self._refuse_s = 0.0
        self._closing = False
        # Holds the port while nobody is let in: what is bound and does not listen refuses.
        self._port_holder = _bound(0)
        self.port: int = self._port_holder.getsockname()[1]
        self._listener = self._listen()
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def begin(self, plan: Plan) -> None:
        """Let a plan begin, with the connection that is there."""
        with self.lock:
            self._planned, self._refused_s = deque(plan.faults), deque(plan.refused_s)
            self.healed.clear()
            self.spent.clear()
            for connection in self._connections[-1:]:
                connection.begin(self._planned.popleft())

    def heal(self) -> None:
        """End all that goes on and is planned."""
        with self.lock:
            self._planned.clear()
            self._refused_s.clear()
            self._refuse_s = 0.0
            for connection in self._connections:
                connection.begin(())
            self.healed.set()
            self.spent.set()

    def close(self) -> None:
        """End everything."""
        with self.lock:
            self._closing = True
            self.heal()
            self._listener.shutdown(socket.SHUT_RDWR)
            connections = list(self._connections)
        for connection in connections:
            connection.cut()
        self._accepting.join()
        for thread in self._threads:
            thread.join()
        self._port_holder.close()

    def look_whether_spent(self) -> None:
        """Something befell somebody: it may have been the last."""
        with self.lock:
            if not self._planned and not any(each.faults_ahead for each in self._connections):
                self.spent.set()

    def connection_over(self, connection: _Connection) -> None:
        """Both directions of a connection are at their end."""
        with self.lock:
            self._connections.remove(connection)
            if not self._connections:
                self.connected.clear()
            self._refuse_s = self._refused_s.popleft() if self._refused_s else 0.0
            if self._refuse_s:
                self._listener.shutdown(socket.SHUT_RDWR)
            self.look_whether_spent()

    def _listen(self) -> socket.socket:
        listener = _bound(self.port)
        listener.listen()
        return listener

    def _accept(self) -> None:
        while True:
            try:
                to_proxy, _ = self._listener.accept()
            except OSError:
                self._listener.close()
                if self._closing:
                    return
                self.healed.wait(self._refuse_s)
                with self.lock:
                    if self._closing:
                        return
                    self._listener = self._listen()
                continue
            try:
                to_agent = socket.create_connection(("127.0.0.1", self._agent_port))
            except OSError:
                to_proxy.close()
                continue
            self._join(to_proxy, to_agent)

    def _join(self, to_proxy: socket.socket, to_agent: socket.socket) -> None:
        connection = _Connection(self, to_proxy, to_agent)
        with self.lock:
            if self._planned:
                connection.begin(self._planned.popleft())
            self._connections.append(connection)
            self.connected.set()
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            for direction in connection.directions.values():
                direction.thread.start()
                self._threads.append(direction.thread)
            if self._closing:
                connection.cut()


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


@contextmanager
def relay_to(agent_port: int) -> Iterator[Relay]:
    """Run a relay until the end of the `with`."""
    relay = Relay(agent_port)
    try:
        yield relay
    finally:
        relay.close()
