"""The corpus of hostile and odd CSRs (tests/corpus): each gets what the table says, from the agent and over HTTP."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from support.agents import Alone, Time, always, issuing, request
from support.corpus_table import EXPECTED
from support.processes import SIGN_CSR, post, running_pair

from runtime.asn1 import der
from vmi_agent.errors import Refused

CORPUS = Path(__file__).parents[1] / "corpus"
CSRS = CORPUS / "csrs"

# File of a weak key -> a part of what is said of it: no key is refused for another weakness than it is there for.
SAID = {
    "rsa-1024": "1024 bits",
    "rsa-2047": "2047 bits",
    "rsa-8193": "8193 bits",
    "rsa-exponent-1": "exponent",
    "rsa-exponent-3": "exponent",
    "rsa-exponent-even": "exponent",
    "rsa-exponent-32-bits": "exponent",
    "rsa-private-exponent-small": "exponent",
    "rsa-even": "prime factor",
    "rsa-factor-65537": "prime factor",
    "rsa-8192-factor-3": "prime factor",
    "rsa-roca": "ROCA",
    "rsa-primes-close": "too close",
    "rsa-square": "too close",
    "rsa-modulus-octets-repeat": "repeats one octet",
    "rsa-modulus-biased": "than chance",
    "rsa-modulus-sparse": "regular distances",
    "rsa-modulus-xz-backdoor": "xz backdoor",
    "rsa-parameters-missing": "parameters",
    "ec-secp256k1": "curve",
    "ec-parameters-explicit": "by name",
    "ec-point-off-curve": "not on its curve",
    "ec-point-compressed": "uncompressed form",
    "ec-point-infinity": "no point",
    "ec-point-hybrid": "no point",
    "ed25519-order-8": "everybody",
    "mldsa44-for-everybody": "everybody",
    "mldsa65-of-44s-size": "size",
    "key-dsa": "kind",
}
HTTP = {
    "issued": (200, None),
    "CSR_MALFORMED": (400, "csr.malformed"),
    "CSR_TOO_LARGE": (413, "csr.too_large"),
    "CSR_BAD_SIGNATURE": (400, "csr.bad_signature"),
    "CSR_WEAK_KEY": (400, "csr.weak_key"),
    "CSR_POLICY": (400, "csr.policy"),
}


def read(name: str) -> bytes:
    """Return a CSR of the corpus."""
    return (CSRS / f"{name}.der").read_bytes()


@pytest.fixture(scope="module")
def corpus_issuing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    """Yield one CA for the whole corpus."""
    with issuing(tmp_path_factory.mktemp("corpus"), Time()) as (opened, _):
        yield opened


def test_corpus_is_the_table() -> None:
    """Every file has its line in the table, and every line its file."""
    assert sorted(path.stem for path in CSRS.iterdir()) == sorted(EXPECTED)


def test_corpus_is_made_anew_alike(tmp_path: Path) -> None:
    """The generator makes the files that are here; the signatures of ML-DSA keys alone are others each time."""
    subprocess.run([sys.executable, str(CORPUS / "make_csrs.py"), str(tmp_path)], check=True)

    made = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert made.keys() == EXPECTED.keys()
    assert [name for name in made if to_be_signed(name, made[name]) != to_be_signed(name, read(name))] == []


def to_be_signed(name: str, csr: bytes) -> bytes:
    """Return what of a CSR does not differ from run to run."""
    return der.children(csr)[0] if "mldsa" in name or "slhdsa" in name else csr


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items(), ids=EXPECTED.keys())
def test_corpus_judged(name: str, expected: str, corpus_issuing: Alone) -> None:
    """A CSR of the corpus is refused with its code, or gets a leaf with its own subject and key, octet for octet."""
    csr = read(name)
    try:
        chain = corpus_issuing.issue(request(csr), always).chain
    except Refused as refused:
        assert refused.code.name == expected
        return
    assert expected == "issued"
    assert der.leaf_subject_and_key(chain[0]) == der.csr_subject_and_key(csr)
    leaf, root = (x509.load_der_x509_certificate(each) for each in chain)
    leaf.verify_directly_issued_by(root)  # test_corpus_readers.py asks openssl and others


@pytest.mark.parametrize(("name", "said"), SAID.items(), ids=SAID.keys())
def test_corpus_weak_key_is_told_its_class(name: str, said: str, corpus_issuing: Alone) -> None:
    """A weak key is refused for the weakness that it was made with, in words that name it."""
    with pytest.raises(Refused, match=said):
        corpus_issuing.issue(request(read(name)), always)


def test_corpus_over_http(tmp_path: Path) -> None:
    """Each CSR of the corpus gets its status and its code through both processes, which both outlive all of them."""
    got = {}
    with running_pair(tmp_path) as pair:
        for name in EXPECTED:
            body = json.dumps({"data": [base64.b64encode(read(name)).decode()]})
            answer = post(pair.url + SIGN_CSR, body)
            got[name] = (answer.status, answer.json["data"]["code"] if answer.status != 200 else None)
        lines = [line for line in pair.agent.lines if not line.startswith("{")]
        assert pair.proxy.stop() == 0
        assert pair.agent.stop() == 0

    assert got == {name: HTTP[expected] for name, expected in EXPECTED.items()}
    assert lines == []  # no warning of a library either
