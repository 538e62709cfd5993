"""Host names, mailboxes and addresses: each limit on both sides, and profiles that an address cannot go round."""

import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from support.agents import Time, always, issuing, request
from support.csrs import make_csr
from support.lint import findings

from runtime.asn1 import der
from runtime.errors import ConfigError
from vmi_agent.ca.reserved_names import ReservedNames
from vmi_agent.errors import Refused
from vmi_agent.policy import key_policy
from vmi_agent.policy.alternative_names import NameRules, meant
from vmi_agent.policy.csr import parse
from vmi_agent.policy.hosts import host_fault, is_label, mailbox_fault
from vmi_agent.policy.profile import Profile, approve
from vmi_agent.policy.profile_file import load_profiles
from vmi_agent.policy.subject_rules import SubjectRules

PLAIN, NUMBER, A_LABEL = "plain host name", "last label is a number", "in xn--"


@pytest.mark.parametrize(
    ("host", "fault"),
    [
        ("hmc1", None),
        ("hmc1.example.com", None),
        ("1.example", None),
        ("10.9.9.9.example.com", None),
        ("10.9.9.9a", None),
        ("0x0a.0xg", None),
        ("a" * 63, None),
        ("a" * 64, PLAIN),
        (".".join(["a" * 49] * 5) + ".abc", None),
        (".".join(["a" * 49] * 5) + ".abcd", PLAIN),
        ("", PLAIN),
        (".", PLAIN),
        ("hmc1.", PLAIN),
        ("hmc1..example", PLAIN),
        ("*.example.com", PLAIN),
        ("_hmc1.example.com", PLAIN),
        ("hmc_1", PLAIN),
        ("-hmc1", PLAIN),
        ("hmc1-", PLAIN),
        ("hmc1\n", PLAIN),
        ("köln.example", PLAIN),
        ("::1", PLAIN),
        ("10.9.9.9", NUMBER),
        ("10.9.2313", NUMBER),
        ("168364297", NUMBER),
        ("1", NUMBER),
        ("0x0a.1", NUMBER),
        ("10.9.9.0X9", NUMBER),
        ("hmc1.0x", NUMBER),
        ("hmc1.10", NUMBER),
        ("xn--kln-sna.example", None),
        ("XN--KLN-SNA.EXAMPLE", None),
        ("example.xn--p1ai", None),
        ("hmc.xn--a", A_LABEL),
        ("xn--ls8h.example", A_LABEL),  # an emoji, which IDNA 2008 does not have
        ("xn--mgba3gch31f060k.example", A_LABEL),  # with a zero-width joiner
        ("xn--abc-", PLAIN),
        ("axn--a.example", None),
    ],
)
def test_host_fault(host: str, fault: str | None) -> None:
    """A host name is plain letters, digits and hyphens, no address in any spelling, and what it decodes to is seen."""
    found = host_fault(host)

    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("example", True), ("10", True), ("xn--4ca", True), ("xn--a", False), ("example.com", False), ("", False)],
)
def test_is_label(text: str, expected: bool) -> None:
    """A label is one part of a host name."""
    assert is_label(text) == expected


@pytest.mark.parametrize(
    ("mailbox", "is_good"),
    [
        ("hmc@example.com", True),
        ("root@localhost", True),
        ("a.b.c@example.com", True),
        ("!#$%&'*+-/=?^_`{|}~@example.com", True),
        ("a" * 64 + "@example.com", True),
        ("a" * 65 + "@example.com", False),
        ("a" * 64 + "@" + ".".join(["b" * 61] * 3) + ".com", True),
        ("a" * 64 + "@" + ".".join(["b" * 61] * 3) + ".comm", False),
        ("hmc@xn--kln-sna.example", True),
        ("hmc@xn--a.example", False),
        (".a@example.com", False),
        ("a.@example.com", False),
        ("a..b@example.com", False),
        (".a..b.@example.com", False),
        ("@example.com", False),
        ("hmc@", False),
        ("hmc", False),
        ("", False),
        ("a@b@example.com", False),
        ('"a b"@example.com', False),
        ('"a"@example.com', False),
        ("a b@example.com", False),
        ("a\n@example.com", False),
        ("hmc@example.com\n", False),
        ("Hmc <hmc@example.com>", False),
        ("hmc@[192.0.2.1]", False),
        ("hmc@192.0.2.1", False),
        ("hmc@example.com.", False),
        ("höc@example.com", False),
    ],
)
def test_mailbox_fault(mailbox: str, is_good: bool) -> None:
    """A mailbox is RFC 5321's, without quotes and address literals, of 254 characters at most."""
    assert (mailbox_fault(mailbox) is None) == is_good


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::", "::"),
        ("::1", "::1"),
        ("::2", "0.0.0.2"),
        ("::10.9.9.9", "10.9.9.9"),
        ("::ffff:10.9.9.9", "10.9.9.9"),
        ("::fffe:10.9.9.9", "::fffe:a09:909"),
        ("64:ff9b::10.9.9.9", "10.9.9.9"),
        ("64:ff9b:1::10.9.9.9", "64:ff9b:1::a09:909"),
    ],
)
def test_meant_unwraps_ipv4(address: str, expected: str) -> None:
    """An IPv4 address in an IPv6 one is that IPv4 address."""
    assert meant(ipaddress.ip_address(address)) == ipaddress.ip_address(expected)


