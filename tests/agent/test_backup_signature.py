"""A backup's manifest is signed by the CA: what somebody else put together is told from the CA's own."""

import base64
import json
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.agents import create_ca
from support.backups import FORGETTING, make_backup, members, names, write_tar
from support.ca_life_parts import issue, now, rotate, stored
from support.ca_life_parts import pem as pem_of
from support.csrs import make_csr
from support.needs import need
from support.processes import run
from support.softhsm import soft_token

from runtime.errors import StartError
from vmi_agent.backup import restore as restoring
from vmi_agent.backup import signed_statement
from vmi_agent.backup.backup import back_up
from vmi_agent.backup.restore import Check
from vmi_agent.keys.open import Access
from vmi_agent.ledger.schema import FILE_NAME

DER_SEQUENCE = 0x30


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Return the backup of a small CA, whose second generation signed it."""
    return make_backup(tmp_path)


def restore(source: Path, target: Path, *trusted: x509.Certificate, digest: str | None = None) -> restoring.Restored:
    """Restore a backup where it is signed under one of these certificates."""
    return restoring.restore(source, target, now(), Check(digest, trusted), FORGETTING)


def root_of(directory: Path, generation: int) -> x509.Certificate:
    """Return a root of the CA that was backed up."""
    return stored(directory / "agent", generation, "root.pem")


def forge(directory: Path) -> Path:
    """Return the backup of another CA, with the same names and numbers."""
    other = directory / "other"
    other.mkdir()
    return make_backup(other)


@pytest.mark.parametrize("generation", [1, 2])
def test_trust_root(tmp_path: Path, backup: Path, generation: int) -> None:
    """The root that signed, and an older one that certified it, vouch for a backup."""
    restored = restore(backup, tmp_path / "restored", root_of(tmp_path, generation))

    assert restored.manifest is not None
    assert restored.manifest.signer == root_of(tmp_path, 2)
    assert restored.manifest.files.keys() == members(backup).keys() - {"manifest"}


def test_backup_of_another_ca(tmp_path: Path, backup: Path) -> None:
    """A whole and sound backup of another CA is refused, naming who signed it."""
    forged = forge(tmp_path)
    with pytest.raises(StartError, match="signed by CN=VMI Root CA 2"):
        restore(forged, tmp_path / "restored", root_of(tmp_path, 2))

    assert names(tmp_path) == {"agent", "backup.tar", "other"}
    assert backup.exists()


def resigned(
    directory: Path, backup: Path, certificates: list[x509.Certificate], key: ec.EllipticCurvePrivateKey
) -> Path:
    """Return a backup whose manifest somebody else signed with a key of their own, showing these certificates."""
    contents = members(backup)
    kind, content, _, _ = contents["manifest"].split(b"\n")
    fields = json.loads(content)
    fields["certificates"] = [pem_of(each) for each in certificates]
    signed = kind + b"\n" + json.dumps(fields).encode() + b"\n"
    signature = base64.b64encode(key.sign(signed, ec.ECDSA(hashes.SHA256())))
    contents["manifest"] = signed + signature + b"\n"
    return write_tar(directory / "resigned.tar", contents)


def test_backup_signed_by_a_client(tmp_path: Path, backup: Path) -> None:
    """The holder of a client certificate of this CA cannot sign its backups, whatever certificates come along."""
    key = ec.generate_private_key(ec.SECP256R1())
    root = root_of(tmp_path, 2)
    leaf = issue(tmp_path / "agent")[0]
    ca_key = serialization.load_pem_private_key((tmp_path / "agent/ca/2/key.pem").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    client = (
        x509.CertificateBuilder(leaf.issuer, leaf.subject, key.public_key(), leaf.serial_number)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(leaf.extensions.get_extension_for_class(x509.KeyUsage).value, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    client.verify_directly_issued_by(root)
    forged = resigned(tmp_path, backup, [client, root], key)
    with pytest.raises(StartError, match="no certificate leads"):
        restore(forged, tmp_path / "restored", root)


def test_backup_with_the_certificate_of_another(tmp_path: Path, backup: Path) -> None:
    """A signature that is not the named signer's is refused, whether a root is given or not."""
    forged = resigned(tmp_path, backup, [root_of(tmp_path, 2)], ec.generate_private_key(ec.SECP256R1()))
    for trusted in ([], [root_of(tmp_path, 2)]):
        with pytest.raises(StartError, match="signature does not verify"):
            restore(forged, tmp_path / "restored", *trusted)


