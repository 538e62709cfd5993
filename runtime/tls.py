"""TLS: contexts that never speak less than they should, and what to say of a handshake that failed.

Both processes use it: HTTPS at the proxy, and `tls:` on the channel (`runtime.channel_credentials`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from OpenSSL.crypto import X509
from twisted.internet.interfaces import (
    IAddress,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
)
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from runtime.files import FileRefused, read_secret
from runtime.printable import printable

# RFC 9325, 4.2: for TLS 1.2 only these; TLS 1.3 has no others.
TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

MIN_RSA_BITS = 2048
KEY_KINDS = "RSA of 2048 bits or more, P-256, P-384, P-521, Ed25519 or Ed448"

# X509_V_ERR_*, in words for the log.
_VERIFY_ERRORS = {
    9: "certificate is not yet valid: compare the clocks",
    10: "certificate has expired: compare the clocks",
    18: "certificate is self-signed and not known here",
    19: "certificate chain ends in an authority that is not known here",
    20: "certificate is of an authority that is not known here",
    21: "certificate is not known here",
    24: "certificate is issued by one that is no CA's",
    26: "certificate is for another purpose",
    79: "certificate is issued by one that is no CA's",
}
_NOT_VALID_NOW = frozenset({9, 10})

NAME_LIMIT = 256


@dataclass(frozen=True, slots=True)
class Verdict:
    """OpenSSL's first complaint about a peer's certificate, and which certificate it is about.

    Attributes:
        error: one of X509_V_ERR_*.
        sha256: the certificate's fingerprint.
        subject, serial: as the certificate itself says, which nobody vouches for.
    """

    error: int
    sha256: str
    subject: str
    serial: str


# By transport, which Twisted keeps as the connection's app data.
_verdicts: WeakKeyDictionary[TLSMemoryBIOProtocol, Verdict] = WeakKeyDictionary()


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
    except OSError as error:
        raise FileRefused(f"TLS key {key_path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FileRefused(f"TLS key {key_path} holds no unencrypted private key in PEM") from error
    if not _is_usable(key):
        raise FileRefused(f"TLS key {key_path} is of a kind or size that clients refuse. Use {KEY_KINDS}.")
    certificates = load_certificates(certificate_path)
    own = [certificate for certificate in certificates if _belong(key, certificate)]
    if not own:
        raise FileRefused(f"no certificate in {certificate_path} belongs to the key in {key_path}")
    return Identity(key, [own[0], *(each for each in certificates if each != own[0])])


def _belong(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    try:
        return certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):  # a CA's in the chain, of a kind that is not known here
        return False


def load_certificates(path: Path) -> list[x509.Certificate]:
    """Read the certificates of a PEM file, of which there is at least one. Raises FileRefused."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise FileRefused(f"certificate {path}: {error.strerror}") from error
    except (ValueError, x509.InvalidVersion) as error:
        raise FileRefused(f"certificate {path} holds no certificate in PEM, or one that cannot be read") from error


def _is_usable(key: PrivateKeyTypes) -> bool:
    """Return whether a TLS server or client can be known by a key."""
    match key:
        case rsa.RSAPrivateKey():
            return key.key_size >= MIN_RSA_BITS
        case ec.EllipticCurvePrivateKey():
            return isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))
    return isinstance(key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey))


def new_context(method: int, minimum: int, identity: Identity) -> SSL.Context:
    """Return a context that shows this identity, compresses nothing and does not renegotiate (RFC 9325, 3)."""
    context = SSL.Context(method)
    context.set_min_proto_version(minimum)
    context.set_cipher_list(TLS12_CIPHERS)
    options = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
    context.set_options(options)
    # Write buffers may move between two attempts, and are given back while a connection idles.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    with openssl_judges():
        context.use_privatekey(identity.key)  # type: ignore[arg-type]  # it refuses what TLS cannot use
        context.use_certificate(identity.chain[0])
        context.check_privatekey()
    return context


@contextmanager
def openssl_judges() -> Iterator[None]:
    """Turn what OpenSSL says against a certificate into FileRefused."""
    try:
        yield
    except (SSL.Error, crypto.Error) as error:
        raise FileRefused(f"OpenSSL does not take a certificate: {_reasons(error)}") from error


def remember_verdict(connection: SSL.Connection, certificate: X509, error: int, _depth: int, is_good: int) -> bool:
    """Let OpenSSL's judgement stand (for `Context.set_verify`), and keep its first error for `failure_text`."""
    if not is_good:
        fingerprint = certificate.digest("sha256").decode().replace(":", "").lower()
        verdict = Verdict(error, fingerprint, _subject_of(certificate), f"{certificate.get_serial_number():x}")
        _verdicts.setdefault(connection.get_app_data(), verdict)
    return bool(is_good)


