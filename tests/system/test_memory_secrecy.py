"""The agent's memory stays its own: no core file, and no look into it for another process of the same user."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from support.needs import need
from support.processes import BIN, START_S, port_of, run, start_agent

NOBODY = 65534
# Another user than root, who can read this checkout all the same, wherever it is.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
AS_NOBODY += ["--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override"]
AS_OTHER_USER = AS_NOBODY if os.geteuid() == 0 else []


def core_limits(pid: int) -> list[str]:
    """Return soft and hard limit of a process's core files."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4:6] for line in lines if line.startswith("Max core file size"))


def can_read(pid: int) -> bool:
    """Return whether another process of the same user can look into one."""
    done = subprocess.run([*AS_OTHER_USER, "cat", f"/proc/{pid}/environ"], capture_output=True, check=False)
    return done.returncode == 0


def test_agent_writes_no_core_file(tmp_path: Path) -> None:
    """The running agent's limit is 0, soft and hard; a process that did nothing of the kind has what it was given."""
    with start_agent(tmp_path) as agent:
        assert port_of(agent.wait_for("ready")["listen"][0])
        assert core_limits(agent.pid) == ["0", "0"]


def test_agent_is_closed_to_its_own_user(tmp_path: Path) -> None:
    """An agent that is not root's: its files below /proc are root's, and its user's other processes read none."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    if os.geteuid() == 0:
        need("setpriv")
        os.chown(state, NOBODY, NOBODY)
        _open_way_to(state)
    command = [str(BIN / "vmi-agent"), "serve", "--state-dir", str(state), "--listen", "tcp:0:interface=127.0.0.1"]
    command += ["--log-format", "json"]
    with (
        subprocess.Popen([*AS_OTHER_USER, *command], stderr=subprocess.PIPE, text=True) as agent,
        subprocess.Popen([*AS_OTHER_USER, "sleep", "600"]) as other,
    ):
        assert agent.stderr is not None
        try:
            while '"ready"' not in (line := agent.stderr.readline()):
                assert line, "the agent ended"
            assert Path(f"/proc/{agent.pid}/mem").stat().st_uid == 0
            assert not can_read(agent.pid)
            assert can_read(other.pid)
        finally:
            agent.kill()
            other.kill()


@pytest.mark.parametrize("command", [["ca", "init"], ["backup"], ["ca", "rotate"]])
def test_commands_that_open_keys(tmp_path: Path, command: list[str]) -> None:
    """They have made themselves closed before they read a passphrase: seen while they wait for one."""
    if command != ["ca", "init"]:
        assert run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path / "state")).returncode == 0
    target = [str(tmp_path / "backup.tar")] if command == ["backup"] else []
    reading, writing = os.pipe()
    words = [str(BIN / "vmi-agent"), *command, "--state-dir", str(tmp_path / "state"), *target]
    with subprocess.Popen([*words, "--key-passphrase-fd", str(reading)], pass_fds=[reading]) as process:
        os.close(reading)
        # It cannot get past the reading of the passphrase: whatever it has done was done before.
        until = time.monotonic() + START_S
        while core_limits(process.pid) != ["0", "0"] and time.monotonic() < until:
            assert process.poll() is None
        limits = core_limits(process.pid)
        os.close(writing)
        process.wait(60)

    assert limits == ["0", "0"]


def _open_way_to(path: Path) -> None:
    """Let another user through to a directory below pytest's own, which are closed to others.

    The agent asks access(2) about it, which counts no capabilities.
    """
    for parent in path.parents:
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith(("pytest", "popen", "test_")):
            parent.chmod(0o711)
