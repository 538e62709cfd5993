"""CA keys of ML-DSA through the whole exchange: channel, HTTP, CRL, OCSP, and a rotation there and back."""

import json
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID
from support import ca_life_parts
from support.ca_life_parts import assert_directly_issued, now, stored
from support.csrs import make_csr, openssl_csr, pem
from support.judges import split_chain
from support.processes import IBM_ROOT, IBM_SIGN_CSR, SIGN_CSR, Pair, curl, post, run, running_pair

from vmi_agent.ca import store as ca_store
from vmi_agent.keys.algorithms import key_type_of

ML_DSA = ("mldsa44", "mldsa65", "mldsa87")


def init(directory: Path, key_type: str) -> Path:
    """Make the CA of an agent to come; return its state directory."""
    state_dir = directory / "agent"
    done = run("vmi-agent", "ca", "init", "--state-dir", str(state_dir), "--key-type", key_type)
    assert (done.returncode, done.stderr) == (0, "")
    return state_dir


def ask(pair: Pair, csr: str) -> list[x509.Certificate]:
    """Have a CSR signed; return the chain, verified."""
    answer = post(pair.url + SIGN_CSR, json.dumps({"data": [csr]}))
    assert answer.status == 200, answer.body
    chain = [x509.load_pem_x509_certificate(each.encode()) for each in split_chain(answer.json["data"][0])]
    assert_directly_issued([*chain, chain[-1]])
    return chain


def fetched(url: str, *options: str, stdin: bytes = b"") -> bytes:
    """Return what curl gets, octet for octet."""
    return subprocess.run(["curl", "-sSf", *options, url], input=stdin, capture_output=True, check=True).stdout


@pytest.mark.parametrize("key_type", ML_DSA)
def test_exchange_with_a_post_quantum_ca(tmp_path: Path, key_type: str) -> None:
    """Classical and ML-DSA CSRs are signed on both routes; root, CRL, certificates and OCSP answer are there."""
    state_dir = init(tmp_path, key_type)
    csr = openssl_csr(tmp_path, "rsa4096").read_text()
    with running_pair(tmp_path) as pair:
        chains = [ask(pair, each) for each in (csr, *(pem(make_csr(key=kind)) for kind in ML_DSA))]
        leaf, root = chains[0]
        shipped = post(pair.url + IBM_SIGN_CSR, json.dumps({"CsrString": csr})).json["Certificate"]
        told = curl(pair.url + IBM_ROOT).json["Certificate"]
        crl = x509.load_der_x509_crl(fetched(f"{pair.url}/pki/1.crl"))
        request = ocsp.OCSPRequestBuilder().add_certificate(leaf, root, hashes.SHA256()).build()
        asked = request.public_bytes(serialization.Encoding.DER)
        options = ("-H", "Content-Type: application/ocsp-request", "--data-binary", "@-")
        answer = ocsp.load_der_ocsp_response(fetched(f"{pair.url}/pki/ocsp", *options, stdin=asked))

    assert key_type_of(root.public_key()) == key_type
    assert root == stored(state_dir, 1, ca_store.ROOT_FILE) == x509.load_pem_x509_certificate(told.encode())
    assert x509.load_pem_x509_certificate(shipped.encode()).public_key() == leaf.public_key()
    assert crl.is_signature_valid(root.public_key())  # type: ignore[arg-type]  # a CA's kind of key
    assert answer.certificate_status is ocsp.OCSPCertStatus.GOOD
    (delegate,) = answer.certificates
    delegate.verify_directly_issued_by(root)
    assert {len(each) for each in chains} == {2}
    verified = run("vmi-agent", "audit", "verify", "--state-dir", str(state_dir))
    assert (verified.returncode, verified.stderr) == (0, "")


def test_rotation_to_post_quantum_and_back(tmp_path: Path) -> None:
    """P-384, ML-DSA-65, P-384 under a running agent: each chain ends in its own root, which the proxy tells."""
    state_dir = init(tmp_path, "p384")
    kinds = []
    with running_pair(tmp_path) as pair:
        chains = [ask(pair, pem(make_csr()))]
        for generation, key_type in ((2, "mldsa65"), (3, "p384")):
            done = run("vmi-agent", "ca", "rotate", "--state-dir", str(state_dir), "--key-type", key_type)
            assert (done.returncode, done.stderr) == (0, "")
            pair.proxy.wait_for("root learned", root_generation=generation)
            chains.append(ask(pair, pem(make_csr())))
            told = x509.load_pem_x509_certificate(curl(pair.url + IBM_ROOT).json["Certificate"].encode())
            assert told == chains[-1][1]
            kinds.append(key_type_of(told.public_key()))
        bundle = fetched(f"{pair.url}/pki/2.p7c")

    assert kinds == ["mldsa65", "p384"]
    assert len({chain[1] for chain in chains}) == 3
    # Its own root, as generation 1 certifies it, and as generation 3 does.
    certificates = serialization.pkcs7.load_der_pkcs7_certificates(bundle)
    assert len(certificates) == 3
    assert {each.subject for each in certificates} == {chains[1][1].subject}


def test_largest_chain_with_post_quantum_keys(tmp_path: Path) -> None:
    """An issuing CA of the largest keys under a root of the largest keys, with the largest leaf, fits everywhere."""
    state_dir = tmp_path / "agent"
    asked = run("vmi-agent", "ca", "csr", "--state-dir", str(state_dir), "--key-type", "mldsa87")
    csr = x509.load_pem_x509_csr(asked.stdout.encode())
    (tmp_path / "chain.pem").write_bytes(chain_for(csr, 6))
    done = run("vmi-agent", "ca", "install-chain", "--state-dir", str(state_dir), str(tmp_path / "chain.pem"))
    assert (done.returncode, done.stderr) == (0, "")
    with running_pair(tmp_path) as pair:
        chain = ask(pair, pem(make_csr(key="mldsa87")))

    assert len(chain) == 8
    assert sum(len(each.public_bytes(serialization.Encoding.DER)) for each in chain) > 55_000


def chain_for(csr: x509.CertificateSigningRequest, above: int) -> bytes:
    """Return a certificate for an issuing CA in PEM, and so many above it, all with the largest keys."""
    usage = csr.extensions.get_extension_for_class(x509.KeyUsage).value
    key = mldsa.MLDSA87PrivateKey.generate()
    names = [csr.subject, *(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {n}")]) for n in range(above))]
    certificates = []
    for at, name in enumerate(names):
        public_key = csr.public_key() if at == 0 else key.public_key()
        assert isinstance(public_key, mldsa.MLDSA87PublicKey)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[min(at + 1, above)])
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - timedelta(days=1))
            .not_valid_after(now() + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        )
        certificates.append(builder.sign(key, None))
    return ca_life_parts.pem(*certificates).encode()