def refused_certificate(transport: object) -> Verdict | None:
    """Return what OpenSSL said against the peer's certificate, if it said anything."""
    return _verdicts.get(transport) if isinstance(transport, TLSMemoryBIOProtocol) else None


def _subject_of(certificate: X509) -> str:
    try:
        return name_text(certificate.to_cryptography().subject)
    except (ValueError, TypeError, x509.InvalidVersion):
        return "-"


def name_text(name: x509.Name) -> str:
    """Return a distinguished name for the log: printable, and not longer than a line."""
    try:
        return printable(name.rfc4514_string()[:NAME_LIMIT])
    except ValueError:
        return "-"


def failure_text(transport: object, reason: Failure, where_not_valid: str = "") -> str:
    """Return why a connection ended; a failed handshake in words that say which side has to change what.

    Args:
        where_not_valid: what to do where the peer's certificate is not valid yet or any more, though the clocks agree.
    """
    if not isinstance(reason.value, SSL.Error):
        return str(reason.getErrorMessage())
    verdict = refused_certificate(transport)
    if verdict is not None:
        error = verdict.error
        described = _VERIFY_ERRORS.get(error, f"certificate was not accepted (X509 error {error})")
        advice = f". {where_not_valid}" if where_not_valid and error in _NOT_VALID_NOW else ""
        return f"TLS: the peer's {described} (SHA-256 {verdict.sha256}){advice}"
    return "TLS: " + (_reasons(reason.value) or "the handshake failed")


def _reasons(error: SSL.Error | crypto.Error) -> str:
    """Return OpenSSL's own words for an error."""
    return "; ".join(words[-1] for words in (error.args[0] if error.args else ()))


def is_tls(transport: object) -> bool:
    """Return whether a transport is a TLS connection."""
    return isinstance(transport, TLSMemoryBIOProtocol)


def is_tls_failure(text: str) -> bool:
    """Return whether `failure_text` told of a failed handshake."""
    return text.startswith("TLS: ")


def is_due(certificate: x509.Certificate, now: datetime, renew_before: timedelta) -> bool:
    """Return whether a certificate is to be replaced: it ends soon, has ended, or is not valid yet."""
    return certificate.not_valid_after_utc - renew_before < now or now < certificate.not_valid_before_utc


def sha256_of(certificate: x509.Certificate) -> str:
    """Return a certificate's fingerprint, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def verified_chain(transport: object) -> list[x509.Certificate]:
    """Return the peer's certificate and its path up to the trust anchor, as OpenSSL verified it; empty without one."""
    if not isinstance(transport, TLSMemoryBIOProtocol):
        return []
    return transport.getHandle().get_verified_chain(as_cryptography=True) or []


def peer_certificate(transport: object) -> x509.Certificate | None:
    """Return the certificate that the peer showed and OpenSSL accepted; None without TLS or without one."""
    if not isinstance(transport, TLSMemoryBIOProtocol):
        return None
    found: x509.Certificate | None = transport.getHandle().get_peer_certificate(as_cryptography=True)
    return found


class TlsFactory(TLSMemoryBIOFactory):
    """Puts TLS on the connections of a listening factory.

    Twisted's own also puts it on a connection that the factory refused, which then stays open with nobody behind it.

    Args:
        writes_whole: what is behind it writes once for all that is to leave together; else writes are gathered until
            the reactor's next turn.
    """

    def __init__(self, context: "TlsContext", factory: IProtocolFactory, *, writes_whole: bool = False) -> None:
        super().__init__(context, False, factory)
        if writes_whole:
            self.protocol = TLSMemoryBIOProtocol

    def buildProtocol(self, addr: IAddress | None) -> Any:
        behind = self.wrappedFactory.buildProtocol(addr)
        return None if behind is None else self.protocol(self, behind)


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class TlsContext:
    """Makes connections with a context that can be exchanged while others live on with the old one.

    Args:
        context: the first one.
        certificates: the one that it shows, then others on whose validity its connections depend.
    """

    def __init__(self, context: SSL.Context, certificates: Sequence[x509.Certificate]) -> None:
        self.context = context
        self.certificates = certificates

    @property
    def not_after(self) -> datetime:
        """When the certificate ends that it shows."""
        return self.certificates[0].not_valid_after_utc

    def take(self, other: "TlsContext") -> None:
        """Make the connections that are to come with another's context."""
        self.context, self.certificates = other.context, other.certificates

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
