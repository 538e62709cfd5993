"""Encrypted key files: where the passphrase comes from, and how it is changed."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from support.agents import create_ca, open_agent
from support.ca_life_parts import assert_private, audit_events, delegate_of, issue, now, rotate
from support.judges import openssl
from support.processes import Process, run, start_agent
from support.run_log import secret

from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.cli.groups import noting
from vmi_agent.keys import CustodyError, file_key
from vmi_agent.keys.open import Access

FIRST, SECOND = secret("the first passphrase"), secret("the second passphrase")
IN_THE_CLEAR, ENCRYPTED = "-----BEGIN PRIVATE KEY-----", "-----BEGIN ENCRYPTED PRIVATE KEY-----"


def passphrase_file(directory: Path, passphrase: str, name: str = "passphrase") -> Path:
    """Write a passphrase into a file that nobody else can read."""
    path = directory / name
    path.touch(mode=0o600)
    path.write_text(passphrase + "\n")
    return path


def key_of(state_dir: Path, generation: int = 1) -> Path:
    """Return the path of a generation's key."""
    return state_dir / "ca" / str(generation) / "key.pem"


def heads(state_dir: Path) -> list[str]:
    """Return the first line of every file with a key."""
    names = ("key.pem", "ocsp.pem")
    return [each.read_text().splitlines()[0] for each in sorted(state_dir.rglob("*.pem")) if each.name in names]


def encrypt(state_dir: Path, old: str | None, new: str | None) -> int:
    """Encrypt the keys anew, as the command does."""
    before, after = (None if each is None else each.encode() for each in (old, new))
    return ca_lifecycle.encrypt_keys(state_dir, before, after, now(), noting(state_dir))


def make_two_generations(state_dir: Path) -> None:
    """Make a CA with two generations, in the clear, of which both have an OCSP responder."""
    create_ca(state_dir, "p256", now())
    rotate(state_dir)
    with open_agent(state_dir, now) as agent:
        for authority in agent.generations.all():
            delegate_of(agent, authority)


def test_agent_with_an_encrypted_key(tmp_path: Path) -> None:
    """From a file: made encrypted, rotated, served; the agent's log and the audit do not know the passphrase."""
    state_dir = tmp_path / "agent"
    options = ["--key-passphrase-file", str(passphrase_file(tmp_path, FIRST))]
    for command in ("init", "rotate"):
        done = run("vmi-agent", "ca", command, "--state-dir", str(state_dir), *options)
        assert (done.returncode, done.stderr) == (0, "")
    with start_agent(state_dir, 0, *options) as agent:
        agent.wait_for("ready", root_generation=2)
        assert agent.stop() == 0

    assert heads(state_dir) == [ENCRYPTED, ENCRYPTED]
    assert FIRST not in run("vmi-agent", "audit", "export", "--state-dir", str(state_dir)).stdout
    assert_private(state_dir)


def test_passphrase_from_a_descriptor(tmp_path: Path) -> None:
    """From an open file descriptor, such as a pipe: nothing of it is on disk or in the arguments."""
    for words in (["ca", "init"], ["ca", "rotate"]):
        reading, writing = os.pipe()
        os.write(writing, FIRST.encode() + b"\n")
        os.close(writing)
        command = ["-c", "from vmi_agent.cli import main; main()", *words, "--state-dir", str(tmp_path / "agent")]
        done = subprocess.run(
            [sys.executable, *command, "--key-passphrase-fd", str(reading)],
            pass_fds=[reading],
            capture_output=True,
            text=True,
            check=False,
        )
        os.close(reading)
        assert (done.returncode, done.stderr) == (0, "")

    assert heads(tmp_path / "agent") == [ENCRYPTED, ENCRYPTED]
    assert len(issue(tmp_path / "agent", Access(FIRST.encode()))) == 2


def test_passphrase_from_a_systemd_credential(tmp_path: Path) -> None:
    """From the credentials directory, without any option; where it holds another credential only, there is none."""
    state_dir, credentials = tmp_path / "agent", tmp_path / "credentials"
    credentials.mkdir()
    variables = {"CREDENTIALS_DIRECTORY": str(credentials)}
    serve = ["vmi-agent", "serve", "--state-dir", str(state_dir), "--listen", "tcp:0:interface=127.0.0.1"]
    passphrase_file(credentials, FIRST, "vmi-agent-key-passphrase")
    with Process(*serve, **variables) as agent:
        agent.wait_for("ready")
        assert agent.stop() == 0
    assert heads(state_dir) == [ENCRYPTED]

    (credentials / "vmi-agent-key-passphrase").rename(credentials / "another")
    with Process(*serve, **variables) as agent:
        assert agent.wait() == 1
    assert "is encrypted. Give its passphrase: --key-passphrase-file" in "".join(agent.lines)


