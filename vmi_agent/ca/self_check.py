"""The last look at a certificate before it is recorded, with eyes that did not write it.

The cryptography package reads it and verifies its signature; subject, key and issuer are compared octet for octet, so
that not even another spelling of the same passes.
"""

from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from runtime.asn1 import der
from vmi_agent.errors import SelfCheckFailed
from vmi_agent.keys.algorithms import parameters_of, signature_algorithm


class SelfCheck:
    """Checks what one CA issues.

    Args:
        issuer: the CA's certificate, as it was read from the disk; what is needed of it is taken out of it once.
    """

    def __init__(self, issuer: x509.Certificate) -> None:
        public_key: Any = issuer.public_key()  # of a kind whose `verify` takes these parameters
        self._verify = public_key.verify
        self._parameters = parameters_of(public_key)
        self._algorithm = signature_algorithm(public_key)
        self._name = issuer.subject.public_bytes()
        self._not_after = issuer.not_valid_after_utc

    def check(self, certificate: bytes, subject: bytes, public_key_info: bytes) -> None:
        """Read a certificate back: signature, issuer, subject, public key, validity.

        Args:
            certificate: in DER.
            subject, public_key_info: whom it is to be for: a DER Name and a SubjectPublicKeyInfo.

        Raises:
            SelfCheckFailed: as its docstring says.
        """
        try:
            read = x509.load_der_x509_certificate(certificate)
            tbs, algorithm, _ = der.children(certificate)
            _, _, inner_algorithm, issuer, _, its_subject, its_key, *_ = der.children(tbs)
            self._verify(read.signature, read.tbs_certificate_bytes, *self._parameters)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise SelfCheckFailed(f"the certificate does not verify under the CA: {error!r}") from error
        if not (issuer == self._name and algorithm == inner_algorithm == self._algorithm):
            raise SelfCheckFailed("the certificate does not verify under the CA: it names another one, or algorithm")
        if its_subject != subject or its_key != public_key_info:
            raise SelfCheckFailed("the certificate's subject or public key is not the one that was asked for")
        if read.not_valid_after_utc > self._not_after:
            raise SelfCheckFailed("the certificate outlives its issuer")
