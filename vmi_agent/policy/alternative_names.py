"""What a profile asks of the alternative names in a CSR (RFC 5280, 4.2.1.6)."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509

from protocol.errors import ErrorCode
from vmi_agent.errors import Refused
from vmi_agent.policy.hosts import host_fault, mailbox_fault
from vmi_agent.policy.patterns import host_matches, host_sample

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_EVERYWHERE: tuple[Network, ...] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))
# IPv6 addresses whose last 32 bits are an IPv4 address, which is the one that they lead to: IPv4-compatible and -mapped
# (RFC 4291, 2.5.5), and what the well-known prefix of NAT64 translates (RFC 6052, 2.1).
IPV4_IN_IPV6 = tuple(map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "64:ff9b::/96")))
_UNSPECIFIED_AND_LOOPBACK = ipaddress.IPv6Network("::/127")


@dataclass(frozen=True, slots=True)
class NameRules:
    """Which alternative names a CSR may ask for. A kind without any pattern is not allowed.

    Attributes:
        required: there must be one at least.
        dns: host patterns (`patterns`) for host names.
        ip: networks for addresses.
        email: host patterns for what stands behind the @ of mailboxes.
    """

    required: bool = False
    dns: tuple[str, ...] = ("**",)
    ip: tuple[Network, ...] = _EVERYWHERE
    email: tuple[str, ...] = ("**",)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are allowed, as profiles call them."""
        return tuple(kind for kind in ("dns", "ip", "email") if getattr(self, kind))

    def judge(self, names: x509.SubjectAlternativeName) -> None:
        """Judge the names that a CSR asks for.

        Raises:
            Refused: CSR_POLICY, saying what the profile allows.
        """
        if not list(names):
            raise _refuse("The CSR asks for alternative names and gives none. Leave the extension out.")
        for name in names:
            match name:
                case x509.DNSName(value=host) if self.dns:
                    if fault := host_fault(host):
                        raise _refuse(f"The CSR asks for a DNS name that {fault}. Correct it, or leave it out.")
                    if not any(host_matches(pattern, host) for pattern in self.dns):
                        raise _refuse(f"The CSR asks for a DNS name that is not allowed; allowed: {_list(self.dns)}.")
                case x509.IPAddress(value=ipaddress.IPv4Address() | ipaddress.IPv6Address() as address) if self.ip:
                    if not any(meant(address) in network for network in self.ip):
                        raise _refuse(f"The CSR asks for an IP address that is not allowed; allowed: {_list(self.ip)}.")
                case x509.IPAddress() if self.ip:
                    raise _refuse("The CSR asks for a network as an IP address. Ask for single addresses.")
                case x509.RFC822Name(value=mailbox) if self.email:
                    if fault := mailbox_fault(mailbox):
                        raise _refuse(f"The CSR asks for an e-mail address that {fault}. Correct it, or leave it out.")
                    self._judge_mailbox_host(mailbox)
                case _:
                    allowed = ", ".join(self.kinds) or "none"
                    raise _refuse(
                        f"The CSR asks for a kind of alternative name that is not allowed; allowed: {allowed}."
                    )

    def judge_subject_mailboxes(self, mailboxes: Iterable[str]) -> None:
        """Judge the subject's own mailboxes, each of which becomes an alternative name (RFC 5280, 4.1.2.6).

        Where the profile has no `email`, none may be asked for, and those of the subject are left to its rules.

        Raises:
            Refused: CSR_POLICY, saying what the profile allows.
        """
        if self.email:
            for mailbox in mailboxes:
                self._judge_mailbox_host(mailbox)

    def example(self, mailbox: str | None) -> list[x509.GeneralName]:
        """Return one name of each kind that is allowed.

        Args:
            mailbox: the one to use, where the subject has one.
        """
        names: list[x509.GeneralName] = [x509.DNSName(host_sample(pattern)) for pattern in self.dns[:1]]
        names += [x509.IPAddress(network.network_address) for network in self.ip[:1]]
        names += [x509.RFC822Name(mailbox or f"a@{host_sample(pattern)}") for pattern in self.email[:1]]
        return names

    def _judge_mailbox_host(self, mailbox: str) -> None:
        host = mailbox.rpartition("@")[2]
        if not any(host_matches(pattern, host) for pattern in self.email):
            raise _refuse(f"The CSR has an e-mail address at a host that is not allowed; allowed: {_list(self.email)}.")


def meant(address: Address) -> Address:
    """Return the address that another one leads to: the IPv4 address in an IPv6 one, or itself."""
    if (
        isinstance(address, ipaddress.IPv6Address)
        and any(address in network for network in IPV4_IN_IPV6)
        and address not in _UNSPECIFIED_AND_LOOPBACK
    ):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _list(patterns: tuple[object, ...]) -> str:
    return ", ".join(map(str, patterns))


def _refuse(text: str) -> Refused:
    return Refused(ErrorCode.CSR_POLICY, text)
