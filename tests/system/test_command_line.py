"""The command line: where a setting comes from, what is refused, and what a user is told."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.processes import BIN, Process, port_of, run, running_pair, start_agent

COMMANDS = [
    ("vmi-agent", "serve"),
    ("vmi-agent", "ca", "init"),
    ("vmi-agent", "ca", "show"),
    ("vmi-agent", "profiles", "check"),
    ("vmi-agent", "certs", "list"),
    ("vmi-agent", "certs", "show"),
    ("vmi-agent", "channel", "init"),
    ("vmi-agent", "channel", "hand-over"),
    ("bmc-proxy", "serve"),
    ("bmc-proxy", "account", "add"),
    ("bmc-proxy", "account", "list"),
    ("bmc-proxy", "account", "remove"),
    ("bmc-proxy", "account", "set-password"),
]
LOOPBACK = "tcp:0:interface=127.0.0.1"
AGENT = ("vmi-agent", "serve", "--listen", LOOPBACK)
PROXY = ("bmc-proxy", "serve", "--agent", "tcp:127.0.0.1:1", "--http", LOOPBACK, "--anonymous-loopback")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    """Every command's --help shows how it is called, and takes --state-dir and --config."""
    text = run(*command, "--help").stdout

    assert f"Example: {' '.join(command)} " in " ".join(text.split())
    assert "--state-dir" in text
    assert "--config" in text


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("vmi-agent", "serve"), "--listen ENDPOINT"),
        (("vmi-agent", "serve", "--listen", "tcp:7700"), "'tcp:7700' is refused: plain TCP knows no peer"),
        (("vmi-agent", "serve", "--listen", "tsl:7700"), "'tsl' is not tls, tcp or unix. Accepted: tls:PORT, "),
        (("vmi-agent", "serve", "--listen", "7700"), "'7700' is not tls, tcp or unix"),
        (("vmi-agent", "serve", "--listen", ""), "'' is not tls, tcp or unix"),
        ((*PROXY, "--agent", "tsl:127.0.0.1:7700"), "'tsl' is not tls, tcp or unix. Accepted: tls:HOST:PORT, "),
        ((*PROXY, "--agent", "foo:1"), "'foo' is not tls, tcp or unix"),
        ((*PROXY, "--agent", "TCP:127.0.0.1:7700"), "'TCP' is not tls, tcp or unix"),
        (("vmi-agent", "serve", "--listen", "tcp:7700:interface=0.0.0.0"), "'tcp:7700:interface=0.0.0.0'"),
        (("vmi-agent", "serve", "--listen", "tcp:7700:interface=localhost"), "127.0.0.1"),
        (("vmi-agent", "serve", "--listen", "tcp:x:interface=127.0.0.1"), "'tcp:x:interface=127.0.0.1'"),
        (("vmi-agent", "serve", "--listen", r"tcp:0:interface=127.0.0.1:inter\face=0.0.0.0"), "is refused"),
        (("vmi-agent", "serve", "--listen", "tcp:65536:interface=127.0.0.1"), "not in 0 to 65535"),
        (("vmi-agent", "serve", "--listen", "tcp:-1:interface=127.0.0.1"), "not in 0 to 65535"),
        ((*PROXY, "--agent", "tcp:host=127.0.0.1:port=7700:host=192.0.2.1"), "is refused"),
        ((*PROXY, "--agent", r"tcp:host=127.0.0.1:port=7700:ho\st=192.0.2.1"), "is refused"),
        ((*AGENT, "--publish-at", "https://bmc.example.com/pki"), "'https://bmc.example.com/pki' is refused"),
        ((*AGENT, "--publish-at", "http://[::1"), "'http://[::1' is refused"),
        ((*AGENT, "--window", "0"), "1<=x<=4096"),
        ((*AGENT, "--window", "many"), "many"),
        ((*AGENT, "--log-format", "xml"), "'text', 'json'"),
        (("bmc-proxy", "serve", "--http", LOOPBACK, "--anonymous-loopback"), "--agent ENDPOINT"),
        ((*PROXY[:4], "--anonymous-loopback"), "--http ENDPOINT"),
        ((*PROXY, "--http", "tcp:8080"), "'tcp:8080'"),
        ((*PROXY[:4], "--http", "tls:8080"), "'tls:8080' is refused"),
        ((*PROXY, "--https", "unix:/tmp/x"), "'unix:/tmp/x' is refused"),
        ((*PROXY, "--https", "tcp:x"), "'tcp:x' is not an endpoint"),
        ((*PROXY, "--https-key", "x.pem"), "--https-certificate"),
        ((*PROXY, "--session-idle-s", "29"), "30<=x<=86400"),
        ((*PROXY, "--session-idle-s", "86401"), "30<=x<=86400"),
        ((*PROXY, "--client-user", "dn"), "'cn', 'upn'"),
        ((*PROXY, "--agent", "tls:127.0.0.1"), "'tls:127.0.0.1' is not an endpoint"),
        ((*PROXY, "--http", "tcp:8080:interface=\\:\\:"), "loopback"),
        ((*PROXY, "--agent", "tcp:127.0.0.1"), "'tcp:127.0.0.1'"),
        ((*PROXY, "--agent", "tcp:192.0.2.1:7700"), "'tcp:192.0.2.1:7700' is refused"),
        ((*PROXY, "--agent", "tcp:127.0.0.1:99999"), "not in 0 to 65535"),
        ((*PROXY, "--deadline-s", "0"), "1<=x<=300"),
        (("vmi-agent", "ca", "init", "--key-type", "dsa"), "'p256', 'p384'"),
    ],
)
def test_bad_setting_is_named(tmp_path: Path, command: tuple[str, ...], told: str) -> None:
    """A refused value ends the command with status 2; the option, the value and what is accepted are told."""
    done = run(*command, "--state-dir", str(tmp_path))

    assert done.returncode == 2, done.stderr
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("windw = 1", "unknown key 'windw' (value 1); accepted keys: "),
        ('window = "many"', "key 'window' has the value 'many'; accepted: a whole number from 1 to 4096"),
        ("window = 4097", "key 'window' has the value 4097; accepted: a whole number from 1 to 4096"),
        ("window = true", "key 'window' has the value True; accepted: a whole number from 1 to 4096"),
        ('listen = "tcp:1"', "key 'listen' has the value 'tcp:1'; accepted: a list, each item a string: ENDPOINT"),
        ("listen = [1]", "key 'listen' has the value [1]; accepted: a list"),
        ('log_format = "xml"', "key 'log_format' has the value 'xml'; accepted: one of \"text\", \"json\""),
        ('key_type = "dsa"', "key 'key_type' has the value 'dsa'; accepted: one of \"p256\""),
        ('listen = ["tcp:1"]', "--listen 'tcp:1' is refused"),
        ("window = ", "Invalid value"),
        (f"window = {'9' * 5000}", "agent.toml: a number of too many digits"),
        (f"window = {'[' * 5000}", "agent.toml: lists or tables too deep inside one another"),
        ('state_dir = "a\\u0000b"', "key 'state_dir' has the value 'a\\x00b'; accepted: a string: DIR"),
        ('profiles = "a\\u0000b"', "key 'profiles' has the value 'a\\x00b'; accepted: a string: FILE"),
        ('listen = ["unix:a\\u0000b"]', "key 'listen' has the value ['unix:a\\x00b']; accepted: a list, each item"),
    ],
)
def test_bad_key_in_the_file_is_named(tmp_path: Path, line: str, told: str) -> None:
    """A refused key of the configuration file is told with its value and what is accepted; status 2."""
    config = tmp_path / "agent.toml"
    config.write_text(line + "\n")

    done = run("vmi-agent", "serve", "--config", str(config), "--state-dir", str(tmp_path))

    assert done.returncode == 2, done.stderr
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_setting_comes_from_option_then_environment_then_file(tmp_path: Path) -> None:
    """The option wins, then the environment, then the file."""
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path / "file"}"\nkey_type = "p256"\nlisten = ["{LOOPBACK}"]\nwindow = 7\n')
    command = [str(BIN / "vmi-agent"), "ca", "init", "--config", str(config)]
    environment = os.environ | {"VMI_AGENT_STATE_DIR": str(tmp_path / "environment")}
    option = ["--state-dir", str(tmp_path / "option")]

    subprocess.run(command, check=True)
    subprocess.run(command, env=environment, check=True)
    subprocess.run(command + option, env=environment, check=True)

    for name in ("file", "environment", "option"):
        shown = run("vmi-agent", "ca", "show", "--state-dir", str(tmp_path / name), "--json")
        assert json.loads(shown.stdout)["root_generation"] == 1


