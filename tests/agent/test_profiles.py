"""Profiles: each rule on both sides, which profile a requester gets, and what lint keeps from being served."""

import ipaddress
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.agents import START, Time, always, issuing, request
from support.csrs import make_csr, openssl_csr
from support.judges import assert_is_leaf, assert_openssl_accepts, split_chain
from support.processes import SIGN_CSR, Process, port_of, post, run, start_agent, start_proxy

from protocol.errors import ErrorCode
from runtime.asn1 import der
from runtime.errors import StartError
from vmi_agent.ca.reserved_names import ReservedNames
from vmi_agent.certificate import Issuer, assemble, certificate_tbs
from vmi_agent.errors import Refused
from vmi_agent.policy import key_policy
from vmi_agent.policy.alternative_names import NameRules
from vmi_agent.policy.csr import parse
from vmi_agent.policy.key_kinds import KEY_KINDS
from vmi_agent.policy.profile import Approved, Profile, approve, choose
from vmi_agent.policy.profile_lint import check, lint, lint_certificate
from vmi_agent.policy.subject_rules import ATTRIBUTES, SubjectRules

CN, O, OU = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME  # noqa: E741  # its name
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


def subject(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    """Return a subject with these attributes."""
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def judge(csr: bytes, profile: Profile) -> Approved:
    """Judge a CSR by a profile."""
    parsed = parse(csr)
    return approve(parsed, key_policy.check(parsed), profile, ReservedNames())


def refusal(csr: bytes, profile: Profile) -> tuple[str, str]:
    """Return the code and the text that a CSR is refused with, or two empty ones."""
    try:
        judge(csr, profile)
    except Refused as refused:
        return refused.code.name, refused.text
    return "", ""


def stamped(profile: Profile, key: str = "p256") -> x509.Extensions:
    """Return what a profile stamps for a kind of key, read back."""
    approved = judge(make_csr(key=key), profile)
    issuer = Issuer(approved.csr.subject, bytes.fromhex("300506032b6570"), bytes(20), START)
    csr = approved.csr
    tbs = certificate_tbs(issuer, b"\x01", START, START, csr.subject, csr.public_key_info, approved.extensions)
    return x509.load_der_x509_certificate(assemble(tbs, bytes(64))).extensions


RULES = SubjectRules(required=(CN,), forbidden=(OU,), fixed={O: "Example"}, patterns={CN: ("hmc*.example", "HMC")})


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        (((O, "Example"), (CN, "hmc1.example")), ""),
        (((O, "Example"), (CN, "HMC")), ""),
        (((O, "Example"), (O, "Example"), (CN, "HMC"), (CN, "hmc2.example")), ""),
        (((O, "Example"), (CN, "HMC"), (NameOID.LOCALITY_NAME, "anywhere")), ""),
        (((O, "Example"),), "no CN"),
        (((CN, "HMC"),), "no O"),
        (((O, "Example"), (CN, "HMC"), (OU, "x")), "the OU that the profile forbids"),
        (((O, "example"), (CN, "HMC")), "O is not what the profile fixes: Example."),
        (((O, "Example"), (O, "Other"), (CN, "HMC")), "O is not what the profile fixes: Example."),
        (((O, "Example"), (CN, "hmc")), "CN is not allowed; allowed: hmc*.example, HMC."),
        (((O, "Example"), (CN, "HMC"), (CN, "root")), "CN is not allowed"),
    ],
)
def test_approve_judges_the_subject(attributes: tuple[tuple[x509.ObjectIdentifier, str], ...], told: str) -> None:
    """Required, forbidden, fixed and patterned attributes: every one of them counts, and the text has the rule."""
    code, text = refusal(make_csr(subject=subject(*attributes)), Profile(subject=RULES))

    assert code == ("CSR_POLICY" if told else "")
    assert told in text


