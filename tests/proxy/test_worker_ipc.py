"""The pipe between the first process and a worker, in memory: what is told and asked, its bounds, and nonsense."""

import json
from typing import get_args

import pytest
from conftest import LogWatch
from support.worker_values import PASSWORD, SESSION, result_of
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport

from bmc_proxy.errors import (
    AccountsFailed,
    AuthFailed,
    AuthRequired,
    ExchangeError,
    Forbidden,
    NothingThere,
    PropertyRefused,
    TooManyRequests,
)
from bmc_proxy.workers import ipc_errors
from bmc_proxy.workers.ipc import QUESTIONS, Pipe, PipeBroken
from bmc_proxy.workers.messages import (
    AddAccount,
    Asker,
    ChangeAccount,
    CheckPassword,
    Confirm,
    Done,
    LogIn,
    Record,
    RecordRefused,
    Refused,
    SessionEnded,
    Used,
    decode,
    encode,
)
from protocol.frames import Frame, encode_frame

IDLE_S = 1800.0


class Wire(StringTransport):
    """A transport that can be aborted."""

    def abortConnection(self) -> None:
        """Close at once."""
        self.loseConnection()


class Side:
    """One party, which answers when the test says so."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.questions: list[tuple[Record, Deferred[Record]]] = []
        self.lost: list[str] = []
        self.refuses = False
        self.pipe = Pipe(self)
        self.wire = Wire()
        self.pipe.makeConnection(self.wire)

    def told(self, record: Record) -> None:
        """Keep it."""
        if self.refuses:
            raise RecordRefused("not here")
        self.records.append(record)

    async def asked(self, record: Record) -> Record:
        """Wait for the test."""
        answer: Deferred[Record] = Deferred()
        self.questions.append((record, answer))
        return await answer

    def pipe_lost(self, reason: str) -> None:
        """Keep why."""
        self.lost.append(reason)


class Ends:
    """Two ends, and the way between them."""

    def __init__(self) -> None:
        self.first, self.worker = Side(), Side()

    def carry(self) -> None:
        """Carry what was written, both ways, until nothing is."""
        while self.first.wire.value() or self.worker.wire.value():
            for here, there in ((self.first, self.worker), (self.worker, self.first)):
                octets = here.wire.value()
                here.wire.clear()
                there.pipe.dataReceived(octets)


@pytest.fixture
def ends() -> Ends:
    """Return two ends."""
    return Ends()


ASKER = Asker("root", "token", "192.0.2.1", None, "0123456789abcdef")


@pytest.mark.parametrize(
    "record",
    [
        CheckPassword("root", PASSWORD, "192.0.2.1"),
        LogIn("r\u00f6\ud800t", PASSWORD, "unix"),
        Used(("a", "b"), (0, 17)),
        AddAccount(ASKER, "new", PASSWORD, "Operator", True),
        ChangeAccount(ASKER, "new", None, None, None, False, True, ("a", "b")),
        SESSION,
        Confirm(),
        Refused("AuthFailed", "", "", False, 0.5),
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_arrive_as_they_were(record: Record) -> None:
    """What is encoded is decoded to the same."""
    assert decode(*encode(record)) == record


@pytest.mark.parametrize(
    "record", [LogIn("root", PASSWORD, "unix"), ChangeAccount(ASKER, "x", PASSWORD, None, None, False, False, ())]
)
def test_secrets_are_not_in_a_record_s_text(record: Record) -> None:
    """However a record gets into a log, its password does not."""
    assert PASSWORD not in repr(record)


def code_of(kind: type[Record]) -> int:
    """Return a record's type code."""
    return get_args(Record).index(kind) + 1


@pytest.mark.parametrize(
    ("code", "payload"),
    [
        (0, b"[]"),
        (len(get_args(Record)) + 1, b"[]"),
        (code_of(Confirm), b""),
        (code_of(Confirm), b"\xff"),
        (code_of(Confirm), b"{}"),
        (code_of(Confirm), b"[1]"),
        (code_of(Confirm), b"[" * 60_000),
        (code_of(SessionEnded), b"[null]"),
        (code_of(SessionEnded), b'["a", "b"]'),
        (code_of(Used), b'["abc", []]'),
        (code_of(Used), b'[["a"], [true]]'),
        (code_of(AddAccount), json.dumps([["root"], "new", "p", "Operator", True]).encode()),
        (code_of(AddAccount), json.dumps([["root", "token", "-", None, None], "new", "p", "Operator", 1]).encode()),
    ],
)
def test_records_that_are_none(ends: Ends, code: int, payload: bytes) -> None:
    """What is not exactly a record ends the pipe, and is not in the reason."""
    with pytest.raises(RecordRefused):
        decode(code, payload)
    ends.first.pipe.dataReceived(encode_frame(Frame(code, 0, payload)))
    assert len(ends.first.lost) == 1
    assert ends.first.wire.disconnecting


