"""A start that fails leaves no CA behind, nor anything else: all that can be checked is checked before one is made."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.agents import Time, create_ca
from support.ca_life_parts import NO_ACCESS
from support.processes import Process, give_credentials, port_of
from support.softhsm import soft_token

from runtime.state_dir import make as make_state_dir
from vmi_agent.ca import lifecycle as ca_lifecycle

TCP = "tcp:0:interface=127.0.0.1"
TLS = "tls:0:interface=127.0.0.1"


def serve(state: Path, *options: str) -> tuple[int, str]:
    """Start an agent that is expected to fail; return its exit status and what it wrote."""
    with Process("vmi-agent", "serve", "--state-dir", str(state), *options) as agent:
        return agent.wait(), "".join(agent.lines)


@pytest.fixture
def taken() -> Iterator[int]:
    """Yield a port that somebody else listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


def secret(path: Path, text: str, mode: int = 0o600) -> str:
    """Write a file with a secret; return its path."""
    path.write_text(text)
    path.chmod(mode)
    return str(path)


# What is given to `serve`, by a directory and a port that is taken, and what it says of it.
REFUSED: dict[str, tuple[Callable[[Path, int], list[str]], str]] = {
    "port taken": (lambda _, port: ["--listen", f"tcp:{port}:interface=127.0.0.1"], "cannot listen"),
    "second listener taken": (
        lambda _, port: ["--listen", TCP, "--listen", f"tcp:{port}:interface=127.0.0.1"],
        "cannot listen",
    ),
    "no such unix directory": (lambda it, _: ["--listen", f"unix:{it}/absent/socket"], "cannot listen"),
    "unix path too long": (lambda it, _: ["--listen", f"unix:{it}/{'x' * 120}"], "cannot listen"),
    "unix path is a file": (lambda it, _: ["--listen", f"unix:{secret(it / 'file', '')}"], "cannot listen"),
    "no endpoint": (lambda *_: ["--listen", "carrier-pigeon:7"], "carrier-pigeon:7"),
    "TLS without credentials": (lambda *_: ["--listen", TLS], "vmi-agent channel init"),
    "no such profiles": (lambda it, _: ["--listen", TCP, "--profiles", str(it / "absent")], "absent"),
    "profiles are none": (lambda it, _: ["--listen", TCP, "--profiles", secret(it / "p.toml", "x = 1")], "p.toml"),
    "anchor file's directory": (lambda it, _: ["--listen", TCP, "--anchor-file", f"{it}/absent/a"], "--anchor-file"),
    "anchor syslog": (lambda *_: ["--listen", TCP, "--anchor-syslog", "nowhere"], "--anchor-syslog"),
    "publish at": (lambda *_: ["--listen", TCP, "--publish-at", "ftp://a"], "--publish-at"),
    "passphrase file is open": (
        lambda it, _: ["--listen", TCP, "--key-passphrase-file", secret(it / "p", "secret phrase", 0o644)],
        "chmod 600",
    ),
    "passphrase file is empty": (
        lambda it, _: ["--listen", TCP, "--key-passphrase-file", secret(it / "p", "")],
        "first line",
    ),
    "no such PKCS#11 module": (
        lambda it, _: [
            *("--listen", TCP, "--pkcs11-module", str(it / "absent.so"), "--pkcs11-token", "t"),
            *("--pkcs11-pin-file", secret(it / "pin", "1234")),
        ],
        "absent.so",
    ),
}


@pytest.mark.parametrize(("options", "text"), REFUSED.values(), ids=REFUSED)
def test_first_start_that_fails(
    tmp_path: Path, taken: int, options: Callable[[Path, int], list[str]], text: str
) -> None:
    """It names what is in the way, and there is not even a state directory afterwards."""
    given = options(tmp_path, taken)
    before = {each.name for each in tmp_path.iterdir()}
    status, written = serve(tmp_path / "state", *given)

    assert status in (1, 2)
    assert text in written
    assert "Traceback" not in written
    assert {each.name for each in tmp_path.iterdir()} == before


