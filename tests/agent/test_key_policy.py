"""The policy for keys: what is accepted, what is remembered, and what is seen in an RSA modulus."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import badkeys
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from support.csrs import make_csr, private_key

from protocol.errors import ErrorCode
from vmi_agent.errors import Refused
from vmi_agent.policy import ed25519, key_policy, weak_rsa
from vmi_agent.policy.csr import Csr, parse
from vmi_agent.policy.key_kinds import KEY_KINDS, AcceptedKey
from vmi_agent.policy.verdict_cache import Verdicts

# The points of order 1, 2, 4 and 8, then other spellings of the first two (y = p + 1, y = p, x = -0).
LOW_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0100000000000000000000000000000000000000000000000000000000000080",
]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("rsa2048", AcceptedKey("rsa", 2048)),
        ("p256", AcceptedKey("p256", 256)),
        ("p384", AcceptedKey("p384", 384)),
        ("p521", AcceptedKey("p521", 521)),
        ("ed25519", AcceptedKey("ed25519", 256)),
        ("mldsa44", AcceptedKey("mldsa44", 8 * 1312)),
        ("mldsa65", AcceptedKey("mldsa65", 8 * 1952)),
        ("mldsa87", AcceptedKey("mldsa87", 8 * 2592)),
    ],
)
def test_check_tells_kind_and_size(key: str, expected: AcceptedKey) -> None:
    """An accepted key's kind is one of KEY_KINDS, and its size goes with it."""
    assert key_policy.check(parse(make_csr(key=key))) == expected
    assert expected.kind in KEY_KINDS


def with_key_of(csr: Csr, other: Csr) -> Csr:
    """Return a CSR that holds one key in its octets, and another where it is parsed."""
    return replace(csr, public_key_info=other.public_key_info)


@pytest.mark.parametrize("key_info", ["", "3000", "30043000 0300", "3006 300406032b65", "3004 0000 0300"])
def test_check_of_a_key_that_is_no_key(key_info: str) -> None:
    """A key that is not the structure of RFC 5280, 4.1 is weak, even if the library that parses CSRs had let it by."""
    csr = replace(parse(make_csr()), public_key_info=bytes.fromhex(key_info))

    with pytest.raises(Refused, match="cannot be read") as refused:
        key_policy.check(csr)
    assert refused.value.code is ErrorCode.CSR_WEAK_KEY


def test_check_of_a_key_judged_before() -> None:
    """A verdict, good or bad, is found by the key's octets alone; what is parsed is not looked at again."""
    good, weak = parse(make_csr(key="rsa2048")), parse(make_csr(key="rsa1024"))
    key_policy.check(good)
    with pytest.raises(Refused) as first:
        key_policy.check(weak)

    assert key_policy.check(with_key_of(weak, good)) == AcceptedKey("rsa", 2048)
    with pytest.raises(Refused) as again:
        key_policy.check(with_key_of(good, weak))
    assert (again.value.code, again.value.text) == (ErrorCode.CSR_WEAK_KEY, first.value.text)


def test_check_from_many_threads() -> None:
    """Sixteen threads that ask at once for the same keys are all told the same."""
    kinds = ("rsa2048", "p256", "p384", "ed25519", "mldsa44")
    csrs = [parse(make_csr(key=kind)) for kind in kinds] * 40
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(key_policy.check, csrs))

    assert [each.kind for each in found] == ["rsa", "p256", "p384", "ed25519", "mldsa44"] * 40


def test_verdicts_forget_what_was_asked_for_longest_ago() -> None:
    """No more than the given number is kept, and asking for one keeps it young."""
    verdicts = Verdicts[str](2)
    verdicts.put(b"a", "A")
    verdicts.put(b"b", "B")
    assert verdicts.get(b"a") == "A"
    verdicts.put(b"c", "C")

    assert (verdicts.get(b"a"), verdicts.get(b"b"), verdicts.get(b"c")) == ("A", None, "C")
    assert len(verdicts) == 2


def test_verdicts_stay_bounded_with_many_threads() -> None:
    """Sixteen threads that put and get leave no more than the given number."""
    verdicts = Verdicts[int](50)

    def use(number: int) -> int | None:
        key = number.to_bytes(4)
        verdicts.put(key, number)
        return verdicts.get(key)

    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(use, range(2000)))

    assert found <= {None, *range(2000)}
    assert len(verdicts) == 50


def test_weakness_names_every_check_there_is() -> None:
    """A check that another version of badkeys brings does not go unseen: use it, or say why not."""
    left_out = {"blocklist", "smallfactors", "rsawarnings", "dsasparse"}

    assert set(weak_rsa.CHECKS) | left_out == set(badkeys.allchecks)
    assert not set(weak_rsa.CHECKS) & left_out


def test_weakness_of_a_sound_key() -> None:
    """A key as it should be has no weakness."""
    key = private_key("rsa2048").public_key()
    assert isinstance(key, rsa.RSAPublicKey)

    assert weak_rsa.weakness(key.public_numbers().n, 65537) is None


def primes() -> tuple[int, int, int]:
    """Return the primes of the test key, smaller one first, and their product."""
    key = private_key("rsa2048")
    assert isinstance(key, rsa.RSAPrivateKey)
    numbers = key.private_numbers()
    return min(numbers.p, numbers.q), max(numbers.p, numbers.q), numbers.p * numbers.q


def test_weakness_of_a_small_private_exponent() -> None:
    """Wiener's attack is tried, though `key_policy` lets no exponent through with which it works."""
    p, q, modulus = primes()
    exponent = pow(2**128 + 51, -1, (p - 1) * (q - 1))

    assert "Wiener" in str(weak_rsa.weakness(modulus, exponent))


def test_weakness_of_numbers_that_lead_a_check_astray() -> None:
    """Numbers that a check divides by zero on are refused, not a failure of the agent's own."""
    p, q, modulus = primes()

    with pytest.raises(ZeroDivisionError):
        badkeys.checkrsa(modulus, e=(p - 1) * (q - 1), checks=["smalld"])
    assert weak_rsa.weakness(modulus, (p - 1) * (q - 1)) == "has numbers that no key generator makes"


@pytest.mark.parametrize(("prime", "found"), [(2, True), (3, True), (65537, True), (65539, False)])
def test_weakness_of_a_small_factor(prime: int, found: bool) -> None:
    """A prime factor is small up to 65537."""
    assert (weak_rsa.weakness(prime * primes()[1], 65537) is not None) is found


@pytest.mark.parametrize("point", LOW_ORDER)
def test_ed25519_point_of_small_order(point: str) -> None:
    """A point that everybody can sign for, and each other spelling of it, is not sound."""
    assert not ed25519.is_sound(bytes.fromhex(point))


def test_ed25519_point_of_the_base_point() -> None:
    """The base point is sound, with either sign of x; the octets next to it are not on the curve."""
    base = bytes.fromhex("58") + b"\x66" * 31

    assert ed25519.is_sound(base)
    assert ed25519.is_sound(base[:-1] + b"\xe6")
    assert not ed25519.is_sound(bytes.fromhex("02") + bytes(31))
