"""An agent that is killed before or after each step that makes an issuance durable: nothing is lost, nothing twice.

The steps are not named here: they are the system calls that a run without a crash makes (`faults.c`).
"""

import shutil
import signal
from pathlib import Path

from support.crashes import (
    WHEN,
    ask,
    assert_goes_on,
    at_each,
    begin,
    chosen,
    port_of_agent,
    questions,
    serve,
    state_with_ca,
)

IN_MAKE_TEST = 3


def count_steps(directory: Path, state: Path) -> int:
    """Return how many steps it takes to answer all the questions."""
    faults = begin(directory, state)
    with serve(faults.under, faults) as agent:
        port = port_of_agent(agent)
        before = len(faults.calls())
        assert len(ask(port, questions())) == len(questions())
        return len(faults.calls()) - before


def test_agent_is_killed_at_a_step_of_issuing(tmp_path: Path) -> None:
    """Each received certificate is in the ledger, a retry gets the same one, one for each question."""
    state = state_with_ca(tmp_path / "agent")
    steps = count_steps(tmp_path / "count", state)
    points = [(when, step) for step in range(1, steps + 1) for when in WHEN]
    died: list[int] = []

    def crash(point: tuple[str, int]) -> None:
        when, step = point
        directory = tmp_path / f"{when}-{step}"
        faults = begin(directory, state)
        with serve(faults.under, faults) as agent:
            port = port_of_agent(agent)
            faults.kill(when, len(faults.calls()) + step)
            received = ask(port, questions())
            if len(received) < len(questions()):
                assert agent.wait() == -signal.SIGKILL
                died.append(step)
        assert_goes_on(faults.under, received, questions())
        shutil.rmtree(directory)

    taken = chosen(points, IN_MAKE_TEST)
    at_each(taken, crash)
    print(f"{len(died)} of {len(taken)} killed before the last answer, {steps} steps")
    # The last answer may come before the process dies after the last step, and the steps differ by a few.
    assert len(died) >= len(taken) * 3 // 4
