"""HTTPS: the proxy's certificate, and who a client certificate names.

Without a certificate of the operator's, one is made on the first start, with the names and addresses that this machine
has then: `STATE/https.pem`, key and certificate, 0600. In its last 30 days, or where it was made while the clock was
ahead, the proxy makes the next one, at its start and while it runs. On a clock that cannot be right it makes none: it
serves the one that is there, and does not start if it is missing.
"""

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from OpenSSL import SSL, crypto

from bmc_proxy.auth.client_certificates import AuthorityId, ClientCertificate
from bmc_proxy.config import Config, HttpsConfig
from runtime.asn1 import der
from runtime.clock import early_clock_text, is_before_build, utc_now
from runtime.files import FileRefused, remove_leftovers, replace_file
from runtime.reload import Reloadable
from runtime.self_signed import self_signed
from runtime.tls import (
    TlsContext,
    is_due,
    load_certificates,
    load_identity,
    name_text,
    new_context,
    openssl_judges,
    remember_verdict,
    verified_chain,
)

FILE_NAME = "https.pem"
VALIDITY = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)
ALPN = b"http/1.1"
_UPN = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
_UTF8_STRING = 0x0C
SIOCGIFADDR = 0x8915


def https_context(state_dir: Path, config: HttpsConfig, now: Callable[[], datetime] = utc_now) -> TlsContext:
    """Return what makes the TLS connections of the HTTPS listener; make its certificate first where one is due.

    Args:
        now: returns the aware UTC time.

    Raises:
        FileRefused: a certificate or key cannot be used, or none can be made now; the text says which.
    """
    own = state_dir / FILE_NAME
    remove_leftovers(own)
    if config.certificate is None and _is_to_be_made(own, now(), accept_clock=config.accept_clock):
        names = names_of_this_host()
        try:
            replace_file(own, self_signed(names[0], names, ExtendedKeyUsageOID.SERVER_AUTH, VALIDITY, now()))
        except OSError as error:
            raise FileRefused(f"{own} cannot be written: {error.strerror}") from error
    return read_https_context(state_dir, config)


def read_https_context(state_dir: Path, config: HttpsConfig) -> TlsContext:
    """Return the same, with a certificate that is there. Raises FileRefused."""
    own = state_dir / FILE_NAME
    identity = load_identity(config.key or config.certificate or own, config.certificate or own)
    context = new_context(SSL.TLS_SERVER_METHOD, SSL.TLS1_2_VERSION, identity)
    with openssl_judges():
        for certificate in identity.chain[1:]:
            context.add_extra_chain_cert(certificate)
    context.set_alpn_select_callback(_select_protocol)
    # Clients resume by ticket, which the client keeps. Sessions kept here would be 20,000, of whoever connects.
    context.set_session_id(b"bmc-proxy")
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if config.client_ca is not None:
        _ask_for_certificates(context, config.client_ca)
    return TlsContext(context, identity.chain)


def https_reloadable(config: Config, *, is_alone: bool) -> Reloadable:
    """Return the HTTPS listener's context as this process keeps it up to date.

    Args:
        is_alone: this process makes the certificate and warns of it; otherwise another one does.

    Raises:
        FileRefused: as for `https_context`.
    """
    is_own = config.https_certificate is None
    return Reloadable(
        "https",
        partial(https_context if is_alone else read_https_context, config.state_dir, config.https_config),
        advice="Replace its file and send SIGHUP" if not is_own else "It is renewed here, unless an error says why not",
        renew_before=RENEW_BEFORE if is_own and is_alone else None,
        warns=is_alone,
    )


def _is_to_be_made(path: Path, now: datetime, *, accept_clock: bool) -> bool:
    """Return whether a certificate is to be made: there is none, it ends soon, or it is not valid yet.

    Raises:
        FileRefused: there is none, and none can be made by this clock.
    """
    is_there = path.exists()
    if is_before_build(now) and not accept_clock:
        if not is_there:
            raise FileRefused(f"{path} cannot be made: {early_clock_text(now)}")
        return False
    return not is_there or is_due(load_identity(path, path).chain[0], now, RENEW_BEFORE)


def _ask_for_certificates(context: SSL.Context, path: Path) -> None:
    """Let clients show a certificate of these CAs; one that does not hold is refused, none at all is not."""
    authorities = load_certificates(path)
    store = context.get_cert_store()
    assert store is not None  # a context has one
    with openssl_judges():
        for authority in authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))
            context.add_client_ca(authority)
    context.set_verify(SSL.VERIFY_PEER, remember_verdict)
    # A session that is resumed would bring a certificate that nobody looked at again.
    context.set_options(SSL.OP_NO_TICKET)


def _select_protocol(_connection: SSL.Connection, offered: list[bytes]) -> Any:
    return ALPN if ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def client_certificate_of(transport: object, field: str) -> ClientCertificate | None:
    """Return the certificate that a client showed and OpenSSL accepted; None without TLS or without one.

    Args:
        transport: of a connection whose handshake is complete.
        field: as for `user_of`.

    Raises:
        Exception: whatever a CA's certificate that cannot be read gives rise to.
    """
    chain = verified_chain(transport)
    if not chain:
        return None
    authorities = [authority_id(each) for each in chain]
    return ClientCertificate(
        user=user_of(chain[0], field),
        subject=name_text(chain[0].subject),
        serial=chain[0].serial_number,
        not_before=max(each.not_valid_before_utc for each in chain).timestamp(),
        not_after=min(each.not_valid_after_utc for each in chain).timestamp(),
        path=tuple((issuer, each.serial_number) for each, issuer in zip(chain, authorities[1:], strict=False)),
        anchor=authorities[-1],
    )


def authority_id(certificate: x509.Certificate) -> AuthorityId:
    """Return what a CA is known by: its name and its key. Raises ValueError or UnsupportedAlgorithm."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(certificate.subject.public_bytes() + key).digest()


def user_of(certificate: x509.Certificate, field: str) -> str | None:
    """Return whom a client certificate names.

    Args:
        field: "cn" for its common name, "upn" for what stands before the @ in its user principal name (SAN).
    """
    if field == "upn":
        return _principal(certificate)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


def _principal(certificate: x509.Certificate) -> str | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        values = [name.value for name in names.get_values_for_type(x509.OtherName) if name.type_id == _UPN]
        if len(values) != 1:
            return None
        tag, start, end = der.read(values[0])
        text = values[0][start:end].decode() if tag == _UTF8_STRING else ""
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return None
    return text.partition("@")[0] or None


def names_of_this_host() -> list[str]:
    """Return the names and addresses that this machine has, the host's own name first."""
    found = [socket.getfqdn(), socket.gethostname(), "localhost", *_ipv4_addresses(), *_ipv6_addresses()]
    return [each for each in dict.fromkeys(found) if each and each.isascii()]


def _ipv4_addresses() -> list[str]:
    """Return the first IPv4 address of each interface that has one (netdevice(7), SIOCGIFADDR)."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # this interface has none
            found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _ipv6_addresses() -> list[str]:
    """Return the IPv6 addresses of this machine (proc(5), /proc/net/if_inet6)."""
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return []  # IPv6 is switched off
    return [str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))) for line in lines]
