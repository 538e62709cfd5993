"""Keys in a token: made, found and signed with.

Sessions are not for several threads at once. A key has at most `SESSIONS`, and one thread has one of them for one
signature; the key object belongs to its session and is found anew with each.

Each signature is verified before it is given out, with the public key in this process: that costs less than the
token's part, and a session or key handle that a module gave out twice, or a fault in a token, then gives an error
instead of a signature of something else.
"""

import secrets
import threading
from contextlib import closing
from typing import Any

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, SignMixin

from runtime.asn1 import der
from vmi_agent.keys import CustodyError, Pace
from vmi_agent.keys.algorithms import hash_of, parameters_of
from vmi_agent.keys.pkcs11.login import Login, NotThere, login_to
from vmi_agent.keys.pkcs11.module import WAIT_S
from vmi_agent.keys.pkcs11.token import Token
from vmi_agent.keys.pkcs11.uri import KeyUri

SESSIONS = 8
_ID_OCTETS = 16

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

# CKA_EC_PARAMS: an object identifier; for Ed25519 older tokens have the curve's name (PKCS #11 3.0, 2.3.5).
_EC_PARAMETERS = {"p256": "06082a8648ce3d030107", "p384": "06052b81040022", "ed25519": "06032b6570"}
_CURVES: dict[bytes, ec.EllipticCurve] = {
    bytes.fromhex(_EC_PARAMETERS["p256"]): ec.SECP256R1(),
    bytes.fromhex(_EC_PARAMETERS["p384"]): ec.SECP384R1(),
}
_EDWARDS = (bytes.fromhex(_EC_PARAMETERS["ed25519"]), b"\x13\x0cedwards25519")

_PUBLIC = {Attribute.PRIVATE: False, Attribute.ENCRYPT: False, Attribute.WRAP: False}
_PRIVATE = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
# What a token answers that will never make the key, rather than not now.
_CANNOT_MAKE = (
    pkcs11.AttributeReadOnly,
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.DomainParamsInvalid,
    pkcs11.FunctionNotSupported,
    pkcs11.KeySizeRange,
    pkcs11.MechanismInvalid,
    pkcs11.MechanismParamInvalid,
    pkcs11.TemplateIncomplete,
    pkcs11.TemplateInconsistent,
    pkcs11.TokenWriteProtected,
)


class Pkcs11Custody:
    """A private key in a token: `pkcs11.make_key` and `pkcs11.load` give one.

    Any thread may sign; `SESSIONS` do so at once. After a fork it is the parent's alone.
    """

    pace = Pace.ELSEWHERE

    def __init__(self, login: Login, name: KeyUri, public_key: PublicKey) -> None:
        self._login = login
        self._name = name
        self._public_key = public_key
        self._hash = hash_of(public_key)
        self._parameters = parameters_of(public_key)
        self._places = threading.BoundedSemaphore(SESSIONS)
        self._idle: list[tuple[int, SignMixin]] = []  # appending and popping are atomic
        self._closed = False
        login.module.acquire()

    @property
    def public_key(self) -> PublicKey:
        """The key's public half."""
        return self._public_key

    @property
    def uri(self) -> str:
        """The key's name (RFC 7512), with which `pkcs11.load` finds it. It holds no PIN."""
        return str(self._name)

    def sign(self, tbs: bytes) -> bytes:
        """Return the signature over `tbs`, as it stands in a certificate's signatureValue. It verifies.

        Raises:
            CustodyError: the token cannot be used now, or for `WAIT_S` all sessions were in use; the text says which.
        """
        if self._closed:
            raise CustodyError(f"the key in token {self._name.token!r} was closed.")
        data, mechanism = self._to_be_signed(tbs)
        if not self._places.acquire(timeout=WAIT_S):
            raise CustodyError(f"token {self._name.token!r} is too slow: all sessions are in use. Ask less of it.")
        try:
            signature = self._login.run(lambda epoch: self._sign_once(epoch, data, mechanism))
        finally:
            self._places.release()
        if isinstance(self._public_key, ec.EllipticCurvePublicKey):
            signature = _ecdsa_signature(signature)
        if not self._holds(signature, tbs):
            raise CustodyError(f"token {self._name.token!r} gave a signature that does not hold. Look at its own log.")
        return signature

    def close(self) -> None:
        """Sign no more; after a process's last key the module is stopped, which closes its sessions and logs out."""
        if not self._closed:
            self._closed = True
            self._login.module.release()

    def _to_be_signed(self, tbs: bytes) -> tuple[bytes, Mechanism]:
        match self._public_key, self._hash:
            case ec.EllipticCurvePublicKey(), hashes.HashAlgorithm() as algorithm:
                digest = hashes.Hash(algorithm)
                digest.update(tbs)
                return digest.finalize(), Mechanism.ECDSA
            case rsa.RSAPublicKey(), hashes.SHA384():
                return tbs, Mechanism.SHA384_RSA_PKCS
            case rsa.RSAPublicKey(), _:
                return tbs, Mechanism.SHA256_RSA_PKCS
        return tbs, Mechanism.EDDSA

    def _sign_once(self, epoch: int, data: bytes, mechanism: Mechanism) -> bytes:
        key = self._key_of(epoch)
        signature = key.sign(data, mechanism=mechanism)
        self._idle.append((epoch, key))
        return signature

    def _key_of(self, epoch: int) -> SignMixin:
        while self._idle:
            try:
                born, key = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if born == epoch:
                return key
        found: SignMixin = _private_key(self._login.open(epoch), self._name)
        return found

    def _holds(self, signature: bytes, tbs: bytes) -> bool:
        verify: Any = self._public_key.verify  # which takes these, whatever the key's kind
        try:
            verify(signature, tbs, *self._parameters)
        except InvalidSignature:
            return False
        return True