def test_approve_keeps_a_fixed_subject_octet_for_octet() -> None:
    """Nothing is put in or taken out: the subject that is signed is the CSR's."""
    csr = make_csr(subject=subject((O, "Example"), (CN, "HMC")))

    assert judge(csr, Profile(subject=RULES)).csr.subject in csr


NAMES = NameRules(
    dns=("*.hmc.example",), ip=(ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/64"))
)


@pytest.mark.parametrize(
    ("name", "rules", "told"),
    [
        (x509.DNSName("a.hmc.example"), NAMES, ""),
        (x509.DNSName("a.b.hmc.example"), NAMES, "allowed: *.hmc.example."),
        (x509.DNSName("hmc.example"), NAMES, "allowed: *.hmc.example."),
        (x509.IPAddress(ipaddress.ip_address("192.0.2.255")), NAMES, ""),
        (x509.IPAddress(ipaddress.ip_address("192.0.3.0")), NAMES, "allowed: 192.0.2.0/24, 2001:db8::/64."),
        (x509.IPAddress(ipaddress.ip_address("2001:db8::ffff")), NAMES, ""),
        (x509.IPAddress(ipaddress.ip_address("2001:db8:0:1::")), NAMES, "allowed: 192.0.2.0/24"),
        (x509.IPAddress(ipaddress.ip_network("192.0.2.0/25")), NAMES, "network"),
        (x509.IPAddress(ipaddress.ip_network("192.0.2.0/25")), NameRules(), "network"),
        (x509.RFC822Name("a@b.example"), NameRules(email=("*.example",)), ""),
        (x509.RFC822Name("a@example"), NameRules(email=("*.example",)), "allowed: *.example."),
        (x509.RFC822Name("a@b.example"), NameRules(email=()), "allowed: dns, ip."),
        (x509.DNSName("a.b"), NameRules(dns=(), ip=(), email=()), "allowed: none."),
        (x509.UniformResourceIdentifier("https://a.example"), NameRules(), "allowed: dns, ip, email."),
    ],
)
def test_approve_judges_the_names(name: x509.GeneralName, rules: NameRules, told: str) -> None:
    """Each kind of alternative name has its patterns, and a kind without any is not allowed."""
    code, text = refusal(make_csr(x509.SubjectAlternativeName([name])), Profile(names=rules))

    assert code == ("CSR_POLICY" if told else "")
    assert told in text


def test_approve_judges_every_name() -> None:
    """One name that is allowed does not bring in another."""
    names = x509.SubjectAlternativeName([x509.DNSName("a.hmc.example"), x509.DNSName("evil.example")])

    assert refusal(make_csr(names), Profile(names=NAMES))[0] == "CSR_POLICY"


def test_approve_requires_a_name() -> None:
    """Where a name is required, a CSR without one is refused, with the kinds to choose from."""
    profile = Profile(names=NameRules(required=True, ip=()))

    assert "Ask for one of: dns, email." in refusal(make_csr(), profile)[1]
    assert refusal(make_csr(x509.SubjectAlternativeName([x509.DNSName("a.b")])), profile) == ("", "")


@pytest.mark.parametrize(
    ("key", "profile", "code"),
    [
        ("p256", Profile(key_kinds=("p256",)), ""),
        ("p256", Profile(key_kinds=("rsa", "p384", "p521")), "CSR_WEAK_KEY"),
        ("ed25519", Profile(key_kinds=("p256",)), "CSR_WEAK_KEY"),
        ("rsa2048", Profile(rsa_bits=(2048, 2048)), ""),
        ("rsa2048", Profile(rsa_bits=(2049, 8192)), "CSR_WEAK_KEY"),
        ("rsa3072", Profile(rsa_bits=(2048, 3072)), ""),
        ("rsa3072", Profile(rsa_bits=(2048, 3071)), "CSR_WEAK_KEY"),
        ("p256", Profile(rsa_bits=(8192, 8192)), ""),
    ],
)
def test_approve_judges_the_key(key: str, profile: Profile, code: str) -> None:
    """Kind of key and size of an RSA modulus are narrowed, with the code of a weak key and what is taken."""
    got, text = refusal(make_csr(key=key), profile)

    assert got == code
    assert (f"Use {profile.keys_text}." in text) == bool(code)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("rsa2048", {"digital_signature", "content_commitment", "key_encipherment"}),
        ("p256", {"digital_signature", "content_commitment", "key_agreement"}),
        ("ed25519", {"digital_signature", "content_commitment"}),
    ],
)
def test_approve_stamps_the_usages_of_the_key(key: str, expected: set[str]) -> None:
    """Of the profile's key usages each kind of key is stamped with those that it may have."""
    usages = ("digitalSignature", "nonRepudiation", "keyEncipherment", "keyAgreement")
    value = stamped(Profile(key_usages=usages), key).get_extension_for_class(x509.KeyUsage).value

    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    assert {name for name in (*names, "key_cert_sign", "crl_sign") if getattr(value, name)} == expected


