"""CSRs that are made beforehand, kept between runs, and each sent to a server once at most."""

import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

# How many RSA-2048 keys each process makes; a key has many CSRs, with other subjects.
KEYS = 200
MIX = f"RSA-2048, SHA-256, subject CN=hmcNNNNNNN.example, no extensions; {KEYS} keys for each core that made them"


def prepare(path: Path, count: int) -> None:
    """Make a file hold at least so many CSRs, pairwise different, one to a line: PEM as a JSON string."""
    there = sum(1 for _ in path.open()) if path.exists() else 0
    if there < count:
        parts = os.cpu_count() or 1
        numbers = [range(there + part, count, parts) for part in range(parts)]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        with ProcessPoolExecutor(parts) as processes, unfinished.open("w") as out:
            if there:
                out.write(path.read_text())
            for made in processes.map(_make, numbers):
                out.writelines(made)
        unfinished.replace(path)
    with path.open("rb") as lines:
        digests = [hashlib.sha256(line).digest() for line in lines]
    if len(set(digests)) != len(digests):
        raise ValueError(f"{path} holds a CSR twice; remove it")


def subject_of(number: int) -> str:
    """Return the common name of a CSR."""
    return f"hmc{number:07}.example"


def subjects(path: Path) -> list[str]:
    """Return the common names of a file's CSRs, in their order."""
    with path.open() as lines:
        return [_common_name(json.loads(line)) for line in lines]


def _common_name(pem: str) -> str:
    csr = x509.load_pem_x509_csr(pem.encode())
    return str(csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _make(numbers: range) -> list[str]:
    keys = [rsa.generate_private_key(65537, 2048) for _ in range(min(KEYS, len(numbers)))]
    made = []
    for place, number in enumerate(numbers):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject_of(number))])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(keys[place % len(keys)], hashes.SHA256())
        made.append(json.dumps(csr.public_bytes(serialization.Encoding.PEM).decode()) + "\n")
    return made
