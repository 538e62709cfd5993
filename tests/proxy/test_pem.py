"""CSR text to DER: every way in which a line break can be lost is repaired, and nothing else is."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.csrs import make_csr, pem

from bmc_proxy.errors import CsrMalformed, CsrTooLarge
from bmc_proxy.pem import MAX_CSR_OCTETS, csr_to_der, to_pem

CSR = make_csr()
PEM = pem(CSR)
PIECES = ["-----BEGIN ", "-----END ", "CERTIFICATE REQUEST", "NEW ", "-----", "MIIB", "=", "\n", "é"]


@pytest.mark.parametrize(
    "text",
    [
        PEM,
        PEM.replace("\n", "\r\n"),
        PEM.replace("\n", ""),
        PEM.replace("\n", " "),
        PEM.replace("\n", "\n\t "),
        PEM.replace("CERTIFICATE", "NEW CERTIFICATE"),
        "Certificate Request:\n    Data:\n" + PEM,
        "Certificate Request:    Data:" + PEM.replace("\n", ""),
        PEM + "\r\n \n",
        base64.b64encode(CSR).decode(),
        base64.encodebytes(CSR).decode(),
    ],
)
def test_csr_to_der(text: str) -> None:
    """Each of these is the same CSR."""
    assert csr_to_der(text) == CSR


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no CSR"),
        ("\n \n", "no CSR"),
        ("-----BEGIN CERTIFICATE REQUEST----------END CERTIFICATE REQUEST-----", "no CSR"),
        (PEM + PEM, "more than one"),
        (PEM + "x", "follows"),
        (PEM.partition("-----END")[0], "END line"),
        (PEM.replace("-----END ", "-----END NEW "), "END line"),
        (PEM.replace("CERTIFICATE REQUEST", "CERTIFICATE"), "not a certificate request"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" + PEM, "not a certificate request"),
        (PEM.replace("\nMI", "\nM!I"), "wrong or missing"),
        (PEM.replace("\nMI", "\nM-I"), "wrong or missing"),
        (PEM.replace("\nMI", "\nMéI"), "wrong or missing"),
        (PEM.replace("\nMI", "\nM\0I"), "wrong or missing"),
        (PEM.replace("\nMI", "\nM=I"), "wrong or missing"),
        (base64.b64encode(CSR).decode().rstrip("=")[:-1], "wrong or missing"),
        (base64.b64encode(b"1234").decode() + "=", "wrong or missing"),
        ("QUJDRB==", "wrong or missing"),
    ],
)
def test_csr_to_der_refuses(text: str, told: str) -> None:
    """Anything else is refused, with words that say what is wrong and echo nothing."""
    with pytest.raises(CsrMalformed, match=told) as caught:
        csr_to_der(text)
    assert "AAAA" not in caught.value.text


def test_csr_to_der_at_its_limit() -> None:
    """16 KiB of DER are taken, one octet more is too large."""
    assert len(csr_to_der(base64.b64encode(bytes(MAX_CSR_OCTETS)).decode())) == MAX_CSR_OCTETS
    with pytest.raises(CsrTooLarge):
        csr_to_der(base64.b64encode(bytes(MAX_CSR_OCTETS + 1)).decode())


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_csr_to_der_of_any_text(text: str) -> None:
    """Any text is octets or an error of ours, and octets only if they encode back to it."""
    try:
        der = csr_to_der(text)
    except (CsrMalformed, CsrTooLarge):
        return
    packed = re.sub(r"\s", "", text)
    assert base64.b64encode(der).decode() in packed


@given(st.binary(max_size=500))
def test_to_pem_is_read_back(der: bytes) -> None:
    """PEM has lines of 64 characters and holds the DER."""
    lines = to_pem(der).splitlines()

    assert (lines[0], lines[-1]) == ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----")
    assert all(len(line) == 64 for line in lines[1:-2])
    assert base64.b64decode("".join(lines[1:-1])) == der
