"""What a CSR asks for: its attributes (RFC 2986, 4.1; RFC 2985, 5.4) and the extensions in one of them.

Attributes other than requests for extensions ask for nothing that a certificate holds, so they are passed over, with
any number of values; Windows adds several. What an extension that is asked for is worth is `profile`'s question.
"""

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from protocol.errors import ErrorCode
from runtime.asn1 import der
from vmi_agent.certificate import object_identifier
from vmi_agent.errors import Refused
from vmi_agent.policy.csr import Csr

Extensions = list[x509.Extension[x509.ExtensionType]]

_NO_ATTRIBUTES = b"\xa0\0"
_EMPTY_SET = b"\x31\0"
_SET, _CONTEXT_0 = 0x31, 0xA0
_FALSE = b"\x01\x01\0"


def _type(dotted: str) -> bytes:
    return object_identifier(x509.ObjectIdentifier(dotted))


_EXTENSION_REQUEST = _type("1.2.840.113549.1.9.14")  # RFC 2985, 5.4.2
# Attributes that have one value and stand there once, and what people call them.
_SINGLE = {
    _EXTENSION_REQUEST: "request for extensions",
    _type("1.3.6.1.4.1.311.2.1.14"): "request for extensions",  # the same under Microsoft's number
    _type("1.2.840.113549.1.9.7"): "challengePassword",  # RFC 2985, 5.4.1
}
_BASIC_CONSTRAINTS = _type("2.5.29.19")
_EXTENSION_NAMES = {
    _BASIC_CONSTRAINTS: "basicConstraints",
    _type("2.5.29.14"): "subjectKeyIdentifier",
    _type("2.5.29.15"): "keyUsage",
    _type("2.5.29.17"): "subjectAltName",
    _type("2.5.29.37"): "extKeyUsage",
}
# CA:FALSE and `critical` FALSE are defaults, which DER leaves out (X.690, 11.5). Several clients write them; they say
# what their absence says.
_CA_FALSE_WRITTEN = der.wrap(der.OCTET_STRING, der.wrap(der.SEQUENCE, _FALSE))
_CA_FALSE = der.wrap(der.OCTET_STRING, der.wrap(der.SEQUENCE))


def requested_extensions(csr: Csr) -> Extensions:
    """Return the extensions that a CSR asks for.

    Raises:
        Refused: CSR_MALFORMED where an attribute or an extension cannot be read, CSR_POLICY where there are too many.
    """
    if csr.attributes == _NO_ATTRIBUTES:
        return []
    request = None
    found = set()
    for attribute in der.children(csr.attributes):
        kind, values = der.children(attribute)
        label = _SINGLE.get(kind)
        if values == _EMPTY_SET:
            text = f"The CSR has {_article(label)} without a value (RFC 2986, 4.1: SIZE (1..MAX)). Take it out."
            raise Refused(ErrorCode.CSR_MALFORMED, text)
        if label is None:
            continue
        if label in found:
            raise Refused(ErrorCode.CSR_POLICY, f"The CSR has more than one {label}. Put everything into one.")
        found.add(label)
        value = _only_value(values, label)
        if label == _SINGLE[_EXTENSION_REQUEST]:
            request = value
    return [] if request is None else _read(csr, request)


def _article(label: str | None) -> str:
    return f"a {label}" if label else "an attribute"


def _only_value(values: bytes, label: str) -> bytes:
    try:
        (value,) = der.children(values)
    except ValueError as error:
        text = f"The CSR has a {label} with several values, or one that cannot be read. It takes exactly one."
        raise Refused(ErrorCode.CSR_MALFORMED, text) from error
    return value


def _read(csr: Csr, extensions: bytes) -> Extensions:
    try:
        return list(csr.request.extensions)
    except x509.DuplicateExtension as error:
        text = f"The CSR asks for the extension {error.oid.dotted_string} twice. Ask once."
        raise Refused(ErrorCode.CSR_POLICY, text) from error
    except (ValueError, x509.UnsupportedGeneralNameType):
        return _read_one_by_one(csr, extensions)


def _read_one_by_one(csr: Csr, extensions: bytes) -> Extensions:
    """Read the extensions without the defaults that they write out, or say which of them cannot be read."""
    try:
        parts = [der.children(each) for each in der.children(extensions)]
    except ValueError as error:
        text = "The CSR has a request for extensions that holds something else. Take it out: extensions are not needed."
        raise Refused(ErrorCode.CSR_MALFORMED, text) from error
    found: Extensions = []
    for extension in parts:
        try:
            found += _with_extension(csr, _without_defaults(extension)).extensions
        except (ValueError, x509.UnsupportedGeneralNameType) as error:
            label = _EXTENSION_NAMES.get(extension[0] if extension else b"", "an extension")
            text = f"The CSR asks for {label} in a form that cannot be read. Leave it out, or correct it."
            raise Refused(ErrorCode.CSR_MALFORMED, text) from error
    if len({extension.oid for extension in found}) != len(found):
        raise Refused(ErrorCode.CSR_POLICY, "The CSR asks for an extension twice. Ask once.")
    return found


def _without_defaults(extension: list[bytes]) -> bytes:
    fields = [field for place, field in enumerate(extension) if (place, field) != (1, _FALSE)]
    if fields[:1] == [_BASIC_CONSTRAINTS] and fields[-1] == _CA_FALSE_WRITTEN:
        fields[-1] = _CA_FALSE
    return der.wrap(der.SEQUENCE, *fields)


def _with_extension(csr: Csr, extension: bytes) -> x509.CertificateSigningRequest:
    """Return the CSR, no longer signed, as it would be if it asked for this extension alone."""
    information, algorithm, signature = der.children(csr.request.public_bytes(serialization.Encoding.DER))
    attribute = der.wrap(der.SEQUENCE, _EXTENSION_REQUEST, der.wrap(_SET, der.wrap(der.SEQUENCE, extension)))
    fields = (*der.children(information)[:3], der.wrap(_CONTEXT_0, attribute))
    return x509.load_der_x509_csr(der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, *fields), algorithm, signature))
