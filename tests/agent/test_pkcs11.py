"""A CA key in a token, with SoftHSM: made, found, signed with; lost sessions, lost tokens, wrong PINs."""

import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pkcs11 as library
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass, TokenFlag
from support.agents import START
from support.judges import assert_is_root, openssl
from support.run_log import secret
from support.softhsm import PIN, SoftToken, add_token, close_sessions, soft_token

from vmi_agent.ca.certificates import self_signed_root
from vmi_agent.keys import CustodyError
from vmi_agent.keys.algorithms import hash_of, key_type_of
from vmi_agent.keys.pkcs11.keys import PublicKey
from vmi_agent.keys.pkcs11.login import login_to, refusal
from vmi_agent.keys.pkcs11.signer import KEY_TYPES, load, make_key
from vmi_agent.keys.pkcs11.token import Token
from vmi_agent.keys.pkcs11.uri import KeyUri

WRONG_PIN = secret("softhsm-wrong-pin")
TBS = b"what is to be signed"


@pytest.fixture
def soft(tmp_path: Path) -> Iterator[SoftToken]:
    """Yield a token of this test's own."""
    with soft_token(tmp_path, f"test {secrets.token_hex(8)}") as made:
        yield made


def verify(public_key: PublicKey, signature: bytes, data: bytes) -> None:
    """Have the cryptography package verify a signature."""
    algorithm = hash_of(public_key)
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        public_key.verify(signature, data)
    elif isinstance(public_key, rsa.RSAPublicKey):
        assert algorithm is not None
        public_key.verify(signature, data, padding.PKCS1v15(), algorithm)
    else:
        assert algorithm is not None
        public_key.verify(signature, data, ec.ECDSA(algorithm))


def stop(token: Token) -> None:
    """Stop the module, as the end of the process would."""
    login_to(token).module.stop()


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_key_signs_and_is_found_again(soft: SoftToken, key_type: str, tmp_path: Path) -> None:
    """A key of each kind signs; after a restart its URI finds it; and its root satisfies openssl."""
    with closing(make_key(soft.token, key_type, "vmi-ca-1")) as made:
        assert key_type_of(made.public_key) == key_type
        verify(made.public_key, made.sign(TBS), TBS)
    stop(soft.token)

    with closing(load(soft.token, made.uri)) as found:
        assert found.public_key == made.public_key
        verify(made.public_key, found.sign(TBS), TBS)
        root = self_signed_root(found, 1, START)

    assert_is_root(root)
    path = tmp_path / "root.pem"
    path.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    at = ("-attime", str(int(START.timestamp())))
    assert openssl("verify", "-x509_strict", "-check_ss_sig", *at, "-CAfile", str(path), str(path)).endswith("OK\n")


@pytest.mark.parametrize("key_type", ["p256", "rsa2048", "ed25519"])
def test_key_does_not_leave_the_token(soft: SoftToken, key_type: str) -> None:
    """The key was always sensitive, can neither be read nor wrapped, and does nothing but sign."""
    with closing(make_key(soft.token, key_type, "vmi-ca-1")) as made:
        login = login_to(soft.token)
        with login.module.inside() as epoch:
            session = login.open(epoch, writable=True)
            (key,) = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})
            for attribute in (Attribute.TOKEN, Attribute.PRIVATE, Attribute.SENSITIVE, Attribute.ALWAYS_SENSITIVE):
                assert key[attribute]
            assert key[Attribute.NEVER_EXTRACTABLE]
            assert key[Attribute.SIGN]
            for attribute in (Attribute.EXTRACTABLE, Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE):
                assert not key[attribute]
            with pytest.raises(library.AttributeSensitive):
                key[Attribute.PRIVATE_EXPONENT if key_type == "rsa2048" else Attribute.VALUE]
            with pytest.raises(library.PKCS11Error):  # SoftHSM: CKR_ATTRIBUTE_READ_ONLY
                key[Attribute.EXTRACTABLE] = True
            wrapping = session.generate_key(KeyType.AES, 256, capabilities=MechanismFlag.WRAP)
            assert isinstance(wrapping, library.WrapMixin)
            assert isinstance(key, library.PrivateKey)
            with pytest.raises(library.KeyUnextractable):
                wrapping.wrap_key(key)
        assert len(KeyUri.parse(made.uri).id) == 16


def test_load_a_key_that_could_leave(soft: SoftToken) -> None:
    """A key that somebody made extractable is not taken for a CA's."""
    login = login_to(soft.token)
    with login.module.inside() as epoch:
        login.open(epoch, writable=True).generate_keypair(
            KeyType.RSA, 2048, id=b"\1", store=True, private_template={Attribute.EXTRACTABLE: True}
        )

    with pytest.raises(CustodyError, match="could leave it"):
        load(soft.token, str(KeyUri(soft.token.label, "", b"\1")))


