"""Passwords: what one may be, and their argon2id hashes (RFC 9106).

The library is loaded with the first password, not with the process: most starts of a BMC see none for a while.
"""

from functools import cache
from typing import TYPE_CHECKING

from bmc_proxy.auth.accounts import AccountRefused

if TYPE_CHECKING:
    from argon2 import PasswordHasher

MIN_LENGTH = 8
MAX_LENGTH = 256
# OpenBMC's, and the one that `make run` gives its account: a character too short, and known to everybody.
DEVELOPMENT_PASSWORD = "0penBmc"  # noqa: S105  # no secret

# Checked where an account does not exist, so that the time that an answer takes does not tell; of the costs below.
NOBODYS = "$argon2id$v=19$m=12288,t=3,p=1$bm9ib2R5IGhhcyBhIG9uZQ$p6/enGiMyG/t7/vVhRHufyRRfPXHaWhGXyEM/FcRPik"


@cache
def hasher() -> "PasswordHasher":
    """Return what hashes and verifies.

    12 MiB and three passes, one of the equal choices of OWASP's password storage cheat sheet: a BMC has little memory.
    """
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=3, memory_cost=12 * 1024, parallelism=1)


def hash_password(password: str, *, may_be_development: bool = False) -> str:
    """Return a new salted hash. Blocks for tens of milliseconds.

    Args:
        password: of MIN_LENGTH to MAX_LENGTH characters.
        may_be_development: whether the shorter DEVELOPMENT_PASSWORD is accepted as well.

    Raises:
        AccountRefused: the password is too short or too long, or holds control characters.
    """
    is_long_enough = len(password) >= MIN_LENGTH or (may_be_development and password == DEVELOPMENT_PASSWORD)
    if not is_long_enough or not is_possible(password) or not password.isprintable():
        text = f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters, none of them a control character."
        raise AccountRefused("password", text)
    return hasher().hash(password)


def is_possible(password: str) -> bool:
    """Return whether anything that long, and of these characters, can be a password at all."""
    # What JSON can say and UTF-8 cannot: half of a surrogate pair.
    return len(password) <= MAX_LENGTH and not any("\ud800" <= character <= "\udfff" for character in password)


def is_password(password: str, password_hash: str | None) -> bool:
    """Return whether this is the hashed password; takes the same time where there is none. Blocks, as hashing does."""
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        hasher().verify(password_hash or NOBODYS, password)
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None
