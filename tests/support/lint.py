"""pkilint's PKIX lint, as a judge of certificates."""

from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pkilint import loader
from pkilint.pkix import certificate, extension, name
from pkilint.validation import ValidationFindingSeverity


@cache
def _validator() -> Any:
    decoding = certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS)
    judging = [
        certificate.create_issuer_validator_container([]),
        certificate.create_validity_validator_container(),
        certificate.create_subject_validator_container([]),
        certificate.create_extensions_validator_container([]),
    ]
    return certificate.create_pkix_certificate_validator_container(decoding, judging)


def findings(found: x509.Certificate | bytes) -> list[str]:
    """Return what lint finds in a certificate, as object or DER, of WARNING or worse."""
    der = found if isinstance(found, bytes) else found.public_bytes(serialization.Encoding.DER)
    results = _validator().validate(loader.load_der_certificate(der, "certificate").root)
    return [
        f"{result.node.path}: {each.finding.code}"
        for result in results
        for each in result.finding_descriptions
        if each.finding.severity <= ValidationFindingSeverity.WARNING  # the worst is 0
    ]
