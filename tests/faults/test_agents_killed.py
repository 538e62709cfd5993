"""Two agents, of which one is killed or stopped again and again under load: real processes, real connections.

VMI_KILLS in the environment says how often; by default six times.
"""

import json
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from queue import SimpleQueue
from threading import Event

from support.csrs import make_csr, pem
from support.judges import split_chain
from support.processes import SIGN_CSR, Process, port_of, start_agent, start_proxy

CLIENTS = 8
PAUSE_S = 0.05
KILLS = int(os.environ.get("VMI_KILLS", "6"))
JSON = {"Content-Type": "application/json"}


@dataclass
class Trio:
    """Two agents and a proxy that is connected to both."""

    agents: list[Process]
    ports: list[int]
    proxy: Process
    port: int
    directory: Path


def running_trio(stack: ExitStack, directory: Path, *proxy_options: str) -> Trio:
    """Run them until the end of the stack."""
    agents = [stack.enter_context(start_agent(directory / f"agent{number}")) for number in range(2)]
    ports = [port_of(agent.wait_for("ready")["listen"][0]) for agent in agents]
    endpoints = [f"tcp:127.0.0.1:{port}" for port in ports]
    proxy = stack.enter_context(start_proxy(directory / "proxy", endpoints, *proxy_options))
    port = port_of(proxy.wait_for("ready")["http"])
    for _ in agents:
        proxy.wait_for("agent connected")
    return Trio(agents, ports, proxy, port, directory)


class Clients:
    """HMCs that have one CSR after the other signed, each over a connection of its own.

    Attributes:
        found: how often there was which answer, of those that were looked at.
    """

    def __init__(self, port: int) -> None:
        self.found: Counter[str] = Counter()
        self._port = port
        self._over = Event()
        self._answers: SimpleQueue[str] = SimpleQueue()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._asking = [self._pool.submit(self._ask) for _ in range(CLIENTS)]

    def _ask(self) -> None:
        body = json.dumps({"data": [pem(make_csr())]})
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            while not self._over.wait(PAUSE_S):
                connection.request("POST", SIGN_CSR, body, JSON)
                text = json.loads(connection.getresponse().read())
                is_chain = text["status"] == "ok" and len(split_chain(text["data"][0])) == 2
                self._answers.put("signed" if is_chain else text["data"].get("code", "no chain"))

    def wait_for_answers(self, count: int) -> None:
        """Wait for so many answers from now on."""
        self._look_at_answers()
        for _ in range(count):
            self.found[self._answers.get(timeout=60)] += 1

    def stop(self) -> None:
        """Ask nothing more, and wait for the answers that are to come."""
        self._over.set()
        for each in self._asking:
            each.result(60)
        self._pool.shutdown()
        self._look_at_answers()

    def _look_at_answers(self) -> None:
        while not self._answers.empty():
            self.found[self._answers.get()] += 1


def test_one_of_two_agents_is_killed_under_load(tmp_path: Path) -> None:
    """SIGKILL, again and again: every answer at the HMCs is a certificate, of those under way at that agent as well."""
    with ExitStack() as stack:
        trio = running_trio(stack, tmp_path)
        clients = Clients(trio.port)
        stack.callback(clients.stop)
        for _ in range(KILLS):
            trio.agents[0].wait_for("signed before")
            os.kill(trio.agents[0].pid, signal.SIGSTOP)
            clients.wait_for_answers(2 * CLIENTS)  # by now it holds some
            assert trio.agents[0].stop(signal.SIGKILL) == -signal.SIGKILL
            trio.proxy.wait_for("agent lost")
            trio.agents[0] = stack.enter_context(start_agent(tmp_path / "agent0", trio.ports[0]))
            trio.proxy.wait_for("agent connected")
        clients.stop()
        repeated = "".join(trio.proxy.lines).count("request repeated at another agent")

    assert set(clients.found) == {"signed"}
    assert repeated >= KILLS


def test_one_of_two_agents_is_stopped_under_load(tmp_path: Path) -> None:
    """SIGSTOP, which leaves its connection open: what it holds is asked of the other one, and all get certificates."""
    with ExitStack() as stack:
        trio = running_trio(stack, tmp_path, "--deadline-s", "6")
        clients = Clients(trio.port)
        stack.callback(clients.stop)
        trio.agents[0].wait_for("signed before")
        os.kill(trio.agents[0].pid, signal.SIGSTOP)
        trio.proxy.wait_for("request asked of a second agent as well")
        clients.wait_for_answers(2 * CLIENTS)
        clients.stop()

    assert set(clients.found) == {"signed"}
