"""A CA that was made elsewhere: taken over, or refused with what is wrong with it."""

import ssl
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.ca_life_parts import NO_ACCESS, audit_events, issue, now, pem, verifies
from support.csrs import private_key
from support.offline_root import OfflineRoot, begin
from support.processes import run

from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.chain import read_chain
from vmi_agent.cli.groups import noting
from vmi_agent.keys import CustodyError
from vmi_agent.keys.open import Access

ITS_OWN = "its own passphrase"
SIGNS_ALL = {"key_cert_sign": True, "crl_sign": True}


def certificate(
    subject: str,
    issuer: str,
    key: str = "p256",
    issuer_key: str = "p256",
    *,
    ca: bool = True,
    path_length: int | None = None,
    usage: dict[str, bool] | None = None,
    end: timedelta = timedelta(days=30),
    begin: timedelta = timedelta(days=-1),
    leave_out: type[x509.ExtensionType] | None = None,
    extra: x509.ExtensionType | None = None,
) -> x509.Certificate:
    """Return a CA certificate, or what ought to be one."""
    usages = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    ) | {"encipher_only": False, "decipher_only": False, "key_cert_sign": False, "crl_sign": False}
    public_key, signing_key = private_key(key).public_key(), private_key(issuer_key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() + begin)
        .not_valid_after(now() + end)
    )
    extensions: list[x509.ExtensionType | None] = [
        x509.BasicConstraints(ca=ca, path_length=path_length if ca else None),
        x509.KeyUsage(**(usages | (SIGNS_ALL if usage is None else usage))),
        x509.SubjectKeyIdentifier.from_public_key(public_key),
        extra,
    ]
    for extension in extensions:
        if extension is not None and type(extension) is not leave_out:
            builder = builder.add_extension(extension, critical=False)
    return builder.sign(signing_key, _hash_for(signing_key))  # type: ignore[arg-type]  # a CA's kind of key


def _hash_for(key: CertificateIssuerPrivateKeyTypes) -> hashes.HashAlgorithm | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def judge(*chain: x509.Certificate, key: str = "p256") -> None:
    """Have a chain judged for a key."""
    read_chain(pem(*chain).encode(), private_key(key).public_key(), now())


ROOT_KEY = "p384"


def issuing(**fields: Any) -> x509.Certificate:
    """Return the certificate of an issuing CA."""
    return certificate("issuing", "root", "p256", ROOT_KEY, **fields)


def root(**fields: Any) -> x509.Certificate:
    """Return a root."""
    return certificate("root", "root", ROOT_KEY, ROOT_KEY, **fields)


@pytest.mark.parametrize("chain", [lambda: [issuing(), root()], lambda: [issuing(path_length=0), root(path_length=1)]])
def test_chain_that_can_serve(chain: Callable[[], list[x509.Certificate]]) -> None:
    """An issuing CA and its root are taken."""
    judge(*chain())


