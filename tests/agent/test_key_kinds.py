"""Every kind of CA key with every kind of CSR key that is accepted: lint and three verifiers have nothing to say."""

from functools import cache
from itertools import product
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.agents import Time, always, issuing, request
from support.csrs import make_csr
from support.judges import assert_openssl_accepts, certtool, go, openssl

from runtime.asn1.der import csr_subject_and_key, leaf_subject_and_key
from runtime.clock import utc_now
from vmi_agent.errors import Refused
from vmi_agent.keys import KEY_TYPES
from vmi_agent.policy import key_policy
from vmi_agent.policy.csr import parse
from vmi_agent.policy.profile_lint import lint_certificate

CSR_KEYS = ("rsa2048", "rsa3072", "rsa4096", "p256", "p384", "p521", "ed25519", "mldsa44", "mldsa65", "mldsa87")
# What GnuTLS 3.7 and Go verify signatures of; both take a leaf with any key.
CLASSICAL = tuple(key for key in KEY_TYPES if not key.startswith("mldsa"))

Chains = dict[tuple[str, str], tuple[bytes, ...]]


@cache
def accepted() -> tuple[str, ...]:
    """Return the kinds of CSR key that the key policy accepts."""
    return tuple(key for key in CSR_KEYS if is_accepted(key))


def is_accepted(key: str) -> bool:
    """Return whether the key policy accepts this kind."""
    try:
        key_policy.check(parse(make_csr(key=key)))
    except Refused:
        return False
    return True


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Chains:
    """Return what was issued, for each pair of a kind of CA key and a kind of CSR key."""
    found: Chains = {}
    time = Time()
    time.now = utc_now()  # which the verifiers go by
    for ca_key in KEY_TYPES:
        with issuing(tmp_path_factory.mktemp(ca_key), time, key_type=ca_key) as (opened, _):
            for csr_key in accepted():
                found[ca_key, csr_key] = opened.issue(request(make_csr(key=csr_key)), always).chain
    return found


def pem(chain: tuple[bytes, ...]) -> str:
    """Return a chain in PEM, written by the cryptography package."""
    certificates = (x509.load_der_x509_certificate(each) for each in chain)
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in certificates)


def test_every_kind_is_issued(chains: Chains) -> None:
    """No pair is left out, and each leaf has the subject and the key of its CSR, octet for octet."""
    mldsa = {"mldsa44", "mldsa65", "mldsa87"}
    assert set(accepted()) >= {"rsa2048", "rsa3072", "rsa4096", "p256", "p384", "p521", "ed25519"} | mldsa
    assert set(chains) == set(product(KEY_TYPES, accepted()))
    for (_, csr_key), (leaf, root) in chains.items():
        assert leaf_subject_and_key(leaf) == csr_subject_and_key(make_csr(key=csr_key))
        x509.load_der_x509_certificate(leaf).verify_directly_issued_by(x509.load_der_x509_certificate(root))


@pytest.mark.parametrize("ca_key", KEY_TYPES)
def test_lint_of_every_kind(chains: Chains, ca_key: str) -> None:
    """pkilint finds no error and no warning, in leaf or root."""
    found = {
        csr_key: [finding for each in chains[ca_key, csr_key] for finding in lint_certificate(each)]
        for csr_key in accepted()
    }

    assert found == {csr_key: [] for csr_key in accepted()}


def test_openssl_verifies_every_kind(chains: Chains, tmp_path: Path) -> None:
    """`openssl verify -x509_strict` accepts, for a TLS client, each chain whose keys it can read."""
    knows_mldsa = "ML-DSA" in openssl("list", "-public-key-algorithms")
    known = [pair for pair in chains if knows_mldsa or not any(key.startswith("mldsa") for key in pair)]

    assert {ca_key for ca_key, _ in known} >= set(CLASSICAL)
    for pair in known:
        assert_openssl_accepts(pem(chains[pair]), tmp_path)


@pytest.mark.parametrize("ca_key", CLASSICAL)
def test_gnutls_verifies_every_kind(chains: Chains, ca_key: str, tmp_path: Path) -> None:
    """GnuTLS accepts each chain as it stands, and its leaf for a TLS client under its root."""
    root = tmp_path / "root.pem"
    for csr_key in accepted():
        leaf_text, root_text = (pem((each,)) for each in chains[ca_key, csr_key])
        root.write_text(root_text)
        trusted = ["--verify", "--load-ca-certificate", str(root), "--verify-purpose", "1.3.6.1.5.5.7.3.2"]
        assert certtool("--verify-chain", stdin=leaf_text + root_text)
        assert certtool(*trusted, stdin=leaf_text)


def test_go_verifies_every_kind(chains: Chains, tmp_path: Path) -> None:
    """Go's crypto/x509 accepts, for a TLS client."""
    files = {}
    for (ca_key, csr_key), chain in chains.items():
        if ca_key in CLASSICAL:
            files[f"{ca_key}-{csr_key}"] = pem(chain)

    assert set(go(tmp_path, files).values()) == {"ok"}


def test_verifiers_refuse_a_bad_signature(chains: Chains, tmp_path: Path) -> None:
    """What the verifiers say means something: a leaf with one bit changed is refused by GnuTLS and by Go."""
    leaf, root = chains["p256", "p256"]
    text = pem((leaf[:-1] + bytes((leaf[-1] ^ 1,)), root))

    assert not certtool("--verify-chain", stdin=text)
    assert "verification failure" in go(tmp_path, {"bad": text})["bad"]
