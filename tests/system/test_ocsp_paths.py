"""Where clients send OCSP requests: each spelling of the path that Java, openssl and others use, on real processes."""

import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.x509 import ocsp
from support.csrs import openssl_csr
from support.judges import split_chain
from support.needs import need
from support.processes import SIGN_CSR, post, running_pair
from support.revoking import question


@dataclass
class Asked:
    """A certificate, its issuer, and where its status is asked for."""

    url: str
    leaf: x509.Certificate
    root: x509.Certificate
    directory: Path


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Yield a certificate of a running agent."""
    directory = tmp_path_factory.mktemp("ocsp")
    csr = openssl_csr(directory)
    with running_pair(directory) as pair:
        answer = post(pair.url + SIGN_CSR, json.dumps({"CsrString": csr.read_text()}))
        chain = split_chain(answer.json["data"][0])
        for name, each in zip(("leaf.pem", "root.pem"), chain, strict=True):
            (directory / name).write_text(each)
        leaf, root = (x509.load_pem_x509_certificate(each.encode()) for each in chain)
        yield Asked(pair.url, leaf, root, directory)


def fetch(url: str, *options: str, stdin: bytes = b"") -> tuple[int, bytes]:
    """Send a request with curl, its path as it stands; return status and body."""
    command = [
        need("curl"),
        "--silent",
        "--path-as-is",
        "--output",
        "-",
        "--write-out",
        "\n%{http_code}",
        *options,
        url,
    ]
    done = subprocess.run(command, input=stdin, check=True, capture_output=True)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


def assert_answers(asked: Asked, answer: tuple[int, bytes]) -> None:
    """Check that an answer is a response about the certificate."""
    status, body = answer
    assert status == 200, body
    response = ocsp.load_der_ocsp_response(body)
    assert response.response_status == ocsp.OCSPResponseStatus.SUCCESSFUL
    assert response.serial_number == asked.leaf.serial_number
    assert response.certificate_status == ocsp.OCSPCertStatus.GOOD


def request_with(asked: Asked, *parts: str) -> str:
    """Return a request in base64 that holds these parts, by way of its nonce."""
    for number in count():
        nonce = number.to_bytes(4) + b"\xff\xff\xff\xfb\xef\xbe" * 3
        text = base64.b64encode(question(asked.leaf, asked.root, nonce)).decode()
        if all(part in text for part in parts):
            return text
    raise AssertionError


@pytest.mark.parametrize("path", ["/pki/ocsp", "/pki/ocsp/", "/pki/ocsp?", "/pki/ocsp/?a=b"])
def test_posted_request(asked: Asked, path: str) -> None:
    """POST is answered with and without a slash at the end."""
    options = ["-H", "Content-Type: application/ocsp-request", "--data-binary", "@-"]
    answer = fetch(asked.url + path, *options, stdin=question(asked.leaf, asked.root))

    assert_answers(asked, answer)


def test_openssl_posts_to_an_address_with_a_slash(asked: Asked) -> None:
    """`openssl ocsp -url …/` gets its answer, and says that it verifies."""
    root, leaf = str(asked.directory / "root.pem"), str(asked.directory / "leaf.pem")
    command = [need("openssl"), "ocsp", "-issuer", root, "-cert", leaf, "-CAfile", root]
    done = subprocess.run(
        [*command, "-url", asked.url + "/pki/ocsp/"], capture_output=True, text=True, check=False, timeout=60
    )

    assert (done.returncode, f"{leaf}: good" in done.stdout) == (0, True), done.stderr
    assert "Response verify OK" in done.stderr


@pytest.mark.parametrize("before", ["/pki/ocsp/", "/pki/ocsp//", "/pki/ocsp///", "/pki/ocsp/%2F"])
@pytest.mark.parametrize("safe", ["", "/", "/+", "/+="], ids=["encoded", "slashes", "slashes and plus", "as it is"])
def test_request_in_the_path(asked: Asked, before: str, safe: str) -> None:
    """GET is answered however much of the base64 is percent-encoded, double slashes inside it included."""
    text = request_with(asked, "//", "+", "=")

    assert_answers(asked, fetch(asked.url + before + quote(text, safe=safe)))


def test_request_that_ends_with_a_slash(asked: Asked) -> None:
    """The last character may be a slash, which belongs to the request."""
    text = next(
        each
        for each in (
            base64.b64encode(question(asked.leaf, asked.root, bytes(length) + b"\xff" * 3)).decode()
            for length in range(1, 30)
        )
        if each.endswith("/")
    )

    assert_answers(asked, fetch(asked.url + "/pki/ocsp/" + text))


@pytest.mark.parametrize("path", ["//pki/ocsp/", "/pki//ocsp/", "/pki/./ocsp/", "/pki/x/../ocsp/"])
def test_nothing_else_in_a_path_is_merged(asked: Asked, path: str) -> None:
    """Other double slashes and dot segments are no other spelling of a path."""
    text = quote(request_with(asked), safe="")

    assert fetch(asked.url + path + text)[0] == 404


@pytest.mark.parametrize("path", ["/pki/ocsp", "/pki/ocsp/"])
def test_get_without_a_request(asked: Asked, path: str) -> None:
    """The addresses that are for POST alone say so, or are not there."""
    assert fetch(asked.url + path)[0] in (404, 405)