REFUSED: list[tuple[str, Callable[[], list[x509.Certificate]], str]] = [
    ("wrong order", lambda: [root(), issuing()], "not for this key"),
    ("root missing", lambda: [issuing()], "is not issued by"),
    ("another root", lambda: [issuing(), certificate("root", "root", "p521", "p521")], "is not issued by"),
    (
        "root of another name",
        lambda: [issuing(), certificate("other", "other", ROOT_KEY, ROOT_KEY)],
        "is not issued by",
    ),
    ("no end", lambda: [issuing(), certificate("root", "above", ROOT_KEY, "p521")], "is not issued by"),
    ("no CA", lambda: [issuing(ca=False), root()], "needs CA:TRUE"),
    ("root no CA", lambda: [issuing(), root(ca=False)], "needs CA:TRUE"),
    ("no keyCertSign", lambda: [issuing(usage={"crl_sign": True}), root()], "keyCertSign"),
    ("no cRLSign", lambda: [issuing(usage={"key_cert_sign": True}), root()], "cRLSign"),
    ("path length", lambda: [issuing(), root(path_length=0)], "allows a path of 0 CAs below it, here are 1"),
    ("expired", lambda: [issuing(end=timedelta(minutes=-1)), root()], "not valid now"),
    ("root expired", lambda: [issuing(), root(end=timedelta(minutes=-1))], "not valid now"),
    ("not yet", lambda: [issuing(begin=timedelta(hours=1)), root()], "not valid now"),
    ("no key usage", lambda: [issuing(leave_out=x509.KeyUsage), root()], "are missing"),
    ("no constraints", lambda: [issuing(leave_out=x509.BasicConstraints), root()], "are missing"),
    ("no key identifier", lambda: [issuing(leave_out=x509.SubjectKeyIdentifier), root()], "are missing"),
    ("eight", lambda: [issuing(), *[root()] * 7], "8 certificates, accepted 1 to 7"),
    (
        "servers only",
        lambda: [issuing(extra=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])), root()],
        "allows no TLS clients",
    ),
]


