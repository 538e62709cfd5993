"""OCSP requests of any shape, and what others read in the answers to them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from runtime.asn1 import der
from support.judges import openssl
from support.needs import need
from support.processes import BIN
from vmi_agent.revocation.ocsp import OcspAnswer


def about(*cert_ids: bytes, nonce: bytes | None = None) -> bytes:
    """Return an OCSP request in DER for these CertIDs."""
    requests = [der.wrap(der.SEQUENCE, each) for each in cert_ids]
    parts = [der.wrap(der.SEQUENCE, *requests)]
    if nonce is not None:
        oid = der.wrap(der.OBJECT_IDENTIFIER, bytes.fromhex("2b0601050507300102"))
        value = der.wrap(der.OCTET_STRING, der.wrap(der.OCTET_STRING, nonce))
        parts.append(der.wrap(0xA2, der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, oid, value))))
    return der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, *parts))


def cert_id_in(request: bytes) -> bytes:
    """Return the CertID in a request about one certificate."""
    return der.children(der.children(der.children(der.children(request)[0])[0])[0])[0]


def cert_id(serial: int, like: bytes) -> bytes:
    """Return the CertID in a request about one certificate, with another serial number."""
    number = der.wrap(der.INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, signed=True))
    return der.wrap(der.SEQUENCE, *der.children(cert_id_in(like))[:3], number)


def openssl_ocsp(answer: Callable[[bytes], OcspAnswer], directory: Path, root: str, options: list[str]) -> str:
    """Have openssl make a request and judge the answer to it; return what it says of the certificates."""
    request, response = directory / "request.der", directory / "response.der"
    openssl("ocsp", *options, "-reqout", str(request))
    response.write_bytes(answer(request.read_bytes()).der)
    options = ["-no_nonce" if each == "-nonce" else each for each in options]  # the one that is in the request
    command = [need("openssl"), "ocsp", *options, "-reqin", str(request), "-respin", str(response), "-CAfile", root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "Response verify OK"
    return done.stdout


def gnutls(*arguments: str) -> str:
    """Run ocsptool; return what it printed."""
    done = subprocess.run([need("ocsptool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def assert_pkilint_accepts(answer: bytes, directory: Path) -> None:
    """Assert that pkilint has nothing to say of a response."""
    path = directory / "response.der"
    path.write_bytes(answer)
    command = [str(BIN / "lint_ocsp_response"), "lint", "-s", "WARNING", "--document-format", "DER", str(path)]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout.strip(), linted.stderr) == (0, "", "")
