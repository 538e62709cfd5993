"""RSA moduli that others can factor, as far as that can be seen from the public key in a millisecond or two.

Most of it is badkeys' work. Each of its checks is named here, so that none comes in or goes unseen with another version
of it (a test compares). Not used:

- `blocklist` needs a download;
- `smallfactors` goes on to test the cofactor for primality, which costs half a second for 8192 bits; the gcd is taken
  here, and first, because two other checks call it as well;
- `rsawarnings` judges sizes and exponents, and by other bounds than `key_policy` does;
- `dsasparse` is for DSA, which is not accepted at all.

Not judged: whether the modulus is prime or the power of a prime. Nobody gets such a key by accident, and the test costs
a tenth of a second for 8192 bits.
"""

import math
from functools import cache

import badkeys

LARGEST_SMALL_PRIME = 65537

# Check of badkeys -> what is wrong with the key.
CHECKS = {
    "roca": "was made by an Infineon library whose keys can be factored (ROCA, CVE-2017-15361)",
    "fermat": "has primes that are too close to each other (Fermat's factorisation)",
    "sharedprimes": "shares a prime with keys that were published",
    "smalld": "has a private exponent that is small enough to be computed (Wiener's attack)",
    "rsainvalid": "has a public exponent outside of the range of its modulus",
    "pattern": "repeats one octet in its modulus",
    "rsapoly": "has zeros at regular distances in its modulus",
    "rsabias": "has far more zeros or ones in its modulus than chance gives",
    "xzbackdoor": "carries the mark of the xz backdoor in its modulus",
}


def weakness(modulus: int, exponent: int) -> str | None:
    """Return what is wrong with an RSA key, worded to follow "The RSA key", or None.

    Blocks, without letting other threads run, for 1 to 3 ms where the modulus has up to 8192 bits and the exponent up
    to 64, whatever their values; for 20 ms where the modulus shares a published prime of 2048 bits. What larger ones
    cost is not bounded.

    Args:
        modulus: positive.
        exponent: positive.
    """
    if math.gcd(modulus, _small_primes()) != 1:
        return f"has a prime factor of at most {LARGEST_SMALL_PRIME}"
    for name, fault in CHECKS.items():
        try:
            found = badkeys.checkrsa(modulus, e=exponent, checks=[name])
        except (ArithmeticError, ValueError):
            # The checks count on numbers as a key generator makes them. Numbers that lead one astray are none.
            return "has numbers that no key generator makes"
        if found:
            return fault
    return None


@cache
def _small_primes() -> int:
    """Return the product of all primes up to LARGEST_SMALL_PRIME."""
    is_prime = bytearray((1,)) * (LARGEST_SMALL_PRIME + 1)
    is_prime[0:2] = b"\0\0"
    for number in range(2, math.isqrt(LARGEST_SMALL_PRIME) + 1):
        if is_prime[number]:
            multiples = range(number * number, LARGEST_SMALL_PRIME + 1, number)
            is_prime[number * number :: number] = bytes(len(multiples))
    return math.prod(number for number, flag in enumerate(is_prime) if flag)
