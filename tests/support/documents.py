"""Commands of the documents, run against what `make run` runs."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from support.judges import split_chain
from support.processes import BIN

ROOT = Path(__file__).parents[2]


README = (ROOT / "README.md").read_text(encoding="utf-8")


PATIENCE_S = 40
PORTS = range(20_000, 32_000)


def code_blocks(text: str) -> list[str]:
    """Return the code blocks of a Markdown text, without their indentation."""
    return [re.sub("^    ", "", each, flags=re.MULTILINE) for each in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)]


BLOCKS = code_blocks(README)


def block(beginning: str, blocks: Sequence[str] = BLOCKS) -> str:
    """Return the one code block that begins so, of README unless others are given."""
    [found] = [each for each in blocks if each.startswith(beginning)]
    return found


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, below those that the system gives to whoever asks for any port."""
    found: dict[int, socket.socket] = {}
    try:
        while len(found) < count:
            port = secrets.choice(PORTS)
            with suppress(OSError):
                found[port] = socket.create_server(("127.0.0.1", port))
        return list(found)
    finally:
        for listener in found.values():
            listener.close()


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


@contextmanager
def run_local(directory: Path) -> Iterator[Running]:
    """Run `deploy/run_local.py` with the arguments that the Makefile gives it, until the end of the `with`."""
    agent_port, http_port, https_port = free_ports(3)
    command = [sys.executable, str(ROOT / "deploy" / "run_local.py"), "--state-dir", "var"]
    command += ["--agent-port", str(agent_port), "--http-port", str(http_port), "--https-port", str(https_port)]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        yield Running(process, directory, agent_port, http_port, https_port)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()
