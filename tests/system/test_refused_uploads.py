"""Uploads that are refused: the client gets its answer however it sends, and no 100 Continue before a refusal."""

import secrets
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.needs import need
from support.processes import IBM_SIGN_CSR, PASSWORDS, SIGN_CSR, Process, SecurePair, basic, curl, running_secure_pair
from support.raw_http import answers_in, assert_log_is_clean, connect, read_to_end

from bmc_proxy.server.lingering import DISCARD_LIMIT

BIG = 2 * 1024 * 1024
JSON = ("-H", "Content-Type: application/json")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a secure pair that answers as often as anybody asks; what it logged is clean at the end."""
    with running_secure_pair(tmp_path_factory.mktemp("uploads"), "--requests-per-s", "100000") as running:
        yield running
        for process in (running.proxy, running.agent):
            assert_log_is_clean(process)


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 2 MiB."""
    path = tmp_path_factory.mktemp("upload") / "body"
    path.write_bytes(b"x" * BIG)
    return path


def wrong() -> list[str]:
    """Return the curl options of a wrong password for an account of a test's own, which it may lock."""
    return ["--user", f"nobody-{secrets.token_hex(4)}:wrong"]


def statuses(pair: SecurePair, listener: str, upload: Path, *options: str) -> list[int]:
    """Have curl upload the file; return the statuses of all that it was answered."""
    base, trust = (pair.url, pair.trust) if listener == "https" else (pair.plain_url, [])
    command = [need("curl"), "--silent", "--show-error", "--max-time", "60", "--dump-header", "-", "--output"]
    command += ["/dev/null", "--data-binary", f"@{upload}", *JSON, *trust, *options, base + SIGN_CSR]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("HTTP/")]


@pytest.mark.parametrize("listener", ["http", "https"])
@pytest.mark.parametrize("sending", [(), ("-H", "Expect:"), ("--http1.0",), ("-H", "Transfer-Encoding: chunked")])
def test_upload_with_a_password(pair: SecurePair, upload: Path, listener: str, sending: tuple[str, ...]) -> None:
    """2 MiB with the right password get 413 and with a wrong one 401 alone, however they are sent.

    Of chunks it is not known before they are here that they are too many, so they are asked for.
    """
    told = [100, 413] if "Transfer-Encoding: chunked" in sending else [413]
    assert statuses(pair, listener, upload, *basic(), *sending) == told
    assert statuses(pair, listener, upload, *wrong(), *sending) == [401]


@pytest.mark.parametrize("listener", ["http", "https"])
def test_upload_that_the_head_refuses(pair: SecurePair, upload: Path, listener: str) -> None:
    """A token, a missing login and a content type are judged before any 100 Continue."""
    assert statuses(pair, listener, upload, *pair.token()) == [413]
    assert statuses(pair, listener, upload, *pair.token("reader")) == [403]
    assert statuses(pair, listener, upload) == [401]
    assert statuses(pair, listener, upload, *pair.token(), "-H", "Content-Type: text/plain") == [415]
    assert statuses(pair, listener, upload, *pair.token(), "-X", "PUT") == [405]
    assert statuses(pair, listener, upload, *pair.token(), "-H", "Idempotency-Key;") == [400]


def head_of(pair: SecurePair, *lines: str, length: int) -> bytes:
    """Return the head of a request with a session of root's."""
    told = [*lines, pair.token()[1], "Host: bmc", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([f"POST {IBM_SIGN_CSR} HTTP/1.1", *told, "", ""]).encode()


@pytest.mark.parametrize("listener", ["http", "https"])
def test_client_that_sends_all_before_it_reads(pair: SecurePair, listener: str) -> None:
    """What it sends is taken up to a bound, so that it comes to read its answer; then the connection ends."""
    with connect(pair, listener) as stream:
        stream.sendall(head_of(pair, length=DISCARD_LIMIT // 2))
        stream.sendall(b"x" * (DISCARD_LIMIT // 2))
        assert [status for status, _ in answers_in(read_to_end(stream))] == [413]


@pytest.mark.parametrize("listener", ["http", "https"])
def test_client_that_never_stops_sending(pair: SecurePair, listener: str) -> None:
    """Past the bound it is cut off."""
    with connect(pair, listener) as stream:
        stream.sendall(head_of(pair, length=1 << 40))
        with pytest.raises(OSError, match=r"(?i)reset|broken pipe|eof"):
            stream.sendall(b"x" * (16 * DISCARD_LIMIT))


@pytest.mark.parametrize("listener", ["http", "https"])
def test_expectation_and_a_password(pair: SecurePair, listener: str) -> None:
    """100 Continue waits for the verdict about a password: it comes for the right one, 401 and the end for a wrong."""
    lines = [f"POST {SIGN_CSR} HTTP/1.1", "Host: bmc", "Content-Type: application/json", "Expect: 100-continue"]
    for user, password in (("root", PASSWORDS["root"]), (f"nobody-{secrets.token_hex(4)}", "wrong")):
        credentials = b64encode(f"{user}:{password}".encode()).decode()
        with connect(pair, listener) as stream:
            told = [*lines, "Content-Length: 2", f"Authorization: Basic {credentials}", "", ""]
            stream.sendall("\r\n".join(told).encode())
            first = stream.recv(65_536)
            if user == "root":
                assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
                stream.sendall(b"{}")
                assert stream.recv(65_536).startswith(b"HTTP/1.1 400 ")
            else:
                assert first.startswith(b"HTTP/1.1 401 ")
                assert b"\r\nConnection: close\r\n" in first
                assert stream.recv(65_536) == b""


def test_upload_over_a_unix_socket(tmp_path: Path, upload: Path) -> None:
    """A unix socket, which has none of TCP's options, closes its own direction as TCP does."""
    path = tmp_path / "http"
    command = ["bmc-proxy", "serve", "--state-dir", str(tmp_path / "proxy"), "--agent", "tcp:127.0.0.1:1"]
    with Process(*command, "--http", f"unix:{path}", "--anonymous-loopback") as proxy:
        proxy.wait_for("ready")
        over = ["--unix-socket", str(path), "--max-time", "20"]
        assert curl("http://bmc/redfish/v1/", *over).status == 200
        for sending in ([], ["-H", "Expect:"]):
            refused = curl(f"http://bmc{SIGN_CSR}", *over, *JSON, *sending, "--data-binary", f"@{upload}")
            assert refused.status == 413
        assert_log_is_clean(proxy)
