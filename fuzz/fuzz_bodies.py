"""Fuzz target: request bodies, the forms in which a CSR comes, and the armour around it.

The first octet chooses: the rest is a body as it is; or the text of a CSR, which is put into one of the forms; or
pieces, of which one is repeated up to the largest body there may be, so that whatever takes more than time in
proportion to it is seen as a hang.

Only the errors that the docstrings name leave. What strict JSON says is believed: where a body is JSON in one of the
forms, its CSR is read, and no other; where `json_object` takes a body, so does JSON, with the same value. What comes
out is what stands in the text as base64, strictly.
"""

import base64
import json
import sys
from typing import Any

import atheris
from choices import Choices

with atheris.instrument_imports(include=["protocol", "bmc_proxy.pem", "bmc_proxy.api.csr_body"]):
    from bmc_proxy.api.csr_body import csr_text, json_object
    from bmc_proxy.errors import BodyMalformed, CsrBodyMalformed, CsrMalformed, CsrTooLarge
    from bmc_proxy.pem import MAX_CSR_OCTETS, csr_to_der, is_certificate, to_pem
    from runtime.asn1.der import DerError, children

BODY_LIMIT = 64 * 1024
BEGIN, END = "-----BEGIN CERTIFICATE REQUEST-----", "-----END CERTIFICATE REQUEST-----"
FORMS = (
    '{"data":["%s"]}',
    '{"data":[{"CsrString":"%s"}]}',
    '{"data":{"CsrString":"%s"}}',
    '{"CsrString":"%s"}',
    '{"data":[CsrString:"%s"]  }',
    ' {"data" : [ CsrString : "%s" ] } \n',
    '{"CsrString":"%s","CsrString":"x"}',
    '{"data":["%s"],"more":1}',
)
PIECES = (
    *("-----BEGIN ", "-----BEGIN CERTIFICATE REQUEST-----", "-----END CERTIFICATE REQUEST-----", "-----", "-"),
    *("A", "\\n", "\n", " ", "\t", "=", "\\", '"', "\\u0041", "\\ud800", "é", "{", "[", '{"data":[', '"data"', ":"),
    *("CsrString:", '{"a":', "9", "-0", "1e", "]", "}", ",", "MIIB", "AAAA", "NaN", "true", "0", "\0", "\x7f", "A A"),
)


def body_of(data: bytes) -> bytes:
    """Return the body that an input stands for."""
    choices = Choices(data)
    match choices.number() % 4:
        case 0:
            return choices.rest()
        case 1:
            form, breaks = choices.one_of(FORMS), choices.one_of(("\\n", "\n", "\\r\\n", "\r\n", "", " "))
            text = choices.rest().decode(errors="replace").replace("\n", breaks)
            return (form % text).encode()
        case 2:
            form, breaks = choices.one_of(FORMS), choices.one_of(("\\n", "\n", "\\r\\n", "\r\n", "", " "))
            before, after = choices.short().decode(errors="replace"), choices.one_of(("", breaks, "x", BEGIN))
            encoded = base64.b64encode(choices.rest()).decode()
            lines = [encoded[at : at + 64] for at in range(0, len(encoded), 64)]
            return (form % (before + breaks.join((BEGIN, *lines, END)) + after)).encode()
        case _:
            begin, often, end = (
                "".join(choices.one_of(PIECES) for _ in range(choices.number() % 12)) for _ in range(3)
            )
            times = (BODY_LIMIT - len(begin) - len(end)) // max(1, len(often.encode()))
            return (begin + often * times + end).encode()[:BODY_LIMIT]


def text_of(body: bytes) -> str | None:
    """Return the CSR text that is read from a body."""
    try:
        return csr_text(body)
    except CsrBodyMalformed:
        return None


def object_of(body: bytes) -> dict[str, Any] | None:
    """Return the object that is read from a body."""
    try:
        return json_object(body)
    except BodyMalformed:
        return None


def strictly(body: bytes) -> tuple[Any, bool]:
    """Return what strict JSON reads, or None, and whether a member stands twice somewhere in it."""
    twice = False

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        twice = twice or len(dict(pairs)) != len(pairs)
        return dict(pairs)

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        return json.loads(body.decode(), object_pairs_hook=members, parse_constant=refuse), twice
    except (ValueError, RecursionError):
        return None, twice


def wanted(value: Any) -> str | None:
    """Return the CSR text of a value that has one of the forms that are JSON."""
    if isinstance(value, dict) and value.keys() == {"data"}:
        value = value["data"]
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else None
            if isinstance(value, str):
                return value
    if isinstance(value, dict) and value.keys() == {"CsrString"} and isinstance(value["CsrString"], str):
        return value["CsrString"]
    return None


def check_der(text: str) -> None:
    """Read the CSR of a text, and find its octets in the text."""
    try:
        der = csr_to_der(text)
    except (CsrMalformed, CsrTooLarge) as error:
        assert error.text.isprintable()
        return
    assert 0 < len(der) <= MAX_CSR_OCTETS
    packed = "".join(text.translate(dict.fromkeys(map(ord, " \t\r\n"))))
    assert base64.b64encode(der).decode() in packed
    pem = to_pem(der)
    try:
        parts = len(children(der))
    except DerError:
        parts = 0
    assert is_certificate(pem) == (parts == 3)
    # Through another label, the same octets are found again, however the lines end.
    for again in (pem, pem.replace("\n", "\r\n"), pem.replace("\n", ""), "\n" + pem.replace("\n", " ")):
        assert csr_to_der(again.replace(" CERTIFICATE-----", " NEW CERTIFICATE REQUEST-----")) == der


def one_input(data: bytes) -> None:
    """Run one input."""
    body = body_of(data)
    text, found = text_of(body), object_of(body)
    value, twice = strictly(body)
    if value is not None and not twice:
        assert text == wanted(value)
        assert found == (value if isinstance(value, dict) else None)
    else:
        assert found is None
    if text is not None:
        check_der(text)
        assert not twice
    lenient = body.decode("latin-1")
    check_der(lenient)
    is_certificate(lenient)


if __name__ == "__main__":
    atheris.Setup([*sys.argv, f"-max_len={BODY_LIMIT}"], one_input)
    atheris.Fuzz()