def exchange_key(contents: dict[str, bytes]) -> None:
    """Exchange a key."""
    contents["ca/2/key.pem"] = contents["ca/1/key.pem"]


def exchange_ledger(contents: dict[str, bytes]) -> None:
    """Change one octet of the ledger, in a page's unused part."""
    contents[FILE_NAME] = contents[FILE_NAME][:-1] + b"\1"


def add_file(contents: dict[str, bytes]) -> None:
    """Add a file."""
    contents["channel.pem"] = b"a stranger's"


def leave_out(contents: dict[str, bytes]) -> None:
    """Leave a certificate out."""
    del contents["ca/2/new-with-old.pem"]


def another_time(contents: dict[str, bytes]) -> None:
    """Let the backup look newer than it is."""
    contents["manifest"] = contents["manifest"].replace(b'"made_at":"20', b'"made_at":"21')


def no_signature(contents: dict[str, bytes]) -> None:
    """Say that the manifest is not signed."""
    lines = contents["manifest"].split(b"\n")
    contents["manifest"] = b"\n".join([*lines[:2], b"unsigned", b""])


def other_kind(contents: dict[str, bytes]) -> None:
    """Say that the manifest is another statement."""
    contents["manifest"] = contents["manifest"].replace(b"vmi-agent backup manifest 1", b"vmi-agent revocations 1")


def no_manifest(contents: dict[str, bytes]) -> None:
    """Take the manifest away, as if an older version had made the backup."""
    del contents["manifest"]


def unreadable_manifest(contents: dict[str, bytes]) -> None:
    """Put nesting without end into the manifest."""
    contents["manifest"] = b"vmi-agent backup manifest 1\n" + b"[" * 500_000 + b"\nunsigned\n"


def manifest_of_other_types(contents: dict[str, bytes]) -> None:
    """Put values of other types into the manifest."""
    content = b'{"certificates":[],"made_at":1,"files":[{"name":1,"size":"x","sha256":[]}]}'
    contents["manifest"] = b"vmi-agent backup manifest 1\n" + content + b"\nunsigned\n"


TAMPERED = [exchange_key, exchange_ledger, add_file, leave_out, another_time, no_signature, other_kind, no_manifest]


@pytest.mark.parametrize("tamper", [*TAMPERED, unreadable_manifest, manifest_of_other_types])
def test_backup_that_was_tampered_with(
    tmp_path: Path, backup: Path, tamper: Callable[[dict[str, bytes]], None]
) -> None:
    """Whatever was changed after the signature is found: by the signature, or by the digest that was written down."""
    digest = sha256(backup.read_bytes()).hexdigest()
    contents = members(backup)
    tamper(contents)
    forged = write_tar(tmp_path / "forged.tar", contents)
    root = root_of(tmp_path, 1)
    with pytest.raises(StartError, match=r"not a sound backup|no certificate leads|signed nothing"):
        restore(forged, tmp_path / "restored", root)
    with pytest.raises(StartError, match=r"not a sound backup|--sha256"):
        restore(forged, tmp_path / "restored", digest=digest)

    assert names(tmp_path) == {"agent", "backup.tar", "forged.tar"}