def test_same_listener_twice(tmp_path: Path) -> None:
    """Two listeners on one address are found before a CA is made."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    listen = ("--listen", f"tcp:{port}:interface=127.0.0.1")
    status, written = serve(tmp_path / "state", *listen, *listen)

    assert (status, "cannot listen" in written) == (1, True)
    assert not (tmp_path / "state").exists()


def test_unix_socket_in_use(tmp_path: Path) -> None:
    """A socket that somebody serves on is neither taken nor removed."""
    path = tmp_path / "socket"
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))
        server.listen()
        status, written = serve(tmp_path / "state", "--listen", f"unix:{path}")
        assert path.exists()

    assert (status, "cannot listen" in written) == (1, True)
    assert not (tmp_path / "state").exists()


def no_private_key(path: Path) -> None:
    """Leave a certificate alone in the credentials."""
    path.write_bytes(path.read_bytes()[path.read_bytes().index(b"-----BEGIN CERTIFICATE") :])


def no_peer(path: Path) -> None:
    """Leave nobody who may be at the other end."""
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"-----BEGIN CERTIFICATE")])


def open_to_others(path: Path) -> None:
    """Let others read the credentials."""
    path.chmod(0o644)


def garbage(path: Path) -> None:
    """Write something else there."""
    path.write_text("garbage")


@pytest.mark.parametrize("spoil", [no_private_key, no_peer, open_to_others, garbage])
def test_channel_credentials_that_cannot_be_used(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """They are looked at before anything is added to the state directory."""
    give_credentials(tmp_path)
    credentials = tmp_path / "agent" / "channel.pem"
    before = {each.name for each in credentials.parent.iterdir()}
    spoil(credentials)
    status, written = serve(tmp_path / "agent", "--listen", TLS)

    assert (status, "channel.pem" in written) == (1, True)
    assert {each.name for each in credentials.parent.iterdir()} == before


@pytest.mark.parametrize("fault", ["PIN", "token", "key type"])
def test_token_that_cannot_be_used(tmp_path: Path, fault: str) -> None:
    """A token is logged in to, and asked for a kind of key that it has, before there is a ledger."""
    with soft_token(tmp_path, f"preflight {fault}") as token:
        pin = "wrong" if fault == "PIN" else token.token.pin
        options = ["--listen", TCP, "--pkcs11-module", str(token.token.module)]
        options += ["--pkcs11-token", "absent" if fault == "token" else token.token.label]
        options += ["--pkcs11-pin-file", secret(tmp_path / "pin", pin)]
        options += ["--key-type", "mldsa65" if fault == "key type" else "p256"]
        status, written = serve(tmp_path / "state", *options)
        assert (status, "Traceback" in written) == (1, False)
        assert pin not in written
        assert not (tmp_path / "state").exists()


def test_ephemeral_starts_that_fail(tmp_path: Path, taken: int) -> None:
    """Where there is an ephemeral CA already, a failed start adds no generation to it."""
    with Process(
        "vmi-agent", "serve", "--state-dir", str(tmp_path / "state"), "--listen", TCP, "--ephemeral-ca"
    ) as agent:
        assert port_of(agent.wait_for("ready")["listen"][0])
        assert agent.stop() == 0
    for _ in range(2):
        listen = f"tcp:{taken}:interface=127.0.0.1"
        assert serve(tmp_path / "state", "--listen", listen, "--ephemeral-ca")[0] == 1

    assert [each.name for each in (tmp_path / "state" / "ca").iterdir()] == ["1"]


def test_ca_that_may_not_be_made(tmp_path: Path) -> None:
    """Over a lasting CA, or where an issuing CA was asked for, nothing is added either."""
    create_ca(tmp_path / "lasting", "p256", Time()())
    make_state_dir(tmp_path / "requested")
    ca_lifecycle.request_issuing_ca(tmp_path / "requested", "p256", NO_ACCESS, "VMI issuing CA")
    for name, options in (("lasting", ["--ephemeral-ca"]), ("requested", [])):
        before = set((tmp_path / name).rglob("*"))
        status, _ = serve(tmp_path / name, "--listen", TCP, *options)
        assert status == 1
        assert set((tmp_path / name).rglob("*")) == before


def test_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in its way is named."""
    (tmp_path / "file").touch()
    status, written = serve(tmp_path / "file" / "state", "--listen", TCP)

    assert (status, "is not a directory" in written) == (1, True)


def test_listeners_are_free_again(tmp_path: Path) -> None:
    """What was listened on for the check is listened on afterwards, unix sockets and numbered ports alike."""
    with ExitStack() as stack:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            port = server.getsockname()[1]
        options = ["--listen", f"tcp:{port}:interface=127.0.0.1", "--listen", f"unix:{tmp_path}/socket"]
        agent = stack.enter_context(Process("vmi-agent", "serve", "--state-dir", str(tmp_path / "state"), *options))
        assert agent.wait_for("ready")["listen"] == [f"tcp:127.0.0.1:{port}", f"unix:{tmp_path}/socket"]
        assert agent.stop() == 0
    assert not os.path.exists(tmp_path / "socket")
