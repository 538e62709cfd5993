"""Worker processes and their listeners: how they start, are replaced, and end; what they cannot start with."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from support.csrs import openssl_csr
from support.processes import (
    BIN,
    PASSWORDS,
    START_S,
    Process,
    SecurePair,
    account,
    port_of,
    running_secure_pair,
    start_proxy,
)
from support.worker_clients import (
    PLENTY,
    SESSIONS,
    WORKERS,
    Client,
    children_of,
    clients,
    lines_of,
    log_in,
    statuses,
    wait_for_ends,
)

from bmc_proxy.auth.accounts import AccountStore
from runtime.files import replace_file


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair whose proxy has several workers."""
    with running_secure_pair(tmp_path_factory.mktemp("workers"), "--workers", str(WORKERS), *PLENTY) as running:
        yield running


def test_one_ready_and_no_process_too_many(pair: SecurePair) -> None:
    """There are as many processes as were asked for, and `ready` is told once, by the first one."""
    [ready] = [line for line in lines_of(pair.proxy) if line["event"] == "ready"]
    pids = {line["pid"] for line in lines_of(pair.proxy) if line["event"] == "worker ready"}

    assert ready["workers"] == WORKERS
    assert "worker" not in ready
    assert children_of(pair.proxy.pid) == pids
    assert len(pids) == WORKERS


