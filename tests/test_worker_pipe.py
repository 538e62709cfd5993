"""The pipe between the first process and a worker, in memory: what is told and asked, its bounds, and nonsense."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import LogWatch
from run_log import secret
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from bmc_proxy.accounts import Account, AccountStore, Role
from bmc_proxy.administration import OwnAdministration
from bmc_proxy.callers import Caller
from bmc_proxy.config import Config
from bmc_proxy.entrance import OwnEntrance
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
from bmc_proxy.sessions import LIMIT
from bmc_proxy.workers import refusals
from bmc_proxy.workers.configs import config_from_json, config_to_json, share_of
from bmc_proxy.workers.lines import LIMIT as LINE_LIMIT
from bmc_proxy.workers.lines import SharedLineObserver
from bmc_proxy.workers.pipe import QUESTIONS, Pipe, PipeBroken
from bmc_proxy.workers.records import (
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
    SessionIs,
    Used,
    decode,
    encode,
)
from bmc_proxy.workers.replica import Replica
from bmc_proxy.workers.shared_sessions import GRACE_S, SharedSessions
from protocol.frame import Frame, encode_frame

PASSWORD = secret("pass-over-the-pipe")
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


def result_of(waiting: Deferred[Any]) -> Any:
    """Return the result or the error of what is done; None of what is not."""
    results: list[Any] = []
    waiting.addBoth(lambda result: results.append(getattr(result, "value", result)))
    return results[0] if results else None


ASKER = Asker("root", "token", "192.0.2.1", None, "0123456789abcdef")
SESSION = SessionIs("0123", "root", "id", None, "192.0.2.1", "00" * 32, secret("xsrf-of-the-session"))


@pytest.mark.parametrize(
    "record",
    [
        CheckPassword("root", PASSWORD, "192.0.2.1"),
        LogIn("r\u00f6\ud800t", PASSWORD, "unix"),
        Used(("a", "b"), (0, 17)),
        AddAccount(ASKER, "new", PASSWORD, "Operator", True),
        ChangeAccount(ASKER, "new", None, None, None, False),
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
    "record", [LogIn("root", PASSWORD, "unix"), ChangeAccount(ASKER, "x", PASSWORD, None, None, False)]
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
        refusals.to_error(Refused("SystemExit", "", "", False, 0.0))


class Shared:
    """The first process's sessions and the replicas of two workers, as far as they have confirmed."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.told: list[Record] = []
        self.sessions = SharedSessions(self.clock.seconds, IDLE_S, self.told.append, self._confirm)
        self.ended: list[str] = []
        self.replicas = [Replica(self.clock.seconds, IDLE_S, lambda each: self.ended.append(each.id)) for _ in range(2)]

    async def _confirm(self) -> None:
        for record in self.told:
            for replica in self.replicas:
                if isinstance(record, SessionIs):
                    replica.learn(record)
                else:
                    assert isinstance(record, SessionEnded)
                    replica.forget(record.id)
        self.told.clear()

    def settle(self) -> None:
        """Let the replicas take what they were told."""
        assert result_of(Deferred.fromCoroutine(self.sessions.settled())) is None


def test_session_lives_as_long_as_any_worker_uses_it() -> None:
    """Idle is what no worker used: uses on one count for all, and the end comes within seconds of its time."""
    shared = Shared()
    session, token = shared.sessions.open("root", "id", "unix")
    shared.settle()
    for _ in range(5):
        shared.clock.advance(IDLE_S - 1)
        assert shared.replicas[1].use(token) is not None
        used = shared.replicas[1].take_used()
        assert used == Used((session.id,), (0,))
        shared.clock.advance(1)  # on its way
        shared.sessions.used(used)
    assert shared.sessions.all() == [session]
    shared.clock.advance(IDLE_S + GRACE_S)
    assert shared.sessions.all() == []
    shared.settle()
    assert [replica.use(token) for replica in shared.replicas] == [None, None]
    assert shared.replicas[0].take_used() is None


def test_use_that_is_told_late_does_not_make_a_session_newer() -> None:
    """The order in which sessions are evicted is that of their uses."""
    shared = Shared()
    first, token = shared.sessions.open("root", "id", "unix")
    shared.settle()
    shared.replicas[0].use(token)
    shared.clock.advance(1)
    second, _ = shared.sessions.open("root", "id", "unix")
    used = shared.replicas[0].take_used()
    assert used is not None
    shared.sessions.used(replace(used, ids=(*used.ids, "gone"), ages_ms=(*used.ages_ms, 0)))
    assert shared.sessions.all() == [first, second]


def test_session_whose_account_is_closed_ends_here_first() -> None:
    """A worker that finds it forgets it at once, and tells of it once; whoever holds it sees that it is closed."""
    shared = Shared()
    session, token = shared.sessions.open("root", "id", "unix")
    shared.settle()
    known = shared.replicas[0].find(session.id)
    assert known is not None
    shared.replicas[0].close(known)
    shared.replicas[0].close(known)
    assert known.is_closed
    assert shared.replicas[0].use(token) is None
    assert shared.ended == [session.id]


