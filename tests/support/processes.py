"""The real processes, started as a user starts them, and curl as the HMC."""

import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import Any, Self

from bmc_proxy.auth.accounts import Account, AccountStore, Role
from bmc_proxy.auth.passwords import hash_password
from runtime.channel_credentials import make_credentials
from runtime.files import replace_file
from support.forks import Forked
from support.needs import need
from support.run_log import LINES, secret

BIN = Path(sys.executable).parent
START_S = 60
SIGN_CSR = "/xyz/openbmc_project/HMC/VMInterface/SignCSR"
IBM_SIGN_CSR = "/ibm/v1/Host/Actions/SignCSR"
IBM_ROOT = "/ibm/v1/Host/Certificate/root"


class Process:
    """A process of ours that logs JSON lines to stderr; ended, whatever happens, at the end of its `with`."""

    def __init__(self, *command: str, **variables: str) -> None:
        self.lines: list[str] = []
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("VMI_", "BMC_"))}
        environment |= variables
        self._process = self._start([*command, "--log-format", "json"], environment)
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _start(self, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes] | Forked":
        return subprocess.Popen([str(BIN / command[0]), *command[1:]], stderr=subprocess.PIPE, env=environment)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._take(line)
        self._events.put(None)

    def _take(self, line: bytes) -> None:
        self.lines.append(line.decode())
        LINES.append(line.decode())
        # Argument errors are plain text; `lines` has them.
        with suppress(ValueError):
            self._events.put(json.loads(line))

    def wait_for(self, word: str, **fields: Any) -> dict[str, Any]:
        """Return the next event of this word and with these fields."""
        while True:
            try:
                event = self._events.get(timeout=START_S)
            except queue.Empty:
                raise AssertionError(f"no {word!r} within {START_S} s:\n" + "".join(self.lines)) from None
            assert event is not None, f"ended before {word!r}:\n" + "".join(self.lines)
            if event["event"] == word and fields.items() <= event.items():
                return event

    def has_logged(self, word: str) -> bool:
        """Return whether there was an event of this word, also where `wait_for` passed it over."""
        return any(f'"event": "{word}"' in line for line in self.lines)

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def stop(self, with_signal: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, return the exit status."""
        self._process.send_signal(with_signal)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end, return the exit status."""
        status = self._process.wait(START_S)
        self._reader.join(START_S)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


def port_of(description: str) -> int:
    """Return the port of "tcp:127.0.0.1:7700"."""
    return int(description.rpartition(":")[2])


def start_agent(state_dir: Path, port: int = 0, *options: str) -> Process:
    """Start an agent on a port, 0 for a free one."""
    listen = f"tcp:{port}:interface=127.0.0.1"
    return Process("vmi-agent", "serve", "--state-dir", str(state_dir), "--listen", listen, *options)


def start_proxy(state_dir: Path, agents: Sequence[str], *options: str) -> Process:
    """Start a proxy on a free port."""
    command = ["bmc-proxy", "serve", "--state-dir", str(state_dir)]
    command += [word for agent in agents for word in ("--agent", agent)]
    return Process(*command, "--http", "tcp:0:interface=127.0.0.1", "--anonymous-loopback", *options)


@dataclass
class Pair:
    """An agent and a proxy that are connected."""

    agent: Process
    proxy: Process
    directory: Path
    agent_port: int
    url: str

    @property
    def agent_state(self) -> Path:
        """The agent's state directory."""
        return self.directory / "agent"


@contextmanager
def running_pair(directory: Path, *proxy_options: str) -> Iterator[Pair]:
    """Run both until the end of the `with`."""
    with start_agent(directory / "agent") as agent:
        agent_port = port_of(agent.wait_for("ready")["listen"][0])
        with start_proxy(directory / "proxy", [f"tcp:127.0.0.1:{agent_port}"], *proxy_options) as proxy:
            port = port_of(proxy.wait_for("ready")["http"])
            proxy.wait_for("agent connected")
            yield Pair(agent, proxy, directory, agent_port, f"http://127.0.0.1:{port}")


# The accounts of a secure pair, and their passwords, which are others in every run.
ACCOUNTS = {"root": "Administrator", "oper": "Operator", "reader": "ReadOnly"}
PASSWORDS = {name: secret(secrets.token_urlsafe(12)) for name in ACCOUNTS}


@dataclass
class SecurePair(Pair):
    """An agent and a proxy that know each other by certificate, with accounts; `url` is the HTTPS listener's."""

    plain_url: str

    @property
    def proxy_state(self) -> Path:
        """The proxy's state directory."""
        return self.directory / "proxy"

    @property
    def trust(self) -> list[str]:
        """What makes curl accept the proxy's certificate, and no other."""
        return ["--cacert", str(self.proxy_state / "https.pem")]

    def curl(self, path: str, *options: str, stdin: bytes | None = None) -> "Answer":
        """Run curl against the HTTPS listener."""
        return curl(self.url + path, *self.trust, *options, stdin=stdin)

    def post(self, path: str, body: object, *options: str) -> "Answer":
        """POST a JSON body to the HTTPS listener."""
        text = body if isinstance(body, str) else json.dumps(body)
        return post(self.url + path, text, *self.trust, *options)

    def token(self, user: str = "root") -> list[str]:
        """Log in over Redfish; return the curl options that go with requests of this login."""
        body = {"UserName": user, "Password": PASSWORDS[user]}
        answer = self.post("/redfish/v1/SessionService/Sessions", body)
        assert answer.status == 201, answer.body
        return ["-H", f"X-Auth-Token: {answer.headers['x-auth-token']}"]


def basic(user: str = "root") -> list[str]:
    """Return the curl options that send an account's name and password."""
    return ["--user", f"{user}:{PASSWORDS[user]}"]


def add_account(state_dir: Path, name: str, role: str, password: str | None = None) -> None:
    """Add an account with the command for it."""
    command = ["bmc-proxy", "account", "add", name, "--role", role, "--state-dir", str(state_dir)]
    done = run(*command, "--no-password") if password is None else run(*command, "--password-stdin", stdin=password)
    assert done.returncode == 0, done.stderr


def give_credentials(directory: Path) -> None:
    """Give both sides what the channel's TLS needs, as `vmi-agent channel` does."""
    for name, credentials in zip(("agent", "proxy"), make_credentials(), strict=True):
        (directory / name).mkdir(mode=0o700, exist_ok=True)
        replace_file(directory / name / "channel.pem", credentials)


@cache
def account(name: str) -> Account:
    """Return one of the accounts; hashing its password takes long."""
    return Account(name, Role(ACCOUNTS[name]), hash_password(PASSWORDS[name]))


@contextmanager
def running_secure_pair(directory: Path, *proxy_options: str, open_files: int | None = None) -> Iterator[SecurePair]:
    """Run both, with TLS on both sides of the proxy and an account of each role, until the end of the `with`.

    Args:
        open_files: how many descriptors the proxy may have.
    """
    give_credentials(directory)
    for name in ACCOUNTS:
        AccountStore(directory / "proxy").add(account(name))
    agent_command = ["vmi-agent", "serve", "--state-dir", str(directory / "agent")]
    with Process(*agent_command, "--listen", "tls:0:interface=127.0.0.1") as agent:
        agent_at = agent.wait_for("ready")["listen"][0]
        command = ["bmc-proxy", "serve", "--state-dir", str(directory / "proxy"), "--agent", agent_at]
        command += ["--https", "tcp:0:interface=127.0.0.1", "--http", "tcp:0:interface=127.0.0.1"]
        if open_files is not None:
            limited = [str(which(need("prlimit"))), f"--nofile={open_files}:{open_files}"]
            command = [*limited, str(BIN / command[0]), *command[1:]]
        with Process(*command, *proxy_options) as proxy:
            ready = proxy.wait_for("ready")
            if not proxy.has_logged("agent connected"):  # a worker may be quicker than the last one is ready
                proxy.wait_for("agent connected")
            https, http = (f"//127.0.0.1:{port_of(ready[name])}" for name in ("https", "http"))
            yield SecurePair(agent, proxy, directory, port_of(agent_at), "https:" + https, "http:" + http)


@dataclass
class Answer:
    """What curl got."""

    status: int
    headers: dict[str, str]
    cookies: dict[str, str]
    body: str
    seconds: float

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


def curl(url: str, *options: str, stdin: bytes | None = None) -> Answer:
    """Run curl; return the last answer it got."""
    separator = "\n%{http_code} %{time_total}"
    command = [need("curl"), "--silent", "--show-error", "--max-time", "60", "--include", "--write-out", separator]
    done = subprocess.run([*command, *options, url], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    text, _, told = done.stdout.decode().rpartition("\n")
    status, seconds = told.split()
    while True:
        head, _, text = text.partition("\r\n\r\n")
        if not head.startswith("HTTP/1.1 100"):
            break
    lines = [line.partition(": ") for line in head.split("\r\n")[1:]]
    headers = {name.lower(): value for name, _, value in lines}
    cookies = dict(value.split("=", 1) for name, _, value in lines if name.lower() == "set-cookie")
    for value in (headers.get("x-auth-token", ""), *(cookie.partition(";")[0] for cookie in cookies.values())):
        if value:
            secret(value)
    return Answer(int(status), headers, cookies, text, float(seconds))


def post(url: str, body: str | bytes, *options: str) -> Answer:
    """POST a body as JSON, octet for octet."""
    data = body.encode() if isinstance(body, str) else body
    return curl(url, "-H", "Content-Type: application/json", "--data-binary", "@-", *options, stdin=data)


def run(*command: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of our commands to its end, with these environment variables beside those that there are."""
    words = [str(BIN / command[0]), *command[1:]]
    environment = os.environ | variables
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, env=environment)
    LINES.append(done.stderr)
    return done