@pytest.mark.parametrize("key_type", ["p256", "p384", "rsa2048", "ed25519"])
def test_manifest_verifies_under_openssl(tmp_path: Path, key_type: str) -> None:
    """OpenSSL reads the signature over the manifest's first two lines; they are never DER of a certificate or CRL."""
    create_ca(tmp_path / "agent", key_type, now())
    back_up(tmp_path / "agent", tmp_path / "backup.tar", now())
    *lines, signature, _ = members(tmp_path / "backup.tar")["manifest"].split(b"\n")
    (tmp_path / "signed").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "signature").write_bytes(base64.b64decode(signature))
    root = root_of(tmp_path, 1)
    spki = root.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(spki)
    digest = [] if key_type == "ed25519" else ["-digest", "sha384" if key_type == "p384" else "sha256"]
    command = [need("openssl"), "pkeyutl", "-verify", "-rawin", *digest, "-pubin", "-inkey", str(tmp_path / "key.pem")]
    command += ["-in", str(tmp_path / "signed"), "-sigfile", str(tmp_path / "signature")]
    verified = subprocess.run(command, capture_output=True, text=True, check=False)

    assert "Signature Verified Successfully" in verified.stdout, verified.stderr
    kinds = (signed_statement.BACKUP, signed_statement.REVOCATIONS)
    assert all(kind.encode()[0] != DER_SEQUENCE for kind in kinds)
    assert len(set(kinds)) == len(kinds)
    assert lines[0].decode() in kinds


def test_backup_with_the_key_in_a_token(tmp_path: Path) -> None:
    """A key in a token signs; without the token the backup is refused, unless it is to be unsigned."""
    state = ["--state-dir", str(tmp_path / "agent")]
    with soft_token(tmp_path, "backup") as token:
        (tmp_path / "pin").write_text(token.token.pin)
        (tmp_path / "pin").chmod(0o600)
        options = ["--pkcs11-module", str(token.token.module), "--pkcs11-token", "backup"]
        options += ["--pkcs11-pin-file", str(tmp_path / "pin")]
        assert run("vmi-agent", "ca", "init", "--key-type", "p256", *state, *options).returncode == 0
        signed = run("vmi-agent", "backup", *state, *options, str(tmp_path / "signed.tar"))
        refused = run("vmi-agent", "backup", *state, str(tmp_path / "refused.tar"))
        unsigned = run("vmi-agent", "backup", *state, "--unsigned", str(tmp_path / "unsigned.tar"))

    root = root_of(tmp_path, 1)
    assert signed.stdout.splitlines()[1].endswith(root.fingerprint(hashes.SHA256()).hex())
    restore(tmp_path / "signed.tar", tmp_path / "restored", root)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "--pkcs11-module" in refused.stderr
    assert "--unsigned" in refused.stderr
    assert "not signed" in unsigned.stdout
    assert not (tmp_path / "refused.tar").exists()
    with pytest.raises(StartError, match=r"is not signed, so --trust-root shows nothing\. Give --sha256"):
        restore(tmp_path / "unsigned.tar", tmp_path / "another", root)


def test_backup_with_an_encrypted_key(tmp_path: Path) -> None:
    """The passphrase is asked for by name; with it the backup is signed."""
    state = ["--state-dir", str(tmp_path / "agent")]
    (tmp_path / "passphrase").write_text("secret phrase\n")
    (tmp_path / "passphrase").chmod(0o600)
    opens = ["--key-passphrase-file", str(tmp_path / "passphrase")]
    assert run("vmi-agent", "ca", "init", "--key-type", "p256", *state, *opens).returncode == 0
    refused = run("vmi-agent", "backup", *state, str(tmp_path / "backup.tar"))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "--key-passphrase-file" in refused.stderr
    assert names(tmp_path) == {"agent", "passphrase"}

    assert run("vmi-agent", "backup", *state, *opens, str(tmp_path / "backup.tar")).returncode == 0
    restore(tmp_path / "backup.tar", tmp_path / "restored", root_of(tmp_path, 1))


