"""Requests on their way together: each has its own outcome, and none waits for another's key."""

import json
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent, Time, always, open_agent, request
from support.csrs import make_csr
from support.intents import make_intent
from support.sharing import WaitingKey, leaf_of, two_agents, with_key

from protocol.errors import ErrorCode
from protocol.records import Error, Signed
from vmi_agent.errors import ClosedOff, LedgerUnavailable, NotWanted
from vmi_agent.handlers import Outcome
from vmi_agent.issuance.scheduler import Walks
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.issuances import Conflict, Kept, Recorded, Signature
from vmi_agent.ledger.schema import FILE_NAME
from vmi_agent.policy.profile import Profile

KEY = b"k" * 16


class Results:
    """What came of walks, as they end."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def deliver(self, over: Any) -> None:
        """Take what `Walks` delivers."""
        for each in over:
            self._arrived.put(each)

    def failed(self, error: BaseException) -> None:
        """Take what ended the thread of `Walks`."""
        self._arrived.put(("failed", error))

    def take(self, count: int) -> dict[Any, Any]:
        """Wait for so many; return their results by their tokens."""
        return dict(self._arrived.get(timeout=60) for _ in range(count))


@contextmanager
def walking(agent: Agent, at_once: int = 4) -> Iterator[tuple[Walks, Results]]:
    """Run walks on an agent's ledger until the end of the `with`, where all of them are over."""
    results = Results()
    walks = Walks(agent.ledger, results.deliver, at_once, results.failed)
    walks.start()
    try:
        yield walks, results
    finally:
        walks.stop()


def sign(agent: Agent, csr: bytes, still_wanted: Callable[[], None] = always, **options: Any) -> Any:
    """Return the walk of a request."""
    return agent.dispatch.sign(request(csr, **options), sha256(csr).digest(), still_wanted)


def code_of(outcome: Outcome) -> str:
    """Return an outcome's error code, or "signed"."""
    return outcome.answer.code.name if isinstance(outcome.answer, Error) else "signed"


def not_wanted() -> None:
    """Nobody waits any more."""
    raise NotWanted(ErrorCode.DEADLINE)


class Panic(BaseException):
    """What a library raises that gave up."""


def panic() -> None:
    """Give up."""
    raise Panic


def test_walks_have_their_own_outcomes(tmp_path: Path) -> None:
    """What is refused, conflicts, is not wanted, or ends by a panic harms none of those beside it."""
    with open_agent(tmp_path, Time()) as agent, walking(agent) as (walks, results):
        for number in range(20):
            walks.begin(sign(agent, make_csr()), number)
        walks.begin(sign(agent, make_csr(), key=KEY), "first of its key")
        walks.begin(sign(agent, make_csr(), key=KEY), "conflicts")
        walks.begin(sign(agent, b"no CSR"), "refused")
        walks.begin(sign(agent, make_csr(), not_wanted), "late")
        walks.begin(sign(agent, make_csr(), panic), "panics")
        walks.begin(sign(agent, make_csr()), "last")
        found = results.take(26)

    panicked = found.pop("panics")
    assert isinstance(panicked, Panic)
    assert {token: code_of(outcome) for token, outcome in found.items()} == {
        **dict.fromkeys([*range(20), "first of its key", "last"], "signed"),
        "conflicts": "REQUEST_CONFLICT",
        "refused": "CSR_MALFORMED",
        "late": "DEADLINE",
    }
    assert agent.failures == []


def test_walks_give_each_its_own_certificate(tmp_path: Path) -> None:
    """Whoever asks together gets what was asked for, and no other one's."""
    csrs = [make_csr() for _ in range(30)]
    with open_agent(tmp_path, Time()) as agent, walking(agent) as (walks, results):
        for csr in csrs:
            walks.begin(sign(agent, csr), csr)
        found = results.take(len(csrs))
        answers = {csr: outcome.answer for csr, outcome in found.items()}
        again = {csr: agent.sign(request(csr), sha256(csr).digest(), always).answer for csr in csrs}
    assert answers == again
    assert all(isinstance(each, Signed) and each.csr_sha256 == sha256(csr).digest() for csr, each in answers.items())