def test_file_configures_serve(tmp_path: Path) -> None:
    """`serve` runs from its file alone."""
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path / "state"}"\nlisten = ["{LOOPBACK}"]\nwindow = 7\n')
    with Process("vmi-agent", "serve", "--config", str(config)) as agent:
        assert port_of(agent.wait_for("ready")["listen"][0]) > 0
        assert agent.stop() == 0


def test_ca_init_never_replaces_a_ca(tmp_path: Path) -> None:
    """A second `ca init` changes nothing and says so."""
    state = ["--state-dir", str(tmp_path)]
    assert run("vmi-agent", "ca", "init", *state, "--key-type", "ed25519").returncode == 0
    before = run("vmi-agent", "ca", "show", *state).stdout

    again = run("vmi-agent", "ca", "init", *state)

    assert (again.returncode, again.stderr) == (1, f"Error: {tmp_path} holds a CA already. Nothing was changed.\n")
    assert run("vmi-agent", "ca", "show", *state).stdout == before


def test_ca_init_while_the_agent_runs(tmp_path: Path) -> None:
    """What would change the state of a running agent is refused."""
    with start_agent(tmp_path) as agent:
        agent.wait_for("ready")
        done = run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path))
    assert done.returncode == 1
    assert "in use by another process" in done.stderr


