"""Judges of certificates: openssl, GnuTLS and Go, and every extension looked at one by one."""

import os
import re
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from support.needs import need

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n.+?-----END CERTIFICATE-----\n", re.DOTALL)


def split_chain(text: str) -> list[str]:
    """Return the certificates of a PEM text, of which nothing else may be part."""
    found = _PEM.findall(text)
    assert "".join(found) == text
    return found


def openssl(*arguments: str, stdin: str = "") -> str:
    """Run openssl; return what it printed, or fail with what it complained of."""
    done = subprocess.run([need("openssl"), *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_openssl_accepts(chain: str, directory: Path) -> None:
    """Have openssl verify a chain, leaf first, root last, strictly and for a TLS client."""
    leaf, *others = split_chain(chain)
    (directory / "leaf.pem").write_text(leaf)
    (directory / "root.pem").write_text(others[-1])
    untrusted = directory / "untrusted.pem"
    untrusted.write_text("".join(others[:-1]))
    command = ["verify", "-x509_strict", "-check_ss_sig", "-purpose", "sslclient"]
    command += ["-CAfile", str(directory / "root.pem")]
    if others[:-1]:
        command += ["-untrusted", str(untrusted)]
    assert openssl(*command, str(directory / "leaf.pem")).endswith("leaf.pem: OK\n")


def assert_same_subject_and_key(csr: Path, leaf: str) -> None:
    """Have openssl print subject and public key of a CSR and of its leaf: no difference."""
    names = ["-noout", "-subject", "-nameopt", "RFC2253,sep_multiline,show_type,-esc_msb,utf8"]
    assert openssl("x509", *names, stdin=leaf) == openssl("req", "-in", str(csr), *names)
    assert openssl("x509", "-noout", "-pubkey", stdin=leaf) == openssl("req", "-in", str(csr), "-noout", "-pubkey")


def assert_is_root(root: x509.Certificate) -> None:
    """Look at every extension of a root, and at its criticality."""
    found = {extension.oid: extension for extension in root.extensions}
    assert set(found) == {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
    assert root.version is x509.Version.v3
    assert root.subject == root.issuer
    assert found[ExtensionOID.BASIC_CONSTRAINTS].critical
    assert found[ExtensionOID.BASIC_CONSTRAINTS].value == x509.BasicConstraints(ca=True, path_length=1)
    assert found[ExtensionOID.KEY_USAGE].critical
    assert _usages(found[ExtensionOID.KEY_USAGE].value) == {"key_cert_sign", "crl_sign"}
    assert not found[ExtensionOID.SUBJECT_KEY_IDENTIFIER].critical
    assert not found[ExtensionOID.AUTHORITY_KEY_IDENTIFIER].critical


def assert_is_leaf(leaf: x509.Certificate, root: x509.Certificate, *, rsa: bool, names: bool = False) -> None:
    """Look at every field and extension of a leaf, and at its criticality.

    Args:
        names: alternative names were asked for; the subject's mailboxes are among them in any case.
    """
    found = {extension.oid: extension for extension in leaf.extensions}
    mailboxes = [attribute.value for attribute in leaf.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS)]
    expected = {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
    assert set(found) == expected | ({ExtensionOID.SUBJECT_ALTERNATIVE_NAME} if names or mailboxes else set())
    if mailboxes:
        stamped = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert set(mailboxes) <= set(stamped.value.get_values_for_type(x509.RFC822Name))
        assert not stamped.critical
    assert leaf.version is x509.Version.v3
    assert leaf.issuer == root.subject
    serial = leaf.serial_number.to_bytes(17)
    assert 0x01 <= serial[0] <= 0x7F
    assert found[ExtensionOID.BASIC_CONSTRAINTS].critical
    assert found[ExtensionOID.BASIC_CONSTRAINTS].value == x509.BasicConstraints(ca=False, path_length=None)
    assert found[ExtensionOID.KEY_USAGE].critical
    granted = {"digital_signature", "key_encipherment"} if rsa else {"digital_signature"}
    assert _usages(found[ExtensionOID.KEY_USAGE].value) == granted
    assert not found[ExtensionOID.EXTENDED_KEY_USAGE].critical
    assert list(found[ExtensionOID.EXTENDED_KEY_USAGE].value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not found[ExtensionOID.SUBJECT_KEY_IDENTIFIER].critical
    authority = found[ExtensionOID.AUTHORITY_KEY_IDENTIFIER]
    assert not authority.critical
    root_identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority.value == x509.AuthorityKeyIdentifier(root_identifier.digest, None, None)


def _usages(value: x509.ExtensionType) -> set[str]:
    assert isinstance(value, x509.KeyUsage)
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return {name for name in (*names, "key_cert_sign", "crl_sign") if getattr(value, name)}


def certtool(*arguments: str, stdin: str) -> bool:
    """Run GnuTLS's certtool; return whether the chain is trusted."""
    command = [need("certtool"), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == ("The certificate is trusted" in done.stdout), done.stdout + done.stderr
    return done.returncode == 0


def go(directory: Path, files: dict[str, str]) -> dict[str, str]:
    """Run the verifier in Go over chains; return what it says of each."""
    for name, text in files.items():
        (directory / name).write_text(text)
    program = Path(__file__).with_name("verify_chain.go")
    environment = os.environ | {"GOCACHE": str(directory / "cache"), "GO111MODULE": "off", "GOFLAGS": ""}
    command = [need("go"), "run", str(program), *files]
    run = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = dict(line.split(" ", 1) for line in run.stdout.splitlines())
    assert found.keys() == files.keys()
    return found
