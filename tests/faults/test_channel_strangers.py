"""Strangers on the channel: whoever is not known gets not one octet, and leaves nothing behind."""

import os
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.csrs import openssl_csr
from support.judges import openssl
from support.octets import ASKER_HELLO
from support.process_figures import descriptors, wait_until_descriptors
from support.processes import (
    Process,
    give_credentials,
    port_of,
    run,
    running_secure_pair,
    start_agent,
    start_proxy,
)
from support.raw_asker import RawAsker

from protocol.connection import Connection

PATIENCE_S = 30.0
TLS = "tls:0:interface=127.0.0.1"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path, int]]:
    """Yield an agent that listens with TLS, its directory, and its port."""
    directory = tmp_path_factory.mktemp("strangers")
    give_credentials(directory)
    command = ["vmi-agent", "serve", "--state-dir", str(directory / "agent"), "--listen", TLS]
    with Process(*command) as running:
        yield running, directory, port_of(running.wait_for("ready")["listen"][0])


def context_with(certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """Return a client's context that accepts any server and shows a certificate, if one is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def hello() -> bytes:
    """Return a proxy's HELLO."""
    return Connection(ASKER_HELLO, 0.0).data_to_send()


def what_comes(port: int, context: ssl.SSLContext | None, say: bytes) -> bytes:
    """Connect, say something, and return all that comes before the end."""
    with ExitStack() as stack:
        stream = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
        try:
            if context is not None:
                stream = stack.enter_context(context.wrap_socket(stream))
            stream.sendall(say)
            received = b""
            while data := stream.recv(65_536):
                received += data
        except (ssl.SSLError, ConnectionError):
            return b""
        return received


def certificate(directory: Path, name: str, extra: list[str]) -> tuple[Path, Path]:
    """Have openssl make a self-signed certificate; return it and its key."""
    home = directory / name
    home.mkdir()
    made = openssl_csr(home, "p256", subject=f"/CN={name}", extra=["-x509", *extra])
    return made, made.with_suffix(".key")


def test_stranger_without_the_right_certificate(agent: tuple[Process, Path, int], tmp_path: Path) -> None:
    """No certificate, a strange one, the agent's own, TLS 1.2: each is cut off before HELLO, and the log says why."""
    process, directory, port = agent
    own = directory / "agent" / "channel.pem"
    usage = ["-addext", "extendedKeyUsage=clientAuth"]
    old = context_with()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for context, reason in (
        (context_with(), "peer did not return a certificate"),
        (context_with(*certificate(tmp_path, "strange", usage)), "self-signed and not known here"),
        (context_with(*issued_by_a_stranger(tmp_path)), "not known here"),
        (context_with(own), "not known here"),
        (old, "unsupported protocol"),
        (None, "TLS"),
    ):
        assert what_comes(port, context, hello() if context else b"GET / HTTP/1.1\r\n\r\n") in (b"", ALERT)
        assert reason in process.wait_for("channel peer refused")["reason"]
    assert not any('"proxy connected"' in line for line in process.lines)


# What a TLS server may say to what is no TLS: fatal, unexpected message or protocol version, in the clear.
ALERT = bytes.fromhex("15030100020246")


def issued_by_a_stranger(directory: Path) -> tuple[Path, Path]:
    """Return a certificate of another CA, and its key."""
    ca, ca_key = certificate(directory, "ca", ["-addext", "basicConstraints=critical,CA:TRUE"])
    csr = openssl_csr(directory, "p384", subject="/CN=proxy")
    issued = directory / "issued.pem"
    openssl("x509", "-req", "-in", str(csr), "-CA", str(ca), "-CAkey", str(ca_key), "-out", str(issued))
    return issued, csr.with_suffix(".key")


def test_plain_protocol_on_the_tls_port(agent: tuple[Process, Path, int]) -> None:
    """A HELLO without TLS gets none back."""
    _, _, port = agent
    received = what_comes(port, None, hello())

    assert b"VMI" not in received
    assert len(received) <= len(ALERT)


def test_strangers_cost_nothing_that_lasts(agent: tuple[Process, Path, int]) -> None:
    """Hundreds of silent strangers do not keep the proxy out, and leave no descriptor behind."""
    process, directory, port = agent
    before = descriptors(process)
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
        proxy = start_proxy(directory / "proxy", [f"tls:127.0.0.1:{port}"])
        with proxy:
            proxy.wait_for("agent connected")
            assert descriptors(process) <= before + 64 + 8
            assert proxy.stop() == 0
    process.wait_for("proxy disconnected")
    with RawTls(port, directory) as asker:
        asker.close()
    process.wait_for("proxy disconnected")
    wait_until_descriptors(process, before)


class RawTls:
    """A connection with the proxy's own credentials."""

    def __init__(self, port: int, directory: Path) -> None:
        context = context_with(directory / "proxy" / "channel.pem")
        self._stream = context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))

    def __enter__(self) -> "RawTls":
        self._stream.sendall(hello())
        assert self._stream.recv(65_536)
        return self

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def test_proxy_says_nothing_to_a_strange_agent(tmp_path: Path) -> None:
    """An agent with another certificate hears no HELLO; the proxy says why, and tries on."""
    give_credentials(tmp_path)
    strange = certificate(tmp_path, "agent2", ["-addext", "extendedKeyUsage=serverAuth"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*strange)
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        with start_proxy(tmp_path / "proxy", [f"tls:127.0.0.1:{listener.getsockname()[1]}"]) as proxy:
            for _ in range(2):
                stream, _ = listener.accept()
                with closing(stream):
                    heard.append(heard_by(context, stream))
            assert "self-signed and not known here" in proxy.wait_for("agent not there, trying on")["reason"]
            assert proxy.stop() == 0
    assert heard == [b"", b""]


def heard_by(context: ssl.SSLContext, stream: socket.socket) -> bytes:
    """Return the first octet that a TLS server hears of its client, if there is one."""
    try:
        return context.wrap_socket(stream, server_side=True).recv(1)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_credentials_that_are_replaced(tmp_path: Path) -> None:
    """New credentials and SIGHUP shut the old ones out for new connections; handed over, they let in again."""
    state = ["--state-dir", str(tmp_path / "agent")]
    with running_secure_pair(tmp_path) as pair:
        assert run("vmi-agent", "channel", "init", *state, "--replace").returncode == 0
        pair.agent.send_signal(signal.SIGHUP)
        pair.agent.wait_for("reloaded")
        assert not any('"agent lost"' in line for line in pair.proxy.lines)
        with start_proxy(tmp_path / "proxy2", [f"tls:127.0.0.1:{pair.agent_port}"]) as stranger:
            assert stranger.wait() == 1  # it has no credentials at all
        old = tmp_path / "proxy3"
        old.mkdir(mode=0o700)
        (old / "channel.pem").touch(mode=0o600)
        (old / "channel.pem").write_bytes((tmp_path / "proxy" / "channel.pem").read_bytes())
        with start_proxy(old, [f"tls:127.0.0.1:{pair.agent_port}"]) as shut_out:
            assert "not known here" in shut_out.wait_for("agent not there, trying on")["reason"]
            hand_over = ["channel", "hand-over", *state, "--to", str(old / "channel.pem"), "--replace"]
            assert run("vmi-agent", *hand_over).returncode == 0
            shut_out.send_signal(signal.SIGHUP)
            shut_out.wait_for("reloaded")
            shut_out.wait_for("agent connected")


def test_channel_ca(tmp_path: Path) -> None:
    """Each side may name a CA instead of the other's own certificate."""
    (tmp_path / "ca").mkdir()
    ca, ca_key = certificate(tmp_path / "ca", "ca", ["-addext", "basicConstraints=critical,CA:TRUE"])
    for side, usage in (("agent", "serverAuth"), ("proxy", "clientAuth")):
        home = tmp_path / side
        home.mkdir(mode=0o700)
        csr = openssl_csr(tmp_path, "p256", subject=f"/CN={side}")
        (tmp_path / "ext").write_text(f"extendedKeyUsage={usage}\n")
        issued = openssl(
            *["x509", "-req", "-in", str(csr), "-CA", str(ca), "-CAkey", str(ca_key)],
            *["-extfile", str(tmp_path / "ext")],
        )
        (home / "channel.pem").touch(mode=0o600)
        (home / "channel.pem").write_text(csr.with_suffix(".key").read_text() + issued + ca.read_text())
    with Process("vmi-agent", "serve", "--state-dir", str(tmp_path / "agent"), "--listen", TLS) as agent:
        at = agent.wait_for("ready")["listen"][0]
        with start_proxy(tmp_path / "proxy", [at]) as proxy:
            proxy.wait_for("agent connected")
        # The proxy's credentials do not make an agent.
        impostor = tmp_path / "impostor"
        impostor.mkdir(mode=0o700)
        (impostor / "channel.pem").touch(mode=0o600)
        (impostor / "channel.pem").write_bytes((tmp_path / "proxy" / "channel.pem").read_bytes())
        with Process("vmi-agent", "serve", "--state-dir", str(impostor), "--listen", TLS) as second:
            at = second.wait_for("ready")["listen"][0]
            with start_proxy(tmp_path / "proxy", [at]) as proxy:
                assert "another purpose" in proxy.wait_for("agent not there, trying on")["reason"]


def test_credentials_are_handed_over_once(tmp_path: Path) -> None:
    """The agent keeps no copy of the proxy's key; a second hand-over, and a second init, are refused."""
    state = ["--state-dir", str(tmp_path / "agent")]
    hand_over = ["vmi-agent", "channel", "hand-over", *state, "--to"]
    none_yet = run(*hand_over, str(tmp_path / "p" / "channel.pem"))
    assert (none_yet.returncode, "vmi-agent channel init" in none_yet.stderr) == (1, True)
    assert run("vmi-agent", "channel", "init", *state).returncode == 0
    again = run("vmi-agent", "channel", "init", *state)
    assert (again.returncode, "--replace" in again.stderr) == (1, True)
    existing, link = tmp_path / "existing", tmp_path / "link"
    existing.write_text("precious")
    link.symlink_to(existing)
    own = run(*hand_over, str(tmp_path / "agent" / "channel.pem"), "--replace")
    assert (own.returncode, "the agent's own directory" in own.stderr) == (2, True)
    for target, options in ((existing, []), (link, ["--replace"]), (tmp_path, ["--replace"]), (Path("/dev/full"), [])):
        refused = run(*hand_over, str(target), *options)
        assert (refused.returncode, "exists already" in refused.stderr) == (1, True), target
    assert existing.read_text() == "precious"

    piped = run(*hand_over, "-")
    assert piped.stdout.count("PRIVATE KEY") == 2
    assert piped.stdout.count("BEGIN CERTIFICATE") == 2
    assert run(*hand_over, str(tmp_path / "p" / "channel.pem")).returncode == 1
    assert [path.name for path in (tmp_path / "agent").iterdir()] == ["channel.pem"]
    assert (tmp_path / "agent" / "channel.pem").stat().st_mode & 0o777 == 0o600


def test_wrong_uid_on_the_unix_socket(tmp_path: Path) -> None:
    """Whoever is not of a uid that is let in is cut off before HELLO, on either side; the log names the uid."""
    here, listed = os.getuid(), str(os.getuid() + 1)
    at = tmp_path / "a.sock"
    command = ["vmi-agent", "serve", "--state-dir", str(tmp_path / "a"), "--listen", f"unix:{at}"]
    with Process(*command, "--peer-uid", listed) as agent:
        agent.wait_for("ready")
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(PATIENCE_S)
            stream.connect(str(at))
            assert received_until_the_end(stream) == b""
        assert agent.wait_for("channel peer refused")["reason"] == f"uid {here} is not let in"
        with start_proxy(tmp_path / "p", [f"unix:{at}"]) as proxy:
            proxy.wait_for("agent not there, trying on")
    with Process(*command, "--peer-uid", listed, "--peer-uid", str(here)) as agent:
        agent.wait_for("ready")
        with start_proxy(tmp_path / "p", [f"unix:{at}"], "--peer-uid", listed) as proxy:
            assert proxy.wait_for("channel peer refused")["reason"] == f"uid {here} is not let in"
        with start_proxy(tmp_path / "p", [f"unix:{at}"]) as proxy:
            proxy.wait_for("agent connected")


def received_until_the_end(stream: socket.socket) -> bytes:
    """Return all that comes; a reset is an end as well."""
    received = b""
    try:
        while data := stream.recv(1000):
            received += data
    except ConnectionResetError:
        pass
    return received


# Only root can be somebody else. The same is tested above, with --peer-uid, as whoever runs the tests.
if os.getuid() == 0:

    def test_another_user_on_the_unix_socket(tmp_path: Path) -> None:
        """A process of another user is cut off, even where the socket's mode lets it connect."""
        at = Path(tempfile.gettempdir()) / f"vmi-agent-{os.getpid()}.sock"  # pytest's own directories are 0700
        command = ["vmi-agent", "serve", "--state-dir", str(tmp_path), "--listen", f"unix:{at}:mode=666"]
        with Process(*command) as agent:
            agent.wait_for("ready")
            code = f"import os,socket\nos.setuid(65534)\ns=socket.socket(1)\ns.connect({str(at)!r})\nprint(s.recv(9))"
            done = subprocess.run(["python3", "-c", code], capture_output=True, text=True, check=False)
            assert done.stdout in ("b''\n", "")
            assert agent.wait_for("channel peer refused")["reason"] == "uid 65534 is not let in"


def test_one_source_takes_no_place_of_anothers(tmp_path: Path) -> None:
    """While one address floods the agent with silent connections, a proxy at another one gets in."""
    with start_agent(tmp_path) as agent, ExitStack() as stack:
        port = port_of(agent.wait_for("ready")["listen"][0])
        for _ in range(100):
            address = ("127.0.0.66", 0)
            stack.enter_context(socket.create_connection(("127.0.0.1", port), source_address=address))
        with RawAsker(port):
            assert agent.wait_for("connection refused")["reason"] == "too many strangers from there"