def code_for(profile: Profile, *names: x509.GeneralName, mailbox: str | None = None) -> str:
    """Return the code that a CSR for these names is refused with, or "" where it is approved."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, "hmc1")]
    attributes += [x509.NameAttribute(NameOID.EMAIL_ADDRESS, mailbox)] if mailbox else []
    csr = parse(make_csr(*([x509.SubjectAlternativeName(names)] if names else []), subject=x509.Name(attributes)))
    try:
        approve(csr, key_policy.check(csr), profile, ReservedNames())
    except Refused as refused:
        assert refused.text.endswith(".")
        return refused.code.name
    return ""


NETWORKS = (ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2000::/3"), ipaddress.ip_network("::/64"))


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("192.0.2.1", ""),
        ("::ffff:192.0.2.1", ""),
        ("64:ff9b::192.0.2.1", ""),
        ("10.9.9.9", "CSR_POLICY"),
        ("::ffff:10.9.9.9", "CSR_POLICY"),
        ("::10.9.9.9", "CSR_POLICY"),
        ("64:ff9b::10.9.9.9", "CSR_POLICY"),
        ("2001:db8::1", ""),
        ("::1", ""),
    ],
)
def test_profiles_networks_hold_for_every_spelling(address: str, code: str) -> None:
    """An address that the profile does not allow is refused as an IPv6 address with it inside, too."""
    assert code_for(Profile(names=NameRules(ip=NETWORKS)), x509.IPAddress(ipaddress.ip_address(address))) == code


@pytest.mark.parametrize("host", ["10.9.9.9", "10.9.2313", "0x0a.0x9", "168364297"])
def test_address_as_a_host_name_does_not_go_round_the_networks(host: str) -> None:
    """An address that is asked for as a DNS name is refused, although the profile allows every DNS name."""
    profile = Profile(names=NameRules(ip=NETWORKS))

    assert code_for(profile, x509.DNSName(host)) == "CSR_POLICY"
    assert code_for(profile, x509.DNSName(f"{host}.example")) == ""


@pytest.mark.parametrize(
    ("email", "mailbox", "code"),
    [
        (("**",), "hmc@example.com", ""),
        (("example.com",), "hmc@example.com", ""),
        (("example.com",), "hmc@EXAMPLE.com", ""),
        (("example.com",), "hmc@example.org", "CSR_POLICY"),
        ((), "hmc@example.org", ""),
        (("**",), "hmc", "CSR_POLICY"),
        ((), "hmc", "CSR_POLICY"),
    ],
)
def test_subjects_mailbox_is_judged_by_the_profile(email: tuple[str, ...], mailbox: str, code: str) -> None:
    """Hosts that `email` names hold for the subject's mailboxes; where it names none, the rules of subjects hold."""
    assert code_for(Profile(names=NameRules(email=email)), mailbox=mailbox) == code


def test_subjects_mailbox_is_forbidden_by_the_subjects_rules() -> None:
    """A profile that wants no mailbox at all says so of the subject."""
    profile = Profile(subject=SubjectRules(forbidden=(NameOID.EMAIL_ADDRESS,)), names=NameRules(email=()))

    assert code_for(profile) == ""
    assert code_for(profile, mailbox="hmc@example.com") == "CSR_POLICY"