@pytest.mark.parametrize(("chain", "told"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_chain_that_cannot_serve(chain: Callable[[], list[x509.Certificate]], told: str) -> None:
    """Each fault of a chain is named."""
    with pytest.raises(CustodyError, match=told):
        judge(*chain())


def test_chain_for_another_key() -> None:
    """The first certificate must be the key's."""
    with pytest.raises(CustodyError, match="not for this key"):
        judge(issuing(), root(), key="ed25519")


@pytest.mark.parametrize("key", ["p521", "secp256k1", "rsa1024"])
def test_chain_for_a_key_that_signs_nothing_here(key: str) -> None:
    """A kind of key that the agent has no algorithm for is refused, and the kinds that it has are told."""
    with pytest.raises(CustodyError, match="not supported; supported: p256"):
        judge(certificate("root", "root", key, key), key=key)


GARBAGE = [
    b"",
    b"garbage",
    b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
]


@pytest.mark.parametrize("chain", GARBAGE)
def test_chain_that_is_none(chain: bytes) -> None:
    """What is no certificate is told as that."""
    with pytest.raises(CustodyError, match="not one or more certificates in PEM"):
        read_chain(chain, private_key("p256").public_key(), now())


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # of serials that are negative
def test_chain_with_odd_octets() -> None:
    """Whatever octet of what is signed is changed, the chain is refused with a reason and no traceback."""
    made = certificate("root", "root")
    der = bytearray(made.public_bytes(serialization.Encoding.DER))
    for at in range(der.index(made.tbs_certificate_bytes) + len(made.tbs_certificate_bytes)):
        for flipped in (0x01, 0x1F, 0x80):
            der[at] ^= flipped
            armoured = pem_of(bytes(der))
            der[at] ^= flipped
            with pytest.raises(CustodyError):
                read_chain(armoured, private_key("p256").public_key(), now())


def test_chain_with_an_extension_twice() -> None:
    """A certificate with a duplicate extension, which the builder refuses to make, is refused."""
    der = certificate("root", "root", extra=x509.PolicyConstraints(1, None)).public_bytes(serialization.Encoding.DER)
    constraints, usage = bytes.fromhex("0603551d24"), bytes.fromhex("0603551d0f")
    with pytest.raises(CustodyError, match="cannot be read"):
        read_chain(pem_of(der.replace(constraints, usage)), private_key("p256").public_key(), now())


def pem_of(der: bytes) -> bytes:
    """Return octets in a certificate's armour."""
    return ssl.DER_cert_to_PEM_cert(der).encode()


@pytest.mark.parametrize("key", ["rsa2048", "rsa4096", "p256", "p384", "ed25519"])
@pytest.mark.parametrize("passphrase", [None, ITS_OWN])
def test_import_of_a_root(tmp_path: Path, key: str, passphrase: str | None) -> None:
    """A root that openssl made is taken over with its key, and leaves under it verify."""
    made = OfflineRoot(tmp_path / "root", key, passphrase=passphrase)
    made.import_into(tmp_path / "agent", None if passphrase is None else passphrase.encode())
    leaf, root_certificate = issue(tmp_path / "agent")

    assert root_certificate == made.root
    assert verifies(tmp_path, [leaf], made.root) == {"openssl": True, "gnutls": True}
    assert audit_events(tmp_path / "agent")[0] == "ca imported"


def test_import_encrypts_the_key(tmp_path: Path) -> None:
    """The key gets this agent's passphrase, whatever it had."""
    access = Access(b"of the agent")
    OfflineRoot(tmp_path / "root", passphrase=ITS_OWN).import_into(tmp_path / "agent", ITS_OWN.encode(), access)

    assert (tmp_path / "agent" / "ca" / "1" / "key.pem").read_text().startswith("-----BEGIN ENCRYPTED")
    assert len(issue(tmp_path / "agent", access)) == 2


@pytest.mark.parametrize(
    ("passphrase", "given", "told"),
    [
        (ITS_OWN, None, "is encrypted. Give its passphrase: --import-passphrase-file"),
        (ITS_OWN, b"another passphrase", "with another passphrase"),
        (None, ITS_OWN.encode(), "leave --import-passphrase-file away"),
    ],
)
def test_import_with_a_wrong_passphrase(tmp_path: Path, passphrase: str | None, given: bytes | None, told: str) -> None:
    """What is to be done about a passphrase is told, and nothing is imported."""
    with pytest.raises(CustodyError, match=told):
        OfflineRoot(tmp_path / "root", passphrase=passphrase).import_into(tmp_path / "agent", given)

    assert ca_store.generations(tmp_path / "agent") == []


def test_import_of_a_key_that_is_there(tmp_path: Path) -> None:
    """A key is one generation's: imported twice, revocations of the one would be missing on the other's CRL."""
    made = OfflineRoot(tmp_path / "root")
    made.import_into(tmp_path / "agent")
    with pytest.raises(CustodyError, match="generation 1 of the CA has this key already"):
        made.import_into(tmp_path / "agent")

    assert [each.name for each in (tmp_path / "agent" / "ca").iterdir()] == ["1"]


def test_import_of_an_issuing_ca(tmp_path: Path) -> None:
    """An issuing CA comes with its chain, in any agent's directory, as the next generation."""
    above = OfflineRoot(tmp_path / "root")
    key = ec.generate_private_key(ec.SECP384R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuing")])
    )
    chain = above.sign(csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    begin(tmp_path / "agent")
    ca_lifecycle.import_ca(tmp_path / "agent", key_pem, None, chain, NO_ACCESS, now(), noting(tmp_path / "agent"))
    issued = issue(tmp_path / "agent")

    assert len(issued) == 3
    assert verifies(tmp_path, issued[:2], above.root) == {"openssl": True, "gnutls": True}


def test_import_command(tmp_path: Path) -> None:
    """The command makes the state directory; a key file that others can read is refused before anything is made."""
    made = OfflineRoot(tmp_path / "root")
    command = ["vmi-agent", "ca", "import", "--state-dir", str(tmp_path / "agent"), "--key", str(made.key)]
    made.key.chmod(0o644)
    refused = run(*command, "--chain", str(made.certificate))
    assert (refused.returncode, "chmod 600" in refused.stderr) == (1, True)
    made.key.chmod(0o600)
    done = run(*command, "--chain", str(made.certificate))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "CA imported: CN=Example Root,O=Example\n"
    public_key = subprocess.run(
        ["openssl", "pkey", "-in", str(tmp_path / "agent/ca/1/key.pem"), "-pubout"], capture_output=True, check=True
    )
    assert (
        public_key.stdout.decode()
        == made.root.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
