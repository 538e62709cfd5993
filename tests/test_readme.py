"""README is true: its commands, run as they stand but for ports and directories, do what it says."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from judges import assert_openssl_accepts, split_chain
from processes import BIN

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PATIENCE_S = 40


def code_blocks(text: str) -> list[str]:
    """Return the code blocks of a Markdown text, without their indentation."""
    return [re.sub("^    ", "", each, flags=re.MULTILINE) for each in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)]


BLOCKS = code_blocks(README)


def block(beginning: str, blocks: Sequence[str] = BLOCKS) -> str:
    """Return the one code block that begins so, of README unless others are given."""
    [found] = [each for each in blocks if each.startswith(beginning)]
    return found


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@dataclass
class Running:
    """What `make run` runs, on other ports."""

    process: subprocess.Popen[str]
    directory: Path
    agent_port: int
    http_port: int
    https_port: int

    def sh(self, command: str) -> str:
        """Run a command of README's in a shell, on these ports and directories; return what it printed."""
        for written, meant in (
            (":8080/", f":{self.http_port}/"),
            (":8443/", f":{self.https_port}/"),
            ("/var/lib/", str(self.directory / "var") + "/"),
        ):
            command = command.replace(written, meant)
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
        run = ["sh", "-ec", command]
        return subprocess.run(
            run, cwd=self.directory, env=environment, capture_output=True, text=True, check=True
        ).stdout

    def wait_for_crl_with(self, serial: str) -> None:
        """Ask the proxy until its CRL of generation 1 lists a certificate."""
        number = int(serial, 16)
        url = f"http://127.0.0.1:{self.http_port}/pki/1.crl"
        self._ask_until(
            url, lambda crl: x509.load_der_x509_crl(crl).get_revoked_certificate_by_serial_number(number) is not None
        )

    def wait_for_root_other_than(self, chain: str) -> None:
        """Ask the proxy until its root is not the one that a chain ends in."""
        url = f"http://127.0.0.1:{self.http_port}/ibm/v1/Host/Certificate/root"
        self._ask_until(url, lambda root: json.loads(root)["Certificate"] != split_chain(chain)[-1])

    def _ask_until(self, url: str, is_there: Callable[[bytes], bool]) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while not is_there(subprocess.run(["curl", "-sf", url], capture_output=True, check=True).stdout):
            assert time.monotonic() < give_up_at


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """Run `deploy/run_local.py` with the arguments that the Makefile gives it, until the end of the test."""
    agent_port, http_port, https_port = free_ports(3)
    command = [sys.executable, str(ROOT / "deploy" / "run_local.py"), "--state-dir", "var"]
    command += ["--agent-port", str(agent_port), "--http-port", str(http_port), "--https-port", str(https_port)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        yield Running(process, tmp_path, agent_port, http_port, https_port)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()


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
