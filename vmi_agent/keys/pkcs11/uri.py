"""PKCS#11 URIs (RFC 7512), as far as a CA's private key needs them.

    pkcs11:token=vmi;object=vmi-ca-1;id=%01%02;type=private

What is read is strict: these four attributes, each at most once and in any order, `token` and `id` always, and nothing
behind them. The PIN is never part of one.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from vmi_agent.keys import CustodyError

_SCHEME = "pkcs11:"
_ATTRIBUTES = ("token", "object", "id", "type")
# pk11-pchar (RFC 7512, 2.3): unreserved, percent-encoded, and what of the reserved is free here.
_VALUE = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})*", re.ASCII)
_LABEL_OCTETS = 32


@dataclass(frozen=True, slots=True)
class KeyUri:
    """The name of a private key in a token.

    Attributes:
        token: the token's label.
        object: the key's label; empty where it has none, which then may be any.
        id: its CKA_ID.
    """

    token: str
    object: str
    id: bytes

    @classmethod
    def parse(cls, text: str) -> "KeyUri":
        """Read a URI.

        Raises:
            CustodyError: it is not one, or says what is not understood here.
        """
        if not text.startswith(_SCHEME):
            raise _refused("does not begin with pkcs11:")
        values: dict[str, bytes] = {}
        for part in text.removeprefix(_SCHEME).split(";"):
            name, equals, value = part.partition("=")
            if not equals or name not in _ATTRIBUTES:
                raise _refused(f"holds something else than {', '.join(_ATTRIBUTES)}")
            if name in values:
                raise _refused(f"says {name} twice")
            if not _VALUE.fullmatch(value):
                raise _refused(f"holds a character that must be percent-encoded, in {name}")
            values[name] = unquote_to_bytes(value)
        if not values.get("token") or not values.get("id"):
            raise _refused("needs token and id")
        if values.get("type", b"private") != b"private":
            raise _refused("names no private key")
        if len(values["token"]) > _LABEL_OCTETS:
            raise _refused(f"has a token label over {_LABEL_OCTETS} octets")
        try:
            return cls(values["token"].decode(), values.get("object", b"").decode(), values["id"])
        except UnicodeDecodeError:
            raise _refused("has a label that is not UTF-8") from None

    def __str__(self) -> str:
        """Return the URI; all but letters, digits and -._~ is percent-encoded, the id throughout."""
        label = f"object={quote(self.object, safe='')};" if self.object else ""
        identifier = "".join(f"%{octet:02X}" for octet in self.id)
        return f"{_SCHEME}token={quote(self.token, safe='')};{label}id={identifier};type=private"


def _refused(why: str) -> CustodyError:
    return CustodyError(f"the key's PKCS#11 URI {why}. Restore it from a backup.")
