"""`vmi-agent keys block` with keys in encodings that no CSR may have: CSRs of the same keys are refused."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from support.agents import Agent, open_agent
from support.blocking import REFUSED, SIGNED, code
from support.csrs import make_csr, private_key
from support.judges import openssl
from support.processes import run
from support.revoking import time_of_day

from runtime.asn1 import der

_EXPLICIT, _NAMED = ["-ec_param_enc", "explicit"], ["-ec_param_enc", "named_curve"]
# NULL is missing (RFC 3279, 2.3.1 demands it); id-RSASSA-PSS without parameters, and with those of SHA-256 (RFC 4055).
_RSA_WITHOUT_NULL = "300b06092a864886f70d010101"
_PSS = "300b06092a864886f70d01010a"
_PSS_OF_SHA256 = (
    "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d0609608648016503"
    "04020105 00a203020120"
)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """Open an agent beside which commands are run."""
    with open_agent(tmp_path / "state", time_of_day()) as opened:
        yield opened


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Return the path of the file that is given to the command."""
    return tmp_path / "given"


def key_file(directory: Path, kind: str) -> str:
    """Write the tests' private key of a kind, in PEM; return the path."""
    path = directory / "private.key"
    path.write_bytes(private_key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(path)


def block(tmp_path: Path, given: Path) -> "subprocess.CompletedProcess[str]":
    """Block what is in a file."""
    return run("vmi-agent", "keys", "block", str(given), "--state-dir", str(tmp_path / "state"))


def check_blocked(tmp_path: Path, agent: Agent, given: Path, kind: str) -> None:
    """Block a file's key; check that its CSR is signed before and refused after, and what is printed is on the list."""
    assert code(agent, make_csr(key=kind)) == SIGNED
    done = block(tmp_path, given)
    assert (done.returncode, done.stderr) == (0, "")
    assert code(agent, make_csr(key=kind)) == REFUSED
    assert code(agent, make_csr(key=kind + "/other")) == SIGNED
    key_hash = done.stdout.removeprefix("blocked: ").strip()
    undone = run("vmi-agent", "keys", "unblock", key_hash, "--state-dir", str(tmp_path / "state"))
    assert (undone.returncode, code(agent, make_csr(key=kind))) == (0, SIGNED)


@pytest.mark.parametrize("form", ["PEM", "DER"])
@pytest.mark.parametrize("what", ["public key", "csr", "certificate"])
@pytest.mark.parametrize("kind", ["p256", "p384", "p521"])
def test_ec_key_with_explicit_parameters(
    tmp_path: Path, agent: Agent, given: Path, kind: str, what: str, form: str
) -> None:
    """An EC key that spells out its curve is the key that names it (RFC 5480, 2.1.1 allows only that)."""
    explicit = str(tmp_path / "explicit.key")
    openssl("pkey", "-in", key_file(tmp_path, kind), *_EXPLICIT, "-out", explicit)
    words = {
        "public key": ["pkey", "-in", explicit, "-pubout", *_EXPLICIT],
        "csr": ["req", "-new", "-key", explicit, "-subj", "/CN=x"],
        "certificate": ["req", "-x509", "-new", "-key", explicit, "-subj", "/CN=x"],
    }
    openssl(*words[what], "-outform", form, "-out", str(given))
    check_blocked(tmp_path, agent, given, kind)


@pytest.mark.parametrize("point", ["compressed", "hybrid"])
@pytest.mark.parametrize("form", ["PEM", "DER"])
def test_ec_key_with_another_form_of_point(tmp_path: Path, agent: Agent, given: Path, form: str, point: str) -> None:
    """An EC key is blocked whichever form of its point (SEC 1, 2.3.3) the file has."""
    words = ["pkey", "-in", key_file(tmp_path, "p256"), "-pubout", *_NAMED, "-ec_conv_form", point]
    openssl(*words, "-outform", form, "-out", str(given))
    check_blocked(tmp_path, agent, given, "p256")


@pytest.mark.parametrize("kind", ["rsa2048", "rsa2048 e=65539"])
@pytest.mark.parametrize("algorithm", [_RSA_WITHOUT_NULL, _PSS, _PSS_OF_SHA256])
def test_rsa_key_with_another_algorithm(tmp_path: Path, agent: Agent, given: Path, algorithm: str, kind: str) -> None:
    """An RSA key without NULL parameters, or bound to PSS, is the key that openssl req writes."""
    usual = private_key(kind).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    given.write_bytes(der.wrap(der.SEQUENCE, bytes.fromhex(algorithm), der.children(usual)[1]))
    assert code(agent, make_csr(key=kind)) == SIGNED
    assert block(tmp_path, given).returncode == 0
    assert code(agent, make_csr(key=kind)) == REFUSED
    assert code(agent, make_csr(key="rsa2048/other")) == SIGNED


@pytest.mark.parametrize("form", [Encoding.PEM, Encoding.DER])
def test_rsa_key_of_pkcs1(tmp_path: Path, agent: Agent, given: Path, form: Encoding) -> None:
    """An RSAPublicKey of PKCS#1 (RFC 8017, A.1.1), which has no algorithm, blocks the key."""
    key = private_key("rsa2048").public_key()
    given.write_bytes(key.public_bytes(form, PublicFormat.PKCS1))
    check_blocked(tmp_path, agent, given, "rsa2048")


@pytest.mark.parametrize("what", ["csr", "certificate"])
def test_request_and_certificate_bound_to_pss(tmp_path: Path, agent: Agent, given: Path, what: str) -> None:
    """The key of a CSR or certificate bound to PSS is blocked as the RSA key that it is."""
    key = str(tmp_path / "pss.key")
    openssl("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-out", key)
    words = ["req", "-new", "-key", key, "-subj", "/CN=x", *(["-x509"] if what == "certificate" else [])]
    openssl(*words, "-out", str(given))
    usual = tmp_path / "usual"
    public_key = load_pem_private_key(Path(key).read_bytes(), None).public_key()
    usual.write_bytes(public_key.public_bytes(Encoding.PEM, PublicFormat.PKCS1))
    assert block(tmp_path, given).returncode == 0
    again = block(tmp_path, usual)
    assert (again.returncode, "blocked by hand already" in again.stderr) == (1, True)


@pytest.mark.parametrize("what", ["public key", "certificate"])
def test_key_that_cannot_be_read(tmp_path: Path, agent: Agent, given: Path, what: str) -> None:
    """A key that no CSR can have, and that cannot be brought to a form that one has, is refused in one line."""
    key = str(tmp_path / "odd.key")
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:brainpoolP256r1", "-out", key + ".named")
    openssl("pkey", "-in", key + ".named", *_EXPLICIT, "-out", key)
    words = {
        "public key": ["pkey", "-in", key, "-pubout", *_EXPLICIT],
        "certificate": ["req", "-x509", "-new", "-key", key, "-subj", "/CN=x"],
    }
    openssl(*words[what], "-out", str(given))
    done = block(tmp_path, given)
    assert (done.returncode, done.stdout) == (2, "")
    told = done.stderr.splitlines()[-1]
    assert "that this agent cannot read" in told
    assert told.endswith("Nothing was blocked.")


def test_compressed_point_with_explicit_parameters(tmp_path: Path, agent: Agent, given: Path) -> None:
    """What two oddities at once keep from being read is blocked as the refusal says: as openssl writes it by name."""
    words = ["pkey", "-in", key_file(tmp_path, "p256"), "-pubout", *_EXPLICIT, "-ec_conv_form", "compressed"]
    openssl(*words, "-out", str(given))
    done = block(tmp_path, given)
    assert (done.returncode, "-ec_param_enc named_curve" in done.stderr) == (2, True)
    openssl("pkey", "-pubin", "-in", str(given), "-pubout", *_NAMED, "-out", str(given) + ".named")
    check_blocked(tmp_path, agent, Path(str(given) + ".named"), "p256")