def test_serve_with_the_default_key_type(tmp_path: Path) -> None:
    """Without `ca init` the first start makes a P-384 CA."""
    with start_agent(tmp_path) as agent:
        assert agent.wait_for("CA made")["key_type"] == "p384"


def test_serve_with_a_key_that_others_can_read(tmp_path: Path) -> None:
    """The agent does not start on a key that others can read; one line says what to do, status 1."""
    assert run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path)).returncode == 0
    key = tmp_path / "ca" / "1" / "key.pem"
    key.chmod(0o640)

    with start_agent(tmp_path) as agent:
        assert f"chmod 600 {key}" in agent.wait_for("cannot start")["reason"]
        assert agent.wait() == 1


def test_serve_on_a_port_that_is_taken(tmp_path: Path) -> None:
    """A taken port is named in one line, for either process; status 1."""
    with running_pair(tmp_path / "first") as pair:
        with start_agent(tmp_path / "second", pair.agent_port) as agent:
            assert str(pair.agent_port) in agent.wait_for("cannot start")["reason"]
            assert agent.wait() == 1
        taken = f"tcp:{port_of(pair.url)}:interface=127.0.0.1"
        done = run(*PROXY[:4], "--http", taken, "--anonymous-loopback", "--state-dir", str(tmp_path / "third"))
    assert done.returncode == 1
    assert "cannot start" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_without_the_ledger_of_its_ca(tmp_path: Path) -> None:
    """A CA whose ledger is gone is not served, and what the message offers works."""
    state = ["--state-dir", str(tmp_path)]
    assert run("vmi-agent", "ca", "init", *state).returncode == 0
    ledger = tmp_path / "ledger.sqlite"
    ledger.unlink()
    with start_agent(tmp_path) as agent:
        assert f"touch {ledger}" in agent.wait_for("cannot start")["reason"]
        assert agent.wait() == 1

    ledger.touch()
    with start_agent(tmp_path) as agent:
        agent.wait_for("ready")