@pytest.mark.parametrize(
    ("mailboxes", "asked", "expected"),
    [
        (("hmc@example.com",), (), ["hmc@example.com"]),
        (("hmc@example.com",), ("hmc@example.com",), ["hmc@example.com"]),
        (("hmc@example.com",), ("HMC@example.com",), ["HMC@example.com", "hmc@example.com"]),
        (("a@example.com", "b@example.com", "a@example.com"), (), ["a@example.com", "b@example.com"]),
        (
            ("a@example.com", "b@example.com"),
            ("c@example.com", "b@example.com"),
            ["c@example.com", "b@example.com", "a@example.com"],
        ),
        ((), ("c@example.com",), ["c@example.com"]),
    ],
)
def test_subjects_mailboxes_are_stamped(
    tmp_path: Path, mailboxes: tuple[str, ...], asked: tuple[str, ...], expected: list[str]
) -> None:
    """Each of the subject's mailboxes is an alternative name once (RFC 5280, 4.1.2.6), behind those asked for."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, "hmc1")]
    attributes += [x509.NameAttribute(NameOID.EMAIL_ADDRESS, mailbox) for mailbox in mailboxes]
    wishes = [x509.SubjectAlternativeName(list(map(x509.RFC822Name, asked)))] if asked else []
    csr = make_csr(*wishes, subject=x509.Name(attributes))
    with issuing(tmp_path, Time()) as (opened, _):
        leaf = opened.issue(request(csr), always).chain[0]

    found = x509.load_der_x509_certificate(leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert der.leaf_subject_and_key(leaf) == der.csr_subject_and_key(csr)
    assert [name.value for name in found.value] == expected
    assert not found.critical
    assert findings(leaf) == []


@pytest.mark.parametrize(
    ("network", "is_taken"),
    [
        ("192.0.2.0/24", True),
        ("2001:db8::/32", True),
        ("::/0", True),
        ("::1/128", True),
        ("::ffff:192.0.2.0/120", False),
        ("::ffff:0:0/96", False),
        ("64:ff9b::/96", False),
        ("::192.0.2.0/120", False),
    ],
)
def test_profile_file_takes_networks_that_an_address_can_be_in(tmp_path: Path, network: str, is_taken: bool) -> None:
    """A network of IPv4 addresses in IPv6 ones, which are judged as IPv4 addresses, is refused with what to write."""
    path = tmp_path / "profiles.toml"
    path.write_text(f'[profile.consoles]\nsubject_alt_names = {{ ip = ["{network}"] }}\n')

    if is_taken:
        (profile,) = load_profiles(path)
        assert profile.names.ip == (ipaddress.ip_network(network),)
    else:
        with pytest.raises(ConfigError, match="count as IPv4 addresses"):
            load_profiles(path)


@pytest.mark.parametrize(
    ("values", "is_taken"),
    [
        ('subject.fixed = { O = "Müller" }', True),
        ('subject.fixed = { O = "Mu\\u0308ller" }', True),
        ('subject.fixed = { O = "hmc\\u3164" }', False),
        ('subject.fixed = { O = "\\u2800" }', False),
        ('subject.fixed = { emailAddress = "hmc" }', False),
        ('subject.fixed = { emailAddress = "hmc@example.com" }', True),
        ('subject.patterns = { CN = ["hmc\\u200b*"] }', False),
        ('subject.patterns = { CN = ["консоль*"] }', True),
        ('subject.patterns = { emailAddress = ["*@*.example.com"] }', True),
        ('subject.patterns = { emailAddress = ["..*"] }', False),
        ('requesters = ["hmc\\u00a0*"]', False),
    ],
)
def test_profile_file_takes_text_that_is_seen(tmp_path: Path, values: str, is_taken: bool) -> None:
    """Texts of a profile are held to what holds for a subject: seen, and such that the attribute can have them."""
    path = tmp_path / "profiles.toml"
    path.write_text(f"[profile.consoles]\n{values}\n")

    if is_taken:
        assert load_profiles(path)[0].name == "consoles"
    else:
        with pytest.raises(ConfigError, match="accepted"):
            load_profiles(path)
