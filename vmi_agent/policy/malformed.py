"""What is wrong with octets that are no CSR, for people: looked for only once reading them has failed.

Each text names the cause and what to change, and nothing of the input.
"""

from runtime.asn1 import der
from vmi_agent.errors import Refused
from vmi_agent.policy.subject_encoding import read_subject

NULL = b"\x05\0"
_ECDSA = (
    *(bytes.fromhex(f"06082a8648ce3d0403{arc:02x}") for arc in (2, 3, 4)),  # with SHA-256, -384, -512 (RFC 5758, 3.2)
    *(bytes.fromhex(f"0609608648016503040{arc:03x}") for arc in (0x30A, 0x30B, 0x30C)),  # with SHA3-256, -384, -512
)
_SET, _CONTEXT_0 = 0x31, 0xA0
_FAULT_OF_KEY = (
    "The CSR's public key is not an algorithm with its own parameters and a BIT STRING (RFC 5280, 4.1.2.7). Make a new"
    " CSR, for example with openssl req."
)
_VERSION_0 = b"\x02\x01\0"
_MOST_ARC_BITS = 128  # what the cryptography package reads


def without_ecdsa_parameters(csr: bytes) -> bytes | None:
    """Return a CSR without the NULL parameters of its ECDSA signature algorithm, or None where it has none."""
    try:
        information, algorithm, signature = der.children(csr)
        identifier, *parameters = der.children(algorithm)
    except ValueError:
        return None
    if identifier not in _ECDSA or parameters != [NULL]:
        return None
    return der.wrap(der.SEQUENCE, information, der.wrap(der.SEQUENCE, identifier), signature)


def cause(csr: bytes) -> str:
    """Return why octets cannot be read as a CSR (RFC 2986, 4), in a sentence or two."""
    try:
        return _cause(csr)
    except Refused as refused:  # by the judge of subjects
        return refused.text
    except ValueError as error:
        return f"The CSR is not DER: {error}. Send it as openssl req -outform DER or PEM writes it."


def _cause(csr: bytes) -> str:
    if csr[:1] != b"\x30":
        return "The CSR is no DER, which begins with a SEQUENCE. Send PKCS#10 (RFC 2986), in PEM or base64."
    parts = der.children(csr)
    if len(parts) != 3:
        return "The CSR has not three parts: what is signed, algorithm and signature (RFC 2986, 4.2). Make a new one."
    information, algorithm, signature = parts
    fields = der.children(information)
    return (
        _fault_of_fields(fields)
        or _fault_of_subject(fields[1])
        or _fault_of_attributes(fields[3])
        or _fault_of_signature(algorithm, signature)
        or _FAULT_OF_KEY
    )


def _fault_of_fields(fields: list[bytes]) -> str | None:
    version = fields[0] if fields else b""
    if version[:1] == bytes((_CONTEXT_0,)):
        return "This is a certificate and not a CSR. Send a CSR (PKCS#10, RFC 2986)."
    if version[:1] != b"\x02":
        return "The CSR has no version in front. Write version 0, which RFC 2986, 4.1 calls v1."
    if version != _VERSION_0:
        return "The CSR's version is not 0, which RFC 2986, 4.1 calls v1. Set it to 0 and sign the CSR again."
    tags = [field[0] for field in fields]
    if tags == [der.INTEGER, der.SEQUENCE, der.SEQUENCE]:
        return (
            "The CSR has no attributes field, which RFC 2986, 4.1 asks for even where it is empty ([0], A0 00). Make it"
            " with that, without an option such as openssl's -asn1-kludge."
        )
    if tags != [der.INTEGER, der.SEQUENCE, der.SEQUENCE, _CONTEXT_0]:
        return "The CSR's parts are not version, subject, public key and attributes (RFC 2986, 4.1). Make a new one."
    return None


def _fault_of_subject(subject: bytes) -> str | None:
    try:
        parts = [der.children(part) for part in der.children(subject)]
    except ValueError:
        return "The subject is not a sequence of sets of attributes in DER (RFC 5280, 4.1.2.4). Make a new CSR."
    if any(part != sorted(part) for part in parts):
        return "The subject has a set of attributes that is not in DER's order (X.690, 11.6). Sort it."
    read_subject(subject)
    if not all(_is_object_identifier(der.children(attribute)[0]) for part in parts for attribute in part):
        return "The subject holds an attribute whose type is not an object identifier in DER. Take it out."
    return None


def _is_object_identifier(element: bytes) -> bool:
    """Return whether each arc is in its shortest form (X.690, 8.19.2), and of a size that can be read."""
    contents = element[2:]
    arc, begins = 0, True
    for octet in contents:
        arc = arc << 7 | octet & 0x7F
        if (begins and octet == 0x80) or arc.bit_length() > _MOST_ARC_BITS:
            return False
        begins = octet < 0x80
        arc = 0 if begins else arc
    return element[0] == der.OBJECT_IDENTIFIER and bool(contents) and begins


def _fault_of_attributes(attributes: bytes) -> str | None:
    for attribute in der.children(attributes):
        tags = [part[0] for part in der.children(attribute)] if attribute[0] == der.SEQUENCE else []
        if tags != [der.OBJECT_IDENTIFIER, _SET]:
            return "The CSR has an attribute that is not a type with a SET of values (RFC 2986, 4.1). Take it out."
    return None


def _fault_of_signature(algorithm: bytes, signature: bytes) -> str | None:
    identifier, *parameters = der.children(algorithm) or [b"\0"]
    if identifier[0] != der.OBJECT_IDENTIFIER:
        return "The CSR's signature algorithm has no object identifier. Make a new CSR."
    if signature[0] != der.BIT_STRING:
        return "The CSR's signature is no BIT STRING. Make a new CSR."
    if parameters:
        return "The CSR's signature algorithm has parameters that do not belong to it. Make a new CSR without them."
    return None
