"""The pipe between the first process and a worker: records in frames, told or asked, in both directions.

A frame's request id is the number of a question, which its answer bears as well; what is told has 0, but for `GiveUp`.
Each side numbers its own questions. Whatever comes arrives in the order in which it was sent.

Bounds: a frame; so many questions that are not answered, after which whoever asks is refused at once, and whoever asks
all the same is cut off. A question that nobody waits for any more counts until it is answered. What is told without
being asked is bounded by those who tell: a session a login, an end a session.
"""

from collections.abc import Awaitable
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.auth.lanes import RETRY_AFTER_S
from bmc_proxy.auth.work_queue import CONNECTIONS
from bmc_proxy.errors import ExchangeError, TooManyRequests
from bmc_proxy.workers import ipc_errors
from bmc_proxy.workers.messages import ANSWERS, Failed, GiveUp, Record, RecordRefused, Refused, decode, encode
from protocol.errors import ChannelError
from protocol.frames import Frame, FrameDecoder, encode_frame

# One of each connection that may be, and those that belong to none.
QUESTIONS = 2 * CONNECTIONS

_log = Logger()


class PipeBroken(Exception):
    """The other process is gone, or failed to answer."""


_Answer = TypeVar("_Answer", bound=Record)


class Party(Protocol):
    """What a process does with what comes over its pipe."""

    def told(self, record: Record) -> None:
        """Take what was told. Raises RecordRefused where it is none of what is told here."""

    async def asked(self, record: Record) -> Record:
        """Return the answer. Raises ExchangeError, or RecordRefused as above."""

    def pipe_lost(self, reason: str) -> None:
        """Nothing comes any more."""


class Pipe(TwistedProtocol):
    """One end."""

    transport: ITCPTransport | None

    def __init__(self, party: Party) -> None:
        self._party = party
        self._decoder = FrameDecoder()
        self._last_id = 0
        self._asked: dict[int, Deferred[Record] | None] = {}  # None: nobody waits any more
        self._answering: dict[int, Deferred[None]] = {}
        self._is_lost = False
        self._lost_because = "it ended"

    def tell(self, record: Record) -> None:
        """Send what needs no answer."""
        self._send(record, 0)

    def ask(self, record: Record) -> Deferred[Record]:
        """Return a Deferred of the answer; cancel it where nobody waits any more.

        It fails with what the other side refused it with, with TooManyRequests where too many are open, and with
        PipeBroken.
        """
        if self._is_lost:
            raise PipeBroken
        if len(self._asked) >= QUESTIONS:
            raise TooManyRequests(RETRY_AFTER_S)
        number = self._last_id = self._last_id + 1

        def give_up(_answer: Deferred[Record]) -> None:
            if number in self._asked:
                self._asked[number] = None
                self._send(GiveUp(), number)

        answer: Deferred[Record] = Deferred(give_up)
        self._asked[number] = answer
        self._send(record, number)
        return answer

    async def ask_for(self, record: Record, kind: type[_Answer]) -> _Answer:
        """Ask, and return the answer, which must be of this kind. Raises what `ask` fails with."""
        answer = await self.ask(record)
        if not isinstance(answer, kind):
            self._refuse("it answers something else")
            raise PipeBroken(self._lost_because)
        return answer

    def dataReceived(self, data: bytes) -> None:
        self._decoder.receive_data(data)
        try:
            while not self._is_lost and (frame := self._decoder.next_frame()) is not None:
                self._receive(frame)
        except (ChannelError, RecordRefused) as error:
            self._refuse(str(error))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end()

    def _receive(self, frame: Frame) -> None:
        record = decode(frame.type, frame.payload)
        if frame.more:
            raise RecordRefused("a record has one frame")
        if isinstance(record, ANSWERS):
            self._take_answer(frame.request_id, record)
        elif isinstance(record, GiveUp):
            if frame.request_id in self._answering:
                self._answering[frame.request_id].cancel()
        elif frame.request_id == 0:
            self._party.told(record)
        elif frame.request_id in self._answering or len(self._answering) >= QUESTIONS:
            raise RecordRefused("it asks what it may not")
        else:
            answering = Deferred.fromCoroutine(self._answer(frame.request_id, self._party.asked(record)))
            if not answering.called:
                self._answering[frame.request_id] = answering

    def _take_answer(self, number: int, record: Record) -> None:
        if number not in self._asked:
            raise RecordRefused("it answers what was not asked")
        waiting = self._asked.pop(number)
        error = ipc_errors.to_error(record) if isinstance(record, Refused) else None
        if waiting is None:
            return
        if isinstance(record, Failed):
            waiting.errback(PipeBroken("the first process failed"))
        elif error is not None:
            waiting.errback(error)
        else:
            waiting.callback(record)

    async def _answer(self, number: int, work: Awaitable[Record]) -> None:
        answer: Record
        try:
            answer = await work
        except RecordRefused as error:
            self._refuse(str(error))
            return
        except ExchangeError as error:
            answer = ipc_errors.to_record(error)
        except CancelledError:
            answer = Failed()  # to nobody
        except Exception:  # noqa: BLE001  # a bug: whoever asked is told that it failed, and the log why
            _log.failure("question failed")
            answer = Failed()
        self._answering.pop(number, None)
        self._send(answer, number)

    def _send(self, record: Record, number: int) -> None:
        if not self._is_lost and self.transport is not None:
            code, payload = encode(record)
            self.transport.write(encode_frame(Frame(code, number, payload)))

    def _refuse(self, reason: str) -> None:
        self._lost_because = reason
        self.end()

    def end(self) -> None:
        """Close it: nothing comes any more, and nothing is answered."""
        if self._is_lost:
            return
        self._is_lost = True
        if self.transport is not None:
            self.transport.abortConnection()
        for answering in list(self._answering.values()):
            answering.cancel()
        asked, self._asked = self._asked, {}
        for waiting in asked.values():
            if waiting is not None:
                waiting.errback(PipeBroken(self._lost_because))
        self._party.pipe_lost(self._lost_because)
