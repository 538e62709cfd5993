"""Commands that are killed before or after each of their steps: afterwards the CA is the old or the new one, whole."""

from pathlib import Path

from sqlalchemy import select
from support.agents import Time, always, load_ca, open_agent
from support.crashes import assert_goes_on, at_each, begin, chosen, crash_command, kept, questions, serve, state_with_ca
from support.faults import run_forked

from runtime.clock import utc_now
from vmi_agent.ca import store as ca_store
from vmi_agent.ledger.schema import issuance, reading

IN_MAKE_TEST = 2
KEY_TYPE = ("--key-type", "p256")


def issue(state: Path) -> list[bytes]:
    """Answer the questions with the parts of an agent, opened on this state; return the leaves."""
    time = Time()
    time.now = utc_now()
    with open_agent(state, time) as agent:
        return [agent.issuing.issue(each, always).chain[0] for each in questions()]


def empty_state(directory: Path) -> Path:
    """Return a state directory with nothing in it."""
    directory.mkdir(mode=0o700)
    return directory


def assert_one_ca(state: Path) -> None:
    """There is one CA, nothing half of another, and it issues."""
    assert len(set(issue(state))) == len(questions())
    assert ca_store.generations(state) == [1]
    assert [each.name for each in (state / "ca").iterdir()] == ["1"]
    kept(state)


def test_first_start_is_killed(tmp_path: Path) -> None:
    """The next start makes the CA, or takes the one that is there."""
    state = empty_state(tmp_path / "agent")
    faults = begin(tmp_path / "count", state)
    with serve(faults.under, faults) as agent:
        agent.wait_for("ready")
        steps = len(faults.calls())

    def crash(point: tuple[str, int]) -> None:
        when, step = point
        faults = begin(tmp_path / f"{when}-{step}", state)
        faults.kill(when, step)
        with serve(faults.under, faults) as agent:
            agent.wait()
        assert_goes_on(faults.under, [], questions())
        assert_one_ca(faults.under)

    at_each(chosen([(when, step) for step in range(1, steps + 1) for when in ("before", "after")], 1), crash)


def test_ca_init_is_killed(tmp_path: Path) -> None:
    """Once more, it makes the CA, or says that there is one."""

    def check(state: Path) -> None:
        again = run_forked("vmi-agent", "ca", "init", *KEY_TYPE, "--state-dir", str(state))
        assert (again.returncode, "holds a CA already" in again.stderr) in ((0, False), (1, True)), again
        assert_one_ca(state)

    state = empty_state(tmp_path / "agent")
    crash_command(tmp_path, state, ("vmi-agent", "ca", "init", *KEY_TYPE), check, IN_MAKE_TEST)


def test_ca_rotate_is_killed(tmp_path: Path) -> None:
    """The CA is the old one, or the new one with its cross-certificates; a rotation works afterwards."""
    state = state_with_ca(tmp_path / "agent")
    before = issue(state)

    def check(state: Path) -> None:
        generations = ca_store.generations(state)
        assert generations in ([1], [1, 2])
        assert (issue(state) == before) == (generations == [1])
        if generations == [1, 2]:
            names = {each.name for each in ca_store.directory_of(state, 2).iterdir()}
            assert names >= {"key.pem", "root.pem", "new-with-old.pem", "old-with-new.pem"}
        again = run_forked("vmi-agent", "ca", "rotate", *KEY_TYPE, "--state-dir", str(state))
        assert again.returncode == 0, again.stderr
        assert load_ca(state).generation == len(generations) + 1
        assert set(before) <= set(kept(state).certificates)

    crash_command(tmp_path, state, ("vmi-agent", "ca", "rotate", *KEY_TYPE), check, IN_MAKE_TEST)


def test_certs_revoke_is_killed(tmp_path: Path) -> None:
    """The certificate is revoked or not; once more, it is, or the command says that it is already."""
    state = state_with_ca(tmp_path / "agent")
    issue(state)
    with reading(state) as connection:
        serial = connection.execute(select(issuance.c.serial)).scalars().first()
    assert serial is not None
    command = ("vmi-agent", "certs", "revoke", serial.hex())

    def check(state: Path) -> None:
        again = run_forked(*command, "--state-dir", str(state))
        assert (again.returncode, "revoked already" in again.stderr) in ((0, False), (1, True)), again
        with reading(state) as connection:
            revoked = connection.execute(select(issuance.c.serial).where(issuance.c.reason.is_not(None))).scalars()
            assert revoked.all() == [serial]
        kept(state)

    crash_command(tmp_path, state, command, check, IN_MAKE_TEST)