@pytest.mark.parametrize("passphrase", [None, SECOND])
def test_agent_with_a_wrong_passphrase(tmp_path: Path, passphrase: str | None) -> None:
    """Missing or wrong, the agent does not start, says which, and shows none."""
    state_dir = tmp_path / "agent"
    first = passphrase_file(tmp_path, FIRST)
    assert (
        run("vmi-agent", "ca", "init", "--state-dir", str(state_dir), "--key-passphrase-file", str(first)).stderr == ""
    )
    options = []
    if passphrase is not None:
        options = ["--key-passphrase-file", str(passphrase_file(tmp_path, passphrase, "another"))]
    with start_agent(state_dir, 0, *options) as agent:
        assert agent.wait() == 1

    told = "".join(agent.lines)
    assert ("Give its passphrase" if passphrase is None else "with another passphrase") in told
    assert FIRST not in told
    assert SECOND not in told


@pytest.mark.parametrize(
    ("content", "mode", "status", "told"),
    [
        (FIRST, 0o640, 1, "chmod 600"),
        (FIRST, 0o604, 1, "chmod 600"),
        ("", 0o600, 2, "the first line is to be the passphrase"),
        ("x" * 1024, 0o600, 2, "1 to 1023 octets"),
    ],
)
def test_passphrase_file_that_is_refused(tmp_path: Path, content: str, mode: int, status: int, told: str) -> None:
    """A file that others can read, is empty, or holds more than OpenSSL takes is refused; nothing is made."""
    path = passphrase_file(tmp_path, content)
    path.chmod(mode)
    done = run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path / "agent"), "--key-passphrase-file", str(path))

    assert done.returncode == status
    assert told in done.stderr
    assert not content or content not in done.stderr
    assert not (tmp_path / "agent").exists()


def test_longest_passphrase(tmp_path: Path) -> None:
    """1,023 octets encrypt and open a key."""
    access = Access(b"x" * 1023)
    with open_agent(tmp_path, now, access=access):
        pass

    assert len(issue(tmp_path, access)) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--key-passphrase-file", "/nonexistent"], "does not exist"),
        (["--key-passphrase-fd", "97"], "--key-passphrase-fd 97: Bad file descriptor"),
        (["--key-passphrase-fd", "0", "--key-passphrase-file", __file__], "give one"),
    ],
)
def test_passphrase_option_that_is_refused(tmp_path: Path, options: Sequence[str], told: str) -> None:
    """An option that leads to no passphrase is named."""
    done = run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path / "agent"), *options)

    assert done.returncode == 2
    assert told in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "head"), [(None, FIRST, ENCRYPTED), (FIRST, SECOND, ENCRYPTED), (FIRST, None, IN_THE_CLEAR)]
)
def test_encrypt(tmp_path: Path, old: str | None, new: str | None, head: str) -> None:
    """For the first time, anew, or not at all any more: all generations' keys and those of their OCSP responders."""
    make_two_generations(tmp_path)
    if old is not None:
        encrypt(tmp_path, None, old)
    certificates = (tmp_path / "ca" / "1" / "ocsp.pem").read_text().partition("-----BEGIN CERTIFICATE")[2]

    assert encrypt(tmp_path, old, new) == 4
    assert heads(tmp_path) == [head] * 4
    assert (tmp_path / "ca" / "1" / "ocsp.pem").read_text().partition("-----BEGIN CERTIFICATE")[2] == certificates
    with open_agent(tmp_path, now, access=Access(None if new is None else new.encode())) as agent:
        assert len(agent.generations.all()) == 2
        for authority in agent.generations.all():
            delegate_of(agent, authority)
    assert audit_events(tmp_path).count("signed") == 2


def test_encrypt_with_a_wrong_passphrase(tmp_path: Path) -> None:
    """Where one key does not open, none is changed."""
    make_two_generations(tmp_path)
    encrypt(tmp_path, None, FIRST)
    before = {path: path.read_bytes() for path in tmp_path.glob("ca/*/*.pem")}
    with pytest.raises(CustodyError, match="passphrase"):
        encrypt(tmp_path, "another passphrase", SECOND)

    assert {path: path.read_bytes() for path in tmp_path.glob("ca/*/*.pem")} == before