@pytest.mark.parametrize("key_type", ["p256", "p384", "rsa2048", "mldsa65"])
def test_walks_with_quick_and_slow_keys(tmp_path: Path, key_type: str) -> None:
    """Whether a key signs beside the walks or in threads of its own makes no difference to what is answered."""
    with open_agent(tmp_path, Time(), key_type=key_type) as agent, walking(agent) as (walks, results):
        for number in range(5):
            walks.begin(sign(agent, make_csr()), number)
        assert {code_of(outcome) for outcome in results.take(5).values()} == {"signed"}


def test_walks_do_not_wait_for_a_token(tmp_path: Path) -> None:
    """While a token keeps one request waiting, another key's are answered."""
    with open_agent(tmp_path, Time()) as agent:
        own = agent.generations.current
        key: WaitingKey = with_key(agent, WaitingKey)
        with walking(agent) as (walks, results):
            walks.begin(sign(agent, make_csr()), "waits")
            assert key.asked.wait(60)
            agent.generations.current = own
            for number in range(3):
                walks.begin(sign(agent, make_csr()), number)
            assert {code_of(outcome) for outcome in results.take(3).values()} == {"signed"}
            key.may_sign.set()
            assert [code_of(outcome) for outcome in results.take(1).values()] == ["signed"]


def test_walks_whose_intent_was_closed_off(tmp_path: Path) -> None:
    """A refusal that comes of what was recorded last is told to the audit and answered, though nobody else asks."""
    other_profile = replace(Profile(), validity=timedelta(days=5))
    csr = make_csr()
    with two_agents(tmp_path, Time(), profile=other_profile) as (one, other):
        key: WaitingKey = with_key(one, WaitingKey)
        with walking(one) as (walks, results):
            walks.begin(sign(one, csr), "slow")
            assert key.asked.wait(60)
            leaf_of(other, csr)  # whose certificates are others: it closes off what the first one is at
            key.may_sign.set()
            assert [code_of(outcome) for outcome in results.take(1).values()] == ["FAILED"]