def test_approve_stamps_the_extended_usages() -> None:
    """Extended key usages are those of the profile, in its order, whatever of them a CSR asks for."""
    other = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.2")
    found = stamped(Profile(extended_key_usages=(SERVER, other))).get_extension_for_class(x509.ExtendedKeyUsage)

    assert (list(found.value), found.critical) == ([SERVER, other], False)


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (x509.ExtendedKeyUsage([SERVER]), ""),
        (x509.ExtendedKeyUsage([SERVER, CLIENT]), ""),
        (x509.ExtendedKeyUsage([SERVER, ExtendedKeyUsageOID.CODE_SIGNING]), "Ask for clientAuth, serverAuth only."),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), "Ask for clientAuth, serverAuth only."),
        (x509.BasicConstraints(True, None), "Profiles allow CA:FALSE only."),
        (x509.KeyUsage(True, False, False, False, False, True, False, False, False), "Ask for digitalSignature only."),
        (x509.NameConstraints([x509.DNSName("a")], None), "allowed: digitalSignature, clientAuth, serverAuth, altern"),
    ],
)
def test_approve_refuses_power_and_says_what_is_allowed(wish: x509.ExtensionType, told: str) -> None:
    """A request for power is refused with what the profile allows instead."""
    code, text = refusal(make_csr(wish), Profile(extended_key_usages=(CLIENT, SERVER)))

    assert code == ("CSR_POLICY" if told else "")
    assert told in text


def test_choose_takes_the_first_that_is_for_the_user() -> None:
    """The order of the file decides; a user that no profile is for is refused."""
    one, two = Profile("one", requesters=("hmc1", "hmc2*")), Profile("two", requesters=("hmc*",))

    assert [choose((one, two), user).name for user in ("hmc1", "hmc21", "hmc12", "hmc")] == ["one", "one", "two", "two"]
    with pytest.raises(Refused, match="No profile is for this user") as caught:
        choose((one, two), "HMC1")
    assert caught.value.code is ErrorCode.CSR_POLICY


@pytest.mark.parametrize("validity", [timedelta(hours=1), timedelta(days=3650)])
@pytest.mark.parametrize("back_date", [timedelta(0), timedelta(minutes=59)])
def test_issue_with_validity_and_back_date(tmp_path: Path, validity: timedelta, back_date: timedelta) -> None:
    """notBefore and notAfter, the last valid second, are the profile's; the profile's name is in the ledger."""
    profile = Profile("short", validity=validity, back_date=back_date)
    with issuing(tmp_path, Time(), profile=profile) as (opened, _):
        leaf = x509.load_der_x509_certificate(opened.issue(request(make_csr()), always).chain[0])

    assert leaf.not_valid_before_utc == START - back_date
    assert leaf.not_valid_after_utc == START - back_date + validity - timedelta(seconds=1)


