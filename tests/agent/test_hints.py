"""Commands that texts name in backticks: each works when it is pasted, with the state directory that was given."""

import re
import shlex
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from support.agents import Time, create_ca, open_agent
from support.audits import ledger_of
from support.blocking import answer, revoke, serial_in
from support.ca_life_parts import now
from support.offline_root import OfflineRoot
from support.processes import BIN, Process, run, start_agent

from runtime import hints
from runtime.clock import milliseconds, utc_now
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import writing


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return where a state directory is to be; a shell has to quote it."""
    return tmp_path / "the agent's state"


def pasted(text: str, which: int = 0, cwd: Path | None = None) -> tuple[int, str]:
    """Run a command that a text names in a shell; return its exit status and what it printed."""
    named = re.findall(r"`([^`]+)`", text)
    assert named, text
    words = [*shlex.split("env -i"), f"PATH={BIN}:/usr/bin:/bin", "sh", "-c", named[which]]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def refusal(*words: str, status: int = 1) -> str:
    """Run a command of ours that fails; return what it says."""
    done = run(*words)
    assert done.returncode == status, done
    return done.stderr


def test_command_of_a_program_that_was_not_given_a_state_directory() -> None:
    """DIR stands for a directory that this process does not know: such as the agent's, in the proxy."""
    assert hints.command("other-program", "channel init") == "other-program channel init --state-dir DIR"


