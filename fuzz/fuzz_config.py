"""Fuzz target: TOML files, as the configuration of either program and as a file of profiles.

The first octet chooses which of the three, and whether the rest is the file as it is, or choices of keys and values
that are nearly right. A file is taken, or refused in one line that can be told and with exit status 2; nothing else is
raised. A profile that is taken makes its own example, which is judged by it, as lint does at every start.
"""

import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import atheris
from choices import Choices

with atheris.instrument_imports(include=["runtime.settings", "runtime.descriptions", "vmi_agent.policy"]):
    from runtime.errors import ConfigError
    from vmi_agent.errors import Refused
    from vmi_agent.policy import profile_file
    from vmi_agent.policy.csr import parse
    from vmi_agent.policy.key_kinds import KEY_KINDS, AcceptedKey
    from vmi_agent.policy.profile import EXTENDED_KEY_USAGES, Profile, approve
    from vmi_agent.policy.subject_rules import ATTRIBUTES

with atheris.instrument_imports(include=["vmi_agent.config", "bmc_proxy.config"]):
    from bmc_proxy.config import Config as ProxyConfig
    from vmi_agent.config import Config as AgentConfig
    from vmi_agent.config import PublishingConfig

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import bmc_proxy.cli
import vmi_agent.cli
from vmi_agent.ca.reserved_names import ReservedNames
from vmi_agent.keys.open import Access
from vmi_agent.maintenance import AnchorTo

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
KEY = ec.derive_private_key(7, ec.SECP256R1())
STATE = tempfile.TemporaryDirectory()
FILE = Path(STATE.name) / "fuzzed.toml"
AGENT, PROXY = vmi_agent.cli.main.commands["serve"], bmc_proxy.cli.main.commands["serve"]
AGENT_OPTIONS = (
    *("state_dir", "listen", "peer_uid", "signers", "window", "max_requests", "key_type", "ephemeral_ca", "shared"),
    "profiles",
)

VALUES = (
    *("true", "false", "0", "1", "-1", "2", "4", "60", "365", "2048", "4096", "86400", "1.5", "nan", "[]", "{}"),
    *(
        '""',
        '"*"',
        '"a"',
        '"\\u0000"',
        '"\\ud7ff\\U0010ffff"',
        '"tcp:0"',
        '"tcp:127.0.0.1:1"',
        '"unix:/a"',
        "1979-05-27",
    ),
    *('"tls:7700"', '"tcp:7700:interface=127.0.0.1"', '"http://a/pki"', '"http://["', '"http://a:b/"', "'/dev/null'"),
    *('"text"', '"json"', '"p384"', '"cn"', '"upn"', '"pam"', '"US"', '"**.a.example"', '"192.0.2.0/24"', '"::/0"'),
    *('"hmc*.example.com"', '"a@*.example"', '"1.2.3"', '"2.5.4.3"', '"2.999.1"', '"0.40"', "99999999999999999999"),
)
WORDS = (
    *ATTRIBUTES,
    *KEY_KINDS,
    *EXTENDED_KEY_USAGES,
    "digitalSignature",
    "keyAgreement",
    "keyEncipherment",
    "1.2.3.4",
)
PROFILE_KEYS = [f"{table}.{key}".lstrip(".") for table, keys in profile_file.KEYS.items() for key in keys]


def value_of(choices: Choices) -> str:
    """Return a TOML value."""
    match choices.number() % 8:
        case 0 | 1 | 2:
            return choices.one_of(VALUES)
        case 3:
            return f'"{choices.one_of(WORDS)}"'
        case 4:
            return "[" + ",".join(f'"{choices.one_of(WORDS)}"' for _ in range(choices.number() % 4)) + "]"
        case 5:
            return "[" + ",".join(choices.one_of(VALUES) for _ in range(choices.number() % 4)) + "]"
        case 6:
            return str(choices.number(choices.number() % 4))
        case _:
            text = choices.octets(choices.number() % 32).decode("latin-1")
            return '"' + "".join(each if each.isalnum() else f"\\u{ord(each):04x}" for each in text) + '"'