def test_issue_for_a_user_without_a_profile(tmp_path: Path) -> None:
    """A user that no profile is for gets nothing."""
    with issuing(tmp_path, Time(), profile=Profile(requesters=("root",))) as (opened, _):
        assert opened.issue(request(make_csr(), user="root"), always).is_new
        with pytest.raises(Refused, match="No profile is for this user"):
            opened.issue(request(make_csr(), user="hmc1"), always)


@pytest.mark.parametrize(
    "profile",
    [
        Profile(),
        Profile(validity=timedelta(hours=1), back_date=timedelta(minutes=59)),
        Profile(key_usages=("digitalSignature", "nonRepudiation", "keyEncipherment", "keyAgreement")),
        Profile(key_usages=("keyAgreement",), key_kinds=("p256", "p384", "p521")),
        Profile(rsa_bits=(8192, 8192)),
        Profile(subject=SubjectRules(required=tuple(ATTRIBUTES.values()))),
        Profile(subject=SubjectRules(forbidden=tuple(ATTRIBUTES.values())[:-1])),
        Profile(subject=RULES, names=NAMES),
        Profile(subject=SubjectRules(patterns={NameOID.EMAIL_ADDRESS: ("*",), NameOID.COUNTRY_NAME: ("D*",)})),
        Profile(subject=SubjectRules(patterns={NameOID.EMAIL_ADDRESS: ("hmc@*",)})),
        Profile(subject=SubjectRules(required=(NameOID.EMAIL_ADDRESS,)), names=NameRules(email=())),
        Profile(names=NameRules(dns=("hmc.*",), email=("**.e*",))),
        Profile(names=NameRules(dns=("xn--*.example",))),
        Profile(names=NameRules(dns=(), ip=(), email=())),
    ],
)
def test_lint_finds_nothing(profile: Profile) -> None:
    """Profiles of all sorts make certificates that lint has nothing to say about."""
    assert lint(profile, datetime.now(UTC)) == []


def test_lint_tries_every_kind_of_key() -> None:
    """What is wrong for every key is found for every kind that the profile accepts."""
    time_stamping = Profile(extended_key_usages=(ExtendedKeyUsageOID.TIME_STAMPING,))

    found = lint(time_stamping, START)

    assert [finding.key_kind for finding in found] == list(KEY_KINDS)
    assert {finding.code for finding in found} == {"pkix.extended_key_usage_extension_with_timestamping_not_critical"}


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        (Profile("x", validity=timedelta(0)), "pkix.certificate_negative_validity_period"),
        (
            Profile("x", subject=SubjectRules(fixed={NameOID.EMAIL_ADDRESS: "a@b.c"}), names=NameRules(email=("d.e",))),
            "CSR_POLICY",
        ),
        (Profile("x", subject=SubjectRules(forbidden=tuple(ATTRIBUTES.values()))), "CSR_POLICY"),
        (Profile("x", names=NameRules(dns=("*",))), "pkix.invalid_domain_name_syntax"),
        (Profile("x", names=NameRules(dns=("*.10",))), "CSR_POLICY"),
    ],
)
def test_check_names_profile_key_and_finding(profile: Profile, told: str) -> None:
    """A profile that lint finds fault with, or that refuses its own example, is named with kind of key and finding."""
    with pytest.raises(StartError, match=rf"^profile 'x' makes certificates .* key rsa: {told} \("):
        check((Profile(), profile), START)


def test_check_of_good_profiles() -> None:
    """Profiles that lint has nothing to say about are let be."""
    check((Profile(key_kinds=("p256",)),), datetime.now(UTC))


def test_lint_of_a_bad_certificate() -> None:
    """Lint, given a certificate with one algorithm inside, another outside and the serial number 0, says so."""
    approved = judge(make_csr(), Profile())
    issuer = Issuer(approved.csr.subject, bytes.fromhex("300506032b6570"), bytes(20), START)
    tbs = certificate_tbs(issuer, bytes(1), START, START, approved.csr.subject, approved.csr.public_key_info, ())
    other = bytes.fromhex("300a06082a8648ce3d040302")
    certificate = der.wrap(der.SEQUENCE, tbs, other, der.wrap(der.BIT_STRING, bytes(65)))

    codes = {finding.code for finding in lint_certificate(certificate)}

    assert {"pkix.certificate_signature_algorithm_mismatch", "pkix.certificate_serial_number_out_of_range"} <= codes


