"""The leaf does what it is for: a TLS server that asks for client certificates from the root lets its bearer in."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.csrs import openssl_csr
from support.judges import split_chain
from support.processes import SIGN_CSR, post, running_pair


@contextmanager
def tls_server(root: Path, certificate: Path, key: Path) -> Iterator[tuple[int, list[str]]]:
    """Run a TLS server that takes three connections and requires client certificates; yield port and subjects seen."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(root))
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(certificate, key)
    seen: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            with stream:
                try:
                    with context.wrap_socket(stream, server_side=True) as tls:
                        seen.append(str(tls.getpeercert()))
                        tls.sendall(b"welcome")
                except ssl.SSLError as error:
                    seen.append(error.reason)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def greet(port: int, leaf: Path | None, key: Path | None) -> bytes:
    """Connect with this client certificate; return what the server says."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if leaf is not None:
        context.load_cert_chain(leaf, key)
    with socket.create_connection(("127.0.0.1", port)) as stream, context.wrap_socket(stream) as tls:
        return tls.recv(100)


@pytest.mark.parametrize("key", ["rsa2048", "p256"])
def test_tls_server_with_the_leaf(tmp_path: Path, key: str) -> None:
    """The issued leaf is accepted; no certificate, and one of another CA, are refused."""
    csr = openssl_csr(tmp_path, key)
    self_signed = openssl_csr(tmp_path, "p384", subject="/CN=localhost", extra=["-x509"])
    with running_pair(tmp_path) as pair:
        answer = post(pair.url + SIGN_CSR, json.dumps({"data": [csr.read_text()]})).json
    leaf, root = split_chain(answer["data"][0])
    (tmp_path / "leaf.pem").write_text(leaf)
    (tmp_path / "root.pem").write_text(root)

    with tls_server(tmp_path / "root.pem", self_signed, self_signed.with_suffix(".key")) as (port, seen):
        assert greet(port, tmp_path / "leaf.pem", csr.with_suffix(".key")) == b"welcome"
        with pytest.raises(ssl.SSLError):
            greet(port, None, None)
        with pytest.raises(ssl.SSLError):
            greet(port, self_signed, self_signed.with_suffix(".key"))

    assert "hmc1.example.com" in seen[0]
    assert seen[1] == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    assert "CERTIFICATE" in seen[2]
