"""Profiles from a TOML file, judged when it is loaded. docs/profiles.md has all keys, and a test compares.

Every refusal names the file, the profile, the key, the value and what is accepted.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from runtime.errors import ConfigError
from runtime.toml_file import read_toml
from vmi_agent.errors import Refused
from vmi_agent.policy.alternative_names import NameRules, Network, meant
from vmi_agent.policy.key_kinds import KEY_KINDS, USAGES_OF
from vmi_agent.policy.key_policy import LEAST_RSA_BITS, MOST_RSA_BITS
from vmi_agent.policy.patterns import is_host_pattern, is_text_pattern
from vmi_agent.policy.profile import EXTENDED_KEY_USAGES, Profile
from vmi_agent.policy.subject_encoding import read_subject
from vmi_agent.policy.subject_rules import ATTRIBUTES, SubjectRules, example_value

KEYS = {
    "": (
        "requesters",
        "validity_days",
        "validity_hours",
        "back_date_minutes",
        "key_usages",
        "extended_key_usages",
        "max_path",
        "keys",
        "subject",
        "subject_alt_names",
    ),
    "keys": ("kinds", "least_rsa_bits", "most_rsa_bits"),
    "subject": ("required", "forbidden", "fixed", "patterns"),
    "subject_alt_names": ("required", "dns", "ip", "email"),
}
MOST_VALIDITY_DAYS = 3650
MOST_BACK_DATE_MINUTES = 24 * 60 - 1

_KEY_USAGES = ("digitalSignature", "nonRepudiation", "keyEncipherment", "keyAgreement")
# Any use at all, and to answer for the CA: neither is for a leaf.
_NEVER = (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, ExtendedKeyUsageOID.OCSP_SIGNING)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_DOTTED = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,18})){1,20}\Z")
_TEXT_PATTERN = "text in which * stands for any characters (no other sign is special; no ?, [ or ])"
_HOST_PATTERN = (
    'a host name in which * stands for characters of one label, and ** as the first label for one or more, such as "*.'
    'hmc.example.com"'
)
_NETWORK = (
    'a network such as "192.0.2.0/24", with no bits set behind its length; IPv4 addresses in IPv6 ones (such as'
    " ::ffff:192.0.2.1) count as IPv4 addresses"
)
_ATTRIBUTE = f"of {', '.join(ATTRIBUTES)}, or a dotted object identifier"


def load_profiles(path: Path | None) -> tuple[Profile, ...]:
    """Return the profiles of a file, in its order, or the one that is built in.

    Raises:
        ConfigError: the file cannot be read, or something in it is refused.
    """
    if path is None:
        return (Profile(),)
    values = read_toml(path)
    for key, value in values.items():
        if key != "profile" or not isinstance(value, dict):
            raise ConfigError(f"{path}: key {key!r} has the value {value!r}; accepted: tables [profile.NAME]")
    if not values.get("profile"):
        raise ConfigError(f"{path}: no profile; accepted: one or more tables [profile.NAME]")
    return tuple(_profile(path, name, value) for name, value in values["profile"].items())


@dataclass(frozen=True, slots=True)
class _Table:
    """One table of the file, and what is told of it."""

    at: str
    path: str
    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        for key, value in self.values.items():
            if key not in KEYS[self.path]:
                raise self.refuse(key, value, f"the keys {', '.join(self._full(each) for each in KEYS[self.path])}")

    def refuse(self, key: str, value: object, accepted: str) -> ConfigError:
        return ConfigError(f"{self.at}: key {self._full(key)!r} has the value {value!r}; accepted: {accepted}")

    def has(self, key: str) -> bool:
        return key in self.values

    def integer(self, key: str, least: int, most: int, default: int) -> int:
        value = self.values.get(key, default)
        # bool is an int to Python, and not to anybody who writes a configuration file.
        if type(value) is not int or not least <= value <= most:
            raise self.refuse(key, value, f"a whole number from {least} to {most}")
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return value

    def words(self, key: str, accepts: Callable[[str], object], item: str) -> tuple[str, ...]:
        return self.checked_words(key, self.values[key], accepts, item)

    def checked_words(self, key: str, value: object, accepts: Callable[[str], object], item: str) -> tuple[str, ...]:
        accepted = f"a list of one or more, each once, each {item}"
        if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
            raise self.refuse(key, value, accepted)
        for each in value:
            if not accepts(each):
                raise self.refuse(key, each, accepted)
        if len(set(value)) != len(value):
            raise self.refuse(key, value, accepted)
        return tuple(value)

    def table(self, key: str) -> "_Table":
        return _Table(self.at, key, self._raw_table(key))

    def attributes(self, key: str) -> dict[x509.ObjectIdentifier, Any]:
        """Return a table whose keys are attributes of a subject."""
        found: dict[x509.ObjectIdentifier, Any] = {}
        for name, value in self._raw_table(key).items():
            oid = _attribute(name)
            if oid is None or oid in found:
                raise self.refuse(f"{key}.{name}", value, f"attributes, each once, each {_ATTRIBUTE}")
            found[oid] = value
        return found

    def _raw_table(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.refuse(key, value, f"a table of {', '.join(KEYS.get(key, ())) or 'attributes'}")
        return value

    def _full(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def _profile(path: Path, name: str, values: object) -> Profile:
    at = f"{path}: profile {name!r}"
    if not _NAME.match(name):
        raise ConfigError(f"{at}: the name is not accepted; accepted: 1 to 64 letters, digits, dots, - and _")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: key 'profile.{name}' has the value {values!r}; accepted: a table [profile.NAME]")
    table = _Table(at, "", values)
    default = Profile()
    table.integer("max_path", 0, 0, 0)  # nothing stands below a leaf
    validity = _validity(table)
    back_date = timedelta(minutes=table.integer("back_date_minutes", 0, MOST_BACK_DATE_MINUTES, 5))
    if back_date >= validity:
        minutes = back_date // timedelta(minutes=1)
        raise table.refuse("back_date_minutes", minutes, "less than the validity, which begins that long ago")
    kinds, rsa_bits = _keys(table.table("keys"))
    return Profile(
        name=name,
        requesters=_given(table, "requesters", is_text_pattern, _TEXT_PATTERN, default.requesters),
        validity=validity,
        back_date=back_date,
        key_kinds=kinds,
        rsa_bits=rsa_bits,
        key_usages=_key_usages(table, kinds, default.key_usages),
        extended_key_usages=_extended_key_usages(table, default.extended_key_usages),
        subject=_subject(table.table("subject")),
        names=_names(table.table("subject_alt_names")) if table.has("subject_alt_names") else NameRules(),
    )


def _given(
    table: _Table, key: str, accepts: Callable[[str], object], item: str, default: tuple[str, ...]
) -> tuple[str, ...]:
    return table.words(key, accepts, item) if table.has(key) else default


def _validity(table: _Table) -> timedelta:
    if not table.has("validity_hours"):
        return timedelta(days=table.integer("validity_days", 1, MOST_VALIDITY_DAYS, 365))
    if table.has("validity_days"):
        raise table.refuse("validity_hours", table.values["validity_hours"], "this or validity_days, not both")
    return timedelta(hours=table.integer("validity_hours", 1, 24 * MOST_VALIDITY_DAYS, 1))


def _keys(table: _Table) -> tuple[tuple[str, ...], tuple[int, int]]:
    kinds = _given(table, "kinds", KEY_KINDS.__contains__, f"of {', '.join(KEY_KINDS)}", KEY_KINDS)
    least = table.integer("least_rsa_bits", LEAST_RSA_BITS, MOST_RSA_BITS, LEAST_RSA_BITS)
    most = table.integer("most_rsa_bits", least, MOST_RSA_BITS, MOST_RSA_BITS)
    for key in ("least_rsa_bits", "most_rsa_bits"):
        if table.has(key) and "rsa" not in kinds:
            raise table.refuse(key, table.values[key], "nothing, as rsa is not of the kinds")
    return kinds, (least, most)


def _key_usages(table: _Table, kinds: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    usages = _given(table, "key_usages", _KEY_USAGES.__contains__, f"of {', '.join(_KEY_USAGES)}", default)
    for usage in usages:
        if table.has("key_usages") and not any(usage in USAGES_OF[kind] for kind in kinds):
            raise table.refuse("key_usages", usage, f"what a key of an accepted kind may have ({', '.join(kinds)})")
    for kind in kinds:
        if not set(usages) & set(USAGES_OF[kind]):
            accepted = f"one or more that a key of the kind {kind} may have ({', '.join(USAGES_OF[kind])})"
            raise table.refuse("key_usages", list(usages), accepted)
    return usages


def _extended_key_usages(
    table: _Table, default: tuple[x509.ObjectIdentifier, ...]
) -> tuple[x509.ObjectIdentifier, ...]:
    def usage(word: str) -> x509.ObjectIdentifier | None:
        found = EXTENDED_KEY_USAGES.get(word) or _dotted(word)
        return None if found in _NEVER else found

    key = "extended_key_usages"
    if not table.has(key):
        return default
    item = f"of {', '.join(EXTENDED_KEY_USAGES)}, or a dotted object identifier; never any use, nor OCSP signing"
    words = table.words(key, usage, item)
    found = tuple(oid for oid in map(usage, words) if oid is not None)
    if len(set(found)) != len(found):
        raise table.refuse(key, list(words), "each usage once")
    return found


def _subject(table: _Table) -> SubjectRules:
    required, forbidden = _attributes(table, "required"), _attributes(table, "forbidden")
    fixed, patterns = table.attributes("fixed"), table.attributes("patterns")
    for oid, value in fixed.items():
        if not isinstance(value, str) or not value.strip() or not _can_be(oid, value):
            raise table.refuse(f"fixed.{_key(table, 'fixed', oid)}", value, "text that the attribute can hold")
    for oid, value in patterns.items():
        key = f"patterns.{_key(table, 'patterns', oid)}"
        for pattern in table.checked_words(key, value, is_text_pattern, _TEXT_PATTERN):
            if not _can_be(oid, example_value(oid, pattern)):
                raise table.refuse(key, pattern, "a pattern that a value of this attribute can match")
        patterns[oid] = tuple(value)
        if oid in fixed:
            raise table.refuse(key, value, "a pattern or a fixed value, not both")
    for oid in forbidden:
        if oid in (*required, *fixed, *patterns):
            accepted = "attributes that are neither required nor fixed and have no patterns"
            raise table.refuse("forbidden", list(table.values["forbidden"]), accepted)
    return SubjectRules(required, forbidden, fixed, patterns)


def _attributes(table: _Table, key: str) -> tuple[x509.ObjectIdentifier, ...]:
    def text_attribute(name: str) -> x509.ObjectIdentifier | None:
        oid = _attribute(name)
        return oid if oid is not None and _can_be(oid, example_value(oid, "*")) else None

    words = _given(table, key, text_attribute, _ATTRIBUTE, ())
    found = tuple(oid for oid in map(_attribute, words) if oid is not None)
    if len(set(found)) != len(found):
        raise table.refuse(key, list(words), "each attribute once")
    return found


def _names(table: _Table) -> NameRules:
    dns = _given(table, "dns", is_host_pattern, _HOST_PATTERN, ())
    email = _given(table, "email", is_host_pattern, _HOST_PATTERN, ())
    ip = tuple(network for network in map(_network, _given(table, "ip", _network, _NETWORK, ())) if network is not None)
    rules = NameRules(table.flag("required"), dns, ip, email)
    if rules.required and not rules.kinds:
        raise table.refuse("required", True, "false, unless one or more of dns, ip and email are allowed")
    return rules


def _network(text: str) -> Network | None:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return None
    # A network whose every address is judged as another one would match nothing.
    return network if meant(network.network_address) == network.network_address else None


def _attribute(name: str) -> x509.ObjectIdentifier | None:
    return ATTRIBUTES.get(name) or _dotted(name)


def _dotted(text: str) -> x509.ObjectIdentifier | None:
    if not _DOTTED.match(text):
        return None
    try:
        return x509.ObjectIdentifier(text)
    except ValueError:
        return None


def _can_be(oid: x509.ObjectIdentifier, value: str) -> bool:
    try:
        read_subject(x509.Name([x509.NameAttribute(oid, value)]).public_bytes())
    except (ValueError, TypeError, Refused):
        return False
    return True


def _key(table: _Table, key: str, oid: x509.ObjectIdentifier) -> str:
    names: Mapping[str, Any] = table.values[key]
    return next(name for name in names if _attribute(name) == oid)