def test_walks_without_threads_to_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system lets the process have no more threads, requests fail, each with an answer; then it goes on."""
    with open_agent(tmp_path, Time(), key_type="p384") as agent, walking(agent) as (walks, results):
        with monkeypatch.context() as no_threads:
            no_threads.setattr(threading.Thread, "start", no_thread)
            walks.begin(sign(agent, make_csr()), "none")
            assert code_of(results.take(1)["none"]) == "FAILED"
        walks.begin(sign(agent, make_csr()), "again")
        assert code_of(results.take(1)["again"]) == "signed"
    assert [str(error) for error in agent.failures] == ["can't start new thread"]


def no_thread(_thread: threading.Thread) -> None:
    """Do as `Thread.start` does where there may be no more."""
    raise RuntimeError("can't start new thread")


def test_walks_that_fail(tmp_path: Path) -> None:
    """What ends the thread is told, so that the process does not look alive when it is not."""
    results = Results()

    def deliver(_over: Any) -> None:
        raise Panic

    with open_agent(tmp_path, Time()) as agent:
        walks = Walks(agent.ledger, deliver, 4, results.failed)
        walks.start()
        walks.begin(sign(agent, b"no CSR"), "refused")
        assert isinstance(results.take(1)["failed"], Panic)


def test_process_ends_where_its_walks_do() -> None:
    """It is gone at once, as if it had been killed, and its log says why."""
    lines = (
        "from runtime.logging import start_logging",
        "from vmi_agent.app import _end_at_once",
        "start_logging('json')",
        "_end_at_once(ZeroDivisionError('of the walks'))",
        "print('lives on')",
    )
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "")
    told = json.loads(ended.stderr)
    assert told["level"] == "critical"
    assert told["event"] == "requests are not gone on with: this process ends"
    assert "ZeroDivisionError: of the walks" in told["traceback"]


def test_walks_stop_when_all_are_over(tmp_path: Path) -> None:
    """What is under way when the end comes is finished first."""
    with open_agent(tmp_path, Time()) as agent:
        key: WaitingKey = with_key(agent, WaitingKey)
        with walking(agent) as (walks, results):
            walks.begin(sign(agent, make_csr()), "under way")
            assert key.asked.wait(60)
            threading.Timer(0, key.may_sign.set).start()
        assert [code_of(outcome) for outcome in results.take(1).values()] == ["signed"]


def test_walks_while_the_ledger_cannot_be_written(tmp_path: Path) -> None:
    """All that are to be recorded fail, each with an answer, and so does the next; nothing is signed."""
    with open_agent(tmp_path, Time()) as agent, walking(agent) as (walks, results):
        signed_before = agent.sign(request(make_csr()), bytes(32), always)
        (tmp_path / FILE_NAME).rename(tmp_path / "elsewhere")
        (tmp_path / FILE_NAME).touch()
        for number in range(10):
            walks.begin(sign(agent, make_csr()), number)
        found = results.take(10)
    assert code_of(signed_before) == "signed"
    assert {code_of(outcome) for outcome in found.values()} == {"FAILED"}


def statements_of(agent: Agent) -> "queue.SimpleQueue[str]":
    """Return a queue that gets each statement with which an agent records."""
    statements: queue.SimpleQueue[str] = queue.SimpleQueue()
    agent.ledger._connection.set_trace_callback(statements.put)
    return statements


def commits_in(statements: "queue.SimpleQueue[str]") -> int:
    """Return how many transactions they were."""
    return sum(statements.get() == "COMMIT" for _ in range(statements.qsize()))


def test_walks_share_transactions(tmp_path: Path) -> None:
    """What arrives while a commit is under way shares the next ones."""
    csrs = [make_csr() for _ in range(9)]
    with open_agent(tmp_path, Time()) as agent, walking(agent) as (walks, results):
        statements = statements_of(agent)
        with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            walks.begin(sign(agent, csrs[0]), 0)
            assert statements.get(timeout=60) == "BEGIN IMMEDIATE"
            for number in range(1, 9):
                walks.begin(sign(agent, csrs[number]), number)
        assert {code_of(outcome) for outcome in results.take(9).values()} == {"signed"}
        # The first intent; its signature and half of the others; their signatures and the rest; those of these.
        assert commits_in(statements) == 4


def test_record_all_is_one_transaction(tmp_path: Path) -> None:
    """Several works are recorded at once, and each leads to what it would have led to alone."""
    first, other = make_intent(1), replace(make_intent(2), idempotency_key=KEY)
    conflicting = replace(make_intent(3), idempotency_key=KEY)
    unknown = Signature(b"u" * 17, b"s", 1, bytes(32), 2, b"")
    with open_agent(tmp_path, Time()) as agent:
        agent.ledger.record_intent(first)
        statements = statements_of(agent)
        signature = Signature(first.serial, b"s", 1, bytes(32), 2, b"")
        *outcomes, closed_off, again = agent.ledger.record_all(
            [other, signature, Event("x", 1, {}), conflicting, unknown, signature]
        )
        assert commits_in(statements) == 1
    assert outcomes == [Recorded(), Kept(b"s", is_first=True), None, Conflict()]
    assert isinstance(closed_off, ClosedOff)
    assert again == Kept(b"s", is_first=False)


def test_record_all_where_it_cannot_be_written(tmp_path: Path) -> None:
    """Each work has an error of its own, and none of them is recorded."""
    with open_agent(tmp_path, Time()) as agent:
        (tmp_path / FILE_NAME).rename(tmp_path / "elsewhere")
        (tmp_path / FILE_NAME).touch()
        one, other = agent.ledger.record_all([make_intent(1), make_intent(2)])
    assert isinstance(one, LedgerUnavailable)
    assert isinstance(other, LedgerUnavailable)
    assert one is not other
