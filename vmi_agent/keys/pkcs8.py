"""Encrypting a private key for a file: PKCS#8 (RFC 5958, 3) with PBES2 (RFC 8018, 6.2), scrypt (RFC 7914) and AES-256.

The cryptography package reads this and does not write it: what it writes is PBKDF2 with 2,048 rounds, which whoever
steals a backup guesses through.
"""

import os

from cryptography import x509
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from runtime.asn1 import der
from vmi_agent.certificate import object_identifier

# 16 MiB, five times over, for each guess; OpenSSL reads no more than 32 MiB.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 14, 8, 5
_KEY_OCTETS = 32
_PBES2 = object_identifier(x509.ObjectIdentifier("1.2.840.113549.1.5.13"))
_SCRYPT = object_identifier(x509.ObjectIdentifier("1.3.6.1.4.1.11591.4.11"))
_AES_256_CBC = object_identifier(x509.ObjectIdentifier("2.16.840.1.101.3.4.1.42"))


def encrypt(private_key_info: bytes, passphrase: bytes) -> bytes:
    """Return the DER of an EncryptedPrivateKeyInfo.

    Args:
        private_key_info: PKCS#8 in DER, in the clear.
    """
    salt, iv = os.urandom(16), os.urandom(16)
    key = Scrypt(salt, _KEY_OCTETS, SCRYPT_N, SCRYPT_R, SCRYPT_P).derive(passphrase)
    padder, encryptor = padding.PKCS7(128).padder(), Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    encrypted = encryptor.update(padder.update(private_key_info) + padder.finalize()) + encryptor.finalize()
    parameters = (_integer(each) for each in (SCRYPT_N, SCRYPT_R, SCRYPT_P))
    derivation = _sequence(_SCRYPT, _sequence(_octets(salt), *parameters))
    scheme = _sequence(_PBES2, _sequence(derivation, _sequence(_AES_256_CBC, _octets(iv))))
    return _sequence(scheme, _octets(encrypted))


def _sequence(*parts: bytes) -> bytes:
    return der.wrap(der.SEQUENCE, *parts)


def _octets(value: bytes) -> bytes:
    return der.wrap(der.OCTET_STRING, value)


def _integer(value: int) -> bytes:
    return der.wrap(der.INTEGER, value.to_bytes(value.bit_length() // 8 + 1))
