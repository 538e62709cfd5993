"""One connection of the channel, for either role, without any I/O.

Theory of operation. Octets from the peer go in with `receive_data`; `next_event` is then called until it returns None.
What is to be sent collects in a buffer that `data_to_send` empties, so everything that one read brought about leaves in
one write. PING is answered, a request over the window is refused with BUSY, one after DRAIN with DRAINING, and split
records are joined in here; the owner sees events only:

    asker                                    agent
    ask(SignCsr) ------- SIGN_CSR ------->   RequestReceived(id, SignCsr)
    AnswerReceived(id, Signed) <-- SIGNED -- answer(id, Signed)
    cancel(id) ------- CANCEL ----------->   RequestCancelled(id)
    LateAnswer(id)  <-- ERROR CANCELLED ---  answer(id, Error)

Each request is answered exactly once, cancelled or not: the window counts what the agent still owes, so an asker that
gives up a request gets the place back only with its answer.

The connection reads no clock: `now` is the owner's monotonic time in seconds, and `next_timer` says when `handle_timer`
wants to be called.

A fault of the peer's surfaces once as RemoteProtocolError from `next_event` or `handle_timer`. By then an ERROR is in
the send buffer; the owner sends it and closes. After that the connection yields nothing and refuses to send.
"""

from collections import deque

from protocol.assembly import RecordAssembly, split_record
from protocol.codec import decode_record, encode_record, may_be_request
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.events import (
    AnswerReceived,
    Event,
    FramesPassed,
    LateAnswer,
    PeerDraining,
    PeerFailed,
    PeerReady,
    RequestCancelled,
    RequestReceived,
    StatusReceived,
)
from protocol.frames import MAX_PAYLOAD, VERSION, Frame, FrameDecoder, encode_frame, encode_header
from protocol.keepalive import Liveness, Timeouts
from protocol.records import (
    Answer,
    Cancel,
    Chain,
    Drain,
    Error,
    GetChain,
    GetOcsp,
    GetPublished,
    Hello,
    OcspAnswer,
    Ping,
    Pong,
    Published,
    Record,
    Request,
    Role,
    SignCsr,
    Signed,
    Status,
)

BUSY_RETRY_AFTER_MS = 1000
# Frames without an event, such as PING, CANCEL of what is answered and parts of records: a millisecond's worth.
FRAMES_AT_ONCE = 256
DRAINING_RETRY_AFTER_MS = 1000  # about as long as a restart takes

_ANSWER_TO: dict[type[Request], type[Answer]] = {
    SignCsr: Signed,
    GetChain: Chain,
    GetPublished: Published,
    GetOcsp: OcspAnswer,
}