def test_restore_command_needs_to_know_whose_backup_it_is(tmp_path: Path, backup: Path) -> None:
    """Without a digest, a root or the word for neither, nothing is restored; contradicting options are refused."""
    command = ["vmi-agent", "restore", "--state-dir", str(tmp_path / "restored"), str(backup)]
    digest = sha256(backup.read_bytes()).hexdigest()
    (tmp_path / "root.pem").write_text(pem_of(root_of(tmp_path, 2)))
    without = run(*command)
    assert without.returncode == 2
    assert all(word in without.stderr for word in ("--trust-root", "--sha256", "--unverified"))
    assert run(*command, "--unverified", "--sha256", digest).returncode == 2
    assert run(*command, "--sha256", digest[:-1]).returncode == 2
    assert run(*command, "--trust-root", str(tmp_path / "agent/ca/1/key.pem")).returncode == 2
    other = run(*command, "--sha256", digest[:-1] + ("0" if digest[-1] != "0" else "1"))
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert digest in other.stderr
    assert not (tmp_path / "restored").exists()

    done = run(*command, "--forget-revocations", "--sha256", digest.upper(), "--trust-root", str(tmp_path / "root.pem"))
    assert (done.returncode, done.stderr.count("Warning")) == (0, 1)
    assert "keys that were blocked" in done.stderr
    assert "signed by CN=VMI Root CA 2" in done.stdout


def test_backup_of_an_older_version(tmp_path: Path, backup: Path) -> None:
    """One without a manifest is restored by its digest, or unverified, with a warning; a root cannot vouch for it."""
    contents = members(backup)
    del contents["manifest"]
    older = write_tar(tmp_path / "older.tar", contents)
    (tmp_path / "root.pem").write_text(pem_of(root_of(tmp_path, 2)))

    def command(number: int, *options: str) -> subprocess.CompletedProcess[str]:
        return run(
            "vmi-agent",
            "restore",
            "--state-dir",
            str(tmp_path / f"restored{number}"),
            "--forget-revocations",
            *options,
            str(older),
        )

    by_root = command(1, "--trust-root", str(tmp_path / "root.pem"))
    by_digest = command(2, "--sha256", sha256(older.read_bytes()).hexdigest())
    unverified = command(3, "--unverified")

    assert (by_root.returncode, by_root.stderr.count("\n")) == (1, 1)
    assert "older version" in by_root.stderr
    assert (by_digest.returncode, by_digest.stderr.count("Warning")) == (0, 2)
    assert (unverified.returncode, unverified.stderr.count("Warning")) == (0, 3)
    assert "may be forged" in unverified.stderr


def test_statement_is_for_its_kind_alone(tmp_path: Path) -> None:
    """A list of revocations that the CA signed is no manifest, nor is a CSR or certificate that it might sign."""
    create_ca(tmp_path / "agent", "p256", now())
    signer = signed_statement.open_signer(tmp_path / "agent", Access())
    statement = signed_statement.make(signed_statement.REVOCATIONS, {"revoked": []}, tmp_path / "agent", signer)
    assert signed_statement.read(signed_statement.REVOCATIONS, statement).fields == {"revoked": []}
    for octets in (statement, make_csr(), b"", b"\n\n\n"):
        with pytest.raises(signed_statement.StatementRefused):
            signed_statement.read(signed_statement.BACKUP, octets)


def test_rotation_without_a_way_to_the_new_root(tmp_path: Path) -> None:
    """A root that does not certify the newer one vouches for the backups that it signed itself, and for no others."""
    create_ca(tmp_path / "agent", "p256", now())
    back_up(tmp_path / "agent", tmp_path / "first.tar", now())
    rotate(tmp_path / "agent")
    (tmp_path / "agent" / "ca" / "2" / "new-with-old.pem").unlink()
    back_up(tmp_path / "agent", tmp_path / "second.tar", now())
    restore(tmp_path / "first.tar", tmp_path / "restored", root_of(tmp_path, 1))
    with pytest.raises(StartError, match="no certificate leads"):
        restore(tmp_path / "second.tar", tmp_path / "refused", root_of(tmp_path, 1))
