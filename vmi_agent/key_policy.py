"""Which public keys are certified.

Judged before the CSR's signature is verified: a key of absurd size must not cost a verification.
"""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from protocol import der
from protocol.errors import ErrorCode
from vmi_agent.csr import Csr
from vmi_agent.errors import Refused

LEAST_RSA_BITS = 2048
MOST_RSA_BITS = 8192
LEAST_RSA_EXPONENT = 65537
MOST_RSA_EXPONENT = 2**256 - 1
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

# AlgorithmIdentifier rsaEncryption with its NULL parameters (RFC 3279, 2.3.1): neither a key bound to RSA-PSS nor one
# with odd parameters, which other software reads differently.
_RSA_ENCRYPTION = bytes.fromhex("300d06092a864886f70d0101010500")
_ACCEPTED = "Use RSA (2048 to 8192 bits), EC P-256, P-384 or P-521, or Ed25519."


def check(csr: Csr) -> None:
    """Judge the CSR's public key.

    Raises:
        Refused: CSR_WEAK_KEY, saying which keys are accepted.
    """
    try:
        key = csr.request.public_key()
    except (UnsupportedAlgorithm, ValueError) as error:
        text = f"The CSR's public key is invalid or of a kind that is not accepted. {_ACCEPTED}"
        raise Refused(ErrorCode.CSR_WEAK_KEY, text) from error
    match key:
        case rsa.RSAPublicKey() if der.children(csr.public_key_info)[0] == _RSA_ENCRYPTION:
            _check_rsa(key)
        case ec.EllipticCurvePublicKey(curve=curve) if isinstance(curve, CURVES):
            pass
        case ed25519.Ed25519PublicKey():
            pass
        case _:
            text = f"The CSR's public key is of a kind that is not accepted. {_ACCEPTED}"
            raise Refused(ErrorCode.CSR_WEAK_KEY, text)


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    if not LEAST_RSA_BITS <= key.key_size <= MOST_RSA_BITS:
        text = f"The RSA key has {key.key_size} bits. Use {LEAST_RSA_BITS} to {MOST_RSA_BITS}."
        raise Refused(ErrorCode.CSR_WEAK_KEY, text)
    exponent = key.public_numbers().e
    if exponent % 2 == 0 or not LEAST_RSA_EXPONENT <= exponent <= MOST_RSA_EXPONENT:
        text = "The RSA key's public exponent is even or out of range. Use 65537."
        raise Refused(ErrorCode.CSR_WEAK_KEY, text)