def test_load_a_key_that_is_there_twice(soft: SoftToken) -> None:
    """Of two keys with one id none is chosen."""
    login = login_to(soft.token)
    with login.module.inside() as epoch:
        for _ in range(2):
            login.open(epoch, writable=True).generate_keypair(KeyType.RSA, 2048, id=b"\1", store=True)

    with pytest.raises(CustodyError, match="several private keys"):
        load(soft.token, str(KeyUri(soft.token.label, "", b"\1")))


def test_two_keys_in_a_token(soft: SoftToken) -> None:
    """Old and new root's keys sign side by side; the end of one leaves the other."""
    with closing(make_key(soft.token, "p256", "vmi-ca")) as first:
        with closing(make_key(soft.token, "p384", "vmi-ca")) as second:
            verify(first.public_key, first.sign(TBS), TBS)
            verify(second.public_key, second.sign(TBS), TBS)
        verify(first.public_key, first.sign(TBS), TBS)
        with pytest.raises(CustodyError, match="was closed"):
            second.sign(TBS)


def test_two_tokens_in_a_module(soft: SoftToken) -> None:
    """Keys in two tokens of one module sign side by side, and lost sessions of one are no matter to the other."""
    other = Token(soft.token.module, soft.token.label + "-2", PIN)
    add_token(other.label)
    with closing(make_key(soft.token, "p256", "a")) as first, closing(make_key(other, "p256", "b")) as second:
        for token in (soft.token, other, soft.token):
            close_sessions(token)
            verify(first.public_key, first.sign(TBS), TBS)
            verify(second.public_key, second.sign(TBS), TBS)


@pytest.mark.parametrize("key_type", ["mldsa65", "p521"])
def test_make_key_of_a_kind_that_tokens_lack(soft: SoftToken, key_type: str) -> None:
    """ML-DSA is for keys in files."""
    with pytest.raises(CustodyError, match="Keep other kinds in a file"):
        make_key(soft.token, key_type, "vmi-ca-1")


def test_sign_after_sessions_were_closed(soft: SoftToken) -> None:
    """Sessions and login are gone, or the whole module was stopped: the next signature is made all the same."""
    with closing(make_key(soft.token, "p256", "vmi-ca-1")) as key:
        close_sessions(soft.token)
        verify(key.public_key, key.sign(TBS), TBS)
        stop(soft.token)
        verify(key.public_key, key.sign(TBS), TBS)


def test_make_key_after_sessions_were_closed(soft: SoftToken) -> None:
    """A new root's key can be made in a token that lost its sessions."""
    with closing(make_key(soft.token, "p256", "vmi-ca-1")):
        close_sessions(soft.token)
        with closing(make_key(soft.token, "p256", "vmi-ca-2")) as second:
            verify(second.public_key, second.sign(TBS), TBS)


def test_sign_in_threads_while_sessions_are_closed(soft: SoftToken) -> None:
    """16 threads sign 200 times each while all sessions are closed again and again: each signature is good, and the
    few refusals, if any, are clean."""
    refused: list[CustodyError] = []
    done = threading.Event()

    def sign_many(thread: int) -> int:
        good = 0
        for number in range(200):
            data = b"%d.%d" % (thread, number)
            try:
                signature = key.sign(data)
            except CustodyError as error:
                refused.append(error)
                continue
            verify(key.public_key, signature, data)
            good += 1
        return good

    def close_until_done() -> int:
        closed = 0
        while not done.wait(0.02):
            close_sessions(soft.token)
            closed += 1
        return closed

    with closing(make_key(soft.token, "p256", "vmi-ca-1")) as key, ThreadPoolExecutor(17) as threads:
        closer = threads.submit(close_until_done)
        signed = sum(threads.map(sign_many, range(16)))
        done.set()
        assert closer.result() >= 2
        assert signed + len(refused) == 16 * 200
        assert signed > 16 * 100
        verify(key.public_key, key.sign(TBS), TBS)


def test_sign_while_the_token_is_away(soft: SoftToken) -> None:
    """A token that vanishes while 16 threads sign is told of; when it is back, so are the signatures."""
    away = soft.directory.with_name("away")

    def sign(number: int) -> str:
        try:
            verify(key.public_key, key.sign(b"%d" % number), b"%d" % number)
        except CustodyError as error:
            return str(error)
        return "signed"

    with closing(make_key(soft.token, "p256", "vmi-ca-1")) as key, ThreadPoolExecutor(16) as threads:
        under_way = [threads.submit(sign, number) for number in range(400)]
        soft.directory.rename(away)
        outcomes = {each.result() for each in under_way}
        assert outcomes - {"signed"}
        assert "signed" not in set(threads.map(sign, range(16)))
        (token_directory,) = away.iterdir()
        soft.directory.mkdir()
        assert "signed" not in set(threads.map(sign, range(16)))
        token_directory.rename(soft.directory / token_directory.name)
        assert set(threads.map(sign, range(16))) == {"signed"}


