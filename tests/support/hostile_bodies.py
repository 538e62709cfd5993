"""Hostile bodies and their statuses: JSON that is deep, huge, doubled or no JSON at all, and CSRs that are none."""

import base64
import json

from support.csrs import make_csr, pem

CSR = pem(make_csr())
DER = base64.b64decode("".join(CSR.splitlines()[1:-1]))
BEGIN, END = "-----BEGIN CERTIFICATE REQUEST-----", "-----END CERTIFICATE REQUEST-----"
BASE64 = base64.b64encode(DER).decode()
GOOD = json.dumps({"CsrString": CSR}).encode()


def csr(text: str) -> bytes:
    """Return a body with this for a CSR."""
    return json.dumps({"CsrString": text}).encode()


BODIES: dict[str, tuple[bytes, int]] = {
    # JSON
    "100,000 arrays": (b"[" * 100_000, 413),
    "60,000 arrays": (b"[" * 60_000, 400),
    "30,000 arrays that end": (b"[" * 30_000 + b"]" * 30_000, 400),
    "10,000 objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
    "900 arrays around a CSR": (b'{"data":' + b"[" * 900 + b'"x"' + b"]" * 900 + b"}", 400),
    "10^6 digits": (b'{"CsrString":' + b"1" * 1_000_000 + b"}", 413),
    "60,000 digits": (b'{"CsrString":' + b"1" * 60_000 + b"}", 400),
    "60,000 digits after the point": (b'{"CsrString":0.' + b"1" * 60_000 + b"}", 400),
    "exponent of 10,000 digits": (b'{"CsrString":1e' + b"9" * 10_000 + b"}", 400),
    "number for a CSR": (b'{"CsrString":-0}', 400),
    "member twice": (GOOD[:-1] + b"," + GOOD[1:], 400),
    "member twice, once escaped": (GOOD[:-1] + rb',"\u0043srString":"x"}', 400),
    "20,000 members": (b"{" + b",".join(b'"%x":0' % n for n in range(6_000)) + b"}", 400),
    "NaN": (b'{"CsrString":NaN}', 400),
    "Infinity": (b"[-Infinity]", 400),
    "not UTF-8": (GOOD.replace(b"BEGIN", b"BEG\xffIN"), 400),
    "UTF-8 longer than needed": (GOOD.replace(b"BEGIN", b"BEG\xc1\x89N"), 400),
    "surrogates in UTF-8": (GOOD.replace(b"BEGIN", b"BEG\xed\xa0\x80IN"), 400),
    "lone surrogate": (GOOD.replace(b"BEGIN", rb"BEG\ud800IN"), 400),
    "surrogates the wrong way round": (GOOD.replace(b"-----BEGIN", rb"\udc00\ud800-----BEGIN"), 200),
    "UTF-16": (GOOD.decode().encode("utf-16"), 400),
    "UTF-32": (GOOD.decode().encode("utf-32-be"), 400),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, 400),
    "NUL before": (b"\0" + GOOD, 400),
    "NUL after": (GOOD + b"\0", 400),
    "NUL in a name": (GOOD.replace(b"CsrString", b"Csr\0String"), 400),
    "NULs": (b"\0" * 60_000, 400),
    "two values": (GOOD + GOOD, 400),
    "comment": (b"/**/" + GOOD, 400),
    "single quotes": (GOOD.replace(b'"', b"'"), 400),
    "string without end": (b'{"CsrString":"' + b"a" * 60_000, 400),
    "escape without end": (b'{"CsrString":"' + b"\\" * 60_001, 400),
    "literal form without end": (b'{"data":[CsrString:"' + b"\\a" * 30_000, 400),
    "white space": (b" \t\r\n" * 16_000, 400),
    "null": (b"null", 400),
    "nothing": (b"", 400),
    # PEM and base64
    "two CSRs": (csr(CSR + CSR), 400),
    "thousand BEGINs": (csr(BEGIN * 1_000), 400),
    "END before BEGIN": (csr(END + BASE64 + BEGIN), 400),
    "END of another": (csr(BEGIN + BASE64 + "-----END CERTIFICATE-----"), 400),
    "certificate": (csr(CSR.replace("CERTIFICATE REQUEST", "CERTIFICATE")), 400),
    "key beside it": (csr("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n" + CSR), 400),
    "Cyrillic in BEGIN": (csr(CSR.replace("BEGIN CERT", "BEGIN СERT")), 400),
    "header of old PEM": (csr(CSR.replace(BEGIN, BEGIN + "\nProc-Type: 4,ENCRYPTED\n")), 400),
    "URL's base64": (csr(BEGIN + BASE64[:40] + "-_" + BASE64[42:] + END), 400),
    "padding in the middle": (csr(BEGIN + BASE64[:40] + "==" + BASE64[42:] + END), 400),
    "more padding": (csr(BEGIN + BASE64 + "====" + END), 400),
    "one character less": (csr(BEGIN + BASE64.rstrip("=")[:-1] + END), 400),
    "NUL in base64": (csr(BEGIN + BASE64[:40] + "\0" + BASE64[40:] + END), 400),
    "line break of Unicode": (csr(BEGIN + BASE64[:40] + "\u2028" + BASE64[40:] + END), 400),
    "space without width": (csr(BEGIN + BASE64[:40] + "\u200b" + BASE64[40:] + END), 400),
    "wide letters": (csr(BEGIN + "\uff2d" + BASE64[1:] + END), 400),
    "base64 of PEM": (csr(base64.b64encode(CSR.encode()).decode()), 400),
    "something after the DER": (csr(base64.b64encode(DER + b"\0").decode()), 400),
    "DER of four gigabytes": (csr(base64.b64encode(b"\x30\x84\xff\xff\xff\xff" + DER[6:]).decode()), 400),
    "DER without a length": (csr(base64.b64encode(b"\x30\x80" + DER[2:] + b"\0\0").decode()), 400),
    "deep DER": (csr(base64.b64encode(b"\x30\x80" * 4_000).decode()), 400),
    "over 16 KiB": (csr(base64.b64encode(bytes(16_385)).decode()), 413),
}

LOGINS: dict[str, tuple[bytes, int]] = {
    "lone surrogates": (rb'{"data":["\ud800","\udfff"]}', 401),
    "lone surrogate for a password": (rb'{"data":["reader","\ud800"]}', 401),
    "lone surrogate for a user": (rb'{"username":"\udc00reader","password":"x"}', 401),
    "NUL": (rb'{"data":["reader\u0000","x\u0000"]}', 401),
    "line breaks": (rb'{"data":["a\r\nb\u2028\u001b[2J","x"]}', 401),
    "long": (b'{"data":["' + b"a" * 2_000 + b'","' + b"b" * 2_000 + b'"]}', 401),
    "too long": (b'{"data":["a","' + b"b" * 5_000 + b'"]}', 413),
    "deep": (b"[" * 4_000, 400),
    "digits": (b'{"data":[' + b"1" * 4_000 + b"," + b"2" * 60 + b"]}", 400),
    "more than four thousand digits": (b"1" * 4_096, 400),
    "member twice": (b'{"data":["a","b"],"data":["c","d"]}', 400),
    "not UTF-8": (b'{"data":["\xff","b"]}', 400),
}