def test_nothing_secret_where_others_can_look(pair: SecurePair) -> None:
    """A worker's command line and environment hold nothing of the configuration but what the first one's do."""
    for pid in children_of(pair.proxy.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert words[1:] == [b"-P", b"-m", b"bmc_proxy.workers", b""]
        ours, theirs = (Path(f"/proc/{each}/environ").read_bytes() for each in (pair.proxy.pid, pid))
        assert set(theirs.split(b"\0")) == set(ours.split(b"\0"))


def test_worker_that_is_killed_under_load(tmp_path: Path) -> None:
    """Its connections break, the others serve, and a new one comes that knows the sessions."""
    with running_secure_pair(tmp_path, "--workers", "2", *PLENTY) as pair:
        with clients(pair, 2) as found:
            token, path = log_in(found[1])
            pids = {line["worker"]: line["pid"] for line in lines_of(pair.proxy) if line["event"] == "worker ready"}
            served, stop = threading.Semaphore(0), threading.Event()

            def load() -> None:
                while not stop.is_set():
                    with suppress(OSError):
                        client = Client(pair)
                        try:
                            while not stop.is_set():
                                assert client.ask("GET", SESSIONS, token)[0] == 200
                                served.release()
                        finally:
                            client.close()

            threads = [threading.Thread(target=load) for _ in range(6)]
            for thread in threads:
                thread.start()
            for _ in range(50):
                assert served.acquire(timeout=START_S)
            os.kill(pids[1], signal.SIGKILL)
            ended = pair.proxy.wait_for("worker ended", worker=1)
            assert ended["pid"] == pids[1]
            with pytest.raises(ConnectionError):
                found[1].ask("GET", SESSIONS, token)
            assert found[2].ask("GET", SESSIONS, token)[0] == 200
            renewed = pair.proxy.wait_for("worker ready", worker=1)
            assert children_of(pair.proxy.pid) == {pids[2], renewed["pid"]}
            stop.set()
            for thread in threads:
                thread.join(START_S)
        with clients(pair, 2) as found:
            assert statuses(found, token) == {200}
            assert found[2].ask("DELETE", path, token)[0] == 200
            assert statuses(found, token) == {401}
        assert pair.proxy.stop() == 0


def test_worker_that_does_not_confirm_is_killed(tmp_path: Path) -> None:
    """A worker that hangs cannot keep a session alive: who logs out is answered when it is dead."""
    with running_secure_pair(tmp_path, "--workers", "2") as pair, clients(pair, 2) as found:
        token, path = log_in(found[1])
        pids = {line["worker"]: line["pid"] for line in lines_of(pair.proxy) if line["event"] == "worker ready"}
        os.kill(pids[2], signal.SIGSTOP)
        assert found[1].ask("DELETE", path, token)[0] == 200
        assert not Path(f"/proc/{pids[2]}").exists()
        assert "no word" in pair.proxy.wait_for("worker ended", worker=2)["reason"]
        pair.proxy.wait_for("worker ready", worker=2)


def test_end_lets_requests_finish_and_leaves_no_process(tmp_path: Path) -> None:
    """SIGTERM, which systemd sends to all processes at once: what is under way is answered, and all end with 0."""
    with running_secure_pair(tmp_path, "--workers", str(WORKERS)) as pair, clients(pair) as found:
        pids = children_of(pair.proxy.pid)
        body = json.dumps({"UserName": "root", "Password": PASSWORDS["root"]}).encode()
        for client in found.values():
            client.begin(SESSIONS, len(body))
        for client in found.values():
            client.send(body)  # whole on each worker, however slowly the machine gets to it
        answers: list[int] = []
        asking = [
            threading.Thread(target=lambda client: answers.append(client.answer()[0]), args=[each])
            for each in found.values()
        ]
        for thread in asking:
            thread.start()
        pair.proxy.wait_for("logged in")
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        assert pair.proxy.stop() == 0
        for thread in asking:
            thread.join(START_S)
        # Answered all of them: with a session, or that it is too late for one.
        assert len(answers) == WORKERS
        assert set(answers) <= {201, 429, 503}
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert [line["event"] for line in lines_of(pair.proxy) if line["level"] in ("error", "critical")] == []


def test_no_worker_outlives_the_first_process(tmp_path: Path) -> None:
    """Where the first process is killed, its workers end by themselves."""
    with running_secure_pair(tmp_path, "--workers", "2") as pair:
        pids = children_of(pair.proxy.pid)
        pair.proxy.send_signal(signal.SIGKILL)
        wait_for_ends(pids)


def test_hang_up_signal_changes_the_certificate_on_all_workers(tmp_path: Path) -> None:
    """After SIGHUP every worker shows the new certificate; connections that are open go on."""
    names = ("first", "second")
    made = {}
    for name in names:
        csr = openssl_csr(tmp_path, "p256", subject=f"/CN={name}", extra=["-x509"])
        made[name] = csr.with_suffix(".key").read_bytes() + csr.read_bytes()
    replace_file(tmp_path / "both.pem", made["first"])
    with running_secure_pair(tmp_path, "--workers", "2", "--https-certificate", str(tmp_path / "both.pem")) as pair:
        replace_file(tmp_path / "both.pem", made["second"])
        pair.proxy.send_signal(signal.SIGHUP)
        reloaded: set[object] = set()
        while reloaded != {None, 1, 2}:
            reloaded.add(pair.proxy.wait_for("reloaded", what="https").get("worker"))
        shown = set()
        for _ in range(40):
            octets = ssl.get_server_certificate(("127.0.0.1", port_of(pair.url))).encode()
            shown.add(x509.load_pem_x509_certificate(octets).subject.rfc4514_string())
        assert shown == {"CN=second"}


def test_unix_listener_over_workers(tmp_path: Path) -> None:
    """A unix socket is shared as well, and is gone when the proxy has ended."""
    path = tmp_path / "proxy.sock"
    options = ["--http", f"unix:{path}", "--workers", "2"]
    with Process(*command(tmp_path), *options) as proxy:
        assert proxy.wait_for("ready")["http"] == f"unix:{path}"
        for _ in range(8):
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(path))
                stream.sendall(b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\nConnection: close\r\n\r\n")
                assert stream.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert proxy.stop() == 0
        assert not path.exists()
        assert [line["event"] for line in lines_of(proxy) if line["level"] in ("error", "critical")] == []


def test_listeners_of_systemd(tmp_path: Path) -> None:
    """Sockets that systemd opened are shared, and stay open behind a proxy that ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inherited = os.dup(listener.fileno())
        os.set_inheritable(inherited, True)
        try:
            full = [*command(tmp_path), "--http", "systemd:domain=INET:index=0", "--workers", "2"]
            with Activated(inherited, full) as proxy:
                proxy.wait_for("ready")
                for _ in range(4):
                    with socket.create_connection(listener.getsockname(), timeout=START_S) as stream:
                        stream.sendall(b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\nConnection: close\r\n\r\n")
                        assert stream.recv(65_536).startswith(b"HTTP/1.1 200 ")
                assert proxy.stop() == 0
        finally:
            os.close(inherited)
        # It still listens: whoever connects waits for the next proxy.
        socket.create_connection(listener.getsockname(), timeout=START_S).close()


class Activated(Process):
    """A process that is started as systemd starts one: a listening socket is its descriptor 3, and it is told so."""

    _BEFORE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "proxy"}
os.execv(sys.argv[2], sys.argv[2:])
"""

    def __init__(self, listening: int, full: list[str]) -> None:
        self._listening = listening
        super().__init__(*full)

    def _start(self, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-c", self._BEFORE, str(self._listening), str(BIN / command[0]), *command[1:]]
        return subprocess.Popen(words, stderr=subprocess.PIPE, env=environment, pass_fds=[self._listening])


def command(state: Path) -> list[str]:
    """Return what starts a proxy without an agent, that has an account."""
    AccountStore(make(state / "proxy")).add(account("root"))
    return ["bmc-proxy", "serve", "--state-dir", str(state / "proxy"), "--agent", "tcp:127.0.0.1:1"]


def make(directory: Path) -> Path:
    """Make a directory."""
    directory.mkdir(mode=0o700)
    return directory


@pytest.mark.parametrize("workers", ["0", "65", "two"])
def test_number_of_workers_that_is_refused(tmp_path: Path, workers: str) -> None:
    """What is no number from 1 to 64 ends with 2, by option, environment and file."""
    with start_proxy(tmp_path, ["tcp:127.0.0.1:1"], "--workers", workers) as proxy:
        assert proxy.wait() == 2
        assert "--workers" in "".join(proxy.lines)


@pytest.mark.parametrize(
    "given",
    [["--https", "tcp:1:nonsense=1"], ["--agent", "tcp:127.0.0.1:99999"], ["--https", "systemd:domain=INET:index=0"]],
)
def test_endpoint_that_is_none(tmp_path: Path, given: list[str]) -> None:
    """The endpoints are judged before any worker is started."""
    with start_proxy(tmp_path, ["tcp:127.0.0.1:1"], "--workers", "2", *given) as proxy:
        assert proxy.wait() == 2


def test_address_that_is_taken(tmp_path: Path) -> None:
    """What one process cannot start with, several cannot, and say the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = ["--workers", "2", "--https", f"tcp:{port}:interface=127.0.0.1"]
        with start_proxy(tmp_path, ["tcp:127.0.0.1:1"], *given) as proxy:
            assert "cannot listen" in proxy.wait_for("cannot start")["reason"]
            assert proxy.wait() == 1


def test_state_directory_is_claimed_once(tmp_path: Path) -> None:
    """A second proxy of the same state directory does not start beside the workers of the first."""
    with start_proxy(tmp_path, ["tcp:127.0.0.1:1"], "--workers", "2") as proxy:
        proxy.wait_for("ready")
        with start_proxy(tmp_path, ["tcp:127.0.0.1:1"], "--workers", "2") as second:
            assert "in use" in second.wait_for("cannot start")["reason"]
            assert second.wait() == 1
        assert proxy.stop() == 0


def test_one_worker_is_one_process(tmp_path: Path) -> None:
    """By default there is no other process."""
    with start_proxy(tmp_path, ["tcp:127.0.0.1:1"], "--workers", "1") as proxy:
        assert "workers" not in proxy.wait_for("ready")
        assert children_of(proxy.pid) == set()
        assert proxy.stop() == 0
