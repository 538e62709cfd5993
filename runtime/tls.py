"""TLS: contexts that never speak less than they should, and what to say of a handshake that failed.

Both processes use it: HTTPS at the proxy, and `tls:` on the channel (`runtime.channel_tls`).
"""

from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from runtime.files import FileRefused, read_secret

# RFC 9325, 4.2: for TLS 1.2 only these; TLS 1.3 has no others.
TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

# X509_V_ERR_*, in words for the log.
_VERIFY_ERRORS = {
    9: "certificate is not yet valid: compare the clocks",
    10: "certificate has expired",
    18: "certificate is self-signed and not known here",
    19: "certificate chain ends in an authority that is not known here",
    20: "certificate is of an authority that is not known here",
    21: "certificate is not known here",
    26: "certificate is for another purpose",
}


# OpenSSL's first complaint about a peer's certificate, by transport, which Twisted keeps as the connection's app data.
_verdicts: WeakKeyDictionary[TLSMemoryBIOProtocol, int] = WeakKeyDictionary()


class Identity:
    """A private key and the certificates it comes with.

    Attributes:
        key: the private key.
        chain: the key's own certificate, then those that stand behind it in the file.
    """

    def __init__(self, key: PrivateKeyTypes, chain: Sequence[x509.Certificate]) -> None:
        self.key = key
        self.chain = chain


def load_identity(key_path: Path, certificate_path: Path) -> Identity:
    """Read a key (0600) and its certificate, in PEM, from two files or from one that holds both.

    Raises:
        FileRefused: a file cannot be read, is open to others, or the two do not belong together.
    """
    try:
        key = load_pem_private_key(read_secret(key_path), None)
        certificates = x509.load_pem_x509_certificates(certificate_path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise FileRefused(f"TLS key {key_path} and certificate {certificate_path}: {error}") from error
    own = [certificate for certificate in certificates if certificate.public_key() == key.public_key()]
    if not own:
        raise FileRefused(f"no certificate in {certificate_path} belongs to the key in {key_path}")
    return Identity(key, [own[0], *(each for each in certificates if each != own[0])])


def new_context(method: int, minimum: int, identity: Identity) -> SSL.Context:
    """Return a context that shows this identity, compresses nothing and does not renegotiate (RFC 9325, 3)."""
    context = SSL.Context(method)
    context.set_min_proto_version(minimum)
    context.set_cipher_list(TLS12_CIPHERS)
    options = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
    context.set_options(options)
    # Write buffers may move between two attempts, and are given back while a connection idles.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.use_privatekey(identity.key)  # type: ignore[arg-type]  # it refuses what TLS cannot use
    context.use_certificate(identity.chain[0])
    context.check_privatekey()
    return context


def remember_verdict(connection: SSL.Connection, _certificate: object, error: int, _depth: int, is_good: int) -> bool:
    """Let OpenSSL's judgement stand (for `Context.set_verify`), and keep its first error for `failure_text`."""
    if not is_good:
        _verdicts.setdefault(connection.get_app_data(), error)
    return bool(is_good)


def failure_text(transport: object, reason: Failure) -> str:
    """Return why a connection ended; a failed handshake in words that say which side has to change what."""
    if not isinstance(reason.value, SSL.Error):
        return str(reason.getErrorMessage())
    verdict = _verdicts.get(transport) if isinstance(transport, TLSMemoryBIOProtocol) else None
    if verdict is not None:
        return "TLS: the peer's " + _VERIFY_ERRORS.get(verdict, f"certificate was not accepted (X509 error {verdict})")
    errors = reason.value.args[0] if reason.value.args else ()
    return "TLS: " + ("; ".join(words[-1] for words in errors) or "the handshake failed")


def is_tls(transport: object) -> bool:
    """Return whether a transport is a TLS connection."""
    return isinstance(transport, TLSMemoryBIOProtocol)


def is_tls_failure(text: str) -> bool:
    """Return whether `failure_text` told of a failed handshake."""
    return text.startswith("TLS: ")


def sha256_of(certificate: x509.Certificate) -> str:
    """Return a certificate's fingerprint, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def peer_certificate(transport: object) -> x509.Certificate | None:
    """Return the certificate that the peer showed and OpenSSL accepted; None without TLS or without one."""
    if not isinstance(transport, TLSMemoryBIOProtocol):
        return None
    found: x509.Certificate | None = transport.getHandle().get_peer_certificate(as_cryptography=True)
    return found


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class TlsContext:
    """Makes connections with a context that can be exchanged while others live on with the old one."""

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return the asking side of a connection."""
        connection = SSL.Connection(self.context, None)
        connection.set_connect_state()
        return connection

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return the listening side of a connection."""
        connection = SSL.Connection(self.context, None)
        connection.set_accept_state()
        return connection