def test_command_with_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are absolute and quoted; options that open keys go along only with a command that takes them."""
    monkeypatch.chdir(tmp_path)
    hints.remember("some-program", {"--state-dir": Path("my state"), "--pkcs11-token": "a b"})
    state = f"--state-dir '{tmp_path}/my state'"
    assert hints.command("some-program", "x y") == f"some-program x y {state}"
    assert hints.command("some-program", "x --a b", opens_keys=True) == (
        f"some-program x {state} --pkcs11-token 'a b' --a b"
    )
    assert hints.given("some-program", "--pkcs11-token", "FILE") == "'a b'"
    assert hints.given("some-program", "--other", "FILE") == "FILE"


def test_no_ca_yet(state: Path) -> None:
    """`ca show` of an empty directory names `ca init`, which makes the CA."""
    assert pasted(refusal("vmi-agent", "ca", "show", "--state-dir", str(state)))[0] == 0
    assert run("vmi-agent", "ca", "show", "--state-dir", str(state)).returncode == 0


def test_state_directory_that_comes_from_the_environment(state: Path, tmp_path: Path) -> None:
    """A hint names the directory also where it was given by a file, relative to where the command was run."""
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{state}"\n')
    assert pasted(refusal("vmi-agent", "ca", "show", "--config", str(config)))[0] == 0
    assert (state / "ca" / "1").is_dir()


def test_ledger_that_is_gone(state: Path) -> None:
    """An agent whose ledger is gone names how to begin an empty one."""
    create_ca(state, now=utc_now())
    ledger_of(state).unlink()
    with start_agent(state) as agent:
        told = agent.wait_for("cannot start")["reason"]
    assert pasted(told)[0] == 0
    with start_agent(state) as agent:
        agent.wait_for("ready")


def test_clock_before_the_last_row(state: Path) -> None:
    """An agent that does not start for its clock names `audit accept-clock`, and starts after it."""
    create_ca(state, now=utc_now())
    with writing(state) as connection:
        audit_chain.append(connection, [Event("stopped", milliseconds(utc_now() + timedelta(days=1)), {})])
    with start_agent(state) as agent:
        told = agent.wait_for("cannot start")["reason"]
    assert pasted(told)[0] == 0
    with start_agent(state) as agent:
        agent.wait_for("ready")


def test_ephemeral_ca_that_is_gone(state: Path) -> None:
    """An agent that finds only an ephemeral CA names `ca rotate`, and starts after it."""
    with start_agent(state, 0, "--ephemeral-ca", "--key-type", "p256") as agent:
        agent.wait_for("ready")
        assert agent.stop() == 0
    with start_agent(state) as agent:
        told = agent.wait_for("cannot start")["reason"]
    assert pasted(told)[0] == 0
    with start_agent(state) as agent:
        agent.wait_for("ready")


def test_key_that_is_not_encrypted(state: Path, tmp_path: Path) -> None:
    """Where a passphrase is given for a key that has none, `ca encrypt` gives it that one."""
    create_ca(state, now=utc_now())
    passphrase = tmp_path / "the passphrase"
    passphrase.write_text("secret phrase\n")
    passphrase.chmod(0o600)
    words = ("vmi-agent", "ca", "rotate", "--state-dir", str(state), "--key-passphrase-file", str(passphrase))
    assert pasted(refusal(*words))[0] == 0
    assert run(*words).returncode == 0


def test_offline_root(state: Path, tmp_path: Path) -> None:
    """`ca rotate` under an offline root names `ca csr` and `ca install-chain`; before the first one, the second too."""
    state.mkdir(mode=0o700)
    told = refusal("vmi-agent", "ca", "install-chain", "--state-dir", str(state), __file__)
    assert pasted(told, cwd=tmp_path)[0] == 0
    with start_agent(state) as agent:
        told = agent.wait_for("cannot start")["reason"]
    root = OfflineRoot(tmp_path / "root")
    chain = root.sign((tmp_path / "issuing.csr").read_bytes())
    (tmp_path / "chain.pem").write_bytes(chain)
    assert pasted(told, cwd=tmp_path)[0] == 0

    told = refusal("vmi-agent", "ca", "rotate", "--state-dir", str(state))
    assert pasted(told, cwd=tmp_path)[0] == 0
    (tmp_path / "chain.pem").write_bytes(root.sign((tmp_path / "issuing.csr").read_bytes()))
    assert pasted(told, which=1, cwd=tmp_path)[0] == 0


def test_channel_credentials(state: Path, tmp_path: Path) -> None:
    """An agent without credentials for `tls:` names the two commands that make them and move the proxy's."""
    command = ("vmi-agent", "serve", "--state-dir", str(state), "--listen", "tls:0:interface=127.0.0.1")
    with Process(*command) as agent:
        told = agent.wait_for("cannot start")["reason"]
    assert pasted(refusal("vmi-agent", "channel", "hand-over", "--state-dir", str(state), "--to", "-"))[0] == 0
    shutil.rmtree(state)
    state.mkdir(mode=0o700)
    status, printed = pasted(told, cwd=tmp_path)
    assert status == 0
    assert pasted(printed, cwd=tmp_path)[0] == 0
    assert (tmp_path / "channel.pem").exists()
    assert printed.split("`")[1] == told.split("`")[3]


def test_audit_row_that_cannot_be_read(state: Path) -> None:
    """`audit tail` names `audit verify`, which says what is wrong with the row."""
    create_ca(state, now=utc_now())
    with closing(sqlite3.connect(ledger_of(state))) as connection, connection:
        connection.execute("UPDATE audit SET fields = '{' WHERE id = 1")
    told = refusal("vmi-agent", "audit", "tail", "--state-dir", str(state))
    assert pasted(told) == (1, "Error: audit row 1 was changed\n")


def test_key_that_is_on_hold(state: Path) -> None:
    """`keys unblock` of a key on hold names `certs release`, which frees it."""
    time = Time()
    time.now = now()
    with open_agent(state, time) as agent:
        serial = serial_in(answer(agent))
        revoke(agent, time, serial, Reason.certificateHold)
        key = agent.ledger.read(lambda it: it.exec_driver_sql("SELECT key_sha256 FROM blocked_key").scalar_one())
    status, printed = pasted(refusal("vmi-agent", "keys", "unblock", key.hex(), "--state-dir", str(state)))
    assert (status, printed) == (0, f"released: {serial.hex()}\n")
