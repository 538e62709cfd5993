"""The real processes, started as a user starts them, and curl as the HMC."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from needs import need

BIN = Path(sys.executable).parent
START_S = 30
SIGN_CSR = "/xyz/openbmc_project/HMC/VMInterface/SignCSR"
IBM_SIGN_CSR = "/ibm/v1/Host/Actions/SignCSR"
IBM_ROOT = "/ibm/v1/Host/Certificate/root"


class Process:
    """A process of ours that logs JSON lines to stderr; ended, whatever happens, at the end of its `with`."""

    def __init__(self, *command: str) -> None:
        self.lines: list[str] = []
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("VMI_", "BMC_"))}
        self._process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:], "--log-format", "json"], stderr=subprocess.PIPE, env=environment
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.decode())
            # Argument errors are plain text; `lines` has them.
            with suppress(ValueError):
                self._events.put(json.loads(line))
        self._events.put(None)

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
        assert self._process.stderr is not None
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


@dataclass
class Answer:
    """What curl got."""

    status: int
    headers: dict[str, str]
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
    return Answer(int(status), {name.lower(): value for name, _, value in lines}, text, float(seconds))


def post(url: str, body: str | bytes, *options: str) -> Answer:
    """POST a body as JSON, octet for octet."""
    data = body.encode() if isinstance(body, str) else body
    return curl(url, "-H", "Content-Type: application/json", "--data-binary", "@-", *options, stdin=data)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of our commands to its end."""
    return subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, check=False)