class Connection:
    """Both ends of the channel's rules; `hello.role` says which end.

    Args:
        hello: what this side says first. An agent grants `hello.window` requests; `hello.max_record` bounds what is
            kept of unfinished records, all together.
        now: the owner's monotonic time, in seconds.
        timeouts: see `Timeouts`.
    """

    def __init__(self, hello: Hello, now: float, timeouts: Timeouts | None = None) -> None:
        self._hello = hello
        self._decoder = FrameDecoder()
        self._assembly = RecordAssembly(hello.max_record)
        self._liveness = Liveness(timeouts or Timeouts(), now)
        self._outgoing = bytearray()
        self._last_request_id = 0
        self._waiting: dict[int, type[Answer]] = {}  # asker: answers that are wanted
        self._abandoned: set[int] = set()  # asker: answers that are owed and no longer wanted
        self._owed: set[int] = set()  # agent: requests without an answer
        self._pings_sent = 0
        self._awaited_pongs: deque[int] = deque()
        self._drain_ping = 0
        self._frames_completed = False
        self.peer: Hello | None = None
        self.draining = False
        self.closed = False
        self.late_answers = 0
        self._send_record(0, hello)

    # Octets

    def receive_data(self, data: bytes, now: float) -> None:
        """Take octets from the peer. Call `next_event` until it returns None before the next call."""
        if not self.closed:
            self._liveness.heard(now)
            self._decoder.receive_data(data)

    def data_to_send(self) -> bytes:
        """Return, and forget, the octets that are to be written to the peer."""
        if not self._outgoing:
            return b""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    @property
    def octets_to_send(self) -> int:
        """How many octets `data_to_send` would return."""
        return len(self._outgoing)

    def next_event(self) -> Event | None:
        """Return what the peer's octets mean, one event at a time, or None until more octets come.

        Raises:
            RemoteProtocolError: the peer broke the protocol; see the module's text.
        """
        frames = 0
        try:
            while not self.closed:
                if frames == FRAMES_AT_ONCE:
                    return FramesPassed()
                frames += 1
                frame = self._decoder.next_frame()
                if frame is None:
                    self._liveness.frame_progress(self._decoder.mid_frame, self._frames_completed)
                    self._frames_completed = False
                    return None
                self._frames_completed = True
                event = self._frame_received(frame)
                if event is not None:
                    return event
            return None
        except RemoteProtocolError as error:
            self._fail(error)
            raise

    # Time

    def next_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called, in the owner's seconds; None once closed."""
        return None if self.closed else self._liveness.next_timer()

    def handle_timer(self, now: float) -> None:
        """Do what is due by the clock: send a PING, or give the peer up.

        Raises:
            RemoteProtocolError: TOO_SLOW; see the module's text.
        """
        if self.closed:
            return
        try:
            if self._liveness.expire(now):
                self._send_ping(now)
        except RemoteProtocolError as error:
            self._fail(error)
            raise

    # How it stands

    @property
    def unanswered(self) -> int:
        """How many answers are owed on this connection, either way."""
        return len(self._waiting) + len(self._abandoned) + len(self._owed)

    @property
    def held_octets(self) -> int:
        """How much of the peer's octets is held: of a frame and of records that are not whole."""
        return self._decoder.buffered_octets + self._assembly.held_octets

    # The asker's part

    @property
    def room(self) -> int:
        """How many more requests the agent takes at this moment."""
        if self.closed or self.draining or self.peer is None or self._hello.role is not Role.ASKER:
            return 0
        return self.peer.window - self.unanswered

    def ask(self, record: Request) -> int:
        """Send a request and return its request id.

        Raises:
            LocalProtocolError: there is no `room`, or a value of the record does not fit.
        """
        if self.room <= 0:
            raise LocalProtocolError(ErrorCode.BUSY, "no room for a request on this connection")
        request_id = self._last_request_id + 1
        self._send_record(request_id, record)
        self._last_request_id = request_id
        self._waiting[request_id] = _ANSWER_TO[type(record)]
        return request_id

    def cancel(self, request_id: int) -> None:
        """Stop waiting for a request and tell the agent; its answer will be a `LateAnswer`."""
        if not self.closed and self._waiting.pop(request_id, None) is not None:
            self._abandoned.add(request_id)
            self._send_record(request_id, Cancel())

    # The agent's part

    def answer(self, request_id: int, record: Answer) -> None:
        """Send the one answer to a request.

        Raises:
            LocalProtocolError: no such request is owed an answer, or a value of the record does not fit.
        """
        if self.closed:
            raise LocalProtocolError(ErrorCode.BAD_SEQUENCE, "the connection is closed")
        if request_id not in self._owed:
            raise LocalProtocolError(ErrorCode.BAD_SEQUENCE, f"request {request_id} is owed no answer")
        self._send_record(request_id, record)
        self._owed.remove(request_id)

    def tell_status(self, root_generation: int, crl_number: int) -> None:
        """Tell the asker that one of these changed; does nothing before its HELLO or once closed.

        Raises:
            LocalProtocolError: a value does not fit its field.
        """
        if not self.closed and self.peer is not None:
            self._send_record(0, Status(root_generation, crl_number))

    def drain(self, now: float) -> None:
        """Tell the asker to send nothing new here. What is owed is still to be answered.

        A PING follows the DRAIN: once its PONG is here, so is every request that crossed them, and what comes later is
        refused with DRAINING. A peer that has not said HELLO is told after it.
        """
        if not self.closed and not self.draining:
            self.draining = True
            if self.peer is not None:
                self._send_drain(now)

    @property
    def drained(self) -> bool:
        """Whether nothing more can come or is owed: after `drain`, and on a connection without HELLO or closed."""
        if self.closed or self.peer is None:
            return True
        return self._drain_is_over and not self._owed

    def leave(self) -> None:
        """Close from this side. A peer that is owed an answer, or has not taken its DRAIN in, gets an ERROR first."""
        if not self.closed and self.peer is not None and (self._owed or (self.draining and not self._drain_is_over)):
            text = f"the agent ends, {len(self._owed)} requests without an answer"
            self._send_record(0, Error(ErrorCode.DRAINING, True, DRAINING_RETRY_AFTER_MS, text))
        self.close()

    def close(self) -> None:
        """The transport is gone, or about to go: nothing is sent or yielded any more."""
        self.closed = True
        # Nothing more is read: what came behind a fault is not held until the socket is closed as well.
        self._decoder = FrameDecoder()
        self._assembly = RecordAssembly(self._hello.max_record)

    # Inside

    def _send_record(self, request_id: int, record: Record) -> None:
        code, payload = encode_record(record)
        if self.peer is not None and len(payload) > self.peer.max_record:
            text = f"record of {len(payload)} octets, the peer takes {self.peer.max_record}"
            raise LocalProtocolError(ErrorCode.BAD_RECORD, text)
        if len(payload) <= MAX_PAYLOAD:
            self._outgoing += encode_header(code, request_id, len(payload)) + payload
            return
        for frame in split_record(code, request_id, payload):
            self._outgoing += encode_frame(frame)

    @property
    def _drain_is_over(self) -> bool:
        """Whether the asker has answered the PING behind the DRAIN."""
        return self.draining and self._drain_ping not in self._awaited_pongs

    def _send_ping(self, now: float) -> int:
        self._pings_sent += 1
        self._awaited_pongs.append(self._pings_sent)
        self._liveness.ping_sent(now)
        self._send_record(0, Ping(self._pings_sent))
        return self._pings_sent

    def _send_drain(self, now: float) -> None:
        self._send_record(0, Drain())
        self._drain_ping = self._send_ping(now)

    def _fail(self, error: RemoteProtocolError) -> None:
        self._send_record(0, Error(error.code, retryable=False, retry_after_ms=0, text=error.text[:128]))
        self.close()

    def _frame_received(self, frame: Frame) -> Event | None:
        payload = self._assembly.join(frame)
        if payload is None:
            return None
        try:
            record = decode_record(frame.type, payload)
        except RemoteProtocolError as error:
            if error.code is not ErrorCode.UNSUPPORTED or not self._may_answer_for(frame):
                raise
            # A newer asker's request that this agent does not know costs that request, not the connection.
            self._open_request(frame.request_id)
            self.answer(frame.request_id, Error(ErrorCode.UNSUPPORTED, False, 0, error.text[:128]))
            return None
        return self._record_received(frame.request_id, record)

    def _record_received(self, request_id: int, record: Record) -> Event | None:
        if isinstance(record, Error) and request_id == 0:
            self.close()
            return PeerFailed(record)
        if self.peer is None:
            return self._hello_received(request_id, record)
        if request_id == 0:
            return self._connection_record_received(record)
        if self._hello.role is Role.AGENT:
            if isinstance(record, Request):
                return self._request_received(request_id, record)
            if isinstance(record, Cancel):
                return self._cancel_received(request_id)
        elif isinstance(record, Answer):
            return self._answer_received(request_id, record)
        raise RemoteProtocolError(ErrorCode.BAD_SEQUENCE, f"{type(record).__name__} with a request id, to this role")

    def _hello_received(self, request_id: int, record: Record) -> Event:
        if not isinstance(record, Hello) or request_id != 0:
            raise RemoteProtocolError(ErrorCode.BAD_SEQUENCE, "the first record is not HELLO")
        if record.role is self._hello.role:
            raise RemoteProtocolError(ErrorCode.BAD_SEQUENCE, "both ends have the same role")
        if not record.version_min <= VERSION <= record.version_max:
            text = f"the peer speaks versions {record.version_min} to {record.version_max}, this side {VERSION}"
            raise RemoteProtocolError(ErrorCode.BAD_VERSION, text)
        self.peer = record
        self._liveness.hello()
        if self.draining:
            self._send_drain(self._liveness.heard_at)
        return PeerReady(record)

    def _connection_record_received(self, record: Record) -> Event | None:
        match record:
            case Ping(token):
                self._send_record(0, Pong(token))
                return None
            case Pong(token) if self._awaited_pongs and token == self._awaited_pongs[0]:
                self._awaited_pongs.popleft()
                self._liveness.pong()
                return None
            case Drain() if self._hello.role is Role.ASKER:
                self.draining = True
                return PeerDraining()
            case Status() if self._hello.role is Role.ASKER:
                return StatusReceived(record)
        raise RemoteProtocolError(ErrorCode.BAD_SEQUENCE, f"{type(record).__name__} out of place")

    def _request_received(self, request_id: int, record: Request) -> Event | None:
        self._open_request(request_id)
        if self._drain_is_over:
            error = Error(ErrorCode.DRAINING, True, DRAINING_RETRY_AFTER_MS, "the agent is ending")
        elif len(self._owed) > self._hello.window:
            text = f"more than {self._hello.window} requests under way on this connection"
            error = Error(ErrorCode.BUSY, True, BUSY_RETRY_AFTER_MS, text)
        elif isinstance(record, SignCsr) and (fault := record.requester_fault):
            error = Error(ErrorCode.BAD_RECORD, False, 0, fault)
        else:
            return RequestReceived(request_id, record)
        self.answer(request_id, error)
        return None

    def _may_answer_for(self, frame: Frame) -> bool:
        is_new = frame.request_id > self._last_request_id
        return self._hello.role is Role.AGENT and self.peer is not None and is_new and may_be_request(frame.type)

    def _open_request(self, request_id: int) -> None:
        if request_id <= self._last_request_id:
            raise RemoteProtocolError(ErrorCode.BAD_SEQUENCE, "a request id that does not rise")
        self._last_request_id = request_id
        self._owed.add(request_id)

    def _cancel_received(self, request_id: int) -> Event | None:
        # An id that is owed nothing was answered while the CANCEL was on its way.
        return RequestCancelled(request_id) if request_id in self._owed else None

    def _answer_received(self, request_id: int, record: Answer) -> Event:
        wanted = self._waiting.pop(request_id, None)
        if wanted is not None:
            if not isinstance(record, (wanted, Error)):
                raise RemoteProtocolError(ErrorCode.BAD_SEQUENCE, f"{type(record).__name__} answers another request")
            return AnswerReceived(request_id, record)
        if request_id in self._abandoned:
            self._abandoned.remove(request_id)
            self.late_answers += 1
            return LateAnswer(request_id)
        raise RemoteProtocolError(ErrorCode.BAD_SEQUENCE, "an answer to no request, or a second one")
