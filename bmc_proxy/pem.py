"""CSR text to DER, and DER to PEM.

Whatever happened to the line breaks on the way here is repaired; anything else that is not as it should be is refused.
"""

import base64
import binascii
import re

from bmc_proxy.errors import CsrMalformed, CsrTooLarge
from runtime.asn1.der import children

MAX_CSR_OCTETS = 16 * 1024

_BEGIN = re.compile(r"-----BEGIN ([A-Z0-9 ]*)-----")
_LABELS = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
_WHITE_SPACE = b" \t\r\n"
_PEM_LINE_CHARACTERS = 64


def csr_to_der(text: str) -> bytes:
    """Return the DER of the one CSR in a text.

    Args:
        text: PEM (RFC 7468, also the older label NEW CERTIFICATE REQUEST) with anything but another PEM block before
            it and nothing but white space after it, or the base64 of DER alone. Line breaks may be of any kind, or
            lost altogether.

    Raises:
        CsrMalformed: no CSR, more than one, another PEM block, something after it, or base64 with a flaw.
        CsrTooLarge: the DER is over 16 KiB.
    """
    begins = list(_BEGIN.finditer(text))
    if not begins:
        return _decode(text)
    if any(begin[1] not in _LABELS for begin in begins):
        raise CsrMalformed("The text holds a PEM block that is not a certificate request. Send the CSR alone.")
    if len(begins) > 1:
        raise CsrMalformed("The text holds more than one CSR. Send one CSR per request.")
    begin = begins[0]
    encoded, end, rest = text[begin.end() :].partition(f"-----END {begin[1]}-----")
    if not end:
        raise CsrMalformed("The CSR's END line is missing. Send the whole PEM block.")
    if rest.strip():
        raise CsrMalformed("Something follows the CSR. Send nothing after its END line.")
    return _decode(encoded)


def to_pem(der: bytes) -> str:
    """Return a certificate as PEM (RFC 7468), with a line break at its end."""
    encoded = base64.b64encode(der).decode()
    lines = [encoded[at : at + _PEM_LINE_CHARACTERS] for at in range(0, len(encoded), _PEM_LINE_CHARACTERS)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


def is_certificate(pem: str) -> bool:
    """Return whether a text is one certificate as `to_pem` writes it."""
    encoded = "".join(pem.split("\n")[1:-2])
    try:
        der = base64.b64decode(encoded, validate=True)
        return len(children(der)) == 3 and to_pem(der) == pem
    except ValueError:  # DerError among them
        return False


def _decode(encoded: str) -> bytes:
    try:
        packed = encoded.encode("ascii").translate(None, _WHITE_SPACE)
        if not packed:
            raise CsrMalformed("There is no CSR. Send a PKCS#10 request in PEM.")
        der = binascii.a2b_base64(packed, strict_mode=True)
        if binascii.b2a_base64(der, newline=False) != packed:
            raise ValueError("bits after the last octet are not zero (RFC 4648, 3.5)")
    except ValueError as error:  # binascii.Error for bad base64, ValueError for characters outside ASCII
        text = "The CSR is neither PEM nor base64 of DER: a character is wrong or missing. Send it as openssl wrote it."
        raise CsrMalformed(text) from error
    if len(der) > MAX_CSR_OCTETS:
        raise CsrTooLarge(f"The CSR is larger than {MAX_CSR_OCTETS} octets.")
    return der
