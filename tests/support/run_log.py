"""All that was logged since the test run began, in any process, and the secrets that must not be in it."""

import re

LINES: list[str] = []
SECRETS: set[str] = set()

# What keys, certificates, CSRs and password hashes look like, in PEM, in base64 of DER, and in their own form.
_SHAPES = re.compile(r"-----(BEGIN|END)|MII[A-Za-z0-9+/]{20}|MH[cg][A-Za-z0-9+/]{20}|\$argon2|Basic [A-Za-z0-9+/]{8}")


def secret(value: str) -> str:
    """Remember a password, token, cookie or the like; return it."""
    assert len(value) >= 7, "too short to be looked for in a text"
    SECRETS.add(value)
    return value


def secrets_in(text: str) -> list[str]:
    """Return a description of each secret in a text, and of all that has the shape of one, without its value."""
    known = [f"a secret of {len(each)} characters" for each in SECRETS if each in text]
    return known + [f"what begins with {found[0][:10]!r}" for found in _SHAPES.finditer(text)]