def program_file(choices: Choices, command: click.Command) -> str:
    """Return a configuration whose keys are a program's."""
    names = [each.name for each in command.params if each.name] + ["unknown"]
    return "".join(f"{choices.one_of(names)} = {value_of(choices)}\n" for _ in range(choices.number() % 8))


def profiles_file(choices: Choices) -> str:
    """Return a file of profiles."""
    lines: list[str] = []
    while choices and len(lines) < 32:
        match choices.number() % 8:
            case 0:
                lines.append(f"[profile.{choices.one_of(('a', 'b', 'hmc-client', 'ä', choices.short().hex()))}]")
            case 1 | 2:
                table = choices.one_of(("fixed", "patterns", "fixed", "patterns", "unknown"))
                lines.append(f'subject.{table}."{choices.one_of(WORDS)}" = {value_of(choices)}')
            case _:
                lines.append(f"{choices.one_of(PROFILE_KEYS)} = {value_of(choices)}")
    return "\n".join(["[profile.first]", *lines])


def told(error: click.UsageError | ConfigError) -> str:
    """Return what is told of a refusal, which can be written to a terminal."""
    text = error.format_message() if isinstance(error, click.UsageError) else str(error)
    assert text
    text.encode()
    return text


def agent_config(options: dict[str, Any]) -> None:
    """Make the agent's configuration of its options, as its `serve` does."""
    hours = [timedelta(hours=options[f"crl_{each}_hours"]) for each in ("validity", "period")]
    AgentConfig(
        **{name: options[name] for name in AGENT_OPTIONS},
        access=Access(),
        publishing=PublishingConfig(options["publish_at"], *hours),
        anchor_to=AnchorTo(options["anchor_file"], options["anchor_syslog"], timedelta(minutes=5)),
        keep_expired=None,
    )


def proxy_config(options: dict[str, Any]) -> None:
    """Make the proxy's configuration of its options, as its `serve` does."""
    del options["log_format"]
    ProxyConfig(**options)


def check_program(command: click.Command, configure: Callable[[dict[str, Any]], None]) -> None:
    """Have a program read the file."""
    arguments = ["--state-dir", STATE.name, "--config", str(FILE)]
    try:
        context = command.make_context("serve", arguments)
        configure(dict(context.params))
    except click.UsageError as error:
        assert error.exit_code == 2
        told(error)
    except ConfigError as error:
        told(error)


def check_profiles() -> None:
    """Have the agent read the file as profiles, and try them."""
    try:
        profiles = profile_file.load_profiles(FILE)
    except ConfigError as error:
        assert str(FILE) in told(error)
        return
    for profile in profiles:
        not_before, not_after = profile.period(NOW, NOW + timedelta(days=7000))
        assert not_before < not_after
        assert profile.keys_text
        assert profile.extended_key_usages_text
        for kind in profile.key_kinds:
            assert profile.constant_extensions(kind)
        try_example(profile)


def try_example(profile: Profile) -> None:
    """Judge the profile's own example, which its rules may make impossible, by the profile."""
    subject = profile.subject.example()
    names = profile.names.example(None)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    csr = parse(builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER))
    try:
        approve(csr, AcceptedKey(profile.key_kinds[0], profile.rsa_bits[0]), profile, ReservedNames())
    except Refused as refused:
        assert refused.text


def one_input(data: bytes) -> None:
    """Run one input."""
    choices = Choices(data)
    which = choices.number()
    command, configure = ((AGENT, agent_config), (PROXY, proxy_config))[which & 1]
    if which & 4:
        FILE.write_bytes(choices.rest())
    else:
        text = profiles_file(choices) if which & 2 else program_file(choices, command)
        FILE.write_text(text, encoding="utf-8")
    if which & 2:
        check_profiles()
    else:
        check_program(command, configure)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