def test_frame_that_is_none(ends: Ends) -> None:
    """A frame that is too long ends the pipe before anything of it is kept."""
    ends.first.pipe.dataReceived(b"\xff\xff\xff\xff")
    assert ends.first.wire.disconnecting
    assert len(ends.first.lost) == 1


def test_record_that_is_not_for_this_side(ends: Ends) -> None:
    """Whoever tells what it may not is ended."""
    ends.first.refuses = True
    ends.worker.pipe.tell(Confirm())
    ends.carry()
    assert ends.first.lost == ["not here"]


def test_answer_to_what_was_not_asked(ends: Ends) -> None:
    """Whoever answers without a question is ended."""
    ends.first.pipe.dataReceived(encode_frame(Frame(code_of(Done), 7, b"[]")))
    assert ends.first.wire.disconnecting


def test_answers_in_any_order(ends: Ends) -> None:
    """Each question gets its own answer."""
    waiting = [ends.worker.pipe.ask(LogIn(name, PASSWORD, "unix")) for name in ("a", "b")]
    ends.carry()
    for _, answer in reversed(ends.first.questions):
        answer.callback(Done())
        ends.carry()
    assert [result_of(each) for each in waiting] == [Done(), Done()]


def test_questions_are_bounded(ends: Ends) -> None:
    """Past the limit whoever asks is refused at once; a question that was given up counts until it is answered."""
    waiting = [ends.worker.pipe.ask(LogIn("a", PASSWORD, "unix")) for _ in range(QUESTIONS)]
    for each in waiting:
        each.addErrback(lambda _failure: None)
    waiting[0].cancel()
    with pytest.raises(TooManyRequests):
        ends.worker.pipe.ask(LogIn("a", PASSWORD, "unix"))
    ends.carry()  # the first one is given up at the other side, which says so
    result = ends.worker.pipe.ask(LogIn("a", PASSWORD, "unix"))
    assert result_of(result) is None
    assert len(ends.first.questions) == QUESTIONS


def test_more_questions_than_there_may_be(ends: Ends) -> None:
    """Whoever does not keep to it is ended, and its questions are given up."""
    code, payload = encode(LogIn("a", PASSWORD, "unix"))
    for number in range(1, QUESTIONS + 2):
        ends.first.pipe.dataReceived(encode_frame(Frame(code, number, payload)))
    assert ends.first.wire.disconnecting
    assert all(answer.called for _, answer in ends.first.questions)


def test_question_that_nobody_waits_for(ends: Ends) -> None:
    """Whoever hangs up is given up on the other side as well."""
    waiting = ends.worker.pipe.ask(LogIn("a", PASSWORD, "unix"))
    waiting.addErrback(lambda _failure: None)
    ends.carry()
    waiting.cancel()
    ends.carry()
    [(_, answer)] = ends.first.questions
    assert answer.called
    assert not ends.worker.lost


def test_question_that_fails_by_a_bug(ends: Ends, log_watch: LogWatch) -> None:
    """The log says why, the pipe does not, and goes on."""
    log_watch.expect_error("question failed")
    waiting = ends.worker.pipe.ask(LogIn("a", PASSWORD, "unix"))
    ends.carry()
    ends.first.questions[0][1].errback(ZeroDivisionError("a bug"))
    ends.carry()
    assert isinstance(result_of(waiting), PipeBroken)
    assert not ends.first.lost


def test_pipe_that_ends_fails_what_is_asked(ends: Ends) -> None:
    """Nobody waits for a process that is gone."""
    waiting = ends.worker.pipe.ask(LogIn("a", PASSWORD, "unix"))
    ends.worker.pipe.connectionLost()
    assert isinstance(result_of(waiting), PipeBroken)
    with pytest.raises(PipeBroken):
        ends.worker.pipe.ask(Confirm())
    assert ends.worker.lost == ["it ended"]


@pytest.mark.parametrize(
    "error",
    [
        AuthFailed(),
        AuthRequired(),
        Forbidden(),
        NothingThere(),
        AccountsFailed(),
        TooManyRequests(7.5),
        PropertyRefused("password", "Too short.", exists=False),
        PropertyRefused("exists", "There is one.", exists=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_refusals_arrive_as_they_were(ends: Ends, error: ExchangeError) -> None:
    """Whoever asked through a worker is refused in the same words."""
    waiting = ends.worker.pipe.ask(LogIn("a", PASSWORD, "unix"))
    ends.carry()
    ends.first.questions[0][1].errback(error)
    ends.carry()
    found = result_of(waiting)
    assert type(found) is type(error)
    assert found.__dict__ == error.__dict__


def test_refusal_of_no_kind() -> None:
    """A kind that is not known is nonsense."""
    with pytest.raises(RecordRefused):
        ipc_errors.to_error(Refused("SystemExit", "", "", False, 0.0))
