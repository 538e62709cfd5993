"""The CAs of client certificates and their CRLs, read and verified (RFC 5280, 5 and 6.3).

Imported only where client certificates let in. Everything in here may take a second for a large CRL: it runs before the
listeners open, or in a thread.
"""

import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ExtensionOID

from bmc_proxy.auth.client_certificates import AuthorityId, Crl
from bmc_proxy.https import authority_id
from runtime.asn1 import der
from runtime.files import FileRefused
from runtime.tls import load_certificates, name_text

# A CRL of this size has some 400,000 entries of ours; what is kept of one entry takes some 100 octets.
MAX_OCTETS = 16 * 1024 * 1024
MAX_ENTRIES = 250_000
MAX_FILES = 64

_ARMOUR = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
# Every critical extension holds this BOOLEAN; where it is nowhere, no entry needs to be looked at.
_TRUE = b"\x01\x01\xff"
# Of a whole CRL: read here, or of no importance for whether a certificate is on it.
_KNOWN = frozenset(
    {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_NUMBER,
        ExtensionOID.ISSUING_DISTRIBUTION_POINT,
        ExtensionOID.FRESHEST_CRL,
        ExtensionOID.AUTHORITY_INFORMATION_ACCESS,
        ExtensionOID.ISSUER_ALTERNATIVE_NAME,
    }
)
_KNOWN_IN_ENTRIES = (x509.CRLReason, x509.InvalidityDate)


class CrlRefused(Exception):
    """A CRL cannot be relied on; the text says why, to go behind its name."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: a name and a key, and the certificate that says so."""

    id: AuthorityId
    certificate: x509.Certificate

    @property
    def name(self) -> str:
        """The CA's name for the log."""
        return name_text(self.certificate.subject)


def authority_of(certificate: x509.Certificate) -> Authority:
    """Return the CA that a certificate is of. Raises ValueError or UnsupportedAlgorithm where it cannot be read."""
    return Authority(authority_id(certificate), certificate)


def load_authorities(path: Path) -> list[Authority]:
    """Read the CAs of --client-ca. Raises FileRefused."""
    try:
        return [authority_of(each) for each in load_certificates(path)]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FileRefused(f"certificate {path} holds one whose key cannot be read") from error


@dataclass(frozen=True, slots=True)
class Published:
    """The CA certificates of one root generation.

    Attributes:
        issuers: the CAs that issue leaves: those above no other one.
        roots: the CAs above them.
    """

    issuers: tuple[Authority, ...]
    roots: tuple[Authority, ...]


def authorities_in(octets: bytes) -> Published:
    """Return the CAs in a certs-only CMS message. Raises CrlRefused."""
    try:
        found = [authority_of(each) for each in pkcs7.load_der_pkcs7_certificates(octets)]
        certificates = [each.certificate for each in found]
        above = {each.issuer for each in certificates if each.issuer != each.subject}
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CrlRefused("the CA certificates cannot be read") from error
    return Published(
        tuple(each for each in found if each.certificate.subject not in above),
        tuple(each for each in found if each.certificate.subject in above),
    )


def load_crls(
    path: Path, authorities: Sequence[Authority], unread: Callable[[FileRefused], None] | None = None
) -> dict[AuthorityId, Crl]:
    """Read the CRLs of --client-crl, by issuer; of one issuer the latest (`Crl.is_earlier_than`).

    Args:
        path: a file with one CRL in DER or any number of them in PEM, or a directory of such files, in which names that
            begin with a dot are passed over.
        authorities: the CAs of --client-ca, one of which must have signed each CRL.
        unread: hears of each file that cannot be used, and the others are read. Without it, such a file is refused.

    Raises:
        FileRefused: a CRL cannot be read or relied on; the text says which and why.
    """
    found: dict[AuthorityId, Crl] = {}
    room = MAX_ENTRIES
    for issuer, crl, file in _read_files(path, authorities, unread):
        room -= len(crl.serials)
        if room < 0:
            raise FileRefused(f"--client-crl {file}: more than {MAX_ENTRIES} revoked certificates in all")
        if issuer not in found or not crl.is_earlier_than(found[issuer]):
            found[issuer] = crl
    return found


def _read_files(
    path: Path, authorities: Sequence[Authority], unread: Callable[[FileRefused], None] | None
) -> Iterator[tuple[AuthorityId, Crl, Path]]:
    """Yield each CRL with its issuer and file; arguments and errors as for `load_crls`."""
    try:
        files = _files_at(path)
    except FileRefused as error:
        if unread is None:
            raise
        unread(error)
        return
    for file in files:
        try:
            read = [_read(octets, authorities, file) for octets in _crls_in(file)]
        except FileRefused as error:
            if unread is None:
                raise
            unread(error)
        else:
            yield from ((*each, file) for each in read)


def _read(octets: bytes, authorities: Sequence[Authority], file: Path) -> tuple[AuthorityId, Crl]:
    try:
        return read_crl(octets, authorities)
    except CrlRefused as error:
        raise FileRefused(f"--client-crl {file}: {error}") from error


