"""SoftHSM behind the real agent: a CA made in the token, served from it, and sessions that are closed under it."""

import os
import secrets
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from support.agents import create_ca, open_agent, request
from support.ca_life_parts import (
    assert_directly_issued,
    assert_private,
    audit_events,
    issue,
    now,
    rotate,
    stored,
    verifies,
)
from support.csrs import make_csr
from support.processes import Process, port_of, run
from support.raw_asker import RawAsker
from support.run_log import secret
from support.softhsm import PIN, SoftToken, soft_token

from protocol.errors import ErrorCode
from protocol.records import Error, Signed
from vmi_agent.ca import store as ca_store
from vmi_agent.keys.open import Access

CERTIFICATES = 1000
ASKERS = 4
AT_ONCE = 10
PATIENCE_S = 90
WRONG_PIN = secret("softhsm-wrong-pin")

# The agent, which closes its token's sessions under itself on SIGUSR1, and logs it. One write is one line of the log,
# whatever the agent logs at the same time.
_AGENT = """if True:
    import os, signal, sys, threading
    from pathlib import Path
    from support.softhsm import close_sessions
    from vmi_agent.cli import main
    from vmi_agent.keys.pkcs11.token import Token
    token = Token(Path(sys.argv[1]), sys.argv[2], "")
    def close():
        close_sessions(token)
        os.write(2, b'{"event": "sessions closed"}\\n')
    signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=close).start())
    main(["serve", *sys.argv[3:]])
"""


@pytest.fixture
def soft(tmp_path: Path) -> Iterator[SoftToken]:
    """Yield a token of this test's own."""
    with soft_token(tmp_path, f"test {secrets.token_hex(8)}") as made:
        yield made


def pkcs11(soft: SoftToken, directory: Path, pin: str = PIN) -> list[str]:
    """Return the options that lead to the token."""
    path = directory / f"pin of {len(pin)}"
    path.touch(mode=0o600)
    path.write_text(pin + "\n")
    return [
        *("--pkcs11-module", str(soft.token.module)),
        *("--pkcs11-token", soft.token.label),
        *("--pkcs11-pin-file", str(path)),
    ]


