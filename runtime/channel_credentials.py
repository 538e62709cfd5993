"""`tls:` on the channel: TLS 1.3, both sides with a certificate that the other one was given beforehand.

A credentials file (PEM, mode 0600) holds a private key, the certificate that belongs to it, and the certificates of
those who may be at the other end: each is a peer's own, pinned, or a CA's, whose certificates are then accepted.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto

from protocol.records import Role
from runtime.clock import utc_now
from runtime.files import FileRefused
from runtime.hints import command
from runtime.self_signed import self_signed
from runtime.tls import TlsContext, load_identity, new_context, openssl_judges, remember_verdict

FILE_NAME = "channel.pem"
VALIDITY = timedelta(days=10 * 365)
# What to do about certificates of the channel that are not valid.
ADVICE = "Make new ones: vmi-agent channel init --replace, then vmi-agent channel hand-over --replace; SIGHUP to both"

_USAGES = {Role.AGENT: ExtendedKeyUsageOID.SERVER_AUTH, Role.ASKER: ExtendedKeyUsageOID.CLIENT_AUTH}


def make_credentials(now: Callable[[], datetime] = utc_now) -> tuple[bytes, bytes]:
    """Return new credentials files for an agent and for its proxy, each of which pins the other.

    Args:
        now: returns the aware UTC time.
    """
    agent = self_signed("VMI certificate exchange agent", [], _USAGES[Role.AGENT], VALIDITY, now())
    proxy = self_signed("VMI certificate exchange proxy", [], _USAGES[Role.ASKER], VALIDITY, now())
    return agent + _certificate_in(proxy), proxy + _certificate_in(agent)


def _certificate_in(pem: bytes) -> bytes:
    return pem[pem.index(b"-----BEGIN CERTIFICATE-----") :]


def channel_context(path: Path) -> TlsContext:
    """Return what makes the channel's TLS connections, for either role.

    Raises:
        FileRefused: the credentials file cannot be used; the text says what to do.
    """
    if not path.exists():
        init = command("vmi-agent", "channel init")
        hand_over = command("vmi-agent", "channel hand-over --to channel.pem")
        raise FileRefused(
            f"no channel credentials at {path}, which tls: needs. Make them with `{init}` and move the proxy's over"
            f" with `{hand_over}`."
        )
    identity = load_identity(path, path)
    trusted = identity.chain[1:]
    if not trusted:
        raise FileRefused(f"{path} names nobody who may be at the other end: add the peer's certificate to it")
    context = new_context(SSL.TLS_METHOD, SSL.TLS1_3_VERSION, identity)
    store = context.get_cert_store()
    assert store is not None  # a context has one
    # Each certificate of the store is a trust anchor as it stands, be it a peer's own or a CA's.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    with openssl_judges():
        for certificate in trusted:
            store.add_cert(crypto.X509.from_cryptography(certificate))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, remember_verdict)
    # No resumption: each connection shows its certificate anew.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    return TlsContext(context, identity.chain)
