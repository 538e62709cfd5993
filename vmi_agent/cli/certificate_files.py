"""Certificates that an operator gives as a file: what `certs revoke` takes in place of a serial number."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from runtime.asn1 import der
from runtime.errors import ConfigError
from runtime.hints import command
from vmi_agent.ca import authority
from vmi_agent.ca import store as ca_store
from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.cli.hexadecimal import SERIAL
from vmi_agent.ledger import queries
from vmi_agent.ledger.queries import NoSuchCertificate
from vmi_agent.ledger.revocation import RevocationRefused
from vmi_agent.ledger.unheld import Unheld

_MAX_OCTETS = 1 << 20


class _SerialOrFile(click.ParamType[str | Path]):
    """A serial number; or, where the text is none, a file."""

    name = "serial"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        """Return the digits or the path, or fail with what is accepted."""
        try:
            return SERIAL.convert(value, param, ctx)
        except click.BadParameter as error:
            if Path(value).is_file():
                return Path(value)
            self.fail(f"{error.message}, nor is it the file of a certificate", param, ctx)


SERIAL_OR_FILE = _SerialOrFile()


# What is said of a certificate that the ledger does not hold.
KEPT = "not in this ledger, kept on the CRL"
KEPT_ON_HOLD = f"{KEPT}: this hold cannot be released, it ends with the certificate"


def find_to_revoke(connection: Connection, serial: str) -> Any:
    """Return the row of a certificate.

    Raises:
        RevocationRefused: the ledger does not hold it; the text says how it is revoked all the same.
    """
    try:
        return queries.find(connection, serial)
    except NoSuchCertificate as error:
        give = command("vmi-agent", "certs revoke CERTIFICATE.pem")
        text = f"{error}. If this ledger was restored from an older backup, give the certificate itself: `{give}`"
        raise RevocationRefused(text) from error


def read_issued(state_dir: Path, path: Path) -> Unheld:
    """Read a certificate, in PEM or DER, that a generation of this CA issued; its signature is verified.

    Raises:
        ConfigError: it is not one certificate, or this CA did not issue it to a client.
        OSError: it cannot be read.
        CustodyError: the CA's certificates cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_OCTETS + 1)
    try:
        if content.count(b"-----BEGIN CERTIFICATE-----") > 1:
            raise ConfigError(f"{path} holds several certificates. Give one in a file of its own. Nothing was revoked.")
        is_pem = b"-----BEGIN" in content
        certificate = x509.load_pem_x509_certificate(content) if is_pem else x509.load_der_x509_certificate(content)
        encoded = certificate.public_bytes(Encoding.DER)
        key_sha256 = sha256(der.leaf_subject_and_key(encoded)[1]).digest()
        is_ca = _is_ca(certificate)
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a certificate in PEM or DER. Nothing was revoked.") from error
    generation = _issuer_of(state_dir, certificate)
    if generation is None:
        raise ConfigError(f"{path} is refused: no generation of this CA signed it. Nothing was revoked.")
    if is_ca:
        raise ConfigError(f"{path} is refused: it is a CA's certificate, not a client's. Nothing was revoked.")
    if certificate.serial_number.bit_length() not in range(8 * SERIAL_OCTETS - 7, 8 * SERIAL_OCTETS):
        raise ConfigError(f"{path} is refused: this agent gives no such serial number. Nothing was revoked.")
    return Unheld(
        certificate.serial_number.to_bytes(SERIAL_OCTETS),
        generation,
        int(certificate.not_valid_after_utc.timestamp()),
        key_sha256,
        certificate.tbs_certificate_bytes,
        certificate.signature,
    )


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _issuer_of(state_dir: Path, certificate: x509.Certificate) -> int | None:
    """Return the generation whose key signed a certificate; None where none did."""
    for generation in ca_store.generations(state_dir):
        try:
            certificate.verify_directly_issued_by(authority.certificates_of(state_dir, generation)[0])
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return generation
    return None
