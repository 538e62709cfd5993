"""Request bodies: JSON objects, and the forms in which a CSR comes, on all routes alike.

    {"data":["<PEM>"]}                    a phosphor-REST client
    {"data":[{"CsrString":"<PEM>"}]}      a literal reader of the first design
    {"data":{"CsrString":"<PEM>"}}
    {"CsrString":"<PEM>"}                 shipped firmware
    {"data":[CsrString:"<PEM>"]  }        the first design's own words, which are not JSON

Real line breaks inside the string, which JSON forbids and `"$(cat hmc.csr)"` in a shell makes, are taken as they are.
"""

import hashlib
import json
import re
from typing import Any

from bmc_proxy.api.types import Call
from bmc_proxy.errors import BodyMalformed, CsrBodyMalformed
from bmc_proxy.pem import csr_to_der

_LITERAL = re.compile(r'\s*\{\s*"data"\s*:\s*\[\s*CsrString\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")\s*\]\s*\}\s*', re.DOTALL)
# Any of the forms has a handful, and what stands before a CSR's armour in its string may have some more. Each one past
# that is an object to be made, which takes as long as a thousand octets of a string.
PUNCTUATION_LIMIT = 4096
_FORMS = 'Send {"CsrString":"<PEM>"} or {"data":["<PEM>"]}.'


def csr_of(call: Call) -> bytes:
    """Return the DER of the one CSR that a call brings, and note its hash for the log, where the agent's has it too.

    Raises:
        CsrMalformed, CsrTooLarge: as `csr_text` and `armour.csr_to_der` say.
    """
    der = csr_to_der(csr_text(call.body))
    call.told["csr_sha256"] = hashlib.sha256(der).hexdigest()
    return der


def csr_text(body: bytes) -> str:
    """Return the CSR text of a request body.

    Raises:
        CsrBodyMalformed: the body is in none of the forms, or holds more than one CSR.
    """
    try:
        text = body.decode()
        if text.count("[") + text.count("{") + text.count(",") > PUNCTUATION_LIMIT:
            raise ValueError("more structure than any of the forms has")
        literal = _LITERAL.fullmatch(text)
        value = _load(literal[1] if literal else text)
    except (ValueError, RecursionError) as error:
        raise CsrBodyMalformed(f"The body is not JSON. {_FORMS}") from error
    match value:
        case str(csr) if literal:
            return csr
        case {"data": [str(csr)], **rest} if not rest:
            return csr
        case {"data": [{"CsrString": str(csr), **more}], **rest} if not rest and not more:
            return csr
        case {"data": {"CsrString": str(csr), **more}, **rest} if not rest and not more:
            return csr
        case {"CsrString": str(csr), **rest} if not rest:
            return csr
        case {"data": [_, _, *_], **rest} if not rest:
            raise CsrBodyMalformed("The body holds more than one CSR. Send one CSR per request.")
    raise CsrBodyMalformed(f"The body holds no CSR. {_FORMS}")


def json_object(body: bytes) -> dict[str, Any]:
    """Return the one JSON object that a body is.

    Raises:
        BodyMalformed: it is not.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BodyMalformed("The body is not JSON.") from error
    if not isinstance(value, dict):
        raise BodyMalformed("The body is not a JSON object.")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice in one object")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# strict=False lets control characters stand inside strings, and nothing else.
_load = json.JSONDecoder(strict=False, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant).decode
