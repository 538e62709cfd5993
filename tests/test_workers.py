"""Several worker processes on real sockets: who is logged in is so on all of them, and none of them is missed."""

import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from csrs import make_csr, openssl_csr, pem
from processes import (
    ACCOUNTS,
    BIN,
    IBM_SIGN_CSR,
    PASSWORDS,
    START_S,
    Process,
    SecurePair,
    account,
    add_account,
    basic,
    port_of,
    run,
    running_secure_pair,
    start_proxy,
)
from run_log import secret

from bmc_proxy.accounts import AccountStore
from runtime.files import replace_file

SESSIONS = "/redfish/v1/SessionService/Sessions"
ACCOUNT = "/redfish/v1/AccountService/Accounts"
WORKERS = 3
# What one address may ask is not what is tested here.
PLENTY = ("--requests-per-s", "1000000")
# So many connections are tried until each worker was met.
TRIES = 400


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair whose proxy has several workers."""
    with running_secure_pair(tmp_path_factory.mktemp("workers"), "--workers", str(WORKERS), *PLENTY) as running:
        yield running


class Client:
    """One connection to one worker, kept alive."""

    def __init__(self, pair: SecurePair) -> None:
        context = ssl.create_default_context(cafile=str(pair.proxy_state / "https.pem"))
        stream = socket.create_connection(("127.0.0.1", port_of(pair.url)), timeout=START_S)
        self._stream = context.wrap_socket(stream, server_hostname="127.0.0.1")

    def ask(self, method: str, path: str, token: str | None = None, body: object = None) -> tuple[int, dict[str, str]]:
        """Send a request; return status and headers of its answer."""
        octets = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: bmc", f"Content-Length: {len(octets)}"]
        lines += ["Content-Type: application/json"] * (body is not None)
        lines += [f"X-Auth-Token: {token}"] * (token is not None)
        self._stream.sendall("\r\n".join([*lines, "", ""]).encode() + octets)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._more()
        head, _, rest = answer.partition(b"\r\n\r\n")
        first, *others = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in others)}
        while len(rest) < int(headers.get("content-length", 0)):
            rest += self._more()
        return int(first.split()[1]), headers

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def _more(self) -> bytes:
        data = self._stream.recv(65_536)
        if not data:
            raise ConnectionError("closed")
        return data


def lines_of(proxy: Process) -> list[dict[str, Any]]:
    """Return what the proxy logged so far; each line must be whole."""
    return [json.loads(line) for line in list(proxy.lines)]


def worker_of(proxy: Process, request_id: str) -> int:
    """Return which worker answered a request."""
    while True:
        for line in lines_of(proxy):
            if line.get("request_id") == request_id:
                return int(line["worker"])
        proxy.wait_for("request")


@contextmanager
def clients(pair: SecurePair, workers: int = WORKERS) -> Iterator[dict[int, Client]]:
    """Yield one connection to each worker, by its number."""
    found: dict[int, Client] = {}
    # Of requests of strangers not all are logged.
    token = pair.token()[1].removeprefix("X-Auth-Token: ")
    with ExitStack() as stack:
        for _ in range(TRIES):
            client = Client(pair)
            stack.callback(client.close)
            _, headers = client.ask("GET", "/redfish/v1/", token)
            found.setdefault(worker_of(pair.proxy, headers["x-request-id"]), client)
            if len(found) == workers:
                break
        assert sorted(found) == list(range(1, workers + 1))
        yield found


def log_in(client: Client, user: str = "root") -> tuple[str, str]:
    """Open a session; return its token and its path."""
    status, headers = client.ask("POST", SESSIONS, body={"UserName": user, "Password": PASSWORDS[user]})
    assert status == 201
    return secret(headers["x-auth-token"]), headers["location"]


def statuses(found: dict[int, Client], token: str, path: str = SESSIONS) -> set[int]:
    """Ask all workers with a token; return the statuses."""
    return {client.ask("GET", path, token)[0] for client in found.values()}


def children_of(pid: int) -> set[int]:
    """Return the processes that a process started."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def wait_for_ends(pids: Iterable[int]) -> None:
    """Wait until none of these processes is there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                assert select.select([descriptor], [], [], START_S)[0], "it lives on"
            finally:
                os.close(descriptor)


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


def test_session_counts_on_all_workers(pair: SecurePair) -> None:
    """A token that one worker gave is good on each other one at once, and on none once it was logged out anywhere."""
    with clients(pair) as found:
        for client in found.values():
            token, _ = log_in(client)
            assert statuses(found, token) == {200}
            for other in found.values():
                token, path = log_in(client)
                assert other.ask("DELETE", path, token)[0] == 200
                assert statuses(found, token) == {401}


def test_logout_of_phosphor_counts_on_all_workers(pair: SecurePair) -> None:
    """/logout ends a session everywhere as well."""
    with clients(pair) as found:
        token, _ = log_in(found[1])
        assert found[2].ask("POST", "/logout", token, {"data": []})[0] == 200
        assert statuses(found, token) == {401}


def test_all_workers_list_the_same_sessions(pair: SecurePair) -> None:
    """Redfish shows each session on each worker."""
    with clients(pair) as found:
        token, path = log_in(found[2])
        assert statuses(found, token, path) == {200}


def test_change_of_password_counts_on_all_workers(pair: SecurePair) -> None:
    """A new password ends all sessions of its account on all workers, but the one that set it."""
    with clients(pair) as found:
        own, _ = log_in(found[1], "oper")
        others = [log_in(client, "oper")[0] for client in found.values()]
        body = {"Password": PASSWORDS["oper"] + "-changed"}
        secret(body["Password"])
        assert found[2].ask("PATCH", f"{ACCOUNT}/oper", own, body)[0] == 200
        assert statuses(found, own, f"{ACCOUNT}/oper") == {200}
        for token in others:
            assert statuses(found, token) == {401}
        assert found[3].ask("PATCH", f"{ACCOUNT}/oper", own, {"Password": PASSWORDS["oper"]})[0] == 200
        assert statuses(found, own, f"{ACCOUNT}/oper") == {200}


def test_change_by_command_counts_on_all_workers(pair: SecurePair) -> None:
    """An account that a command removes is let in nowhere any more, and is not when one of its name comes back."""
    password = secret("of-somebody-new")
    PASSWORDS["new"] = password
    add_account(pair.proxy_state, "new", "Administrator", password)
    with clients(pair) as found:
        token, _ = log_in(found[3], "new")
        assert statuses(found, token) == {200}
        assert run("bmc-proxy", "account", "remove", "new", "--state-dir", str(pair.proxy_state)).returncode == 0
        assert statuses(found, token) == {401}
        add_account(pair.proxy_state, "new", "Administrator", password)
        assert statuses(found, token) == {401}


def test_accounts_are_made_and_removed_over_any_worker(pair: SecurePair) -> None:
    """What one worker changes another one shows; refusals reach whoever asked, in the same words as ever."""
    new = {"UserName": "made", "Password": secret("of-the-one-made"), "RoleId": "ReadOnly"}
    with clients(pair) as found:
        token, _ = log_in(found[1])
        reader, _ = log_in(found[1], "reader")
        assert found[1].ask("POST", ACCOUNT, token, new)[0] == 201
        assert statuses(found, token, f"{ACCOUNT}/made") == {200}
        assert found[2].ask("POST", ACCOUNT, token, new)[0] == 400
        assert found[2].ask("POST", ACCOUNT, token, new | {"UserName": "x", "Password": "short"})[0] == 400
        assert found[2].ask("POST", ACCOUNT, reader, new)[0] == 403
        assert found[3].ask("DELETE", f"{ACCOUNT}/made", token)[0] == 200
        assert statuses(found, token, f"{ACCOUNT}/made") == {404}
        assert found[3].ask("DELETE", f"{ACCOUNT}/made", token)[0] == 404


def test_last_administrator_stays(pair: SecurePair) -> None:
    """The guards of changes hold as in one process."""
    with clients(pair) as found:
        token, _ = log_in(found[1])
        others = [name for name in AccountStore(pair.proxy_state).all() if name not in ACCOUNTS]
        for name in others:
            assert found[2].ask("DELETE", f"{ACCOUNT}/{name}", token)[0] == 200
        assert found[3].ask("DELETE", f"{ACCOUNT}/root", token)[0] == 400


def test_cap_of_sessions_is_one_for_all(pair: SecurePair) -> None:
    """The sixty-fifth session of a user ends the one idle longest, wherever they were opened."""
    with clients(pair) as found:
        oldest, _ = log_in(found[1], "reader")
        newer = [log_in(found[1 + number % WORKERS], "reader")[0] for number in range(64)]
        assert statuses(found, oldest) == {401}
        assert statuses(found, newer[0]) == {200}


def test_basic_credentials_on_all_workers(pair: SecurePair) -> None:
    """Basic credentials are judged by the first process, whichever worker they reach."""
    for _ in range(2 * WORKERS):
        assert pair.curl(SESSIONS, *basic()).status == 200
    assert pair.curl(SESSIONS, "--user", "root:not-the-password").status == 401


def test_certificates_over_all_workers(pair: SecurePair) -> None:
    """Each worker has CSRs signed."""
    with clients(pair) as found:
        token, _ = log_in(found[1])
        for client in found.values():
            assert client.ask("POST", IBM_SIGN_CSR, token, {"CsrString": pem(make_csr())})[0] == 200


def test_five_failures_are_five_over_all_workers(tmp_path: Path) -> None:
    """Five wrong passwords lock, however they are spread; the right one then does not open, on no worker."""
    with running_secure_pair(tmp_path, "--workers", str(WORKERS)) as pair, clients(pair) as found:
        administrator, _ = log_in(found[1])
        wrong = {"UserName": "oper", "Password": "not-the-password"}
        for number in range(5):
            assert not is_locked(pair, administrator)
            assert found[1 + number % WORKERS].ask("POST", SESSIONS, body=wrong)[0] == 401
        assert is_locked(pair, administrator)
        right = {"UserName": "oper", "Password": PASSWORDS["oper"]}
        assert {client.ask("POST", SESSIONS, body=right)[0] for client in found.values()} == {401}
        assert [line["event"] for line in lines_of(pair.proxy)].count("account locked") == 1
        # Unlocked over one worker it is on all.
        assert found[2].ask("PATCH", f"{ACCOUNT}/oper", administrator, {"Locked": False})[0] == 200
        assert {client.ask("POST", SESSIONS, body=right)[0] for client in found.values()} == {201}


def is_locked(pair: SecurePair, token: str) -> bool:
    """Return what Redfish says of the account "oper"."""
    return bool(pair.curl(f"{ACCOUNT}/oper", "-H", f"X-Auth-Token: {token}").json["Locked"])


def test_failures_at_once_over_many_connections(tmp_path: Path) -> None:
    """Wrong passwords that arrive together on all workers are checked one at a time: five are, and no sixth."""
    with running_secure_pair(tmp_path, "--workers", str(WORKERS)) as pair:
        wrong = {"UserName": "oper", "Password": "not-the-password"}
        guessing = [Client(pair) for _ in range(15)]
        threads = [threading.Thread(target=each.ask, args=("POST", SESSIONS, None, wrong)) for each in guessing]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(START_S)
        for each in guessing:
            each.close()
        events = [line["event"] for line in lines_of(pair.proxy)]
        assert events.count("login failed") == 5
        assert events.count("account locked") == 1


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
        # A password's check is under way on each worker.
        answers: list[int] = []
        wanted = {"UserName": "root", "Password": PASSWORDS["root"]}
        asking = [
            threading.Thread(
                target=lambda client: answers.append(client.ask("POST", SESSIONS, body=wanted)[0]), args=[each]
            )
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