def make_key(token: Token, key_type: str, label: str) -> Pkcs11Custody:
    """Do what `pkcs11.make_key` promises."""
    login = login_to(token)
    name = KeyUri(token.label, label, secrets.token_bytes(_ID_OCTETS))

    def make(epoch: int) -> None:
        try:
            with closing(login.open(epoch, writable=True)) as session:
                _make_pair(session, key_type, name)
        except _CANNOT_MAKE as error:
            reason = type(error).__name__
            raise CustodyError(
                f"token {token.label!r} cannot make a {key_type} key ({reason}). Choose another kind."
            ) from error

    login.run(make)
    return find_key(token, name)


def check_can_write(token: Token) -> None:
    """Log in to the token and open a session that may write, as `make_key` does.

    Raises:
        CustodyError: the token cannot be reached, refuses the PIN, or is not writable.
    """
    login = login_to(token)
    login.run(lambda epoch: login.open(epoch, writable=True).close())


def find_key(token: Token, name: KeyUri) -> Pkcs11Custody:
    """Do what `pkcs11.load` promises."""
    login = login_to(token)

    def find(epoch: int) -> PublicKey:
        with closing(login.open(epoch)) as session:
            key = _private_key(session, name)
            if not key[Attribute.SENSITIVE] or key[Attribute.EXTRACTABLE]:
                raise CustodyError(f"the key in token {name.token!r} could leave it. Make one that cannot.")
            return _public_key(session, name)

    return Pkcs11Custody(login, name, login.run(find))


def _make_pair(session: pkcs11.Session, key_type: str, name: KeyUri) -> None:
    common: dict[str, Any] = {
        "id": name.id,
        "label": name.object,
        "store": True,
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
        "private_template": _PRIVATE,
    }
    if key_type.startswith("rsa"):
        size = int(key_type.removeprefix("rsa"))
        session.generate_keypair(KeyType.RSA, size, public_template=_PUBLIC, **common)
        return
    kind = KeyType.EC_EDWARDS if key_type == "ed25519" else KeyType.EC
    public = {**_PUBLIC, Attribute.EC_PARAMS: bytes.fromhex(_EC_PARAMETERS[key_type])}
    session.generate_keypair(kind, public_template=public, **common)


def _private_key(session: pkcs11.Session, name: KeyUri) -> Any:
    found = _objects(session, ObjectClass.PRIVATE_KEY, name)
    if not found:
        raise NotThere(f"token {name.token!r} has no private key of this URI. Restore it, or give the right token.")
    if len(found) > 1:
        raise CustodyError(f"token {name.token!r} has several private keys of this URI. Leave the CA's alone there.")
    if not isinstance(found[0], SignMixin):
        raise CustodyError(f"the key in token {name.token!r} may not sign. Make one that may.")
    return found[0]


def _public_key(session: pkcs11.Session, name: KeyUri) -> PublicKey:
    found = _objects(session, ObjectClass.PUBLIC_KEY, name)
    if len(found) != 1:
        raise CustodyError(
            f"token {name.token!r} has {len(found)} public keys of this URI. Leave the CA's alone there."
        )
    try:
        return _read_public_key(found[0])
    except (ValueError, pkcs11.AttributeTypeInvalid) as error:
        raise CustodyError(f"the public key in token {name.token!r} is of a kind that cannot be read here.") from error


def _objects(session: pkcs11.Session, kind: ObjectClass, name: KeyUri) -> list[Any]:
    wanted: dict[Attribute, Any] = {Attribute.CLASS: kind, Attribute.ID: name.id}
    if name.object:
        wanted[Attribute.LABEL] = name.object
    return list(session.get_objects(wanted))


def _read_public_key(found: Any) -> PublicKey:
    if found[Attribute.KEY_TYPE] == KeyType.RSA:
        exponent, modulus = found[Attribute.PUBLIC_EXPONENT], found[Attribute.MODULUS]
        return rsa.RSAPublicNumbers(int.from_bytes(exponent), int.from_bytes(modulus)).public_key()
    parameters, point = found[Attribute.EC_PARAMS], found[Attribute.EC_POINT]
    if parameters in _EDWARDS:
        return ed25519.Ed25519PublicKey.from_public_bytes(_unwrapped(point, 32))
    if parameters not in _CURVES:
        raise ValueError("another curve")
    curve = _CURVES[parameters]
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, _unwrapped(point, 1 + 2 * (curve.key_size // 8)))


def _unwrapped(point: bytes, size: int) -> bytes:
    # CKA_EC_POINT is an OCTET STRING around the point; some tokens leave that away, and the point begins with the
    # same octet, so that only the length tells.
    if len(point) == size:
        return point
    tag, start, end = der.read(point)
    if tag != der.OCTET_STRING or end != len(point):
        raise ValueError("not a point")
    return point[start:end]


def _ecdsa_signature(raw: bytes) -> bytes:
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))
