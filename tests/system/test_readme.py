"""README is true: its commands, run as they stand but for ports and directories, do what it says."""

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from support.documents import PATIENCE_S, README, ROOT, Running, block, free_ports
from support.judges import assert_openssl_accepts, split_chain
from support.processes import BIN


def test_readme_ask_and_look_up(running: Running) -> None:
    """The commands to ask for a certificate and to look it up give what README says."""
    answer = json.loads(running.sh(block("openssl req")))
    leaf, root = split_chain(answer["data"][0])

    assert (answer["message"], answer["status"]) == ("200 OK", "ok")
    assert_openssl_accepts(leaf + root, running.directory)
    show, listing, one, verify, accounts = block("vmi-agent ca show").splitlines()
    assert running.sh(show).endswith(root)
    [row] = json.loads(running.sh(listing))
    assert running.sh(one.replace("SERIAL", row["serial"])).endswith(leaf)
    assert running.sh(verify).startswith("audit verified: ")
    assert running.sh(accounts) == "root  Administrator\n"


def test_readme_log_in_and_ask(running: Running) -> None:
    """The commands to log in over HTTPS and then to ask give a certificate, to the account that logged in."""
    running.sh(block("openssl req"))
    log_in, _, ask = block("curl -k -c cjar").partition("\n")

    assert json.loads(running.sh(log_in))["data"] == "User 'root' logged in"
    answer = json.loads(running.sh(ask))

    assert_openssl_accepts(answer["data"][0], running.directory)
    listed = json.loads(running.sh(block("vmi-agent ca show").splitlines()[1]))
    assert {(row["user"], row["method"]) for row in listed} == {("anonymous", "anonymous-loopback"), ("root", "cookie")}


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT])
def test_make_run_stops(running: Running, with_signal: int) -> None:
    """A signal stops both: status 0, and nobody listens any more."""
    running.process.send_signal(with_signal)

    assert running.process.wait(PATIENCE_S) == 0
    for port in (running.agent_port, running.http_port, running.https_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_make_run_uses_the_script_as_tested() -> None:
    """`make -n run` shows the command that these tests run, with the ports that were given."""
    command = ["make", "-n", "run", "HTTP_PORT=1", "AGENT_PORT=2", "HTTPS_PORT=3", "STATE_DIR=var"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert 'deploy/run_local.py --state-dir "var" --agent-port 2 --http-port 1 --https-port 3' in printed


def test_readme_install_and_serve(tmp_path: Path) -> None:
    """The commands to install and to run both, but for directory and ports: the two find each other."""
    agent_port, https_port = free_ports(2)
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}

    def here(command: str) -> str:
        for written, meant in (("/var/lib", str(tmp_path)), ("7700", str(agent_port)), ("8443", str(https_port))):
            command = command.replace(written, meant)
        return command

    subprocess.run(["sh", "-ec", here(block("vmi-agent channel init"))], env=environment, check=True)
    assert not (tmp_path / "vmi-agent" / "channel-of-proxy.pem").exists()
    agent, proxy = (here(command).split() for command in block("vmi-agent serve").splitlines())
    processes = []
    try:
        for words, awaited in ((agent, " ready "), (proxy, " agent connected ")):
            process = subprocess.Popen([str(BIN / words[0]), *words[1:]], stderr=subprocess.PIPE, text=True)
            processes.append(process)
            assert process.stderr is not None
            assert any(awaited in line for line in process.stderr)
    finally:
        statuses = [ended(process) for process in reversed(processes)]
    assert statuses == [0, 0]


def ended(process: subprocess.Popen[str]) -> int:
    """End a process, by force if it must be; return its status."""
    process.terminate()
    try:
        return process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    finally:
        assert process.stderr is not None
        process.stderr.close()


def test_readme_make_targets_exist() -> None:
    """Each make target that README names is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (run|test|format|fuzz|soak|coverage|bench)\b", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