def test_serve_makes_the_ca_that_is_asked_for(tmp_path: Path) -> None:
    """`serve` takes the key type, from wherever settings come."""
    config = tmp_path / "agent.toml"
    config.write_text('key_type = "p256"\n')
    with start_agent(tmp_path / "state", 0, "--config", str(config)) as agent:
        assert agent.wait_for("CA made")["key_type"] == "p256"


def test_unix_socket_is_private_and_comes_back(tmp_path: Path) -> None:
    """A unix socket is 0600; one that a killed process left is replaced, one that is in use is not."""
    channel = tmp_path / "a.sock"
    command = ["vmi-agent", "serve", "--listen", f"unix:{channel}", "--state-dir"]
    for _ in range(2):
        with Process(*command, str(tmp_path / "state")) as agent:
            agent.wait_for("ready")
            assert channel.stat().st_mode & 0o777 == 0o600
            with Process(*command, str(tmp_path / "other")) as second:
                assert f"cannot listen on unix:{channel}" in second.wait_for("cannot start")["reason"]
                assert second.wait() == 1
            assert channel.exists()
            agent.stop(signal.SIGKILL)


def test_unix_socket_in_no_directory(tmp_path: Path) -> None:
    """Where the socket cannot be made that is told in one line."""
    with Process("vmi-agent", "serve", "--state-dir", str(tmp_path), "--listen", "unix:/nonexistent/a.sock") as agent:
        assert "/nonexistent/a.sock" in agent.wait_for("cannot start")["reason"]
        assert agent.wait() == 1


def test_ca_show_needs_no_key(tmp_path: Path) -> None:
    """The trust anchor is public: it is shown whatever became of the key."""
    assert run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path)).returncode == 0
    (tmp_path / "ca" / "1" / "key.pem").unlink()

    assert "BEGIN CERTIFICATE" in run("vmi-agent", "ca", "show", "--state-dir", str(tmp_path)).stdout


@pytest.mark.parametrize("program", ["vmi-agent", "bmc-proxy"])
def test_version(program: str) -> None:
    """Both programs tell their version."""
    assert run(program, "--version").stdout.startswith(f"{program}, version ")


def test_certs_list_without_a_ledger(tmp_path: Path) -> None:
    """Where no agent ever served there is nothing to list, and that is said."""
    done = run("vmi-agent", "certs", "list", "--state-dir", str(tmp_path))

    assert done.returncode == 1
    assert done.stderr.startswith("Error: no ledger in ")


def test_certs_list_that_is_empty(tmp_path: Path) -> None:
    """An empty ledger lists as an empty array."""
    with start_agent(tmp_path) as agent:
        agent.wait_for("ready")
        assert run("vmi-agent", "certs", "list", "--state-dir", str(tmp_path), "--json").stdout == "[]\n"


def test_certs_show_of_something_else(tmp_path: Path) -> None:
    """A serial number that is not hexadecimal is a usage error."""
    done = run("vmi-agent", "certs", "show", "xyz", "--state-dir", str(tmp_path))

    assert done.returncode == 2
    assert "'xyz' is not 1 to 34 hexadecimal digits" in done.stderr


def test_process_that_is_told_twice_to_stop(tmp_path: Path) -> None:
    """A second signal changes nothing: status 0, and no traceback."""
    with start_agent(tmp_path) as agent:
        agent.wait_for("ready")
        for _ in range(3):
            agent.send_signal(signal.SIGTERM)
        assert agent.wait() == 0

    assert "Traceback" not in "".join(agent.lines)
