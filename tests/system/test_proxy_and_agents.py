"""The proxy against agents that are slow, wrong, full or gone: real processes, real sockets, curl."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.agents import Time, always, issuing, request
from support.csrs import make_csr, pem
from support.hostile_agents import Behaviour, HostileAgent, hostile_agent
from support.needs import need
from support.octets import AGENT_HELLO
from support.processes import IBM_ROOT, IBM_SIGN_CSR, SIGN_CSR, Answer, Process, curl, port_of, post, start_proxy

from bmc_proxy.server.request import REPLY_S
from protocol.errors import ErrorCode
from protocol.records import Chain, Error, Hello, SignCsr, Signed


@contextmanager
def proxy_to(
    directory: Path, behaviour: Behaviour, *options: str, hello: Hello = AGENT_HELLO
) -> Iterator[tuple[HostileAgent, Process, str]]:
    """Run a proxy that is connected to an agent of this behaviour."""
    with (
        hostile_agent(behaviour, hello) as agent,
        start_proxy(directory / "proxy", [f"tcp:127.0.0.1:{agent.port}"], *options) as proxy,
    ):
        url = f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}"
        proxy.wait_for("agent connected")
        yield agent, proxy, url


def sign(url: str, route: str = SIGN_CSR, csr: bytes | None = None) -> Answer:
    """Have curl ask for a certificate."""
    return post(url + route, json.dumps({"CsrString": pem(csr or make_csr())}))


def told(answer: Answer) -> tuple[int, str]:
    """Return status and code of a problem, in either dialect."""
    body = answer.json
    return answer.status, body["Code"] if "Code" in body else body["data"]["code"]


@pytest.fixture
def another_chain(tmp_path: Path) -> tuple[bytes, tuple[bytes, ...]]:
    """Return a CSR and a real chain for it."""
    csr = make_csr(key="rsa2048")
    with issuing(tmp_path / "ca", Time()) as (opened, _):
        return csr, opened.issue(request(csr), always).chain


def test_agent_slower_than_the_deadline(tmp_path: Path, another_chain: tuple[bytes, tuple[bytes, ...]]) -> None:
    """At the deadline the HMC gets 503 agent.timeout; the late answer is dropped and the next request is served."""
    csr, chain = another_chain

    def late(_record: SignCsr) -> None:
        return None

    with proxy_to(tmp_path, late, "--deadline-s", "1") as (agent, proxy, url):
        for route in (SIGN_CSR, IBM_SIGN_CSR):
            answer = sign(url, route, csr)
            assert told(answer) == (503, "agent.timeout")
            assert int(answer.headers["retry-after"]) > 0
            assert answer.seconds >= 1.0 - 2 * REPLY_S
        agent.answer_held(lambda record: Signed(hashlib.sha256(record.csr).digest(), 1, chain))
        proxy.wait_for("late answer dropped")
        agent._behaviour = lambda record: Signed(hashlib.sha256(record.csr).digest(), 1, chain)
        assert sign(url, csr=csr).status == 200


@pytest.mark.parametrize("lie", ["another CSR's hash", "another CSR's leaf", "no certificate"])
def test_agent_answers_for_another_csr(
    tmp_path: Path, another_chain: tuple[bytes, tuple[bytes, ...]], lie: str
) -> None:
    """An answer that names another CSR, or whose leaf is not for this CSR's subject and key, is never passed on."""
    csr, chain = another_chain

    def lying(record: SignCsr) -> Signed:
        own_hash = hashlib.sha256(record.csr).digest()
        match lie:
            case "another CSR's hash":
                return Signed(hashlib.sha256(b"other").digest(), 1, chain)
            case "another CSR's leaf":
                return Signed(own_hash, 1, chain)
        return Signed(own_hash, 1, (b"leaf", b"root"))

    with proxy_to(tmp_path, lying) as (_, proxy, url):
        for route in (SIGN_CSR, IBM_SIGN_CSR):
            answer = sign(url, route, csr if lie == "another CSR's hash" else None)
            assert told(answer) == (502, "agent.failed")
            assert "CERTIFICATE" not in answer.body
        no_chain = lie == "no certificate"
        proxy.wait_for("agent's certificates are no chain" if no_chain else "agent answered for another CSR")


