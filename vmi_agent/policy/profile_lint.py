"""A profile is tried before it is served: one certificate for each kind of key, judged by pkilint's PKIX lint.

The certificates go the way of all others, `approve` and `certificate_tbs`, under a CA key that nobody keeps. Lint looks
at what is written, not at signatures, so the CSRs behind them are not signed by their own keys, and the RSA modulus is
any number of the right size: nothing here waits for an RSA key to be made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from runtime.asn1 import der
from runtime.errors import StartError
from vmi_agent.ca.certificates import self_signed_root
from vmi_agent.ca.reserved_names import ReservedNames
from vmi_agent.certificate import Issuer, assemble, certificate_tbs, new_serial
from vmi_agent.errors import Refused
from vmi_agent.keys.algorithms import signature_algorithm
from vmi_agent.keys.file_key import FileCustody
from vmi_agent.policy.csr import Csr, parse
from vmi_agent.policy.key_kinds import AcceptedKey
from vmi_agent.policy.profile import Profile, approve

if TYPE_CHECKING:
    from pkilint.validation import ValidatorContainer


@dataclass(frozen=True, slots=True)
class Finding:
    """What lint finds fault with.

    Attributes:
        code: pkilint's, or the code that the profile's own example is refused with.
        where: the part of the certificate, or the text of the refusal.
        key_kind: of KEY_KINDS, where it was found in a profile's certificate.
    """

    code: str
    where: str
    key_kind: str = ""

    def __str__(self) -> str:
        return f"key {self.key_kind}: {self.code} ({self.where})" if self.key_kind else f"{self.code} ({self.where})"


def check(profiles: Sequence[Profile], now: datetime, pointers: tuple[bytes, ...] = ()) -> None:
    """Lint profiles.

    Args:
        now: aware UTC time.
        pointers: as in `Issuer`.

    Raises:
        StartError: naming the first profile that lint finds fault with, the kind of key, and the finding.
    """
    for profile in profiles:
        for finding in lint(profile, now, pointers):
            raise StartError(f"profile {profile.name!r} makes certificates that lint finds fault with: {finding}")


def lint(profile: Profile, now: datetime, pointers: tuple[bytes, ...] = ()) -> list[Finding]:
    """Return what lint finds in the certificates that a profile makes, one for each kind of key that it accepts.

    Arguments as for `check`.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    custody = FileCustody(key)
    root = self_signed_root(custody, 1, now)
    issuer = Issuer(
        name=root.subject.public_bytes(),
        signature_algorithm=signature_algorithm(custody.public_key),
        key_identifier=root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest,
        not_after=root.not_valid_after_utc,
    )
    findings = []
    for kind in profile.key_kinds:
        try:
            accepted = AcceptedKey(kind, profile.rsa_bits[0] if kind == "rsa" else 0)
            approved = approve(_example(profile, kind, key), accepted, profile, ReservedNames())
        except Refused as refused:
            findings.append(Finding(refused.code.name, refused.text, kind))
            continue
        csr, period = approved.csr, profile.period(now, issuer.not_after)
        extensions = (*approved.extensions, *pointers)
        tbs = certificate_tbs(issuer, new_serial(), *period, csr.subject, csr.public_key_info, extensions)
        leaf = assemble(tbs, custody.sign(tbs))
        findings += [Finding(each.code, each.where, kind) for each in lint_certificate(leaf)]
    return findings


def lint_certificate(certificate: bytes) -> list[Finding]:
    """Return what pkilint's PKIX lint says of a certificate in DER: warnings and worse."""
    # 0.3 s and 11 MiB that no other command needs to spend.
    from pkilint import loader
    from pkilint.validation import ValidationFindingSeverity

    results = _validator().validate(loader.load_der_certificate(certificate, "").root)
    return [
        Finding(description.finding.code, result.node.path)
        for result in results
        for description in result.finding_descriptions
        if description.finding.severity <= ValidationFindingSeverity.WARNING
    ]


@cache
def _validator() -> "ValidatorContainer":
    from pkilint.pkix import certificate, extension, name

    return certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )


def _example(profile: Profile, key_kind: str, signing_key: ec.EllipticCurvePrivateKey) -> Csr:
    """Return a CSR as the profile wants it, with all the names that it allows."""
    subject = profile.subject.example()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    mailboxes = [str(attribute.value) for attribute in subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS)]
    names = profile.names.example(mailboxes[0] if mailboxes else None)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    request = builder.sign(signing_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    information, *signature = der.children(request)
    version, name, _, *others = der.children(information)
    key_info = _public_key(key_kind, profile.rsa_bits[0]).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    information = der.wrap(der.SEQUENCE, version, name, key_info, *others)
    return parse(der.wrap(der.SEQUENCE, information, *signature))


def _public_key(kind: str, rsa_bits: int) -> CertificatePublicKeyTypes:
    match kind:
        case "rsa":
            return rsa.RSAPublicNumbers(65537, (1 << (rsa_bits - 1)) | 1).public_key()
        case "p256":
            return ec.generate_private_key(ec.SECP256R1()).public_key()
        case "p384":
            return ec.generate_private_key(ec.SECP384R1()).public_key()
        case "p521":
            return ec.generate_private_key(ec.SECP521R1()).public_key()
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate().public_key()
        case "mldsa44":
            return mldsa.MLDSA44PrivateKey.generate().public_key()
        case "mldsa65":
            return mldsa.MLDSA65PrivateKey.generate().public_key()
    assert kind == "mldsa87"
    return mldsa.MLDSA87PrivateKey.generate().public_key()
