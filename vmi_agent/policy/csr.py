"""A CSR as the agent reads it: size, DER, and proof of possession (RFC 2986).

Whether the key is good enough is `key_policy`'s question, whether the wishes may be granted `profile`'s.
"""

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from protocol.errors import ErrorCode
from runtime.asn1 import der
from vmi_agent.errors import Refused
from vmi_agent.policy.malformed import cause, without_ecdsa_parameters

MAX_CSR_OCTETS = 16 * 1024

_POSSESSION_HASHES = (
    hashes.SHA256,
    hashes.SHA384,
    hashes.SHA512,
    hashes.SHA3_256,
    hashes.SHA3_384,
    hashes.SHA3_512,
)


@dataclass(frozen=True, slots=True)
class Csr:
    """A CSR whose DER is sound.

    Attributes:
        der: as received.
        sha256: over `der`, 32 octets.
        subject: the Name element, octet for octet.
        public_key_info: the SubjectPublicKeyInfo element, octet for octet.
        attributes: the [0] element with the attributes, octet for octet.
        request: the same CSR, parsed.
    """

    der: bytes
    sha256: bytes
    subject: bytes
    public_key_info: bytes
    attributes: bytes
    request: x509.CertificateSigningRequest


def parse(octets: bytes) -> Csr:
    """Read a CSR. Says nothing yet about its signature, its key or its wishes.

    Args:
        octets: PKCS#10 in DER, at most 16 KiB.

    Raises:
        Refused: CSR_TOO_LARGE or CSR_MALFORMED, naming what is wrong with it.
    """
    if len(octets) > MAX_CSR_OCTETS:
        raise Refused(ErrorCode.CSR_TOO_LARGE, f"The CSR is larger than {MAX_CSR_OCTETS} octets.")
    try:
        request = _load(octets)
        _, subject, public_key_info, attributes = der.children(der.children(octets)[0])
    except (ValueError, x509.InvalidVersion) as error:
        raise Refused(ErrorCode.CSR_MALFORMED, cause(octets)) from error
    return Csr(octets, hashlib.sha256(octets).digest(), subject, public_key_info, attributes, request)


def _load(octets: bytes) -> x509.CertificateSigningRequest:
    try:
        return x509.load_der_x509_csr(octets)
    except ValueError:
        # OpenSSL, GnuTLS and Go verify ECDSA signatures whose algorithm has NULL parameters, and some TPM and embedded
        # clients write them. They are outside of what is signed, and nothing of them goes into a certificate.
        plain = without_ecdsa_parameters(octets)
        if plain is None:
            raise
        return x509.load_der_x509_csr(plain)


def check_possession(csr: Csr) -> None:
    """Check that the CSR is signed with the private key of the public key that it holds.

    Raises:
        Refused: CSR_BAD_SIGNATURE.
    """
    try:
        hash_algorithm = csr.request.signature_hash_algorithm
        accepted = hash_algorithm is None or isinstance(hash_algorithm, _POSSESSION_HASHES)
        valid = accepted and csr.request.is_signature_valid
    except (UnsupportedAlgorithm, ValueError, TypeError) as error:
        text = "The CSR's signature algorithm is not supported, or does not go with its key."
        raise Refused(ErrorCode.CSR_BAD_SIGNATURE, text) from error
    if not accepted:
        text = "The CSR is signed with an outdated hash. Sign it with SHA-256, SHA-384 or SHA-512."
        raise Refused(ErrorCode.CSR_BAD_SIGNATURE, text)
    if not valid:
        text = (
            "The CSR's signature does not verify with its own public key. Make a new CSR with the matching private key."
        )
        raise Refused(ErrorCode.CSR_BAD_SIGNATURE, text)