@pytest.mark.parametrize(
    ("code", "status", "name", "retry_after"),
    [
        (ErrorCode.BUSY, 503, "agent.busy", "3"),
        (ErrorCode.DEADLINE, 503, "agent.timeout", "5"),
        (ErrorCode.DRAINING, 503, "agent.unavailable", "5"),
        (ErrorCode.FAILED, 502, "agent.failed", "3"),
        (ErrorCode.BAD_SEQUENCE, 502, "agent.failed", "3"),
        (ErrorCode.UNSUPPORTED, 502, "agent.failed", None),
    ],
)
def test_agent_answers_with_an_error(
    tmp_path: Path, code: ErrorCode, status: int, name: str, retry_after: str | None
) -> None:
    """Each code of the channel has its HTTP status in both dialects; the agent's own words stay inside."""
    with proxy_to(tmp_path, lambda _: Error(code, True, 2_001, "internal words")) as (_, _, url):
        for route in (SIGN_CSR, IBM_SIGN_CSR):
            answer = sign(url, route)
            assert told(answer) == (status, name)
            assert answer.headers.get("retry-after") == retry_after
            assert "internal" not in answer.body


def test_agent_answers_with_another_type(tmp_path: Path) -> None:
    """A CHAIN for a SIGN_CSR breaks the protocol: the connection is given up, the request told, and made anew."""
    with proxy_to(tmp_path, lambda _: Chain(1, (b"root",))) as (_, proxy, url):
        assert told(sign(url)) == (503, "agent.unavailable")
        proxy.wait_for("channel peer refused")
        proxy.wait_for("agent connected")


def test_agent_window_is_full(tmp_path: Path) -> None:
    """Past the agent's window requests wait at the proxy, and past the places there one gets 503 agent.busy at once."""
    options = ("--deadline-s", "60", "--max-waiting", "1")
    with proxy_to(tmp_path, lambda _: None, *options) as (agent, _, url), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(sign, url) for _ in range(AGENT_HELLO.window)]
        while len(agent._held) < AGENT_HELLO.window:
            assert agent.asked.wait(20)
            agent.asked.clear()

        over = [pool.submit(sign, url) for _ in range(2)]
        refused, waiting = wait(over, timeout=20, return_when=FIRST_COMPLETED)

        assert [told(each.result()) for each in refused] == [(503, "agent.busy")]
        assert len(waiting) == 1
        agent._behaviour = lambda _: Error(ErrorCode.FAILED, True, 0, "")
        agent.answer_held(agent._behaviour)
        assert {told(each.result()) for each in (*asked, *waiting)} == {(502, "agent.failed")}


def test_agent_breaks_the_connection(tmp_path: Path, another_chain: tuple[bytes, tuple[bytes, ...]]) -> None:
    """A request under way is asked once more when the agent is back, and told at once when it cannot be."""
    csr, chain = another_chain
    with proxy_to(tmp_path, lambda _: None) as (agent, _, url), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sign, url, csr=csr)
        assert agent.asked.wait(20)
        agent._behaviour = lambda record: Signed(hashlib.sha256(record.csr).digest(), 1, chain)
        agent.cut()
        assert waiting.result().status == 200

        agent._behaviour = lambda _: None
        agent.asked.clear()
        waiting = pool.submit(sign, url)
        assert agent.asked.wait(20)
        agent.close()
        assert told(waiting.result()) == (503, "agent.unavailable")


def test_hmc_hangs_up(tmp_path: Path) -> None:
    """When the HMC gives up, the proxy cancels at the agent, drops the answer and serves the next."""
    with proxy_to(tmp_path, lambda _: None) as (agent, proxy, url):
        body = json.dumps({"CsrString": pem(make_csr())})
        command = [need("curl"), "-s", "-m", "0.5", "-H", "Content-Type: application/json", "-d", body, url + SIGN_CSR]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 28  # curl's own timeout
        proxy.wait_for("request", code="client hung up")
        agent.answer_held(lambda _: Error(ErrorCode.CANCELLED, True, 0, ""))
        proxy.wait_for("late answer dropped")
        assert curl(url + IBM_ROOT).status == 200


def test_two_agents_one_gone(tmp_path: Path) -> None:
    """With several agents, those that are connected are asked."""
    failed = Error(ErrorCode.FAILED, True, 0, "")
    with hostile_agent(lambda _: failed) as agent:
        endpoints = ["tcp:127.0.0.1:1", f"tcp:127.0.0.1:{agent.port}"]
        with start_proxy(tmp_path, endpoints) as proxy:
            url = f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}"
            proxy.wait_for("agent connected")
            assert told(sign(url)) == (502, "agent.failed")


def test_agent_of_another_version(tmp_path: Path) -> None:
    """An agent that speaks no version of ours is not used, and the log says why."""
    hello = replace(AGENT_HELLO, version_min=2, version_max=3)
    with (
        hostile_agent(lambda _: None, hello) as agent,
        start_proxy(tmp_path, [f"tcp:127.0.0.1:{agent.port}"]) as proxy,
    ):
        url = f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}"
        assert proxy.wait_for("channel peer refused")["code"] == "BAD_VERSION"
        assert told(sign(url)) == (503, "agent.unavailable")