def start(state_dir: Path, soft: SoftToken, *options: str) -> Process:
    """Start the agent whose sessions can be closed."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    words = ["--state-dir", str(state_dir), "--listen", "tcp:0:interface=127.0.0.1", *options]
    variables = {**soft.environment, "PYTHONPATH": path}
    return Process("python", "-c", _AGENT, str(soft.token.module), soft.token.label, *words, **variables)


@dataclass
class Askers:
    """Several proxies at once, each asking until it has its share of certificates.

    Attributes:
        received: serials of the certificates, by the number of the CSR.
        refused: the errors in their place, of which each led to another try.
    """

    port: int
    received: dict[int, int] = field(default_factory=dict)
    refused: list[Error] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def run(self, share: range) -> None:
        """Ask for the certificates of these numbers, some at once, again where it is told to try again."""
        left = list(share)
        with RawAsker(self.port) as asker:
            answered = 0
            while left:
                numbers, left = left[:AT_ONCE], left[AT_ONCE:]
                request_ids = asker.ask(*(request(csr(number)) for number in numbers))
                answered += len(numbers)
                answers = asker.answers(answered)
                assert len(answers) == answered, "the connection ended"
                with self.changed:
                    for number, request_id in zip(numbers, request_ids, strict=True):
                        match answers[request_id]:
                            case Signed(chain=chain):
                                self.received[number] = x509.load_der_x509_certificate(chain[0]).serial_number
                            case Error() as error:
                                self.refused.append(error)
                                left.append(number)
                    self.changed.notify_all()

    def wait_until(self, received: int = 0, refused: int = 0) -> None:
        """Wait for so many certificates and refusals."""
        with self.changed:
            enough = lambda: len(self.received) >= received and len(self.refused) >= refused  # noqa: E731  # used once
            assert self.changed.wait_for(enough, PATIENCE_S), (len(self.received), len(self.refused))


def csr(number: int) -> bytes:
    """Return a CSR of a name of its own."""
    return make_csr(subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hmc{number}")]))


def assert_no_pin(process: Process, state_dir: Path) -> None:
    """Look for the PINs in the log and in every file of the agent."""
    texts = ["".join(process.lines).encode(), *(each.read_bytes() for each in state_dir.rglob("*") if each.is_file())]
    for pin in (PIN, WRONG_PIN):
        assert not any(pin.encode() in each for each in texts)


def test_thousand_certificates_while_the_token_loses_its_sessions(tmp_path: Path, soft: SoftToken) -> None:
    """Twice its sessions are closed, once it is gone: all is answered or refused, to be tried again, by one process."""
    state_dir = tmp_path / "agent"
    options = pkcs11(soft, tmp_path)
    made = run("vmi-agent", "ca", "init", "--state-dir", str(state_dir), "--key-type", "p256", *options)
    assert (made.returncode, made.stderr) == (0, "")
    assert sorted(each.name for each in (state_dir / "ca" / "1").iterdir()) == ["key.uri", "root.pem"]
    uri = (state_dir / "ca" / "1" / "key.uri").read_text()
    assert uri.startswith("pkcs11:token=test%20")
    assert "pin" not in uri

    with start(state_dir, soft, *options) as agent:
        askers = Askers(port_of(agent.wait_for("ready")["listen"][0]))
        shares = [range(each, CERTIFICATES, ASKERS) for each in range(ASKERS)]
        threads = [threading.Thread(target=askers.run, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for received in (150, 350):
            askers.wait_until(received)
            agent.send_signal(signal.SIGUSR1)
            agent.wait_for("sessions closed")
        askers.wait_until(550)
        away = tmp_path / "away"
        soft.directory.rename(away)
        askers.wait_until(refused=1)
        away.rename(soft.directory)
        askers.wait_until(CERTIFICATES)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert agent.stop() == 0

    assert {(each.code, each.retryable) for each in askers.refused} == {(ErrorCode.FAILED, True)}
    assert len(set(askers.received.values())) == CERTIFICATES
    events = Counter(audit_events(state_dir))
    assert (events["started"], events["signed"], events["stopped"]) == (1, CERTIFICATES, 1)
    assert_no_pin(agent, state_dir)
    assert_private(state_dir)


@pytest.mark.parametrize("key_type", ["p384", "rsa2048", "ed25519"])
def test_rotate_in_a_token(tmp_path: Path, soft: SoftToken, key_type: str) -> None:
    """The next key is made in the token, too, and both sign the cross-certificates."""
    access = Access(None, soft.token)
    state_dir = tmp_path / "agent"
    state_dir.mkdir(mode=0o700)
    with open_agent(state_dir, now, access=access):  # which keeps the module started
        old_leaf, old_root = issue(state_dir, access)
        rotate(state_dir, key_type, access)
        new_leaf, new_root = issue(state_dir, access)

    new_with_old, old_with_new = (
        stored(state_dir, 2, name) for name in (ca_store.NEW_WITH_OLD_FILE, ca_store.OLD_WITH_NEW_FILE)
    )
    agreed = {"openssl": True, "gnutls": True}
    assert verifies(tmp_path, [new_leaf, new_with_old], old_root) == agreed
    assert verifies(tmp_path, [old_leaf, old_with_new], new_root) == agreed
    assert not list(state_dir.rglob("key.pem"))
    assert len(list(state_dir.rglob("key.uri"))) == 2


def test_old_key_in_a_file_and_new_one_in_a_token(tmp_path: Path, soft: SoftToken) -> None:
    """A CA that began with a file goes on in a token; without the token's options the agent says what it needs."""
    state_dir = tmp_path / "agent"
    options = pkcs11(soft, tmp_path)
    create_ca(state_dir, "p256", now())
    old_root = stored(state_dir, 1, ca_store.ROOT_FILE)
    done = run("vmi-agent", "ca", "rotate", "--state-dir", str(state_dir), *options)
    assert (done.returncode, done.stderr) == (0, "")
    with start(state_dir, soft, *options) as agent:
        with RawAsker(port_of(agent.wait_for("ready", root_generation=2)["listen"][0])) as asker:
            asker.ask(request(make_csr()))
            (answer,) = asker.answers(1).values()
        assert agent.stop() == 0
    with start(state_dir, soft) as without:
        assert without.wait() == 1

    assert isinstance(answer, Signed)
    leaf = x509.load_der_x509_certificate(answer.chain[0])
    assert_directly_issued([leaf, stored(state_dir, 2, ca_store.NEW_WITH_OLD_FILE), old_root])
    assert audit_events(state_dir).count("crl issued") == 2
    assert "Give --pkcs11-module and --pkcs11-token" in "".join(without.lines)