FILE = """
[profile.consoles]
requesters = ["anonymous"]
validity_hours = 36
subject.required = ["CN", "O"]
subject_alt_names.dns = ["*.hmc.example.com"]
[profile.rest]
"""


def test_serve_with_profiles(tmp_path: Path) -> None:
    """A file of profiles changes what curl gets: validity, names, and the reason of a refusal."""
    path = tmp_path / "profiles.toml"
    path.write_text(FILE)
    alternative = ["-addext", "subjectAltName=DNS:a.hmc.example.com"]
    good = openssl_csr(tmp_path, "p256", "/O=Example/CN=a", alternative)
    bad = openssl_csr(tmp_path, "p384", "/CN=a")
    with start_agent(tmp_path / "agent", 0, "--profiles", str(path)) as agent:
        at = f"tcp:127.0.0.1:{port_of(agent.wait_for('ready')['listen'][0])}"
        with start_proxy(tmp_path / "proxy", [at]) as proxy:
            url = f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}{SIGN_CSR}"
            proxy.wait_for("agent connected")
            answer = post(url, json.dumps({"data": [good.read_text()]}))
            refused = post(url, json.dumps({"data": [bad.read_text()]}))
        assert agent.stop() == 0
    chain = answer.json["data"][0]
    leaf, root = (x509.load_pem_x509_certificate(each.encode()) for each in split_chain(chain))

    assert (refused.status, refused.json["data"]["code"]) == (400, "csr.policy")
    assert "no O, which the profile requires" in refused.body
    assert_openssl_accepts(chain, tmp_path)
    assert_is_leaf(leaf, root, rsa=False, names=True)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=36, seconds=-1)
    listed = json.loads(run("vmi-agent", "certs", "list", "--state-dir", str(tmp_path / "agent"), "--json").stdout)
    assert [row["profile"] for row in listed] == ["consoles"]


BAD_FILE = '[profile.stamps]\nextended_key_usages = ["1.3.6.1.5.5.7.3.8"]\nkeys.kinds = ["p384"]\n'


def test_serve_with_a_profile_that_lints_badly(tmp_path: Path) -> None:
    """The agent does not start: profile, kind of key and finding are told, and nothing was made."""
    path = tmp_path / "profiles.toml"
    path.write_text(BAD_FILE)
    command = ["vmi-agent", "serve", "--state-dir", str(tmp_path / "agent"), "--listen", "tcp:0:interface=127.0.0.1"]
    with Process(*command, "--profiles", str(path)) as agent:
        reason = agent.wait_for("cannot start")["reason"]
        assert agent.wait() == 1

    code = "pkix.extended_key_usage_extension_with_timestamping_not_critical"
    assert reason.startswith(f"profile 'stamps' makes certificates that lint finds fault with: key p384: {code} (")
    assert not (tmp_path / "agent").exists()


def test_profiles_check(tmp_path: Path) -> None:
    """The command prints each profile with lint's verdict, and ends with status 1 where that is bad."""
    path = tmp_path / "profiles.toml"
    command = ["vmi-agent", "profiles", "check", "--state-dir", str(tmp_path / "none")]
    path.write_text(FILE + BAD_FILE)

    built_in, bad = run(*command), run(*command, "--profiles", str(path))

    assert (built_in.returncode, built_in.stdout[:29]) == (0, "hmc-client: good; keys: rsa (")
    assert bad.returncode == 1
    first, second, third = bad.stdout.splitlines()
    assert first.startswith("consoles: good; ")
    assert second.startswith("rest: good; ")
    assert third.startswith("stamps: key p384: pkix.extended_key_usage_extension_with_timestamping_not_critical (")