def test_encrypt_that_is_cut_short(tmp_path: Path) -> None:
    """Killed between two files, it is finished by doing it again."""
    make_two_generations(tmp_path)
    encrypt(tmp_path, None, FIRST)
    script = """if True:
        import os, signal, sys
        from datetime import UTC, datetime
        from pathlib import Path
        from vmi_agent.ca import lifecycle as ca_life
        written = []
        replace = ca_life.replace_file
        def replace_two(path, content):
            if len(written) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(path)
            replace(path, content)
        ca_life.replace_file = replace_two
        first, second = (each.encode() for each in sys.argv[2:])
        ca_life.encrypt_keys(Path(sys.argv[1]), first, second, datetime.now(UTC), lambda _: None)
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), FIRST, SECOND], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(CustodyError):
        issue(tmp_path, Access(FIRST.encode())), issue(tmp_path, Access(SECOND.encode()))

    encrypt(tmp_path, FIRST, SECOND)
    assert len(issue(tmp_path, Access(SECOND.encode()))) == 2


def test_encrypt_beside_what_a_killed_creation_left(tmp_path: Path) -> None:
    """Half a key in a directory that never became a generation is not in the way."""
    create_ca(tmp_path, "p256", now())
    left = tmp_path / "ca" / ".2.new"
    left.mkdir()
    (left / "key.pem").touch(0o600)

    assert encrypt(tmp_path, None, FIRST) == 1


def test_encrypt_where_there_is_nothing(tmp_path: Path) -> None:
    """No state directory, no keys, no passphrase: each is told in a line."""
    command = ["vmi-agent", "ca", "encrypt", "--state-dir", str(tmp_path / "agent")]
    new = ["--new-passphrase-file", str(passphrase_file(tmp_path, FIRST))]
    absent = run(*command, *new)
    (tmp_path / "agent").mkdir()
    empty = run(*command, *new)
    neither = run(*command)

    assert (absent.returncode, absent.stderr) == (
        1,
        f"Error: there is no state directory {tmp_path / 'agent'}. Give the agent's.\n",
    )
    assert (empty.returncode, "keys are in a token, or there is no CA" in empty.stderr) == (1, True)
    assert (neither.returncode, "give --new-passphrase-file" in neither.stderr) == (2, True)


def test_agent_whose_passphrase_was_changed_under_it(tmp_path: Path) -> None:
    """It goes on with the keys that it has, and says once that the next generation does not open."""
    create_ca(tmp_path, "p256", now())
    second = Access(SECOND.encode())
    with start_agent(tmp_path) as agent:
        agent.wait_for("ready")
        encrypt(tmp_path, None, SECOND)
        rotate(tmp_path, None, second)
        told = agent.wait_for("new generation of the CA not usable")
        encrypt(tmp_path, SECOND, None)
        agent.wait_for("works again")
        assert agent.stop() == 0

    assert "is encrypted" in told["reason"]
    assert sum("not usable" in line and "works again" not in line for line in agent.lines) == 1
    assert sum('"CA rotated"' in line for line in agent.lines) == 1


def test_ocsp_responder_whose_key_does_not_open(tmp_path: Path) -> None:
    """An agent that kept the old passphrase may write a responder's key with it: another one is made in its place."""
    create_ca(tmp_path, "p256", now())
    with open_agent(tmp_path, now) as agent:
        encrypt(tmp_path, None, FIRST)
        old = delegate_of(agent, agent.generations.current)
    with open_agent(tmp_path, now, access=Access(FIRST.encode())) as agent:
        new = delegate_of(agent, agent.generations.current)

    assert new != old
    assert heads(tmp_path) == [ENCRYPTED, ENCRYPTED]
    assert audit_events(tmp_path).count("signed") == 2


def test_key_in_an_older_form(tmp_path: Path) -> None:
    """`ca encrypt` takes a key file in a traditional form, too, and writes PKCS#8."""
    create_ca(tmp_path, "rsa2048", now())
    key = serialization.load_pem_private_key(key_of(tmp_path).read_bytes(), None)
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    form = key.private_bytes(serialization.Encoding.PEM, traditional, serialization.NoEncryption())
    key_of(tmp_path).write_bytes(form)

    assert encrypt(tmp_path, None, FIRST) == 1
    assert heads(tmp_path) == [ENCRYPTED]
    assert len(issue(tmp_path, Access(FIRST.encode()))) == 2


def test_key_file_costs_whoever_guesses(tmp_path: Path) -> None:
    """An encrypted key file has a key derivation that takes memory (scrypt), and openssl reads it."""
    key = file_key.make_key("p256")
    path = tmp_path / "key.pem"
    file_key.store(key, path, b"passphrase")

    assert "scrypt" in openssl("asn1parse", "-in", str(path))
    assert "ASN1 OID: prime256v1" in openssl("pkey", "-in", str(path), "-passin", "pass:passphrase", "-noout", "-text")
    assert file_key.load(path, b"passphrase").public_key == key.public_key()


def test_import_of_an_encrypted_key_without_a_passphrase_here(tmp_path: Path) -> None:
    """A key that came encrypted is not written in the clear without being asked."""
    key, passphrase = tmp_path / "key.pem", tmp_path / "passphrase"
    file_key.store(file_key.make_key("p256"), key, b"passphrase")
    passphrase.write_text("passphrase")
    passphrase.chmod(0o600)
    words = ["ca", "import", "--key", str(key), "--chain", str(key), "--import-passphrase-file", str(passphrase)]
    done = run("vmi-agent", *words, "--state-dir", str(tmp_path / "agent"))

    assert done.returncode == 2
    assert "--key-passphrase-file" in done.stderr