def test_old_key_in_a_token_and_new_one_in_a_file(tmp_path: Path, soft: SoftToken) -> None:
    """A CA leaves its token for a kind of key that no token has; both generations' CRLs are made."""
    state_dir = tmp_path / "agent"
    options = pkcs11(soft, tmp_path)
    rotate_words = ["ca", "rotate", "--to-file", "--key-type", "mldsa65"]
    for words in (["ca", "init"], rotate_words):
        done = run("vmi-agent", *words, "--state-dir", str(state_dir), *options)
        assert (done.returncode, done.stderr) == (0, "")
    with start(state_dir, soft, *options) as agent:
        agent.wait_for("ready", root_generation=2)
        assert agent.stop() == 0

    assert [path.parent.name for path in state_dir.rglob("key.*")] in (["1", "2"], ["2", "1"])
    assert (state_dir / "ca" / "2" / "key.pem").exists()
    assert audit_events(state_dir).count("crl issued") == 2
    new_with_old = stored(state_dir, 2, ca_store.NEW_WITH_OLD_FILE)
    assert_directly_issued([new_with_old, stored(state_dir, 1, ca_store.ROOT_FILE)])


def test_agent_with_a_wrong_pin(tmp_path: Path, soft: SoftToken) -> None:
    """The agent does not start, and says why without the PIN; the next one, with the right PIN, does."""
    state_dir = tmp_path / "agent"
    options = pkcs11(soft, tmp_path)
    made = run("vmi-agent", "ca", "init", "--state-dir", str(state_dir), *options)
    assert (made.returncode, made.stderr) == (0, "")
    with start(state_dir, soft, *pkcs11(soft, tmp_path, WRONG_PIN)) as agent:
        assert agent.wait() == 1
    assert "refused the PIN" in "".join(agent.lines)
    assert "Traceback" not in "".join(agent.lines)
    assert_no_pin(agent, state_dir)
    with start(state_dir, soft, *options) as agent:
        agent.wait_for("ready")
        assert agent.stop() == 0


@pytest.mark.parametrize(
    ("missing", "told"),
    [("--pkcs11-pin-file", "needs all of"), ("--pkcs11-token", "needs all of"), ("--pkcs11-module", "needs all of")],
)
def test_token_with_an_option_missing(tmp_path: Path, soft: SoftToken, missing: str, told: str) -> None:
    """Half of what leads to a token is a mistake, not a key in a file."""
    options = pkcs11(soft, tmp_path)
    at = options.index(missing)
    del options[at : at + 2]
    done = run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path / "agent"), *options)

    assert (done.returncode, told in done.stderr) == (2, True)
    assert not (tmp_path / "agent").exists()


def test_pin_file_that_others_can_read(tmp_path: Path, soft: SoftToken) -> None:
    """A PIN file like this is refused with the command that mends it."""
    options = pkcs11(soft, tmp_path)
    Path(options[-1]).chmod(0o644)
    done = run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path / "agent"), *options)

    assert (done.returncode, "chmod 600" in done.stderr) == (1, True)
    assert PIN not in done.stderr


def test_post_quantum_key_in_a_token(tmp_path: Path, soft: SoftToken) -> None:
    """A kind of key that tokens do not have is refused, and nothing is left of it."""
    options = pkcs11(soft, tmp_path)
    state = ["--state-dir", str(tmp_path / "agent")]
    done = run("vmi-agent", "ca", "init", *state, "--key-type", "mldsa65", *options)

    assert done.returncode == 1
    assert "Keep other kinds in a file" in done.stderr
    assert list((tmp_path / "agent" / "ca").iterdir()) == []
