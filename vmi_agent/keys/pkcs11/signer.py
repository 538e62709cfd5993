"""Custody in a PKCS#11 token (OASIS PKCS #11 3.0): an HSM, a smart card, SoftHSM.

The key pair is made in the token; its private key signs, cannot be extracted, and needs a login.
What the agent keeps is a URI that names it (RFC 7512). This file is what others call; python-pkcs11, an extra, is
loaded with the first token, so that an agent without tokens does not need it.

    token.py     which token, and its PIN
    uri.py       the name of a key
    module.py    the token's library: threads, start, stop
    login.py     who may use the token, and what to do when it loses its sessions
    keys.py      the keys: made, found, signed with
"""

from typing import TYPE_CHECKING

from vmi_agent.keys import CustodyError
from vmi_agent.keys.pkcs11.token import Token
from vmi_agent.keys.pkcs11.uri import KeyUri

if TYPE_CHECKING:
    from types import ModuleType

    from vmi_agent.keys.pkcs11.keys import Pkcs11Custody

KEY_TYPES = ("p256", "p384", "rsa2048", "rsa3072", "rsa4096", "ed25519")


def make_key(token: Token, key_type: str, label: str) -> "Pkcs11Custody":
    """Make a key pair in the token, for good.

    Its private key signs, and does nothing else; it cannot be read, wrapped or copied out.

    Args:
        key_type: one of `KEY_TYPES`.
        label: of the new key, for whoever looks at the token; nothing depends on it being the only one.

    Raises:
        CustodyError: the token cannot make it, or cannot be reached.
    """
    _check_key_type(key_type)
    made: Pkcs11Custody = _keys().make_key(token, key_type, label)
    return made


def check_can_make(token: Token, key_type: str) -> None:
    """Log in to the token for writing, and out again. Arguments and errors as for `make_key`."""
    _check_key_type(key_type)
    _keys().check_can_write(token)


def load(token: Token, uri: str) -> "Pkcs11Custody":
    """Find a key that `make_key` made.

    Args:
        uri: what `Pkcs11Custody.uri` was.

    Raises:
        CustodyError: there is no such key, there are several, it could leave its token, or the token cannot be reached.
    """
    name = KeyUri.parse(uri)
    if name.token != token.label:
        raise CustodyError(f"the key is in token {name.token!r}, not in {token.label!r}. Give that token's label.")
    found: Pkcs11Custody = _keys().find_key(token, name)
    return found


def _check_key_type(key_type: str) -> None:
    if key_type not in KEY_TYPES:
        raise CustodyError(f"a key in a token is one of {', '.join(KEY_TYPES)}. Keep other kinds in a file.")


def _keys() -> "ModuleType":
    try:
        from vmi_agent.keys.pkcs11 import keys as pkcs11_keys
    except ImportError as error:
        message = "a token needs python-pkcs11, which is not there. Run: pip install 'vmi-certificate-exchange[hsm]'"
        raise CustodyError(message) from error
    return pkcs11_keys
