"""All that was logged since the test run began, in any process, and the secrets that must not be in it."""

LINES: list[str] = []
SECRETS: set[str] = set()


def secret(value: str) -> str:
    """Remember a password, token, cookie or the like; return it."""
    assert len(value) >= 7, "too short to be looked for in a text"
    SECRETS.add(value)
    return value
