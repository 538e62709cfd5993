"""What a profile asks of the alternative names in a CSR (RFC 5280, 4.2.1.6)."""

import ipaddress
import re
from dataclasses import dataclass

from cryptography import x509

from protocol.errors import ErrorCode
from vmi_agent.errors import Refused
from vmi_agent.judging.patterns import host_matches, host_sample

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\Z")
_LOCAL_PART = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}\Z")  # RFC 5322, 3.2.3: atoms and dots
_EVERYWHERE: tuple[Network, ...] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))


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
                    if not _DNS_NAME.match(host):
                        raise _refuse(
                            "The CSR asks for a DNS name that is not a plain host name (RFC 1034, 3.5; no wildcard)."
                        )
                    if not any(host_matches(pattern, host) for pattern in self.dns):
                        raise _refuse(f"The CSR asks for a DNS name that is not allowed; allowed: {_list(self.dns)}.")
                case x509.IPAddress(value=ipaddress.IPv4Address() | ipaddress.IPv6Address() as address) if self.ip:
                    if not any(address in network for network in self.ip):
                        raise _refuse(f"The CSR asks for an IP address that is not allowed; allowed: {_list(self.ip)}.")
                case x509.IPAddress() if self.ip:
                    raise _refuse("The CSR asks for a network as an IP address. Ask for single addresses.")
                case x509.RFC822Name(value=mailbox) if self.email:
                    local, _, host = mailbox.rpartition("@")
                    if not (_LOCAL_PART.match(local) and _DNS_NAME.match(host)):
                        raise _refuse("The CSR asks for an e-mail address that is not plain name@host.")
                    if not any(host_matches(pattern, host) for pattern in self.email):
                        raise _refuse(
                            f"The CSR asks for an e-mail address at a host that is not allowed; allowed:"
                            f" {_list(self.email)}."
                        )
                case _:
                    allowed = ", ".join(self.kinds) or "none"
                    raise _refuse(
                        f"The CSR asks for a kind of alternative name that is not allowed; allowed: {allowed}."
                    )

    def example(self, mailbox: str | None) -> list[x509.GeneralName]:
        """Return one name of each kind that is allowed.

        Args:
            mailbox: the one to use, where the subject has one: RFC 5280, 4.1.2.6 wants it here as well.
        """
        names: list[x509.GeneralName] = [x509.DNSName(host_sample(pattern)) for pattern in self.dns[:1]]
        names += [x509.IPAddress(network.network_address) for network in self.ip[:1]]
        names += [x509.RFC822Name(mailbox or f"a@{host_sample(pattern)}") for pattern in self.email[:1]]
        return names


def _list(patterns: tuple[object, ...]) -> str:
    return ", ".join(map(str, patterns))


def _refuse(text: str) -> Refused:
    return Refused(ErrorCode.CSR_POLICY, text)
