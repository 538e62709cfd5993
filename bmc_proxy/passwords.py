"""Passwords: what one may be, and their argon2id hashes (RFC 9106)."""

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from bmc_proxy.accounts import AccountRefused

MIN_LENGTH = 7
MAX_LENGTH = 256

# 12 MiB and three passes, one of the equal choices of OWASP's password storage cheat sheet: a BMC has little memory.
_HASHER = PasswordHasher(time_cost=3, memory_cost=12 * 1024, parallelism=1)

# Checked where an account does not exist, so that the time that an answer takes does not tell.
_NOBODYS = _HASHER.hash("nobody's")


def hash_password(password: str) -> str:
    """Return a new salted hash. Blocks for tens of milliseconds.

    Raises:
        AccountRefused: the password is too short or too long, or holds control characters.
    """
    if len(password) < MIN_LENGTH or not is_possible(password) or not password.isprintable():
        text = f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters, none of them a control character."
        raise AccountRefused("password", text)
    return _HASHER.hash(password)


def is_possible(password: str) -> bool:
    """Return whether anything that long, and of these characters, can be a password at all."""
    # What JSON can say and UTF-8 cannot: half of a surrogate pair.
    return len(password) <= MAX_LENGTH and not any("\ud800" <= character <= "\udfff" for character in password)


def is_password(password: str, password_hash: str | None) -> bool:
    """Return whether this is the hashed password; takes the same time where there is none. Blocks, as hashing does."""
    try:
        _HASHER.verify(password_hash or _NOBODYS, password)
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None
