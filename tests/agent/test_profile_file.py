"""The file of profiles: what it says is what the profile is, and what it cannot say is named."""

import re
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.processes import run

from runtime.errors import ConfigError
from vmi_agent.policy.alternative_names import NameRules
from vmi_agent.policy.profile import Profile
from vmi_agent.policy.profile_file import KEYS, load_profiles
from vmi_agent.policy.subject_rules import ATTRIBUTES, SubjectRules

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "profiles.md"


def load(directory: Path, text: str) -> tuple[Profile, ...]:
    """Load profiles from this text."""
    path = directory / "profiles.toml"
    path.write_text(text, encoding="utf-8")
    return load_profiles(path)


def refusal(directory: Path, text: str) -> str:
    """Return what is told of a file that is refused."""
    with pytest.raises(ConfigError) as caught:
        load(directory, text)
    return str(caught.value)


def documented_example() -> str:
    """Return the example of the documentation."""
    [text] = re.findall(r"```toml\n(.+?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL)
    return str(text)


def test_load_without_a_file() -> None:
    """Without a file there is one profile, the one for an HMC."""
    assert load_profiles(None) == (Profile(),)


def test_load_an_empty_profile(tmp_path: Path) -> None:
    """A profile that says nothing is the built-in one under another name."""
    assert load(tmp_path, "[profile.x]\n") == (Profile(name="x"),)


def test_load_the_documented_example(tmp_path: Path) -> None:
    """The example of the documentation, which uses every key, is read in its order and as it says."""
    consoles, rest = load(tmp_path, documented_example())

    assert consoles == Profile(
        name="consoles",
        requesters=("hmc-*", "root"),
        validity=timedelta(days=90),
        back_date=timedelta(minutes=10),
        key_kinds=("rsa", "p256", "p384", "mldsa65"),
        rsa_bits=(3072, 4096),
        key_usages=("digitalSignature",),
        extended_key_usages=(ExtendedKeyUsageOID.CLIENT_AUTH, x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.2")),
        subject=SubjectRules(
            required=(NameOID.COMMON_NAME,),
            forbidden=(NameOID.EMAIL_ADDRESS,),
            fixed={NameOID.ORGANIZATION_NAME: "Example Ltd"},
            patterns={
                NameOID.COMMON_NAME: ("hmc*.example.com",),
                NameOID.COUNTRY_NAME: ("DE", "US"),
            },
        ),
        names=NameRules(
            required=True,
            dns=("*.hmc.example.com",),
            ip=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
            email=("**.example.com", "example.com"),
        ),
    )
    assert rest == Profile(name="everybody-else", validity=timedelta(hours=36))


def test_documentation_has_every_key() -> None:
    """Each key, and each attribute of a subject, is in the documentation."""
    text = DOCUMENTATION.read_text(encoding="utf-8")
    keys = {f"{table}.{key}".removeprefix(".") for table, known in KEYS.items() for key in known} - set(KEYS)

    assert {key for key in keys if f"`{key}`" not in text} == set()
    assert {name for name in ATTRIBUTES if f"`{name}`" not in text} == set()


@pytest.mark.parametrize(
    "line",
    [
        "validity_days = 1",
        "validity_days = 3650",
        "validity_hours = 1",
        "validity_hours = 87600",
        "back_date_minutes = 0",
        "back_date_minutes = 1439",
        "validity_hours = 1\nback_date_minutes = 59",
        "max_path = 0",
        'key_usages = ["keyAgreement", "digitalSignature"]',
        'key_usages = ["keyAgreement"]\nkeys.kinds = ["p256", "p384", "p521"]',
        'extended_key_usages = ["serverAuth", "1.2.3"]',
        "keys.least_rsa_bits = 2048\nkeys.most_rsa_bits = 2048",
        "keys.least_rsa_bits = 8192\nkeys.most_rsa_bits = 8192",
        'subject.required = ["2.5.4.72"]',
        'subject.fixed = { C = "DE" }\nsubject.required = ["C"]',
        'subject.patterns = { C = ["D*", "*D", "*", "DE*"] }',
        "subject_alt_names = {}",
        'subject_alt_names.dns = ["hmc-*.example.com", "**.example.org", "**"]',
        'subject_alt_names.ip = ["192.0.2.1", "0.0.0.0/0", "::1/128"]',
        'requesters = ["*", "anonymous"]',
    ],
)
def test_load_accepts(tmp_path: Path, line: str) -> None:
    """What is inside the limits, on the limits, or said in another way is taken."""
    assert len(load(tmp_path, f"[profile.x]\n{line}\n")) == 1


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("validity_day = 1", "key 'validity_day' has the value 1; accepted: the keys requesters, validity_days"),
        ('validity_days = "1"', "key 'validity_days' has the value '1'; accepted: a whole number from 1 to 3650"),
        ("validity_days = true", "key 'validity_days' has the value True"),
        ("validity_days = 1.5", "key 'validity_days' has the value 1.5"),
        ("validity_days = 0", "key 'validity_days' has the value 0"),
        ("validity_days = 3651", "key 'validity_days' has the value 3651"),
        ("validity_hours = 0", "key 'validity_hours' has the value 0; accepted: a whole number from 1 to 87600"),
        ("validity_hours = 87601", "key 'validity_hours' has the value 87601"),
        ("validity_hours = 1\nvalidity_days = 1", "key 'validity_hours' has the value 1; accepted: this or"),
        ("back_date_minutes = -1", "key 'back_date_minutes' has the value -1; accepted: a whole number from 0 to 1439"),
        ("back_date_minutes = 1440", "key 'back_date_minutes' has the value 1440"),
        ("validity_hours = 1\nback_date_minutes = 60", "key 'back_date_minutes' has the value 60; accepted: less than"),
        ("max_path = 1", "key 'max_path' has the value 1; accepted: a whole number from 0 to 0"),
        ("requesters = []", "key 'requesters' has the value []; accepted: a list of one or more"),
        ('requesters = "hmc"', "key 'requesters' has the value 'hmc'; accepted: a list"),
        ('requesters = ["hmc", "hmc"]', "accepted: a list of one or more, each once"),
        ('requesters = ["hmc[12]"]', "key 'requesters' has the value 'hmc[12]'; accepted: a list"),
        ('requesters = ["hmc?"]', "no ?, [ or ]"),
        ('requesters = [" hmc"]', "key 'requesters' has the value ' hmc'"),
        ("requesters = [1]", "key 'requesters' has the value [1]"),
        ("key_usages = []", "key 'key_usages' has the value []"),
        ('key_usages = ["keyCertSign"]', "'keyCertSign'; accepted: a list of one or more, each once, each of digitalS"),
        ('key_usages = ["keyEncipherment"]', "accepted: one or more that a key of the kind p256 may have"),
        ('key_usages = ["digitalSignature", "keyAgreement"]\nkeys.kinds = ["rsa"]', "value 'keyAgreement'; accepted"),
        ("extended_key_usages = []", "key 'extended_key_usages' has the value []"),
        ('extended_key_usages = ["anyExtendedKeyUsage"]', "'anyExtendedKeyUsage'; accepted: a list of one or more"),
        ('extended_key_usages = ["2.5.29.37.0"]', "'2.5.29.37.0'; accepted"),
        ('extended_key_usages = ["OCSPSigning"]', "never any use, nor OCSP signing"),
        ('extended_key_usages = ["1.3.6.1.5.5.7.3.9"]', "'1.3.6.1.5.5.7.3.9'; accepted"),
        ('extended_key_usages = ["clientAuth", "1.3.6.1.5.5.7.3.2"]', "accepted: each usage once"),
        ('extended_key_usages = ["1.02.3"]', "'1.02.3'; accepted"),
        ('extended_key_usages = ["0.40.3"]', "'0.40.3'; accepted"),
        ("keys = 1", "key 'keys' has the value 1; accepted: a table of kinds, least_rsa_bits, most_rsa_bits"),
        ("keys.bits = 1", "key 'keys.bits' has the value 1; accepted: the keys keys.kinds"),
        ('keys.kinds = ["rsa2048"]', "key 'keys.kinds' has the value 'rsa2048'; accepted: a list"),
        ("keys.least_rsa_bits = 2047", "key 'keys.least_rsa_bits' has the value 2047; accepted: a whole number from"),
        ("keys.most_rsa_bits = 8193", "key 'keys.most_rsa_bits' has the value 8193"),
        ("keys.least_rsa_bits = 4096\nkeys.most_rsa_bits = 3072", "3072; accepted: a whole number from 4096 to 8192"),
        ('keys.kinds = ["p256"]\nkeys.least_rsa_bits = 3072', "accepted: nothing, as rsa is not of the kinds"),
        ('subject.required = ["cn"]', "key 'subject.required' has the value 'cn'; accepted: a list"),
        ('subject.required = ["CN", "2.5.4.3"]', "accepted: each attribute once"),
        ('subject.required = ["CN"]\nsubject.forbidden = ["CN"]', "key 'subject.forbidden' has the value ['CN']"),
        ('subject.fixed = { O = "x" }\nsubject.forbidden = ["O"]', "key 'subject.forbidden' has the value ['O']"),
        ('subject.fixed = "x"', "key 'subject.fixed' has the value 'x'; accepted: a table of attributes"),
        ("subject.fixed = { O = 1 }", "key 'subject.fixed.O' has the value 1; accepted: text that the attribute"),
        ('subject.fixed = { O = " " }', "key 'subject.fixed.O' has the value ' '"),
        ('subject.fixed = { C = "USA" }', "key 'subject.fixed.C' has the value 'USA'"),
        ('subject.fixed = { serialNumber = "a@b" }', "accepted: text that the attribute can hold"),
        ('subject.patterns = { serialNumber = ["a@*"] }', "a pattern that a value of this attribute can match"),
        ('subject.fixed = { X = "x" }', "key 'subject.fixed.X' has the value 'x'; accepted: attributes"),
        ('subject.fixed = { CN = "x", "2.5.4.3" = "y" }', "key 'subject.fixed.2.5.4.3' has the value 'y'"),
        ('subject.patterns = { CN = "x" }', "key 'subject.patterns.CN' has the value 'x'; accepted: a list"),
        ("subject.patterns = { CN = [] }", "key 'subject.patterns.CN' has the value []"),
        ('subject.patterns = { C = ["USA*"] }', "'USA*'; accepted: a pattern that a value of this attribute can"),
        ('subject.patterns = { O = ["x"] }\nsubject.fixed = { O = "x" }', "a pattern or a fixed value, not both"),
        ("subject_alt_names = true", "key 'subject_alt_names' has the value True; accepted: a table of required, dns"),
        ("subject_alt_names = { required = true }", "key 'subject_alt_names.required' has the value True; accepted: f"),
        ('subject_alt_names.required = "yes"', "key 'subject_alt_names.required' has the value 'yes'"),
        ('subject_alt_names.uri = ["*"]', "key 'subject_alt_names.uri' has the value ['*']; accepted: the keys"),
        ("subject_alt_names.dns = []", "key 'subject_alt_names.dns' has the value []"),
        ('subject_alt_names.dns = ["a..b"]', "key 'subject_alt_names.dns' has the value 'a..b'"),
        ('subject_alt_names.dns = ["a.**.b"]', "key 'subject_alt_names.dns' has the value 'a.**.b'"),
        ('subject_alt_names.dns = ["-*.b"]', "key 'subject_alt_names.dns' has the value '-*.b'"),
        ('subject_alt_names.dns = ["a_b.c"]', "key 'subject_alt_names.dns' has the value 'a_b.c'"),
        ('subject_alt_names.email = ["a@b.c"]', "key 'subject_alt_names.email' has the value 'a@b.c'"),
        ('subject_alt_names.ip = ["192.0.2.1/24"]', "'192.0.2.1/24'; accepted: a list of one or more, each once, each"),
        ('subject_alt_names.ip = ["localhost"]', "key 'subject_alt_names.ip' has the value 'localhost'"),
    ],
)
def test_load_refuses(tmp_path: Path, lines: str, told: str) -> None:
    """What is refused is told with file, profile, key, value and what is accepted."""
    text = refusal(tmp_path, f"[profile.good]\n[profile.bad]\n{lines}\n")

    assert text.startswith(f"{tmp_path / 'profiles.toml'}: profile 'bad': key '")
    assert told in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no profile; accepted: one or more tables [profile.NAME]"),
        ("[profile]\n", "no profile; accepted"),
        ("[profiles.x]\n", "key 'profiles' has the value {'x': {}}; accepted: tables [profile.NAME]"),
        ("profile = 1\n", "key 'profile' has the value 1; accepted: tables [profile.NAME]"),
        ("[[profile]]\n", "key 'profile' has the value [{}]; accepted: tables [profile.NAME]"),
        ("[profile]\nx = 1\n", "key 'profile.x' has the value 1; accepted: a table [profile.NAME]"),
        ('[profile."a b"]\n', "profile 'a b': the name is not accepted; accepted: 1 to 64 letters"),
        (f"[profile.{'a' * 65}]\n", "the name is not accepted"),
        ("[profile.x]\n[profile.x]\n", "Cannot declare ('profile', 'x') twice"),
        ("[profile.x\n", "(at line 1, column 11)"),
        (f"profile = {'9' * 5000}\n", "a number of too many digits"),
        (f"profile = {'[' * 5000}\n", "lists or tables too deep inside one another"),
    ],
)
def test_load_refuses_the_file(tmp_path: Path, text: str, told: str) -> None:
    """A file that is no list of profiles is told by its name, and why."""
    refused = refusal(tmp_path, text)

    assert refused.startswith(f"{tmp_path / 'profiles.toml'}: ")
    assert told in refused


@pytest.mark.parametrize("command", [("serve", "--listen", "unix:/nowhere/socket"), ("profiles", "check")])
def test_refused_file_ends_the_command(tmp_path: Path, command: tuple[str, ...]) -> None:
    """`serve` and `profiles check` end with status 2 and the reason, and make nothing."""
    path = tmp_path / "profiles.toml"
    path.write_text("[profile.x]\nvalidity_days = 0\n")
    state_dir = tmp_path / "state"

    done = run("vmi-agent", *command, "--state-dir", str(state_dir), "--profiles", str(path))

    assert done.returncode == 2
    assert f"{path}: profile 'x': key 'validity_days' has the value 0" in " ".join(done.stderr.split())
    assert not state_dir.exists()
