"""Just enough DER: what is found, and what is refused."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from support.csrs import make_csr

from runtime.asn1 import der


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_wrap_and_children_are_inverse(values: list[bytes]) -> None:
    """What is wrapped is found again, whatever its length."""
    elements = [der.wrap(der.OCTET_STRING, value) for value in values]

    assert der.children(der.wrap(der.SEQUENCE, *elements)) == elements


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "30",
        "3001",
        "1f0100",
        "3080",
        "308100",
        "30817f" + "00" * 127,
        "3082000100",
        "3085000000000100",
        "300230",
        "30023003",
        "040100",
        "30000000",
    ],
)
def test_children_of_what_is_not_der(octets: str) -> None:
    """Cut short, indefinite, longer than need be, running past its parent, primitive, or followed by something."""
    with pytest.raises(der.DerError):
        der.children(bytes.fromhex(octets))


@given(st.binary(max_size=60))
def test_children_of_any_octets(octets: bytes) -> None:
    """Any octets are either taken apart without loss or refused; nothing else is raised."""
    try:
        parts = der.children(octets)
    except der.DerError:
        return
    assert octets.endswith(b"".join(parts))


def test_csr_subject_and_key_are_the_csrs_own_octets() -> None:
    """The two elements are what the cryptography package reads from the same CSR."""
    octets = make_csr()
    csr = x509.load_der_x509_csr(octets)

    subject, key_info = der.csr_subject_and_key(octets)

    assert subject == csr.subject.public_bytes()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    assert key_info == csr.public_key().public_bytes(serialization.Encoding.DER, form)


@pytest.mark.parametrize("octets", [b"\x30\x00", b"\x30\x06\x30\x00\x30\x00\x03\x00"])
def test_subject_and_key_of_something_else(octets: bytes) -> None:
    """DER of another shape is neither a CSR nor a certificate."""
    for find in (der.csr_subject_and_key, der.leaf_subject_and_key):
        with pytest.raises(der.DerError):
            find(octets)