def test_wrong_pin_is_tried_once(soft: SoftToken) -> None:
    """A refused PIN is not sent again, so that the token does not lock: not even after it has become the right one."""
    with closing(make_key(soft.token, "p256", "vmi-ca-1")) as made:
        uri = made.uri
    wrong = Token(soft.token.module, soft.token.label, WRONG_PIN)
    with pytest.raises(CustodyError, match="refused the PIN") as first:
        load(wrong, uri)
    assert WRONG_PIN not in repr(wrong) + str(first.value)
    with login_to(soft.token).module.inside():
        (found,) = login_to(soft.token).module.library.get_tokens(token_label=soft.token.label)
        with closing(found.open(rw=True, user_pin=PIN)) as session:
            session.set_pin(PIN, WRONG_PIN)

    with pytest.raises(CustodyError, match="not tried again"):
        load(wrong, uri)
    with pytest.raises(CustodyError, match="not tried again"):
        make_key(wrong, "p256", "vmi-ca-2")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (TokenFlag.USER_PIN_INITIALIZED, None),
        (TokenFlag.USER_PIN_COUNT_LOW, None),
        (TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_COUNT_LOW, "one more wrong PIN locks"),
        (TokenFlag.USER_PIN_LOCKED, "is locked"),
    ],
)
def test_pin_of_a_token_that_is_about_to_lock(flags: TokenFlag, expected: str | None) -> None:
    """The last try is left to a person."""
    told = refusal("vmi", flags)

    assert told is None if expected is None else told is not None and expected in told


def test_load_without_its_token_module_or_key(soft: SoftToken, tmp_path: Path) -> None:
    """What is missing is named, with what to do."""
    uri = KeyUri(soft.token.label, "vmi-ca-1", b"\1")
    with pytest.raises(CustodyError, match="has no private key of this URI"):
        load(soft.token, str(uri))
    with pytest.raises(CustodyError, match="Give that token's label"):
        load(soft.token, "pkcs11:token=another;id=%01")
    with pytest.raises(CustodyError, match="has no token 'another'"):
        load(Token(soft.token.module, "another", PIN), "pkcs11:token=another;id=%01")
    with pytest.raises(CustodyError, match="there is no PKCS#11 module"):
        load(Token(tmp_path / "absent.so", soft.token.label, PIN), str(uri))
    with pytest.raises(CustodyError, match="there is no PKCS#11 module"):
        load(Token("libsofthsm2.so", soft.token.label, PIN), str(uri))
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(CustodyError, match="is no PKCS#11 module"):
        load(Token(tmp_path / "text.so", soft.token.label, PIN), str(uri))


def test_module_whose_configuration_is_wrong(soft: SoftToken, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that does not start says so, and is started when it can be."""
    with closing(make_key(soft.token, "p256", "vmi-ca-1")) as made, monkeypatch.context() as patched:
        stop(soft.token)
        patched.setenv("SOFTHSM2_CONF", str(soft.directory / "absent.conf"))
        with pytest.raises(CustodyError, match="does not start"):
            made.sign(TBS)
    with closing(load(soft.token, made.uri)) as found:
        verify(found.public_key, found.sign(TBS), TBS)


def test_agent_without_python_pkcs11() -> None:
    """All of the agent is there without the extra; who wants a token is told what to install."""
    script = """if True:
        import sys
        sys.modules["pkcs11"] = None
        import vmi_agent.cli
        from vmi_agent.keys import CustodyError
        from vmi_agent.keys.pkcs11 import signer as pkcs11
        from vmi_agent.keys.pkcs11.token import Token
        try:
            pkcs11.make_key(Token("/m.so", "vmi", "pin"), "p256", "ca")
        except CustodyError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "pip install 'vmi-certificate-exchange[hsm]'" in done.stdout


def test_process_that_does_not_close(soft: SoftToken) -> None:
    """A process may end without closing its key."""
    script = (
        "import sys; from vmi_agent.keys.pkcs11.signer import make_key; "
        "from vmi_agent.keys.pkcs11.token import Token; "
        "key = make_key(Token(sys.argv[1], sys.argv[2], sys.argv[3]), 'p256', 'ca'); key.sign(b'x'); print(key.uri)"
    )
    command = [sys.executable, "-c", script, str(soft.token.module), soft.token.label, PIN]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    with closing(load(soft.token, done.stdout.strip())) as found:
        verify(found.public_key, found.sign(TBS), TBS)
