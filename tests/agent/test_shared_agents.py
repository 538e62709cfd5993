"""Real agents on one state directory: who may share it, and what they give to one and the same question.

VMI_TEST_STARTS and VMI_TEST_QUESTIONS make it longer: how often two agents start at the same instant on an empty
directory, and how many questions both are asked at once.
"""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from support.agents import request
from support.csrs import make_csr
from support.processes import Process, port_of, run, start_agent
from support.raw_asker import RawAsker
from support.sharing import events

from protocol.records import Answer, Signed
from vmi_agent.ledger.schema import FILE_NAME

STARTS = int(os.environ.get("VMI_TEST_STARTS", "2"))
QUESTIONS = int(os.environ.get("VMI_TEST_QUESTIONS", "100"))
# How often it is tried to find an agent between its intent and its signature.
TRIES = 200
CSR = make_csr()
KEY_TYPE = ("--key-type", "p256")


def start_shared(state: Path, *options: str) -> Process:
    """Start an agent that shares its state directory."""
    return start_agent(state, 0, "--shared", *KEY_TYPE, *options)


def asker_of(agent: Process) -> RawAsker:
    """Wait until an agent is ready; return a connection to it."""
    return RawAsker(port_of(agent.wait_for("ready")["listen"][0]))


@contextmanager
def two_agents(state: Path, *options: str) -> Iterator[tuple[tuple[Process, RawAsker], tuple[Process, RawAsker]]]:
    """Run two agents on one state directory, with a connection to each."""
    with ExitStack() as opened:
        agents = [opened.enter_context(start_shared(state, *options)) for _ in "ab"]
        one, other = ((agent, opened.enter_context(asker_of(agent))) for agent in agents)
        yield one, other


def leaf_in(answer: Answer) -> bytes:
    """Return the leaf that was answered."""
    assert isinstance(answer, Signed), answer
    return answer.chain[0]


def assert_verifies(state: Path) -> None:
    """The command finds nothing wrong with the audit."""
    done = run("vmi-agent", "audit", "verify", "--state-dir", str(state))
    assert done.returncode == 0, done.stderr


def test_shared_and_unshared_exclude_each_other(tmp_path: Path) -> None:
    """Whoever does not share is refused beside those who do, and the other way round; each is told what to do."""
    with start_agent(tmp_path, 0, *KEY_TYPE) as alone:
        alone.wait_for("ready")
        with start_shared(tmp_path) as refused:
            assert "does not share it" in refused.wait_for("cannot start")["reason"]
            assert refused.wait() == 1
        assert alone.stop() == 0
    with Process("vmi-agent", "serve", "--state-dir", str(tmp_path), "--listen", "tcp:0:interface=127.0.0.1",
                 VMI_AGENT_SHARED="1") as one, start_shared(tmp_path) as other:  # fmt: skip
        one.wait_for("ready")
        other.wait_for("ready")
        with start_agent(tmp_path, 0) as refused:
            assert "--shared as well" in refused.wait_for("cannot start")["reason"]
            assert refused.wait() == 1
        assert run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path)).returncode == 1
        assert (one.stop(), other.stop()) == (0, 0)
    told = events(tmp_path)
    assert (told.count("ca made"), told.count("started"), told.count("stopped")) == (1, 3, 3)


def test_ephemeral_ca_is_not_shared(tmp_path: Path) -> None:
    """A key that is in one process's memory is no other one's: the two options are refused together."""
    with start_shared(tmp_path, "--ephemeral-ca") as refused:
        assert refused.wait() == 2
    told = "".join(refused.lines)
    assert "--ephemeral-ca" in told
    assert "--shared" in told


def test_two_start_at_the_same_instant(tmp_path: Path) -> None:
    """On an empty directory one of them makes the CA, and both serve with it."""
    for number in range(STARTS):
        state = tmp_path / str(number)
        with two_agents(state) as both:
            leaves = set()
            for _, asker in both:
                asker.ask(request(CSR))
                [answer] = asker.answers(1).values()
                leaves.add(leaf_in(answer))
            assert len(leaves) == 1
            assert [agent.stop() for agent, _ in both] == [0, 0]
        told = events(state)
        assert [told.count(each) for each in ("ca made", "started", "signing", "signed")] == [1, 2, 1, 1]
        assert [each.name for each in (state / "ca").iterdir()] == ["1"]


def test_both_are_asked_the_same_at_once(tmp_path: Path) -> None:
    """Each question has one certificate, whichever agent answers, and whoever was first."""
    with two_agents(tmp_path) as both:
        questions = [request(CSR, user=f"hmc{number}") for number in range(QUESTIONS)]
        ids = [asker.ask(*questions) for _, asker in both]
        found = [asker.answers(QUESTIONS) for _, asker in both]
        leaves = [[leaf_in(answers[each]) for each in asked] for answers, asked in zip(found, ids, strict=True)]
        assert leaves[0] == leaves[1]
        assert len(set(leaves[0])) == QUESTIONS
        assert [agent.stop() for agent, _ in both] == [0, 0]
    assert events(tmp_path).count("signed") == QUESTIONS
    assert_verifies(tmp_path)


def caught_between(agent: Process, asker: RawAsker, state: Path) -> str:
    """Ask an agent until it is stopped after an intent and before its signature; return who asked."""
    with closing(sqlite3.connect(state / FILE_NAME, isolation_level=None, timeout=0)) as ledger:
        for number in range(TRIES):
            user = f"hmc{number}"
            asker.ask(request(CSR, user=user))
            while not (status := _status(ledger, user)):
                pass
            if status == "pending":
                agent.send_signal(signal.SIGSTOP)
                assert os.waitid(os.P_PID, agent.pid, os.WSTOPPED) is not None  # all of its threads are
                if _status(ledger, user) == "pending" and _can_be_written(ledger):
                    return user
                agent.send_signal(signal.SIGCONT)
            asker.answers(number + 1)
    raise AssertionError("the agent was never found between an intent and its signature")


def _status(ledger: sqlite3.Connection, user: str) -> str:
    row = ledger.execute("SELECT status FROM issuance WHERE user = ?", (user,)).fetchone()
    return row[0] if row else ""


def _can_be_written(ledger: sqlite3.Connection) -> bool:
    try:
        ledger.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False  # it was stopped while it was recording the signature
    ledger.execute("ROLLBACK")
    return True


@pytest.mark.parametrize("then", [signal.SIGCONT, signal.SIGKILL])
def test_agent_stopped_between_intent_and_signature(tmp_path: Path, then: int) -> None:
    """The other agent completes what the stopped one began; where that one goes on, it answers with the same."""
    with two_agents(tmp_path, "--signers", "1") as ((agent, asker), (other, other_asker)):
        user = caught_between(agent, asker, tmp_path)
        other_asker.ask(request(CSR, user=user))
        [answer] = other_asker.answers(1).values()
        leaf = leaf_in(answer)
        agent.send_signal(then)
        if then == signal.SIGCONT:
            *_, last = asker.answers(int(user.removeprefix("hmc")) + 1).items()
            assert leaf_in(last[1]) == leaf
            assert agent.stop() == 0
        else:
            assert agent.wait() == -signal.SIGKILL
        assert other.stop() == 0
    told = events(tmp_path)
    assert told.count("signing resumed") == 1
    assert told.count("signing") == told.count("signed")
    assert_verifies(tmp_path)