def test_change_of_a_session_reaches_who_holds_it() -> None:
    """A request under way sees the password that its own session sets."""
    shared = Shared()
    session, _ = shared.sessions.open("root", "old", "unix")
    shared.settle()
    held = shared.replicas[0].find(session.id)
    assert held is not None
    shared.sessions.expect_password(session, "new")
    shared.settle()
    assert (held.password_id, held.next_password_id) == ("old", "new")
    shared.sessions.password_set(session, "new")
    shared.settle()
    assert held.password_id == "new"  # noqa: S105  # names of passwords


def test_replica_is_bounded() -> None:
    """More sessions than there may be are nonsense, and so is a digest that is none."""
    shared = Shared()
    for number in range(LIMIT):
        shared.replicas[0].learn(replace(SESSION, id=str(number), token_sha256=f"{number:064x}"))
    with pytest.raises(RecordRefused):
        shared.replicas[0].learn(SESSION)
    with pytest.raises(RecordRefused):
        shared.replicas[1].learn(replace(SESSION, token_sha256="x"))  # noqa: S106  # no digest


def test_each_worker_gets_its_part(tmp_path: Path) -> None:
    """What is counted in each worker is divided among them, rounded up; all else is the same, over the pipe as well."""
    options = (
        ("unix:a",),
        (),
        None,
        "tcp:80",
        False,
        None,
        None,
        None,
        "cn",
        "accounts",
        "bmc-proxy",
        1800,
        512,
        1000,
        0,
        30,
    )
    config = Config(tmp_path, *options, workers=3)
    share = share_of(config)
    assert (share.max_connections, share.requests_per_s, share.max_waiting) == (171, 334, 0)
    assert replace(share, max_connections=512, requests_per_s=1000) == config
    assert config_from_json(config_to_json(share)) == share


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"state_dir": 1}'])
def test_configuration_that_is_none(text: str) -> None:
    """What is not a configuration is refused."""
    with pytest.raises(RecordRefused):
        config_from_json(text)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("what", ["short", "traceback", "field", "odd field"])
def test_lines_are_written_whole(as_json: bool, what: str) -> None:
    """However much an event says, its line is one write of no more than a pipe takes whole, and says whose it is."""
    written: list[bytes] = []
    line: dict[str, object] = {"time": "now", "level": "info", "source": "x", "event": "happened"}
    if what == "traceback":
        line["traceback"] = "first\n" + "\u00e4\n" * 9000 + "last"
    elif what != "short":
        line["field"] = ("\U0001f600" if what == "odd field" else "x") * 9000
    SharedLineObserver(written.append, as_json, worker=2).write(line)
    [octets] = written
    assert len(octets) <= LINE_LIMIT
    assert octets.endswith(b"\n")
    text = octets.decode()
    if as_json:
        found = json.loads(text)
        assert found["worker"] == 2
        assert found["event"] == "happened"
    else:
        assert "worker=2" in text
        assert "happened" in text
    if what == "traceback":
        assert "last" in text


def test_password_that_is_set_waits_for_the_workers(tmp_path: Path) -> None:
    """A new password is stored only when every worker knows which session it does not end."""
    from twisted.internet.defer import maybeDeferred

    from bmc_proxy.checkers import AccountChecker
    from bmc_proxy.logins import Logins
    from bmc_proxy.turns import Turns

    accounts, confirmed, told = AccountStore(tmp_path), [Deferred[None](), Deferred[None]()], list[Record]()
    accounts.add(Account("root", Role.ADMINISTRATOR, None))
    waiting_for = iter(confirmed)

    async def confirm() -> None:
        await next(waiting_for)

    sessions, turns = SharedSessions(Clock().seconds, IDLE_S, told.append, confirm), Turns()
    logins = Logins(accounts, AccountChecker(accounts, maybeDeferred), turns, Clock().seconds)
    administration = OwnAdministration(accounts, sessions, logins, turns, maybeDeferred)
    before = accounts.all()["root"]
    session, _ = sessions.open("root", before.password_id, "unix")
    caller = Caller("root", "token", "unix", before.role.privileges, session=session)
    change = Deferred.fromCoroutine(administration.change_account(caller, "root", password=PASSWORD))
    assert accounts.all()["root"] == before
    confirmed[0].callback(None)
    account = result_of(change)
    assert isinstance(account, Account)
    first, expected, after = (each for each in told if isinstance(each, SessionIs))
    assert first.next_password_id is None
    assert expected.next_password_id == after.password_id == account.password_id
    # The end of a session is told, and waited for in the same way.
    ending = Deferred.fromCoroutine(OwnEntrance(logins, sessions).end(session, caller))
    assert result_of(ending) is None
    assert told[-1] == SessionEnded(session.id)
    assert not ending.called
    confirmed[1].callback(None)
    assert ending.called