def _files_at(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
        files = [each for each in sorted(path.iterdir()) if not each.name.startswith(".")]
    except OSError as error:
        raise FileRefused(f"--client-crl {path}: {error.strerror}") from error
    if not files:
        raise FileRefused(f"--client-crl {path}: no CRL in this directory")
    if len(files) > MAX_FILES:
        raise FileRefused(f"--client-crl {path}: more than {MAX_FILES} files")
    return files


def _crls_in(path: Path) -> Iterator[bytes]:
    """Yield the CRLs of a file, in DER."""
    try:
        with open(path, "rb") as file:
            octets = file.read(MAX_OCTETS + 1)
    except OSError as error:
        raise FileRefused(f"--client-crl {path}: {error.strerror}") from error
    if len(octets) > MAX_OCTETS:
        raise FileRefused(f"--client-crl {path}: larger than {MAX_OCTETS} octets")
    if b"-----BEGIN" not in octets:
        yield octets
        return
    armoured = _ARMOUR.findall(octets)
    if not armoured:
        raise FileRefused(f"--client-crl {path}: no CRL in PEM. It begins with -----BEGIN X509 CRL-----")
    for each in armoured:
        base64 = b"".join(each.split(b"-----")[2].split())
        try:
            yield binascii.a2b_base64(base64, strict_mode=True)
        except ValueError as error:
            raise FileRefused(f"--client-crl {path}: a CRL in it cannot be read: its base64 is broken") from error


def read_crl(octets: bytes, authorities: Sequence[Authority] | None) -> tuple[AuthorityId, Crl]:
    """Read a CRL and verify it.

    Args:
        octets: the whole CRL, in DER.
        authorities: one of which must be its issuer, by name and key; None where it was verified before it was stored,
            which gives an issuer of no octets.

    Raises:
        CrlRefused: it cannot be relied on.
    """
    try:
        crl = x509.load_der_x509_crl(octets)
        signed = _Signed(crl, octets)
        issuer = b"" if authorities is None else _issuer_of(crl, signed, authorities)
        _check_extensions(crl)
        if crl.next_update_utc is None:
            raise CrlRefused("it has no nextUpdate, so nobody can tell when it has ended (RFC 5280, 5.1.2.5)")
        serials = _serials_in(crl, signed.tbs)
        number = _number_of(crl)
        updates = _seconds(crl.last_update_utc), _seconds(crl.next_update_utc)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:  # a DerError is a ValueError
        raise CrlRefused("it is no CRL in DER or PEM, or one that cannot be read") from error
    return issuer, Crl(serials, *updates, number)


class _Signed:
    """The signature of a CRL, and what it is over.

    The cryptography package has both, and encodes the CRL again for each look at it, which stops all threads of the
    process for half a second where there are 100,000 entries.
    """

    def __init__(self, crl: x509.CertificateRevocationList, octets: bytes) -> None:
        self._crl = crl
        self.tbs, outer, _ = der.children(octets)
        fields = der.children(self.tbs)
        inner = fields[1] if fields[0][0] == der.INTEGER else fields[0]  # behind a version, if there is one
        # RFC 5280, 5.1.1.2: what names the algorithm outside is not signed itself.
        self._is_one_algorithm = inner == outer

    def is_by(self, key: Any) -> bool:
        """Return whether this key, of whatever kind, made the signature."""
        signature = self._crl.signature
        # Whatever they are of, a key of another kind does not take them.
        parameters: Any = self._crl.signature_algorithm_parameters
        algorithm: Any = self._crl.signature_hash_algorithm
        try:
            match key:
                case rsa.RSAPublicKey():
                    key.verify(signature, self.tbs, parameters, algorithm)
                case ec.EllipticCurvePublicKey():
                    key.verify(signature, self.tbs, parameters)
                case _:
                    key.verify(signature, self.tbs)
        except (InvalidSignature, TypeError, AttributeError, UnsupportedAlgorithm):
            return False
        return self._is_one_algorithm


def _issuer_of(crl: x509.CertificateRevocationList, signed: _Signed, authorities: Iterable[Authority]) -> AuthorityId:
    named = [each for each in authorities if each.certificate.subject == crl.issuer]
    if not named:
        raise CrlRefused(f"its issuer is not in --client-ca: {name_text(crl.issuer)}")
    signers = [each for each in named if signed.is_by(each.certificate.public_key())]
    if not signers:
        raise CrlRefused("its signature does not verify with the key of its issuer in --client-ca")
    if not any(_may_sign_crls(each.certificate) for each in signers):
        raise CrlRefused("the certificate of its issuer does not allow cRLSign (RFC 5280, 4.2.1.3)")
    return signers[0].id


def _may_sign_crls(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def _check_extensions(crl: x509.CertificateRevocationList) -> None:
    """Refuse a CRL that does not speak of all certificates of its issuer (RFC 5280, 5.2)."""
    for extension in crl.extensions:
        oid = extension.oid
        if oid == ExtensionOID.DELTA_CRL_INDICATOR:
            raise CrlRefused("it is a delta CRL. Give the complete one.")
        if isinstance(extension.value, x509.IssuingDistributionPoint):
            _check_scope(extension.value)
        elif extension.critical and oid not in _KNOWN:
            raise CrlRefused(f"it has a critical extension that is not known here: {oid.dotted_string}")


def _check_scope(point: x509.IssuingDistributionPoint) -> None:
    if point.indirect_crl:
        raise CrlRefused("it is an indirect CRL, which lists certificates of other issuers. Give the issuer's own.")
    is_partial = point.only_contains_ca_certs or point.only_contains_attribute_certs or point.only_some_reasons
    if is_partial or point.full_name or point.relative_name:
        raise CrlRefused("it covers a part of its issuer's certificates or reasons only. Give the complete one.")


def _serials_in(crl: x509.CertificateRevocationList, tbs: bytes) -> frozenset[int]:
    if len(crl) > MAX_ENTRIES:
        raise CrlRefused(f"it lists more than {MAX_ENTRIES} certificates")
    if _TRUE in tbs:
        for entry in crl:
            for extension in entry.extensions:
                if extension.critical and not isinstance(extension.value, _KNOWN_IN_ENTRIES):
                    raise CrlRefused(f"an entry has a critical extension: {extension.oid.dotted_string}")
    return frozenset(entry.serial_number for entry in crl)


def _number_of(crl: x509.CertificateRevocationList) -> int | None:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def _seconds(time: datetime) -> float:
    return time.timestamp()
